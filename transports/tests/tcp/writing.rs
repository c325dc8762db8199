//! A guest that writes all the while that it is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dunlin_transports::conformance::Harness;
use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::{
    LaneCounters, LaneNumber, LaneTicket, LaneToken, SessionId, SourceLane,
};
use dunlin_transports::memory::{
    HostMapping, MemoryMap, OwnedMapping, PAGE_BYTES, PageNumber, Run,
};

use super::Tcp;

const PATIENCE: Duration = Duration::from_secs(30);
const PAGES: u32 = 600;

fn memory() -> MemoryMap {
    let bytes = u64::from(PAGES) * PAGE_BYTES;
    let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(bytes).unwrap());
    MemoryMap::new(vec![mapping]).unwrap()
}

fn run(first: u64, pages: u32) -> Run {
    Run {
        first: PageNumber(first),
        pages,
    }
}

fn put_all(lane: &mut dyn SourceLane) {
    lane.put(&[run(0, PAGES)]).unwrap();
    let fence = lane.fence().unwrap();
    lane.wait_fence(fence, PATIENCE).unwrap();
}

/// What a lane did.
pub(super) struct Sent {
    /// As the source counts.
    pub(super) source: LaneCounters,
    /// As the destination counts.
    pub(super) destination: LaneCounters,
    /// How, by the source's endpoint.
    pub(super) mechanism: String,
}

/// Sends a guest again and again that writes all the while. Its pages may arrive torn; no round
/// fails, and the round in which it rests makes both sides equal.
pub(super) fn arrives_whole_in_the_end(harness: &Tcp) -> Sent {
    let (source_memory, destination_memory) = (memory(), memory());
    let pair = harness.pair(source_memory.clone(), destination_memory.clone());
    let all = run(0, PAGES);
    pair.source.prepare(all).unwrap();
    let grant = pair.destination.prepare(all).unwrap();
    pair.source.accept_grants(&[grant]).unwrap();
    let ticket = LaneTicket {
        session: SessionId([1; 16]),
        number: LaneNumber(0),
        token: LaneToken([2; 32]),
    };
    let deadline = Deadline::after(PATIENCE);
    let (mut lane, mut other) = std::thread::scope(|scope| {
        let opening = scope.spawn(|| pair.source.open_lane(&ticket, deadline).unwrap());
        let tickets = std::slice::from_ref(&ticket);
        let other = pair.destination.accept_lane(tickets, deadline).unwrap();
        (opening.join().unwrap(), other)
    });
    let serving = std::thread::spawn(move || {
        while other.next_fence(Deadline::after(PATIENCE)).is_ok() {}
        other.counters().unwrap()
    });
    let is_resting = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stroke = 0_u64;
            while !is_resting.load(Ordering::Relaxed) {
                stroke += 1;
                let page: Vec<u8> = (0..512_u64)
                    .flat_map(|word| (stroke ^ (word / 64)).to_le_bytes())
                    .collect();
                for number in 0..u64::from(PAGES) {
                    source_memory.copy_in(run(number, 1), &page).unwrap();
                }
            }
        });
        for _ in 0..20 {
            put_all(&mut *lane);
        }
        is_resting.store(true, Ordering::Relaxed);
    });
    put_all(&mut *lane);
    let bytes = |memory: &MemoryMap| {
        let mut bytes = vec![0; all.bytes() as usize];
        memory.copy_out(all, &mut bytes).unwrap();
        bytes
    };
    assert!(bytes(&source_memory) == bytes(&destination_memory));
    let source = lane.counters();
    drop(lane);
    Sent {
        source,
        destination: serving.join().unwrap(),
        mechanism: pair.source.mechanism(),
    }
}
