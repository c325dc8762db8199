//! The source's side of a session.
//!
//! ```text
//! Created → Greeting → Opening (→ Naming) → Copying → Pausing → Saving → Finishing → Collecting
//!         (→ Resending) → Preparing → GivingUp → Committed → Verifying → Moved
//! any state before Committed ──→ Stayed      Committed ── lost ──→ InDoubt ⇄ asking
//! InDoubt ── the destination ran it ──→ Moved      ── it never will ──→ Stayed
//!         ── a person's word ──→ Stayed or Discarded
//! ```

use super::{Decision, StayReason};
use crate::records::verdict::Answer;

/// Where the source stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Nothing was said yet.
    Created,
    /// HELLO is out.
    Greeting,
    /// WELCOME is here; lanes are being opened and tracking started.
    Opening,
    /// LANES is out, for a transport whose lanes have identities: nothing is put before the
    /// destination has confirmed them.
    Naming,
    /// Pre-copy rounds; the guest runs.
    Copying,
    /// The guest is being paused.
    Pausing,
    /// Device state is being saved, while the lanes send what was written last.
    Saving,
    /// Device state is saved; the lanes are not done yet.
    Finishing,
    /// What saving wrote is being collected.
    Collecting,
    /// A second round of the paused guest: what saving wrote.
    Resending,
    /// PREPARE is out.
    Preparing,
    /// READY is here; the give-up is being recorded.
    GivingUp,
    /// The give-up is recorded, COMMIT is on its way: the guest may run on the destination.
    Committed,
    /// RUNNING is here; memory is being compared.
    Verifying,
    /// The destination runs the guest; it can be freed here.
    Moved,
    /// The guest runs here.
    Stayed(StayReason),
    /// Who owns the guest is not known: it is kept here, paused, and the destination is asked.
    InDoubt,
    /// A person decided that the guest is not kept here.
    Discarded,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The move begins.
    Begin,
    /// WELCOME came and is good.
    Welcome,
    /// REFUSED came.
    Refused,
    /// All lanes are open and every dirty source tracks.
    Opened,
    /// The same, and the lanes have identities.
    OpenedUnconfirmed,
    /// LANES_CONFIRMED came.
    LanesConfirmed,
    /// All lanes finished the round.
    RoundDone,
    /// After a round: another one is worth it.
    Continue,
    /// After a round: as `Converged`, but there are ranges to be opened before the guest is paused.
    ConvergedUnopened,
    /// After a round: the prediction is within the budget (or a switchover was asked for anyway).
    Converged,
    /// GRANTS came.
    Grants,
    /// CLOSED came.
    Closed,
    /// Every writer has stopped, and what they wrote last is collected.
    Paused,
    /// Device state is saved.
    Saved,
    /// What saving wrote is collected; `dirtied`: it wrote guest memory.
    Collected {
        /// Whether there are pages to send again.
        dirtied: bool,
    },
    /// READY came and is good.
    Ready,
    /// The give-up is recorded.
    GaveUp,
    /// RUNNING came.
    Running,
    /// Memory was compared, or comparing it came to nothing.
    Verified,
    /// ABORTED came: the destination discarded the guest and will refuse COMMIT.
    Aborted,
    /// The connection is gone, the peer is silent, or it said what it may not say now.
    Lost,
    /// This side wants to, or has to, end the move.
    Stop(StayReason),
    /// In doubt: the destination answered; `None`: it can't be reached.
    Answered(Option<Answer>),
    /// In doubt: a person decided.
    Decided(Decision),
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send HELLO.
    SendHello,
    /// Open the lanes and start tracking.
    Open,
    /// Send LANES.
    SendLanes,
    /// Start a pre-copy round on all lanes.
    StartRound,
    /// Judge the round that ended: continue, converge or stop.
    Judge,
    /// Open what the final round will need, as far as is known, while the guest runs.
    OpenPending,
    /// Give the grants to the lanes.
    AcceptGrants,
    /// Count the closed ranges' room as free.
    AcceptClosed,
    /// Stop every writer and collect.
    Pause,
    /// Start a round of the paused guest, shared out by bytes.
    StartFinalRound,
    /// Save device state; the lanes are at work meanwhile.
    Save,
    /// Collect once more: saving may have written guest memory. Once the lanes are done, because
    /// what they have not re-armed yet would count as written.
    CollectAgain,
    /// Prove that all lanes' writes have arrived, before pages are sent a second time.
    FenceLanes,
    /// Send PREPARE.
    SendPrepare,
    /// Record that from here on the guest may be the destination's. Plain: it is inside the pause.
    RecordGiveUp,
    /// Send COMMIT.
    SendCommit,
    /// Make the give-up's record durable.
    SyncRecord,
    /// Compare memory, where asked for.
    Verify,
    /// Send RELEASED.
    SendReleased,
    /// Send ABORT.
    SendAbort,
    /// End the lanes and stop tracking.
    CloseLanes,
    /// Let the guest run on here.
    Resume,
    /// Record that the guest goes on here.
    RecordStayed,
    /// Record that the destination runs the guest.
    RecordReleased,
    /// Record a person's decision, durably: before it is acted on.
    RecordDecision(Decision),
    /// Give back what the guest holds outside of this host; the guest is not here any more.
    ReleaseOutside,
    /// Keep the guest paused until its owner is known.
    Hold,
    /// Ask the destination on a new connection, after a while.
    Ask,
    /// Tell the destination, on the connection of the answer, that the session is settled.
    TellSettled,
}

impl Action {
    /// Whether it is work on the way to the give-up while the guest is paused.
    pub fn is_inside_blackout(self) -> bool {
        matches!(
            self,
            Self::StartFinalRound
                | Self::Save
                | Self::CollectAgain
                | Self::FenceLanes
                | Self::SendPrepare
        )
    }
}

/// The source's side of a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceSession {
    pub(super) state: State,
}

impl Default for SourceSession {
    fn default() -> Self {
        Self::new()
    }
}

impl SourceSession {
    /// A session that has not begun.
    pub fn new() -> Self {
        Self {
            state: State::Created,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether nothing can happen any more.
    pub fn is_over(&self) -> bool {
        matches!(
            self.state,
            State::Moved | State::Stayed(_) | State::Discarded
        )
    }

    /// Whether a cancel is still heeded.
    pub fn is_before_give_up(&self) -> bool {
        let behind = matches!(
            self.state,
            State::Committed | State::Verifying | State::InDoubt
        );
        !behind && !self.is_over()
    }

    /// Whether the guest's vCPUs may be stopped now.
    fn is_paused(&self) -> bool {
        matches!(
            self.state,
            State::Pausing
                | State::Saving
                | State::Finishing
                | State::Collecting
                | State::Resending
                | State::Preparing
                | State::GivingUp
        )
    }

    /// Takes an event; answers with what to do, in order.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        let (next, actions) = match (self.state, event) {
            (State::Created, Event::Begin) => (State::Greeting, vec![Action::SendHello]),
            (State::Greeting, Event::Welcome) => (State::Opening, vec![Action::Open]),
            (State::Opening, Event::OpenedUnconfirmed) => (State::Naming, vec![Action::SendLanes]),
            (State::Opening, Event::Opened)
            | (State::Naming, Event::LanesConfirmed)
            | (State::Copying, Event::Continue) => (State::Copying, vec![Action::StartRound]),
            (State::Copying, Event::RoundDone) => (State::Copying, vec![Action::Judge]),
            (State::Copying, Event::ConvergedUnopened) => {
                (State::Copying, vec![Action::OpenPending])
            }
            (State::Copying, Event::Converged) => (State::Pausing, vec![Action::Pause]),
            (State::Pausing, Event::Paused) => {
                (State::Saving, vec![Action::StartFinalRound, Action::Save])
            }
            (State::Saving, Event::Saved) => (State::Finishing, Vec::new()),
            (State::Finishing, Event::RoundDone) => (State::Collecting, vec![Action::CollectAgain]),
            // A page may go out twice now, and on another lane: law 2 wants a fence between.
            (State::Collecting, Event::Collected { dirtied: true }) => (
                State::Resending,
                vec![Action::FenceLanes, Action::StartFinalRound],
            ),
            (State::Collecting, Event::Collected { dirtied: false })
            | (State::Resending, Event::RoundDone) => (State::Preparing, vec![Action::SendPrepare]),
            (state, Event::Grants) if Self::has_ranges(state) => {
                (state, vec![Action::AcceptGrants])
            }
            (state, Event::Closed) if Self::has_ranges(state) => {
                (state, vec![Action::AcceptClosed])
            }
            (State::Preparing, Event::Ready) => (State::GivingUp, vec![Action::RecordGiveUp]),
            (State::GivingUp, Event::GaveUp) => (State::Committed, vec![Action::SendCommit]),
            (State::Committed, Event::Running) => {
                (State::Verifying, vec![Action::SyncRecord, Action::Verify])
            }
            (State::Verifying, Event::Verified | Event::Lost) => (
                State::Moved,
                vec![
                    // Recorded first: who hears RELEASED forgets the move, and could not tell a
                    // source that died in between what became of it.
                    Action::RecordReleased,
                    Action::SendReleased,
                    Action::CloseLanes,
                    Action::ReleaseOutside,
                ],
            ),
            // Behind the give-up only the destination's word brings the guest back.
            (State::Committed, Event::Aborted) => (
                State::Stayed(StayReason::PeerFailed),
                vec![Action::Resume, Action::RecordStayed, Action::CloseLanes],
            ),
            (State::Committed, Event::Stop(_)) => return Vec::new(),
            (State::Committed, _) => Self::in_doubt(),
            (State::InDoubt, Event::Answered(answer)) => Self::answered(answer),
            (State::InDoubt, Event::Decided(decision)) => Self::decided(decision),
            (State::InDoubt, _) => return Vec::new(),
            // RUNNING was seen: whatever comes now, the guest is the destination's.
            (State::Verifying, _) => return Vec::new(),
            (State::Moved | State::Stayed(_) | State::Discarded, _) => return Vec::new(),
            // Before the give-up, whatever is unexpected leaves the guest here.
            (_, Event::Refused) => self.stay(StayReason::Refused),
            (_, Event::Stop(reason)) => self.stay(reason),
            _ => self.stay(StayReason::PeerFailed),
        };
        self.state = next;
        actions
    }

    /// Whether the destination may still talk of ranges: from the first round on, and until it
    /// answers PREPARE, behind which it has nothing more to say of them.
    fn has_ranges(state: State) -> bool {
        matches!(
            state,
            State::Copying
                | State::Pausing
                | State::Saving
                | State::Finishing
                | State::Collecting
                | State::Resending
                | State::Preparing
        )
    }

    /// COMMIT may have arrived, and nobody says so.
    fn in_doubt() -> (State, Vec<Action>) {
        // A build that is made to be found out, so that what looks for such bugs is seen to work.
        if cfg!(feature = "planted-split-brain") {
            return (
                State::Stayed(StayReason::PeerFailed),
                vec![Action::Resume, Action::RecordStayed, Action::CloseLanes],
            );
        }
        let actions = vec![Action::Hold, Action::CloseLanes, Action::Ask];
        (State::InDoubt, actions)
    }

    fn answered(answer: Option<Answer>) -> (State, Vec<Action>) {
        match answer {
            Some(Answer::Running | Answer::Ended) => (
                State::Moved,
                vec![
                    Action::RecordReleased,
                    Action::TellSettled,
                    Action::ReleaseOutside,
                ],
            ),
            Some(Answer::Aborted) => (
                State::Stayed(StayReason::PeerFailed),
                vec![Action::Resume, Action::RecordStayed, Action::TellSettled],
            ),
            Some(Answer::Undecided | Answer::MayHaveRun | Answer::NoRecord) | None => {
                // It may take long: the record shall outlive the host too.
                (State::InDoubt, vec![Action::SyncRecord, Action::Ask])
            }
        }
    }

    /// A person says that the other side is fenced off.
    fn decided(decision: Decision) -> (State, Vec<Action>) {
        match decision {
            Decision::ResumeHere => (
                State::Stayed(StayReason::Decided),
                vec![Action::RecordDecision(decision), Action::Resume],
            ),
            Decision::DiscardHere => (
                State::Discarded,
                vec![Action::RecordDecision(decision), Action::ReleaseOutside],
            ),
        }
    }

    /// The guest first, everything else afterwards.
    fn stay(&self, reason: StayReason) -> (State, Vec<Action>) {
        let mut actions = Vec::new();
        if self.is_paused() {
            actions.push(Action::Resume);
        }
        if !matches!(self.state, State::Created) {
            actions.push(Action::SendAbort);
        }
        actions.push(Action::RecordStayed);
        actions.push(Action::CloseLanes);
        (State::Stayed(reason), actions)
    }
}
