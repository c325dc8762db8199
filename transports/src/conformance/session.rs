//! What the cases share: two memories, two endpoints, their lanes.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Harness, Pair};
use crate::deadline::Deadline;
use crate::lane::{
    CONTACT_BYTES_MAX, DestinationEndpoint, DestinationLane, FenceNumber, GRANT_KEY_BYTES_MAX,
    IDENTITY_BYTES_MAX, LaneCounters, LaneError, LaneNumber, LaneTicket, LaneToken, SessionId,
    SourceEndpoint, SourceLane,
};
use crate::memory::{HostMapping, MemoryMap, OwnedMapping, PAGE_BYTES, PageNumber, Run};

/// For what should happen: long, so that a slow machine fails nothing.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// For what should not happen.
pub(super) const BRIEF: Duration = Duration::from_millis(100);

pub(super) fn soon() -> Deadline {
    Deadline::after(PATIENCE)
}

pub(super) fn shortly() -> Deadline {
    Deadline::after(BRIEF)
}

pub(super) fn run(first: u64, pages: u32) -> Run {
    Run {
        first: PageNumber(first),
        pages,
    }
}

/// Memory of regions with so many pages, all zero.
pub(super) fn memory(region_pages: &[u64]) -> MemoryMap {
    let mappings = region_pages.iter().map(|pages| -> Arc<dyn HostMapping> {
        Arc::new(OwnedMapping::new(pages * PAGE_BYTES).unwrap())
    });
    MemoryMap::new(mappings.collect()).unwrap()
}

/// A small generator of test data: reproducible, and no dependency.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Fills pages with bytes that depend on the seed and the page's number: as many pages that can be
/// compressed as pages that can't, in turns long enough for batches of one kind.
pub(super) fn scribble(memory: &MemoryMap, run: Run, seed: u64) {
    const TURN_PAGES: u64 = 700;
    let mut page = vec![0; PAGE_BYTES as usize];
    for number in run.first.0..run.end().0 {
        let mut random = Random::new(seed ^ (number << 20));
        let repeated = if (number / TURN_PAGES).is_multiple_of(2) {
            16
        } else {
            1
        };
        for words in page.chunks_mut(repeated * 8) {
            let random = random.next().to_le_bytes();
            for word in words.chunks_exact_mut(8) {
                word.copy_from_slice(&random);
            }
        }
        memory.copy_in(self::run(number, 1), &page).unwrap();
    }
}

/// Fills all of a memory.
pub(super) fn scribble_all(memory: &MemoryMap, seed: u64) {
    for run in memory.whole() {
        scribble(memory, run, seed);
    }
}

pub(super) fn bytes(memory: &MemoryMap, run: Run) -> Vec<u8> {
    let mut bytes = vec![0; run.bytes() as usize];
    memory.copy_out(run, &mut bytes).unwrap();
    bytes
}

/// All bytes of a memory.
pub(super) fn snapshot(memory: &MemoryMap) -> Vec<Vec<u8>> {
    memory
        .whole()
        .iter()
        .map(|run| bytes(memory, *run))
        .collect()
}

/// The first page of a run that differs, for messages that can be read.
pub(super) fn first_difference(a: &MemoryMap, b: &MemoryMap, run: Run) -> Option<PageNumber> {
    (run.first.0..run.end().0)
        .find(|page| bytes(a, self::run(*page, 1)) != bytes(b, self::run(*page, 1)))
        .map(PageNumber)
}

pub(super) fn assert_same(session: &Session, run: Run) {
    let different = first_difference(&session.source_memory, &session.destination_memory, run);
    assert_eq!(different, None, "this page did not arrive");
}

pub(super) fn assert_all_same(session: &Session) {
    for run in session.source_memory.whole() {
        assert_same(session, run);
    }
}

pub(super) fn tickets(lanes: u16) -> Vec<LaneTicket> {
    (0..lanes)
        .map(|number| LaneTicket {
            session: SessionId([7; 16]),
            number: LaneNumber(number),
            token: LaneToken(std::array::from_fn(|at| (at as u8) ^ (number as u8 + 1))),
        })
        .collect()
}

/// Makes a range ready on both sides.
pub(super) fn prepare(
    source: &dyn SourceEndpoint,
    destination: &dyn DestinationEndpoint,
    range: Run,
) {
    source.prepare(range).unwrap();
    let grant = destination.prepare(range).unwrap();
    assert!(grant.key.len() <= GRANT_KEY_BYTES_MAX);
    source.accept_grants(&[grant]).unwrap();
}

/// The source's lanes and the destination's, in the order of their numbers.
pub(super) type OpenLanes = (Vec<Box<dyn SourceLane>>, Vec<Box<dyn DestinationLane>>);

/// Two memories, and the endpoints over them.
pub(super) struct Session {
    pub(super) source_memory: MemoryMap,
    pub(super) destination_memory: MemoryMap,
    pub(super) pair: Pair,
    /// What waits for the lanes, where a destination opens nothing before they are confirmed.
    late: Mutex<Late>,
}

enum Late {
    Waiting(Vec<Run>),
    Over,
}

impl Session {
    /// A session with nothing prepared. Source memory is scribbled over.
    pub(super) fn bare(harness: &dyn Harness, region_pages: &[u64]) -> Self {
        let source_memory = memory(region_pages);
        let destination_memory = memory(region_pages);
        scribble_all(&source_memory, 1);
        let pair = harness.pair(source_memory.clone(), destination_memory.clone());
        let contact = pair.destination.contact();
        assert!(contact.len() <= CONTACT_BYTES_MAX);
        pair.source.accept_contact(&contact).unwrap();
        let late = match pair.destination.confirms_before_opening() {
            true => Late::Waiting(Vec::new()),
            false => Late::Over,
        };
        Self {
            source_memory,
            destination_memory,
            pair,
            late: Mutex::new(late),
        }
    }

    /// A session with all memory prepared on both sides, or to be.
    pub(super) fn prepared(harness: &dyn Harness, region_pages: &[u64]) -> Self {
        let session = Self::bare(harness, region_pages);
        for range in session.source_memory.whole() {
            session.prepare(range);
        }
        session
    }

    /// Prepares a range on both sides: now, or once the lanes are confirmed.
    pub(super) fn prepare(&self, range: Run) {
        match &mut *self.late.lock().unwrap() {
            Late::Waiting(ranges) => ranges.push(range),
            Late::Over => prepare(&*self.pair.source, &*self.pair.destination, range),
        }
    }

    /// All lanes are confirmed: prepares what waited for that.
    pub(super) fn prepare_late(&self) {
        let late = std::mem::replace(&mut *self.late.lock().unwrap(), Late::Over);
        if let Late::Waiting(ranges) = late {
            ranges.into_iter().for_each(|range| self.prepare(range));
        }
    }

    /// Opens lanes 0 to `count`.
    pub(super) fn open(&self, count: u16) -> OpenLanes {
        let tickets = tickets(count);
        let Pair {
            source,
            destination,
            ..
        } = &self.pair;
        std::thread::scope(|scope| {
            let accepting = scope.spawn(|| {
                let mut lanes: Vec<_> = (0..count)
                    .map(|_| destination.accept_lane(&tickets, soon()).unwrap())
                    .collect();
                lanes.sort_by_key(|lane| lane.number());
                lanes
            });
            let opened: Vec<_> = tickets
                .iter()
                .map(|ticket| source.open_lane(ticket, soon()).unwrap())
                .collect();
            let accepted = accepting.join().unwrap();
            for lane in &opened {
                self.confirm(&**lane);
            }
            self.prepare_late();
            (opened, accepted)
        })
    }

    /// Tells the destination, as control does, which connection a lane is.
    pub(super) fn confirm(&self, lane: &dyn SourceLane) {
        let identity = lane.identity();
        assert!(identity.len() <= IDENTITY_BYTES_MAX);
        let destination = &self.pair.destination;
        destination.confirm(lane.number(), &identity).unwrap();
    }

    /// Opens one lane, and serves its other end on a thread.
    pub(super) fn open_served(&self) -> (Box<dyn SourceLane>, Serving) {
        let (mut sources, mut destinations) = self.open(1);
        (sources.pop().unwrap(), serve(destinations.pop().unwrap()))
    }
}

/// What a served lane saw until it ended.
pub(super) struct Served {
    pub(super) fences: Vec<FenceNumber>,
    pub(super) error: LaneError,
    pub(super) counters: Option<LaneCounters>,
}

pub(super) type Serving = JoinHandle<Served>;

/// Takes what arrives on a thread of its own, until the lane fails (or the source hangs up).
pub(super) fn serve(mut lane: Box<dyn DestinationLane>) -> Serving {
    std::thread::spawn(move || {
        let mut fences = Vec::new();
        let error = loop {
            match lane.next_fence(soon()) {
                Ok(number) => fences.push(number),
                Err(error) => break error,
            }
        };
        Served {
            fences,
            error,
            counters: lane.counters(),
        }
    })
}

/// Fences a lane, and waits for it.
pub(super) fn settle(lane: &mut dyn SourceLane) {
    let fence = lane.fence().unwrap();
    lane.wait_fence(fence, PATIENCE).unwrap();
}
