//! Many runs, side by side, from one seed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};

use super::arena::{Fabric, GuestKind};
use super::fault::{Fault, Wanted};
use super::run::{Order, Outcome, run};
use crate::wire::Numbers;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// How many runs.
    pub runs: usize,
    /// From which everything random follows.
    pub seed: u64,
    /// How many at a time.
    pub jobs: usize,
    /// What moves go over.
    pub fabric: Fabric,
    /// What runs the guests; several take turns.
    pub guests: Vec<GuestKind>,
    /// Which faults; none: all.
    pub wanted: Vec<Wanted>,
    /// Whether links can be cut here.
    pub has_links: bool,
}

impl Campaign {
    /// What is run, in order: each fault once in random order, then each once more, and so on.
    ///
    /// A campaign of one run takes the run's seed from its own, so that a run can be had again by
    /// `--runs 1 --seed … --only …`.
    pub fn orders(&self) -> Vec<Order> {
        let mut numbers = Numbers::new(self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        // The first numbers of small seeds are much alike.
        for _ in 0..20 {
            numbers.next_number();
        }
        let mut deck: Vec<(usize, Fault)> = Vec::new();
        let mut orders = Vec::new();
        // Pass after pass, a fault meets each kind of guest in turn.
        let mut pass = numbers.below(self.guests.len());
        while orders.len() < self.runs {
            if deck.is_empty() {
                pass += 1;
                deck = self.faults().into_iter().enumerate().collect();
                for last in (1..deck.len()).rev() {
                    deck.swap(last, numbers.below(last + 1));
                }
            }
            let (Some((place, fault)), false) = (deck.pop(), self.guests.is_empty()) else {
                return orders;
            };
            orders.push(Order {
                fabric: self.fabric,
                fault,
                guest: self.guests[(place + pass) % self.guests.len()],
                seed: match self.runs {
                    1 => self.seed,
                    // Short enough to be typed.
                    _ => numbers.next_number() >> 32,
                },
            });
        }
        orders
    }

    fn faults(&self) -> Vec<Fault> {
        let is_wanted = |fault: &Fault| {
            (self.wanted.is_empty() || self.wanted.iter().any(|wanted| wanted.has(*fault)))
                && (self.has_links || !fault.deed.needs_link())
        };
        Fault::all().into_iter().filter(is_wanted).collect()
    }

    /// Runs all, until `interrupted`. `told` hears of each run as it ends, on this thread. A run
    /// that could not be made counts as one that did not pass.
    pub fn run(&self, interrupted: &AtomicBool, mut told: impl FnMut(&Outcome)) -> Vec<Outcome> {
        let orders = self.orders();
        let next = AtomicUsize::new(0);
        let mut outcomes = Vec::new();
        std::thread::scope(|scope| {
            let (sender, ended) = channel();
            for _ in 0..self.jobs.max(1) {
                let sender: Sender<Outcome> = sender.clone();
                let (orders, next) = (&orders, &next);
                scope.spawn(move || {
                    while !interrupted.load(Ordering::Relaxed) {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Some(order) = orders.get(number) else {
                            return;
                        };
                        let outcome = match run(*order, number, interrupted) {
                            Err(_) if interrupted.load(Ordering::Relaxed) => return,
                            Err(error) => Outcome::not_made(*order, &error),
                            Ok(outcome) => outcome,
                        };
                        // Nobody listens only when this thread's scope is being left.
                        drop(sender.send(outcome));
                    }
                });
            }
            drop(sender);
            for outcome in ended {
                told(&outcome);
                outcomes.push(outcome);
            }
        });
        outcomes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn campaign(runs: usize, seed: u64, wanted: &[&str]) -> Campaign {
        Campaign {
            runs,
            seed,
            jobs: 1,
            fabric: Fabric::Tcp,
            guests: vec![GuestKind::Process, GuestKind::Kvm],
            wanted: wanted.iter().map(|text| text.parse().unwrap()).collect(),
            has_links: true,
        }
    }

    fn names(campaign: &Campaign) -> Vec<String> {
        let orders = campaign.orders();
        orders
            .iter()
            .map(|order| format!("{} {} {}", order.fault, order.guest.name(), order.seed))
            .collect()
    }

    #[test]
    fn a_seed_decides_everything() {
        let some = campaign(50, 7, &[]);
        assert_eq!(names(&some), names(&some));
        assert_ne!(names(&some), names(&campaign(50, 8, &[])));
        assert_eq!(
            campaign(1, 42, &["kill-run/committed"]).orders()[0].seed,
            42
        );
    }

    #[test]
    fn three_hundred_runs_have_each_fault() {
        let mut faults: Vec<_> = campaign(300, 1, &[])
            .orders()
            .iter()
            .map(|order| order.fault.to_string())
            .collect();
        faults.sort();
        faults.dedup();
        assert_eq!(faults.len(), Fault::all().len());
    }

    #[test]
    fn both_kinds_of_guest_have_their_turn_at_one_fault() {
        let orders = campaign(4, 1, &["kill-run/committed"]).orders();
        assert!(orders.windows(2).all(|pair| pair[0].guest != pair[1].guest));
    }
}
