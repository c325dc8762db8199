//! Memory that is registered in a window smaller than the guest: what is pinned stays within the
//! budget, nothing is lost, and what goes wrong leaves the guest at home.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that meets an impossible value should stop there and say so"
)]

mod simulated;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dunlin_engine::pin_budget::PinBudget;
use dunlin_engine::protocol::MessageKind;
use dunlin_engine::report::{Outcome, RegistrationReport};
use dunlin_engine::settings::{OnStall, Verify};
use dunlin_transports::inmemory::{Faults, Side};
use dunlin_transports::lane::LaneNumber;
use dunlin_transports::memory::PAGE_BYTES;

use simulated::session::Ended;
use simulated::{Call, Hooks, Seeded, Session, wait_until};

/// Pages of a chunk, the unit in which memory is registered.
const CHUNK: u64 = 512;

const CHUNK_BYTES: u64 = CHUNK * PAGE_BYTES;

/// A budget that leaves room for three chunks.
const SMALL: PinBudget = PinBudget::Bytes(8 << 20);

/// What it leaves, less what is kept for other things.
const SMALL_WINDOW: u64 = 7 << 20;

/// A move of a guest of so many chunks over a transport that registers memory.
fn session(region_chunks: &[u64], budgets: [PinBudget; 2], hooks: Hooks) -> Session {
    let pages: Vec<u64> = region_chunks.iter().map(|chunks| chunks * CHUNK).collect();
    let mut session = Session::new(&pages, hooks);
    session.faults.register_memory();
    session.set(|settings| settings.pin_budget = budgets[0]);
    session.receive.pin_budget = budgets[1];
    session
}

fn registration(ended: &Ended) -> RegistrationReport {
    ended.report.registration.expect("nothing was registered")
}

/// Asserts that neither side ever pinned more, and that both count alike.
fn assert_within(ended: &Ended, window_bytes: u64) -> RegistrationReport {
    let told = registration(ended);
    assert_eq!(told.window_bytes, Some(window_bytes));
    let there = told.destination.expect("the destination tells");
    for side in [told.source, there] {
        assert!(side.peak_bytes <= window_bytes, "{side:?}");
        assert!(side.made > side.ended, "{side:?}");
    }
    assert_eq!(
        (told.source.made, told.evictions),
        (there.made, there.ended)
    );
    told
}

#[test]
fn a_guest_larger_than_the_window_arrives_whole() {
    let mut session = session(&[12, 1, 4], [SMALL, PinBudget::Unlimited], Hooks::default());
    let pages = session.source.pages();
    pages
        .iter()
        .for_each(|page| session.source.write(page.0, 1));
    session.source.start_writers(2);
    session.set(|settings| {
        settings.lanes = Some(3);
        settings.pin_budget = SMALL;
    });
    let faults = Arc::clone(&session.faults);
    let ended = session.run();
    ended.source.end_writers();
    ended.assert_moved();
    let told = assert_within(&ended, SMALL_WINDOW);
    assert!(told.evictions >= 14, "{told:?}");
    assert_eq!(told.postponed_pages, 0);
    // What the devices saw, and that all was given back.
    for side in [Side::Source, Side::Destination] {
        let counters = faults.registrations(side);
        assert!(counters.bytes_max <= SMALL_WINDOW, "{counters:?}");
        assert_eq!((counters.bytes, counters.made), (0, counters.ended));
    }
}

#[test]
fn the_smaller_budget_counts() {
    for budgets in [
        [SMALL, PinBudget::Bytes(64 << 20)],
        [PinBudget::Unlimited, SMALL],
    ] {
        let session = session(&[8], budgets, Hooks::default());
        session.source.write_all(0..8 * CHUNK, 1);
        let ended = session.run();
        ended.assert_moved();
        assert_within(&ended, SMALL_WINDOW);
    }
}

#[test]
fn where_all_fits_nothing_is_closed_and_what_was_never_touched_is_never_registered() {
    let budgets = [PinBudget::Unlimited, PinBudget::Unlimited];
    let session = session(&[16, 2], budgets, Hooks::default());
    // Chunks 1 to 5, which are two ranges, and 9.
    session.source.write_all(CHUNK..6 * CHUNK, 1);
    session.source.write(9 * CHUNK + 100, 1);
    let ended = session.run();
    ended.assert_moved();
    let told = registration(&ended);
    assert_eq!((told.window_bytes, told.evictions), (None, 0));
    let there = told.destination.unwrap();
    for side in [told.source, there] {
        assert_eq!((side.made, side.ended), (3, 0), "{side:?}");
        assert_eq!(side.peak_bytes, 6 * CHUNK_BYTES);
    }
    let first = &ended.report.rounds[0];
    assert_eq!(first.skipped_pages, 12 * CHUNK + CHUNK - 1);
}

/// What was decided on is asked for before the walk goes through memory that was never touched. The
/// hole's last chunk is touched as OPEN goes out: a walk that is still before it finds it touched.
#[test]
fn what_was_decided_on_is_said_before_a_hole_is_walked() {
    let said = Arc::new(AtomicUsize::new(0));
    let session = session(&[200], [PinBudget::Unlimited; 2], Hooks::default());
    // The first OPEN names one range, the next ones would name two and more.
    session.source.write(0, 1);
    session.source.write(2 * CHUNK, 1);
    session.source.write(199 * CHUNK, 1);
    let source = session.source.clone();
    session.at(MessageKind::Open, {
        let said = Arc::clone(&said);
        move |_| {
            if said.fetch_add(1, Ordering::SeqCst) == 1 {
                source.write(100 * CHUNK, 1);
            }
        }
    });
    let ended = session.run();
    ended.assert_moved();
    let told = registration(&ended);
    assert_eq!(told.postponed_pages, 0, "the hole was walked before");
    assert_eq!(told.source.made, 4);
}

#[test]
fn without_registrations_there_is_no_window() {
    let mut session = Session::new(&[4 * CHUNK], Hooks::default());
    session.set(|settings| settings.pin_budget = SMALL);
    session.source.write_all(0..4 * CHUNK, 1);
    let said = Arc::new(AtomicUsize::new(0));
    session.at(MessageKind::Open, {
        let said = Arc::clone(&said);
        move |_| {
            said.fetch_add(1, Ordering::SeqCst);
        }
    });
    let ended = session.run();
    ended.assert_moved();
    assert_eq!(ended.report.registration, None);
    assert_eq!(said.load(Ordering::SeqCst), 0);
    let blackout = ended.report.blackout.unwrap();
    let predicted = &blackout.predicted_parts;
    assert!(predicted.iter().all(|part| part.name != "registration"));
}

/// Law 2: a lane that is held up keeps open what it has written, and all behind it waits.
#[test]
fn nothing_is_closed_below_a_lane_that_is_held_up() {
    let faults: Arc<Mutex<Option<Arc<Faults>>>> = Arc::default();
    let stalled = Arc::new(AtomicBool::new(false));
    let [early, closes] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let is_first = AtomicBool::new(true);
    let hooks = Hooks {
        // Of the lane that has the first chunk, and so the first portion, nothing arrives for a
        // while. The other one goes on to the next.
        rearm_begin: Some(Box::new({
            let (faults, stalled) = (Arc::clone(&faults), Arc::clone(&stalled));
            move |_, first, _| {
                if first.0 == 0 && is_first.swap(false, Ordering::SeqCst) {
                    let faults = faults.lock().unwrap().clone().unwrap();
                    let lane = LaneNumber(this_lane());
                    faults.stall(lane);
                    stalled.store(true, Ordering::SeqCst);
                    let stalled = Arc::clone(&stalled);
                    std::thread::spawn(move || {
                        std::thread::sleep(Duration::from_millis(150));
                        stalled.store(false, Ordering::SeqCst);
                        faults.release(lane);
                    });
                }
            }
        })),
        ..Hooks::default()
    };
    let session = session(&[16], [SMALL, SMALL], hooks);
    *faults.lock().unwrap() = Some(Arc::clone(&session.faults));
    session.source.write_all(0..16 * CHUNK, 1);
    session.at(MessageKind::Close, {
        let (early, closes) = (Arc::clone(&early), Arc::clone(&closes));
        move |_| {
            closes.fetch_add(1, Ordering::SeqCst);
            early.fetch_add(
                usize::from(stalled.load(Ordering::SeqCst)),
                Ordering::SeqCst,
            );
        }
    });
    let ended = session.run();
    ended.assert_moved();
    assert_eq!(early.load(Ordering::SeqCst), 0, "closed below a lane");
    assert!(closes.load(Ordering::SeqCst) > 0);
    assert_within(&ended, SMALL_WINDOW);
}

/// The number of the lane on whose thread this is.
fn this_lane() -> u16 {
    let thread = std::thread::current();
    let number = thread.name().and_then(|name| name.strip_prefix("dunlin-"));
    number.unwrap().parse().unwrap()
}

/// A page that is touched behind the walk's back is re-armed by the lane, and nothing but the
/// postponed bit keeps it from being lost.
#[test]
fn a_page_touched_between_the_walk_and_the_lane_arrives() {
    let opened = Arc::new(AtomicUsize::new(0));
    let is_first = AtomicBool::new(true);
    let hooks = Hooks {
        rearm_begin: Some(Box::new({
            let opened = Arc::clone(&opened);
            move |machine, first, _| {
                // The lane begins with chunk 0. Once chunk 2 is asked for, the walk is past chunk 1.
                if first.0 == 0 && is_first.swap(false, Ordering::SeqCst) {
                    wait_until("OPEN for chunk 2", || opened.load(Ordering::SeqCst) == 2);
                    machine.write(CHUNK + 7, 5);
                    machine.write(CHUNK + 300, 6);
                }
            }
        })),
        ..Hooks::default()
    };
    let budgets = [PinBudget::Unlimited, PinBudget::Unlimited];
    let mut session = session(&[3], budgets, hooks);
    session.set(|settings| {
        settings.lanes = Some(1);
        settings.pin_budget = PinBudget::Unlimited;
    });
    session.source.write(3, 1);
    session.source.write(2 * CHUNK + 3, 1);
    session.at(MessageKind::Open, {
        let opened = Arc::clone(&opened);
        move |_| {
            opened.fetch_add(1, Ordering::SeqCst);
        }
    });
    let ended = session.run();
    ended.assert_moved();
    assert!(ended.destination().holds(CHUNK + 7, 5));
    let told = registration(&ended);
    assert_eq!(told.postponed_pages, 2);
    assert_eq!(ended.report.rounds[0].postponed_pages, 2);
    assert_eq!(told.source.made, 3);
}

#[test]
fn a_refusal_half_way_leaves_the_guest_at_home_and_says_who_refused() {
    for side in [Side::Source, Side::Destination] {
        for is_limit in [false, true] {
            let session = session(&[16], [PinBudget::Unlimited; 2], Hooks::default());
            session.source.write_all(0..16 * CHUNK, 1);
            if is_limit {
                session.faults.limit_registrations(side, 5 * CHUNK_BYTES);
            } else {
                session.faults.refuse_registration(side, 2);
            }
            let faults = Arc::clone(&session.faults);
            let ended = session.run();
            let words = match is_limit {
                true => format!("the limit is {} bytes", 5 * CHUNK_BYTES),
                false => "the device refuses".to_owned(),
            };
            ended.assert_reason(&words);
            let outcome = match side {
                Side::Source => Outcome::Failed,
                Side::Destination => {
                    ended.assert_reason("the destination gave up");
                    Outcome::PeerFailed
                }
            };
            assert_eq!(ended.source.count(Call::Pause), 0);
            ended.assert_stayed(outcome);
            // What was registered is given back.
            for side in [Side::Source, Side::Destination] {
                assert_eq!(faults.registrations(side).bytes, 0, "{side:?}");
            }
        }
    }
}

/// Nothing is put before memory is open on both sides; and in a window of three chunks the fourth is
/// opened once a lane is through with the first.
#[test]
fn another_transport_may_do_until_something_was_put() {
    for side in [Side::Source, Side::Destination] {
        for (chunks, may_do) in [(1, true), (4, false)] {
            let session = session(&[chunks], [SMALL, SMALL], Hooks::default());
            session.source.write_all(0..chunks * CHUNK, 1);
            session.faults.refuse_registration(side, chunks - 1);
            let ended = session.run();
            ended.assert_reason("the device refuses");
            let report = &ended.report;
            assert!(!report.outcome.moved());
            assert_eq!(report.another_transport_may_do, may_do, "{side:?} {chunks}");
        }
    }
}

#[test]
fn a_final_set_larger_than_the_window_is_crossed_in_the_pause() {
    // Not among the last pages: what saving writes there may go out with them.
    let by_saving = [9 * CHUNK, 5];
    for lanes in 1..=3 {
        let hooks = Hooks {
            pause: Some(Box::new(move |machine| {
                for page in machine
                    .pages()
                    .into_iter()
                    .filter(|page| !by_saving.contains(&page.0))
                {
                    machine.write(page.0, 1000 + page.0);
                }
                Ok(())
            })),
            // And what saving writes goes out in one more round, elsewhere.
            save: Some(Box::new(move |machine| {
                by_saving.iter().for_each(|page| machine.write(*page, 3));
                Ok(())
            })),
            ..Hooks::default()
        };
        let mut session = session(&[7, 6], [SMALL, SMALL], hooks);
        session.source.write_all(0..7 * CHUNK, 1);
        session.set(|settings| {
            settings.lanes = Some(lanes);
            settings.pin_budget = SMALL;
        });
        let ended = session.run();
        ended.assert_moved();
        let told = assert_within(&ended, SMALL_WINDOW);
        // 7 chunks before the pause; 13 in it, of which at most 3 were open.
        assert!(told.evictions >= 4 + 10, "{told:?}");
        let finals = ended.report.rounds.iter().filter(|round| round.is_final);
        assert_eq!(finals.count(), 2);
        let blackout = ended.report.blackout.unwrap();
        let parts: Vec<_> = blackout
            .parts
            .iter()
            .map(|part| part.name.as_str())
            .collect();
        assert!(parts.contains(&"registration"), "{parts:?}");
    }
}

/// Each portion has a page for one lane only: the others must not hold up its room.
#[test]
fn lanes_without_a_share_hold_nobody_up() {
    let hooks = Hooks {
        pause: Some(Box::new(|machine| {
            for chunk in 0..12 {
                machine.write(chunk * CHUNK + 9 * chunk, 5);
            }
            Ok(())
        })),
        ..Hooks::default()
    };
    let mut session = session(&[12], [SMALL, SMALL], hooks);
    session.source.write(0, 1);
    session.set(|settings| {
        settings.lanes = Some(3);
        settings.pin_budget = SMALL;
    });
    let ended = session.run();
    ended.assert_moved();
    assert_within(&ended, SMALL_WINDOW);
}

/// What is pending when the pause is decided on is opened before it.
#[test]
fn what_is_pending_is_opened_before_the_pause() {
    let is_first = AtomicBool::new(true);
    let paused = Arc::new(AtomicBool::new(false));
    let in_pause = Arc::new(AtomicUsize::new(0));
    let hooks = Hooks {
        // A chunk that no round had: it is found dirty when the first round is judged.
        collect: Some(Box::new(move |machine| {
            if is_first.swap(false, Ordering::SeqCst) {
                machine.write(6 * CHUNK, 1);
            }
        })),
        pause: Some(Box::new({
            let paused = Arc::clone(&paused);
            move |_| {
                paused.store(true, Ordering::SeqCst);
                Ok(())
            }
        })),
        ..Hooks::default()
    };
    let session = session(&[8], [PinBudget::Unlimited; 2], hooks);
    session.source.write_all(0..CHUNK, 1);
    session.at(MessageKind::Open, {
        let in_pause = Arc::clone(&in_pause);
        move |_| {
            in_pause.fetch_add(usize::from(paused.load(Ordering::SeqCst)), Ordering::SeqCst);
        }
    });
    let ended = session.run();
    ended.assert_moved();
    assert_eq!(registration(&ended).source.made, 2);
    assert_eq!(in_pause.load(Ordering::SeqCst), 0, "opened in the pause");
    let predicted = ended.report.blackout.unwrap().predicted_parts;
    let term = predicted.iter().find(|part| part.name == "registration");
    assert!(
        term.is_some_and(|term| term.duration_ns == 0),
        "{predicted:?}"
    );
}

#[test]
fn a_cancel_is_heeded_while_lanes_wait_for_memory() {
    let session = session(&[8], [SMALL, SMALL], Hooks::default());
    session.source.write_all(0..8 * CHUNK, 1);
    let handle = Arc::clone(&session.handle);
    session.at(MessageKind::Open, move |faults| {
        // The device takes longer than the peer's patience; the operator does not wait for that.
        faults.delay_registrations(Side::Destination, Duration::from_millis(400));
        handle.cancel();
    });
    session.run().assert_stayed(Outcome::Cancelled);
}

#[test]
fn a_window_that_stands_still_is_not_waited_for_for_ever() {
    for side in [Side::Source, Side::Destination] {
        let session = session(&[8], [SMALL, SMALL], Hooks::default());
        session.source.write_all(0..8 * CHUNK, 1);
        // Longer than the peer's timeout, shorter than the watchdog.
        session
            .faults
            .delay_registrations(side, Duration::from_secs(2));
        let ended = session.run();
        ended.assert_reason("no range was opened or closed");
        ended.assert_stayed(Outcome::PeerFailed);
    }
}

/// The cap holds for a pause in which memory can't be registered in time.
#[test]
fn the_cap_ends_a_pause_that_waits_for_memory() {
    let faults: Arc<Mutex<Option<Arc<Faults>>>> = Arc::default();
    let hooks = Hooks {
        pause: Some(Box::new({
            let faults = Arc::clone(&faults);
            move |machine| {
                machine.write_all(0..8 * CHUNK, 2);
                let faults = faults.lock().unwrap().clone().unwrap();
                faults.delay_registrations(Side::Destination, Duration::from_millis(300));
                Ok(())
            }
        })),
        ..Hooks::default()
    };
    let mut session = session(&[8], [SMALL, SMALL], hooks);
    *faults.lock().unwrap() = Some(Arc::clone(&session.faults));
    session.source.write_all(0..CHUNK, 1);
    session.set(|settings| {
        settings.pin_budget = SMALL;
        settings.blackout_cap = Some(Duration::from_millis(200));
    });
    session.run().assert_stayed(Outcome::BlackoutCap);
}

#[test]
fn digests_of_all_memory_agree() {
    let mut session = session(&[9], [SMALL, SMALL], Hooks::default());
    session.source.write_all(0..9 * CHUNK, 1);
    session.source.start_writers(1);
    session.set(|settings| {
        settings.pin_budget = SMALL;
        settings.verify = Verify::Full;
    });
    let ended = session.run();
    ended.source.end_writers();
    ended.assert_moved();
    assert_eq!(ended.report.verification.equal, Some(true));
    assert_within(&ended, SMALL_WINDOW);
}

#[test]
fn a_budget_that_is_too_small_ends_the_move_before_it_begins() {
    let tiny = PinBudget::Bytes((8 << 20) - 1);
    for budgets in [[tiny, SMALL], [SMALL, tiny]] {
        let ended = session(&[2], budgets, Hooks::default()).run();
        ended.assert_reason("8 MiB");
        assert!(!ended.report.outcome.moved());
        assert!(ended.report.another_transport_may_do);
        assert_eq!(ended.source.count(Call::Pause), 0);
    }
}

/// Guests, windows, lanes, delays and writers as a seed draws them.
#[test]
fn whatever_the_window_the_guest_arrives_whole() {
    for seed in 0..12 {
        // A seed that fails is in the output, and can be run alone.
        println!("seed {seed}");
        let mut seeded = Seeded(seed);
        let regions: Vec<u64> = (0..1 + seeded.below(3))
            .map(|_| 1 + seeded.below(9))
            .collect();
        let budget = PinBudget::Bytes((8 << 20) + seeded.below(40 << 20));
        let hooks = Hooks {
            pause: (seeded.below(2) == 0).then(|| -> Box<dyn Fn(&_) -> _ + Send + Sync> {
                Box::new(|machine: &simulated::machine::Machine| {
                    for page in machine.pages().iter().step_by(7) {
                        machine.write(page.0, 77);
                    }
                    Ok(())
                })
            }),
            ..Hooks::default()
        };
        let mut session = session(&regions, [budget, PinBudget::Unlimited], hooks);
        if seeded.below(2) == 0 {
            session.faults.name_lanes();
        }
        let delay = Duration::from_micros(seeded.below(3) * 500);
        for side in [Side::Source, Side::Destination] {
            session.faults.delay_registrations(side, delay);
        }
        for page in session.source.pages() {
            // Some chunks stay untouched, others hold a page.
            let is_used = !(page.0 / CHUNK + seed).is_multiple_of(4);
            if is_used && (page.0.is_multiple_of(3) || seeded.below(5) == 0) {
                session.source.write(page.0, seeded.below(3));
            }
        }
        session.source.start_writers(seeded.below(3));
        let lanes = 1 + seeded.below(4) as u16;
        session.set(|settings| {
            settings.lanes = Some(lanes);
            settings.pin_budget = budget;
            settings.max_rounds = 4;
            settings.on_stall = OnStall::Switchover;
        });
        let ended = session.run();
        ended.source.end_writers();
        ended.assert_moved();
        let told = registration(&ended);
        let window = told.window_bytes.unwrap();
        assert!(told.source.peak_bytes <= window && told.destination.unwrap().peak_bytes <= window);
    }
}
