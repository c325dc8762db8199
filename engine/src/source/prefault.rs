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
use crate::chunk::ChunkPlan;
use crate::link::Speaker;
use crate::protocol::{Message, PREFAULT_PAGES_MAX, Ranges};

/// How far ahead of the lanes memory is named. At 12.5 GB/s (100 Gb/s) lanes take 20 ms for it; a
/// destination of a slow link backs no more than this before it is needed.
const AHEAD_PAGES: u64 = (256 << 20) / PAGE_BYTES;

/// How long the lanes are left alone once all that far is named: a tenth of the time above.
const PAUSE: Duration = Duration::from_millis(2);

/// How many ranges one message names at most. The first ones name fewer, since the lanes are close
/// behind.
const BATCH_MAX: usize = 8;

/// How much neighbouring memory is one range, in pages: 8 MiB, so that several threads have some.
const RANGE_PAGES: u32 = 2048;
const _: () = assert!(RANGE_PAGES <= PREFAULT_PAGES_MAX);

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
            // What was never touched stays so there too: law 5.
            if walked <= done() || self.context.is_untouched(chunk) {
                continue;
            }
            self.name(chunk.run(), self.chunks.begins_region(number));
            if self.ranges.len() > self.batch && !self.say() {
                return;
            }
        }
        self.say();
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed) || self.context.stopped()
    }

    /// Adds to the last range what follows it, as far as that may grow.
    fn name(&mut self, run: Run, begins_region: bool) {
        match self.ranges.last_mut() {
            Some(last)
                if !begins_region
                    && last.end() == run.first
                    && last.pages + run.pages <= RANGE_PAGES =>
            {
                last.pages += run.pages;
            }
            _ => self.ranges.push(run),
        }
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
