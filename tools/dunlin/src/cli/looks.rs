//! Commands that look and end: `status`, `stop`, `doctor`, `completions`.

use clap::Args;
use clap_complete::Shell;

use super::values::GuestName;
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
