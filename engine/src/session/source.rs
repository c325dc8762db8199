//! The source's side of a session.
//!
//! ```text
//! Created → Greeting → Opening → Copying → Pausing → Finishing → Saving ⇄ Finishing
//!         → Preparing → Committed → Verifying → Moved
//! any state before Committed ──→ Stayed      Committed ── lost ──→ Unknown
//! ```

use super::StayReason;

/// Where the source stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Nothing was said yet.
    Created,
    /// HELLO is out.
    Greeting,
    /// WELCOME is here; lanes are being opened and tracking started.
    Opening,
    /// Pre-copy rounds; the guest runs.
    Copying,
    /// The guest is being paused.
    Pausing,
    /// A round of a paused guest.
    Finishing {
        /// Whether device state has been saved already: then this round carries what saving
        /// dirtied.
        saved: bool,
    },
    /// Device state is being saved.
    Saving,
    /// PREPARE is out.
    Preparing,
    /// The give-up is recorded, COMMIT is out: the guest may run on the destination.
    Committed,
    /// RUNNING is here; memory is being compared.
    Verifying,
    /// The destination runs the guest; it can be freed here.
    Moved,
    /// The guest runs here.
    Stayed(StayReason),
    /// Who owns the guest is not known; it is kept here, paused.
    Unknown,
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
    /// All lanes finished the round.
    RoundDone,
    /// After a round: another one is worth it.
    Continue,
    /// After a round: the prediction is within the budget (or a switchover was asked for anyway).
    Converged,
    /// Every writer has stopped, and what they wrote last is collected.
    Paused,
    /// Device state is saved; `dirtied`: saving wrote guest memory.
    Saved {
        /// Whether there are pages to send again.
        dirtied: bool,
    },
    /// READY came and is good.
    Ready,
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
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send HELLO.
    SendHello,
    /// Open the lanes and start tracking.
    Open,
    /// Start a pre-copy round on all lanes.
    StartRound,
    /// Judge the round that ended: continue, converge or stop.
    Judge,
    /// Stop every writer and collect.
    Pause,
    /// Start a round of the paused guest, shared out by bytes.
    StartFinalRound,
    /// Save device state and collect once more.
    Save,
    /// Prove that all lanes' writes have arrived, before pages are sent a second time.
    FenceLanes,
    /// Send PREPARE.
    SendPrepare,
    /// Record that from here on the guest may be the destination's.
    RecordGiveUp,
    /// Send COMMIT.
    SendCommit,
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
    /// Keep the guest paused until its owner is known.
    Hold,
}

impl Action {
    /// Whether it is work on the way to the give-up while the guest is paused.
    pub fn is_inside_blackout(self) -> bool {
        matches!(
            self,
            Self::StartFinalRound | Self::Save | Self::FenceLanes | Self::SendPrepare
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
        matches!(self.state, State::Moved | State::Stayed(_) | State::Unknown)
    }

    /// Whether a cancel is still heeded.
    pub fn is_before_give_up(&self) -> bool {
        !matches!(self.state, State::Committed | State::Verifying) && !self.is_over()
    }

    /// Whether the guest's vCPUs may be stopped now.
    fn is_paused(&self) -> bool {
        matches!(
            self.state,
            State::Pausing | State::Finishing { .. } | State::Saving | State::Preparing
        )
    }

    /// Takes an event; answers with what to do, in order.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        let (next, actions) = match (self.state, event) {
            (State::Created, Event::Begin) => (State::Greeting, vec![Action::SendHello]),
            (State::Greeting, Event::Welcome) => (State::Opening, vec![Action::Open]),
            (State::Opening, Event::Opened) | (State::Copying, Event::Continue) => {
                (State::Copying, vec![Action::StartRound])
            }
            (State::Copying, Event::RoundDone) => (State::Copying, vec![Action::Judge]),
            (State::Copying, Event::Converged) => (State::Pausing, vec![Action::Pause]),
            (State::Pausing, Event::Paused) => (
                State::Finishing { saved: false },
                vec![Action::StartFinalRound],
            ),
            (State::Finishing { saved: false }, Event::RoundDone) => {
                (State::Saving, vec![Action::Save])
            }
            // A page may go out twice now, and on another lane: law 2 wants a fence between.
            (State::Saving, Event::Saved { dirtied: true }) => (
                State::Finishing { saved: true },
                vec![Action::FenceLanes, Action::StartFinalRound],
            ),
            (State::Saving, Event::Saved { dirtied: false })
            | (State::Finishing { saved: true }, Event::RoundDone) => {
                (State::Preparing, vec![Action::SendPrepare])
            }
            (State::Preparing, Event::Ready) => (
                State::Committed,
                vec![Action::RecordGiveUp, Action::SendCommit],
            ),
            (State::Committed, Event::Running) => {
                (State::Verifying, vec![Action::CloseLanes, Action::Verify])
            }
            (State::Verifying, Event::Verified | Event::Lost) => {
                (State::Moved, vec![Action::SendReleased])
            }

            // Behind the give-up only the destination's word brings the guest back.
            (State::Committed, Event::Aborted) => (
                State::Stayed(StayReason::PeerFailed),
                vec![Action::Resume, Action::CloseLanes],
            ),
            (State::Committed, Event::Stop(_)) => return Vec::new(),
            (State::Committed, _) => (State::Unknown, vec![Action::Hold, Action::CloseLanes]),

            // RUNNING was seen: whatever comes now, the guest is the destination's.
            (State::Verifying, _) => return Vec::new(),

            // Before the give-up, whatever is unexpected leaves the guest here.
            (State::Moved | State::Stayed(_) | State::Unknown, _) => return Vec::new(),
            (_, Event::Refused) => self.stay(StayReason::Refused),
            (_, Event::Stop(reason)) => self.stay(reason),
            _ => self.stay(StayReason::PeerFailed),
        };
        self.state = next;
        actions
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
        actions.push(Action::CloseLanes);
        (State::Stayed(reason), actions)
    }
}
