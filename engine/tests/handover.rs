//! One owner, always: whatever fails, and whenever, the guest runs in one place or is kept paused.
//!
//! What holds for every move (never two running guests, a report that says what is, a reason for
//! what went wrong) is asserted by the session itself; see `Ended::check`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that meets an impossible value should stop there and say so"
)]

mod simulated;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dunlin_engine::destination::ReceiveError;
use dunlin_engine::guest::{GuestError, RunError};
use dunlin_engine::protocol::{Abort, Message, MessageKind};
use dunlin_engine::records::{Durability, Entry};
use dunlin_engine::report::Outcome;
use dunlin_engine::session::Decision;
use dunlin_engine::settings::MoveHandle;
use dunlin_transports::inmemory::{Faults, Place, Side as Registering};
use dunlin_transports::lane::LaneNumber;

use simulated::by_hand::DestinationByHand;
use simulated::machine::Side;
use simulated::records::Asked;
use simulated::session::Ended;
use simulated::{Call, Hooks, Session};

/// What hooks need of a session that is made after them.
#[derive(Clone, Default)]
struct Later(Arc<Mutex<Option<Steering>>>);

struct Steering {
    faults: Arc<Faults>,
    handle: Arc<MoveHandle>,
}

impl Later {
    fn know(&self, session: &Session) {
        *self.0.lock().unwrap() = Some(Steering {
            faults: Arc::clone(&session.faults),
            handle: Arc::clone(&session.handle),
        });
    }

    fn faults(&self) -> Arc<Faults> {
        Arc::clone(&self.0.lock().unwrap().as_ref().unwrap().faults)
    }

    fn cancel(&self) {
        self.0.lock().unwrap().as_ref().unwrap().handle.cancel();
    }
}

fn session(hooks: Hooks) -> Session {
    let session = Session::new(&[600, 64], hooks);
    session.source.write_all(0..100, 1);
    session
}

fn broken() -> GuestError {
    GuestError::message("vCPU 1 is on strike")
}

// ---- the good way ----

#[test]
fn a_guest_moves_and_its_home_keeps_it_paused() {
    let ended = session(Hooks::default()).run();
    ended.assert_moved();
    assert_eq!(ended.report.guest.epoch, 8);
    assert_eq!(ended.received.as_ref().unwrap().epoch, 8);
    assert_eq!(ended.source.count(Call::Resume), 0);
    assert_eq!(ended.source.count(Call::Stop), 1);
    assert!(!ended.destination().is_discarded());
    assert_eq!(ended.report.reason, None);
}

#[test]
fn a_guest_that_moved_can_move_on() {
    let ended = session(Hooks::default()).run();
    ended.assert_moved();
    // The destination becomes a source: the same memory on another machine.
    let there = ended.destination().clone();
    let next = Session::new(&[600, 64], Hooks::default());
    (0..100).for_each(|page| {
        assert_eq!(there.page(page), ended.source.page(page));
        next.source.write(page, 2);
    });
    next.run().assert_moved();
}

// ---- cancelled ----

#[test]
fn cancelled_before_the_welcome() {
    let later = Later::default();
    let mut session = session(Hooks::default());
    later.know(&session);
    session.create = Some(Box::new(move || {
        later.cancel();
        // The source is heard of on its own time; until then room is being made.
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    }));
    let ended = session.run();
    assert_eq!(ended.source.count(Call::Pause), 0);
    ended.assert_stayed(Outcome::Cancelled);
}

#[test]
fn cancelled_in_a_round() {
    let later = Later::default();
    let session = session(Hooks {
        rearm_end: Some(Box::new({
            let later = later.clone();
            move |_, _, _| {
                later.faults().stall(LaneNumber(0));
                later.faults().stall(LaneNumber(1));
                later.cancel();
            }
        })),
        ..Hooks::default()
    });
    later.know(&session);
    let ended = session.run();
    assert_eq!(ended.source.count(Call::Pause), 0);
    assert_eq!(ended.source.count(Call::Stop), 1);
    ended.assert_stayed(Outcome::Cancelled);
}

#[test]
fn cancelled_while_pausing() {
    let later = Later::default();
    let session = session(Hooks {
        pause: Some(Box::new({
            let later = later.clone();
            move |_| {
                later.cancel();
                Ok(())
            }
        })),
        ..Hooks::default()
    });
    later.know(&session);
    let ended = session.run();
    assert_eq!(ended.source.count(Call::Resume), 1);
    assert_eq!(ended.source.count(Call::Save), 0);
    ended.assert_stayed(Outcome::Cancelled);
}

#[test]
fn cancelled_while_saving() {
    for dirties in [false, true] {
        let later = Later::default();
        let session = session(Hooks {
            save: Some(Box::new({
                let later = later.clone();
                move |machine| {
                    if dirties {
                        machine.write(3, 3);
                    }
                    later.cancel();
                    Ok(())
                }
            })),
            ..Hooks::default()
        });
        later.know(&session);
        let ended = session.run();
        assert_eq!(ended.source.count(Call::Resume), 1);
        ended.assert_stayed(Outcome::Cancelled);
    }
}

#[test]
fn cancelled_while_the_destination_loads() {
    let later = Later::default();
    let mut session = session(Hooks::default());
    later.know(&session);
    session.hooks.load = Some(Box::new(move |_| {
        later.cancel();
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    }));
    let ended = session.run();
    assert_eq!(ended.destination().count(Call::Load), 1);
    assert_eq!(ended.destination().count(Call::Run), 0);
    ended.assert_stayed(Outcome::Cancelled);
}

#[test]
fn a_cancel_behind_the_give_up_is_too_late() {
    let later = Later::default();
    let mut session = session(Hooks::default());
    later.know(&session);
    session.hooks.run = Some(Box::new(move |_| {
        later.cancel();
        std::thread::sleep(Duration::from_millis(50));
        Ok(())
    }));
    session.run().assert_moved();
}

// ---- the control connection is cut, or falls silent ----

/// How a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Cut,
    Silent(Place),
}

impl End {
    fn all() -> [Self; 3] {
        [
            Self::Cut,
            Self::Silent(Place::ControlToDestination),
            Self::Silent(Place::ControlToSource),
        ]
    }

    /// Makes a move whose control connection ends when a message of this kind is about to be sent.
    fn at(self, kind: MessageKind) -> Ended {
        let session = session(Hooks {
            self_check: true,
            ..Hooks::default()
        });
        let session = Session {
            hooks: Hooks {
                self_check: true,
                ..Hooks::default()
            },
            ..session
        };
        session.at(kind, move |faults| match self {
            Self::Cut => faults.cut_after(Place::Control, 0),
            Self::Silent(place) => faults.silence(place),
        });
        session.run()
    }
}

#[test]
fn before_commit_a_lost_connection_leaves_the_guest_at_home() {
    use MessageKind::{Hello, Prepare, Ready, Welcome};
    for kind in [Hello, Welcome, Prepare, Ready] {
        for end in End::all() {
            if (kind, end) == (Ready, End::Silent(Place::ControlToDestination)) {
                // READY arrives then: it is COMMIT that is lost.
                continue;
            }
            println!("{kind:?} {end:?}");
            let ended = end.at(kind);
            if let Some(destination) = &ended.destination {
                assert_eq!(destination.count(Call::Run), 0);
            }
            ended.assert_stayed(Outcome::PeerFailed);
        }
    }
}

#[test]
fn a_lost_lane_leaves_the_guest_at_home() {
    for cut_in_pause in [false, true] {
        let later = Later::default();
        let cut = {
            let later = later.clone();
            move || later.faults().cut_after(Place::Lane(LaneNumber(1)), 0)
        };
        let mut hooks = Hooks::default();
        if cut_in_pause {
            hooks.pause = Some(Box::new(move |_| {
                cut();
                Ok(())
            }));
        } else {
            hooks.rearm_begin = Some(Box::new(move |_, _, _| cut()));
        }
        let session = session(hooks);
        later.know(&session);
        let ended = session.run();
        assert_eq!(ended.source.count(Call::Resume), usize::from(cut_in_pause));
        ended.assert_stayed(Outcome::PeerFailed);
    }
}

/// Nothing inside the pause waits for a disk: what is recorded there is made durable behind it.
#[test]
fn no_entry_of_the_pause_is_durable_and_all_are_made_so_afterwards() {
    use Durability::{Durable, Plain};
    let ended = session(Hooks::default()).run();
    assert_eq!(
        ended.source_asked,
        [
            Asked::Add(Entry::GivenUp, Plain),
            Asked::Sync,
            Asked::Add(Entry::Released, Durable),
        ]
    );
    assert_eq!(
        ended.destination_asked,
        [
            Asked::Add(Entry::Owned, Plain),
            Asked::Add(Entry::Running, Durable),
            Asked::Add(Entry::Released, Plain),
        ]
    );
    ended.assert_moved();
}

/// The destination gives up and records that; asked on a new connection, it says so.
#[test]
fn a_commit_that_never_arrives_is_settled_and_the_guest_goes_on_at_home() {
    for end in [End::Cut, End::Silent(Place::Control)] {
        let ended = end.at(MessageKind::Commit);
        assert_eq!(ended.source.count(Call::Resume), 1);
        assert_eq!(ended.destination().count(Call::Run), 0);
        assert!(ended.received.is_err());
        let in_doubt = ended.report.in_doubt.as_ref().expect("it was in doubt");
        assert_eq!(in_doubt.settled_by, "answer", "{end:?}");
        ended.assert_reason("it never ran the guest");
        ended.assert_stayed(Outcome::PeerFailed);
    }
}

/// The way there is dead, the way back is not: the destination's ABORTED brings the guest home.
#[test]
fn a_commit_that_never_arrives_is_settled_by_aborted_where_that_gets_through() {
    let ended = End::Silent(Place::ControlToDestination).at(MessageKind::Commit);
    assert_eq!(ended.report.outcome, Outcome::PeerFailed);
    assert_eq!(ended.source.count(Call::Resume), 1);
    assert_eq!(ended.destination().count(Call::Run), 0);
    assert!(ended.received.is_err());
}

#[test]
fn a_running_that_never_arrives_is_settled_and_the_guest_is_freed_at_home() {
    for end in [End::Cut, End::Silent(Place::ControlToSource)] {
        let ended = end.at(MessageKind::Running);
        ended.assert_moved();
        assert_eq!(ended.source.count(Call::Resume), 0);
        assert!(ended.destination().runs());
        let in_doubt = ended.report.in_doubt.as_ref().expect("it was in doubt");
        assert_eq!(in_doubt.settled_by, "answer", "{end:?}");
    }
}

#[test]
fn once_it_runs_there_nothing_brings_it_back() {
    use MessageKind::{Released, Verified, VerifyEnd, VerifyPages};
    for kind in [VerifyPages, VerifyEnd, Verified, Released] {
        for end in End::all() {
            println!("{kind:?} {end:?}");
            let ended = end.at(kind);
            ended.assert_moved();
            assert_eq!(ended.source.count(Call::Resume), 0);
        }
    }
}

#[test]
fn an_aborted_behind_commit_brings_the_guest_back() {
    let mut there = DestinationByHand::new(&[600], |_| ());
    there.committed();
    there
        .by_hand
        .say(&Message::Aborted(Abort::new("it has no power")));
    let report = there.ended();
    assert_eq!(report.outcome, Outcome::PeerFailed);
    assert!(report.reason.unwrap().contains("it has no power"));
    assert!(there.machine.runs());
    assert_eq!(there.machine.count(Call::Resume), 1);
}

#[test]
fn nothing_but_aborted_brings_it_back_behind_commit() {
    for word in [
        Message::Refused(dunlin_engine::protocol::Refused::new("no")),
        Message::Abort(Abort::new("no")),
        Message::Released,
        Message::Commit,
        Message::Ready(Default::default()),
        Message::Verified(Default::default()),
    ] {
        let mut there = DestinationByHand::new(&[600], |_| ());
        there.committed();
        there.by_hand.say(&word);
        let report = there.ended();
        assert_eq!(report.outcome, Outcome::DiscardedByHand, "{word:?}");
        assert!(report.reason.is_some(), "{word:?}");
        assert!(!there.machine.runs(), "{word:?}");
        assert_eq!(there.machine.count(Call::Resume), 0);
    }
}

// ---- one side can't ----

#[test]
fn a_destination_without_room_refuses_and_says_why() {
    let mut session = session(Hooks::default());
    session.create = Some(Box::new(|| {
        Err(GuestError::message("512 GiB are needed, 3 are free"))
    }));
    let ended = session.run();
    ended.assert_reason("512 GiB are needed");
    assert!(matches!(ended.received, Err(ReceiveError::Refused(_))));
    ended.assert_stayed(Outcome::Refused);
}

#[test]
fn a_section_that_the_destination_does_not_know_is_named() {
    let ended = session(Hooks {
        section: Some("flux-capacitor"),
        ..Hooks::default()
    })
    .run();
    ended.assert_reason("flux-capacitor");
    assert_eq!(ended.destination().count(Call::Run), 0);
    ended.assert_stayed(Outcome::PeerFailed);
}

#[test]
fn a_state_that_does_not_load_leaves_the_guest_at_home() {
    let mut session = session(Hooks::default());
    session.hooks.load = Some(Box::new(|_| Err(broken())));
    let ended = session.run();
    ended.assert_reason("on strike");
    ended.assert_stayed(Outcome::PeerFailed);
}

/// It may have run for a moment: only a person can decide.
#[test]
fn a_guest_that_may_have_run_and_does_not_is_left_to_a_person() {
    for decision in [Decision::ResumeHere, Decision::DiscardHere] {
        let mut session = session(Hooks::default());
        session.hooks.run = Some(Box::new(|_| Err(RunError::MayHaveRun(broken()))));
        session.decision = ("may have run there, and does not any more", Some(decision));
        let ended = session.run();
        assert!(matches!(ended.received, Err(ReceiveError::Broken(_))));
        ended.assert_reason("it is switched off");
        let in_doubt = ended.report.in_doubt.as_ref().expect("it was in doubt");
        assert_eq!(in_doubt.settled_by, "person");
        assert!(in_doubt.asked > 0);
        let resumed = decision == Decision::ResumeHere;
        assert_eq!(ended.source.count(Call::Resume), usize::from(resumed));
        let outcome = match decision {
            Decision::ResumeHere => Outcome::ResumedByHand,
            Decision::DiscardHere => Outcome::DiscardedByHand,
        };
        assert_eq!(ended.report.outcome, outcome);
    }
}

/// It may be held for days: its memory is not pinned meanwhile.
#[test]
fn a_guest_that_is_held_is_not_pinned() {
    let mut session = session(Hooks::default());
    session.faults.register_memory();
    session.hooks.run = Some(Box::new(|_| Err(RunError::MayHaveRun(broken()))));
    let (faults, handle) = (Arc::clone(&session.faults), Arc::clone(&session.handle));
    let person = std::thread::spawn(move || {
        let limit = Instant::now() + Duration::from_secs(20);
        let is_unpinned = || {
            let counters = faults.registrations(Registering::Source);
            counters.made > 0 && counters.bytes == 0
        };
        while !is_unpinned() && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(1));
        }
        let was_unpinned = is_unpinned();
        handle.decide(Decision::DiscardHere, "it is switched off");
        was_unpinned
    });
    let ended = session.run();
    assert!(person.join().unwrap(), "it is held and pinned");
    assert_eq!(ended.report.outcome, Outcome::DiscardedByHand);
}

#[test]
fn a_guest_that_was_never_entered_goes_back_even_behind_commit() {
    let mut session = session(Hooks::default());
    session.hooks.run = Some(Box::new(|_| Err(RunError::NeverEntered(broken()))));
    let ended = session.run();
    ended.assert_reason("on strike");
    assert_eq!(ended.destination().count(Call::Run), 1);
    assert_eq!(ended.source.count(Call::Resume), 1);
    assert!(matches!(ended.received, Err(ReceiveError::Aborted(_))));
    ended.assert_stayed(Outcome::PeerFailed);
}

#[test]
fn a_guest_that_can_t_be_paused_goes_on() {
    let ended = session(Hooks {
        pause: Some(Box::new(|_| Err(broken()))),
        ..Hooks::default()
    })
    .run();
    ended.assert_reason("on strike");
    assert_eq!(ended.source.count(Call::Resume), 1);
    assert_eq!(ended.source.count(Call::Save), 0);
    ended.assert_stayed(Outcome::Failed);
}

#[test]
fn a_guest_whose_state_can_t_be_saved_goes_on() {
    let ended = session(Hooks {
        save: Some(Box::new(|_| Err(broken()))),
        ..Hooks::default()
    })
    .run();
    ended.assert_reason("on strike");
    assert_eq!(ended.source.count(Call::Resume), 1);
    ended.assert_stayed(Outcome::Failed);
}

#[test]
fn the_guest_goes_on_before_anything_is_cleaned_up() {
    let later = Later::default();
    let saw = Arc::new(Mutex::new(None));
    let session = session(Hooks {
        save: Some(Box::new(|_| Err(broken()))),
        resume: Some(Box::new({
            let saw = Arc::clone(&saw);
            move |machine| *saw.lock().unwrap() = Some(machine.count(Call::Stop))
        })),
        ..Hooks::default()
    });
    later.know(&session);
    session.run();
    assert_eq!(*saw.lock().unwrap(), Some(0));
}

// ---- nothing waits without bound ----

#[test]
fn the_move_s_time_limit_ends_it() {
    let later = Later::default();
    let mut session = session(Hooks {
        rearm_end: Some(Box::new({
            let later = later.clone();
            move |_, _, _| {
                later.faults().stall(LaneNumber(0));
                later.faults().stall(LaneNumber(1));
            }
        })),
        ..Hooks::default()
    });
    session.set(|settings| settings.timeout = Some(Duration::from_millis(150)));
    later.know(&session);
    session.run().assert_stayed(Outcome::TimedOut);
}

#[test]
fn a_lane_that_never_confirms_ends_the_move() {
    let later = Later::default();
    let session = session(Hooks {
        rearm_end: Some(Box::new({
            let later = later.clone();
            move |_, _, _| {
                later.faults().stall(LaneNumber(0));
                later.faults().stall(LaneNumber(1));
            }
        })),
        ..Hooks::default()
    });
    later.know(&session);
    session.run().assert_stayed(Outcome::PeerFailed);
}

#[test]
fn the_cap_ends_a_pause_wherever_it_is() {
    for place in ["pause", "save", "load"] {
        println!("{place}");
        let slow = || {
            std::thread::sleep(Duration::from_millis(150));
            Ok(())
        };
        let mut hooks = Hooks::default();
        match place {
            "pause" => hooks.pause = Some(Box::new(move |_| slow())),
            "save" => hooks.save = Some(Box::new(move |_| slow())),
            _ => {}
        }
        let mut session = session(hooks);
        if place == "load" {
            session.hooks.load = Some(Box::new(move |_| slow()));
        }
        session.set(|settings| settings.blackout_cap = Some(Duration::from_millis(80)));
        let ended = session.run();
        assert_eq!(ended.source.count(Call::Resume), 1);
        let blackout = ended.report.blackout.as_ref().unwrap();
        assert_eq!(blackout.cap_ns, 80_000_000);
        ended.assert_stayed(Outcome::BlackoutCap);
    }
}

#[test]
fn a_destination_that_only_answers_pings_behind_commit_is_not_waited_for_for_ever() {
    let mut there = DestinationByHand::new(&[600], |settings| {
        settings.blackout_cap = Some(Duration::from_millis(200));
    });
    there.committed();
    // Alive, and silent about what counts.
    there.by_hand.hear_out();
    let report = there.ended();
    assert_eq!(report.outcome, Outcome::DiscardedByHand);
    assert!(report.reason.is_some());
    assert!(!there.machine.runs());
}

#[test]
fn a_slow_destination_is_not_a_silent_one() {
    let mut session = session(Hooks::default());
    let slow = || std::thread::sleep(simulated::session::PEER_TIMEOUT * 2);
    session.create = Some(Box::new(move || {
        slow();
        Ok(())
    }));
    session.hooks.load = Some(Box::new(move |_| {
        slow();
        Ok(())
    }));
    let ended = session.run();
    ended.assert_moved();
    assert!(ended.source.ownership().runs(Side::Destination));
}

#[test]
fn a_destination_that_compares_slowly_is_not_a_silent_one() {
    // A message for each region, more than may wait: the control connection is held up.
    let regions = [1; 40];
    let checks = || Hooks {
        self_check: true,
        check: Some(Box::new(|_| std::thread::sleep(Duration::from_millis(30)))),
        ..Hooks::default()
    };
    let mut session = Session::new(&regions, checks());
    session.hooks = checks();
    let ended = session.run();
    ended.assert_moved();
    assert_eq!(ended.report.verification.pages_checked, 40);
    assert_eq!(ended.report.verification.equal, Some(true));
}
