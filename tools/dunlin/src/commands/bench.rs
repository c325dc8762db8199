//! `dunlin bench`: measuring moves, comparing results.

use std::io;
use std::path::Path;

use dunlin_vmm::dirty_trace::DirtyTrace;

use super::send::Interrupts;
use crate::bench::bundle;
use crate::bench::compare::compare;
use crate::bench::csv;
use crate::bench::matrix::{Entry, Means, entries, replayed};
use crate::bench::page;
use crate::bench::passes::{Plan, lanes_max, run as run_passes};
use crate::bench::private::Names;
use crate::bench::references;
use crate::bench::results::Results;
use crate::bench::table;
use crate::cli::bench::{Bench, BenchCommand, Compare, Matrix, Report};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output_file::OutputFile;
use crate::render::palette::Palette;

/// Measures, or does something with what was measured.
pub(crate) fn run(arguments: &Bench) -> Result<Exit, Failure> {
    match &arguments.command {
        None => measure(&arguments.matrix),
        Some(BenchCommand::Compare(arguments)) => judge(arguments),
        Some(BenchCommand::Report(arguments)) => report(arguments),
    }
}

fn measure(asked: &Matrix) -> Result<Exit, Failure> {
    let open = |what: &'static str, path: Option<&Path>| {
        path.map(|path| OutputFile::open(what, path)).transpose()
    };
    let file = open("the results", asked.json.as_deref())?;
    let csv_file = open("the table", asked.csv.as_deref())?;
    let page_file = open("the page", asked.html.as_deref())?;
    let other_file = open("the other's results", asked.against_json.as_deref())?;
    if let Some(program) = &asked.against
        && !program.is_file()
    {
        let words = format!("--against {}: there is no such program", program.display());
        return Err(Failure::new(Exit::Usage, words));
    }
    let means = Means::of_this_host();
    let trace = asked.replay.as_deref().map(read_trace).transpose()?;
    let entries = match &trace {
        None => entries(asked, &means),
        Some(trace) => replayed(asked, trace, &means),
    };
    see_that_some_can_run(&entries)?;
    let references = references::all(
        &asked.references,
        lanes_max(&entries),
        entries.first().map_or(0, |entry| entry.cell.memory_bytes),
        &means,
        asked.to.is_none(),
    );
    let interrupts = Interrupts::watch()?;
    let interrupted = || interrupts.count() > 0;
    let measured = run_passes(&Plan {
        entries,
        references,
        against: asked.against.clone(),
        to: asked.to.as_ref(),
        replay: asked.replay.as_deref(),
        means,
        repeat: asked.repeat,
        warm_up: asked.warm_up,
        max_blackout: asked.max_blackout,
        limit: asked.run_limit,
        seed: asked.seed,
        is_quiet: asked.quiet,
        interrupted: &interrupted,
    });
    // On the screen reasons are told in full; files are given away.
    let names = Names::of_this_host(asked.to.as_ref().map(|to| to.host.as_str()));
    let public = measured.own.without_private(&names);
    if let Some(file) = file {
        file.write(super::json(&public)?.as_bytes())?;
    }
    if let Some(file) = csv_file {
        file.write(csv::all(&public).as_bytes())?;
    }
    if let Some(file) = page_file {
        file.write(page::page(&public)?.as_bytes())?;
    }
    if let (Some(file), Some(other)) = (other_file, &measured.other) {
        file.write(super::json(&other.without_private(&names))?.as_bytes())?;
    }
    let palette = Palette::of(&io::stdout());
    if !asked.quiet {
        super::print(&table::all(&measured.own, palette))?;
    }
    let mut exit = outcome(&measured.own);
    if let Some(other) = &measured.other {
        let comparison = compare(other, &measured.own, asked.threshold, asked.seed);
        if !asked.quiet {
            let text = comparison.rendered(palette);
            super::print(&format!(
                "\nThis program (second) against the other (first):\n\n{text}"
            ))?;
        }
        if exit == Exit::Done {
            exit = comparison.exit();
        }
    }
    Ok(exit)
}

/// The trace that guests are to replay. One of nothing would make all of them idle.
fn read_trace(path: &Path) -> Result<DirtyTrace, Failure> {
    let wrong = |words: String| {
        let path = path.display();
        Failure::new(Exit::Usage, format!("--replay {path}: {words}"))
    };
    let trace = DirtyTrace::read(path).map_err(|error| wrong(error.to_string()))?;
    match trace.pages() {
        0 => Err(wrong("in this trace no page becomes dirty".to_owned())),
        _ => Ok(trace),
    }
}

/// A cell that can't run here is a line that says so; where none can, there is nothing to tell.
fn see_that_some_can_run(entries: &[Entry]) -> Result<(), Failure> {
    if entries.iter().any(|entry| entry.left_out.is_none()) {
        return Ok(());
    }
    let mut reasons: Vec<&str> = entries
        .iter()
        .filter_map(|entry| entry.left_out.as_deref())
        .collect();
    reasons.dedup();
    Err(Failure::local(format!(
        "no cell can run here: {}",
        reasons.join("; ")
    )))
}

/// What came of it: that a cell has not one good run is a failure.
fn outcome(results: &Results) -> Exit {
    if results.is_interrupted {
        return Exit::Cancelled;
    }
    let cells = results.cells.iter().filter(|cell| cell.left_out.is_none());
    let mut cells = cells.map(|cell| cell.runs.iter().any(|run| run.is_good()));
    if cells.all(|is_good| is_good) {
        Exit::Done
    } else {
        Exit::Local
    }
}

fn judge(arguments: &Compare) -> Result<Exit, Failure> {
    let base = Results::read(&arguments.base)?;
    let judged = Results::read(&arguments.judged)?;
    let comparison = compare(&base, &judged, arguments.threshold, arguments.seed);
    if arguments.json {
        super::print_json(&comparison)?;
    } else {
        super::print(&comparison.rendered(Palette::of(&io::stdout())))?;
    }
    Ok(comparison.exit())
}

fn report(arguments: &Report) -> Result<Exit, Failure> {
    let results = arguments.results.iter().map(|path| Results::read(path));
    let results: Vec<Results> = results.collect::<Result<_, _>>()?;
    let output = OutputFile::open("the bundle", &arguments.output)?;
    let text = bundle::bundle(
        &super::doctor::facts(),
        &results,
        &Names::of_this_host(None),
    )
    .map_err(|error| Failure::system("the bundle as JSON", error))?;
    output.write(text.as_bytes())?;
    Ok(Exit::Done)
}
