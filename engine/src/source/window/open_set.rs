//! The ranges that are open, being opened or being closed: what they cover, what room they take, and
//! who has yet to say what about them. Which of them are wanted is the plan's business.

use dunlin_transports::memory::Run;

use crate::chunk::{CHUNK_BYTES, ChunkPlan};
use crate::protocol::RANGES_MAX;

/// How many neighbouring chunks one range has at most: 8 MiB. Large enough that a registration's
/// fixed cost (some 10 µs, and a share of a round trip) is lost in the pages' own (some ms), small
/// enough that little is registered that nobody needs.
const RANGE_CHUNKS: u64 = 4;

/// A window has to hold so many ranges, so that one portion can be opened beside another.
const RANGES_IN_WINDOW_MIN: u64 = 4;

/// No range, in the table of chunks.
const NONE: u32 = u32::MAX;

/// A range's place in the set, for as long as it is open, being opened or being closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RangeId(u32);

/// A range, and where to find it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) id: RangeId,
    pub(super) run: Run,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Free,
    Opening { is_prepared: bool, is_granted: bool },
    Open,
    Closing { is_retired: bool, is_closed: bool },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) run: Run,
    pub(super) stage: Stage,
    /// The portion of this round that uses it, once the walk has reached it.
    pub(super) portion: Option<u32>,
    first_chunk: u64,
    chunks: u64,
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) opened: u64,
    pub(super) closed: u64,
    pub(super) opened_bytes: u64,
    /// The most bytes that were open, being opened or being closed at once.
    pub(super) held_bytes_max: u64,
}

/// All ranges of a move.
#[derive(Clone, Debug)]
pub(super) struct OpenSet {
    chunks: ChunkPlan,
    window_bytes: u64,
    range_chunks: u64,
    ranges: Vec<Range>,
    free: Vec<u32>,
    of_chunk: Vec<u32>,
    held: usize,
    held_bytes: u64,
    closing: usize,
    closing_bytes: u64,
    opening: usize,
    tally: Tally,
}

impl OpenSet {
    /// A set in which nothing is open.
    pub(super) fn new(chunks: ChunkPlan, window_bytes: u64) -> Self {
        let count = usize::try_from(chunks.chunks()).unwrap_or(usize::MAX);
        let all_bytes = chunks.chunks().saturating_mul(CHUNK_BYTES);
        // So many chunks that ranges of this length suffice for all that the window holds.
        let for_all = window_bytes.min(all_bytes) / CHUNK_BYTES / RANGES_MAX as u64 + 1;
        let fits = window_bytes / RANGES_IN_WINDOW_MIN / CHUNK_BYTES;
        let ranges_max = RANGES_MAX.min(count);
        Self {
            of_chunk: vec![NONE; count],
            range_chunks: RANGE_CHUNKS.max(for_all).min(fits).max(1),
            chunks,
            window_bytes,
            ranges: Vec::with_capacity(ranges_max),
            free: Vec::with_capacity(ranges_max),
            held: 0,
            held_bytes: 0,
            closing: 0,
            closing_bytes: 0,
            opening: 0,
            tally: Tally::default(),
        }
    }

    /// What was done so far.
    pub(super) fn tally(&self) -> Tally {
        self.tally
    }

    /// How much may be held at once.
    pub(super) fn window_bytes(&self) -> u64 {
        self.window_bytes
    }

    /// How many neighbouring chunks a range has at most.
    pub(super) fn range_chunks(&self) -> u64 {
        self.range_chunks
    }

    /// How many ranges are being opened, and closed.
    pub(super) fn under_way(&self) -> (usize, usize) {
        (self.opening, self.closing)
    }

    /// Some range that is not done being opened or closed.
    pub(super) fn first_under_way(&self) -> Option<Run> {
        let is_due = |range: &&Range| !matches!(range.stage, Stage::Free | Stage::Open);
        self.ranges.iter().find(is_due).map(|range| range.run)
    }

    /// Whether so much more can be opened: now, or where `later` once what is being closed is.
    pub(super) fn has_room(&self, bytes: u64, later: bool) -> bool {
        let (held, held_bytes) = match later {
            true => (
                self.held - self.closing,
                self.held_bytes - self.closing_bytes,
            ),
            false => (self.held, self.held_bytes),
        };
        held_bytes + bytes <= self.window_bytes && held < RANGES_MAX
    }

    // ---- finding ----

    /// Every range there is.
    pub(super) fn iter(&self) -> impl Iterator<Item = (RangeId, &Range)> {
        (0..).map(RangeId).zip(&self.ranges)
    }

    pub(super) fn get(&self, id: RangeId) -> Option<&Range> {
        self.ranges.get(id.0 as usize)
    }

    pub(super) fn get_mut(&mut self, id: RangeId) -> Option<&mut Range> {
        self.ranges.get_mut(id.0 as usize)
    }

    /// No range is used by any portion.
    pub(super) fn forget_portions(&mut self) {
        for range in &mut self.ranges {
            range.portion = None;
        }
    }

    /// The range that a chunk lies in.
    pub(super) fn of_chunk(&self, chunk: u64) -> Option<RangeId> {
        let index = usize::try_from(chunk).ok();
        let index = index.and_then(|chunk| self.of_chunk.get(chunk)).copied();
        index.filter(|index| *index != NONE).map(RangeId)
    }

    pub(super) fn at_chunk(&self, chunk: u64) -> Option<&Range> {
        self.of_chunk(chunk).and_then(|id| self.get(id))
    }

    /// Whether a chunk is open or being opened.
    pub(super) fn is_covered(&self, chunk: u64) -> bool {
        let range = self.at_chunk(chunk);
        range.is_some_and(|range| matches!(range.stage, Stage::Open | Stage::Opening { .. }))
    }

    /// The bytes of the range that a chunk lies in, or of the chunk alone where there is none.
    pub(super) fn bytes_at(&self, chunk: u64) -> u64 {
        match self.at_chunk(chunk) {
            Some(range) => range.run.bytes(),
            None => self.chunk_bytes(chunk),
        }
    }

    pub(super) fn chunk_bytes(&self, chunk: u64) -> u64 {
        let chunk = self.chunks.chunk(chunk);
        chunk.map_or(0, |chunk| chunk.run().bytes())
    }

    /// The range that begins and ends as `run` does.
    fn find(&self, run: Run) -> Option<RangeId> {
        let id = self.of_chunk(self.chunks.number_of(run.first)?)?;
        (self.get(id)?.run == run).then_some(id)
    }

    // ---- from stage to stage ----

    /// The range that could be opened at `chunk`, which lies in none: of at most so many chunks, up
    /// to the first that lies in one.
    pub(super) fn new_range(&self, chunk: u64, most: u64) -> (Run, u64) {
        let most = most.clamp(1, self.range_chunks);
        let is_free = |number: &u64| self.of_chunk(chunk + number).is_none();
        let chunks = 1 + (1..most).take_while(is_free).count() as u64;
        let mut pieces = (chunk..chunk + chunks).filter_map(|number| self.chunks.chunk(number));
        let mut run = pieces.next().map_or_else(
            || Run {
                first: Default::default(),
                pages: 0,
            },
            |piece| piece.run(),
        );
        run.pages += pieces.map(|piece| piece.pages).sum::<u32>();
        (run, chunks)
    }

    /// A range is to be opened.
    pub(super) fn open(&mut self, run: Run, first_chunk: u64, chunks: u64) -> RangeId {
        let range = Range {
            run,
            first_chunk,
            chunks,
            stage: Stage::Opening {
                is_prepared: false,
                is_granted: false,
            },
            portion: None,
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.ranges.push(range);
            // At most RANGES_MAX.
            (self.ranges.len() - 1) as u32
        });
        if let Some(slot) = self.ranges.get_mut(index as usize) {
            *slot = range;
        }
        self.set_chunks(first_chunk, chunks, index);
        self.held += 1;
        self.held_bytes += run.bytes();
        self.opening += 1;
        self.tally.held_bytes_max = self.tally.held_bytes_max.max(self.held_bytes);
        RangeId(index)
    }

    /// An open range is to be closed.
    pub(super) fn close(&mut self, id: RangeId) -> Option<Named> {
        let range = self.get_mut(id)?;
        range.stage = Stage::Closing {
            is_retired: false,
            is_closed: false,
        };
        let run = range.run;
        self.closing += 1;
        self.closing_bytes += run.bytes();
        Some(Named { id, run })
    }

    /// This side has prepared a range. Whether it is open now.
    pub(super) fn prepared(&mut self, id: RangeId) -> bool {
        if let Some(Stage::Opening { is_prepared, .. }) = self.stage_mut(id) {
            *is_prepared = true;
        }
        self.settle(id)
    }

    /// Whether a range was asked for, and its grant has not come.
    pub(super) fn awaits_grant(&self, run: Run) -> bool {
        let range = self.find(run).and_then(|id| self.get(id));
        range.is_some_and(
            |range| matches!(range.stage, Stage::Opening { is_granted, .. } if !is_granted),
        )
    }

    /// The destination has granted a range. Whether it is open now; `None` when no such grant was
    /// due.
    pub(super) fn granted(&mut self, run: Run) -> Option<bool> {
        let id = self.find(run)?;
        match self.stage_mut(id) {
            Some(Stage::Opening { is_granted, .. }) if !*is_granted => *is_granted = true,
            _ => return None,
        }
        Some(self.settle(id))
    }

    /// This side has retired a range. Whether its room is free now.
    pub(super) fn retired(&mut self, id: RangeId) -> bool {
        if let Some(Stage::Closing { is_retired, .. }) = self.stage_mut(id) {
            *is_retired = true;
        }
        self.settle(id)
    }

    /// The destination has closed a range. Whether its room is free now; `None` when no such word
    /// was due.
    pub(super) fn closed(&mut self, run: Run) -> Option<bool> {
        let id = self.find(run)?;
        match self.stage_mut(id) {
            Some(Stage::Closing { is_closed, .. }) if !*is_closed => *is_closed = true,
            _ => return None,
        }
        Some(self.settle(id))
    }

    fn stage_mut(&mut self, id: RangeId) -> Option<&mut Stage> {
        self.get_mut(id).map(|range| &mut range.stage)
    }

    fn set_chunks(&mut self, first: u64, chunks: u64, index: u32) {
        let first = first as usize;
        let slots = self.of_chunk.get_mut(first..first + chunks as usize);
        slots.unwrap_or_default().fill(index);
    }

    /// Takes a range on to its next stage, once both sides are done.
    fn settle(&mut self, id: RangeId) -> bool {
        let Some(range) = self.ranges.get_mut(id.0 as usize) else {
            return false;
        };
        let (first_chunk, chunks, bytes) = (range.first_chunk, range.chunks, range.run.bytes());
        match range.stage {
            Stage::Opening {
                is_prepared: true,
                is_granted: true,
            } => {
                range.stage = Stage::Open;
                self.opening -= 1;
                self.tally.opened += 1;
                self.tally.opened_bytes += bytes;
            }
            Stage::Closing {
                is_retired: true,
                is_closed: true,
            } => {
                range.stage = Stage::Free;
                range.portion = None;
                self.set_chunks(first_chunk, chunks, NONE);
                self.free.push(id.0);
                self.closing -= 1;
                self.closing_bytes -= bytes;
                self.held -= 1;
                self.held_bytes -= bytes;
                self.tally.closed += 1;
            }
            _ => return false,
        }
        true
    }
}
