//! What joins the two endpoints of a session in memory, and what both use.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::destination::DestinationEndpoint;
use super::faults::Faults;
use super::source::SourceEndpoint;
use super::wire::{WireEnd, WireError};
use crate::lane::{LaneError, LaneNumber, LaneTicket};
use crate::memory::{MemoryError, MemoryMap, PageNumber, Run};
use crate::runtime;

/// A run is put in pieces of at most this many pages (4 MiB), so that a piece is held in memory
/// and not a whole guest.
const PIECE_PAGES_MAX: u32 = 1024;

/// A lane that asks to be let in.
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) network: u64,
    pub(super) ticket: LaneTicket,
    pub(super) verdict: Option<Verdict>,
}

/// What the destination says to it.
pub(super) enum Verdict {
    Accepted(Ends),
    Refused(&'static str),
}

/// What an end of a lane sends and receives on.
pub(super) struct Ends {
    pub(super) outgoing: WireEnd,
    pub(super) incoming: WireEnd,
}

impl Ends {
    /// Notes the queues with an endpoint, which closes them when it is stopped.
    pub(super) fn note(&self, queues: &Mutex<Vec<u64>>) {
        let mut queues = queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.extend([self.outgoing.queue(), self.incoming.queue()]);
    }
}

/// Numbers networks and requests in this process.
pub(super) static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What joins one session's two endpoints.
#[derive(Clone, Debug)]
pub struct Network {
    pub(super) faults: Arc<Faults>,
    pub(super) id: u64,
}

impl Network {
    /// A network with these faults.
    pub fn new(faults: Arc<Faults>) -> Self {
        Self {
            faults,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The source's endpoint.
    pub fn source_endpoint(&self, memory: MemoryMap) -> SourceEndpoint {
        SourceEndpoint::new(self.clone(), memory)
    }

    /// The destination's endpoint.
    pub fn destination_endpoint(&self, memory: MemoryMap) -> DestinationEndpoint {
        DestinationEndpoint::new(self.clone(), memory)
    }
}

pub(super) fn lane_error(
    lane: LaneNumber,
    error: WireError,
    doing: &'static str,
    begun: Instant,
) -> LaneError {
    match error {
        WireError::Closed => LaneError::Closed(lane),
        WireError::Stopped => LaneError::Stopped(lane),
        WireError::TimedOut => LaneError::Stalled {
            lane,
            doing,
            waited: runtime::elapsed(begun),
        },
    }
}

/// The name of a lane where an endpoint's call concerns none.
pub(super) const NO_LANE: LaneNumber = LaneNumber(0);

pub(super) fn memory_error(source: MemoryError) -> LaneError {
    LaneError::Memory {
        lane: NO_LANE,
        source,
    }
}

/// A run in pieces of at most [`PIECE_PAGES_MAX`] pages.
pub(super) fn pieces(run: Run) -> impl Iterator<Item = Run> {
    (0..run.pages)
        .step_by(PIECE_PAGES_MAX as usize)
        .map(move |skipped| Run {
            first: PageNumber(run.first.0 + u64::from(skipped)),
            pages: PIECE_PAGES_MAX.min(run.pages - skipped),
        })
}
