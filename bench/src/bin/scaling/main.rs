//! How a move's time and memory grow with the guest: `make bench-scaling`.
//!
//! | room | what is in it |
//! |---|---|
//! | here | the order of the moves, and one move |
//! | [`cases`] | which guests move, and how |
//! | [`results`] | what the moves gave |
//! | [`verdicts`] | what was to be reached, and whether it was |
//! | [`table`] | all of it for people |
//!
//! Cases take turns: a pass has each of them start, move once over loopback and end, so that what
//! slows the machine for a minute slows all alike.

mod cases;
mod results;
mod table;
mod verdicts;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use dunlin_bench::ends::Ends;
use dunlin_bench::host;
use dunlin_bench::program::wait_until_ended;
use dunlin_bench::site::{Site, give_way};
use dunlin_bench::usage::{Since, Watch};
use tempfile::TempDir;

use crate::cases::Case;
use crate::results::{Made, Results};

/// Measures how a move's time and memory grow with the guest.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The program `dunlin`.
    #[arg(long)]
    dunlin: PathBuf,
    /// How often each guest moves; the median counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    passes: u32,
    /// Only guests with this in their names.
    #[arg(long, default_value = "")]
    only: String,
    /// Where the results go, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let begun = Instant::now();
    let mut all: Vec<Results> = cases::all()
        .into_iter()
        .filter(|case| case.name.contains(&arguments.only))
        .map(|case| Results::new(host::available_bytes(), case))
        .collect();
    for pass in 1..=arguments.passes {
        for results in all.iter_mut().filter(|results| results.left_out.is_none()) {
            let name = results.case.name.clone();
            let passes = arguments.passes;
            match moved(&arguments, &results.case) {
                Ok(made) => {
                    eprintln!(
                        "pass {pass} of {passes}: {name}: {:.2} s, paused {:.2} ms",
                        made.moved.total.as_secs_f64(),
                        made.moved.blackout.as_secs_f64() * 1e3
                    );
                    results.moves.push(made);
                }
                Err(error) => {
                    eprintln!("pass {pass} of {passes}: {name}: FAILED: {error:#}");
                    results.failures.push(format!("{error:#}"));
                }
            }
        }
    }
    let title = table::Title {
        machine: host::machine(),
        passes: arguments.passes,
        took: begun.elapsed(),
    };
    print!("{}", table::text(&title, &all));
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&results::json(&title, &all))?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    let failed = all.iter().any(|results| !results.failures.is_empty());
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The guest's name.
const GUEST: &str = "scaled";

/// Starts a case's guest, moves it, and ends it.
fn moved(arguments: &Arguments, case: &Case) -> anyhow::Result<Made> {
    let directory = TempDir::with_prefix("dunlin-scaling-")?;
    let ends = Ends::loopback();
    let site = |name, end| Site::new(&arguments.dunlin, directory.path().join(name), end);
    let here = site("here", ends.source.clone())?;
    let there = site("there", ends.destination.clone())?;
    let reserve = case.reserve_percent(host::available_bytes()).to_string();
    let receiver = there.receiver(&["--reserve", &reserve])?;
    let words = case.run_arguments();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let guest = here.guest(GUEST, &words)?;
    give_way(guest.id())?;
    let source_held = resident_bytes(guest.id())?;
    let watch = Watch::start(
        guest.id(),
        receiver.program.id(),
        Since::DestinationBirth,
        || 0,
    );
    let sent = here.send(
        GUEST,
        "tcp",
        &receiver,
        &["--verify", "off", "--lanes", case.lanes],
    );
    let (usage, _) = watch.end()?;
    let moved = sent?;
    let destination_held = resident_bytes(there.process_of(GUEST)?)?;
    wait_until_ended(guest.id(), "the guest's process")?;
    there.stop(GUEST)?;
    Ok(Made {
        moved,
        usage,
        resident: [source_held, destination_held],
    })
}

/// All memory that a process holds, the guest's too.
fn resident_bytes(process: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    host::amount_in(&status, "VmRSS").context("a process without memory")
}
