//! What is known of the guests, and which of them is chosen.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use super::sampler::{Sample, Seen};

/// How many rates of a move are kept for its curve.
pub(super) const RATES_KEPT: usize = 120;

/// What the screen shows.
pub(super) struct View {
    /// Whose guests these are.
    pub(super) directory: String,
    /// The guests: those that move first, then by name.
    pub(super) guests: Vec<Seen>,
    /// What went wrong in the last look.
    pub(super) troubles: Vec<String>,
    /// Whether there was a first look.
    pub(super) has_looked: bool,
    /// Whether the chosen guest is shown in full.
    pub(super) is_in_full: bool,
    /// The chosen guest: by name, so that it stays chosen when others come and go.
    chosen: Option<String>,
    /// The rates of moves under way, by guest.
    rates: BTreeMap<String, VecDeque<u64>>,
}

impl View {
    /// Of a directory in which nobody has looked yet.
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.display().to_string(),
            guests: Vec::new(),
            troubles: Vec::new(),
            has_looked: false,
            is_in_full: false,
            chosen: None,
            rates: BTreeMap::new(),
        }
    }

    /// Takes what was heard.
    pub(super) fn take(&mut self, sample: Sample) {
        let place = self.chosen_place().unwrap_or(0);
        self.has_looked = true;
        self.troubles = sample.troubles;
        self.guests = sample.guests;
        self.guests.sort_by(|one, other| {
            let key = |seen: &Seen| {
                (
                    seen.status.move_under_way.is_none(),
                    seen.status.name.clone(),
                )
            };
            key(one).cmp(&key(other))
        });
        self.rates.retain(|name, _| {
            let mut guests = self.guests.iter();
            guests.any(|seen| seen.status.name == *name && seen.status.move_under_way.is_some())
        });
        for seen in &self.guests {
            let under_way = seen.status.move_under_way.as_ref();
            if let Some(progress) = under_way.and_then(|under_way| under_way.progress.as_ref()) {
                let rates = self.rates.entry(seen.status.name.clone()).or_default();
                if rates.len() == RATES_KEPT {
                    rates.pop_front();
                }
                rates.push_back(progress.rate_bytes_per_s);
            }
        }
        if self.chosen_place().is_none() {
            // It is gone: whoever stands there now.
            self.choose(place.min(self.guests.len().saturating_sub(1)));
        }
    }

    /// The rates of a guest's move, the oldest first.
    pub(super) fn rates(&self, name: &str) -> Vec<u64> {
        let rates = self.rates.get(name);
        rates.map_or_else(Vec::new, |rates| rates.iter().copied().collect())
    }

    /// Where the chosen guest stands.
    pub(super) fn chosen_place(&self) -> Option<usize> {
        let chosen = self.chosen.as_deref()?;
        let mut guests = self.guests.iter();
        guests.position(|seen| seen.status.name == chosen)
    }

    /// The chosen guest.
    pub(super) fn chosen(&self) -> Option<&Seen> {
        self.guests.get(self.chosen_place()?)
    }

    /// Chooses the guest above.
    pub(super) fn choose_before(&mut self) {
        self.choose(self.chosen_place().unwrap_or(0).saturating_sub(1));
    }

    /// Chooses the guest below.
    pub(super) fn choose_next(&mut self) {
        let last = self.guests.len().saturating_sub(1);
        self.choose(self.chosen_place().map_or(0, |place| (place + 1).min(last)));
    }

    /// Chooses the first guest.
    pub(super) fn choose_first(&mut self) {
        self.choose(0);
    }

    /// Chooses the last guest.
    pub(super) fn choose_last(&mut self) {
        self.choose(self.guests.len().saturating_sub(1));
    }

    fn choose(&mut self, place: usize) {
        let guest = self.guests.get(place);
        self.chosen = guest.map(|seen| seen.status.name.clone());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use dunlin_engine::report::{LaneProgress, Phase, Progress};

    use super::*;
    use crate::local::protocol::{GuestState, GuestStatus, MoveStatus, WorkloadStatus};

    /// A guest that runs, or moves.
    pub(in super::super) fn seen(name: &str, moves: bool) -> Seen {
        let progress = Progress {
            phase: Phase::Copying,
            round: 2,
            dirty_pages: 1000,
            remaining_pages: 250,
            sent_bytes: 1 << 30,
            rate_bytes_per_s: 1 << 30,
            eta_ns: Some(2_000_000_000),
            predicted_blackout_ns: Some(9_000_000),
            elapsed_ns: 1_000_000_000,
            lanes: (0..2)
                .map(|lane| LaneProgress {
                    lane,
                    sent_bytes: 512 << 20,
                    rate_bytes_per_s: 512 << 20,
                })
                .collect(),
        };
        let status = GuestStatus {
            name: name.to_owned(),
            uuid: "6f1c0d7e-0000-4000-8000-000000000001".to_owned(),
            epoch: 1,
            state: if moves {
                GuestState::Moving
            } else {
                GuestState::Running
            },
            kind: "kvm".to_owned(),
            pid: 7,
            memory_bytes: 4 << 30,
            backing: "memfd".to_owned(),
            vcpus: 2,
            workload: Some(WorkloadStatus::default()),
            move_under_way: moves.then(|| MoveStatus {
                to: "tcp://host-b:7471".to_owned(),
                progress: Some(progress),
            }),
            in_doubt: None,
            last_move: None,
        };
        Seen { status, last: None }
    }

    pub(in super::super) fn view(guests: Vec<Seen>) -> View {
        let mut view = View::new(Path::new("/run/dunlin"));
        view.take(Sample {
            guests,
            troubles: Vec::new(),
        });
        view
    }

    #[test]
    fn who_is_chosen_stays_chosen_when_others_come_and_go() {
        let mut view = view(vec![seen("a", false), seen("b", false), seen("c", false)]);
        view.choose_next();
        assert_eq!(view.chosen().unwrap().status.name, "b");
        view.take(Sample {
            guests: vec![seen("b", false), seen("c", true)],
            troubles: Vec::new(),
        });
        // The one that moves stands first.
        assert_eq!(view.guests[0].status.name, "c");
        assert_eq!(view.chosen().unwrap().status.name, "b");
        view.take(Sample {
            guests: vec![seen("c", false)],
            troubles: Vec::new(),
        });
        assert_eq!(view.chosen().unwrap().status.name, "c");
        view.take(Sample {
            guests: Vec::new(),
            troubles: Vec::new(),
        });
        assert!(view.chosen().is_none());
        view.choose_next();
        view.choose_before();
        view.choose_last();
    }

    #[test]
    fn rates_are_kept_while_a_move_runs_and_no_longer() {
        let mut view = view(vec![seen("a", true)]);
        for _ in 0..2 * RATES_KEPT {
            view.take(Sample {
                guests: vec![seen("a", true)],
                troubles: Vec::new(),
            });
        }
        assert_eq!(view.rates("a").len(), RATES_KEPT);
        view.take(Sample {
            guests: vec![seen("a", false)],
            troubles: Vec::new(),
        });
        assert!(view.rates("a").is_empty());
    }
}
