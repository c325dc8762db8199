//! The order of runs. A pass has one run of each cell (with another program: of each program) and
//! of each reference, so that whatever slows the machine down for a while hits all alike. Every other
//! pass goes backwards, so that nobody always comes after the same neighbour.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dunlin_engine::report::Host;

use super::matrix::{Entry, Means};
use super::one_move::Mover;
use super::progress::Progress;
use super::references::{Conditions, Reference};
use super::results::{CellResult, ReferenceResult, ReferenceRun, Results, Run, SCHEMA, Summary};
use super::{Interrupted, Stop};
use crate::cli::endpoint::Endpoint;
use crate::supervisor::admission::own_program;

/// What is measured, and how.
pub(crate) struct Plan<'a> {
    /// The cells.
    pub(crate) entries: Vec<Entry>,
    /// Other programs.
    pub(crate) references: Vec<Reference>,
    /// Another build of this program.
    pub(crate) against: Option<PathBuf>,
    /// Another host.
    pub(crate) to: Option<&'a Endpoint>,
    /// A trace that guests replay.
    pub(crate) replay: Option<&'a Path>,
    /// What this host has.
    pub(crate) means: Means,
    /// Passes that count.
    pub(crate) repeat: u32,
    /// Passes before them.
    pub(crate) warm_up: u32,
    /// The pause's budget.
    pub(crate) max_blackout: Duration,
    /// The longest that one run may take.
    pub(crate) limit: Duration,
    /// The verdicts' seed.
    pub(crate) seed: u64,
    /// Whether nothing is told meanwhile.
    pub(crate) is_quiet: bool,
    /// Whether somebody has had enough.
    pub(crate) interrupted: Interrupted<'a>,
}

/// What was measured: of this program, and of the other one.
pub(crate) struct Measured {
    /// This program's.
    pub(crate) own: Results,
    /// The other one's.
    pub(crate) other: Option<Results>,
}

/// One thing that is run in each pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    /// A cell, with the program of that number.
    Cell { cell: usize, program: usize },
    /// A reference.
    Reference(usize),
}

/// Runs all passes, or as many as there are until somebody has had enough.
pub(crate) fn run(plan: &Plan<'_>) -> Measured {
    let programs: Vec<PathBuf> = std::iter::once(own_program().to_owned())
        .chain(plan.against.clone())
        .collect();
    let items = items(plan, programs.len());
    let mut passes = Passes {
        plan,
        cells: vec![vec![Vec::new(); plan.entries.len()]; programs.len()],
        references: vec![Vec::new(); plan.references.len()],
        hosts: None,
        programs,
        progress: Progress::new(plan.is_quiet, plan.warm_up + plan.repeat, items.len()),
        counting_since: Instant::now(),
    };
    let begun = Instant::now();
    let mut complete = 0;
    let mut is_interrupted = false;
    for number in 0..plan.warm_up + plan.repeat {
        let pass = number.checked_sub(plan.warm_up).map(|counted| counted + 1);
        if pass == Some(1) {
            passes.counting_since = Instant::now();
        }
        if passes.run_pass(pass, number, &items).is_err() {
            is_interrupted = true;
            break;
        }
        complete = pass.unwrap_or(0);
    }
    passes.progress.clear();
    let results =
        |program: usize| passes.results(program, complete, is_interrupted, begun.elapsed());
    Measured {
        own: results(0),
        other: plan.against.is_some().then(|| results(1)),
    }
}

/// Everything that is run in each pass, in order.
fn items(plan: &Plan<'_>, programs: usize) -> Vec<Item> {
    let cells = plan.entries.iter().enumerate();
    let cells = cells.filter(|(_, entry)| entry.left_out.is_none());
    let cells =
        cells.flat_map(|(cell, _)| (0..programs).map(move |program| Item::Cell { cell, program }));
    let references = plan.references.iter().enumerate();
    let references = references.filter(|(_, reference)| reference.left_out.is_none());
    cells
        .chain(references.map(|(reference, _)| Item::Reference(reference)))
        .collect()
}

/// The order of a pass: forwards, then backwards.
fn order(number: u32, count: usize) -> Vec<usize> {
    match number % 2 {
        0 => (0..count).collect(),
        _ => (0..count).rev().collect(),
    }
}

struct Passes<'a> {
    plan: &'a Plan<'a>,
    programs: Vec<PathBuf>,
    /// By program and cell.
    cells: Vec<Vec<Vec<Run>>>,
    references: Vec<Vec<ReferenceRun>>,
    hosts: Option<(Host, Host)>,
    progress: Progress,
    counting_since: Instant,
}

impl Passes<'_> {
    /// Runs a pass; without a number it is a warm-up.
    fn run_pass(&mut self, pass: Option<u32>, number: u32, items: &[Item]) -> Result<(), Stop> {
        let order = order(number, items.len());
        self.progress.pass(&order);
        let title = match pass {
            None => "warm-up".to_owned(),
            Some(pass) => format!("pass {pass} of {}", self.plan.repeat),
        };
        for kind in order {
            let Some(item) = items.get(kind) else {
                continue;
            };
            if (self.plan.interrupted)() {
                return Err(Stop::Interrupted);
            }
            let begun = self.progress.begins(&title, &self.words(*item));
            let failed = self.run_item(*item, pass)?;
            if let Some(reason) = failed {
                let words = self.words(*item);
                self.progress.note(&format!("{title} · {words}: {reason}"));
            }
            self.progress.ended(kind, begun);
        }
        Ok(())
    }

    /// Runs one thing; why it failed, if so.
    fn run_item(&mut self, item: Item, pass: Option<u32>) -> Result<Option<String>, Stop> {
        match item {
            Item::Cell { cell, program } => self.run_cell(cell, program, pass),
            Item::Reference(reference) => self.run_reference(reference, pass),
        }
    }

    fn run_cell(
        &mut self,
        cell: usize,
        program: usize,
        pass: Option<u32>,
    ) -> Result<Option<String>, Stop> {
        let (Some(entry), Some(path)) = (self.plan.entries.get(cell), self.programs.get(program))
        else {
            return Ok(None);
        };
        let mover = Mover {
            means: &self.plan.means,
            to: self.plan.to,
            replay: self.plan.replay,
            max_blackout: self.plan.max_blackout,
            limit: self.plan.limit,
            interrupted: self.plan.interrupted,
        };
        let began_ns = self.counting_since.elapsed().as_nanos() as u64;
        let moved = mover.run(path, &entry.cell)?;
        let mut run = moved.run;
        let failed = (!run.is_good()).then(|| {
            format!(
                "{}: {}",
                run.outcome,
                run.reason.as_deref().unwrap_or_default()
            )
        });
        self.hosts = self.hosts.take().or(moved.hosts);
        if let Some(pass) = pass {
            run.pass = pass;
            run.began_ns = began_ns;
            let runs = self
                .cells
                .get_mut(program)
                .and_then(|cells| cells.get_mut(cell));
            if let Some(runs) = runs {
                runs.push(run);
            }
        }
        Ok(failed)
    }

    fn run_reference(
        &mut self,
        reference: usize,
        pass: Option<u32>,
    ) -> Result<Option<String>, Stop> {
        let Some(row) = self.plan.references.get(reference) else {
            return Ok(None);
        };
        let conditions = Conditions {
            memory_bytes: self
                .plan
                .entries
                .first()
                .map_or(1 << 30, |entry| entry.cell.memory_bytes),
            max_blackout: self.plan.max_blackout,
            means: &self.plan.means,
            limit: self.plan.limit,
            interrupted: self.plan.interrupted,
        };
        let mut run = row.run(&conditions)?;
        let failed = run.reason.clone();
        if let (Some(pass), Some(runs)) = (pass, self.references.get_mut(reference)) {
            run.pass = pass;
            runs.push(run);
        }
        Ok(failed)
    }

    fn words(&self, item: Item) -> String {
        match item {
            Item::Cell { cell, program } => {
                let words = self.plan.entries.get(cell).map(|entry| entry.cell.words());
                let words = words.unwrap_or_default();
                match program {
                    0 => words,
                    _ => format!("{words}, the other program"),
                }
            }
            Item::Reference(reference) => {
                let row = self.plan.references.get(reference);
                row.map(|row| row.name.clone()).unwrap_or_default()
            }
        }
    }

    fn results(
        &self,
        program: usize,
        passes: u32,
        is_interrupted: bool,
        took: Duration,
    ) -> Results {
        let plan = self.plan;
        let runs = |cell: usize| {
            let cells = self.cells.get(program)?;
            cells.get(cell).cloned()
        };
        let cells: Vec<CellResult> = plan
            .entries
            .iter()
            .enumerate()
            .map(|(place, entry)| {
                let runs = runs(place).unwrap_or_default();
                CellResult {
                    cell: entry.cell.clone(),
                    left_out: entry.left_out.clone(),
                    summary: Summary::of(&runs),
                    runs,
                }
            })
            .collect();
        let references: Vec<ReferenceResult> = plan
            .references
            .iter()
            .zip(&self.references)
            .map(|(row, runs)| ReferenceResult {
                name: row.name.clone(),
                what: row.what.clone(),
                version: row.version.clone(),
                left_out: row.left_out.clone(),
                runs: runs.clone(),
            })
            .collect();
        let (host, destination) = self.hosts.clone().unwrap_or_default();
        Results {
            schema: SCHEMA.to_owned(),
            dunlin: host.dunlin.clone(),
            seed: plan.seed,
            passes_asked: plan.repeat,
            passes,
            warm_up_passes: plan.warm_up,
            is_interrupted,
            is_one_host: plan.to.is_none(),
            is_interleaved: plan.against.is_some(),
            max_blackout_ns: plan.max_blackout.as_nanos() as u64,
            duration_ns: took.as_nanos() as u64,
            host,
            destination_host: plan.to.is_some().then_some(destination),
            verdicts: super::verdict::of_matrix(&cells, &references, plan.seed),
            cells,
            references,
        }
    }
}

/// The most lanes that any cell has.
pub(crate) fn lanes_max(entries: &[Entry]) -> u16 {
    let lanes = entries.iter().filter_map(|entry| entry.cell.lanes);
    lanes.max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_pass_goes_backwards() {
        assert_eq!(order(0, 3), [0, 1, 2]);
        assert_eq!(order(1, 3), [2, 1, 0]);
        assert!(order(0, 0).is_empty());
    }
}
