//! Rings that end early, on another thread, or broken: memory goes back only behind its completion.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::sync::Weak;

use super::*;
use crate::memory::{HostMapping, MemoryMap, OwnedMapping, PAGE_BYTES, PageNumber, Run};
use crate::tcp::Mechanism;

mod zero_copy;

const PAGES: u32 = 8192;

const ALL: Run = Run {
    first: PageNumber(0),
    pages: PAGES,
};

/// A stream, the bare socket at its other end, and guest memory that shows whether it lives.
struct Lane {
    stream: UringStream,
    peer: TcpStream,
    memory: MemoryMap,
    mapping: Weak<OwnedMapping>,
    note: Arc<MechanismNote>,
}

fn lane() -> Option<Lane> {
    lane_with(ZeroCopy::Off, Duration::from_secs(30))
}

fn lane_with(zero_copy: ZeroCopy, stall_limit: Duration) -> Option<Lane> {
    if let Err(error) = UringStream::probe() {
        println!("skipped: no io_uring: {error}");
        return None;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let socket = Arc::new(listener.accept().unwrap().0);
    let note = Arc::new(MechanismNote::probe(Mechanism::IoUring));
    let noted = Arc::clone(&note);
    let mapping = Arc::new(OwnedMapping::new(u64::from(PAGES) * PAGE_BYTES).unwrap());
    let alive = Arc::downgrade(&mapping);
    let mapping: Arc<dyn HostMapping> = mapping;
    Some(Lane {
        stream: UringStream::new(socket, stall_limit, zero_copy, noted).unwrap(),
        peer,
        memory: MemoryMap::new(vec![mapping]).unwrap(),
        mapping: alive,
        note,
    })
}

fn segments(memory: &MemoryMap, run: Run) -> Segments {
    let mut segments = Segments::new(memory.clone());
    segments.push_run(run).unwrap();
    segments
}

/// From now on the ring can't be entered.
fn break_ring(stream: &UringStream) {
    let file = std::fs::File::open("/dev/null").unwrap();
    // SAFETY: the ring's descriptor is this test's; what it stands for is only given to
    // io_uring_enter, which refuses.
    let result = unsafe { libc::dup2(file.as_raw_fd(), stream.ring.as_raw_fd()) };
    assert!(result >= 0);
}

#[test]
fn a_send_that_is_dropped_on_its_thread_gives_its_memory_back() {
    let Some(mut lane) = lane() else { return };
    let sent = segments(&lane.memory, ALL);
    lane.stream.start_send(sent).unwrap();
    assert!(
        lane.stream.ring.is_pending(Operation::Send),
        "nothing waits"
    );
    drop(lane.stream);
    drop(lane.memory);
    assert!(lane.mapping.upgrade().is_none());
}

#[test]
fn memory_outlives_a_send_that_is_dropped_on_another_thread() {
    let Some(mut lane) = lane() else { return };
    let sent = segments(&lane.memory, ALL);
    lane.stream.start_send(sent).unwrap();
    drop(lane.memory);
    let stream = lane.stream;
    std::thread::spawn(move || drop(stream)).join().unwrap();
    assert!(lane.mapping.upgrade().is_some());
}

#[test]
fn a_send_can_be_settled_by_no_other_thread() {
    let Some(mut lane) = lane() else { return };
    let sent = segments(&lane.memory, ALL);
    lane.stream.start_send(sent).unwrap();
    drop(lane.memory);
    let mut stream = lane.stream;
    let settling = std::thread::spawn(move || stream.settle_send().is_err());
    assert!(settling.join().unwrap());
    assert!(lane.mapping.upgrade().is_some());
}

#[test]
fn memory_outlives_a_send_whose_ring_is_broken() {
    let Some(mut lane) = lane() else { return };
    let sent = segments(&lane.memory, ALL);
    lane.stream.start_send(sent).unwrap();
    break_ring(&lane.stream);
    assert!(lane.stream.settle_send().is_err());
    assert!(lane.stream.settle_send().is_err());
    let again = segments(&lane.memory, ALL);
    assert!(lane.stream.start_send(again).is_err());
    drop(lane.memory);
    drop(lane.stream);
    assert!(lane.mapping.upgrade().is_some());
}

#[test]
fn a_receive_whose_ring_is_broken_leaves_nothing_to_receive() {
    let Some(mut lane) = lane() else { return };
    let mut first = segments(&lane.memory, Run { pages: 1, ..ALL });
    lane.peer.write_all(&[7; 4096]).unwrap();
    let received = lane.stream.receive(
        &mut first,
        Want::All,
        Deadline::after(Duration::from_secs(30)),
    );
    assert_eq!(received.unwrap(), 4096);
    lane.peer.write_all(&[8; 65_536]).unwrap();
    let deadline = Deadline::after(Duration::from_secs(30));
    assert!(
        crate::tcp::socket::wait_ready(
            &*lane.stream.socket,
            rustix::event::PollFlags::IN,
            deadline
        )
        .unwrap()
    );
    break_ring(&lane.stream);
    let mut rest = segments(&lane.memory, ALL);
    assert!(lane.stream.receive(&mut rest, Want::All, deadline).is_err());
    assert_eq!(rest.bytes(), 0, "the kernel may still hold them");
    assert_eq!((&*lane.stream.socket).read(&mut [0; 1]).unwrap(), 0);
    drop((first, rest, lane.memory));
    drop(lane.stream);
    assert!(lane.mapping.upgrade().is_some());
}

#[test]
fn a_receive_that_takes_more_waits_than_the_kernel_retries_arrives() {
    let Some(mut lane) = lane() else { return };
    let pages = 64;
    let run = Run { pages, ..ALL };
    let mut peer = lane.peer;
    let sending = std::thread::spawn(move || {
        for byte in 0..=255 {
            peer.write_all(&[byte; 1024]).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        peer
    });
    let mut rest = segments(&lane.memory, run);
    let deadline = Deadline::after(Duration::from_secs(30));
    let received = lane.stream.receive(&mut rest, Want::All, deadline);
    assert_eq!(received.unwrap(), 256 << 10);
    let mut bytes = vec![0; 256 << 10];
    lane.memory.copy_out(run, &mut bytes).unwrap();
    assert!(
        bytes
            .iter()
            .enumerate()
            .all(|(at, byte)| *byte as usize == at / 1024)
    );
    // A worker's part in it shows nowhere, and the memory comes back.
    drop((rest, lane.memory, lane.stream, sending.join().unwrap()));
    assert!(lane.mapping.upgrade().is_none());
}
