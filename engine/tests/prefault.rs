//! Memory that is backed ahead of the lanes: what the source names, and what the destination takes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that meets an impossible value should stop there and say so"
)]

mod simulated;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dunlin_engine::destination::ReceiveError;
use dunlin_engine::protocol::{
    Message, MessageKind, PREFAULT_PAGES_MAX, Ranges, Ready, Running, capability,
};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::inmemory::Place;
use dunlin_transports::memory::{PAGE_BYTES, PageNumber, Run};

use simulated::by_hand::{DestinationByHand, SourceByHand};
use simulated::{Call, Hooks, Session};

/// Two regions: pages 0 to 1,099, and 1,152 to 1,251; the second begins at a multiple of 64.
const REGIONS: [u64; 2] = [1100, 100];
const SECOND_REGION: u64 = 1152;

fn run(first: u64, pages: u32) -> Run {
    let first = PageNumber(first);
    Run { first, pages }
}

#[test]
fn what_will_be_sent_is_named_and_nothing_else() {
    let mut there = DestinationByHand::new(&REGIONS, |_| ());
    // No lane is done with anything before all is named.
    let is_named = Arc::new(AtomicBool::new(false));
    there.faults.watch({
        let is_named = Arc::clone(&is_named);
        move |passage| {
            let limit = Deadline::after(Duration::from_secs(5));
            let is_lane = matches!(passage.place, Place::Lane(_));
            while is_lane && !is_named.load(Ordering::SeqCst) && !limit.passed() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    // Beside the first 8 pages, which it has written: over a chunk's border; too few to be named;
    // zeros; up to the last page.
    there.machine.write_all(500..600, 3);
    there.machine.write_all(700..705, 3);
    there.machine.write_all(800..900, 0);
    there
        .machine
        .write_all(SECOND_REGION + 80..SECOND_REGION + 100, 3);
    let hello = there.hello();
    assert_ne!(hello.capabilities & capability::PREFAULT, 0);
    there.welcome_with(&hello, |welcome| {
        welcome.capabilities |= capability::PREFAULT
    });
    let last = run(SECOND_REGION + 80, 20);
    let mut named = Vec::new();
    let prepare = loop {
        match there.by_hand.hear().unwrap() {
            Message::Prefault(ranges) => {
                named.extend(ranges.to_runs(MessageKind::Prefault).unwrap());
                is_named.store(named.contains(&last), Ordering::SeqCst);
            }
            other => break other,
        }
    };
    assert_eq!(prepare.kind(), MessageKind::Prepare);
    // The first one may have been told of before its neighbour in the next chunk was looked at.
    let first = run(0, 8);
    let joined = [first, run(500, 100), last];
    let apart = [first, run(500, 12), run(512, 88), last];
    assert!(named == joined || named == apart, "{named:?}");
    there.by_hand.say(&Message::Ready(Ready::default()));
    there.by_hand.expect(MessageKind::Commit);
    there.by_hand.say(&Message::Running(Running::default()));
}

#[test]
fn a_guest_moves_into_memory_that_is_backed_ahead() {
    let mut session = Session::new(&REGIONS, Hooks::default());
    session.source.write_all(0..1100, 3);
    session.receive.prefault_ahead = true;
    session.settings.lanes = Some(1);
    session.run().assert_moved();
}

#[test]
fn a_source_that_names_what_is_no_memory_is_turned_away() {
    for bad in [
        run(1000, 101),
        run(1100, 1),
        run(0, PREFAULT_PAGES_MAX + 1),
        run(u64::MAX - 1, 1),
    ] {
        let mut source = SourceByHand::with(&REGIONS, Hooks::default(), |settings| {
            settings.prefault_ahead = true;
        });
        // With one processor there is none to spare, and the message is out of turn anyway.
        source.hello(1);
        let _lanes = source.welcomed();
        source.by_hand.say(&Message::Prefault(Ranges::new(&[bad])));
        assert_gave_up(source);
    }
}

#[test]
fn a_source_that_was_not_asked_is_turned_away() {
    let mut source = SourceByHand::new(&REGIONS);
    source.hello(1);
    let _lanes = source.welcomed();
    let message = Message::Prefault(Ranges::new(&[run(0, 1)]));
    source.by_hand.say(&message);
    assert_gave_up(source);
}

#[test]
fn what_comes_late_or_too_often_is_forgotten() {
    let mut source = SourceByHand::with(&REGIONS, Hooks::default(), |settings| {
        settings.prefault_ahead = true;
    });
    source.hello(1);
    let mut lanes = source.welcomed();
    if std::thread::available_parallelism().unwrap().get() < 2 {
        // It is not asked for there, as the test above has it.
        return;
    }
    let all = Message::Prefault(Ranges::new(&[run(0, 1100), run(SECOND_REGION, 100)]));
    for _ in 0..2000 {
        source.by_hand.say(&all);
    }
    source.machine.write(3, 4);
    let lane = &mut lanes[0];
    lane.put(&[run(3, 1)]).unwrap();
    let fence = lane.fence().unwrap().0;
    source.by_hand.say(&all);
    source.prepare(vec![fence], PAGE_BYTES);
    source.by_hand.say(&all);
    source.by_hand.expect(MessageKind::Ready);
    source.by_hand.say(&Message::Commit);
    source.by_hand.expect(MessageKind::Running);
    source.by_hand.say(&Message::Released);
    assert!(source.ended().is_ok());
    assert!(source.destination().holds(3, 4));
}

/// Asserts that the destination gave up, because of that message.
fn assert_gave_up(mut source: SourceByHand) {
    let heard = source.by_hand.hear_out();
    let Some(Message::Aborted(aborted)) = heard.last() else {
        panic!("heard {heard:?}");
    };
    assert!(
        aborted.reason().contains("PREFAULT"),
        "{}",
        aborted.reason()
    );
    assert!(matches!(source.ended(), Err(ReceiveError::Aborted(_))));
    assert_eq!(source.destination().count(Call::Run), 0);
}
