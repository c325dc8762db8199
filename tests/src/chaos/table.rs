//! The table of a campaign: what became of each fault, and why that is right.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::fault::{Deed, Fault, Phase, Victim};
use super::rules::{Ending, Expectation, expected};
use super::run::Outcome;
use super::tally::Tally;

/// What came of a campaign, as Markdown.
#[derive(Clone, Debug)]
pub struct Table<'a> {
    outcomes: &'a [Outcome],
    tally: Tally<'a>,
}

impl<'a> Table<'a> {
    /// Of these.
    pub fn new(outcomes: &'a [Outcome]) -> Self {
        Self {
            outcomes,
            tally: Tally::new(outcomes),
        }
    }

    /// The tables.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string never fails.
        let _ = self.write_markdown(&mut text);
        text
    }

    fn write_markdown(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "{}\n", self.tally.closing_line())?;
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
        for reason in reasons() {
            let endings: Vec<&str> = reason
                .expectation
                .endings
                .iter()
                .map(|ending| ending.name())
                .collect();
            let faults: Vec<String> = reason
                .faults
                .iter()
                .map(|(deed, phases)| format!("{}/{}", deed.name(), ranges(phases).join(", ")))
                .collect();
            writeln!(
                text,
                "| {} | {} | {} |",
                faults.join("; "),
                endings.join(" or "),
                reason.expectation.because
            )?;
        }
        writeln!(
            text,
            "\n### From the fault to the surviving side's notice\n"
        )?;
        writeln!(
            text,
            "A peer may be silent for {} ms (`--peer-timeout`).\n",
            self.tally.peer_timeout().unwrap_or_default().as_millis()
        )?;
        writeln!(text, "| fault | runs | p50 | p90 | p99 | longest |")?;
        writeln!(text, "|---|---|---|---|---|---|")?;
        for notice in self.tally.notices() {
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
        let words = words.collect::<Vec<_>>();
        let is_possible = Fault::all().contains(&Fault { deed, phase });
        match (words.is_empty(), is_possible) {
            (true, true) => "not run".to_owned(),
            (true, false) => "–".to_owned(),
            _ => words.join(", "),
        }
    }
}

/// Faults of which the same is expected, for the same reason.
struct Reason {
    expectation: Expectation,
    faults: Vec<(Deed, Vec<Phase>)>,
}

/// The rules, by reason.
fn reasons() -> Vec<Reason> {
    let mut reasons: Vec<Reason> = Vec::new();
    for fault in Fault::all() {
        let expectation = expected(fault);
        let known = reasons
            .iter()
            .position(|reason| reason.expectation == expectation);
        let at = known.unwrap_or_else(|| {
            reasons.push(Reason {
                expectation,
                faults: Vec::new(),
            });
            reasons.len() - 1
        });
        let faults = &mut reasons[at].faults;
        match faults.last_mut() {
            Some((deed, phases)) if *deed == fault.deed => phases.push(fault.phase),
            _ => faults.push((fault.deed, vec![fault.phase])),
        }
    }
    reasons
}

/// Phases that follow each other in a move, as ranges.
fn ranges(phases: &[Phase]) -> Vec<String> {
    let place = |phase: &Phase| Phase::ALL.iter().position(|other| other == phase);
    let mut ranges: Vec<(Phase, Phase)> = Vec::new();
    for phase in phases {
        match ranges.last_mut() {
            Some((first, last))
                if *first != Phase::Random && place(last).map(|at| at + 1) == place(phase) =>
            {
                *last = *phase;
            }
            _ => ranges.push((*phase, *phase)),
        }
    }
    let names = ranges.into_iter().map(|(first, last)| match first == last {
        true => first.name().to_owned(),
        false => format!("{} … {}", first.name(), last.name()),
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::tally::tests::outcome;

    #[test]
    fn phases_that_follow_each_other_are_a_range() {
        let phases = [
            Phase::Random,
            Phase::Hello,
            Phase::Welcomed,
            Phase::Welcome,
            Phase::Round,
        ];
        assert_eq!(ranges(&phases), ["random", "hello … welcome", "round"]);
        let told: usize = reasons()
            .iter()
            .flat_map(|reason| &reason.faults)
            .map(|(_, phases)| phases.len())
            .sum();
        assert_eq!(told, Fault::all().len());
    }

    #[test]
    fn every_cell_has_its_word() {
        let outcomes = [
            outcome(Deed::Kill(Victim::Run), Phase::Round, Ending::Gone, 3),
            outcome(Deed::Kill(Victim::Send), Phase::Round, Ending::Moved, 3),
            outcome(Deed::Kill(Victim::Send), Phase::Round, Ending::Moved, 3),
        ];
        let table = Table::new(&outcomes).markdown();
        assert!(
            table.contains("| round | moved ×2 | gone | not run | not run |"),
            "{table}"
        );
        assert!(
            table.contains("| hello | not run | not run | – |"),
            "{table}"
        );
        assert!(table.contains("| a VMM is killed | 1 | 3 ms |"), "{table}");
    }
}
