//! What a test may order of the in-memory transport.
#![cfg(feature = "testing")]
// Test code, also where it is not in a test function.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dunlin_transports::deadline::Deadline;
use dunlin_transports::inmemory::{Faults, Place, Side, pair};
use dunlin_transports::lane::{
    DestinationEndpoint as _, DestinationLane, LaneError, LaneNumber, LaneTicket, LaneToken,
    RegistrationCounters, SessionId, SourceEndpoint as _, SourceLane,
};
use dunlin_transports::memory::{
    HostMapping, MemoryMap, OwnedMapping, PAGE_BYTES, PageNumber, Run,
};

const LANE: Place = Place::Lane(LaneNumber(0));

const PATIENCE: Duration = Duration::from_secs(30);
const BRIEF: Duration = Duration::from_millis(50);

fn soon() -> Deadline {
    Deadline::after(PATIENCE)
}

fn shortly() -> Deadline {
    Deadline::after(BRIEF)
}

fn run(first: u64, pages: u32) -> Run {
    Run {
        first: PageNumber(first),
        pages,
    }
}

fn memory() -> MemoryMap {
    let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(64 * PAGE_BYTES).unwrap());
    MemoryMap::new(vec![mapping]).unwrap()
}

fn fill(memory: &MemoryMap, page: u64, byte: u8) {
    memory
        .copy_in(run(page, 1), &[byte; PAGE_BYTES as usize])
        .unwrap();
}

fn page(memory: &MemoryMap, page: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_BYTES as usize];
    memory.copy_out(run(page, 1), &mut bytes).unwrap();
    bytes
}

struct Lanes {
    faults: Arc<Faults>,
    source_memory: MemoryMap,
    destination_memory: MemoryMap,
    sources: Vec<Box<dyn SourceLane>>,
    destinations: Vec<Box<dyn DestinationLane>>,
}

fn lanes(count: u16) -> Lanes {
    let faults = Faults::new();
    let (source_memory, destination_memory) = (memory(), memory());
    let (source, destination) = pair(
        source_memory.clone(),
        destination_memory.clone(),
        Arc::clone(&faults),
    );
    source.prepare(run(0, 64)).unwrap();
    let grant = destination.prepare(run(0, 64)).unwrap();
    source.accept_grants(&[grant]).unwrap();
    let tickets: Vec<_> = (0..count)
        .map(|number| LaneTicket {
            session: SessionId([1; 16]),
            number: LaneNumber(number),
            token: LaneToken([number as u8; 32]),
        })
        .collect();
    let (sources, destinations) = std::thread::scope(|scope| {
        let accepting = scope.spawn(|| {
            let accept = |_| destination.accept_lane(&tickets, soon()).unwrap();
            (0..count).map(accept).collect()
        });
        let open = |ticket| source.open_lane(ticket, soon()).unwrap();
        (
            tickets.iter().map(open).collect(),
            accepting.join().unwrap(),
        )
    });
    Lanes {
        faults,
        source_memory,
        destination_memory,
        sources,
        destinations,
    }
}

#[test]
fn an_old_copy_on_a_stalled_lane_lands_on_a_newer_one() {
    let mut lanes = lanes(2);
    lanes.faults.stall(LaneNumber(0));
    fill(&lanes.source_memory, 3, b'a');
    lanes.sources[0].put(&[run(3, 1)]).unwrap();
    let slow = lanes.sources[0].fence().unwrap();
    fill(&lanes.source_memory, 3, b'b');
    lanes.sources[1].put(&[run(3, 1)]).unwrap();
    let fast = lanes.sources[1].fence().unwrap();

    lanes.destinations[1].next_fence(soon()).unwrap();
    lanes.sources[1].wait_fence(fast, PATIENCE).unwrap();
    assert_eq!(page(&lanes.destination_memory, 3), [b'b'; 4096]);
    let waited = lanes.sources[0].wait_fence(slow, BRIEF);
    assert!(
        matches!(waited, Err(LaneError::Stalled { .. })),
        "{waited:?}"
    );

    lanes.faults.release(LaneNumber(0));
    lanes.destinations[0].next_fence(soon()).unwrap();
    lanes.sources[0].wait_fence(slow, PATIENCE).unwrap();
    // Why no page may be put twice between two fences of all lanes.
    assert_eq!(page(&lanes.destination_memory, 3), [b'a'; 4096]);
}

#[test]
fn a_full_queue_blocks_a_put_up_to_the_stall_limit() {
    let mut lanes = lanes(1);
    lanes.faults.set_queue_bytes_max(4 * PAGE_BYTES);
    lanes.faults.set_stall_limit(Duration::from_millis(50));
    lanes.faults.stall(LaneNumber(0));
    for page in 0..4 {
        lanes.sources[0].put(&[run(page, 1)]).unwrap();
    }
    let put = lanes.sources[0].put(&[run(4, 1)]);
    assert!(matches!(put, Err(LaneError::Stalled { .. })), "{put:?}");
}

#[test]
fn a_cut_lets_through_what_was_before_it() {
    let mut lanes = lanes(1);
    lanes.faults.cut_after(LANE, 2 * PAGE_BYTES);
    fill(&lanes.source_memory, 0, 1);
    fill(&lanes.source_memory, 1, 2);
    lanes.sources[0].put(&[run(0, 1)]).unwrap();
    let put = lanes.sources[0].put(&[run(1, 2)]);
    assert!(matches!(put, Err(LaneError::Closed(_))), "{put:?}");
    let next = lanes.destinations[0].next_fence(soon());
    assert!(matches!(next, Err(LaneError::Closed(_))), "{next:?}");
    assert_eq!(page(&lanes.destination_memory, 0), [1; 4096]);
    assert_eq!(page(&lanes.destination_memory, 1), [0; 4096]);
}

#[test]
fn silence_tells_nobody() {
    let mut lanes = lanes(1);
    lanes.faults.silence(Place::All);
    lanes.sources[0].put(&[run(0, 1)]).unwrap();
    let fence = lanes.sources[0].fence().unwrap();
    let next = lanes.destinations[0].next_fence(shortly());
    assert!(matches!(next, Err(LaneError::Stalled { .. })), "{next:?}");
    let waited = lanes.sources[0].wait_fence(fence, BRIEF);
    assert!(
        matches!(waited, Err(LaneError::Stalled { .. })),
        "{waited:?}"
    );
    lanes.faults.end_silence(Place::All);
    lanes.destinations[0].next_fence(soon()).unwrap();
    lanes.sources[0].wait_fence(fence, PATIENCE).unwrap();
}

#[test]
fn a_flipped_byte_arrives() {
    let mut lanes = lanes(1);
    lanes.faults.corrupt(LANE, 1, 5);
    for number in 0..3 {
        fill(&lanes.source_memory, number, 7);
        lanes.sources[0].put(&[run(number, 1)]).unwrap();
    }
    lanes.sources[0].fence().unwrap();
    lanes.destinations[0].next_fence(soon()).unwrap();
    let mut flipped = [7; 4096];
    flipped[5] = !7;
    assert_eq!(page(&lanes.destination_memory, 0), [7; 4096]);
    assert_eq!(page(&lanes.destination_memory, 1), flipped);
    assert_eq!(page(&lanes.destination_memory, 2), [7; 4096]);
}

#[test]
fn the_hook_sees_each_message_and_may_give_orders() {
    let mut lanes = lanes(1);
    let seen = Arc::new(AtomicU64::new(0));
    let (orders, count) = (Arc::downgrade(&lanes.faults), Arc::clone(&seen));
    lanes.faults.watch(move |passage| {
        assert_eq!(passage.place, LANE);
        if count.fetch_add(passage.bytes, Ordering::SeqCst) >= PAGE_BYTES
            && let Some(faults) = orders.upgrade()
        {
            faults.cut_after(LANE, 0);
        }
    });
    lanes.sources[0].put(&[run(0, 1)]).unwrap();
    assert!(lanes.sources[0].put(&[run(1, 1)]).is_err());
    assert_eq!(seen.load(Ordering::SeqCst), 2 * PAGE_BYTES);
    assert_eq!(lanes.faults.messages(LANE), 1);
    assert_eq!(lanes.faults.bytes(Place::All), PAGE_BYTES);
}

#[test]
fn a_delay_holds_messages_back_and_keeps_their_order() {
    let mut lanes = lanes(1);
    lanes.faults.delay(LANE, Duration::from_secs(3600));
    lanes.sources[0].put(&[run(0, 1)]).unwrap();
    let next = lanes.destinations[0].next_fence(shortly());
    assert!(matches!(next, Err(LaneError::Stalled { .. })), "{next:?}");

    let mut lanes = self::lanes(1);
    lanes.faults.delay(LANE, Duration::from_millis(20));
    lanes.sources[0].put(&[run(0, 1)]).unwrap();
    lanes.faults.delay(LANE, Duration::ZERO);
    let fence = lanes.sources[0].fence().unwrap();
    // The fence was sent without delay, and still does not overtake the put.
    lanes.destinations[0].next_fence(soon()).unwrap();
    lanes.sources[0].wait_fence(fence, PATIENCE).unwrap();
    assert_eq!(
        page(&lanes.destination_memory, 0),
        page(&lanes.source_memory, 0)
    );
}

#[test]
fn registrations_are_limited_and_refused_where_ordered() {
    let faults = Faults::new();
    faults.register_memory();
    faults.limit_registrations(Side::Source, 32 * PAGE_BYTES);
    faults.refuse_registration(Side::Destination, 1);
    let (source, destination) = pair(memory(), memory(), Arc::clone(&faults));
    assert!(source.has_registrations() && destination.has_registrations());
    source.prepare(run(0, 32)).unwrap();
    let error = source.prepare(run(32, 1)).unwrap_err().to_string();
    assert!(error.contains("the limit is 131072 bytes"), "{error}");
    source.retire(run(0, 32)).unwrap();
    source.prepare(run(32, 1)).unwrap();

    destination.prepare(run(0, 8)).unwrap();
    let error = destination.prepare(run(8, 8)).unwrap_err().to_string();
    assert!(error.contains("the device refuses"), "{error}");
    // Once.
    destination.prepare(run(8, 8)).unwrap();

    let of = |counts: RegistrationCounters| {
        (
            counts.made,
            counts.ended,
            counts.bytes / PAGE_BYTES,
            counts.bytes_max / PAGE_BYTES,
        )
    };
    assert_eq!(of(faults.registrations(Side::Source)), (2, 1, 1, 32));
    assert_eq!(of(faults.registrations(Side::Destination)), (2, 0, 16, 16));
    // What an endpoint leaves behind goes with it.
    drop((source, destination));
    assert_eq!(of(faults.registrations(Side::Source)), (2, 2, 0, 32));
    assert_eq!(of(faults.registrations(Side::Destination)), (2, 2, 0, 16));
}
