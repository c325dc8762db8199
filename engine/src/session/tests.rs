//! Both machines against each other, over every order of events that a small world allows.

use std::collections::{HashSet, VecDeque};

use super::source::{Action as SourceAction, Event as SourceEvent, State as SourceState};
use super::{DestinationSession, SourceSession, StayReason};
use crate::session::destination::{
    Action as DestinationAction, Event as DestinationEvent, State as DestinationState,
};

/// What travels between the two, and can be lost with the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Word {
    Hello,
    Prepare,
    Ready,
    Commit,
    Running,
    Verify,
    Verified,
    Released,
    Abort,
    Aborted,
}

/// Both sides, the connection between them, and who may run the guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    source: SourceSession,
    /// `None` until HELLO arrived.
    destination: Option<DestinationSession>,
    to_destination: VecDeque<Word>,
    to_source: VecDeque<Word>,
    connected: bool,
    source_runs: bool,
    destination_runs: bool,
    /// Whether a vCPU may have been entered there: the guest's life went on, if only for a moment.
    destination_may_have_run: bool,
    given_up: bool,
    rounds: u8,
}

impl World {
    fn new() -> Self {
        Self {
            source: SourceSession::new(),
            destination: None,
            to_destination: VecDeque::new(),
            to_source: VecDeque::new(),
            connected: true,
            source_runs: true,
            destination_runs: false,
            destination_may_have_run: false,
            given_up: false,
            rounds: 0,
        }
    }

    fn source_event(mut self, event: SourceEvent) -> Self {
        for action in self.source.on(event) {
            match action {
                SourceAction::SendHello => self.to_destination.push_back(Word::Hello),
                SourceAction::SendPrepare => self.to_destination.push_back(Word::Prepare),
                SourceAction::RecordGiveUp => self.given_up = true,
                SourceAction::SendCommit => {
                    assert!(self.given_up, "COMMIT before the give-up");
                    self.to_destination.push_back(Word::Commit);
                }
                SourceAction::Verify => self.to_destination.push_back(Word::Verify),
                SourceAction::SendReleased => self.to_destination.push_back(Word::Released),
                SourceAction::SendAbort => self.to_destination.push_back(Word::Abort),
                SourceAction::Pause => self.source_runs = false,
                SourceAction::Resume => self.source_runs = true,
                SourceAction::StartRound => self.rounds = (self.rounds + 1).min(2),
                SourceAction::Open
                | SourceAction::Judge
                | SourceAction::StartFinalRound
                | SourceAction::Save
                | SourceAction::FenceLanes
                | SourceAction::CloseLanes
                | SourceAction::Hold => {}
            }
        }
        self
    }

    fn destination_event(mut self, event: DestinationEvent) -> Self {
        let Some(destination) = &mut self.destination else {
            return self;
        };
        // What these events say is so before the session hears of it.
        match (destination.state(), event) {
            (DestinationState::Committed, DestinationEvent::Entered) => {
                self.destination_runs = true;
                self.destination_may_have_run = true;
            }
            (DestinationState::Committed, DestinationEvent::NotEntered) => {
                self.destination_may_have_run = true;
            }
            _ => {}
        }
        for action in destination.on(event) {
            match action {
                DestinationAction::SendReady => self.to_source.push_back(Word::Ready),
                DestinationAction::SendRunning => self.to_source.push_back(Word::Running),
                DestinationAction::SendVerified => self.to_source.push_back(Word::Verified),
                DestinationAction::SendAborted => self.to_source.push_back(Word::Aborted),
                DestinationAction::RecordAborted | DestinationAction::Discard => assert!(
                    !self.destination_may_have_run,
                    "given back, but it may have run: {event:?}"
                ),
                DestinationAction::Load
                | DestinationAction::RecordOwnership
                | DestinationAction::Run
                | DestinationAction::CheckPages
                | DestinationAction::CloseLanes => {}
            }
        }
        self
    }

    /// Every world that one step leads to.
    fn successors(&self) -> Vec<Self> {
        let mut worlds = Vec::new();
        let from_source = |event| self.clone().source_event(event);
        let local: &[SourceEvent] = match self.source.state() {
            SourceState::Created => &[SourceEvent::Begin],
            SourceState::Opening => &[SourceEvent::Opened],
            SourceState::Copying if self.rounds < 2 => &[
                SourceEvent::RoundDone,
                SourceEvent::Continue,
                SourceEvent::Converged,
            ],
            SourceState::Copying => &[SourceEvent::Converged],
            SourceState::Pausing => &[SourceEvent::Paused],
            SourceState::Finishing { .. } => &[SourceEvent::RoundDone],
            SourceState::Saving => &[
                SourceEvent::Saved { dirtied: true },
                SourceEvent::Saved { dirtied: false },
            ],
            _ => &[],
        };
        worlds.extend(local.iter().copied().map(from_source));
        worlds.push(from_source(SourceEvent::Stop(StayReason::Cancelled)));
        if let Some(destination) = &self.destination {
            let from_destination = |event| self.clone().destination_event(event);
            match destination.state() {
                DestinationState::Loading => {
                    worlds.push(from_destination(DestinationEvent::Loaded));
                }
                DestinationState::Committed => {
                    worlds.push(from_destination(DestinationEvent::Entered));
                    worlds.push(from_destination(DestinationEvent::NotEntered));
                    worlds.push(from_destination(DestinationEvent::NeverEntered));
                }
                _ => {}
            }
            worlds.push(from_destination(DestinationEvent::Failed));
        }
        if self.connected {
            worlds.extend(self.deliver_to_destination());
            worlds.extend(self.deliver_to_source());
            worlds.push(self.cut());
        }
        worlds
    }

    fn deliver_to_destination(&self) -> Option<Self> {
        let mut world = self.clone();
        let word = world.to_destination.pop_front()?;
        Some(match word {
            Word::Hello => {
                world.destination = Some(DestinationSession::new());
                world.source_event(SourceEvent::Welcome)
            }
            Word::Prepare => world.destination_event(DestinationEvent::Prepare),
            Word::Commit => world.destination_event(DestinationEvent::Commit),
            Word::Verify => world
                .destination_event(DestinationEvent::VerifyPages)
                .destination_event(DestinationEvent::VerifyEnd),
            Word::Released => world.destination_event(DestinationEvent::Released),
            Word::Abort => world.destination_event(DestinationEvent::Abort),
            word => panic!("the source said {word:?}"),
        })
    }

    fn deliver_to_source(&self) -> Option<Self> {
        let mut world = self.clone();
        let word = world.to_source.pop_front()?;
        Some(world.source_event(match word {
            Word::Ready => SourceEvent::Ready,
            Word::Running => SourceEvent::Running,
            Word::Verified => SourceEvent::Verified,
            Word::Aborted => SourceEvent::Aborted,
            word => panic!("the destination said {word:?}"),
        }))
    }

    /// The connection breaks: what was on the way is gone, and both sides notice.
    fn cut(&self) -> Self {
        let mut world = self.clone();
        world.connected = false;
        world.to_destination.clear();
        world.to_source.clear();
        let mut world = world
            .source_event(SourceEvent::Lost)
            .destination_event(DestinationEvent::Lost);
        world.to_destination.clear();
        world.to_source.clear();
        world
    }
}

#[test]
fn no_order_of_events_makes_two_owners_or_loses_the_guest() {
    let mut seen = HashSet::from([World::new()]);
    let mut open = vec![World::new()];
    let (mut moved, mut stayed, mut unknown, mut handed_back) = (0, 0, 0, 0);
    while let Some(world) = open.pop() {
        assert!(
            !(world.source_runs && world.destination_may_have_run),
            "two owners: {world:?}"
        );
        match world.source.state() {
            SourceState::Moved => {
                moved += 1;
                assert!(
                    world.destination_runs,
                    "freed here, runs nowhere: {world:?}"
                );
            }
            SourceState::Stayed(_) => {
                stayed += 1;
                handed_back += u32::from(world.given_up);
                assert!(world.source_runs, "stayed, but does not run: {world:?}");
            }
            SourceState::Unknown => {
                unknown += 1;
                assert!(
                    world.given_up && !world.source_runs,
                    "held without need: {world:?}"
                );
            }
            _ => {}
        }
        for next in world.successors() {
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    assert!(
        moved > 0 && stayed > 0 && unknown > 0 && handed_back > 0,
        "{moved} {stayed} {unknown} {handed_back}"
    );
    assert!(seen.len() > 100, "only {} worlds", seen.len());
}

#[test]
fn before_the_give_up_the_guest_resumes_before_anything_else() {
    let mut session = SourceSession::new();
    let events = [
        SourceEvent::Begin,
        SourceEvent::Welcome,
        SourceEvent::Opened,
        SourceEvent::RoundDone,
        SourceEvent::Converged,
        SourceEvent::Paused,
        SourceEvent::RoundDone,
        SourceEvent::Saved { dirtied: true },
        SourceEvent::RoundDone,
    ];
    for event in events {
        session.on(event);
    }
    assert_eq!(session.state(), SourceState::Preparing);
    assert_eq!(
        session.on(SourceEvent::Lost),
        vec![
            SourceAction::Resume,
            SourceAction::SendAbort,
            SourceAction::CloseLanes
        ]
    );
}

#[test]
fn law_2_pages_go_out_twice_only_behind_a_fence() {
    let mut session = SourceSession::new();
    let events = [
        SourceEvent::Begin,
        SourceEvent::Welcome,
        SourceEvent::Opened,
        SourceEvent::Converged,
        SourceEvent::Paused,
        SourceEvent::RoundDone,
    ];
    for event in events {
        session.on(event);
    }
    assert_eq!(
        session.on(SourceEvent::Saved { dirtied: true }),
        vec![SourceAction::FenceLanes, SourceAction::StartFinalRound]
    );
}

#[test]
fn behind_the_give_up_a_cancel_is_not_heeded_and_a_lost_link_holds_the_guest() {
    let mut session = SourceSession {
        state: SourceState::Committed,
    };
    assert!(!session.is_before_give_up());
    assert!(
        session
            .on(SourceEvent::Stop(StayReason::Cancelled))
            .is_empty()
    );
    assert_eq!(
        session.on(SourceEvent::Lost),
        vec![SourceAction::Hold, SourceAction::CloseLanes]
    );
    assert_eq!(session.state(), SourceState::Unknown);
}

#[test]
fn behind_commit_the_destination_hands_back_only_what_was_never_entered() {
    let committed = || {
        let mut session = DestinationSession::new();
        for event in [
            DestinationEvent::Prepare,
            DestinationEvent::Loaded,
            DestinationEvent::Commit,
        ] {
            session.on(event);
        }
        session
    };
    let mut session = committed();
    assert_eq!(
        session.on(DestinationEvent::NeverEntered),
        vec![
            DestinationAction::RecordAborted,
            DestinationAction::SendAborted,
            DestinationAction::CloseLanes,
            DestinationAction::Discard,
        ]
    );
    assert_eq!(session.state(), DestinationState::Aborted);
    assert!(session.on(DestinationEvent::Commit).is_empty());

    let mut session = committed();
    assert_eq!(
        session.on(DestinationEvent::NotEntered),
        vec![DestinationAction::CloseLanes]
    );
    assert_eq!(session.state(), DestinationState::Broken);
}
