//! The destination's side of a session, from WELCOME on.
//!
//! ```text
//! Receiving → Loading → Ready → Running → Released
//! any state before Running ──→ Aborted      Running ── lost ──→ Released (it runs here)
//! Committed ── no vCPU was entered ──→ Aborted      ── one may have run ──→ Broken
//! ```

/// Where the destination stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// WELCOME is out; lanes open, pages arrive.
    Receiving,
    /// PREPARE is here; fences, digests, state.
    Loading,
    /// READY is out.
    Ready,
    /// COMMIT is here; the vCPUs are being entered.
    Committed,
    /// The guest runs here, RUNNING is out.
    Running,
    /// The guest runs here and the source freed its own.
    Released,
    /// The guest was discarded; COMMIT would be refused.
    Aborted,
    /// After COMMIT the guest could not be run, and may have run for a moment.
    Broken,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// PREPARE came.
    Prepare,
    /// All fences were seen, what was counted and digested agrees, the state is loaded, remote
    /// access is revoked.
    Loaded,
    /// COMMIT came.
    Commit,
    /// Every vCPU was entered.
    Entered,
    /// A vCPU could not be entered; another one may have been.
    NotEntered,
    /// No vCPU was entered, and none will be.
    NeverEntered,
    /// VERIFY_PAGES came.
    VerifyPages,
    /// VERIFY_END came.
    VerifyEnd,
    /// RELEASED came.
    Released,
    /// ABORT came.
    Abort,
    /// The connection is gone, the peer is silent, or it said what it may not say now.
    Lost,
    /// Something on this side failed, a lane did, or the time is up.
    Failed,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// See all fences, compare, load, revoke.
    Load,
    /// Send READY.
    SendReady,
    /// Record that the guest is this side's.
    RecordOwnership,
    /// Enter every vCPU.
    Run,
    /// Send RUNNING.
    SendRunning,
    /// Compare the claimed pages.
    CheckPages,
    /// Send VERIFIED.
    SendVerified,
    /// Record that this session will never run the guest here.
    RecordAborted,
    /// Send ABORTED.
    SendAborted,
    /// End the lanes.
    CloseLanes,
    /// Free what was received.
    Discard,
}

/// The destination's side of a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DestinationSession {
    state: State,
}

impl Default for DestinationSession {
    fn default() -> Self {
        Self::new()
    }
}

impl DestinationSession {
    /// A session whose WELCOME is out.
    pub fn new() -> Self {
        Self {
            state: State::Receiving,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether nothing can happen any more.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Released | State::Aborted | State::Broken)
    }

    /// Takes an event; answers with what to do, in order.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        let (next, actions) = match (self.state, event) {
            (State::Receiving, Event::Prepare) => (State::Loading, vec![Action::Load]),
            (State::Loading, Event::Loaded) => (State::Ready, vec![Action::SendReady]),
            (State::Ready, Event::Commit) => {
                (State::Committed, vec![Action::RecordOwnership, Action::Run])
            }
            (State::Committed, Event::Entered) => (
                State::Running,
                vec![Action::SendRunning, Action::CloseLanes],
            ),
            (State::Committed, Event::NotEntered) => (State::Broken, vec![Action::CloseLanes]),
            // It has not run here, so it can go back: recorded first, so that it never will.
            (State::Committed, Event::NeverEntered) => Self::abort(),
            // The guest's fate is decided by whether it can be entered, not by the link.
            (State::Committed, _) => return Vec::new(),
            (State::Running, Event::VerifyPages) => (State::Running, vec![Action::CheckPages]),
            (State::Running, Event::VerifyEnd) => (State::Running, vec![Action::SendVerified]),
            (State::Running, Event::Released | Event::Lost) => (State::Released, vec![]),
            // It runs here, whatever the peer says.
            (State::Running, _) => return Vec::new(),
            (State::Released | State::Aborted | State::Broken, _) => return Vec::new(),
            // Before COMMIT, whatever is unexpected ends it. The record comes before the word.
            _ => Self::abort(),
        };
        self.state = next;
        actions
    }

    fn abort() -> (State, Vec<Action>) {
        let actions = vec![
            Action::RecordAborted,
            Action::SendAborted,
            Action::CloseLanes,
            Action::Discard,
        ];
        (State::Aborted, actions)
    }
}
