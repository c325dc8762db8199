//! What must always be so, and what must be seen at least once for the model to be worth something.

use std::path::PathBuf;

use dunlin_engine::records::directory::Found;
use dunlin_engine::records::verdict::Answer;
use dunlin_engine::records::{Entry, Role, Subject};
use dunlin_engine::session::source::{Action, State};
use dunlin_engine::session::{StayReason, destination};
use dunlin_transports::lane::SessionId;
use stateright::Property;

use crate::Handover;
use crate::progress::makes_progress;
use crate::world::{Exchange, Life, Record, Word, World};

pub(crate) const TWO_OWNERS: &str = "a guest never runs on both sides";
pub(crate) const STALE_RUN: &str =
    "a guest that may have been entered on the destination never runs on the source again";
pub(crate) const PROGRESS: &str = "every state but UNKNOWN makes progress";

pub(crate) fn properties() -> Vec<Property<Handover>> {
    [always(), settled(), seen()].concat()
}

fn always() -> Vec<Property<Handover>> {
    vec![
        Property::always(TWO_OWNERS, |_, world: &World| {
            !(world.source.runs && world.destination.runs)
        }),
        Property::always(STALE_RUN, |_, world: &World| {
            !(world.source.runs && world.destination.may_have_entered) || world.is_resumed_by_hand()
        }),
        Property::always(
            "a guest is kept by one side, unless its holder crashed or ended it",
            |_, world: &World| {
                world.source.has_memory || world.destination.has_memory || has_lost_holder(world)
            },
        ),
        Property::always(
            "the source frees the guest only if every vCPU was entered on the destination",
            |_, world: &World| !world.slips.freed_unentered,
        ),
        Property::always(
            "the destination discards only what it never entered",
            |_, world: &World| !world.slips.discarded_entered,
        ),
        Property::always(
            "COMMIT is never said before the give-up is recorded",
            |_, world: &World| !world.slips.committed_before_give_up,
        ),
        Property::always(
            "no vCPU is entered before the ownership is recorded",
            |_, world: &World| !world.slips.entered_before_owned,
        ),
        Property::always(
            "ABORTED is never said before it is recorded durably, once READY was",
            |_, world: &World| {
                !world.slips.aborted_before_recorded && !world.slips.answered_aborted_without_record
            },
        ),
        Property::always(
            "what is outside is given back once a side at most, and only by who has no guest",
            |_, world: &World| {
                let (source, destination) = (&world.source, &world.destination);
                let is_once = source.releases <= 1 && destination.releases <= 1;
                let is_held = (source.releases > 0 && source.runs)
                    || (destination.releases > 0 && destination.runs);
                is_once && !is_held
            },
        ),
        Property::always(
            "a record that its dead process left never hides that the guest may run elsewhere",
            |_, world: &World| !hides_doubt(world),
        ),
    ]
}

fn settled() -> Vec<Property<Handover>> {
    vec![
        Property::always(
            "a source in doubt finds a record, unless the state directory is lost",
            |_, world: &World| !world.slips.found_no_record,
        ),
        Property::always(PROGRESS, |model: &Handover, world: &World| {
            makes_progress(&model.known, world)
        }),
    ]
}

fn seen() -> Vec<Property<Handover>> {
    vec![
        Property::sometimes("moved", |_, world: &World| {
            ends_with(world, State::Moved, Action::SendReleased)
        }),
        Property::sometimes("stayed before the give-up", |_, world: &World| {
            ends_with(
                world,
                State::Stayed(StayReason::Cancelled),
                Action::SendAbort,
            )
        }),
        Property::sometimes("refused", |_, world: &World| {
            world.source.session.state() == State::Stayed(StayReason::Refused)
        }),
        Property::sometimes("handed back after COMMIT", |_, world: &World| {
            // ABORTED was heard behind COMMIT, over the control connection.
            ends_with(
                world,
                State::Stayed(StayReason::PeerFailed),
                Action::CloseLanes,
            ) && world.destination.record.entries.contains(&Entry::Owned)
        }),
        Property::sometimes("moved by an answer", |_, world: &World| {
            ends_with(world, State::Moved, Action::TellSettled)
        }),
        Property::sometimes(
            "moved by the answer that it ended there",
            |_, world: &World| {
                ends_with(world, State::Moved, Action::TellSettled)
                    && world.destination.record.last() == Some(Entry::Ended)
            },
        ),
        Property::sometimes(
            "moved by the answer of a host to which it came back",
            |_, world: &World| {
                ends_with(world, State::Moved, Action::TellSettled)
                    && world.destination.has_later_epoch
                    && world.destination.record.last() == Some(Entry::Running)
            },
        ),
        Property::sometimes("stayed by an answer", |_, world: &World| {
            ends_with(
                world,
                State::Stayed(StayReason::PeerFailed),
                Action::TellSettled,
            )
        }),
        Property::sometimes("in doubt: it may have run there", |_, world: &World| {
            is_answered(world, Answer::MayHaveRun, false)
        }),
        Property::sometimes(
            "in doubt: the state directory is lost",
            |_, world: &World| is_answered(world, Answer::NoRecord, false),
        ),
        Property::sometimes("in doubt: undecided", |_, world: &World| {
            is_answered(world, Answer::Undecided, false)
        }),
        Property::sometimes(
            "the supervisor aborts for a dead process",
            |_, world: &World| is_answered(world, Answer::Aborted, true),
        ),
        Property::sometimes(
            "COMMIT is still under way when the source asks",
            |_, world: &World| {
                world.settling.exchange == Exchange::Asked
                    && world.to_destination.words.first() == Some(&Word::Commit)
                    && world.destination.session.state() == destination::State::Ready
            },
        ),
        Property::sometimes("a question is answered too late", |_, world: &World| {
            world.settling.stale_asks > 0 && world.source.life == Life::Exited
        }),
        Property::sometimes(
            "SETTLED comes when the guest has ended",
            |_, world: &World| {
                world.settling.is_settled_under_way
                    && world.destination.record.last() == Some(Entry::Ended)
            },
        ),
        Property::sometimes(
            "a crash of the host takes back that the guest was owned",
            |_, world: &World| {
                world.destination.may_have_entered
                    && world.destination.record.last() == Some(Entry::Expected)
            },
        ),
        Property::sometimes("a person decides", |_, world: &World| {
            world.is_resumed_by_hand()
        }),
    ]
}

/// Whether whoever held the guest last is gone by no fault of the handover, or by its own will.
fn has_lost_holder(world: &World) -> bool {
    let crashed = |life| life == Life::Crashed;
    let ended = world.destination.record.last() == Some(Entry::Ended)
        || (world.destination.life == Life::Exited && world.destination.has_entered);
    let discarded = world.source.session.state() == State::Discarded;
    crashed(world.source.life) || crashed(world.destination.life) || ended || discarded
}

/// Whether the source's session has just ended so, with this left to do.
fn ends_with(world: &World, state: State, action: Action) -> bool {
    world.source.session.state() == state && world.source.actions.contains(&action)
}

fn is_answered(world: &World, wanted: Answer, first: bool) -> bool {
    world.settling.exchange
        == Exchange::Answered {
            answer: wanted,
            is_aborted_first: first,
        }
}

/// Whether a record of a dead process, as the state directory shows it, looks as if the guest had
/// never gone anywhere, while it may have run on the destination.
fn hides_doubt(world: &World) -> bool {
    if !world.destination.may_have_entered {
        return false;
    }
    let record = &world.source.record;
    let last = record.last().filter(|entry| {
        // These say that it is not the source's, or that a person said otherwise.
        !matches!(
            entry,
            Entry::Released | Entry::ResumedByHand | Entry::DiscardedByHand
        )
    });
    world.source.life == Life::Crashed
        && last.is_some_and(|entry| !found(entry, record, Role::Source).is_in_doubt())
}

fn found(entry: Entry, record: &Record, role: Role) -> Found {
    Found {
        subject: Subject {
            uuid: uuid::Uuid::nil(),
            name: String::new(),
            epoch: 1,
            session: SessionId([0; 16]),
            role,
            peer: String::new(),
        },
        entry,
        words: String::new(),
        unix_ms: 0,
        has_acquired: false,
        is_alive: false,
        is_same_boot: record.is_same_boot,
        path: PathBuf::new(),
    }
}
