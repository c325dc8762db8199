//! Endpoints and lanes in memory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::faults::{Faults, Place};
use super::wire::{self, Message, Way, WireEnd, WireError};
use crate::deadline::Deadline;
use crate::lane::{
    self, DestinationLane, FenceNumber, Grant, LaneCounters, LaneError, LaneNumber, LaneTicket,
    LaneToken, SourceLane,
};
use crate::memory::{MemoryError, MemoryMap, PageNumber, Run};
use crate::prepared::{SourceRanges, WriteGate, WriterPlace};

/// A run is put in pieces of at most this many pages (4 MiB), so that a piece is held in memory
/// and not a whole guest.
const PIECE_PAGES_MAX: u32 = 1024;

/// A lane that asks to be let in.
pub(super) struct Request {
    id: u64,
    network: u64,
    ticket: LaneTicket,
    verdict: Option<Verdict>,
}

enum Verdict {
    Accepted(Ends),
    Refused(&'static str),
}

/// What an end of a lane sends and receives on.
struct Ends {
    outgoing: WireEnd,
    incoming: WireEnd,
}

impl Ends {
    /// Notes the queues with an endpoint, which closes them when it is stopped.
    fn note(&self, queues: &Mutex<Vec<u64>>) {
        let mut queues = queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.extend([self.outgoing.queue(), self.incoming.queue()]);
    }
}

/// Numbers networks and requests in this process.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What joins one session's two endpoints.
#[derive(Clone, Debug)]
pub struct Network {
    faults: Arc<Faults>,
    id: u64,
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
        SourceEndpoint {
            network: self.clone(),
            memory,
            stopped: Arc::default(),
            queues: Mutex::default(),
            ranges: Arc::default(),
        }
    }

    /// The destination's endpoint.
    pub fn destination_endpoint(&self, memory: MemoryMap) -> DestinationEndpoint {
        DestinationEndpoint {
            network: self.clone(),
            memory,
            stopped: Arc::default(),
            queues: Mutex::default(),
            gate: Arc::default(),
            used: Mutex::default(),
        }
    }
}

fn lane_error(
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
            waited: begun.elapsed(),
        },
    }
}

/// The source's side of a session's lanes.
pub struct SourceEndpoint {
    network: Network,
    memory: MemoryMap,
    stopped: Arc<AtomicBool>,
    /// The queues of its lanes.
    queues: Mutex<Vec<u64>>,
    ranges: Arc<SourceRanges>,
}

/// The name of a lane where an endpoint's call concerns none.
const NO_LANE: LaneNumber = LaneNumber(0);

fn memory_error(source: MemoryError) -> LaneError {
    LaneError::Memory {
        lane: NO_LANE,
        source,
    }
}

impl lane::SourceEndpoint for SourceEndpoint {
    fn transport(&self) -> &'static str {
        "in-memory"
    }

    fn mechanism(&self) -> String {
        "queues".to_owned()
    }

    fn prepare(&self, range: Run) -> Result<(), LaneError> {
        self.memory.check(range).map_err(memory_error)?;
        self.ranges.prepare(range);
        Ok(())
    }

    fn retire(&self, range: Run) -> Result<(), LaneError> {
        if self.ranges.retire(range) {
            return Ok(());
        }
        Err(LaneError::NotPrepared {
            lane: NO_LANE,
            run: range,
        })
    }

    fn accept_grants(&self, grants: &[Grant]) -> Result<(), LaneError> {
        for grant in grants {
            self.memory.check(grant.range).map_err(memory_error)?;
            self.ranges.grant(grant.range);
        }
        Ok(())
    }

    fn open_lane(
        &self,
        ticket: &LaneTicket,
        deadline: Deadline,
    ) -> Result<Box<dyn SourceLane>, LaneError> {
        let begun = Instant::now();
        let faults = &self.network.faults;
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let mut state = faults.state();
        state.wires.requests.push(Request {
            id,
            network: self.network.id,
            ticket: ticket.clone(),
            verdict: None,
        });
        faults.changed.notify_all();
        let verdict = loop {
            let requests = &mut state.wires.requests;
            let mine = requests.iter().position(|request| request.id == id);
            if let Some(mine) = mine
                && let Some(verdict) = requests.get_mut(mine).and_then(|mine| mine.verdict.take())
            {
                requests.swap_remove(mine);
                break Ok(verdict);
            }
            let ended = if self.stopped.load(Ordering::SeqCst) {
                Some(WireError::Stopped)
            } else {
                deadline.passed().then_some(WireError::TimedOut)
            };
            if let Some(ended) = ended {
                if let Some(mine) = mine {
                    requests.swap_remove(mine);
                }
                break Err(ended);
            }
            state = wire::wait(faults, state, deadline.remaining());
        };
        drop(state);
        let lane = ticket.number;
        match verdict.map_err(|error| lane_error(lane, error, "opening", begun))? {
            Verdict::Refused(reason) => Err(LaneError::Refused {
                lane,
                reason: reason.to_owned(),
            }),
            Verdict::Accepted(ends) => {
                ends.note(&self.queues);
                Ok(Box::new(Source {
                    number: lane,
                    ends,
                    memory: self.memory.clone(),
                    stopped: Arc::clone(&self.stopped),
                    ranges: Arc::clone(&self.ranges),
                    counters: LaneCounters::default(),
                    fences: 0,
                    confirmed: 0,
                }))
            }
        }
    }

    fn stop(&self) {
        wire::stop(&self.network.faults, &self.stopped, &self.queues);
    }
}

struct Source {
    number: LaneNumber,
    ends: Ends,
    memory: MemoryMap,
    stopped: Arc<AtomicBool>,
    ranges: Arc<SourceRanges>,
    counters: LaneCounters,
    fences: u64,
    confirmed: u64,
}

impl Source {
    fn check(&self, runs: &[Run]) -> Result<(), LaneError> {
        let lane = self.number;
        for run in runs {
            self.memory
                .check(*run)
                .map_err(|source| LaneError::Memory { lane, source })?;
        }
        match self.ranges.first_unready(runs) {
            Some(run) => Err(LaneError::NotPrepared { lane, run }),
            None => Ok(()),
        }
    }

    fn send(&mut self, message: Message) -> Result<(), LaneError> {
        let begun = Instant::now();
        self.counters.submissions += 1;
        self.ends
            .outgoing
            .send(message, None, &self.stopped)
            .map_err(|error| lane_error(self.number, error, "sending", begun))
    }
}

impl SourceLane for Source {
    fn number(&self) -> LaneNumber {
        self.number
    }

    fn put(&mut self, runs: &[Run]) -> Result<(), LaneError> {
        self.check(runs)?;
        let lane = self.number;
        for run in runs {
            self.counters.runs += 1;
            for piece in pieces(*run) {
                let mut bytes = vec![0; piece.bytes() as usize];
                self.memory
                    .copy_out(piece, &mut bytes)
                    .map_err(|source| LaneError::Memory { lane, source })?;
                self.send(Message::Put { run: piece, bytes })?;
                self.counters.payload_bytes += piece.bytes();
                self.counters.wire_bytes += piece.bytes();
            }
        }
        Ok(())
    }

    fn put_zero(&mut self, runs: &[Run]) -> Result<(), LaneError> {
        self.check(runs)?;
        for run in runs {
            self.send(Message::Zero { run: *run })?;
            self.counters.zero_pages += u64::from(run.pages);
        }
        Ok(())
    }

    fn fence(&mut self) -> Result<FenceNumber, LaneError> {
        let number = self.fences + 1;
        self.send(Message::Fence { number })?;
        self.fences = number;
        Ok(FenceNumber(number))
    }

    fn wait_fence(&mut self, number: FenceNumber, deadline: Deadline) -> Result<(), LaneError> {
        let begun = Instant::now();
        let lane = self.number;
        if number.0 > self.fences {
            return Err(LaneError::Protocol {
                lane,
                violation: format!("{number} was never sent, so nobody can confirm it"),
            });
        }
        while self.confirmed < number.0 {
            let message = self.ends.incoming.receive(deadline, &self.stopped);
            let message =
                message.map_err(|error| lane_error(lane, error, "waiting for a fence", begun))?;
            if let Message::Fence { number } = message {
                self.confirmed = number;
            }
        }
        Ok(())
    }

    fn counters(&self) -> LaneCounters {
        self.counters
    }
}

/// The destination's side of a session's lanes.
pub struct DestinationEndpoint {
    network: Network,
    memory: MemoryMap,
    stopped: Arc<AtomicBool>,
    /// The queues of its lanes.
    queues: Mutex<Vec<u64>>,
    gate: Arc<WriteGate>,
    used: Mutex<Vec<LaneToken>>,
}

impl DestinationEndpoint {
    /// Judges a lane that asks to be let in; `Ok` takes its token.
    fn judge(&self, asks: &LaneTicket, tickets: &[LaneTicket]) -> Result<(), &'static str> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if !tickets.iter().any(|ticket| ticket.session == asks.session) {
            return Err("it is of another session");
        }
        let ticket = tickets.iter().find(|ticket| ticket.number == asks.number);
        let Some(ticket) = ticket else {
            return Err("no lane of this number is expected");
        };
        if !ticket.token.matches(&asks.token) {
            return Err("its token is not this lane's");
        }
        if used.iter().any(|token| token.matches(&asks.token)) {
            return Err("its token was used already");
        }
        used.push(asks.token.clone());
        Ok(())
    }
}

impl lane::DestinationEndpoint for DestinationEndpoint {
    fn transport(&self) -> &'static str {
        "in-memory"
    }

    fn mechanism(&self) -> String {
        "queues".to_owned()
    }

    fn prepare(&self, range: Run) -> Result<Grant, LaneError> {
        self.memory.check(range).map_err(memory_error)?;
        if !self.gate.prepare(range) {
            return Err(LaneError::Stopped(NO_LANE));
        }
        Ok(Grant {
            range,
            key: Vec::new(),
        })
    }

    fn retire(&self, range: Run) -> Result<(), LaneError> {
        // A writer here only copies; there is nothing to interrupt.
        if self.gate.retire(range, || ()) {
            return Ok(());
        }
        Err(LaneError::NotPrepared {
            lane: NO_LANE,
            run: range,
        })
    }

    fn accept_lane(
        &self,
        tickets: &[LaneTicket],
        deadline: Deadline,
    ) -> Result<Box<dyn DestinationLane>, LaneError> {
        let begun = Instant::now();
        let faults = &self.network.faults;
        let lane = tickets.first().map_or(NO_LANE, |ticket| ticket.number);
        let mut state = faults.state();
        loop {
            let waiting =
                state.wires.requests.iter_mut().find(|request| {
                    request.network == self.network.id && request.verdict.is_none()
                });
            if self.stopped.load(Ordering::SeqCst) {
                return Err(LaneError::Stopped(lane));
            }
            if let Some(request) = waiting {
                let asks = request.ticket.clone();
                let id = request.id;
                match self.judge(&asks, tickets) {
                    Err(reason) => request.verdict = Some(Verdict::Refused(reason)),
                    Ok(()) => {
                        drop(state);
                        let place = Place::Lane(asks.number);
                        let (to_destination, from_source) =
                            wire::open(faults, place, Way::ToDestination);
                        let (to_source, from_destination) =
                            wire::open(faults, place, Way::ToSource);
                        let mut state = faults.state();
                        let mut requests = state.wires.requests.iter_mut();
                        let source_ends = Ends {
                            outgoing: to_destination,
                            incoming: from_destination,
                        };
                        // A source that gave up meanwhile leaves its ends to be dropped, behind
                        // the lock: dropping one takes it.
                        let mut left_over = Some(source_ends);
                        if let Some(request) = requests.find(|request| request.id == id) {
                            request.verdict = left_over.take().map(Verdict::Accepted);
                        }
                        drop(state);
                        drop(left_over);
                        faults.changed.notify_all();
                        let ends = Ends {
                            outgoing: to_source,
                            incoming: from_source,
                        };
                        ends.note(&self.queues);
                        return Ok(Box::new(Destination {
                            number: asks.number,
                            ends,
                            memory: self.memory.clone(),
                            stopped: Arc::clone(&self.stopped),
                            place: self.gate.add_writer(),
                            gate: Arc::clone(&self.gate),
                            counters: LaneCounters::default(),
                        }));
                    }
                }
                faults.changed.notify_all();
                continue;
            }
            if deadline.passed() {
                return Err(lane_error(
                    lane,
                    WireError::TimedOut,
                    "waiting for a lane",
                    begun,
                ));
            }
            state = wire::wait(faults, state, deadline.remaining());
        }
    }

    fn revoke_all(&self) {
        self.gate.revoke();
        self.stop();
        self.gate.wait_until_idle();
    }

    fn stop(&self) {
        wire::stop(&self.network.faults, &self.stopped, &self.queues);
    }
}

struct Destination {
    number: LaneNumber,
    ends: Ends,
    memory: MemoryMap,
    stopped: Arc<AtomicBool>,
    gate: Arc<WriteGate>,
    place: WriterPlace,
    counters: LaneCounters,
}

impl Destination {
    fn write(&mut self, run: Run, bytes: Option<&[u8]>) -> Result<(), LaneError> {
        let lane = self.number;
        for piece in pieces(run) {
            let _permit = self
                .gate
                .enter(&self.place, std::iter::once(piece))
                .map_err(|run| LaneError::NotPrepared { lane, run })?;
            match bytes {
                Some(bytes) => self.memory.copy_in(piece, bytes),
                None => self.memory.fill_zero(piece),
            }
            .map_err(|source| LaneError::Memory { lane, source })?;
        }
        Ok(())
    }
}

impl DestinationLane for Destination {
    fn number(&self) -> LaneNumber {
        self.number
    }

    fn next_fence(&mut self, deadline: Deadline) -> Result<FenceNumber, LaneError> {
        let begun = Instant::now();
        let lane = self.number;
        loop {
            let message = self.ends.incoming.receive(deadline, &self.stopped);
            self.counters.submissions += 1;
            match message.map_err(|error| lane_error(lane, error, "waiting for a fence", begun))? {
                Message::Put { run, bytes } => {
                    self.write(run, Some(&bytes))?;
                    self.counters.runs += 1;
                    self.counters.payload_bytes += run.bytes();
                    self.counters.wire_bytes += run.bytes();
                }
                Message::Zero { run } => {
                    self.write(run, None)?;
                    self.counters.zero_pages += u64::from(run.pages);
                }
                Message::Fence { number } => {
                    self.ends
                        .outgoing
                        .send(Message::Fence { number }, Some(deadline), &self.stopped)
                        .map_err(|error| lane_error(lane, error, "confirming a fence", begun))?;
                    return Ok(FenceNumber(number));
                }
                Message::Control { .. } => {
                    return Err(LaneError::Protocol {
                        lane,
                        violation: "a control message on a lane".to_owned(),
                    });
                }
            }
        }
    }

    fn counters(&self) -> LaneCounters {
        self.counters
    }
}

/// A run in pieces of at most [`PIECE_PAGES_MAX`] pages.
fn pieces(run: Run) -> impl Iterator<Item = Run> {
    (0..run.pages)
        .step_by(PIECE_PAGES_MAX as usize)
        .map(move |skipped| Run {
            first: PageNumber(run.first.0 + u64::from(skipped)),
            pages: PIECE_PAGES_MAX.min(run.pages - skipped),
        })
}
