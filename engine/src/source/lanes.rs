//! The source's lane threads: each claims chunks, re-arms their tracking, scans, and puts.
//!
//! Law 1 lives in [`LaneWorker::chunk`]: re-arm first, then look at the bytes. Law 2 lives in the
//! round's end: each lane fences, and in a pre-copy round waits for the destination's word.

mod context;
mod gate;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dunlin_transports::lane::{
    DeviceCounters, FenceNumber, LaneCounters, LaneError, LaneNumber, SourceLane,
};
use dunlin_transports::memory::{MemoryError, PAGE_BYTES, PageNumber, Run};
use dunlin_transports::runtime::{Receiver, SyncSender};

pub(super) use self::context::{LaneBytes, LaneContext};
use super::window::Window;
use crate::chunk::{Chunk, ChunkCursor, is_clean};
use crate::clock::Timestamp;
use crate::dirty::DirtyBitmap;
use crate::guest::GuestError;
use crate::planted;
use crate::runs::{clear_bits, for_each_run};
use crate::telemetry::{Counter, Kept, Moment, Operation, SpanName};

/// Why a lane thread could not finish its round.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaneFailure {
    /// The lane failed.
    #[error(transparent)]
    Lane(#[from] LaneError),
    /// Tracking could not be re-armed.
    #[error("re-arming dirty tracking: {0}")]
    Rearm(#[from] GuestError),
    /// A page to be sent is not guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The window did not open what the round needs: an error of this program.
    #[error("the memory at {0} was not registered for its round")]
    Unopened(PageNumber),
}

/// What a lane did in a round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LaneTally {
    /// Pages found to be zero.
    pub(super) zero_pages: u64,
    /// Of these, pages that needed no word to the destination.
    pub(super) skipped_pages: u64,
    /// Guest bytes put.
    pub(super) sent_bytes: u64,
    /// Time in the lane's own verbs.
    pub(super) sending: Duration,
    /// The time that it waited for memory to be registered.
    pub(super) waiting: Duration,
    /// Pages of memory that was not registered, put off to the next round.
    pub(super) postponed_pages: u64,
    /// Of that, the time of waiting for the round's fence.
    pub(super) fencing: Duration,
    /// The other time, but for what the lane was held back on purpose.
    pub(super) scanning: Duration,
    /// The last fence.
    pub(super) fence: FenceNumber,
    /// All that passed over the lane so far.
    pub(super) counters: LaneCounters,
    /// All that the lane asked of its device so far.
    pub(super) device: DeviceCounters,
}

/// A lane thread's word that its order is done.
#[derive(Debug)]
pub(super) struct LaneDone {
    /// Which lane.
    pub(super) lane: LaneNumber,
    /// What came of it.
    pub(super) result: Result<LaneTally, LaneFailure>,
}

/// What a lane thread is told to do.
#[derive(Clone)]
pub(super) enum Order {
    /// A round.
    Round(Arc<Round>),
    /// Wait until the destination has seen the last fence.
    ConfirmFence,
}

/// A round, shared by all lanes.
pub(super) struct Round {
    /// The pages that are dirty.
    pub(super) dirty: DirtyBitmap,
    /// Who takes which.
    pub(super) sharing: Sharing,
    /// Whether every page is taken for dirty, so that untouched memory is worth looking for.
    pub(super) is_first: bool,
}

/// How a round's pages are shared out.
pub(super) enum Sharing {
    /// Lanes claim chunk after chunk; the guest runs, the bandwidth limit holds, and the round ends
    /// with the destination's word.
    Claimed(Box<ChunkCursor>),
    /// Each lane has its share already; the guest is paused. PREPARE names the fences.
    Divided(Vec<Vec<Chunk>>),
}

/// One lane's thread: takes orders until their sender is gone.
pub(super) fn serve<E: From<LaneDone>>(
    lane: Box<dyn SourceLane>,
    context: &LaneContext<'_>,
    window: Option<Arc<Window>>,
    recorder: Kept,
    orders: &Receiver<Order>,
    done: &SyncSender<E>,
) {
    let number = lane.number();
    let mut worker = LaneWorker {
        lane,
        context,
        window,
        recorder,
        portion: 0,
        is_fenced: true,
        data: Vec::new(),
        zero: Vec::new(),
        touched: Vec::new(),
        data_words: Vec::new(),
        zero_words: Vec::new(),
    };
    let mut last_fence = FenceNumber(0);
    while let Ok(order) = orders.recv() {
        let result = match order {
            Order::Round(round) => worker.round(&round),
            Order::ConfirmFence => worker.confirm(last_fence),
        };
        if let Ok(tally) = &result {
            last_fence = tally.fence;
        }
        if done
            .send(
                LaneDone {
                    lane: number,
                    result,
                }
                .into(),
            )
            .is_err()
        {
            return;
        }
    }
}

struct LaneWorker<'a> {
    lane: Box<dyn SourceLane>,
    context: &'a LaneContext<'a>,
    /// Where memory is registered: what has to be asked before a chunk is put.
    window: Option<Arc<Window>>,
    recorder: Kept,
    /// The portion of this round in which the lane is.
    portion: u32,
    /// Whether all that was put is confirmed.
    is_fenced: bool,
    /// Runs of the chunk at hand that carry bytes; kept for its allocation.
    data: Vec<Run>,
    /// Runs of the chunk at hand that are zero; kept for its allocation.
    zero: Vec<Run>,
    /// The same as bits, and the dirty ones that may have been touched; kept for their allocations.
    data_words: Vec<u64>,
    zero_words: Vec<u64>,
    touched: Vec<u64>,
}

impl LaneWorker<'_> {
    fn round(&mut self, round: &Round) -> Result<LaneTally, LaneFailure> {
        let begin = Timestamp::now();
        #[cfg(feature = "planted-slowness")]
        let planted = super::slowness::Round::begins();
        let mut tally = LaneTally::default();
        let mut held_back = Duration::ZERO;
        self.portion = 0;
        match &round.sharing {
            Sharing::Claimed(cursor) => {
                while let Some(chunk) = cursor.claim() {
                    if self.context.stopped() {
                        return Err(LaneError::Stopped(self.lane.number()).into());
                    }
                    held_back += self.chunk(round, chunk, true, &mut tally)?;
                }
            }
            Sharing::Divided(shares) => {
                let share = shares.get(usize::from(self.lane.number().0));
                for chunk in share.into_iter().flatten() {
                    if self.context.stopped() {
                        return Err(LaneError::Stopped(self.lane.number()).into());
                    }
                    self.chunk(round, *chunk, false, &mut tally)?;
                }
            }
        }
        let fencing = Timestamp::now();
        tally.fence = self.lane.fence()?;
        let window = self.window.as_ref();
        // Others may be waiting for the room that this lane's portions take.
        let is_waited_for = window.is_some_and(|window| window.has_portions());
        if matches!(round.sharing, Sharing::Claimed(_)) || is_waited_for {
            let waiting = Timestamp::now();
            self.lane
                .wait_fence(tally.fence, self.context.peer_timeout)?;
            tally.fencing = Timestamp::now().since(waiting);
            self.is_fenced = true;
            if let Some(window) = window {
                window.pass(self.lane.number(), u32::MAX);
            }
        }
        #[cfg(feature = "planted-slowness")]
        planted.ends();
        let end = Timestamp::now();
        let (round_begun, fenced) = (Moment::at(begin), Moment::at(end));
        let fence_begun = Moment::at(fencing);
        self.recorder
            .span(SpanName::LaneRound, round_begun, fence_begun);
        if self.is_fenced {
            self.recorder.between(Operation::Fence, fence_begun, fenced);
            self.recorder.span(SpanName::LaneFence, fence_begun, fenced);
        }
        tally.sending += end.since(fencing);
        let elsewhere = held_back + tally.sending + tally.waiting;
        tally.scanning = end.since(begin).saturating_sub(elsewhere);
        tally.counters = self.lane.counters();
        tally.device = self.lane.device_counters();
        self.recorder.count(Counter::Zero, tally.zero_pages);
        self.recorder.count(Counter::Skipped, tally.skipped_pages);
        self.record_counters(tally.counters, tally.device);
        Ok(tally)
    }

    fn record_counters(&mut self, lane: LaneCounters, device: DeviceCounters) {
        for (counter, all) in [
            (Counter::Payload, lane.payload_bytes),
            (Counter::Wire, lane.wire_bytes),
            (Counter::Runs, lane.runs),
            (Counter::PutZero, lane.zero_pages),
            (Counter::Submissions, lane.submissions),
            (Counter::WorkRequests, device.work_requests),
            (Counter::Doorbells, device.doorbells),
            (Counter::Completions, device.completions),
        ] {
            self.recorder.counted(counter, all);
        }
    }

    fn confirm(&mut self, fence: FenceNumber) -> Result<LaneTally, LaneFailure> {
        if fence != FenceNumber(0) {
            let begun = self.recorder.now();
            planted::delay("source:fence");
            self.lane.wait_fence(fence, self.context.peer_timeout)?;
            let fenced = self.recorder.done(Operation::Fence, begun);
            self.recorder.span(SpanName::LaneFence, begun, fenced);
        }
        self.is_fenced = true;
        self.record_counters(self.lane.counters(), self.lane.device_counters());
        Ok(LaneTally {
            fence,
            counters: self.lane.counters(),
            device: self.lane.device_counters(),
            ..LaneTally::default()
        })
    }

    /// Deals with one chunk's dirty pages. Returns how long the lane was held back on purpose.
    fn chunk(
        &mut self,
        round: &Round,
        chunk: Chunk,
        paced: bool,
        tally: &mut LaneTally,
    ) -> Result<Duration, LaneFailure> {
        let words = chunk.words(&round.dirty);
        if is_clean(words) {
            return Ok(Duration::ZERO);
        }
        let is_open = self.pass_gate(chunk, tally)?;
        // Law 1: from here on a write shows up in the next collection. Only now may a byte of
        // these pages be read, or asked about.
        if !self.context.sources.is_empty() {
            let begun = self.recorder.now();
            for source in &self.context.sources {
                source.rearm(chunk.first, words)?;
            }
            self.recorder.done(Operation::Clear, begun);
        }
        self.recorder.count(Counter::Chunks, 1);
        self.sort(round, chunk, words, tally)?;
        if !is_open {
            self.postpone(round, chunk, tally)?;
        }

        let data_pages: u64 = self.data.iter().map(|run| u64::from(run.pages)).sum();
        let bytes = data_pages * PAGE_BYTES;
        let mut held_back = Duration::ZERO;
        if paced && bytes > 0 && self.context.handle.max_bandwidth().is_some() {
            let begin = Timestamp::now();
            let context = self.context;
            context.pacer.take(
                bytes,
                || context.handle.max_bandwidth(),
                || context.stopped(),
            );
            held_back = Timestamp::now().since(begin);
            self.recorder.took(Operation::Pacing, held_back);
        }
        let putting = Timestamp::now();
        self.is_fenced &= self.data.is_empty() && self.zero.is_empty();
        if !self.data.is_empty() {
            // Marked before they leave: from now on their zeros have to be sent as well.
            self.data
                .iter()
                .for_each(|run| self.context.written.mark(*run));
            self.lane.put(&self.data)?;
        }
        if !self.zero.is_empty() {
            let begun = self.recorder.now();
            self.lane.put_zero(&self.zero)?;
            self.recorder.done(Operation::PutZero, begun);
        }
        tally.sending += Timestamp::now().since(putting);
        tally.sent_bytes += bytes;
        let dealt_with = count(words);
        self.context
            .remaining_pages
            .fetch_sub(dealt_with, Ordering::Relaxed);
        self.context.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        let lane = usize::from(self.lane.number().0);
        if let Some(LaneBytes(sent)) = self.context.lanes_sent_bytes.get(lane) {
            sent.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(held_back)
    }

    /// Sorts a chunk's dirty pages into runs that carry bytes and runs that are zero, a word of the
    /// bitmap at a time.
    fn sort(
        &mut self,
        round: &Round,
        chunk: Chunk,
        words: &[u64],
        tally: &mut LaneTally,
    ) -> Result<(), LaneFailure> {
        self.touched.clear();
        self.touched.extend_from_slice(words);
        if round.is_first {
            let dirty = count(&self.touched);
            let touched = &mut self.touched;
            let begun = self.recorder.now();
            self.context
                .untouched
                .for_each_range(chunk.run(), |run| clear_bits(touched, chunk.first, run));
            self.recorder.done(Operation::UntouchedProbe, begun);
            // Law 5, and law 4: proven zero here, and never put, so zero there as well.
            let untouched = dirty - count(&self.touched);
            tally.zero_pages += untouched;
            tally.skipped_pages += untouched;
        }
        let begun = self.recorder.now();
        if matches!(round.sharing, Sharing::Divided(_)) {
            planted::delay("source:final-round");
        }
        self.data_words.clear();
        self.zero_words.clear();
        for (index, word) in self.touched.iter().enumerate() {
            let first = PageNumber(chunk.first.0 + index as u64 * 64);
            let context = self.context;
            let zero = context.scan.zero_pages(&context.memory, first, *word)?;
            // Law 4: only what was never written there is known to be zero there.
            let written = match zero {
                0 => 0,
                zero => zero & context.written.word(first),
            };
            tally.zero_pages += u64::from(zero.count_ones());
            tally.skipped_pages += u64::from((zero ^ written).count_ones());
            self.data_words.push(word ^ zero);
            self.zero_words.push(written);
        }
        self.recorder.done(Operation::ZeroScan, begun);
        for (words, runs) in [
            (&self.data_words, &mut self.data),
            (&self.zero_words, &mut self.zero),
        ] {
            runs.clear();
            for_each_run(chunk.first, words, chunk.pages, |run| runs.push(run));
        }
        Ok(())
    }
}

/// How many bits are set.
fn count(words: &[u64]) -> u64 {
    words.iter().map(|word| u64::from(word.count_ones())).sum()
}
