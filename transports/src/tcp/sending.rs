//! The source's end of a lane: gathers runs into batches, sends them, and waits for the
//! destination's word.
//!
//! One batch is on its way while the next is filled, and compressed where that is asked for. Not
//! more: a send that waits for room in the socket's buffer is overtaken by one behind it unless one
//! submission links them (its author, in axboe/liburing#1001), and such a chain is no more than a
//! longer batch, of which [`BATCH_BYTES`](super::wire::BATCH_BYTES) says what it gains. Batches that
//! were sent without a copy linger beside it until they are acknowledged.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch::Batch;
use super::compression::{Compression, PACKED_DATA_BYTES_MAX, Packing};
use super::socket::SendQueue;
use super::sockets::LaneSockets;
use super::stream::{ByteStream, Segments, StreamError, Want};
use super::wire::{FRAME_BYTES_MAX, HEADER_BYTES, Header};
use crate::deadline::StallWatch;
use crate::lane::{
    FenceNumber, LaneCounters, LaneError, LaneNumber, LaneObserver, LaneWork, SourceLane,
};
use crate::memory::{MemoryMap, PAGE_BYTES, Run};
use crate::prepared::{Ready, SourceRanges};
use crate::published::View;

/// The smallest batch that an option may ask for.
const BATCH_BYTES_MIN: u32 = 64 << 10;

/// What a lane's batches are like.
#[derive(Clone, Copy)]
pub(super) struct BatchForm {
    /// About how many bytes of data each has; held to what the protocol allows.
    pub(super) bytes: u32,
    /// Whether and how they are compressed: the destination takes it.
    pub(super) compression: Compression,
}

impl BatchForm {
    /// The most bytes of data in a batch, and what compresses them.
    fn prepare(self, memory: &MemoryMap) -> io::Result<(u32, Option<Packing>)> {
        let bytes_max = match self.compression.codec() {
            None => FRAME_BYTES_MAX as u32,
            Some(_) => PACKED_DATA_BYTES_MAX,
        };
        let bytes = self.bytes.clamp(BATCH_BYTES_MIN, bytes_max);
        let packing = Packing::new(self.compression, memory.clone(), bytes)?;
        Ok((bytes, packing))
    }
}

/// The source's end of a lane.
pub(super) struct SendingLane {
    stream: Box<dyn ByteStream>,
    /// What the stream moves its bytes over, to see how they fare.
    connection: Arc<TcpStream>,
    filling: Batch,
    leaving: Batch,
    number: LaneNumber,
    memory: MemoryMap,
    ranges: Arc<SourceRanges>,
    ready: View<Ready>,
    sockets: Arc<LaneSockets>,
    batch_pages: u64,
    packing: Option<Packing>,
    counters: LaneCounters,
    /// When the batch that is leaving was handed over, by the observer's clock, and its bytes of
    /// data.
    leaving_since: (Option<u64>, u64),
    fences: u64,
    confirmed: u64,
    /// The destination's next word, as far as it has come.
    word: Vec<u8>,
    word_filled: usize,
    word_segments: Segments,
    failed: bool,
}

impl SendingLane {
    /// # Errors
    ///
    /// When there is no memory for compression.
    pub(super) fn new(
        number: LaneNumber,
        stream: Box<dyn ByteStream>,
        connection: Arc<TcpStream>,
        memory: MemoryMap,
        ranges: Arc<SourceRanges>,
        sockets: Arc<LaneSockets>,
        form: BatchForm,
    ) -> io::Result<Self> {
        let (batch_bytes, packing) = form.prepare(&memory)?;
        Ok(Self {
            stream,
            connection,
            filling: Batch::new(memory.clone(), packing.as_ref()),
            leaving: Batch::new(memory.clone(), packing.as_ref()),
            number,
            ranges,
            ready: View::default(),
            sockets,
            batch_pages: u64::from(batch_bytes) / PAGE_BYTES,
            packing,
            counters: LaneCounters::default(),
            leaving_since: (None, 0),
            fences: 0,
            confirmed: 0,
            word: vec![0; HEADER_BYTES],
            word_filled: 0,
            word_segments: Segments::new(memory.clone()),
            memory,
            failed: false,
        })
    }

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

    fn check(&mut self, runs: &[Run]) -> Result<(), LaneError> {
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
        match self.ranges.first_unready(&mut self.ready, runs) {
            Some(run) => Err(LaneError::NotPrepared { lane, run }),
            None => Ok(()),
        }
    }

    /// Waits for the batch that is leaving, then sends the one that was filled.
    ///
    /// Compressing comes first, as what is leaving goes on meanwhile, out of the system's buffer.
    fn flush(&mut self, fence: Option<u64>) -> Result<(), LaneError> {
        let lane = self.number;
        if let Some(packing) = &mut self.packing {
            self.filling
                .pack(packing)
                .map_err(|source| LaneError::Memory { lane, source })?;
        }
        self.settle()?;
        let begun = Instant::now();
        let (data_bytes, is_packed) = (self.filling.data_bytes(), self.filling.is_packed());
        let segments = self.filling.close(fence);
        let wire_bytes = segments.bytes() as u64;
        self.counters.wire_bytes += wire_bytes;
        if is_packed {
            self.counters.compressed_bytes += data_bytes;
        }
        if let Some(packing) = &mut self.packing {
            packing.look(&self.connection, begun);
            packing.handed(data_bytes, wire_bytes, is_packed);
        }
        std::mem::swap(&mut self.filling, &mut self.leaving);
        self.filling.clear();
        let observed = if data_bytes > 0 {
            self.stream.observer().now()
        } else {
            None
        };
        self.leaving_since = (observed, data_bytes);
        self.stream
            .start_send(segments)
            .map_err(|error| self.error(error, "sending", begun))
    }

    fn settle(&mut self) -> Result<(), LaneError> {
        let begun = Instant::now();
        match self.stream.settle_send() {
            Ok(used) => {
                // Keeps their memory for a later batch.
                if let Some(used) = used {
                    self.leaving.reuse(used);
                    let (begun, bytes) = std::mem::take(&mut self.leaving_since);
                    self.stream.observer().done(LaneWork::Put { bytes }, begun);
                }
                Ok(())
            }
            Err(error) => Err(self.error(error, "sending", begun)),
        }
    }

    fn add(&mut self, run: Run, is_zero: bool) -> Result<(), LaneError> {
        if self.filling.is_full(self.batch_pages) || self.filling.overlaps(run) {
            self.flush(None)?;
        }
        let lane = self.number;
        self.filling
            .add(run, is_zero)
            .map_err(|source| LaneError::Memory { lane, source })
    }

    /// Receives the destination's next word, for as long as it takes what was sent.
    fn receive_word(&mut self, stall_limit: Duration) -> Result<u64, LaneError> {
        let doing = "waiting for a fence";
        let mut watch = StallWatch::new(stall_limit);
        let mut queue = SendQueue::of(&self.connection);
        while self.word_filled < HEADER_BYTES {
            let word = std::mem::take(&mut self.word);
            self.word_segments.set_buffer(word, self.word_filled);
            let look = watch.next_look();
            let received = self
                .stream
                .receive(&mut self.word_segments, Want::Some, look);
            self.word = self.word_segments.take_buffer();
            self.word_filled += match received {
                // Nothing is sent meanwhile, so a change is what the peer acknowledged.
                Err(StreamError::TimedOut)
                    if !watch.is_stalled(queue.has_moved(&self.connection)) =>
                {
                    self.check(&[])?;
                    0
                }
                received => received.map_err(|error| self.error(error, doing, watch.since()))?,
            };
        }
        self.word_filled = 0;
        self.counters.wire_bytes += HEADER_BYTES as u64;
        let Some(word) = self.word.first_chunk::<HEADER_BYTES>() else {
            return Err(self.error(StreamError::Closed, doing, watch.since()));
        };
        match Header::decode(word) {
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

impl SourceLane for SendingLane {
    fn number(&self) -> LaneNumber {
        self.number
    }

    fn put(&mut self, runs: &[Run]) -> Result<(), LaneError> {
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
                self.add(piece, false)?;
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
            self.add(*run, true)?;
        }
        Ok(())
    }

    fn fence(&mut self) -> Result<FenceNumber, LaneError> {
        self.check(&[])?;
        let number = self.fences + 1;
        self.flush(Some(number))?;
        // The rest of a batch moves only while somebody waits for it.
        self.settle()?;
        if let Some(packing) = &mut self.packing {
            packing.paused();
        }
        self.fences = number;
        Ok(FenceNumber(number))
    }

    fn wait_fence(&mut self, number: FenceNumber, stall_limit: Duration) -> Result<(), LaneError> {
        if number.0 > self.fences {
            return Err(LaneError::Protocol {
                lane: self.number,
                violation: format!("{number} was never sent, so nobody can confirm it"),
            });
        }
        while self.confirmed < number.0 {
            self.check(&[])?;
            self.confirmed = self.receive_word(stall_limit)?;
        }
        Ok(())
    }

    fn observe(&mut self, observer: Box<dyn LaneObserver>) {
        self.stream.observer().set(observer);
    }

    fn counters(&self) -> LaneCounters {
        LaneCounters {
            submissions: self.stream.submissions(),
            zero_copy_bytes: self.stream.zero_copy_bytes(),
            compressing: self.packing.as_ref().map_or(Duration::ZERO, Packing::spent),
            ..self.counters
        }
    }
}
