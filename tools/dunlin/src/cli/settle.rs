//! The command line of `settle`.

use clap::Args;

use super::values::GuestName;
use super::{Runtime, State};
use crate::exit::{Exit, help};

/// Settle who owns a guest after a handover that was cut off
#[derive(Clone, Debug, Args)]
#[command(
    long_about = "\
When the connection is lost behind a move's give-up, the guest may run on the destination. The \
source keeps it paused and asks the destination again and again; once 'dunlin receive' there \
answers, its records settle it without anyone's help: the guest is freed here, or goes on here. \
'dunlin status' shows UNKNOWN OWNER until then.

Without a decision, this command says what is known, and asks the destination now where the \
guest's process here is gone.

A decision is for a destination that is gone for good, or that says that the guest may have run \
there. It rests on your word that the other side is fenced off: its host is switched off, or you \
have seen that the guest runs there no more and never will. Two running copies of one guest \
destroy its disks. What you say under --fenced is kept in the record and in the report.",
    after_long_help = settle_help()
)]
pub(crate) struct Settle {
    /// The guest: its name or its UUID
    #[arg(value_name = "GUEST")]
    pub(crate) guest: String,
    /// Let the guest go on here
    #[arg(long, requires = "fenced", conflicts_with = "discard_here")]
    pub(crate) resume_here: bool,
    /// Do not keep the guest here
    #[arg(long, requires = "fenced")]
    pub(crate) discard_here: bool,
    /// How the other side is fenced off, in your words
    #[arg(long, value_name = "HOW", value_parser = some_words)]
    pub(crate) fenced: Option<String>,
    #[command(flatten)]
    pub(crate) runtime: Runtime,
    #[command(flatten)]
    pub(crate) state: State,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl Settle {
    /// A guest's name, where it is one.
    pub(crate) fn name(&self) -> Option<GuestName> {
        self.guest.parse().ok()
    }
}

fn settle_help() -> String {
    format!(
        "Examples:
  dunlin settle vm1
  dunlin settle vm1 --resume-here --fenced \"host-b switched off by its BMC\"
  dunlin settle vm1 --discard-here --fenced \"seen running on host-b\"

{}",
        help(&[
            Exit::Done,
            Exit::Usage,
            Exit::NoGuest,
            Exit::UnknownOwner,
            Exit::Local,
            Exit::Conflict,
        ])
    )
}

fn some_words(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("say how the other side is fenced off".to_owned()),
        words => Ok(words.to_owned()),
    }
}
