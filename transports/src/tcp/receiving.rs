//! The destination's end of a lane: takes frames apart, checks them, and lets their data fall where
//! it belongs.
//!
//! Heads pass through a small buffer, which may catch the first bytes of data with them; all other
//! data goes from the socket straight into guest memory, or, compressed, into a buffer of the lane's
//! own, and into guest memory once all of it is decompressed. No write begins without a permit of
//! the endpoint's gate, and none outlives it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Options;
use super::compression::{Codec, Unpacking};
use super::sockets::LaneSockets;
use super::stream::{ByteStream, Segments, StreamError, Want};
use super::wire::{self, Entry, HEAD_BYTES_MAX, HEADER_BYTES, Header, RUN_BYTES};
use crate::deadline::Deadline;
use crate::lane::{
    DestinationLane, FenceNumber, LaneCounters, LaneError, LaneNumber, LaneObserver, LaneWork,
};
use crate::memory::{MemoryMap, PageNumber, Run};
use crate::prepared::{WriteGate, WriterPlace};

mod packed;

/// Bytes received ahead of their use: a whole head, and room for the small frames behind it. What
/// of it turns out to be data is copied once more, at most this much in each batch.
const STAGING_BYTES: usize = HEAD_BYTES_MAX + 4096;

/// Zeros are written in pieces of at most this many pages (16 MiB), between which revoking and the
/// deadline take effect.
const ZERO_PIECE_PAGES: u32 = 4096;

/// The shortest run that is worth a call to have it backed. Such a call costs about what one fault
/// does, and its own faults cost less.
const POPULATED_PAGES_MIN: u32 = 8;

/// Bytes received and not yet used.
struct Staging {
    bytes: Vec<u8>,
    next: usize,
    filled: usize,
}

impl Staging {
    fn new() -> Self {
        Self {
            bytes: vec![0; STAGING_BYTES],
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

    /// Moves what is ready to the front. The room begins behind it, at `filled`.
    fn compact(&mut self) {
        self.bytes.copy_within(self.next..self.filled, 0);
        self.filled -= self.next;
        self.next = 0;
    }
}

/// The destination's end of a lane.
pub(super) struct ReceivingLane {
    stream: Box<dyn ByteStream>,
    staging: Staging,
    segments: Segments,
    unpacking: Unpacking,
    entries: Vec<Entry>,
    number: LaneNumber,
    memory: MemoryMap,
    gate: Arc<WriteGate>,
    place: WriterPlace,
    sockets: Arc<LaneSockets>,
    stall_limit: Duration,
    prefault: bool,
    counters: LaneCounters,
    fences: u64,
    failed: bool,
}

impl ReceivingLane {
    pub(super) fn new(
        number: LaneNumber,
        stream: Box<dyn ByteStream>,
        unpacking: Unpacking,
        memory: MemoryMap,
        gate: Arc<WriteGate>,
        sockets: Arc<LaneSockets>,
        options: &Options,
    ) -> Self {
        Self {
            stream,
            staging: Staging::new(),
            segments: Segments::new(memory.clone()),
            unpacking,
            entries: Vec::new(),
            number,
            memory,
            place: gate.add_writer(),
            gate,
            sockets,
            stall_limit: options.stall_limit,
            prefault: options.prefault,
            counters: LaneCounters::default(),
            fences: 0,
            failed: false,
        }
    }

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
            self.staging.compact();
            let buffer = std::mem::take(&mut self.staging.bytes);
            self.segments.set_buffer(buffer, self.staging.filled);
            let received = self
                .stream
                .receive(&mut self.segments, Want::Some, deadline);
            self.staging.bytes = self.segments.take_buffer();
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

    /// Receives a frame of runs behind its header. `packed`: how its data is compressed, and how
    /// many bytes of it come.
    fn receive_runs(
        &mut self,
        count: u16,
        data_bytes: u64,
        packed: Option<(Codec, u32)>,
        deadline: Deadline,
    ) -> Result<(), LaneError> {
        let observed = self.stream.observer().now();
        let table_bytes = usize::from(count) * RUN_BYTES;
        self.stage_begun(table_bytes, deadline)?;
        let mut entries = std::mem::take(&mut self.entries);
        let table = self.staging.ready().get(..table_bytes).unwrap_or_default();
        let result = wire::decode_table(table, data_bytes, &mut entries)
            .map_err(|violation| self.protocol(violation))
            .and_then(|()| {
                self.staging.consume(table_bytes);
                match packed {
                    None => {
                        self.write_zeros(&entries, deadline)?;
                        self.receive_data(&entries, deadline)
                    }
                    Some(packed) => self.receive_packed(&entries, data_bytes, packed, deadline),
                }
            });
        self.entries = entries;
        result?;
        let wire_bytes = packed.map_or(data_bytes, |(_, packed_bytes)| packed_bytes.into());
        self.counters.wire_bytes += table_bytes as u64 + wire_bytes;
        self.counters.payload_bytes += data_bytes;
        if packed.is_some() {
            self.counters.compressed_bytes += data_bytes;
        }
        self.stream.observer().done(LaneWork::Receive, observed);
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
            self.segments
                .push_run(run)
                .map_err(|source| LaneError::Memory { lane, source })?;
            self.counters.runs += 1;
        }
        let _permit = self
            .gate
            .enter(&self.place, runs.clone())
            .map_err(|run| LaneError::NotPrepared { lane, run })?;
        // Behind the first fence every page has been sent once: what is left was mostly touched.
        if self.prefault && self.fences == 0 {
            runs.filter(|run| run.pages >= POPULATED_PAGES_MIN)
                // Where that fails, receiving faults page by page.
                .for_each(|run| _ = self.memory.populate(run));
        }
        let copied = self.segments.fill_front(self.staging.ready());
        self.staging.consume(copied);
        if self.segments.bytes() == 0 {
            return Ok(());
        }
        let received = self.stream.receive(&mut self.segments, Want::All, deadline);
        match received {
            Ok(_) => Ok(()),
            Err(error) => Err(self.error(error, "receiving pages", begun)),
        }
    }

    fn confirm(&mut self, number: u64) -> Result<(), LaneError> {
        let begun = Instant::now();
        let word = Header::FenceSeen { number }.encode();
        let mut segments = self.segments.empty();
        segments.set_buffer(word.to_vec(), 0);
        let sent = self.stream.start_send(segments);
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
                    self.receive_runs(count, data_bytes, None, deadline)?;
                }
                Header::PackedRuns {
                    codec,
                    count,
                    packed_bytes,
                    data_bytes,
                } => {
                    let packed = Some((codec, packed_bytes));
                    self.receive_runs(count, data_bytes.into(), packed, deadline)?;
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

impl DestinationLane for ReceivingLane {
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

    fn observe(&mut self, observer: Box<dyn LaneObserver>) {
        self.stream.observer().set(observer);
    }

    fn counters(&self) -> Option<LaneCounters> {
        Some(LaneCounters {
            submissions: self.stream.submissions(),
            compressing: self.unpacking.spent(),
            ..self.counters
        })
    }
}
