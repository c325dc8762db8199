//! What is told of many schedules: the tally, and how the failing ones came to it.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use super::judgement::{Class, Doubt};
use super::runner::command;

/// From so many schedules on every kind of end is there.
const SCHEDULES_ENOUGH: usize = 2000;

/// How many failing seeds are shown with their traces.
const TRACES_MAX: usize = 3;

/// How many lines of a trace are shown where the whole was not asked for: from its beginning, and
/// up to the first violation.
const TRACE_LINES: [usize; 2] = [45, 25];

/// A schedule as the runner hears of it.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// Its seed.
    pub(crate) seed: u64,
    /// What came of it; `None` where its process did not say.
    pub(crate) class: Option<Class>,
    /// What ended a doubt, where there was one.
    pub(crate) doubt: Option<Doubt>,
    /// Whether a guest that stayed was moved afterwards.
    pub(crate) moved_again: Option<bool>,
    /// The faults that befell it.
    pub(crate) faults: Vec<String>,
    /// What must not be, and was.
    pub(crate) violations: Vec<String>,
    /// How often the baton could change hands.
    pub(crate) steps: u64,
    /// Virtual time that it took.
    pub(crate) took: Duration,
    /// The same for every run of the same seed.
    pub(crate) digest: String,
}

/// Tells of all schedules, and whether all were as they should be.
pub(crate) fn tell(all: &[Told], took: Duration) -> ExitCode {
    let mut faults = BTreeMap::<&str, u64>::new();
    for fault in all.iter().flat_map(|told| &told.faults) {
        *faults.entry(fault).or_default() += 1;
    }
    println!("faults:");
    for (fault, count) in &faults {
        println!("  {fault:<24} {count:>6}");
    }
    let failed: Vec<_> = all
        .iter()
        .filter(|told| !told.violations.is_empty())
        .collect();
    for told in failed.iter().take(TRACES_MAX) {
        show(told);
    }
    for told in failed.iter().skip(TRACES_MAX) {
        println!("seed {}: {}", told.seed, told.violations[0]);
    }
    let classes = Class::ALL.map(|(class, words)| {
        let count = all.iter().filter(|told| told.class == Some(class)).count();
        format!("{count} {words}")
    });
    let steps: u64 = all.iter().map(|told| told.steps).sum();
    let virtual_time: Duration = all.iter().map(|told| told.took).sum();
    println!(
        "{:.1} s, {:.0} schedules a second, {} steps and {:.1} s of virtual time each",
        took.as_secs_f64(),
        all.len() as f64 / took.as_secs_f64(),
        steps / (all.len() as u64).max(1),
        virtual_time.as_secs_f64() / (all.len() as f64).max(1.0),
    );
    let doubts = Doubt::ALL.map(|(doubt, words)| {
        let count = all.iter().filter(|told| told.doubt == Some(doubt)).count();
        format!("{count} {words}")
    });
    println!(
        "{} were in doubt for a while: {}",
        all.iter().filter(|told| told.doubt.is_some()).count(),
        doubts.join(", ")
    );
    let again = all.iter().filter_map(|told| told.moved_again);
    println!(
        "{} of {} guests that stayed were moved afterwards",
        again.clone().filter(|moved| *moved).count(),
        again.count()
    );
    println!(
        "{} schedules: {}, {} violations",
        all.len(),
        classes.join(", "),
        failed.len()
    );
    println!(
        "{} passed, {} failed",
        all.len() - failed.len(),
        failed.len()
    );
    if let Some(words) = shows_too_little(all) {
        println!("{words}");
        println!("0 passed, 1 failed");
        return ExitCode::FAILURE;
    }
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Schedules in which nothing happens find nothing. What is missing, where there are enough of
/// them to tell.
fn shows_too_little(all: &[Told]) -> Option<String> {
    if all.len() < SCHEDULES_ENOUGH {
        return None;
    }
    let count = |is_it: &dyn Fn(&&Told) -> bool| all.iter().filter(is_it).count();
    let moved = count(&|told| told.class == Some(Class::Moved));
    let again = count(&|told| told.moved_again == Some(true));
    let unharmed = count(&|told| told.faults.is_empty());
    let missing_doubt = Doubt::ALL
        .into_iter()
        .filter(|(doubt, _)| *doubt != Doubt::Died)
        .find(|(doubt, _)| count(&|told| told.doubt == Some(*doubt)) == 0);
    match missing_doubt {
        Some((_, words)) => Some(format!(
            "no doubt was {words}: the schedules show too little"
        )),
        None if moved * 4 < all.len() || again * 5 < all.len() || unharmed * 20 < all.len() => {
            Some(format!(
                "{moved} of {} moved, {again} afterwards, {unharmed} without a fault: the schedules \
             show too little",
                all.len()
            ))
        }
        None => None,
    }
}

/// Tells whether a bug that was planted was found.
pub(crate) fn tell_found(all: &[Told]) -> ExitCode {
    let mut found = all.iter().filter(|told| !told.violations.is_empty());
    let Some(first) = found.next() else {
        println!("the planted bug was not found by {} schedules", all.len());
        println!("0 passed, 1 failed");
        return ExitCode::FAILURE;
    };
    show(first);
    println!(
        "the planted bug was found by {} of {} schedules, first by seed {}",
        1 + found.count(),
        all.len(),
        first.seed
    );
    println!("1 passed, 0 failed");
    ExitCode::SUCCESS
}

/// Plays a failing seed again, and shows how it came to it.
fn show(told: &Told) {
    println!("\nseed {} fails (digest {}):", told.seed, told.digest);
    for violation in &told.violations {
        println!("  {violation}");
    }
    if told.class.is_some() {
        let mut again = command(told.seed, 1);
        let output = again
            .arg("--trace")
            .output()
            .expect("this program can be started again");
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<_> = output.lines().collect();
        let is_violation = |line: &&str| line.contains("VIOLATION");
        let end = lines.iter().position(is_violation);
        let end = end.map_or(lines.len(), |end| end + 1);
        let [head, tail] = TRACE_LINES;
        for (number, line) in lines[..end].iter().enumerate() {
            if number < head || number + tail >= end {
                println!("  {line}");
            } else if number == head {
                println!("  … {} lines …", end - head - tail);
            }
        }
    }
    let seed = told.seed;
    if cfg!(feature = "planted-split-brain") {
        println!(
            "  again, as a whole: cargo test -p dunlin-engine --test simulation \
             --features simulation,planted-split-brain -- --seed {seed} --trace\n"
        );
    } else {
        println!("  again, as a whole: make simulate SEED={seed}\n");
    }
}
