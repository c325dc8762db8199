//! What came of many runs: counts, the table, and how soon failures were noticed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::fault::{Deed, Phase, Victim};
use super::rules::{Ending, expected};
use super::run::{Outcome, PEER_TIMEOUT};

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

    /// The tables, as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string never fails.
        let _ = self.write_markdown(&mut text);
        text
    }

    fn write_markdown(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "{}\n", self.closing_line())?;
        writeln!(text, "### kill -9: who, and when\n")?;
        writeln!(text, "| phase | send | run | incoming | receive |")?;
        writeln!(text, "|---|---|---|---|---|")?;
        for phase in Phase::ALL {
            let cells = Victim::ALL.map(|victim| self.cell(Deed::Kill(victim), phase));
            writeln!(text, "| {} | {} |", phase.name(), cells.join(" | "))?;
        }
        writeln!(text, "\n### All else\n")?;
        let others = [
            ("freeze run", Deed::Freeze(Victim::Run)),
            ("freeze incoming", Deed::Freeze(Victim::Incoming)),
            ("freeze, kill run", Deed::FreezeKill(Victim::Run)),
            ("freeze, kill incoming", Deed::FreezeKill(Victim::Incoming)),
            ("blink run", Deed::Blink(Victim::Run)),
            ("blink incoming", Deed::Blink(Victim::Incoming)),
            ("cut", Deed::Cut),
            ("cut, restart receive", Deed::CutRestart),
        ];
        let names = others.map(|(name, _)| name);
        writeln!(text, "| phase | {} |", names.join(" | "))?;
        writeln!(text, "|---|{}", "---|".repeat(others.len()))?;
        for phase in Phase::ALL {
            let cells = others.map(|(_, deed)| self.cell(deed, phase));
            writeln!(text, "| {} | {} |", phase.name(), cells.join(" | "))?;
        }
        writeln!(text, "\n### Why\n")?;
        writeln!(text, "| fault | allowed | because |")?;
        writeln!(text, "|---|---|---|")?;
        for (because, (faults, endings)) in self.reasons() {
            writeln!(text, "| {faults} | {endings} | {because} |")?;
        }
        writeln!(
            text,
            "\n### From the fault to the surviving side's notice\n"
        )?;
        writeln!(
            text,
            "A peer may be silent for {} ms (`--peer-timeout`).\n",
            PEER_TIMEOUT.as_millis()
        )?;
        writeln!(text, "| fault | runs | p50 | p90 | p99 | longest |")?;
        writeln!(text, "|---|---|---|---|---|---|")?;
        for notice in self.notices() {
            let times = notice.within.map(|time| format!("{} ms", time.as_millis()));
            let (sort, count) = (notice.sort, notice.count);
            writeln!(text, "| {sort} | {count} | {} |", times.join(" | "))?;
        }
        Ok(())
    }

    /// What became of the runs of one fault.
    fn cell(&self, deed: Deed, phase: Phase) -> String {
        let mut endings: BTreeMap<Ending, (usize, bool)> = BTreeMap::new();
        for outcome in self.outcomes {
            let fault = outcome.order.fault;
            if fault.deed == deed && fault.phase == phase {
                let entry = endings.entry(outcome.ending).or_default();
                entry.0 += 1;
                entry.1 |= !outcome.has_passed();
            }
        }
        let words = endings.iter().map(|(ending, (count, has_failed))| {
            let times = if *count > 1 {
                format!(" ×{count}")
            } else {
                String::new()
            };
            let mark = if *has_failed { " (failed)" } else { "" };
            format!("{}{times}{mark}", ending.name())
        });
        words.collect::<Vec<_>>().join(", ")
    }

    /// Why endings are right: by reason, the faults that were run, and the endings allowed.
    fn reasons(&self) -> BTreeMap<&'static str, (String, String)> {
        let mut by_reason: BTreeMap<&'static str, (BTreeMap<String, Vec<Phase>>, String)> =
            BTreeMap::new();
        for outcome in self.outcomes {
            let fault = outcome.order.fault;
            let expectation = expected(fault);
            let names: Vec<&str> = expectation
                .endings
                .iter()
                .map(|ending| ending.name())
                .collect();
            let entry = by_reason.entry(expectation.because).or_default();
            entry.1 = names.join(" or ");
            let phases = entry.0.entry(fault.deed.name()).or_default();
            if !phases.contains(&fault.phase) {
                phases.push(fault.phase);
            }
        }
        let told = by_reason.into_iter().map(|(because, (faults, endings))| {
            let faults: Vec<String> = faults
                .into_iter()
                .map(|(deed, phases)| {
                    let first = phases.iter().min().map_or("", |phase| phase.name());
                    let last = phases.iter().max().map_or("", |phase| phase.name());
                    match phases.len() {
                        1 => format!("{deed}/{first}"),
                        _ => format!("{deed}/{first} … {last}"),
                    }
                })
                .collect();
            (because, (faults.join(", "), endings))
        });
        told.collect()
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
            "peer_timeout_ns": nanoseconds(PEER_TIMEOUT),
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
mod tests {
    use super::*;
    use crate::chaos::arena::GuestKind;
    use crate::chaos::fault::Fault;
    use crate::chaos::run::Order;

    fn outcome(deed: Deed, phase: Phase, ending: Ending, noticed_ms: u64) -> Outcome {
        Outcome {
            order: Order {
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
        let table = tally.markdown();
        assert!(table.contains("| round | gone | gone |  |  |"), "{table}");
        assert!(table.contains("| a VMM is killed | 1 | 3 ms |"), "{table}");
    }
}
