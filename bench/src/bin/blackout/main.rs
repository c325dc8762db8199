//! How long a guest pauses while it moves: `make bench-blackout`.
//!
//! | room | what is in it |
//! |---|---|
//! | here | the order of the moves |
//! | [`cases`] | which guests move |
//! | [`verdicts`] | what was to be reached, and whether it was |
//! | [`report`] | all of it for people, and as JSON |
//!
//! A guest moves there and back between two receivers of this machine, over loopback. Guests take
//! turns: a pass has each of them start, move a few times and end, so that what slows the machine
//! for a minute slows all alike. Nothing else is looked at meanwhile: the report of a move has all
//! that is told here.

mod cases;
mod report;
mod verdicts;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use dunlin_bench::ends::Ends;
use dunlin_bench::host;
use dunlin_bench::moved::Move;
use dunlin_bench::program::wait_until_ended;
use dunlin_bench::site::{Receiver, Site};
use tempfile::TempDir;

use crate::cases::Case;

/// Measures how long guests pause while they move.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The program `dunlin`.
    #[arg(long)]
    dunlin: PathBuf,
    /// How often each guest is started.
    #[arg(long, default_value_t = 5)]
    passes: u32,
    /// How often the idle guest of 1 GiB moves in each pass; the others move less often.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    moves: u32,
    /// Only guests with this in their names.
    #[arg(long, default_value = "")]
    only: String,
    /// How many lanes, as `dunlin send` takes it.
    #[arg(long, default_value = "auto")]
    lanes: String,
    /// Tell the pauses part by part.
    #[arg(long)]
    parts: bool,
    /// Where the results go, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// The moves of one kind of guest.
pub(crate) struct Results {
    pub(crate) case: Case,
    pub(crate) moves: Vec<Move>,
    /// Why it did not move, where it did not.
    pub(crate) failures: Vec<String>,
    /// Why it was left out.
    pub(crate) left_out: Option<String>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let begun = Instant::now();
    let mut all: Vec<Results> = cases::all()
        .into_iter()
        .filter(|case| case.name.contains(&arguments.only))
        .map(|case| Results {
            left_out: case.lacks(host::available_bytes()),
            case,
            moves: Vec::new(),
            failures: Vec::new(),
        })
        .collect();
    for pass in 1..=arguments.passes {
        for results in all.iter_mut().filter(|results| results.left_out.is_none()) {
            let before = results.moves.len();
            if let Err(error) = moves(&arguments, results) {
                eprintln!("pass {pass}: {}: FAILED: {error:#}", results.case.name);
                results.failures.push(format!("{error:#}"));
            }
            let made = results.moves.iter().skip(before);
            let pauses: Vec<String> = made
                .map(|made| format!("{:.2}", made.blackout.as_secs_f64() * 1e3))
                .collect();
            eprintln!(
                "pass {pass} of {}: {}: {} ms",
                arguments.passes,
                results.case.name,
                pauses.join(" ")
            );
        }
    }
    let title = report::Title {
        machine: host::machine(),
        lanes: arguments.lanes.clone(),
        passes: arguments.passes,
        took: begun.elapsed(),
    };
    print!("{}", report::text(&title, &all, arguments.parts));
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&report::json(&title, &all))?;
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
const GUEST: &str = "moving";

/// One pass of a case: its guest starts, moves there and back, and ends.
fn moves(arguments: &Arguments, results: &mut Results) -> anyhow::Result<()> {
    let directory = TempDir::with_prefix("dunlin-blackout-")?;
    let ends = Ends::loopback();
    let site = |name: &str, end| -> anyhow::Result<(Site, Receiver)> {
        let site = Site::new(&arguments.dunlin, directory.path().join(name), end)?;
        let receiver = site.receiver(&[])?;
        Ok((site, receiver))
    };
    let (here, receiver_here) = site("here", ends.source.clone())?;
    let (there, receiver_there) = site("there", ends.destination.clone())?;
    let guest = here.guest(GUEST, &results.case.run_arguments())?;
    let mut process = guest.id();
    let mut ways = [
        (&here, &there, &receiver_there),
        (&there, &here, &receiver_here),
    ]
    .into_iter()
    .cycle();
    for _ in 0..results.case.moves(arguments.moves) {
        let Some((from, to, receiver)) = ways.next() else {
            break;
        };
        let made = from.send(
            GUEST,
            "tcp",
            receiver,
            &["--verify", "off", "--lanes", &arguments.lanes],
        )?;
        results.moves.push(made);
        // What the old process frees is no part of the next move.
        wait_until_ended(process, "the guest's process")?;
        process = to.process_of(GUEST)?;
    }
    Ok(())
}
