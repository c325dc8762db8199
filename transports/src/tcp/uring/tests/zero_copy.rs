//! Sends without a copy: memory goes back only behind its notification, and nothing waits for one.
//!
//! On loopback the kernel copies as soon as a segment reaches the peer's socket. What the peer's
//! window does not admit waits in the send queue as it is, uncopied, and so does its notification.

use super::*;
use crate::tcp::uring::zero_copy::{GUEST_BYTES_MIN, PENDING_MAX};

const PATIENCE: Duration = Duration::from_secs(30);

/// Of a batch that is just large enough.
const BATCH_PAGES: u32 = (GUEST_BYTES_MIN / PAGE_BYTES as usize) as u32;

/// More than the peer's window admits while it reads nothing, less than the send buffer takes.
const WAITING: Run = Run {
    first: PageNumber(0),
    pages: 256,
};

/// A lane that sends without a copy although the kernel copies; `None`, and a line that says so,
/// where there is no such thing.
fn always(stall_limit: Duration) -> Option<Lane> {
    let mut lane = lane_with(ZeroCopy::Always, stall_limit)?;
    let first = segments(&lane.memory, batch(0));
    lane.stream.start_send(first).unwrap();
    lane.stream.settle_send().unwrap();
    take(&mut lane.peer, GUEST_BYTES_MIN);
    if lane.stream.zero_copy_bytes() == 0 {
        println!("skipped: no zero-copy send: {}", lane.note.words());
        return None;
    }
    collect_all(&mut lane.stream);
    Some(lane)
}

fn batch(index: u32) -> Run {
    Run {
        first: PageNumber(u64::from(index * BATCH_PAGES)),
        pages: BATCH_PAGES,
    }
}

fn take(peer: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    peer.read_exact(&mut bytes).unwrap();
    bytes
}

fn send(stream: &mut UringStream, segments: Segments) -> Segments {
    stream.start_send(segments).unwrap();
    stream.settle_send().unwrap().unwrap()
}

/// Until nothing lingers any more.
fn collect_all(stream: &mut UringStream) {
    stream.ring.await_notifications(Deadline::after(PATIENCE));
    stream.reclaim();
    assert!(stream.lingering.is_empty(), "no notification came");
}

/// Page `n` is full of a pattern of its own.
fn fill(memory: &MemoryMap, run: Run) -> Vec<u8> {
    let words = (0..run.bytes() / 8).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    memory.copy_in(run, &bytes).unwrap();
    bytes
}

#[test]
fn memory_is_kept_until_its_notification_came() {
    let Some(mut lane) = always(PATIENCE) else {
        return;
    };
    let expected = fill(&lane.memory, WAITING);
    let sent = segments(&lane.memory, WAITING);
    let other = send(&mut lane.stream, sent);
    assert_eq!(other.bytes(), 0);
    lane.stream.ring.collect();
    lane.stream.reclaim();
    assert_eq!(lane.stream.lingering.len(), 1, "it was all acknowledged");
    // Nothing but the flight holds on to the memory now.
    lane.stream.spare.clear();
    drop((other, lane.memory));
    assert!(lane.mapping.upgrade().is_some());
    assert!(take(&mut lane.peer, expected.len()) == expected);
    collect_all(&mut lane.stream);
    lane.stream.spare.clear();
    assert!(lane.mapping.upgrade().is_none());
}

#[test]
fn sends_go_on_while_notifications_are_pending() {
    let Some(mut lane) = always(PATIENCE) else {
        return;
    };
    let all = Run {
        first: PageNumber(0),
        pages: (PENDING_MAX as u32 + 8) * BATCH_PAGES,
    };
    let expected = fill(&lane.memory, all);
    let mut lingered = 0;
    for index in 0..PENDING_MAX as u32 + 8 {
        let sent = segments(&lane.memory, batch(index));
        send(&mut lane.stream, sent);
        lingered = lingered.max(lane.stream.lingering.len());
    }
    assert!(lingered > 1, "one after the other");
    assert!(lingered <= PENDING_MAX, "{lingered}");
    assert!(take(&mut lane.peer, expected.len()) == expected);
    collect_all(&mut lane.stream);
    assert!(lane.stream.spare.len() <= PENDING_MAX);
}

#[test]
fn a_send_that_is_withdrawn_again_and_again_arrives_whole() {
    let Some(mut lane) = always(PATIENCE) else {
        return;
    };
    let expected = fill(&lane.memory, ALL);
    let mut peer = lane.peer;
    let receiving = std::thread::spawn(move || take(&mut peer, ALL.bytes() as usize));
    let sent = segments(&lane.memory, ALL);
    let stream = &mut lane.stream;
    stream.start_send(sent).unwrap();
    // As often as a slow link would have it late.
    for _ in 0..20 {
        if !stream.ring.is_pending(Operation::Send) {
            break;
        }
        let result = stream.ring.withdraw(Operation::Send).unwrap();
        let moved = stream.count_sent(result).unwrap();
        stream.sending.as_mut().unwrap().segments.advance(moved);
        stream.push_send().unwrap();
        stream.ring.submit().unwrap();
    }
    stream.settle_send().unwrap();
    assert!(receiving.join().unwrap() == expected);
    assert!(stream.lingering.len() <= 1);
    collect_all(stream);
}

#[test]
fn a_stream_that_is_dropped_while_notifications_are_pending_gives_its_memory_back() {
    for run in [WAITING, ALL] {
        let Some(mut lane) = always(PATIENCE) else {
            return;
        };
        let sent = segments(&lane.memory, run);
        lane.stream.start_send(sent).unwrap();
        if run == WAITING {
            lane.stream.settle_send().unwrap();
        }
        // The peer reads nothing, and is there all the time.
        drop((lane.stream, lane.memory));
        assert!(lane.mapping.upgrade().is_none(), "{run:?}");
    }
}

#[test]
fn a_peer_that_does_not_read_ends_a_send_and_keeps_no_memory() {
    let Some(mut lane) = always(Duration::from_millis(100)) else {
        return;
    };
    let sent = segments(&lane.memory, ALL);
    lane.stream.start_send(sent).unwrap();
    let settled = lane.stream.settle_send().map(|_| ());
    assert!(matches!(settled, Err(StreamError::Stalled)), "{settled:?}");
    assert_eq!(lane.stream.lingering.len(), 1, "part of it waits");
    drop((lane.stream, lane.memory));
    assert!(lane.mapping.upgrade().is_none());
}

#[test]
fn memory_outlives_a_stream_that_is_dropped_on_another_thread() {
    let Some(mut lane) = always(PATIENCE) else {
        return;
    };
    let sent = segments(&lane.memory, WAITING);
    send(&mut lane.stream, sent);
    drop(lane.memory);
    let stream = lane.stream;
    std::thread::spawn(move || drop(stream)).join().unwrap();
    assert!(lane.mapping.upgrade().is_some());
}

#[test]
fn memory_outlives_a_ring_that_is_broken() {
    let Some(mut lane) = always(PATIENCE) else {
        return;
    };
    let sent = segments(&lane.memory, WAITING);
    send(&mut lane.stream, sent);
    break_ring(&lane.stream);
    let again = segments(&lane.memory, WAITING);
    assert!(lane.stream.start_send(again).is_err());
    drop((lane.stream, lane.memory));
    assert!(lane.mapping.upgrade().is_some());
}

#[test]
fn a_lane_goes_on_on_another_thread_without_the_notifications_of_the_first() {
    let Some(mut lane) = always(PATIENCE) else {
        return;
    };
    let expected = fill(&lane.memory, WAITING);
    let sent = segments(&lane.memory, WAITING);
    let other = send(&mut lane.stream, sent);
    drop(other);
    let (mut stream, memory) = (lane.stream, lane.memory);
    let moved = std::thread::spawn(move || {
        // Nothing waits for what no longer comes.
        let sent = segments(&memory, batch(0));
        send(&mut stream, sent);
        drop(stream);
    });
    assert!(take(&mut lane.peer, expected.len()) == expected);
    take(&mut lane.peer, GUEST_BYTES_MIN);
    moved.join().unwrap();
    assert!(
        lane.mapping.upgrade().is_some(),
        "the first may use it still"
    );
}

#[test]
fn where_the_kernel_copies_a_lane_tries_once() {
    let Some(mut lane) = lane_with(ZeroCopy::Auto, PATIENCE) else {
        return;
    };
    let mut peer = lane.peer;
    let receiving = std::thread::spawn(move || {
        let mut received = Vec::new();
        peer.read_to_end(&mut received).unwrap();
        received
    });
    // Too small to try with.
    let small = Run {
        pages: BATCH_PAGES - 1,
        ..ALL
    };
    let mut expected = fill(&lane.memory, small);
    let sent = segments(&lane.memory, small);
    send(&mut lane.stream, sent);
    assert_eq!(lane.stream.zero_copy_bytes(), 0);
    expected.extend(fill(&lane.memory, batch(0)));
    let sent = segments(&lane.memory, batch(0));
    send(&mut lane.stream, sent);
    let tried = lane.stream.zero_copy_bytes();
    collect_all(&mut lane.stream);
    for index in 0..8 {
        expected.extend(fill(&lane.memory, batch(index)));
        let sent = segments(&lane.memory, batch(index));
        send(&mut lane.stream, sent);
    }
    assert_eq!(lane.stream.zero_copy_bytes(), tried, "it went on");
    assert!(lane.stream.lingering.is_empty());
    // Where there is no such thing, the words say so.
    if tried == GUEST_BYTES_MIN as u64 {
        assert_eq!(lane.note.words(), "io_uring");
    } else {
        println!("skipped: no zero-copy send: {}", lane.note.words());
    }
    drop(lane.stream);
    assert!(receiving.join().unwrap() == expected);
}

#[test]
fn where_the_kernel_refuses_a_lane_goes_on_plainly() {
    let sending = std::thread::spawn(|| {
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

        // The limit of locked memory binds who may not pass it.
        let mut own = capabilities(None).unwrap();
        own.effective.remove(CapabilitySet::IPC_LOCK);
        set_capabilities(None, own).unwrap();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
        let bytes = ALL.bytes();
        if limit.current.is_none_or(|limit| limit >= bytes) {
            println!("skipped: {limit:?} of memory may be locked");
            return;
        }
        for wanted in [ZeroCopy::Auto, ZeroCopy::Always] {
            let Some(mut lane) = lane_with(wanted, PATIENCE) else {
                return;
            };
            let expected = fill(&lane.memory, ALL);
            let mut peer = lane.peer;
            let receiving = std::thread::spawn(move || take(&mut peer, bytes as usize));
            let sent = segments(&lane.memory, ALL);
            send(&mut lane.stream, sent);
            assert!(receiving.join().unwrap() == expected);
            assert_eq!(lane.stream.zero_copy_bytes(), 0);
            let words = lane.note.words();
            assert!(words.starts_with("io_uring (zero-copy: "), "{words}");
        }
    });
    sending.join().unwrap();
}
