//! The destination's side of a session, from WELCOME on.
//!
//! ```text
//! Receiving → Loading → Acquiring → Ready → Owning → Committed → Running → Released
//! any state before Committed ──→ Aborting → Aborted
//! Committed ── no vCPU was entered ──→ Aborting      ── one may have run ──→ Broken
//! Running ── lost ──→ Released (it runs here)
//! ```

/// Where the destination stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// WELCOME is out; lanes open, pages arrive.
    Receiving,
    /// PREPARE is here; fences, digests, state.
    Loading,
    /// The state is loaded; what the guest needs outside of this host is being acquired.
    Acquiring,
    /// READY is out.
    Ready,
    /// COMMIT is here; the ownership is being recorded.
    Owning,
    /// The ownership is recorded; the vCPUs are being entered.
    Committed,
    /// The guest runs here, RUNNING is out.
    Running,
    /// The guest runs here and the source freed its own.
    Released,
    /// COMMIT is refused from here on; that this session never runs the guest is being recorded.
    Aborting,
    /// The guest was discarded.
    Aborted,
    /// After COMMIT the guest could not be run, and may have run for a moment.
    Broken,
}

/// What is known of which connections the lanes are; only for transports whose lanes have
/// identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Identities {
    /// The source has not said.
    Unsaid,
    /// LANES is here; being compared, once all lanes are here too.
    Said,
    /// They are the same on both sides.
    Confirmed,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// LANES came.
    Lanes,
    /// All lanes are here, and are those that LANES names.
    LanesConfirmed,
    /// OPEN came.
    Open,
    /// CLOSE came.
    Close,
    /// Ranges were registered or deregistered, as asked for.
    RangesDone,
    /// PREPARE came.
    Prepare,
    /// All fences were seen, what was counted and digested agrees, the state is loaded.
    Loaded,
    /// What the guest needs outside of this host is this side's.
    Acquired,
    /// COMMIT came.
    Commit,
    /// The entry that was to be recorded is.
    Recorded,
    /// It is not, or can't be told.
    NotRecorded,
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
    /// Compare the lanes that LANES names with those that are here, once all are.
    ConfirmLanes,
    /// Send LANES_CONFIRMED.
    SendLanesConfirmed,
    /// Register the ranges that OPEN names.
    OpenRanges,
    /// Deregister those that CLOSE names.
    CloseRanges,
    /// Send GRANTS and CLOSED for what is done.
    TellRanges,
    /// See all fences, compare, load.
    Load,
    /// Acquire what the guest needs outside of this host.
    Acquire,
    /// End the source's access to this side's memory.
    RevokeAccess,
    /// Send READY.
    SendReady,
    /// Record that the guest is this side's. Plain: it is inside the pause.
    RecordOwnership,
    /// Enter every vCPU.
    Run,
    /// Send RUNNING.
    SendRunning,
    /// Record that every vCPU was entered, and make it and the ownership durable.
    RecordRunning,
    /// Record that a vCPU may have run, and none does.
    RecordBroken,
    /// Record that the source knows: nobody will ask any more.
    RecordReleased,
    /// Compare the claimed pages.
    CheckPages,
    /// Send VERIFIED.
    SendVerified,
    /// Record, durably, that this session never ran the guest here and never will.
    RecordAborted,
    /// Record that the session ended before READY: nobody will ask.
    RecordNotCome,
    /// Send ABORTED.
    SendAborted,
    /// End the lanes.
    CloseLanes,
    /// Free what was received.
    Discard,
    /// Give back what was acquired outside of this host.
    ReleaseOutside,
}

/// The destination's side of a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DestinationSession {
    state: State,
    identities: Identities,
    /// Whether acquiring was begun.
    has_acquired: bool,
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
            identities: Identities::Unsaid,
            has_acquired: false,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether the lanes are known to be the source's.
    pub fn has_confirmed_lanes(&self) -> bool {
        self.identities == Identities::Confirmed
    }

    /// Whether nothing can happen any more.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Released | State::Aborted | State::Broken)
    }

    /// Takes an event; answers with what to do, in order.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        let (next, actions) = match (self.state, event) {
            (State::Receiving, Event::Lanes) if self.identities == Identities::Unsaid => {
                self.identities = Identities::Said;
                (State::Receiving, vec![Action::ConfirmLanes])
            }
            (State::Receiving, Event::LanesConfirmed) if self.identities == Identities::Said => {
                self.identities = Identities::Confirmed;
                (State::Receiving, vec![Action::SendLanesConfirmed])
            }
            (State::Receiving, Event::Open) if self.identities != Identities::Said => {
                (State::Receiving, vec![Action::OpenRanges])
            }
            (State::Receiving, Event::Close) if self.identities != Identities::Said => {
                (State::Receiving, vec![Action::CloseRanges])
            }
            (State::Receiving, Event::RangesDone) => (State::Receiving, vec![Action::TellRanges]),
            // Behind PREPARE nobody waits for it.
            (_, Event::RangesDone) => return Vec::new(),
            // Who has asked whether the lanes are its own puts nothing before it knows.
            (State::Receiving, Event::Prepare) if self.identities == Identities::Said => {
                self.abort()
            }
            (State::Receiving, Event::Prepare) => (State::Loading, vec![Action::Load]),
            (State::Loading, Event::Loaded) => (State::Acquiring, vec![Action::Acquire]),
            (State::Acquiring, Event::Acquired) => {
                (State::Ready, vec![Action::RevokeAccess, Action::SendReady])
            }
            (State::Ready, Event::Commit) => (State::Owning, vec![Action::RecordOwnership]),
            (State::Owning, Event::Recorded) => (State::Committed, vec![Action::Run]),
            // No vCPU is entered without a record. The entry may yet appear: one more follows it.
            (State::Owning, Event::NotRecorded) => self.abort(),
            // Neither the link nor the clock has a say while the record is being written.
            (State::Owning, _) => return Vec::new(),
            (State::Committed, Event::Entered) => (
                State::Running,
                vec![
                    Action::SendRunning,
                    Action::RecordRunning,
                    Action::CloseLanes,
                ],
            ),
            (State::Committed, Event::NotEntered) => (
                State::Broken,
                vec![
                    Action::RecordBroken,
                    Action::CloseLanes,
                    Action::ReleaseOutside,
                ],
            ),
            // It has not run here, so it can go back: recorded first, so that it never will.
            (State::Committed, Event::NeverEntered) => self.abort(),
            // The guest's fate is decided by whether it can be entered, not by the link.
            (State::Committed, _) => return Vec::new(),
            (State::Aborting, Event::Recorded) => {
                let rest = Self::farewell(self.has_acquired);
                (State::Aborted, [vec![Action::SendAborted], rest].concat())
            }
            // The word would be worth nothing: whoever reads the records later would not know it.
            (State::Aborting, Event::NotRecorded) => {
                (State::Aborted, Self::farewell(self.has_acquired))
            }
            (State::Aborting, _) => return Vec::new(),
            (State::Running, Event::VerifyPages) => (State::Running, vec![Action::CheckPages]),
            (State::Running, Event::VerifyEnd) => (State::Running, vec![Action::SendVerified]),
            (State::Running, Event::Released) => (State::Released, vec![Action::RecordReleased]),
            (State::Running, Event::Lost) => (State::Released, vec![]),
            // It runs here, whatever the peer says.
            (State::Running, _) => return Vec::new(),
            (State::Released | State::Aborted | State::Broken, _) => return Vec::new(),
            // Before COMMIT, whatever is unexpected ends it. The record comes before the word.
            _ => self.abort(),
        };
        self.has_acquired |= next == State::Acquiring;
        self.state = next;
        actions
    }

    fn abort(&self) -> (State, Vec<Action>) {
        if matches!(
            self.state,
            State::Receiving | State::Loading | State::Acquiring
        ) {
            // Without READY there is no give-up, and so nobody who could be in doubt.
            // The record goes last: until then it tells what is left to do.
            let mut actions = vec![Action::SendAborted];
            actions.extend(Self::farewell(self.has_acquired));
            actions.push(Action::RecordNotCome);
            return (State::Aborted, actions);
        }
        (State::Aborting, vec![Action::RecordAborted])
    }

    /// What is left to do when the guest does not come. What was begun to be acquired is given back
    /// even where acquiring it failed: it may have been acquired in part.
    fn farewell(has_acquired: bool) -> Vec<Action> {
        let mut actions = vec![Action::CloseLanes, Action::Discard];
        if has_acquired {
            actions.push(Action::ReleaseOutside);
        }
        actions
    }
}
