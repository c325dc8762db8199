//! What all lanes of a move share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dunlin_transports::lane::LANES_MAX;
use dunlin_transports::memory::{MemoryError, MemoryMap, PageNumber, Run};

use crate::chunk::Chunk;
use crate::dirty::DirtySource;
use crate::pacing::Pacer;
use crate::runs::{clear_bits, for_each_run, set_bits, words_of};
use crate::settings::MoveHandle;
use crate::untouched::Untouched;
use crate::zero::ZeroScan;

/// A bit for each page that was put, set by all lanes.
pub(super) struct WrittenPages {
    words: Vec<AtomicU64>,
}

impl WrittenPages {
    fn new(page_span: u64) -> Self {
        let words = usize::try_from(page_span.div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            words: std::iter::repeat_with(|| AtomicU64::new(0))
                .take(words)
                .collect(),
        }
    }

    fn is_any(&self) -> bool {
        self.words
            .iter()
            .any(|word| word.load(Ordering::Relaxed) != 0)
    }

    // Relaxed throughout: a page changes lanes only between rounds, and what is between rounds (a
    // channel there and back) orders these too.
    pub(super) fn mark(&self, run: Run) {
        for (index, bits) in words_of(run) {
            if let Some(word) = self.words.get(index) {
                word.fetch_or(bits, Ordering::Relaxed);
            }
        }
    }

    /// The bits of the word that begins with page `first`.
    pub(super) fn word(&self, first: PageNumber) -> u64 {
        let word = self.words.get((first.0 / 64) as usize);
        // What can't be told counts as written.
        word.map_or(u64::MAX, |word| word.load(Ordering::Relaxed))
    }
}

/// What all lanes of a move share.
pub(in crate::source) struct LaneContext<'a> {
    pub(super) memory: MemoryMap,
    pub(super) sources: Vec<Arc<dyn DirtySource>>,
    pub(super) untouched: Untouched,
    pub(super) scan: ZeroScan,
    pub(super) written: WrittenPages,
    pub(super) pacer: Pacer,
    pub(super) handle: &'a MoveHandle,
    pub(super) peer_timeout: Duration,
    stop: AtomicBool,
    /// Dirty pages not yet dealt with in this round, for progress.
    pub(in crate::source) remaining_pages: AtomicU64,
    /// Guest bytes put since the move began, for progress.
    pub(in crate::source) sent_bytes: AtomicU64,
    /// The same, lane by lane.
    pub(in crate::source) lanes_sent_bytes: Box<[LaneBytes]>,
}

/// What one lane put: on a cache line of its own, which no other lane writes to.
#[derive(Default)]
#[repr(align(64))]
pub(in crate::source) struct LaneBytes(pub(in crate::source) AtomicU64);

impl<'a> LaneContext<'a> {
    /// What the lanes need: the memory through their mappings, and the dirty sources.
    pub(in crate::source) fn new(
        memory: MemoryMap,
        untouched: Untouched,
        sources: Vec<Arc<dyn DirtySource>>,
        handle: &'a MoveHandle,
        peer_timeout: Duration,
    ) -> Self {
        Self {
            written: WrittenPages::new(memory.page_span()),
            memory,
            sources: sources
                .into_iter()
                .filter(|source| !source.rearms_on_collect())
                .collect(),
            untouched,
            scan: ZeroScan::detect(),
            pacer: Pacer::new(),
            handle,
            peer_timeout,
            stop: AtomicBool::new(false),
            remaining_pages: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            lanes_sent_bytes: std::iter::repeat_with(LaneBytes::default)
                .take(usize::from(LANES_MAX))
                .collect(),
        }
    }

    /// Whether all of a chunk is proven to read as zero (law 5: proof only where its tracking was
    /// armed before).
    pub(in crate::source) fn is_untouched(&self, chunk: Chunk) -> bool {
        let mut untouched = 0;
        self.untouched
            .for_each_range(chunk.run(), |run| untouched += u64::from(run.pages));
        untouched >= u64::from(chunk.pages)
    }

    /// Calls `found` for the runs of a chunk that would carry bytes if it was put now: neither
    /// untouched nor zero. A guess, where tracking is not armed; `words` is room for bits.
    pub(in crate::source) fn guess_data(
        &self,
        chunk: Chunk,
        words: &mut Vec<u64>,
        found: impl FnMut(Run),
    ) -> Result<(), MemoryError> {
        words.clear();
        words.resize(chunk.word_range().len(), 0);
        let all = chunk.run();
        set_bits(words, chunk.first, all);
        self.untouched
            .for_each_range(all, |run| clear_bits(words, chunk.first, run));
        for (word, first) in words.iter_mut().zip((chunk.first.0..).step_by(64)) {
            *word ^= self
                .scan
                .zero_pages(&self.memory, PageNumber(first), *word)?;
        }
        for_each_run(chunk.first, words, chunk.pages, found);
        Ok(())
    }

    /// Whether a lane has put anything, or is about to.
    pub(in crate::source) fn has_put(&self) -> bool {
        self.written.is_any()
    }

    /// Tells lanes to leave their round. Blocked ones are ended by their endpoint.
    pub(in crate::source) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    pub(in crate::source) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}
