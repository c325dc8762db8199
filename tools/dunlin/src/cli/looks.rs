//! Commands that look and end: `status`, `top`, `report`, `stop`, `doctor`, `completions`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap_complete::Shell;

use super::values::{GuestName, some_duration};
use super::{Runtime, State};
use crate::exit::{Exit, help};

/// Show the guests that are here
#[derive(Clone, Debug, Args)]
#[command(
    long_about = "\
Shows the guests of the runtime directory, or one of them in full: its state, memory, vCPUs, UUID \
and epoch, what its workload has counted, and the move under way. Below them, the handovers in the \
state directory whose process is gone and whose outcome nobody here knows.",
    after_long_help = status_help()
)]
pub(crate) struct Status {
    /// The guest; all where none is named
    #[arg(value_name = "GUEST")]
    pub(crate) name: Option<GuestName>,
    #[command(flatten)]
    pub(crate) runtime: Runtime,
    #[command(flatten)]
    pub(crate) state: State,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn status_help() -> String {
    format!(
        "Examples:
  dunlin status
  dunlin status vm1 --json

{}",
        help(&[Exit::Done, Exit::Usage, Exit::NoGuest, Exit::Local])
    )
}

/// Show guests and moves, live
#[derive(Clone, Debug, Args)]
#[command(
    long_about = "\
Shows the guests of the runtime directory and their moves on a screen that renews itself: where \
each move stands, its rate, the pause that is predicted, each lane's rate; and what the last move \
of a guest that is still here measured.

Keys: up and down choose a guest, enter shows it in full, q ends. --once prints one snapshot as \
text, without a terminal; 'dunlin status --json' is for programs.",
    after_long_help = top_help()
)]
pub(crate) struct Top {
    /// How long from one look to the next
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = some_duration)]
    pub(crate) interval: Duration,
    /// Print one snapshot and end
    #[arg(long)]
    pub(crate) once: bool,
    #[command(flatten)]
    pub(crate) runtime: Runtime,
}

fn top_help() -> String {
    format!(
        "Examples:
  dunlin top
  dunlin top --once

{}",
        help(&[Exit::Done, Exit::Usage, Exit::Local])
    )
}

/// Show the report of a move again
#[derive(Clone, Debug, Args)]
#[command(
    name = "report",
    long_about = "\
Shows the report of a move again, from the JSON that 'send --report', 'send --json' and 'demo \
--json' write: prints the receipt, and makes the page and the trace that --html and --trace name.",
    after_long_help = report_help()
)]
pub(crate) struct ShowReport {
    /// The report; - reads standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Write a page about the move to this file: the pause part by part, rounds, lanes and
    /// latencies, as one HTML file that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write the timeline of both ends to this file, for ui.perfetto.dev or Chrome
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Print no receipt
    #[arg(long)]
    pub(crate) quiet: bool,
}

fn report_help() -> String {
    format!(
        "Examples:
  dunlin report move.json
  dunlin report move.json --html move.html --trace move.trace.json --quiet

{}",
        help(&[Exit::Done, Exit::Usage, Exit::Local])
    )
}

/// End a guest
#[derive(Clone, Debug, Args)]
#[command(
    long_about = "\
Ends a guest, as if its power were cut, and waits until its process is gone. A move under way is \
cancelled first; if it is past its give-up, the guest may be the destination's already, and then \
nothing is left to end here.

A guest whose owner is not known ('dunlin status' says so) is ended only with --force: say so only \
when you have seen that the destination runs it, or that nobody needs it.",
    after_long_help = stop_help()
)]
pub(crate) struct Stop {
    /// The guest
    #[arg(value_name = "GUEST")]
    pub(crate) name: GuestName,
    /// End it even when it is not known which side owns it
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) runtime: Runtime,
    /// Tell errors as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn stop_help() -> String {
    format!(
        "Examples:\n  dunlin stop vm1\n\n{}",
        help(&[
            Exit::Done,
            Exit::Usage,
            Exit::NoGuest,
            Exit::UnknownOwner,
            Exit::Local
        ])
    )
}

/// Say what this host can do
#[derive(Clone, Debug, Args)]
#[command(
    long_about = "\
Says what this host can do for moving guests: KVM and its dirty tracking, io_uring, memory and \
huge pages, RDMA devices, CPUs. Each line is ok, limited or missing, says what that means, and \
names the command that changes it. Nothing is changed.",
    after_long_help = doctor_help()
)]
pub(crate) struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn doctor_help() -> String {
    format!(
        "Examples:
  dunlin doctor
  dunlin doctor --json | jq '.checks[] | select(.state != \"ok\")'

{}",
        help(&[Exit::Done, Exit::No, Exit::Usage])
    )
}

/// Print a completion script for a shell
#[derive(Clone, Debug, Args)]
#[command(
    long_about = "\
Prints a completion script for a shell, to standard output. Put it where the shell looks for such \
scripts; the examples name the usual places.",
    after_long_help = completions_help()
)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

fn completions_help() -> String {
    format!(
        "Examples:
  dunlin completions bash > /etc/bash_completion.d/dunlin
  dunlin completions zsh > ~/.zfunc/_dunlin
  dunlin completions fish > ~/.config/fish/completions/dunlin.fish

{}",
        help(&[Exit::Done, Exit::Usage])
    )
}
