//! When the guest is paused, what limits are kept while it is not, and what is told of it all.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that meets an impossible value should stop there and say so"
)]

mod simulated;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dunlin_engine::report::{Outcome, Report};
use dunlin_engine::settings::{MoveHandle, OnStall, Verify};
use dunlin_transports::inmemory::Place;
use dunlin_transports::lane::LaneNumber;
use dunlin_transports::memory::PAGE_BYTES;

use simulated::machine::{Machine, VCPUS};
use simulated::session::Ended;
use simulated::{Call, Hooks, Session, wait_until};

/// Pages of a chunk: what a lane claims, and what the pacer is asked about at once.
const CHUNK_PAGES: u64 = dunlin_engine::chunk::CHUNK_PAGES as u64;

/// A budget that no prediction meets.
const NO_BUDGET: Duration = Duration::from_nanos(1);

/// A guest that dirties so many pages by the end of each round, while it runs; the last number
/// goes on for ever.
fn dirties(pages: &'static [u64]) -> Hooks {
    let round = AtomicUsize::new(0);
    Hooks {
        collect: Some(Box::new(move |machine| {
            if machine.runs() {
                let round = round.fetch_add(1, Ordering::SeqCst);
                let count = pages.get(round).or(pages.last()).unwrap();
                machine.write_all(0..*count, 100 + round as u64);
            }
        })),
        ..Hooks::default()
    }
}

fn session(hooks: Hooks) -> Session {
    let session = Session::new(&[4 * CHUNK_PAGES, 70], hooks);
    session.source.write_all(0..3 * CHUNK_PAGES, 1);
    session
}

// ---- the budget ----

#[test]
fn the_guest_is_paused_once_the_prediction_is_within_the_budget_and_no_sooner() {
    // At the pace that the delay makes, two chunks take 100 ms and a page takes next to nothing.
    let mut session = session(dirties(&[2 * CHUNK_PAGES, 2 * CHUNK_PAGES, 1]));
    let faults = Arc::clone(&session.faults);
    for lane in [0, 1] {
        faults.delay(Place::Lane(LaneNumber(lane)), Duration::from_millis(150));
    }
    let budget = Duration::from_millis(50);
    session.set(|settings| settings.max_blackout = budget);
    let ended = session.run();
    ended.assert_moved();
    let rounds = &ended.report.rounds;
    let running: Vec<_> = rounds.iter().filter(|round| !round.is_final).collect();
    assert!(running.len() >= 3, "{rounds:?}");
    let (last, before) = running.split_last().unwrap();
    let within = |predicted_ns| Duration::from_nanos(predicted_ns) <= budget;
    assert!(within(last.predicted_blackout_ns), "{rounds:?}");
    let early = before
        .iter()
        .find(|round| within(round.predicted_blackout_ns));
    assert_eq!(early, None);
}

#[test]
fn a_guest_that_dirties_too_fast_stays_and_is_never_paused() {
    let mut session = session(dirties(&[100]));
    session.set(|settings| settings.max_blackout = NO_BUDGET);
    let ended = session.run();
    assert_eq!(ended.source.count(Call::Pause), 0);
    assert_eq!(ended.report.blackout, None);
    ended.assert_reason("the budget");
    ended.assert_stayed(Outcome::NotConverging);
}

#[test]
fn where_a_switchover_is_asked_for_it_is_made_over_the_budget() {
    let mut session = session(dirties(&[100]));
    session.set(|settings| {
        settings.max_blackout = NO_BUDGET;
        settings.on_stall = OnStall::Switchover;
    });
    let ended = session.run();
    ended.assert_moved();
    let blackout = ended.report.blackout.as_ref().unwrap();
    assert!(blackout.predicted_ns > blackout.budget_ns);
}

#[test]
fn but_never_over_the_cap() {
    let mut session = session(dirties(&[100]));
    session.set(|settings| {
        settings.max_blackout = NO_BUDGET;
        settings.blackout_cap = None;
        settings.on_stall = OnStall::Switchover;
    });
    let ended = session.run();
    assert_eq!(ended.source.count(Call::Pause), 0);
    ended.assert_stayed(Outcome::NotConverging);
}

#[test]
fn the_last_round_that_is_allowed_is_the_last() {
    for max_rounds in [1, 2] {
        let mut session = session(dirties(&[100]));
        session.set(|settings| {
            settings.max_blackout = NO_BUDGET;
            settings.max_rounds = max_rounds;
        });
        let ended = session.run();
        assert_eq!(ended.report.rounds.len(), max_rounds as usize);
        ended.assert_stayed(Outcome::NotConverging);
    }
}

/// What a hook of the source steers a move by that is made after it.
#[derive(Clone, Default)]
struct Steering(Arc<Mutex<Option<Arc<MoveHandle>>>>);

impl Steering {
    fn take(&self, session: &Session) {
        *self.0.lock().unwrap() = Some(Arc::clone(&session.handle));
    }

    fn handle(&self) -> Arc<MoveHandle> {
        Arc::clone(self.0.lock().unwrap().as_ref().unwrap())
    }
}

#[test]
fn a_budget_that_is_changed_on_the_way_counts_from_then_on() {
    let steering = Steering::default();
    let raised = Duration::from_secs(100);
    let mut session = session(Hooks {
        collect: Some(Box::new({
            let steering = steering.clone();
            let round = AtomicUsize::new(0);
            move |machine| {
                if machine.runs() {
                    machine.write_all(0..50, 3);
                    if round.fetch_add(1, Ordering::SeqCst) == 1 {
                        steering.handle().set_max_blackout(raised);
                    }
                }
            }
        })),
        ..Hooks::default()
    });
    session.set(|settings| settings.max_blackout = NO_BUDGET);
    steering.take(&session);
    let ended = session.run();
    ended.assert_moved();
    let running = ended.report.rounds.iter().filter(|round| !round.is_final);
    assert_eq!(running.count(), 2);
    let blackout = ended.report.blackout.unwrap();
    assert_eq!(u128::from(blackout.budget_ns), raised.as_nanos());
}

// ---- the bandwidth ----

/// A session at a byte a second, and how often its chunks were re-armed so far: a chunk that waits
/// for its bytes has been, so three of them say that both lanes wait.
fn at_a_byte_a_second() -> (Session, Arc<AtomicUsize>) {
    let rearmed = Arc::new(AtomicUsize::new(0));
    let mut session = session(Hooks {
        rearm_end: Some(Box::new({
            let rearmed = Arc::clone(&rearmed);
            move |_, _, _| {
                rearmed.fetch_add(1, Ordering::SeqCst);
            }
        })),
        ..Hooks::default()
    });
    session.set(|settings| {
        settings.max_bandwidth = Some(1);
        settings.timeout = Some(Duration::from_secs(8));
    });
    (session, rearmed)
}

#[test]
fn what_the_bandwidth_does_not_allow_is_not_sent_and_a_cancel_is_heeded_meanwhile() {
    let (session, rearmed) = at_a_byte_a_second();
    let (handle, faults) = (Arc::clone(&session.handle), Arc::clone(&session.faults));
    let canceller = std::thread::spawn(move || {
        wait_until("both lanes to wait", || rearmed.load(Ordering::SeqCst) == 3);
        std::thread::sleep(Duration::from_millis(50));
        let bytes =
            faults.bytes(Place::Lane(LaneNumber(0))) + faults.bytes(Place::Lane(LaneNumber(1)));
        handle.cancel();
        bytes
    });
    let ended = session.run();
    // The first take passes whole, and is paid for by those after it.
    assert_eq!(canceller.join().unwrap(), CHUNK_PAGES * PAGE_BYTES);
    ended.assert_stayed(Outcome::Cancelled);
}

#[test]
fn a_bandwidth_that_is_changed_on_the_way_counts_from_then_on() {
    let (session, rearmed) = at_a_byte_a_second();
    let handle = Arc::clone(&session.handle);
    let changer = std::thread::spawn(move || {
        wait_until("both lanes to wait", || rearmed.load(Ordering::SeqCst) == 3);
        handle.set_max_bandwidth(None);
    });
    session.run().assert_moved();
    changer.join().unwrap();
}

#[test]
fn the_final_round_is_not_held_back() {
    let steering = Steering::default();
    let session = session(Hooks {
        pause: Some(Box::new({
            let steering = steering.clone();
            move |machine| {
                steering.handle().set_max_bandwidth(Some(1));
                machine.write_all(0..4 * CHUNK_PAGES, 9);
                Ok(())
            }
        })),
        ..Hooks::default()
    });
    steering.take(&session);
    session.run().assert_moved();
}

// ---- the report ----

fn assert_adds_up(report: &Report) {
    let rounds = &report.rounds;
    for (number, round) in (1..).zip(rounds) {
        assert_eq!(round.number, number);
        assert!(round.skipped_pages <= round.zero_pages);
        let carried = round.dirty_pages - round.zero_pages;
        assert_eq!(round.sent_bytes, carried * PAGE_BYTES, "{round:?}");
        assert_eq!(
            round.is_final,
            round.predicted_blackout_ns == 0,
            "{round:?}"
        );
    }
    assert!(
        rounds.is_sorted_by_key(|round| round.is_final),
        "{rounds:?}"
    );
    let sent: u64 = rounds.iter().map(|round| round.sent_bytes).sum();
    assert_eq!(report.sent_bytes, sent);
    assert!(report.wire_bytes >= report.sent_bytes);
    let Some(blackout) = &report.blackout else {
        return;
    };
    let parts: u64 = blackout.parts.iter().map(|part| part.duration_ns).sum();
    assert_eq!(parts, blackout.total_ns, "{:?}", blackout.parts);
    let predicted = blackout.predicted_parts.iter();
    let predicted: u64 = predicted.map(|part| part.duration_ns).sum();
    assert_eq!(predicted, blackout.predicted_ns);
    let last = rounds.iter().rfind(|round| !round.is_final).unwrap();
    assert_eq!(last.predicted_blackout_ns, blackout.predicted_ns);
}

#[test]
fn the_report_of_a_move_adds_up() {
    let dirtying = dirties(&[300, 200, 100]);
    let mut session = session(Hooks {
        pause: Some(Box::new(|machine| {
            machine.write_all(100..140, 5);
            Ok(())
        })),
        // Not among the last pages, with which it might go out.
        save: Some(Box::new(|machine| {
            machine.write(150, 0);
            Ok(())
        })),
        ..dirtying
    });
    session.set(|settings| {
        settings.max_blackout = NO_BUDGET;
        settings.max_rounds = 3;
        settings.on_stall = OnStall::Switchover;
    });
    let ended = session.run();
    ended.assert_moved();
    let report = &ended.report;
    assert_adds_up(report);
    let finals = report.rounds.iter().map(|round| round.is_final);
    assert_eq!(
        finals.collect::<Vec<_>>(),
        [false, false, false, true, true]
    );
    assert_eq!(report.rounds[0].dirty_pages, 4 * CHUNK_PAGES + 70);
    assert_eq!(report.rounds[1].dirty_pages, 300);
    assert_eq!(report.rounds[4].dirty_pages, 1);

    let blackout = report.blackout.as_ref().unwrap();
    assert_eq!(blackout.vcpus_ns.len(), VCPUS as usize);
    assert!(
        blackout
            .vcpus_ns
            .iter()
            .all(|pause| *pause <= blackout.total_ns)
    );
    assert!(blackout.total_ns <= report.total_ns);
    let names: Vec<_> = blackout
        .parts
        .iter()
        .map(|part| part.name.as_str())
        .collect();
    let expected = [
        "park",
        "collect",
        "save-state",
        "final-round",
        "collect-again",
        "fence",
        "final-round",
        "send-prepare",
        "prepare-on-link",
        "fences",
        "digests",
        "load-state",
        "acquire",
        "revoke-access",
        "ready-on-link",
        "record-give-up",
        "commit",
        "commit-on-link",
        "record-ownership",
        "resume",
    ];
    assert_eq!(names, expected);
    assert_eq!(report.lanes, 2);
    assert_eq!(report.transport, "in-memory");
    assert_eq!(report.guest.dirty_tracking, ["simulated"]);
    assert_eq!(
        report.guest.memory_bytes,
        (4 * CHUNK_PAGES + 70) * PAGE_BYTES
    );
}

#[test]
fn the_report_of_a_pause_that_led_nowhere_adds_up() {
    let mut session = session(dirties(&[20]));
    session.hooks.load = Some(Box::new(|_| {
        Err(dunlin_engine::guest::GuestError::message("no"))
    }));
    let ended = session.run();
    assert_adds_up(&ended.report);
    let blackout = ended.report.blackout.as_ref().unwrap();
    assert_eq!(blackout.parts.last().unwrap().name, "resume");
    assert_eq!(ended.report.guest.epoch, 7);
    ended.assert_stayed(Outcome::PeerFailed);
}

// ---- comparing memory ----

/// A page that no round carries after the first.
const STILL_PAGE: u64 = 20;

/// A move with both sides able to check themselves; `damage` happens to the destination's memory
/// when all of it is there: before PREPARE, or when the guest is about to run.
fn compared(verify: Verify, damage_before_prepare: bool, damage_before_run: bool) -> Ended {
    let there: Arc<Mutex<Arc<Mutex<Option<Machine>>>>> = Arc::default();
    let mut session = session(Hooks {
        self_check: true,
        save: Some(Box::new({
            let there = Arc::clone(&there);
            move |_| {
                if damage_before_prepare {
                    let there = there.lock().unwrap();
                    let there = there.lock().unwrap();
                    there.as_ref().unwrap().flip_unmarked(STILL_PAGE, 1000);
                }
                Ok(())
            }
        })),
        ..Hooks::default()
    });
    session.hooks = Hooks {
        self_check: true,
        run: Some(Box::new(move |machine| {
            if damage_before_run {
                machine.flip_unmarked(STILL_PAGE, 1000);
            }
            Ok(())
        })),
        ..Hooks::default()
    };
    *there.lock().unwrap() = Arc::clone(&session.destination);
    session.set(|settings| settings.verify = verify);
    session.run()
}

#[test]
fn digests_of_all_memory_are_compared_before_the_handover() {
    let pages = 4 * CHUNK_PAGES + 70;
    let ended = compared(Verify::Full, false, false);
    ended.assert_moved();
    let verification = &ended.report.verification;
    assert_eq!(verification.method, "digests");
    assert_eq!(verification.equal, Some(true));
    assert_eq!(verification.pages_checked, pages);

    let ended = compared(Verify::Full, true, false);
    ended.assert_reason("memory differs");
    assert_eq!(ended.destination().count(Call::Run), 0);
    ended.assert_stayed(Outcome::PeerFailed);
}

#[test]
fn pages_are_compared_behind_the_handover() {
    let pages = 4 * CHUNK_PAGES + 70;
    let ended = compared(Verify::Auto, false, false);
    ended.assert_moved();
    let verification = &ended.report.verification;
    assert_eq!(verification.method, "pages");
    assert_eq!(verification.equal, Some(true));
    assert_eq!(
        (verification.pages_checked, verification.pages_same),
        (pages, pages)
    );
    assert_eq!(verification.blackout_ns, 0);

    for (before_prepare, before_run) in [(true, false), (false, true)] {
        let ended = compared(Verify::Auto, before_prepare, before_run);
        assert_eq!(ended.report.outcome, Outcome::MovedUnverified);
        let verification = &ended.report.verification;
        assert_eq!(verification.equal, Some(false));
        assert_eq!(verification.pages_different, 1);
        assert_eq!(verification.examples.len(), 1);
        assert!(verification.examples[0].contains("page 20"));
        assert_eq!(ended.received.as_ref().unwrap().different_pages, 1);
    }
}

#[test]
fn nothing_is_compared_where_that_is_asked_for() {
    let ended = compared(Verify::Off, true, true);
    assert_eq!(ended.report.outcome, Outcome::Moved);
    let verification = &ended.report.verification;
    assert_eq!(verification.method, "off");
    assert_eq!(verification.equal, None);
    assert_eq!(verification.pages_checked, 0);
    assert_eq!(ended.received.as_ref().unwrap().checked_pages, 0);
}
