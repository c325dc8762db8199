//! `dunlin send`: asks a guest's process to move it, shows the move, prints the receipt.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dunlin_engine::report::{Outcome, Report};

use super::report_file::{Form, ReportFiles};
use crate::cli::moves::Send;
use crate::console;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::local::client::Connection;
use crate::local::protocol::{MoveOrder, Request, Response};
use crate::local::runtime_dir::RuntimeDir;
use crate::metrics::Port;
use crate::metrics::file::MetricsFile;
use crate::metrics::watched::MoveSeen;
use crate::render::palette::Palette;
use crate::render::progress::LiveLine;
use crate::render::receipt::{headline, receipt};
use crate::signals;

/// How often it is looked whether Ctrl-C was pressed.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Moves a guest.
pub(crate) fn run(arguments: &Send) -> Result<Exit, Failure> {
    let runtime = arguments.runtime.directory();
    let files = ReportFiles::open(&[
        (Form::Json, arguments.report.as_deref()),
        (Form::Html, arguments.html.as_deref()),
        (Form::Trace, arguments.trace.as_deref()),
    ])?;
    let metrics_file = MetricsFile::open(arguments.metrics_file.as_deref())?;
    let metrics = Port::open(arguments.metrics)?;
    let interrupts = Interrupts::watch()?;
    let seen = Arc::new(MoveSeen::default());
    if let Some(port) = metrics {
        port.answer(Arc::clone(&seen) as _)?;
    }
    let mut live = LiveLine::new(arguments.quiet);
    let name = &arguments.name.0;
    let mut order = arguments.order();
    order.dirty_trace = traced_to(arguments.dirty_trace.as_deref())?;
    let watched = watch_move(
        &runtime,
        name,
        order,
        arguments.doubt_wait,
        &mut live,
        &seen,
        &interrupts,
    )?;
    live.clear();
    let report = watched.into_report(name)?;
    // What became of the guest is the exit code, whether or not it can be told of.
    let mut unwritten = files.write(&report);
    unwritten.extend(metrics_file.and_then(|file| file.write(&report).err()));
    let printed = if arguments.json {
        super::print_json(&report)
    } else if !arguments.quiet {
        super::print(&receipt(&report, Palette::of(&io::stdout())))
    } else {
        Ok(())
    };
    for failure in unwritten.into_iter().chain(printed.err()) {
        console::warn(failure);
    }
    if arguments.quiet && !arguments.json && report.outcome != Outcome::Moved {
        // Quiet is not silent: why there is nothing to be quiet about.
        let headline = headline(&report, Palette::of(&io::stderr()));
        console::warn(format_args!(
            "{headline}: {}",
            report.reason.as_deref().unwrap_or_default()
        ));
    }
    Ok(Exit::of(report.outcome))
}

/// The file for the guest's dirty pages as the guest's process needs it, which has a working
/// directory of its own.
pub(super) fn traced_to(path: Option<&Path>) -> Result<Option<PathBuf>, Failure> {
    path.map(std::path::absolute).transpose().map_err(|error| {
        let words = format!("the dirty trace can't be written: {error}; nothing was moved");
        Failure::new(Exit::Usage, words)
    })
}

/// What came of watching a move.
pub(super) enum Watched {
    /// It is over.
    Over(Box<Report>),
    /// A second interrupt detached.
    Detached,
    /// It is not known who owns the guest, and that lasts.
    InDoubt(String),
}

impl Watched {
    /// The report.
    ///
    /// # Errors
    ///
    /// When the move is not over.
    pub(super) fn into_report(self, name: &str) -> Result<Report, Failure> {
        match self {
            Self::Over(report) => Ok(*report),
            Self::Detached => Err(Failure::new(
                Exit::Detached,
                format!("detached: the move of '{name}' goes on; 'dunlin status {name}' shows it"),
            )),
            Self::InDoubt(reason) => Err(Failure::new(
                Exit::UnknownOwner,
                format!(
                    "{reason}; the guest's process goes on asking: 'dunlin status {name}' shows it, 'dunlin settle {name}' says what a person can do"
                ),
            )),
        }
    }
}

/// Orders a move and watches it until it is over, or is in doubt for as long as `doubt_wait`.
pub(super) fn watch_move(
    runtime: &RuntimeDir,
    name: &str,
    order: MoveOrder,
    doubt_wait: Duration,
    live: &mut LiveLine,
    seen: &MoveSeen,
    interrupts: &Interrupts,
) -> Result<Watched, Failure> {
    let mut connection = Connection::open(runtime, name)?;
    match connection.ask(&Request::Send {
        order: Box::new(order),
    })? {
        Response::Accepted => {}
        _ => return Err(connection.unexpected()),
    }
    connection.answer_within(Some(LOOK_INTERVAL))?;
    let mut cancel_asked = false;
    let mut doubt: Option<(Instant, String)> = None;
    loop {
        match connection.receive()? {
            Some(Response::Progress { progress }) => {
                seen.progress(name, &progress);
                live.show(name, &progress);
            }
            Some(Response::Note { text }) => live.note(&format!("{name}: {text}")),
            Some(Response::InDoubt { reason }) => {
                live.note(&format!("{name}: {reason}"));
                let since = doubt.map_or_else(Instant::now, |(since, _)| since);
                doubt = Some((since, reason));
            }
            Some(Response::Report { report }) => {
                seen.over(&report);
                return Ok(Watched::Over(report));
            }
            Some(_) => return Err(connection.unexpected()),
            None => {}
        }
        if let Some((_, reason)) = doubt.take_if(|(since, _)| since.elapsed() >= doubt_wait) {
            return Ok(Watched::InDoubt(reason));
        }
        match interrupts.count() {
            0 => {}
            1 if cancel_asked => {}
            1 => {
                cancel_asked = true;
                live.note("cancelling; Ctrl-C again leaves the move to itself");
                // On a connection of its own: this one belongs to the move's news. A move that is
                // over by now can't be cancelled, and its report is on the way.
                let _ = Connection::open(runtime, name)
                    .and_then(|mut other| other.ask(&Request::Cancel {}));
            }
            _ => return Ok(Watched::Detached),
        }
    }
}

/// Counts how often this process was asked to end.
pub(super) struct Interrupts(Arc<AtomicUsize>);

impl Interrupts {
    /// Counts from now on.
    pub(super) fn watch() -> Result<Self, Failure> {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        signals::on_each(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        })?;
        Ok(Self(count))
    }

    /// How often so far.
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}
