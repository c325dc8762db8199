//! A peer that says anything about ranges: asks for what it may not have, grants what nobody asked
//! for, or nothing at all. The session ends, the guest stays, nothing beyond the budget is pinned.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that meets an impossible value should stop there and say so"
)]

mod simulated;

use std::time::Duration;

use dunlin_engine::destination::ReceiveError;
use dunlin_engine::pin_budget::PinBudget;
use dunlin_engine::protocol::{Grants, Message, MessageKind, Ranges, Ready, capability};
use dunlin_engine::report::Outcome;
use dunlin_transports::control::ControlError;
use dunlin_transports::deadline::Deadline;
use dunlin_transports::inmemory::Side;
use dunlin_transports::lane::{Grant, SourceEndpoint, SourceLane};
use dunlin_transports::memory::{PAGE_BYTES, PageNumber, Run};

use simulated::by_hand::{DestinationByHand, SourceByHand};
use simulated::session::PEER_TIMEOUT;
use simulated::{Call, Hooks, Session};

/// Two regions: pages 0 to 8,191 and 8,192 to 8,291.
const REGIONS: [u64; 2] = [8192, 100];

/// What the smallest budget leaves, in pages.
const WINDOW_PAGES: u32 = (7 << 20) / PAGE_BYTES as u32;

fn run(first: u64, pages: u32) -> Run {
    Run {
        first: PageNumber(first),
        pages,
    }
}

// ---- a hostile source ----

/// A source whose lanes are open, at a destination that registers in a small window.
fn source() -> (SourceByHand, Vec<Box<dyn SourceLane>>) {
    let mut source = SourceByHand::with(&REGIONS, Hooks::default(), |settings| {
        settings.pin_budget = PinBudget::Bytes(8 << 20);
    });
    source.faults.register_memory();
    source.hello(2);
    let lanes = source.welcomed();
    (source, lanes)
}

fn open(source: &mut SourceByHand, ranges: &[Run]) {
    source.by_hand.say(&Message::Open(Ranges::new(ranges)));
}

fn close(source: &mut SourceByHand, ranges: &[Run]) {
    source.by_hand.say(&Message::Close(Ranges::new(ranges)));
}

/// Waits until so many ranges are granted; gives them to the endpoint.
fn granted(source: &mut SourceByHand, count: usize) -> Vec<Run> {
    let mut ranges = Vec::new();
    while ranges.len() < count {
        let Message::Grants(grants) = source.by_hand.expect(MessageKind::Grants) else {
            panic!("no GRANTS");
        };
        let grants = grants.to_batch().unwrap();
        source.endpoint.accept_grants(&grants).unwrap();
        ranges.extend(grants.iter().map(|grant| grant.range));
    }
    ranges.sort_unstable();
    ranges
}

/// Asserts that the destination gave up for a reason with these words, and has given back what it
/// registered.
fn assert_gave_up(mut source: SourceByHand, words: &str) {
    let heard = source.by_hand.hear_out();
    let Some(Message::Aborted(aborted)) = heard.last() else {
        panic!("{words}: heard {heard:?}");
    };
    assert!(aborted.reason().contains(words), "{}", aborted.reason());
    match source.ended() {
        Err(ReceiveError::Aborted(reason)) => assert!(reason.contains(words), "{reason}"),
        Err(other) => panic!("{words}: {other}"),
        Ok(_) => panic!("{words}: it runs"),
    }
    assert_eq!(source.destination().count(Call::Run), 0, "{words}");
    assert!(source.destination().is_discarded(), "{words}");
    let registered = source.faults.registrations(Side::Destination);
    assert_eq!(registered.bytes, 0, "{words}");
    assert!(registered.bytes_max <= u64::from(WINDOW_PAGES) * PAGE_BYTES);
}

#[test]
fn what_is_asked_for_is_registered_written_and_closed() {
    let (mut source, mut lanes) = source();
    let ranges = [run(0, 512), run(1024, 512), run(8192, 100)];
    open(&mut source, &ranges);
    assert_eq!(granted(&mut source, 3), ranges);
    source.machine.write(1030, 4);
    let lane = &mut lanes[0];
    lane.put(&[run(1030, 1)]).unwrap();
    let fence = lane.fence().unwrap();
    lane.wait_fence(fence, Duration::from_secs(5)).unwrap();
    close(&mut source, &ranges[1..2]);
    let Message::Closed(closed) = source.by_hand.expect(MessageKind::Closed) else {
        panic!("no CLOSED");
    };
    assert_eq!(closed, Ranges::new(&ranges[1..2]));
    // Its room is free again, for as much.
    open(&mut source, &[run(2048, WINDOW_PAGES - 612)]);
    granted(&mut source, 1);
    let fences = vec![1, lanes[1].fence().unwrap().0];
    source.prepare(fences, PAGE_BYTES);
    source.by_hand.expect(MessageKind::Ready);
    source.by_hand.say(&Message::Commit);
    source.by_hand.expect(MessageKind::Running);
    source.by_hand.say(&Message::VerifyEnd);
    let Message::Verified(verified) = source.by_hand.expect(MessageKind::Verified) else {
        panic!("no VERIFIED");
    };
    let told = verified.registrations.unwrap();
    assert_eq!((told.made, told.ended), (4, 1));
    source.by_hand.say(&Message::Released);
    assert!(source.ended().is_ok());
    assert!(source.destination().holds(1030, 4));
}

#[test]
fn an_open_out_of_bounds_ends_the_session() {
    let outside = "not inside one region";
    for (ranges, words) in [
        (vec![run(0, WINDOW_PAGES + 1)], "pin budget"),
        (
            vec![run(0, 1000), run(4096, WINDOW_PAGES - 999)],
            "pin budget",
        ),
        (vec![run(0, 512), run(0, 512)], "open already"),
        (vec![run(512, 512), run(0, 513)], "open already"),
        (vec![run(0, 512), run(511, 1)], "open already"),
        (vec![run(8191, 2)], outside),
        (vec![run(8192, 101)], outside),
        (vec![run(u64::MAX - 5, 5)], outside),
        (vec![run(0, 0)], "a range of 0 pages"),
        (vec![run(u64::MAX, 1)], "a range of 1 pages"),
        (vec![], "0 ranges"),
        ((0..257).map(|page| run(page, 1)).collect(), "257 ranges"),
    ] {
        let (mut source, _lanes) = source();
        open(&mut source, &ranges);
        assert_gave_up(source, words);
    }
    let (mut source, _lanes) = source();
    source.by_hand.say(&Message::Open(Ranges {
        first: vec![0, 512],
        pages: vec![512],
    }));
    assert_gave_up(source, "uneven");
}

/// What was asked for and not begun with is not registered for a session that has failed, not even
/// while the source is given the time to read why.
#[test]
fn nothing_more_is_registered_for_a_session_that_failed() {
    let (mut source, _lanes) = source();
    source
        .faults
        .delay_registrations(Side::Destination, Duration::from_millis(400));
    let ranges: Vec<_> = (0..64).map(|range| run(range * 16, 16)).collect();
    open(&mut source, &ranges);
    open(&mut source, &[run(0, 1)]);
    while !matches!(source.by_hand.hear(), Some(Message::Aborted(_))) {}
    // It stays on the line, for as long as the destination bears that.
    while source.by_hand.hear().is_some() {}
    assert!(source.ended().is_err());
    let registered = source.faults.registrations(Side::Destination);
    // One for each thread was under way; a busy machine may have let one more begin. Whoever went on
    // while the source reads would have made three.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    assert!(
        registered.made <= 2 * threads.min(8) as u64,
        "{registered:?}"
    );
    assert_eq!(registered.bytes, 0);
}

#[test]
fn what_is_not_open_can_not_be_closed() {
    for bad in [
        run(0, 511),
        run(1, 511),
        run(512, 512),
        run(0, 513),
        run(8192, 100),
    ] {
        let (mut source, _lanes) = source();
        open(&mut source, &[run(0, 512)]);
        granted(&mut source, 1);
        close(&mut source, &[bad]);
        assert_gave_up(source, "which are not open");
    }
    // Nor twice, nor before it is granted.
    let (mut source, _lanes) = source();
    open(&mut source, &[run(0, 512)]);
    granted(&mut source, 1);
    close(&mut source, &[run(0, 512), run(0, 512)]);
    assert_gave_up(source, "which are not open");
    let (mut slow, _lanes) = self::source();
    slow.faults
        .delay_registrations(Side::Destination, Duration::from_secs(2));
    open(&mut slow, &[run(0, 512)]);
    close(&mut slow, &[run(0, 512)]);
    assert_gave_up(slow, "which are not open");
}

#[test]
fn ranges_out_of_turn_end_the_session() {
    // Behind PREPARE, while fences are waited for; and behind READY.
    for is_ready in [false, true] {
        for is_open in [false, true] {
            let (mut source, mut lanes) = source();
            open(&mut source, &[run(0, 512)]);
            granted(&mut source, 1);
            let fences: Vec<_> = lanes
                .iter_mut()
                .map(|lane| lane.fence().unwrap().0)
                .collect();
            let missing = u64::from(!is_ready);
            source.prepare(fences.iter().map(|fence| fence + missing).collect(), 0);
            if is_ready {
                source.by_hand.expect(MessageKind::Ready);
            }
            match is_open {
                true => open(&mut source, &[run(1024, 512)]),
                false => close(&mut source, &[run(0, 512)]),
            }
            assert_gave_up(source, "the source may not say");
        }
    }
    // PREPARE while a range is still being opened: law 9 could not hold.
    let (mut source, mut lanes) = source();
    source
        .faults
        .delay_registrations(Side::Destination, Duration::from_millis(300));
    open(&mut source, &[run(0, 512)]);
    let fences = lanes.iter_mut().map(|lane| lane.fence().unwrap().0);
    let fences = fences.collect();
    source.prepare(fences, 0);
    assert_gave_up(source, "while 1 ranges were being opened");
}

#[test]
fn nothing_is_opened_for_lanes_that_are_not_confirmed() {
    let mut source = SourceByHand::with(&REGIONS, Hooks::default(), |settings| {
        settings.pin_budget = PinBudget::Bytes(8 << 20);
    });
    source.faults.register_memory();
    source.faults.name_lanes();
    source.hello(2);
    let _lanes = source.welcomed();
    open(&mut source, &[run(0, 512)]);
    assert_gave_up(source, "the source may not say Open now");
}

#[test]
fn a_put_into_what_is_closed_ends_the_session_and_changes_nothing() {
    let (mut source, mut lanes) = source();
    open(&mut source, &[run(0, 512)]);
    granted(&mut source, 1);
    close(&mut source, &[run(0, 512)]);
    source.by_hand.expect(MessageKind::Closed);
    // This source still believes in its grant.
    source.machine.write(7, 4);
    lanes[0].put(&[run(7, 1)]).unwrap();
    lanes[0].fence().unwrap();
    let destination = source.destination();
    assert_gave_up(source, "not prepared");
    assert!(destination.holds(7, 0));
}

/// A source from before there was a window: all is registered before WELCOME, or nothing.
#[test]
fn a_source_that_opens_nothing_gets_everything_where_that_fits() {
    for (budget, fits) in [
        (PinBudget::Unlimited, true),
        (PinBudget::Bytes(8 << 20), false),
    ] {
        let mut source = SourceByHand::with(&REGIONS, Hooks::default(), |settings| {
            settings.pin_budget = budget;
        });
        source.faults.register_memory();
        let mut hello = source.good_hello(2);
        hello.capabilities &= !capability::PIN_WINDOW;
        source.by_hand.say(&Message::Hello(Box::new(hello)));
        if !fits {
            let Message::Refused(refused) = source.by_hand.expect(MessageKind::Refused) else {
                panic!("not REFUSED");
            };
            assert!(refused.is_of_transport());
            assert!(
                refused.reason().contains("pin budget"),
                "{}",
                refused.reason()
            );
            source.by_hand.hang_up();
            assert!(source.ended().is_err());
            continue;
        }
        let Message::Welcome(welcome) = source.by_hand.expect(MessageKind::Welcome) else {
            panic!("not WELCOME");
        };
        assert_eq!(welcome.pin_budget_bytes, None);
        let pages: u64 = welcome
            .grants
            .pages
            .iter()
            .map(|pages| u64::from(*pages))
            .sum();
        assert_eq!(pages, REGIONS.iter().sum::<u64>());
    }
}

// ---- a hostile destination ----

/// A destination that was asked for a first range, and the range.
fn destination() -> (DestinationByHand, Run) {
    let mut there = DestinationByHand::new(&REGIONS, |settings| {
        settings.pin_budget = PinBudget::Bytes(8 << 20);
    });
    there.faults.register_memory();
    there.machine.write_all(0..4096, 1);
    let hello = there.hello();
    there.welcome_with(&hello, |welcome| {
        welcome.grants = Grants::default();
        welcome.pin_budget_bytes = Some(1 << 30);
    });
    let Message::Open(asked) = there.by_hand.expect(MessageKind::Open) else {
        panic!("no OPEN");
    };
    let asked = asked.to_runs(MessageKind::Open).unwrap()[0];
    (there, asked)
}

fn grant(there: &mut DestinationByHand, ranges: &[Run]) {
    let grant = |range: &Run| Grant {
        range: *range,
        key: Vec::new(),
    };
    let grants: Vec<_> = ranges.iter().map(grant).collect();
    there.by_hand.say(&Message::Grants(Grants::new(&grants)));
}

/// Asserts that the guest stayed, runs, and that the report says why.
fn assert_stayed(mut there: DestinationByHand, words: &str) {
    there.by_hand.hear_out();
    let report = there.ended();
    assert_eq!(report.outcome, Outcome::PeerFailed, "{:?}", report.reason);
    let reason = report.reason.unwrap_or_default();
    assert!(reason.contains(words), "'{words}' is not in '{reason}'");
    assert!(there.machine.runs());
    assert_eq!(there.machine.count(Call::Pause), 0);
    assert_eq!(there.faults.registrations(Side::Source).bytes, 0);
    Session::of(there.machine.clone()).run().assert_moved();
}

#[test]
fn grants_that_never_come_leave_the_guest_at_home() {
    let (there, _) = destination();
    // It answers PINGs all the while: it is alive, and does nothing.
    assert_stayed(there, "no range was opened or closed");
}

#[test]
fn a_grant_that_nobody_asked_for_leaves_the_guest_at_home() {
    let unasked = "which nobody asked for";
    type Change = fn(Run) -> Vec<Run>;
    let changes: [Change; 7] = [
        |asked| vec![run(asked.first.0, asked.pages - 1)],
        |asked| vec![run(asked.first.0, asked.pages + 1)],
        |asked| vec![run(asked.first.0 + 1, asked.pages)],
        |asked| vec![run(asked.first.0 + 1, asked.pages - 1)],
        |_| vec![run(8192, 100)],
        |_| vec![run(u64::MAX, u32::MAX)],
        |asked| vec![asked, asked],
    ];
    for change in changes {
        let (mut there, asked) = destination();
        let grants = change(asked);
        grant(&mut there, &grants);
        assert_stayed(there, unasked);
    }
    let (mut there, asked) = destination();
    there.by_hand.say(&Message::Closed(Ranges::new(&[asked])));
    assert_stayed(there, unasked);
    let (mut there, asked) = destination();
    grant(&mut there, &[asked]);
    there.by_hand.say(&Message::Closed(Ranges::new(&[asked])));
    assert_stayed(there, unasked);
    let (mut there, _) = destination();
    there.by_hand.say(&Message::Grants(Grants::default()));
    assert_stayed(there, "0 ranges");
    let (mut there, _) = destination();
    there.by_hand.say(&Message::Grants(Grants {
        first: vec![0],
        pages: vec![512],
        keys: vec![vec![1; 65].into()],
    }));
    assert_stayed(there, "65 bytes");
}

#[test]
fn a_range_that_is_never_closed_leaves_the_guest_at_home() {
    let (mut there, asked) = destination();
    grant(&mut there, &[asked]);
    // Every range is granted, none is ever given back.
    while let Some(message) = there.by_hand.hear() {
        match message {
            Message::Open(ranges) => {
                let ranges = ranges.to_runs(MessageKind::Open).unwrap();
                grant(&mut there, &ranges);
            }
            Message::Close(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_stayed(there, "closed");
}

/// Behind PREPARE no lane waits for room any more, and the destination says nothing of ranges: what
/// was being closed does not count as late.
#[test]
fn what_is_being_closed_at_prepare_is_not_waited_for() {
    // The first region's range is closed for room and never given back; the others make room enough.
    let mut there = DestinationByHand::new(&[100, 4096], |settings| {
        settings.pin_budget = PinBudget::Bytes(8 << 20);
        settings.blackout_cap = Some(Duration::from_secs(20));
    });
    there.faults.register_memory();
    for page in there.machine.pages() {
        there.machine.write(page.0, 1);
    }
    let hello = there.hello();
    there.welcome_with(&hello, |welcome| {
        welcome.grants = Grants::default();
        welcome.pin_budget_bytes = Some(1 << 30);
    });
    let mut is_kept = false;
    loop {
        match there.by_hand.hear().expect("no PREPARE") {
            Message::Open(ranges) => {
                let ranges = ranges.to_runs(MessageKind::Open).unwrap();
                grant(&mut there, &ranges);
            }
            Message::Close(ranges) => {
                let mut ranges = ranges.to_runs(MessageKind::Close).unwrap();
                let count = ranges.len();
                ranges.retain(|range| range.first.0 != 0);
                is_kept |= ranges.len() < count;
                if !ranges.is_empty() {
                    there.by_hand.say(&Message::Closed(Ranges::new(&ranges)));
                }
            }
            Message::Prepare(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(is_kept, "the first range was never closed");
    // Loading takes longer than a peer may be silent; PINGs are answered.
    let heard = there.by_hand.hear_by(Deadline::after(3 * PEER_TIMEOUT));
    assert!(
        matches!(heard, Err(ControlError::TimedOut { .. })),
        "{heard:?}"
    );
    there.by_hand.say(&Message::Ready(Ready::default()));
    there.by_hand.expect(MessageKind::Commit);
}

#[test]
fn a_budget_of_nothing_leaves_the_guest_at_home() {
    for budget in [0, 1, 6 << 20, (6 << 20) - 1] {
        let mut there = DestinationByHand::new(&REGIONS, |_| ());
        there.faults.register_memory();
        let hello = there.hello();
        there.welcome_with(&hello, |welcome| {
            welcome.grants = Grants::default();
            welcome.pin_budget_bytes = Some(budget);
        });
        if budget < 6 << 20 {
            assert_stayed(there, "too small");
        } else {
            // The least that works: a chunk is opened.
            there.by_hand.expect(MessageKind::Open);
        }
    }
}
