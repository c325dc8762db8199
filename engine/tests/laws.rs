//! The laws of a move (docs/architecture.md), one by one, with whole moves of a simulated guest.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that meets an impossible value should stop there and say so"
)]

mod simulated;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dunlin_engine::protocol::{Abort, Message, MessageKind};
use dunlin_engine::report::Outcome;
use dunlin_engine::settings::OnStall;
use dunlin_transports::deadline::Deadline;
use dunlin_transports::inmemory::{Faults, Place};
use dunlin_transports::lane::{LaneNumber, SourceEndpoint};
use dunlin_transports::memory::{PAGE_BYTES, PageNumber, Run};

use simulated::by_hand::SourceByHand;
use simulated::{Call, Hooks, Session};

/// Pages of a chunk: what a lane claims.
const CHUNK_PAGES: u64 = dunlin_engine::chunk::CHUNK_PAGES as u64;

/// The lane whose thread this is.
fn this_lane() -> u16 {
    let thread = std::thread::current();
    let number = thread.name().and_then(|name| name.strip_prefix("dunlin-"));
    number.unwrap().parse().unwrap()
}

/// Says yes once.
fn once() -> impl Fn() -> bool + Send + Sync {
    times(1)
}

/// Says yes so many times.
fn times(count: usize) -> impl Fn() -> bool + Send + Sync {
    let left = AtomicUsize::new(count);
    let take = |left: usize| left.checked_sub(1);
    move || {
        left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
            .is_ok()
    }
}

/// Lets a lane go on a while later. The time is the wrong engine's to go wrong in; the right one
/// waits for the release, however late.
fn release_later(faults: &Arc<Faults>, lane: LaneNumber) {
    let faults = Arc::clone(faults);
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        faults.release(lane);
    });
}

// ---- law 1: collect before reading ----

#[test]
fn a_write_right_before_and_right_after_rearming_arrives() {
    let hooks = Hooks {
        rearm_begin: Some(Box::new(|machine, first, words| {
            // Its mark is forgotten in a moment: only reading after that moment saves it.
            if machine.runs() && words[0] & 1 == 1 {
                machine.write(first.0, 100 + machine.writes());
            }
        })),
        rearm_end: Some(Box::new({
            let goes_on = times(40);
            move |machine, first, words| {
                if machine.runs() && words[0] & 2 == 2 && goes_on() {
                    machine.write(first.0 + 1, 100 + machine.writes());
                }
            }
        })),
        // So that more than the first round has something to collect.
        collect: Some(Box::new({
            let goes_on = times(3);
            move |machine| {
                if machine.runs() && goes_on() {
                    machine.write_all(0..2, 5);
                    machine.write_all(CHUNK_PAGES..CHUNK_PAGES + 2, 6);
                }
            }
        })),
        ..Hooks::default()
    };
    let mut session = Session::new(&[4 * CHUNK_PAGES, 70], hooks);
    session.source.write_all(0..4 * CHUNK_PAGES, 1);
    // Four rounds, then the pause.
    session.set(|settings| {
        settings.max_blackout = Duration::from_nanos(1);
        settings.max_rounds = 4;
        settings.on_stall = OnStall::Switchover;
    });
    let ended = session.run();
    ended.assert_moved();
    assert!(ended.report.rounds.len() >= 3, "{:?}", ended.report.rounds);
}

#[test]
fn a_guest_that_writes_all_the_time_arrives_whole() {
    for _ in 0..4 {
        let session = Session::new(&[2 * CHUNK_PAGES, 300, 64], Hooks::default());
        session.source.write_all(0..CHUNK_PAGES, 1);
        session.source.start_writers(3);
        let ended = session.run();
        ended.source.end_writers();
        ended.assert_moved();
        let written = ended.source.writes();
        assert_eq!(ended.destination().loaded_writes(), written);
        assert!(written > CHUNK_PAGES);
    }
}

// ---- law 2: no page twice between two fences of all lanes ----

#[test]
fn no_round_begins_while_a_lane_holds_back_the_one_before() {
    let faults: Arc<Mutex<Option<Arc<Faults>>>> = Arc::default();
    let stalled = Arc::new(AtomicBool::new(false));
    let early = Arc::new(AtomicUsize::new(0));
    let hooks = Hooks {
        rearm_begin: Some(Box::new({
            let faults = Arc::clone(&faults);
            let stalled = Arc::clone(&stalled);
            let is_first = once();
            move |_, _, _| {
                if is_first() {
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
        // Between the stalled lane's put and its release the guest writes the same pages.
        rearm_end: Some(Box::new(|machine, first, words| {
            if words.iter().all(|word| *word == u64::MAX) {
                machine.write(first.0 + 3, 99);
            }
        })),
        collect: Some(Box::new({
            let stalled = Arc::clone(&stalled);
            let early = Arc::clone(&early);
            move |_| {
                early.fetch_add(
                    usize::from(stalled.load(Ordering::SeqCst)),
                    Ordering::SeqCst,
                );
            }
        })),
        ..Hooks::default()
    };
    let session = Session::new(&[6 * CHUNK_PAGES], hooks);
    *faults.lock().unwrap() = Some(Arc::clone(&session.faults));
    session.source.write_all(0..6 * CHUNK_PAGES, 1);
    let ended = session.run();
    assert_eq!(
        early.load(Ordering::SeqCst),
        0,
        "the round was taken for over"
    );
    ended.assert_moved();
}

#[test]
fn a_page_that_saving_state_dirties_again_is_not_overtaken() {
    let faults: Arc<Mutex<Option<Arc<Faults>>>> = Arc::default();
    let lane = LaneNumber(0);
    // Each lane's share is half of the dirty pages, in words of 64. In the first final round page
    // 64 is lane 0's; in the second, with a page before it, it is lane 1's.
    let hooks = Hooks {
        pause: Some(Box::new({
            let faults = Arc::clone(&faults);
            move |machine| {
                machine.write(64, 2);
                machine.write(3 * 64, 2);
                faults.lock().unwrap().as_ref().unwrap().stall(lane);
                Ok(())
            }
        })),
        save: Some(Box::new({
            let faults = Arc::clone(&faults);
            move |machine| {
                machine.write(0, 3);
                machine.write(64, 3);
                release_later(faults.lock().unwrap().as_ref().unwrap(), lane);
                Ok(())
            }
        })),
        ..Hooks::default()
    };
    let session = Session::new(&[CHUNK_PAGES], hooks);
    *faults.lock().unwrap() = Some(Arc::clone(&session.faults));
    session.source.write_all(0..256, 1);
    let ended = session.run();
    ended.assert_moved();
    assert!(ended.destination().holds(64, 3), "an old copy landed last");
    assert_eq!(ended.report.rounds.len(), 3);
}

// ---- law 3: a fence is what the destination saw ----

#[test]
fn without_the_last_fence_there_is_no_ready_and_the_cap_ends_the_pause() {
    // Once with bytes behind the fence, once with the fence alone.
    for dirty_pages in [0, 200] {
        let said = Arc::new(Mutex::new(Vec::new()));
        let faults: Arc<Mutex<Option<Arc<Faults>>>> = Arc::default();
        let hooks = Hooks {
            pause: Some(Box::new({
                let faults = Arc::clone(&faults);
                move |machine| {
                    machine.write_all(0..dirty_pages, 2);
                    faults
                        .lock()
                        .unwrap()
                        .as_ref()
                        .unwrap()
                        .stall(LaneNumber(1));
                    Ok(())
                }
            })),
            ..Hooks::default()
        };
        let mut session = Session::new(&[CHUNK_PAGES], hooks);
        *faults.lock().unwrap() = Some(Arc::clone(&session.faults));
        session.faults.watch({
            let said = Arc::clone(&said);
            move |passage| said.lock().unwrap().extend(passage.control_kind)
        });
        session.source.write_all(0..256, 1);
        session.set(|settings| settings.blackout_cap = Some(Duration::from_millis(200)));
        let ended = session.run();
        let said = said.lock().unwrap().clone();
        assert!(said.contains(&MessageKind::Prepare.number()));
        assert!(!said.contains(&MessageKind::Ready.number()));
        assert!(!said.contains(&MessageKind::Commit.number()));
        assert_eq!(ended.destination().count(Call::Load), 0);
        ended.assert_stayed(Outcome::BlackoutCap);
    }
}

#[test]
fn a_last_fence_that_comes_late_is_waited_for() {
    let faults: Arc<Mutex<Option<Arc<Faults>>>> = Arc::default();
    let released = Arc::new(AtomicBool::new(false));
    let hooks = Hooks {
        pause: Some(Box::new({
            let faults = Arc::clone(&faults);
            move |machine| {
                machine.write_all(0..200, 2);
                faults
                    .lock()
                    .unwrap()
                    .as_ref()
                    .unwrap()
                    .stall(LaneNumber(1));
                Ok(())
            }
        })),
        ..Hooks::default()
    };
    let mut session = Session::new(&[CHUNK_PAGES], hooks);
    *faults.lock().unwrap() = Some(Arc::clone(&session.faults));
    session.hooks.load = Some(Box::new({
        let released = Arc::clone(&released);
        move |_| {
            assert!(released.load(Ordering::SeqCst), "loaded before the fence");
            Ok(())
        }
    }));
    session.at(MessageKind::Prepare, {
        let faults = Arc::clone(&session.faults);
        move |_| {
            let (faults, released) = (Arc::clone(&faults), Arc::clone(&released));
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                released.store(true, Ordering::SeqCst);
                faults.release(LaneNumber(1));
            });
        }
    });
    session.source.write_all(0..256, 1);
    session.run().assert_moved();
}

// ---- law 4: zero is a value ----

#[test]
fn a_page_that_becomes_zero_arrives_as_zero_and_one_never_written_costs_nothing() {
    let hooks = Hooks {
        collect: Some(Box::new({
            let is_first = once();
            move |machine| {
                // Was sent, becomes zero; was never anything, stays zero.
                if is_first() {
                    machine.write(10, 0);
                    machine.write(400, 0);
                }
            }
        })),
        ..Hooks::default()
    };
    let session = Session::new(&[CHUNK_PAGES], hooks);
    session.source.write_all(8..12, 1);
    let ended = session.run();
    ended.assert_moved();
    assert!(ended.destination().holds(10, 0));
    assert!(ended.destination().holds(9, 1));
    let [first, last] = ended.report.rounds.as_slice() else {
        panic!("{:?}", ended.report.rounds);
    };
    assert_eq!(first.sent_bytes, 4 * PAGE_BYTES);
    assert_eq!(first.dirty_pages, CHUNK_PAGES);
    assert_eq!(first.skipped_pages, CHUNK_PAGES - 4);
    assert_eq!((last.dirty_pages, last.zero_pages), (2, 2));
    // Page 400 is known to be zero there, page 10 is not.
    assert_eq!((last.skipped_pages, last.sent_bytes), (1, 0));
}

#[test]
fn a_page_that_becomes_zero_in_the_pause_arrives_as_zero() {
    let hooks = Hooks {
        pause: Some(Box::new(|machine| {
            machine.write(7, 0);
            machine.write(8, 5);
            Ok(())
        })),
        save: Some(Box::new(|machine| {
            machine.write(8, 0);
            Ok(())
        })),
        ..Hooks::default()
    };
    let session = Session::new(&[CHUNK_PAGES], hooks);
    session.source.write(7, 1);
    let ended = session.run();
    ended.assert_moved();
    assert!(ended.destination().holds(7, 0) && ended.destination().holds(8, 0));
}

// ---- law 5: untouched is proven, not guessed ----

#[test]
fn fresh_memory_costs_no_byte() {
    let session = Session::new(&[8 * CHUNK_PAGES, 100], Hooks::default());
    let faults = Arc::clone(&session.faults);
    let ended = session.run();
    ended.assert_moved();
    assert_eq!(ended.report.sent_bytes, 0);
    assert_eq!(ended.report.rounds[0].skipped_pages, 8 * CHUNK_PAGES + 100);
    let lanes = [0, 1].map(|lane| faults.bytes(Place::Lane(LaneNumber(lane))));
    assert_eq!(lanes, [0, 0]);
}

#[test]
fn a_page_touched_while_its_chunk_is_asked_about_arrives() {
    let hooks = Hooks {
        // Its mark is forgotten: the question has to come after.
        rearm_begin: Some(Box::new(|machine, first, _| {
            if machine.runs() {
                machine.write(first.0 + 5, 77);
            }
        })),
        rearm_end: Some(Box::new({
            let goes_on = times(4);
            move |machine, first, _| {
                if goes_on() {
                    machine.write(first.0 + 300, 78);
                }
            }
        })),
        ..Hooks::default()
    };
    let session = Session::new(&[4 * CHUNK_PAGES], hooks);
    let ended = session.run();
    ended.assert_moved();
    for chunk in 0..4 {
        assert!(ended.destination().holds(chunk * CHUNK_PAGES + 5, 77));
        assert!(ended.destination().holds(chunk * CHUNK_PAGES + 300, 78));
    }
}

// ---- law 6: a running guest's memory is never a slice ----

/// Where slices are made from pointers, how often, and why that is sound: none is of a running
/// guest's memory.
const SLICES_FROM_POINTERS: &[(&str, usize, &str)] = &[
    (
        "engine/src/kvm/abi.rs",
        1,
        "a kernel struct on this side's own stack",
    ),
    (
        "bench/src/bin/raw_socket.rs",
        2,
        "memory as a guest's, without a guest: an import and its use",
    ),
    (
        "engine/src/kvm/ring_entries.rs",
        1,
        "the dirty ring, whose entries are atomics",
    ),
    (
        "engine/src/process/tests.rs",
        1,
        "a page of a guest that does not run, for read(2)",
    ),
    (
        "transports/src/rdma/verbs/connection_event.rs",
        1,
        "a connection request's private data, in the library's own event",
    ),
    (
        "transports/src/rdma/verbs/request.rs",
        1,
        "in a test: a message in the list of requests itself",
    ),
    (
        "tools/vmm/src/kvm_guest/program.rs",
        1,
        "the guest program in this binary's read-only data",
    ),
];

#[test]
fn no_source_makes_a_slice_of_guest_memory() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut folders = vec![root.to_path_buf()];
    // In two pieces, so that this file does not name it.
    let name_sought = concat!("from_raw", "_parts");
    let mut found: Vec<(String, usize)> = Vec::new();
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files += 1;
                let text = std::fs::read_to_string(&path).unwrap();
                let count = text.matches(name_sought).count();
                if count > 0 {
                    let path = path.strip_prefix(root).unwrap();
                    found.push((path.to_string_lossy().into_owned(), count));
                }
            }
        }
    }
    assert!(files > 40, "only {files} sources were found");
    found.retain(|(path, count)| {
        let mut allowed = SLICES_FROM_POINTERS.iter();
        !allowed.any(|(place, times, _)| place == path && times == count)
    });
    assert!(
        found.is_empty(),
        "{found:?}: a slice of guest memory is unsound; where it is other memory, say so in the list"
    );
}

// ---- law 7: all writers stop before the last collection ----

#[test]
fn what_the_pause_and_saving_write_arrives() {
    let hooks = Hooks {
        pause: Some(Box::new(|machine| {
            machine.write(1, 11);
            machine.write(600, 12);
            Ok(())
        })),
        save: Some(Box::new(|machine| {
            machine.write(2, 13);
            machine.write(1, 14);
            Ok(())
        })),
        ..Hooks::default()
    };
    let session = Session::new(&[2 * CHUNK_PAGES], hooks);
    session.source.write_all(0..10, 1);
    let ended = session.run();
    ended.assert_moved();
    let destination = ended.destination();
    assert!(destination.holds(1, 14) && destination.holds(2, 13) && destination.holds(600, 12));

    let mut calls = ended.source.calls();
    calls.retain(|call| *call != Call::Rearm);
    use Call::{Collect, Pause, Save, Start, Stop};
    // The first collection is the pre-copy round's.
    assert_eq!(calls, [Start, Collect, Pause, Collect, Save, Collect, Stop]);
    assert_eq!(destination.calls(), [Call::Load, Call::Run]);
}

#[test]
fn what_is_collected_last_is_rearmed_before_it_is_read() {
    // In the pause too: a write behind the mark's end must show up in the collection after saving.
    let hooks = Hooks {
        pause: Some(Box::new(|machine| {
            machine.write(1, 11);
            Ok(())
        })),
        save: Some(Box::new(|_| Ok(()))),
        ..Hooks::default()
    };
    let session = Session::new(&[CHUNK_PAGES], hooks);
    session.source.write_all(0..10, 1);
    let ended = session.run();
    ended.assert_moved();
    let calls = ended.source.calls();
    let pause = calls.iter().position(|call| *call == Call::Pause).unwrap();
    let last = calls.iter().rposition(|call| *call == Call::Collect);
    // State is saved meanwhile: which comes first is chance.
    assert!(calls[pause..last.unwrap()].contains(&Call::Rearm));
    // Nothing was dirtied by saving, so there is one final round.
    let last_rounds = ended.report.rounds.iter().filter(|round| round.is_final);
    assert_eq!(last_rounds.count(), 1);
}

// ---- law 9: remote write access dies before READY ----

#[test]
fn where_access_may_not_be_gone_there_is_no_ready() {
    let session = Session::new(&[CHUNK_PAGES], Hooks::default());
    session.source.write(3, 1);
    session.faults.refuse_revoking();
    let said = Arc::new(AtomicUsize::new(0));
    session.at(MessageKind::Ready, {
        let said = Arc::clone(&said);
        move |_| {
            said.fetch_add(1, Ordering::SeqCst);
        }
    });
    let ended = session.run();
    assert_eq!(said.load(Ordering::SeqCst), 0, "READY was said");
    ended.assert_reason("taking write access away: the device refuses");
    assert!(ended.destination().is_discarded());
    ended.assert_stayed(Outcome::PeerFailed);
}

#[test]
fn after_ready_no_lane_of_the_source_reaches_the_destination() {
    let mut source = SourceByHand::new(&[CHUNK_PAGES]);
    source.hello(2);
    let mut lanes = source.welcomed();
    let page = Run {
        first: PageNumber(3),
        pages: 1,
    };
    source.machine.write(3, 33);
    lanes[0].put(&[page]).unwrap();
    let fences = lanes.iter_mut().map(|lane| lane.fence().unwrap().0);
    source.prepare(fences.collect(), PAGE_BYTES);
    source.by_hand.expect(MessageKind::Ready);

    source.machine.write(3, 44);
    let brief = Duration::from_millis(50);
    for lane in &mut lanes {
        // The lane may take it; it must not arrive.
        let _ = lane.put(&[page]);
        if let Ok(fence) = lane.fence() {
            assert!(
                lane.wait_fence(fence, brief).is_err(),
                "a fence was seen after READY"
            );
        }
    }
    let again = source
        .endpoint
        .open_lane(&source.tickets[0], Deadline::after(brief));
    assert!(again.is_err(), "a lane was let in after READY");
    let destination = source.destination();
    assert!(destination.holds(3, 33), "a late put arrived");
    source.by_hand.say(&Message::Abort(Abort::new("enough")));
    assert!(source.ended().is_err());
    assert!(destination.is_discarded());
}
