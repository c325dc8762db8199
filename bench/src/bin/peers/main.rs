//! Dunlin beside its peers and the machine's limit, over TCP: `make bench-peers`.
//! docs/performance.md says what is compared.
//!
//! | room | what is in it |
//! |---|---|
//! | here | the order of the runs, and what becomes of their results |
//! | [`rows`] | what is compared: one row each |
//! | [`runs`] | one run of a row |
//! | [`raw`] | the row that does nothing but send, and the search for its best settings |
//! | [`results`] | what a run gave, and medians of several |
//! | [`verdicts`] | what was to be reached, and whether it was |
//! | [`table`] | all of it for people |
//!
//! Runs are interleaved: a pass has one run of each row, so that what slows the machine for a minute
//! slows all alike.

mod raw;
mod results;
mod rows;
mod runs;
mod table;
mod verdicts;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;

use crate::results::Results;
use crate::rows::{Link, Row};
use crate::runs::Bench;

/// Compares Dunlin with QEMU, iperf3 and plain send and recv on this machine.
#[derive(Clone, Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The program `dunlin`.
    #[arg(long)]
    dunlin: PathBuf,
    /// The program `raw_socket`.
    #[arg(long)]
    raw_socket: PathBuf,
    /// A program that is QEMU, 10 or newer.
    #[arg(long, default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// A program that is iperf3.
    #[arg(long, default_value = "iperf3")]
    iperf3: PathBuf,
    /// How much random memory each moves, in MiB.
    #[arg(long, default_value_t = 4096)]
    mebibytes: u64,
    /// How often each is run; the median counts.
    #[arg(long, default_value_t = 5)]
    passes: u32,
    /// Only rows with this in their names.
    #[arg(long, default_value = "")]
    only: String,
    /// Only over this link.
    #[arg(long, value_enum)]
    link: Option<Link>,
    /// Where the results go, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let begun = Instant::now();
    let mut rows = rows::all();
    rows.retain(|row| row.name.contains(&arguments.only));
    rows.retain(|row| arguments.link.is_none_or(|link| link == row.link));
    let mut bench = Bench::new(&arguments, &rows)?;
    let (rows, left_out): (Vec<Row>, Vec<Row>) =
        rows.into_iter().partition(|row| bench.lacks(row).is_none());
    let mut results = Results::new(&bench, arguments.passes);
    for row in left_out {
        let reason = bench.lacks(&row).unwrap_or_default();
        results.leave_out(&row, reason);
    }
    results.settings = bench.search(&rows)?;
    for pass in 1..=arguments.passes {
        // Each second pass in the other direction: a row does not always follow the same one.
        let mut order: Vec<&Row> = rows.iter().collect();
        if pass % 2 == 0 {
            order.reverse();
        }
        for row in order {
            let outcome = bench.run(row);
            let when = format!(
                "pass {pass} of {}: {}, {}",
                arguments.passes, row.link, row.name
            );
            match &outcome {
                Ok(outcome) => eprintln!(
                    "{when}: {:.2} GB/s, {:.2} s",
                    outcome.goodput / 1e9,
                    outcome.seconds
                ),
                Err(error) => eprintln!("{when}: FAILED: {error:#}"),
            }
            results.add(row, outcome);
        }
    }
    results.seconds = begun.elapsed().as_secs();
    print!("{}", table::all(&results));
    if let Some(path) = arguments.json {
        let text = serde_json::to_string_pretty(&results.as_json())?;
        std::fs::write(&path, text + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(if results.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
