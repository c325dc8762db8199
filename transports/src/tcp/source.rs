//! The endpoint and the lanes that send.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::batch::Batch;
use super::preamble::{ANSWER_BYTES, Answer, Preamble};
use super::sockets::LaneSockets;
use super::stream::{self, ByteStream, Segments, StreamError, Want};
use super::wire::{FRAME_BYTES_MAX, HEADER_BYTES, Header};
use super::{Options, socket};
use crate::deadline::Deadline;
use crate::lane::{
    self, FenceNumber, Grant, LaneCounters, LaneError, LaneNumber, LaneTicket, SourceLane,
};
use crate::memory::{MemoryMap, PAGE_BYTES, Run};
use crate::prepared::SourceRanges;

/// The smallest batch that an option may ask for.
const BATCH_BYTES_MIN: u64 = 64 << 10;

/// The name of a lane where an endpoint's call concerns none.
const NO_LANE: LaneNumber = LaneNumber(0);

/// The source's side of a session's lanes.
pub struct SourceEndpoint {
    peer: SocketAddr,
    memory: MemoryMap,
    options: Options,
    mechanism: Mutex<String>,
    sockets: Arc<LaneSockets>,
    ranges: Arc<SourceRanges>,
}

impl SourceEndpoint {
    /// An endpoint whose lanes go to `peer`: the address that answered the control connection.
    pub fn new(peer: SocketAddr, memory: MemoryMap, options: Options) -> Self {
        Self {
            peer,
            memory,
            mechanism: Mutex::new(stream::probe(options.mechanism)),
            options,
            sockets: Arc::default(),
            ranges: Arc::default(),
        }
    }

    /// Connects and shows the ticket.
    fn connect(
        &self,
        ticket: &LaneTicket,
        deadline: Deadline,
    ) -> Result<Arc<TcpStream>, LaneError> {
        let lane = ticket.number;
        let begun = Instant::now();
        let fail = |doing, source: std::io::Error| {
            if self.sockets.is_stopped() {
                LaneError::Stopped(lane)
            } else if source.kind() == ErrorKind::TimedOut {
                LaneError::Stalled {
                    lane,
                    doing,
                    waited: begun.elapsed(),
                }
            } else if socket::is_closed(&source) {
                LaneError::Closed(lane)
            } else {
                LaneError::System {
                    lane,
                    doing,
                    source,
                }
            }
        };
        let unreachable = |source| {
            if self.sockets.is_stopped() {
                return LaneError::Stopped(lane);
            }
            LaneError::Connect {
                lane,
                peer: self.peer.to_string(),
                source,
            }
        };
        let connection = socket::unconnected(self.peer, &self.options).map_err(unreachable)?;
        let connection = Arc::new(connection);
        if !self.sockets.add(&connection) {
            return Err(LaneError::Stopped(lane));
        }
        socket::connect(&connection, self.peer, &self.options, deadline).map_err(unreachable)?;
        let preamble = Preamble::lane(ticket).encode();
        socket::write_all(&connection, &preamble, deadline)
            .map_err(|source| fail("introducing the lane", source))?;
        let mut answer = [0; ANSWER_BYTES];
        socket::read_exact(&connection, &mut answer, deadline)
            .map_err(|source| fail("waiting to be let in", source))?;
        let Some(answer) = Answer::decode(answer) else {
            return Err(LaneError::Protocol {
                lane,
                violation: format!("the answer to a preamble was {answer:02x?}"),
            });
        };
        match answer.reason() {
            Some(reason) => Err(LaneError::Refused { lane, reason }),
            None => Ok(connection),
        }
    }
}

impl lane::SourceEndpoint for SourceEndpoint {
    fn transport(&self) -> &'static str {
        "tcp"
    }

    fn mechanism(&self) -> String {
        let mechanism = self.mechanism.lock();
        mechanism.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn prepare(&self, range: Run) -> Result<(), LaneError> {
        self.memory
            .check(range)
            .map_err(|source| LaneError::Memory {
                lane: NO_LANE,
                source,
            })?;
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
            let lane = NO_LANE;
            self.memory
                .check(grant.range)
                .map_err(|source| LaneError::Memory { lane, source })?;
            if !grant.key.is_empty() {
                return Err(LaneError::Protocol {
                    lane,
                    violation: format!("a TCP grant with a key of {} bytes", grant.key.len()),
                });
            }
            self.ranges.grant(grant.range);
        }
        Ok(())
    }

    fn open_lane(
        &self,
        ticket: &LaneTicket,
        deadline: Deadline,
    ) -> Result<Box<dyn SourceLane>, LaneError> {
        let connection = self.connect(ticket, deadline)?;
        let lane = ticket.number;
        let options = &self.options;
        let stream = stream::open(
            &connection,
            options.mechanism,
            options.stall_limit,
            |mechanism| {
                let noted = self.mechanism.lock();
                *noted.unwrap_or_else(PoisonError::into_inner) = mechanism;
            },
        )
        .map_err(|source| LaneError::System {
            lane,
            doing: "setting up io_uring",
            source,
        })?;
        let batch_bytes = u64::from(options.batch_bytes).clamp(BATCH_BYTES_MIN, FRAME_BYTES_MAX);
        Ok(Box::new(Source {
            stream,
            filling: Batch::new(),
            leaving: Batch::new(),
            number: lane,
            memory: self.memory.clone(),
            ranges: Arc::clone(&self.ranges),
            sockets: Arc::clone(&self.sockets),
            batch_pages: batch_bytes / PAGE_BYTES,
            counters: LaneCounters::default(),
            fences: 0,
            confirmed: 0,
            word: [0; HEADER_BYTES],
            word_filled: 0,
            failed: false,
        }))
    }

    fn stop(&self) {
        self.sockets.stop();
    }
}

struct Source {
    /// Dropped before the batches and the memory that it sends from.
    stream: Box<dyn ByteStream>,
    filling: Batch,
    leaving: Batch,
    number: LaneNumber,
    memory: MemoryMap,
    ranges: Arc<SourceRanges>,
    sockets: Arc<LaneSockets>,
    batch_pages: u64,
    counters: LaneCounters,
    fences: u64,
    confirmed: u64,
    /// The destination's next word, as far as it has come.
    word: [u8; HEADER_BYTES],
    word_filled: usize,
    failed: bool,
}

impl Source {
    fn error(&mut self, error: StreamError, doing: &'static str, begun: Instant) -> LaneError {
        let lane = self.number;
        // Part of a frame may have left: what would follow could not be understood. Only a wait
        // for the destination's word has a deadline, and can be taken up again.
        self.failed |= !matches!(error, StreamError::TimedOut);
        if self.sockets.is_stopped() {
            return LaneError::Stopped(lane);
        }
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

    fn check(&self, runs: &[Run]) -> Result<(), LaneError> {
        let lane = self.number;
        if self.sockets.is_stopped() {
            return Err(LaneError::Stopped(lane));
        }
        if self.failed {
            return Err(LaneError::Closed(lane));
        }
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

    /// Waits for the batch that is leaving, then sends the one that was filled.
    fn flush(&mut self, fence: Option<u64>) -> Result<(), LaneError> {
        self.settle()?;
        let begun = Instant::now();
        let segments = self.filling.close(fence);
        self.counters.wire_bytes += segments.bytes() as u64;
        std::mem::swap(&mut self.filling, &mut self.leaving);
        self.filling.clear();
        // SAFETY: the head is in `leaving`, which nobody touches until the next `settle`; the data
        // is mapped as long as `memory` is held. Both are dropped behind `stream`.
        unsafe { self.stream.start_send(segments) }
            .map_err(|error| self.error(error, "sending", begun))
    }

    fn settle(&mut self) -> Result<(), LaneError> {
        let begun = Instant::now();
        match self.stream.settle_send() {
            Ok(used) => {
                // Keeps the vector's memory for a later batch.
                self.leaving.reuse(used);
                Ok(())
            }
            Err(error) => Err(self.error(error, "sending", begun)),
        }
    }

    fn add(&mut self, run: Run, data: Option<*mut u8>) -> Result<(), LaneError> {
        if self.filling.is_full(self.batch_pages) || self.filling.overlaps(run) {
            self.flush(None)?;
        }
        self.filling.add(run, data);
        Ok(())
    }

    fn receive_word(&mut self, deadline: Deadline) -> Result<u64, LaneError> {
        let begun = Instant::now();
        let doing = "waiting for a fence";
        while self.word_filled < HEADER_BYTES {
            let mut segments = Segments::default();
            let rest = self.word.get_mut(self.word_filled..).unwrap_or_default();
            segments.push(rest.as_mut_ptr(), rest.len());
            // SAFETY: the segment is the rest of `self.word`, borrowed by nobody until this returns.
            let received = unsafe { self.stream.receive(&mut segments, Want::Some, deadline) };
            self.word_filled += received.map_err(|error| self.error(error, doing, begun))?;
        }
        self.word_filled = 0;
        self.counters.wire_bytes += HEADER_BYTES as u64;
        match Header::decode(&self.word) {
            Ok(Header::FenceSeen { number })
                if number == self.confirmed + 1 && number <= self.fences =>
            {
                Ok(number)
            }
            Ok(other) => Err(LaneError::Protocol {
                lane: self.number,
                violation: format!(
                    "{other:?} where the word for fence {} of {} was due",
                    self.confirmed + 1,
                    self.fences
                ),
            }),
            Err(violation) => Err(LaneError::Protocol {
                lane: self.number,
                violation,
            }),
        }
    }
}

impl SourceLane for Source {
    fn number(&self) -> LaneNumber {
        self.number
    }

    fn put(&mut self, runs: &[Run]) -> Result<(), LaneError> {
        let lane = self.number;
        self.check(runs)?;
        for run in runs {
            self.counters.runs += 1;
            self.counters.payload_bytes += run.bytes();
            let mut rest = *run;
            while rest.pages > 0 {
                // A run that does not fit into what is left of the batch is split there.
                if self.filling.is_full(self.batch_pages) {
                    self.flush(None)?;
                }
                let room = self.batch_pages - self.filling.data_pages();
                let piece = Run {
                    first: rest.first,
                    pages: rest.pages.min(u32::try_from(room).unwrap_or(u32::MAX)),
                };
                let base = self
                    .memory
                    .host_address(piece)
                    .map_err(|source| LaneError::Memory { lane, source })?;
                self.add(piece, Some(base))?;
                rest.first = piece.end();
                rest.pages -= piece.pages;
            }
        }
        Ok(())
    }

    fn put_zero(&mut self, runs: &[Run]) -> Result<(), LaneError> {
        self.check(runs)?;
        for run in runs {
            self.counters.zero_pages += u64::from(run.pages);
            self.add(*run, None)?;
        }
        Ok(())
    }

    fn fence(&mut self) -> Result<FenceNumber, LaneError> {
        self.check(&[])?;
        let number = self.fences + 1;
        self.flush(Some(number))?;
        // The rest of a batch moves only while somebody waits for it.
        self.settle()?;
        self.fences = number;
        Ok(FenceNumber(number))
    }

    fn wait_fence(&mut self, number: FenceNumber, deadline: Deadline) -> Result<(), LaneError> {
        if number.0 > self.fences {
            return Err(LaneError::Protocol {
                lane: self.number,
                violation: format!("{number} was never sent, so nobody can confirm it"),
            });
        }
        while self.confirmed < number.0 {
            self.check(&[])?;
            self.confirmed = self.receive_word(deadline)?;
        }
        Ok(())
    }

    fn counters(&self) -> LaneCounters {
        LaneCounters {
            submissions: self.stream.submissions(),
            ..self.counters
        }
    }
}
