//! Dunlin against its peers, inside the SoftRoCE machine: `make softroce-bench`. docs/softroce.md
//! says what is compared, and what the machine blurs.
//!
//! | room | what is in it |
//! |---|---|
//! | here | the order of the runs, and what becomes of their results |
//! | [`rows`] | what is compared: one row each |
//! | [`runs`] | one run of a row: its places, and who watches it |
//! | [`dunlin`], [`qemu`], [`writebw`], [`iperf`] | how each program is run |
//! | [`calls`] | system calls |
//! | [`counts`] | the counters of RDMA devices and the wire |
//! | [`results`] | what a run gave, and medians of several |
//! | [`targets`] | what was to be reached, and whether it was |
//! | [`table`] | all of it for people |
//!
//! Runs are interleaved: a pass has one run of each row, so that what slows the host for a minute
//! slows all alike. What other comparisons need too is in the library. System calls are counted in a pass of their own, as counting takes time.

mod calls;
mod counts;
mod dunlin;
mod iperf;
mod qemu;
mod results;
mod rows;
mod runs;
mod table;
mod targets;
mod writebw;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;

use crate::results::{Outcome, Results};
use crate::rows::Row;
use crate::runs::Bench;

/// Compares Dunlin with its peers inside the SoftRoCE machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The program `dunlin`.
    #[arg(long)]
    dunlin: PathBuf,
    /// A program that is QEMU; without it QEMU's rows are left out.
    #[arg(long)]
    qemu: Option<PathBuf>,
    /// How much random memory each moves, in MiB.
    #[arg(long, default_value_t = 256)]
    mebibytes: u64,
    /// How often each is run; the median counts.
    #[arg(long, default_value_t = 3)]
    passes: u32,
    /// Only rows with this in their names.
    #[arg(long, default_value = "")]
    only: String,
    /// Do not count system calls.
    #[arg(long)]
    no_calls: bool,
    /// Where the results go, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let begun = Instant::now();
    let bench = Bench::new(arguments.dunlin, arguments.qemu, arguments.mebibytes << 20)?;
    let mut rows = rows::all();
    rows.retain(|row| row.name.contains(&arguments.only));
    let (rows, left_out): (Vec<Row>, Vec<Row>) =
        rows.into_iter().partition(|row| bench.lacks(row).is_none());
    let mut results = Results::new(&bench, arguments.passes);
    for row in left_out {
        let reason = bench.lacks(&row).unwrap_or_default();
        results.leave_out(&row, &reason);
    }
    for pass in 1..=arguments.passes {
        for row in &rows {
            let outcome = bench.run(row);
            tell(
                &format!("pass {pass} of {}", arguments.passes),
                row,
                &outcome,
            );
            results.add(row, outcome);
        }
    }
    if !arguments.no_calls {
        for row in &rows {
            let calls = bench.count_system_calls(row);
            match &calls {
                Ok(calls) => eprintln!("system calls: {}: {calls}", row.name),
                Err(error) => eprintln!("system calls: {}: FAILED: {error:#}", row.name),
            }
            results.add_system_calls(row, calls);
        }
    }
    results.seconds = begun.elapsed().as_secs();
    print!("{}", table::all(&results));
    if let Some(path) = arguments.json {
        let text = serde_json::to_string_pretty(&results.as_json())?;
        std::fs::write(&path, text + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(if results.failures().is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn tell(when: &str, row: &Row, outcome: &anyhow::Result<Outcome>) {
    match outcome {
        Ok(outcome) => eprintln!(
            "{when}: {}: {:.1} MiB/s, {:.2} s",
            row.name,
            outcome.goodput / results::MEBIBYTE,
            outcome.seconds
        ),
        Err(error) => eprintln!("{when}: {}: FAILED: {error:#}", row.name),
    }
}
