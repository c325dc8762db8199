//! The endpoint and the lanes that receive.

use std::net::TcpStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::preamble::{self, Answer, ConnectionKind, Preamble, Refusal};
use super::sockets::LaneSockets;
use super::stream::{self, ByteStream, Segments, StreamError, Want};
use super::wire::{self, Entry, HEAD_BYTES_MAX, HEADER_BYTES, Header, RUN_BYTES};
use super::{Options, socket};
use crate::deadline::Deadline;
use crate::lane::{
    self, DestinationLane, FenceNumber, Grant, LaneCounters, LaneError, LaneNumber, LaneTicket,
    LaneToken,
};
use crate::memory::{MemoryMap, PageNumber, Run};
use crate::prepared::{WriteGate, WriterPlace};

/// How often a wait for a lane looks whether the endpoint was stopped.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// Bytes received ahead of their use: a whole head, and room for the small frames behind it. What
/// of it turns out to be data is copied once more, at most this much in each batch.
const STAGING_BYTES: usize = HEAD_BYTES_MAX + 4096;

/// Zeros are written in pieces of at most this many pages (16 MiB), between which revoking and the
/// deadline take effect.
const ZERO_PIECE_PAGES: u32 = 4096;

/// The name of a lane where an endpoint's call concerns none.
const NO_LANE: LaneNumber = LaneNumber(0);

/// A connection whose preamble said that it is a lane.
#[derive(Debug)]
pub struct IncomingLane {
    /// The connection, behind its preamble.
    pub stream: TcpStream,
    /// What it said.
    pub preamble: Preamble,
}

/// The destination's side of a session's lanes.
pub struct DestinationEndpoint {
    memory: MemoryMap,
    incoming: Mutex<Receiver<IncomingLane>>,
    options: Options,
    mechanism: Mutex<String>,
    sockets: Arc<LaneSockets>,
    gate: Arc<WriteGate>,
    used: Mutex<Vec<LaneToken>>,
}

impl DestinationEndpoint {
    /// An endpoint that takes its lanes from `incoming`, where whoever accepts connections passes
    /// them on.
    pub fn new(memory: MemoryMap, incoming: Receiver<IncomingLane>, options: Options) -> Self {
        Self {
            memory,
            incoming: Mutex::new(incoming),
            mechanism: Mutex::new(stream::probe(options.mechanism)),
            options,
            sockets: Arc::default(),
            gate: Arc::default(),
            used: Mutex::default(),
        }
    }

    /// Judges a lane that wants in. Accepting uses its token up.
    fn judge(&self, shown: &Preamble, tickets: &[LaneTicket]) -> Result<(), Refusal> {
        if shown.kind != ConnectionKind::Lane {
            return Err(Refusal::Kind);
        }
        if !tickets.iter().any(|ticket| ticket.session == shown.session) {
            return Err(Refusal::Session);
        }
        let expected =
            |ticket: &&LaneTicket| ticket.session == shown.session && ticket.number == shown.lane;
        let ticket = tickets.iter().find(expected).ok_or(Refusal::Lane)?;
        if !ticket.token.matches(&shown.token) {
            return Err(Refusal::Token);
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.iter().any(|token| token.matches(&shown.token)) {
            return Err(Refusal::Token);
        }
        used.push(shown.token.clone());
        Ok(())
    }

    /// Makes a lane of a connection that was judged.
    fn admit(&self, incoming: IncomingLane) -> Result<Box<dyn DestinationLane>, LaneError> {
        let lane = incoming.preamble.lane;
        let system = |doing, source| LaneError::System {
            lane,
            doing,
            source,
        };
        let connection = Arc::new(incoming.stream);
        if !self.sockets.add(&connection) {
            return Err(LaneError::Stopped(lane));
        }
        socket::configure(&connection, &self.options)
            .map_err(|source| system("setting up the connection", source))?;
        let stream = stream::open(
            &connection,
            self.options.mechanism,
            self.options.stall_limit,
            |mechanism| {
                let noted = self.mechanism.lock();
                *noted.unwrap_or_else(PoisonError::into_inner) = mechanism;
            },
        )
        .map_err(|source| system("setting up io_uring", source))?;
        preamble::answer(&connection, Answer::Accepted)
            .map_err(|source| system("letting the lane in", source))?;
        Ok(Box::new(Destination {
            stream,
            staging: Staging::new(),
            segments: Segments::default(),
            entries: Vec::new(),
            number: lane,
            memory: self.memory.clone(),
            place: self.gate.add_writer(),
            gate: Arc::clone(&self.gate),
            sockets: Arc::clone(&self.sockets),
            stall_limit: self.options.stall_limit,
            counters: LaneCounters::default(),
            fences: 0,
            failed: false,
        }))
    }
}

impl lane::DestinationEndpoint for DestinationEndpoint {
    fn transport(&self) -> &'static str {
        "tcp"
    }

    fn mechanism(&self) -> String {
        let mechanism = self.mechanism.lock();
        mechanism.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn prepare(&self, range: Run) -> Result<Grant, LaneError> {
        self.memory
            .check(range)
            .map_err(|source| LaneError::Memory {
                lane: NO_LANE,
                source,
            })?;
        if !self.gate.prepare(range) {
            return Err(LaneError::Stopped(NO_LANE));
        }
        Ok(Grant {
            range,
            key: Vec::new(),
        })
    }

    fn retire(&self, range: Run) -> Result<(), LaneError> {
        if self.gate.retire(range, || self.sockets.stop()) {
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
        let lane = tickets.first().map_or(NO_LANE, |ticket| ticket.number);
        loop {
            if self.sockets.is_stopped() {
                return Err(LaneError::Stopped(lane));
            }
            let wait = deadline.remaining().min(STOP_CHECK_INTERVAL);
            let incoming = {
                let incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
                incoming.recv_timeout(wait)
            };
            match incoming {
                Ok(incoming) => match self.judge(&incoming.preamble, tickets) {
                    Ok(()) => return self.admit(incoming),
                    Err(refusal) => preamble::refuse(&incoming.stream, refusal),
                },
                Err(RecvTimeoutError::Timeout) if deadline.passed() => {
                    return Err(LaneError::Stalled {
                        lane,
                        doing: "waiting for a lane",
                        waited: begun.elapsed(),
                    });
                }
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody accepts connections any more.
                Err(RecvTimeoutError::Disconnected) => return Err(LaneError::Closed(lane)),
            }
        }
    }

    fn revoke_all(&self) {
        // In this order: no batch begins any more; those under way lose their connection; and when
        // they have ended, none is left.
        self.gate.revoke();
        self.sockets.stop();
        self.gate.wait_until_idle();
    }

    fn stop(&self) {
        self.sockets.stop();
    }
}

/// Bytes received and not yet used.
struct Staging {
    bytes: Box<[u8]>,
    next: usize,
    filled: usize,
}

impl Staging {
    fn new() -> Self {
        Self {
            bytes: vec![0; STAGING_BYTES].into(),
            next: 0,
            filled: 0,
        }
    }

    fn ready(&self) -> &[u8] {
        self.bytes.get(self.next..self.filled).unwrap_or_default()
    }

    fn consume(&mut self, count: usize) {
        self.next = (self.next + count).min(self.filled);
    }

    /// The room behind what is ready, after moving that to the front.
    fn room(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.next..self.filled, 0);
        self.filled -= self.next;
        self.next = 0;
        self.bytes.get_mut(self.filled..).unwrap_or_default()
    }
}

struct Destination {
    stream: Box<dyn ByteStream>,
    staging: Staging,
    segments: Segments,
    entries: Vec<Entry>,
    number: LaneNumber,
    memory: MemoryMap,
    gate: Arc<WriteGate>,
    place: WriterPlace,
    sockets: Arc<LaneSockets>,
    stall_limit: Duration,
    counters: LaneCounters,
    fences: u64,
    failed: bool,
}

impl Destination {
    fn error(&self, error: StreamError, doing: &'static str, begun: Instant) -> LaneError {
        let lane = self.number;
        match error {
            StreamError::Closed => LaneError::Closed(lane),
            StreamError::TimedOut | StreamError::Stalled => LaneError::Stalled {
                lane,
                doing,
                waited: begun.elapsed(),
            },
            StreamError::System(source) => LaneError::System {
                lane,
                doing,
                source,
            },
        }
    }

    fn protocol(&self, violation: String) -> LaneError {
        LaneError::Protocol {
            lane: self.number,
            violation,
        }
    }

    /// Sees to it that `count` bytes are ready.
    fn stage(&mut self, count: usize, deadline: Deadline) -> Result<(), LaneError> {
        let begun = Instant::now();
        while self.staging.ready().len() < count {
            let room = self.staging.room();
            self.segments.clear();
            self.segments.push(room.as_mut_ptr(), room.len());
            // SAFETY: the segment is room in the staging buffer, which nobody else uses until this
            // returns.
            let received = unsafe {
                self.stream
                    .receive(&mut self.segments, Want::Some, deadline)
            };
            let received =
                received.map_err(|error| self.error(error, "waiting for a fence", begun))?;
            self.staging.filled += received;
        }
        Ok(())
    }

    /// As `stage`, within the stall limit too: for the rest of what has begun.
    fn stage_begun(&mut self, count: usize, deadline: Deadline) -> Result<(), LaneError> {
        self.stage(count, deadline.earlier(Deadline::after(self.stall_limit)))
    }

    fn receive_runs(
        &mut self,
        count: u16,
        data_bytes: u64,
        deadline: Deadline,
    ) -> Result<(), LaneError> {
        let table_bytes = usize::from(count) * RUN_BYTES;
        self.stage_begun(table_bytes, deadline)?;
        let mut entries = std::mem::take(&mut self.entries);
        let table = self.staging.ready().get(..table_bytes).unwrap_or_default();
        let result = wire::decode_table(table, data_bytes, &mut entries)
            .map_err(|violation| self.protocol(violation))
            .and_then(|()| {
                self.staging.consume(table_bytes);
                self.write_zeros(&entries, deadline)?;
                self.receive_data(&entries, deadline)
            });
        self.entries = entries;
        result?;
        self.counters.wire_bytes += table_bytes as u64 + data_bytes;
        self.counters.payload_bytes += data_bytes;
        Ok(())
    }

    fn write_zeros(&mut self, entries: &[Entry], deadline: Deadline) -> Result<(), LaneError> {
        let lane = self.number;
        let begun = Instant::now();
        for run in entries
            .iter()
            .filter(|entry| entry.is_zero)
            .map(|entry| entry.run)
        {
            // The whole run first, so that one that is not prepared leaves no trace.
            self.check(run)?;
            for skipped in (0..run.pages).step_by(ZERO_PIECE_PAGES as usize) {
                let piece = Run {
                    first: PageNumber(run.first.0 + u64::from(skipped)),
                    pages: ZERO_PIECE_PAGES.min(run.pages - skipped),
                };
                if deadline.passed() {
                    return Err(self.error(StreamError::TimedOut, "writing zeros", begun));
                }
                let _permit = self
                    .gate
                    .enter(&self.place, std::iter::once(piece))
                    .map_err(|run| LaneError::NotPrepared { lane, run })?;
                self.memory
                    .fill_zero(piece)
                    .map_err(|source| LaneError::Memory { lane, source })?;
            }
            self.counters.zero_pages += u64::from(run.pages);
        }
        Ok(())
    }

    fn check(&self, run: Run) -> Result<(), LaneError> {
        let lane = self.number;
        self.memory
            .check(run)
            .map_err(|source| LaneError::Memory { lane, source })?;
        self.gate
            .enter(&self.place, std::iter::once(run))
            .map(|_| ())
            .map_err(|run| LaneError::NotPrepared { lane, run })
    }

    fn receive_data(&mut self, entries: &[Entry], deadline: Deadline) -> Result<(), LaneError> {
        let lane = self.number;
        let begun = Instant::now();
        let runs = entries
            .iter()
            .filter(|entry| !entry.is_zero)
            .map(|entry| entry.run);
        self.segments.clear();
        for run in runs.clone() {
            let base = self
                .memory
                .host_address(run)
                .map_err(|source| LaneError::Memory { lane, source })?;
            self.segments.push(base, run.bytes() as usize);
            self.counters.runs += 1;
        }
        let _permit = self
            .gate
            .enter(&self.place, runs)
            .map_err(|run| LaneError::NotPrepared { lane, run })?;
        // SAFETY: the segments are guest memory inside of `memory`, which this lane holds.
        let copied = unsafe { self.segments.fill_front(self.staging.ready()) };
        self.staging.consume(copied);
        if self.segments.bytes() == 0 {
            return Ok(());
        }
        // SAFETY: as above; `receive` does not return before the kernel has let go.
        let received = unsafe { self.stream.receive(&mut self.segments, Want::All, deadline) };
        match received {
            Ok(_) => Ok(()),
            Err(error) => Err(self.error(error, "receiving pages", begun)),
        }
    }

    fn confirm(&mut self, number: u64) -> Result<(), LaneError> {
        let begun = Instant::now();
        let mut word = Header::FenceSeen { number }.encode();
        let mut segments = Segments::default();
        segments.push(word.as_mut_ptr(), word.len());
        // SAFETY: `word` lives until `settle_send` returned, on each path.
        let sent = unsafe { self.stream.start_send(segments) };
        let sent = sent.and_then(|()| self.stream.settle_send());
        match sent {
            Ok(_) => {
                self.counters.wire_bytes += HEADER_BYTES as u64;
                Ok(())
            }
            Err(error) => Err(self.error(error, "confirming a fence", begun)),
        }
    }

    fn receive_until_fence(&mut self, deadline: Deadline) -> Result<FenceNumber, LaneError> {
        let begun = Instant::now();
        loop {
            // A peer that never stops sending is held to the deadline too.
            if deadline.passed() {
                return Err(self.error(StreamError::TimedOut, "waiting for a fence", begun));
            }
            self.stage(1, deadline)?;
            self.stage_begun(HEADER_BYTES, deadline)?;
            let Some(header) = self.staging.ready().first_chunk::<HEADER_BYTES>() else {
                continue;
            };
            let header = Header::decode(header).map_err(|violation| self.protocol(violation))?;
            self.staging.consume(HEADER_BYTES);
            self.counters.wire_bytes += HEADER_BYTES as u64;
            match header {
                Header::Runs { count, data_bytes } => {
                    self.receive_runs(count, data_bytes, deadline)?;
                }
                Header::Fence { number } if number == self.fences + 1 => {
                    self.confirm(number)?;
                    self.fences = number;
                    return Ok(FenceNumber(number));
                }
                Header::Fence { number } => {
                    return Err(self.protocol(format!(
                        "fence {number} where fence {} was due",
                        self.fences + 1
                    )));
                }
                Header::FenceSeen { .. } => {
                    return Err(self.protocol("a destination's word from the source".to_owned()));
                }
            }
        }
    }
}

impl DestinationLane for Destination {
    fn number(&self) -> LaneNumber {
        self.number
    }

    fn next_fence(&mut self, deadline: Deadline) -> Result<FenceNumber, LaneError> {
        let stopped = |lane: &Self| lane.sockets.is_stopped();
        if self.failed {
            return Err(if stopped(self) {
                LaneError::Stopped(self.number)
            } else {
                LaneError::Closed(self.number)
            });
        }
        self.receive_until_fence(deadline).map_err(|error| {
            self.failed = true;
            // Whatever a shut-down connection looks like, this is why.
            if stopped(self) {
                LaneError::Stopped(self.number)
            } else {
                error
            }
        })
    }

    fn counters(&self) -> LaneCounters {
        LaneCounters {
            submissions: self.stream.submissions(),
            ..self.counters
        }
    }
}
