//! Telling the destination what the first round will write next, so that it can have that memory
//! backed before it comes.
//!
//! These are hints: lanes do not wait for anybody to heed them, and nothing is lost with one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dunlin_transports::memory::{PAGE_BYTES, Run};
use dunlin_transports::runtime::{self, Scope};

use super::lanes::LaneContext;
use crate::chunk::{Chunk, ChunkPlan};
use crate::link::Speaker;
use crate::protocol::{Message, PREFAULT_PAGES_MAX, Ranges};

/// How far ahead of the lanes memory is named. At 12.5 GB/s (100 Gb/s) lanes take 20 ms for it; a
/// destination of a slow link backs no more than this before it is needed.
const AHEAD_PAGES: u64 = (256 << 20) / PAGE_BYTES;

/// How long the lanes are left alone once all that far is named: a tenth of the time above.
const PAUSE: Duration = Duration::from_millis(2);

/// How many ranges one message names at most. The first ones name fewer, since the lanes are close
/// behind.
const BATCH_MAX: usize = 32;

/// How much neighbouring memory is one range, in pages: 8 MiB.
const RANGE_PAGES: u32 = 2048;
const _: () = assert!(RANGE_PAGES <= PREFAULT_PAGES_MAX);

/// The shortest run that is worth naming. Having it backed takes a call, which costs about what one
/// fault does.
const RUN_PAGES_MIN: u32 = 8;

/// The thread that does the telling; dropping this ends it, within [`PAUSE`].
pub(super) struct Telling {
    is_over: Arc<AtomicBool>,
}

impl Telling {
    /// Starts the thread, for a round that has all of the guest's pages, `all_pages` of them.
    ///
    /// # Errors
    ///
    /// When the system starts no thread.
    pub(super) fn start<'scope, 'env>(
        scope: &Scope<'scope, 'env>,
        context: &'env LaneContext<'env>,
        chunks: ChunkPlan,
        all_pages: u64,
        speaker: Speaker,
    ) -> std::io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let teller = Teller {
            is_over: Arc::clone(&is_over),
            context,
            chunks,
            all_pages,
            speaker,
            batch: 1,
            ranges: Vec::with_capacity(BATCH_MAX),
            words: Vec::new(),
        };
        scope.spawn("dunlin-ahead", move || teller.tell())?;
        Ok(Self { is_over })
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

struct Teller<'env> {
    is_over: Arc<AtomicBool>,
    context: &'env LaneContext<'env>,
    chunks: ChunkPlan,
    all_pages: u64,
    speaker: Speaker,
    /// How many ranges the next message names.
    batch: usize,
    /// Ranges that are not told yet.
    ranges: Vec<Run>,
    /// Bits of the chunk at hand; kept for their allocation.
    words: Vec<u64>,
}

impl Teller<'_> {
    /// Goes through all chunks in the order in which lanes claim them, ahead of them. Lanes that are
    /// faster are not held up by what they are past already.
    fn tell(mut self) {
        let (context, all) = (self.context, self.all_pages);
        let done = || all.saturating_sub(context.remaining_pages.load(Ordering::Relaxed));
        let mut walked = 0;
        for number in 0..self.chunks.chunks() {
            let Some(chunk) = self.chunks.chunk(number) else {
                return;
            };
            while walked >= done() + AHEAD_PAGES {
                if self.is_over() || !self.say() {
                    return;
                }
                runtime::sleep(PAUSE);
            }
            if self.is_over() {
                return;
            }
            walked += u64::from(chunk.pages);
            if walked > done() && !self.name(chunk, self.chunks.begins_region(number)) {
                return;
            }
        }
        self.say();
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed) || self.context.stopped()
    }

    /// Names what of a chunk will be written: what was never touched stays so there too (law 5), and
    /// zeros are not sent. Whether the destination could be told.
    fn name(&mut self, chunk: Chunk, begins_region: bool) -> bool {
        let mut words = std::mem::take(&mut self.words);
        let (ranges, mut is_told) = (&mut self.ranges, true);
        let guessed = self.context.guess_data(chunk, &mut words, |run| {
            let joins = |last: &&mut Run| {
                let is_next =
                    last.end() == run.first && !(begins_region && run.first == chunk.first);
                is_next && last.pages + run.pages <= RANGE_PAGES
            };
            match ranges.last_mut().filter(joins) {
                Some(last) => last.pages += run.pages,
                None if run.pages >= RUN_PAGES_MIN => ranges.push(run),
                None => {}
            }
        });
        self.words = words;
        if self.ranges.len() >= self.batch {
            is_told = self.say();
        }
        is_told && guessed.is_ok()
    }

    /// Whether the destination could be told. Where not, the session will hear of it by itself.
    fn say(&mut self) -> bool {
        if self.ranges.is_empty() {
            return true;
        }
        let told = self
            .speaker
            .send(&Message::Prefault(Ranges::new(&self.ranges)));
        self.ranges.clear();
        self.batch = (self.batch * 2).min(BATCH_MAX);
        told.is_ok()
    }
}
