//! Chunks: the unit of work that a lane claims, and how the final round is shared out.
//!
//! While the guest runs, lanes claim chunks one after the other from one atomic cursor. In the
//! final round the guest waits for the slowest lane, so there each lane is given an equal number of
//! dirty pages instead ([`share_by_bytes`]).

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use dunlin_transports::memory::{PAGE_BYTES, PageNumber, REGION_ALIGNMENT_PAGES, Run};

use crate::dirty::DirtyBitmap;
use crate::layout::Layout;

/// A chunk's length in bytes, unless something else is asked for.
///
/// 2 MiB is one huge page (what KVM splits and what a NIC registers best), and its dirty bits fill
/// one cache line of 64 bytes, so that lanes on neighbouring chunks never share one. At 12.5 GB/s
/// (100 Gb/s) a chunk takes some 170 µs: a claim, well under a microsecond even when contended, is
/// lost in that, and so is the wait for the lane that ends a round last. It is also what is re-armed
/// in one call: from 1 MiB on larger calls gain nothing, and smaller ones cost up to 1.7 times as
/// much (`make bench-rearm`).
pub const CHUNK_BYTES: u64 = 2 << 20;

/// [`CHUNK_BYTES`] in pages.
pub const CHUNK_PAGES: u32 = (CHUNK_BYTES / PAGE_BYTES) as u32;

/// A piece of one region, claimed by one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chunk {
    /// The first page, a multiple of 64.
    pub first: PageNumber,
    /// How many pages; a multiple of 64 except at the end of a region.
    pub pages: u32,
}

impl Chunk {
    /// The chunk's words in a bitmap of the whole layout.
    pub fn word_range(self) -> Range<usize> {
        let end = self.first.0 + u64::from(self.pages);
        (self.first.0 / 64) as usize..end.div_ceil(64) as usize
    }

    /// The chunk's words of `bitmap`; none when the bitmap is too short to have them.
    pub fn words(self, bitmap: &DirtyBitmap) -> &[u64] {
        bitmap.words().get(self.word_range()).unwrap_or_default()
    }

    /// All of the chunk's pages.
    pub fn run(self) -> Run {
        Run {
            first: self.first,
            pages: self.pages,
        }
    }
}

/// Whether no bit is set in `words`.
pub fn is_clean(words: &[u64]) -> bool {
    words.iter().all(|word| *word == 0)
}

/// How a layout falls into chunks. Holds no list of them: a chunk is computed from its number.
#[derive(Clone, Debug)]
pub struct ChunkPlan {
    regions: Vec<PlannedRegion>,
    chunk_pages: u32,
    chunks: u64,
}

#[derive(Clone, Debug)]
struct PlannedRegion {
    first_chunk: u64,
    first_page: u64,
    pages: u64,
}

impl ChunkPlan {
    /// A plan of chunks of `chunk_pages` pages (rounded up to a power of two, 64 at least). Chunks
    /// start anew with each region, so none lies in two; a region's last may be shorter.
    pub fn new(layout: &Layout, chunk_pages: u32) -> Self {
        const CHUNK_PAGES_MAX: u32 = 1 << 31;
        let chunk_pages = chunk_pages
            .clamp(REGION_ALIGNMENT_PAGES as u32, CHUNK_PAGES_MAX)
            .next_power_of_two();
        let mut chunks = 0;
        let regions = region_pages(layout)
            .map(|pages| {
                let first_chunk = chunks;
                chunks += (pages.end - pages.start).div_ceil(u64::from(chunk_pages));
                PlannedRegion {
                    first_chunk,
                    first_page: pages.start,
                    pages: pages.end - pages.start,
                }
            })
            .collect();
        Self {
            regions,
            chunk_pages,
            chunks,
        }
    }

    /// How many chunks there are.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// The chunk of a number below [`ChunkPlan::chunks`], in ascending order of pages.
    pub fn chunk(&self, number: u64) -> Option<Chunk> {
        if number >= self.chunks {
            return None;
        }
        let region = self
            .regions
            .partition_point(|region| region.first_chunk <= number)
            .checked_sub(1)?;
        let region = self.regions.get(region)?;
        let skipped = (number - region.first_chunk) * u64::from(self.chunk_pages);
        let pages = (region.pages - skipped).min(u64::from(self.chunk_pages));
        Some(Chunk {
            first: PageNumber(region.first_page + skipped),
            // At most `chunk_pages`.
            pages: pages as u32,
        })
    }
}

impl ChunkPlan {
    /// The number of the chunk that a page lies in; `None` when it is in none.
    pub fn number_of(&self, page: PageNumber) -> Option<u64> {
        let region = self
            .regions
            .partition_point(|region| region.first_page <= page.0)
            .checked_sub(1)?;
        let region = self.regions.get(region)?;
        let in_region = page.0 - region.first_page;
        (in_region < region.pages)
            .then(|| region.first_chunk + in_region / u64::from(self.chunk_pages))
    }

    /// The numbers of the chunks that have dirty pages, in ascending order. Takes the time of these,
    /// and not that of all chunks.
    pub fn dirty_chunks<'a>(&'a self, dirty: &'a DirtyBitmap) -> impl Iterator<Item = u64> + 'a {
        let mut last = None;
        // A word lies in one chunk: both start at word borders.
        let numbers = dirty
            .set_words()
            .filter_map(|(index, _)| self.number_of(PageNumber(index as u64 * 64)));
        numbers.filter(move |number| last.replace(*number) != Some(*number))
    }

    /// Whether a chunk is the first of its region.
    pub fn begins_region(&self, number: u64) -> bool {
        let region = self
            .regions
            .binary_search_by_key(&number, |region| region.first_chunk);
        region.is_ok()
    }
}

/// Hands out the chunks of a plan, each once a round. Shared by all lanes.
#[derive(Debug)]
pub struct ChunkCursor {
    plan: ChunkPlan,
    next: OwnCacheLine<AtomicU64>,
}

/// Keeps the one word that all lanes write away from those that they read. 128: neighbouring lines
/// of 64 bytes are fetched in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct OwnCacheLine<T>(T);

impl ChunkCursor {
    /// A cursor at the plan's first chunk.
    pub fn new(plan: ChunkPlan) -> Self {
        Self {
            plan,
            next: OwnCacheLine(AtomicU64::new(0)),
        }
    }

    /// The plan.
    pub fn plan(&self) -> &ChunkPlan {
        &self.plan
    }

    /// The next chunk that nobody has; `None` when all are claimed. Clean chunks are handed out
    /// too: the lane that claims one passes over it ([`is_clean`]).
    pub fn claim(&self) -> Option<Chunk> {
        // Relaxed: the cursor alone decides who has a chunk. What a lane reads in it (the bitmap)
        // reached the lane by other means before the round began.
        self.plan.chunk(self.next.0.fetch_add(1, Ordering::Relaxed))
    }

    /// How many chunks are claimed, for progress.
    pub fn claimed(&self) -> u64 {
        self.next.0.load(Ordering::Relaxed).min(self.plan.chunks)
    }

    /// Back to the first chunk. Between rounds, when no lane claims.
    pub fn reset(&self) {
        self.next.0.store(0, Ordering::Relaxed);
    }
}

/// Shares the dirty pages of `bitmap` among `lanes` lanes (of at least one), so that each gets the
/// same number, give or take 64.
///
/// A lane's share is a list of chunks of at most [`CHUNK_PAGES`] pages, in ascending order. Each
/// starts and ends with a word that is not clean and lies in one region; no two overlap; every
/// dirty page is in one of them.
pub fn share_by_bytes(bitmap: &DirtyBitmap, layout: &Layout, lanes: usize) -> Vec<Vec<Chunk>> {
    let plan = ChunkPlan::new(layout, CHUNK_PAGES);
    let mut shares = vec![Vec::new(); lanes.max(1)];
    let chunks = plan
        .dirty_chunks(bitmap)
        .filter_map(|number| plan.chunk(number));
    add_shares(bitmap, chunks, bitmap.count(), &mut shares);
    shares
}

/// As [`share_by_bytes`], for some of the chunks, which have `total` dirty pages; adds each lane's
/// share to what it has.
pub fn add_shares(
    bitmap: &DirtyBitmap,
    chunks: impl Iterator<Item = Chunk>,
    total: u64,
    of: &mut [Vec<Chunk>],
) {
    let mut shares = Shares {
        of,
        total,
        shared: 0,
        lane: 0,
        lane_end: 0,
    };
    shares.lane_end = shares.end_of(0);
    for chunk in chunks {
        let words = chunk.words(bitmap);
        if !is_clean(words) {
            shares.add(chunk, words);
        }
    }
}

struct Shares<'a> {
    of: &'a mut [Vec<Chunk>],
    total: u64,
    /// Dirty pages given out so far.
    shared: u64,
    lane: usize,
    /// How many dirty pages are given out when the current lane has its share.
    lane_end: u64,
}

impl Shares<'_> {
    fn end_of(&self, lane: usize) -> u64 {
        let end = u128::from(self.total) * (lane as u128 + 1) / self.of.len() as u128;
        // At most `total`.
        end as u64
    }

    /// Gives out a chunk's words, from one lane to the next wherever a share is full.
    fn add(&mut self, chunk: Chunk, words: &[u64]) {
        let mut dirty: Option<Range<usize>> = None;
        for (index, word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
            while self.shared >= self.lane_end && self.lane + 1 < self.of.len() {
                self.give(chunk, dirty.take());
                self.lane += 1;
                self.lane_end = self.end_of(self.lane);
            }
            self.shared += u64::from(word.count_ones());
            let start = dirty.map_or(index, |dirty| dirty.start);
            dirty = Some(start..index + 1);
        }
        self.give(chunk, dirty);
    }

    fn give(&mut self, chunk: Chunk, words: Option<Range<usize>>) {
        let (Some(words), Some(share)) = (words, self.of.get_mut(self.lane)) else {
            return;
        };
        // A chunk has at most 2^32 pages, so nothing is cut off.
        let (start, end) = (words.start as u32 * 64, words.end as u32 * 64);
        share.push(Chunk {
            first: PageNumber(chunk.first.0 + u64::from(start)),
            pages: end.min(chunk.pages) - start,
        });
    }
}

/// The page numbers of each region.
fn region_pages(layout: &Layout) -> impl Iterator<Item = Range<u64>> + '_ {
    layout
        .regions()
        .iter()
        .enumerate()
        .filter_map(|(region, shape)| {
            let first = layout.first_page(region)?.0;
            Some(first..first + shape.bytes / PAGE_BYTES)
        })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;
    use crate::layout::{Backing, GuestAddress, RegionShape};

    fn layout(region_pages: &[u64]) -> Layout {
        let shape = |(index, pages): (usize, &u64)| RegionShape {
            address: GuestAddress((index as u64) << 40),
            bytes: pages * PAGE_BYTES,
            backing: Backing::Memfd,
            backing_page_bytes: PAGE_BYTES,
        };
        Layout::new(1, region_pages.iter().enumerate().map(shape).collect()).unwrap()
    }

    fn pages_of(chunks: &[Chunk]) -> Vec<u64> {
        let pages = |chunk: &Chunk| chunk.first.0..chunk.first.0 + u64::from(chunk.pages);
        chunks.iter().flat_map(pages).collect()
    }

    #[test]
    fn a_default_chunk_has_one_cache_line_of_dirty_bits() {
        let chunk = Chunk {
            first: PageNumber(512),
            pages: CHUNK_PAGES,
        };
        assert_eq!(chunk.word_range(), 8..16);
    }

    #[test]
    fn a_chunk_length_that_fits_nothing_is_rounded() {
        let layout = layout(&[1000]);
        for (asked, got) in [(0, 64), (64, 64), (65, 128), (u32::MAX, 1000)] {
            assert_eq!(ChunkPlan::new(&layout, asked).chunk(0).unwrap().pages, got);
        }
    }

    #[test]
    fn lanes_claim_each_chunk_once_a_round() {
        let cursor = ChunkCursor::new(ChunkPlan::new(&layout(&[100_000, 70]), 64));
        for _round in 0..2 {
            let claimed = Mutex::new(Vec::new());
            std::thread::scope(|scope| {
                for _lane in 0..4 {
                    scope.spawn(|| {
                        let mine: Vec<Chunk> = std::iter::from_fn(|| cursor.claim()).collect();
                        claimed.lock().unwrap().extend(mine);
                    });
                }
            });
            let mut claimed = claimed.into_inner().unwrap();
            claimed.sort_by_key(|chunk| chunk.first);
            let all: Vec<Chunk> = (0..cursor.plan().chunks())
                .map(|number| cursor.plan().chunk(number).unwrap())
                .collect();
            assert_eq!(claimed, all);
            assert_eq!(cursor.claimed(), cursor.plan().chunks());
            assert_eq!(cursor.claim(), None);
            cursor.reset();
        }
    }

    fn regions() -> impl Strategy<Value = Vec<u64>> {
        proptest::collection::vec(1_u64..3000, 1..5)
    }

    proptest! {
        #[test]
        fn chunks_cover_every_page_once_and_stay_in_regions(
            region_pages_drawn in regions(),
            exponent in 6_u32..11,
        ) {
            let layout = layout(&region_pages_drawn);
            let plan = ChunkPlan::new(&layout, 1 << exponent);
            let chunks: Vec<Chunk> =
                (0..plan.chunks()).map(|number| plan.chunk(number).unwrap()).collect();
            let expected: Vec<u64> = region_pages(&layout).flatten().collect();
            prop_assert_eq!(pages_of(&chunks), expected);
            for chunk in &chunks {
                prop_assert_eq!(chunk.first.0 % 64, 0);
                prop_assert!(chunk.pages > 0 && chunk.pages <= 1 << exponent);
                let number = chunks.iter().position(|other| other == chunk).unwrap() as u64;
                prop_assert_eq!(plan.number_of(chunk.first), Some(number));
                let is_first = layout.region_of(chunk.first).unwrap().1 == 0;
                prop_assert_eq!(plan.begins_region(number), is_first);
                let last = PageNumber(chunk.first.0 + u64::from(chunk.pages) - 1);
                prop_assert_eq!(plan.number_of(last), Some(number));
                prop_assert_eq!(
                    layout.region_of(chunk.first).unwrap().0,
                    layout.region_of(last).unwrap().0
                );
            }
            prop_assert_eq!(plan.chunk(plan.chunks()), None);
            prop_assert_eq!(plan.number_of(PageNumber(layout.page_span())), None);
        }

        #[test]
        fn shares_are_whole_disjoint_and_even(
            region_pages_drawn in regions(),
            lanes in 1_usize..9,
            stretches in proptest::collection::vec((0_u64..12_000, 1_u64..700), 0..12),
        ) {
            let layout = layout(&region_pages_drawn);
            let mut bitmap = DirtyBitmap::new(layout.page_span());
            for (first, pages) in stretches {
                for page in (first..first + pages).map(PageNumber) {
                    if layout.region_of(page).is_some() {
                        bitmap.set(page);
                    }
                }
            }
            let shares = share_by_bytes(&bitmap, &layout, lanes);
            prop_assert_eq!(shares.len(), lanes);
            let fair = bitmap.count() / lanes as u64;
            let mut seen = BTreeSet::new();
            for share in &shares {
                let mut dirty = 0;
                for chunk in share {
                    prop_assert_eq!(chunk.first.0 % 64, 0);
                    prop_assert!(chunk.pages > 0 && chunk.pages <= CHUNK_PAGES);
                    let words = chunk.words(&bitmap);
                    prop_assert!(words.first().is_some_and(|word| *word != 0));
                    prop_assert!(words.last().is_some_and(|word| *word != 0));
                    let last = PageNumber(chunk.first.0 + u64::from(chunk.pages) - 1);
                    prop_assert!(layout.region_of(chunk.first).is_some());
                    prop_assert_eq!(
                        layout.region_of(chunk.first).map(|found| found.0),
                        layout.region_of(last).map(|found| found.0)
                    );
                }
                for page in pages_of(share) {
                    prop_assert!(seen.insert(page), "page {} is in two shares", page);
                    dirty += u64::from(bitmap.get(PageNumber(page)));
                }
                prop_assert!(dirty.abs_diff(fair) <= 64, "{} pages instead of {}", dirty, fair);
            }
            prop_assert!(bitmap.pages().all(|page| seen.contains(&page.0)));
        }
    }
}
