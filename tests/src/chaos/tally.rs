//! What came of many runs: counts, and how soon failures were noticed.

use std::time::Duration;

use serde_json::{Value, json};

use super::fault::{Deed, Phase, Victim};
use super::rules::{Ending, expected};
use super::run::Outcome;

/// What came of a campaign.
#[derive(Clone, Debug)]
pub struct Tally<'a> {
    outcomes: &'a [Outcome],
}

/// How soon failures of one sort were noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What sort of failure.
    pub sort: &'static str,
    /// Of how many.
    pub count: usize,
    /// 50, 90 and 99 in a hundred were noticed within these times, and all within the last.
    pub within: [Duration; 4],
}

/// A sort of failure: its name, and what belongs to it.
type Sort = (&'static str, fn(Deed) -> bool);

impl<'a> Tally<'a> {
    /// Of these.
    pub fn new(outcomes: &'a [Outcome]) -> Self {
        Self { outcomes }
    }

    /// How long a peer may be silent in moves whose fault is a silence; `None` without a run.
    pub fn peer_timeout(&self) -> Option<Duration> {
        let first = self.outcomes.first()?;
        Some(first.order.fabric.peer_timeout())
    }

    /// How many ended so.
    pub fn ended(&self, ending: Ending) -> usize {
        let outcomes = self.outcomes.iter();
        outcomes.filter(|outcome| outcome.ending == ending).count()
    }

    /// How many runs were made again, since the machine was too busy to get to the fault.
    pub fn repeated(&self) -> u32 {
        self.outcomes.iter().map(|outcome| outcome.repeated).sum()
    }

    /// Guests that are gone although nobody killed their owner.
    pub fn lost(&self) -> usize {
        let is_lost = |outcome: &&Outcome| {
            let expectation = expected(outcome.order.fault);
            outcome.ending == Ending::Gone && !expectation.endings.contains(&Ending::Gone)
        };
        self.outcomes.iter().filter(is_lost).count()
    }

    /// How many passed.
    pub fn passed(&self) -> usize {
        let outcomes = self.outcomes.iter();
        outcomes.filter(|outcome| outcome.has_passed()).count()
    }

    /// How many did not.
    pub fn failed(&self) -> usize {
        self.outcomes.len() - self.passed()
    }

    /// The closing line.
    pub fn closing_line(&self) -> String {
        format!(
            "{} runs: {} two owners, {} lost, {} unsettled; {} moved, {} stayed, {} held with the \
             reason, {} gone with their owner",
            self.outcomes.len(),
            self.ended(Ending::TwoOwners),
            self.lost(),
            self.ended(Ending::Unsettled),
            self.ended(Ending::Moved),
            self.ended(Ending::Stayed),
            self.ended(Ending::Held),
            self.ended(Ending::Gone) - self.lost(),
        )
    }

    /// How soon failures were noticed, by sort.
    pub fn notices(&self) -> Vec<Notice> {
        let sorts: [Sort; 3] = [
            ("a VMM is killed", |deed| {
                matches!(deed, Deed::Kill(Victim::Run | Victim::Incoming))
            }),
            ("the destination's VMM is frozen", |deed| {
                matches!(
                    deed,
                    Deed::Freeze(Victim::Incoming) | Deed::FreezeKill(Victim::Incoming)
                )
            }),
            ("the link is cut", Deed::needs_link),
        ];
        sorts
            .into_iter()
            .filter_map(|(sort, is_of_sort)| {
                let hit = self.outcomes.iter().filter(|outcome| {
                    let fault = outcome.order.fault;
                    // Once the source knows that the guest is the destination's, there is nothing
                    // to notice.
                    let is_under_way =
                        fault.phase != Phase::Random && fault.phase < Phase::RunningSent;
                    is_of_sort(fault.deed) && is_under_way
                });
                let mut times: Vec<Duration> =
                    hit.filter_map(|outcome| outcome.noticed_after).collect();
                times.sort_unstable();
                let within = [50, 90, 99, 100].map(|percent| percentile(&times, percent));
                let [Some(a), Some(b), Some(c), Some(d)] = within else {
                    return None;
                };
                Some(Notice {
                    sort,
                    count: times.len(),
                    within: [a, b, c, d],
                })
            })
            .collect()
    }

    /// All of it for programs.
    pub fn json(&self) -> Value {
        let runs: Vec<Value> = self
            .outcomes
            .iter()
            .map(|outcome| {
                json!({
                    "fault": outcome.order.fault.to_string(),
                    "guest": outcome.order.guest.name(),
                    "seed": outcome.order.seed,
                    "ending": outcome.ending.name(),
                    "passed": outcome.has_passed(),
                    "complaints": outcome.complaints,
                    "noticed_after_ns": outcome.noticed_after.map(nanoseconds),
                    "took_ns": nanoseconds(outcome.took),
                    "kept_at": outcome.kept_at,
                })
            })
            .collect();
        let notices: Vec<Value> = self
            .notices()
            .iter()
            .map(|notice| {
                let [p50, p90, p99, longest] = notice.within.map(nanoseconds);
                json!({
                    "fault": notice.sort, "runs": notice.count,
                    "p50_ns": p50, "p90_ns": p90, "p99_ns": p99, "max_ns": longest,
                })
            })
            .collect();
        json!({
            "runs": runs,
            "passed": self.passed(),
            "failed": self.failed(),
            "two_owners": self.ended(Ending::TwoOwners),
            "lost": self.lost(),
            "repeated": self.repeated(),
            "unsettled": self.ended(Ending::Unsettled),
            "peer_timeout_ns": self.peer_timeout().map(nanoseconds),
            "noticed": notices,
        })
    }
}

/// The smallest time within which so many in a hundred are; the times are in order.
fn percentile(times: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (times.len() * percent).div_ceil(100).max(1);
    times.get(rank - 1).copied()
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::chaos::arena::{Fabric, GuestKind};
    use crate::chaos::fault::Fault;
    use crate::chaos::run::Order;

    /// A run that passed.
    pub(crate) fn outcome(deed: Deed, phase: Phase, ending: Ending, noticed_ms: u64) -> Outcome {
        Outcome {
            order: Order {
                fabric: Fabric::Tcp,
                fault: Fault { deed, phase },
                guest: GuestKind::Process,
                seed: 1,
            },
            ending,
            complaints: Vec::new(),
            noticed_after: Some(Duration::from_millis(noticed_ms)),
            took: Duration::from_secs(1),
            repeated: 0,
            story: Vec::new(),
            kept_at: None,
        }
    }

    #[test]
    fn percentiles_are_times_that_were() {
        let times: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        let percents = [0, 50, 90, 99, 100].map(|percent| percentile(&times, percent));
        let expected = [1, 100, 180, 198, 200].map(|ms| Some(Duration::from_millis(ms)));
        assert_eq!(percents, expected);
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn a_guest_is_lost_where_no_rule_lets_it_go() {
        let outcomes = [
            outcome(Deed::Kill(Victim::Run), Phase::Round, Ending::Gone, 3),
            outcome(Deed::Kill(Victim::Send), Phase::Round, Ending::Gone, 3),
            outcome(Deed::Cut, Phase::Committed, Ending::TwoOwners, 3),
        ];
        let tally = Tally::new(&outcomes);
        assert_eq!((tally.lost(), tally.ended(Ending::Gone)), (1, 2));
        let line = tally.closing_line();
        assert!(
            line.starts_with("3 runs: 1 two owners, 1 lost, 0 unsettled;"),
            "{line}"
        );
        assert!(line.ends_with("1 gone with their owner"), "{line}");
    }
}
