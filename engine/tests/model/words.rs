//! A step, and a world, in words: for whoever reads the way to a state that must not be.

use dunlin_engine::records::Entry;

use crate::step::{
    DestinationOutcome, DestinationStep, Fault, SettlingStep, SourceOutcome, SourceStep, Step,
};
use crate::world::{Disk, Exchange, Life, World};

impl Step {
    /// Who does it, and what, in words.
    pub(crate) fn words(self, world: &World) -> (&'static str, String) {
        match self {
            Self::Source(step) => ("source", step.words(world)),
            Self::Destination(DestinationStep::Admit) => (
                "supervisor",
                "takes HELLO, records 'expected', starts the guest's process; WELCOME".to_owned(),
            ),
            Self::Destination(DestinationStep::Refuse) => {
                ("supervisor", "says REFUSED (fault)".to_owned())
            }
            Self::Destination(DestinationStep::GiveUpWaiting) => (
                "supervisor",
                "closes a connection on which no HELLO came".to_owned(),
            ),
            Self::Destination(step) => ("destination", step.words(world)),
            Self::Settling(step) => step.words(world),
            Self::Disk(step) => (
                "disk",
                format!(
                    "of the {} goes on, {} what it had to write",
                    step.side.name(),
                    if step.is_written { "with" } else { "without" }
                ),
            ),
            Self::Fault(fault) => ("fault", fault.words()),
        }
    }
}

/// What comes behind an action where it did not go well.
fn disk_words(disk: Disk) -> &'static str {
    match disk {
        Disk::Well => "",
        Disk::Unwritten => " (fault: it is not written)",
        Disk::Late => " (fault: it is told that it is not written, and it is)",
        Disk::Hang => " (fault: the disk hangs)",
    }
}

fn unsent_words(is_sent: bool) -> &'static str {
    match is_sent {
        true => " (it is told that it was not sent, and it was)",
        false => " (it is told that it was not sent)",
    }
}

fn head<T: std::fmt::Debug>(words: &[T]) -> String {
    let first = words.first();
    first.map_or_else(String::new, |word| format!("{word:?}"))
}

impl SourceStep {
    fn words(self, world: &World) -> String {
        let word = head(&world.to_source.words).to_uppercase();
        match self {
            Self::Perform(outcome) => {
                let note = match outcome {
                    SourceOutcome::Well => "",
                    SourceOutcome::Unsent { is_sent } => unsent_words(is_sent),
                    SourceOutcome::AnotherRound => " (another round)",
                    SourceOutcome::Dirtied => " (which wrote guest memory)",
                    SourceOutcome::Stopped => " (fault: it stops instead)",
                    SourceOutcome::Disk(disk) => disk_words(disk),
                };
                let action = head(&world.source.actions);
                format!("{action}{note}")
            }
            Self::Hear => format!("hears {word}"),
            Self::NoticeLoss => "notices that the connection is gone".to_owned(),
            Self::ImagineLoss => "takes the connection for lost (fault: it is not)".to_owned(),
            Self::FinishRound => "all lanes finished the round".to_owned(),
            Self::Stop => "ends the move (fault: a cancel, a deadline or a lane)".to_owned(),
            Self::Ask => "asks on a new connection".to_owned(),
            Self::HearAnswer => match world.settling.exchange {
                Exchange::Answered { answer, .. } => {
                    format!("hears: '{}' ({answer:?})", answer.words())
                }
                _ => "hears nothing".to_owned(),
            },
            Self::Decide(decision) => format!("a person decides: {decision:?}"),
        }
    }
}

impl DestinationStep {
    fn words(self, world: &World) -> String {
        match self {
            Self::Perform(outcome) => {
                let note = match outcome {
                    DestinationOutcome::Well => "",
                    DestinationOutcome::Unsent { is_sent } => unsent_words(is_sent),
                    DestinationOutcome::Failed => " (fault: it fails)",
                    DestinationOutcome::NeverEntered => " (fault: no vCPU can be entered)",
                    DestinationOutcome::MayHaveRun => {
                        " (fault: one vCPU was entered, then it failed)"
                    }
                    DestinationOutcome::Disk(disk) => disk_words(disk),
                };
                let action = head(&world.destination.actions);
                format!("{action}{note}")
            }
            Self::Hear => format!("hears {}", head(&world.to_destination.words).to_uppercase()),
            Self::NoticeLoss => "notices that the connection is gone".to_owned(),
            Self::ImagineLoss => "takes the connection for lost (fault: it is not)".to_owned(),
            Self::Load => "loads the guest's state".to_owned(),
            Self::Fail => "ends the move (fault: loading, a lane or a deadline)".to_owned(),
            Self::EndGuest {
                is_recorded,
                comes_back,
            } => format!(
                "the guest {}{}",
                if comes_back {
                    "goes on, and comes back later"
                } else {
                    "ends in order"
                },
                if is_recorded {
                    ""
                } else {
                    " (fault: that is not recorded)"
                }
            ),
            Self::Admit | Self::Refuse | Self::GiveUpWaiting => format!("{self:?}"),
        }
    }
}

impl SettlingStep {
    fn words(self, world: &World) -> (&'static str, String) {
        match self {
            Self::Look => (
                "supervisor",
                "looks whether the record's process lives".to_owned(),
            ),
            Self::Answer(disk) => {
                let (answer, _) = world.answer(world.looked(), disk);
                let note = disk_words(disk);
                ("supervisor", format!("answers {answer:?}{note}"))
            }
            Self::AnswerStale => (
                "supervisor",
                "answers a question that nobody waits for any more".to_owned(),
            ),
            Self::Lose { is_late: false } => ("link", "loses question or answer".to_owned()),
            Self::Lose { is_late: true } => (
                "link",
                "delays the question: the source gives it up".to_owned(),
            ),
            Self::Forget => (
                "supervisor",
                "hears SETTLED and removes the record where that is over".to_owned(),
            ),
            Self::ForgetUnsettled => (
                "supervisor",
                "hears SETTLED behind an answer that settles nothing (fault)".to_owned(),
            ),
            Self::LoseSettled => ("link", "loses SETTLED".to_owned()),
            Self::RestartSupervisor => ("supervisor", "is started again".to_owned()),
        }
    }
}

impl Fault {
    fn words(self) -> String {
        let entering = |is_entering| match is_entering {
            true => ", with a vCPU just entered",
            false => "",
        };
        match self {
            Self::CutToDestination => {
                "what is on its way to the destination is lost, and what follows"
            }
            Self::CutToSource => "what is on its way to the source is lost, and what follows",
            Self::KillSource => "the source's process is killed",
            Self::CrashSourceHost { kept } => {
                return format!("the source's host crashes; its record keeps {kept} entries");
            }
            Self::KillDestination { is_entering } => {
                return format!(
                    "the destination's process is killed{}",
                    entering(is_entering)
                );
            }
            Self::CrashDestinationHost { kept, is_entering } => {
                return format!(
                    "the destination's host crashes{}; its record keeps {kept} entries",
                    entering(is_entering)
                );
            }
            Self::LoseRecord => "the destination's state directory is lost",
            Self::KillSupervisor => "the supervisor is killed",
            Self::Fence => "the destination's host is switched off for good",
        }
        .to_owned()
    }
}

/// What can be seen of a world, in one line.
pub(crate) fn sketch(world: &World) -> String {
    let guest = |life: Life, runs, has_memory| match (life, runs, has_memory) {
        (Life::None, ..) => "no process",
        (Life::Crashed, ..) => "dead",
        (Life::Exited, ..) => "gone",
        (_, true, _) => "guest runs",
        (_, false, true) => "guest paused",
        (_, false, false) => "no guest",
    };
    let (source, destination) = (&world.source, &world.destination);
    let entry = |entry: Option<Entry>| entry.map_or("-", |it| it.name());
    format!(
        "source {:?}, {}, record {}; destination {:?}, {}, record {}",
        source.session.state(),
        guest(source.life, source.runs, source.has_memory),
        entry(source.record.last()),
        destination.session.state(),
        guest(destination.life, destination.runs, destination.has_memory),
        entry(destination.record.last()),
    )
}
