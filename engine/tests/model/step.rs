//! All that may happen next.

use dunlin_engine::records::Role;
use dunlin_engine::session::Decision;
use dunlin_engine::session::source::Action as SourceAction;

use crate::world::{Disk, Life, World};

/// How an action of the source went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SourceOutcome {
    Well,
    /// The sender is told that it was not sent.
    Unsent {
        /// And it was.
        is_sent: bool,
    },
    /// Judging a round: another one.
    AnotherRound,
    /// Saving state wrote guest memory.
    Dirtied,
    /// Fault: this side ends the move instead: a cancel, the cap, or a failure of its own.
    Stopped,
    /// Fault: of the disk.
    Disk(Disk),
}

/// What the source does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SourceStep {
    Perform(SourceOutcome),
    Hear,
    NoticeLoss,
    /// Fault: it takes the connection for lost, and it is not.
    ImagineLoss,
    FinishRound,
    /// Fault: a cancel, a deadline, a lane's failure.
    Stop,
    Ask,
    HearAnswer,
    Decide(Decision),
}

/// How an action of the destination went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DestinationOutcome {
    Well,
    /// As on the source.
    Unsent {
        is_sent: bool,
    },
    /// Fault: it was not acquired.
    Failed,
    /// Fault: no vCPU was entered, and none will be.
    NeverEntered,
    /// Fault: one may have been.
    MayHaveRun,
    /// Fault: of the disk.
    Disk(Disk),
}

/// What the destination does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DestinationStep {
    /// The supervisor takes HELLO, records, starts a process, WELCOME.
    Admit,
    /// Fault: it refuses.
    Refuse,
    /// No HELLO came on the connection, and none will.
    GiveUpWaiting,
    Perform(DestinationOutcome),
    Hear,
    NoticeLoss,
    /// Fault: as on the source.
    ImagineLoss,
    Load,
    /// Fault: loading, a lane or a deadline failed.
    Fail,
    /// Fault, so to speak: the guest goes on or ends in order.
    EndGuest {
        is_recorded: bool,
        /// It went on to a third host, and came back from there.
        comes_back: bool,
    },
}

/// What happens to the source's questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SettlingStep {
    /// The supervisor looks whether the record's process lives.
    Look,
    /// It reads the record and answers; of the disk, where it has to record something first.
    Answer(Disk),
    /// It answers a question that nobody waits for any more.
    AnswerStale,
    /// The question or the answer does not arrive in time.
    Lose {
        /// And arrives afterwards.
        is_late: bool,
    },
    Forget,
    /// Fault: SETTLED comes behind an answer that settles nothing.
    ForgetUnsettled,
    LoseSettled,
    RestartSupervisor,
}

/// What fails from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    CutToDestination,
    CutToSource,
    KillSource,
    /// Of what was not durable, this much is left in the record.
    CrashSourceHost {
        kept: usize,
    },
    KillDestination {
        /// In the middle of entering vCPUs, with one entered.
        is_entering: bool,
    },
    CrashDestinationHost {
        kept: usize,
        is_entering: bool,
    },
    KillSupervisor,
    /// Somebody removes the destination's state directory.
    LoseRecord,
    /// The destination's host is switched off for good while the source is in doubt.
    Fence,
}

/// A disk that hung goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DiskStep {
    pub(crate) side: Role,
    /// Whether what it had to write is written.
    pub(crate) is_written: bool,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Source(SourceStep),
    Destination(DestinationStep),
    Settling(SettlingStep),
    Disk(DiskStep),
    Fault(Fault),
}

impl Step {
    /// Whether something fails.
    pub(crate) fn is_fault(self) -> bool {
        match self {
            Self::Source(SourceStep::Perform(outcome)) => match outcome {
                SourceOutcome::Stopped | SourceOutcome::Unsent { .. } => true,
                SourceOutcome::Disk(disk) => disk != Disk::Well,
                _ => false,
            },
            Self::Source(step) => matches!(step, SourceStep::ImagineLoss | SourceStep::Stop),
            Self::Destination(DestinationStep::Perform(outcome)) => match outcome {
                DestinationOutcome::Failed
                | DestinationOutcome::NeverEntered
                | DestinationOutcome::MayHaveRun
                | DestinationOutcome::Unsent { .. } => true,
                DestinationOutcome::Disk(disk) => disk != Disk::Well,
                _ => false,
            },
            Self::Destination(step) => matches!(
                step,
                DestinationStep::Refuse
                    | DestinationStep::ImagineLoss
                    | DestinationStep::Fail
                    | DestinationStep::EndGuest { .. }
            ),
            Self::Settling(SettlingStep::Answer(disk)) => disk != Disk::Well,
            Self::Settling(step) => step == SettlingStep::ForgetUnsettled,
            Self::Disk(disk) => !disk.is_written,
            Self::Fault(_) => true,
        }
    }

    /// Whether it happens where nothing fails any more and nothing is lost.
    pub(crate) fn is_calm(self) -> bool {
        !self.is_fault()
            && !matches!(
                self,
                Self::Settling(SettlingStep::Lose { .. } | SettlingStep::LoseSettled)
                    | Self::Source(SourceStep::Decide(_))
            )
    }
}

/// Whether the source's next action is to ask.
pub(crate) fn is_to_ask(world: &World) -> bool {
    world.source.life == Life::InSession && world.source.actions.first() == Some(&SourceAction::Ask)
}
