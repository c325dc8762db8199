//! Which ranges are open, what is opened next, and what is closed to make room: rules alone, without
//! threads, clock or device. The property tests beside it hold them.

use std::collections::VecDeque;

use dunlin_transports::memory::Run;

use crate::chunk::{CHUNK_BYTES, ChunkPlan};
use crate::protocol::RANGES_MAX;

/// How many neighbouring chunks one range has at most: 8 MiB. Large enough that a registration's
/// fixed cost (some 10 µs, and a share of a round trip) is lost in the pages' own (some ms), small
/// enough that little is registered that nobody needs.
const RANGE_CHUNKS: u64 = 4;

/// A window has to hold so many ranges, so that one portion can be opened beside another.
const RANGES_IN_WINDOW_MIN: u64 = 4;

/// The smallest window: two portions of a chunk each, and one chunk that is being closed.
pub(super) const WINDOW_BYTES_MIN: u64 = 3 * CHUNK_BYTES;

/// No range.
const NONE: u32 = u32::MAX;

/// A range's place in the plan, for as long as it is open, being opened or being closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RangeId(u32);

/// A range, and where to find it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) id: RangeId,
    pub(super) run: Run,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Free,
    Opening { is_prepared: bool, is_granted: bool },
    Open,
    Closing { is_retired: bool, is_closed: bool },
}

#[derive(Clone, Copy, Debug)]
struct Range {
    run: Run,
    first_chunk: u64,
    chunks: u64,
    stage: Stage,
    /// The portion of this round that uses it, once the walk has reached it.
    portion: Option<u32>,
}

/// What the walk has to do about a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: it is open, or being opened.
    Covered,
    /// Open this range of so many chunks, of which the asked one is the first.
    Open(Named, u64),
    /// Close this range, then ask again.
    Close(Named),
    /// Ask again once something has changed.
    Wait,
    /// There is no room, and nothing is to be closed for it.
    Full,
}

/// For what a round is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Walk {
    /// Lanes follow it: room is made for everything.
    Followed,
    /// Nobody follows it: what fits is opened beforehand, and nothing closed that will be needed.
    Ahead,
}

/// How a lane finds a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The walk has not reached it: it will lie in this portion or a later one.
    Unreached(u32),
    /// The walk found that it was never touched.
    Unneeded,
    /// It is being opened.
    Opening(u32),
    /// It may be used, in this portion.
    Open(u32),
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

/// The open set, and the walk through a round.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    chunks: ChunkPlan,
    window_bytes: u64,
    range_chunks: u64,
    ranges: Vec<Range>,
    free: Vec<u32>,
    of_chunk: Vec<u32>,
    held: usize,
    held_bytes: u64,
    closing_bytes: u64,
    closing: usize,
    opening: usize,
    tally: Tally,

    walk: Walk,
    /// Chunks below this number are walked.
    walked: u64,
    portion: u32,
    portion_bytes: u64,
    portion_ranges: usize,
    /// How much a portion may hold in this round.
    portion_limit: (u64, usize),
    /// First chunks of portions that were laid out beforehand, the next one first.
    borders: VecDeque<u64>,
    is_laid_out: bool,
    /// Of each lane: all that it put in portions below this number is confirmed, and it puts
    /// nothing there any more.
    passed: Vec<u32>,
    /// Open ranges that this round does not need.
    idle: Vec<u32>,
    /// Open ranges that it needs, the furthest ahead last.
    ahead: Vec<u32>,
    /// Ranges that the walk has reached, in its order.
    used: VecDeque<u32>,
}

impl Plan {
    /// A plan in which nothing is open.
    pub(super) fn new(chunks: ChunkPlan, window_bytes: u64, lanes: usize) -> Self {
        let all_bytes = chunks.chunks().saturating_mul(CHUNK_BYTES);
        // So many chunks that ranges of this length suffice for all that the window holds.
        let for_all = window_bytes.min(all_bytes) / CHUNK_BYTES / RANGES_MAX as u64 + 1;
        let range_chunks = RANGE_CHUNKS.max(for_all);
        let ranges_max = RANGES_MAX.min(chunks.chunks() as usize);
        Self {
            of_chunk: vec![NONE; chunks.chunks() as usize],
            range_chunks: range_chunks
                .min(window_bytes / RANGES_IN_WINDOW_MIN / CHUNK_BYTES)
                .max(1),
            chunks,
            window_bytes,
            ranges: Vec::with_capacity(ranges_max),
            free: Vec::with_capacity(ranges_max),
            held: 0,
            held_bytes: 0,
            closing_bytes: 0,
            closing: 0,
            opening: 0,
            tally: Tally::default(),
            walk: Walk::Followed,
            walked: 0,
            portion: 0,
            portion_bytes: 0,
            portion_ranges: 0,
            portion_limit: (window_bytes, RANGES_MAX),
            borders: VecDeque::new(),
            is_laid_out: false,
            passed: vec![0; lanes],
            idle: Vec::with_capacity(ranges_max),
            ahead: Vec::with_capacity(ranges_max),
            used: VecDeque::with_capacity(ranges_max),
        }
    }

    /// What was done so far.
    pub(super) fn tally(&self) -> Tally {
        self.tally
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

    /// How many portions the round has had so far, beyond the first.
    pub(super) fn crossings(&self) -> u32 {
        self.portion
    }

    /// Whether the round may have more than one portion.
    pub(super) fn has_portions(&self) -> bool {
        self.portion_limit.0 < self.window_bytes
    }

    // ---- a round ----

    /// A round is about to begin: until [`Plan::begin`] every chunk counts as not reached.
    pub(super) fn reset(&mut self) {
        self.walked = 0;
        self.portion = 0;
        self.portion_bytes = 0;
        self.portion_ranges = 0;
        self.passed.fill(0);
        self.used.clear();
        self.borders.clear();
        self.is_laid_out = false;
    }

    /// Begins a walk through these chunks, in ascending order: those that may be needed.
    pub(super) fn begin(&mut self, walk: Walk, chunks: &[u64]) {
        self.reset();
        self.walk = walk;
        self.idle.clear();
        self.ahead.clear();
        for range in &mut self.ranges {
            range.portion = None;
        }
        for chunk in chunks {
            let index = self.index_of(*chunk);
            if self.ahead.last() != Some(&index) && index != NONE {
                self.ahead.push(index);
            }
        }
        self.ahead.retain(|index| {
            let range = self.ranges.get(*index as usize);
            range.is_some_and(|range| range.stage == Stage::Open)
        });
        // The needed ones are marked for a moment, to find the others.
        for index in &self.ahead {
            if let Some(range) = self.ranges.get_mut(*index as usize) {
                range.portion = Some(0);
            }
        }
        for (index, range) in (0..).zip(&mut self.ranges) {
            match (range.portion.take(), range.stage) {
                (None, Stage::Open) => self.idle.push(index),
                (_, _) => {}
            }
        }
        let (bytes, ranges) = self.demand(chunks);
        let fits = bytes <= self.window_bytes && ranges <= RANGES_MAX;
        self.portion_limit = if fits {
            (self.window_bytes, RANGES_MAX)
        } else {
            (self.window_bytes / 2, RANGES_MAX / 2)
        };
    }

    /// The most bytes and ranges that these chunks can take.
    fn demand(&self, chunks: &[u64]) -> (u64, usize) {
        let (mut bytes, mut ranges, mut last) = (0, 0, NONE);
        for chunk in chunks {
            let index = self.index_of(*chunk);
            if index == NONE || index != last {
                bytes += self.bytes_of(index, *chunk);
                ranges += 1;
            }
            last = index;
        }
        (bytes, ranges)
    }

    /// Bytes of these chunks that are neither open nor being opened.
    pub(super) fn unopened_bytes(&self, chunks: &[u64]) -> u64 {
        let unopened = chunks.iter().filter(|chunk| !self.is_covered(**chunk));
        unopened.map(|chunk| self.bytes_of(NONE, *chunk)).sum()
    }

    /// How many portions a round of these chunks would have.
    pub(super) fn portions(&self, chunks: &[u64]) -> usize {
        let (bytes, ranges) = self.demand(chunks);
        if bytes <= self.window_bytes && ranges <= RANGES_MAX {
            return 1;
        }
        let half = (self.window_bytes / 2).max(1);
        usize::try_from(bytes.div_ceil(half)).unwrap_or(usize::MAX)
    }

    /// Whether all of these chunks are open.
    pub(super) fn are_open(&self, chunks: &[u64]) -> bool {
        chunks.iter().all(|chunk| {
            let range = self.ranges.get(self.index_of(*chunk) as usize);
            range.is_some_and(|range| range.stage == Stage::Open)
        })
    }

    /// Lays the round's portions out beforehand: behind [`Plan::begin`], for a round whose chunks
    /// are all needed. Calls `portion` with the chunks of each, in order.
    ///
    /// Ranges that are closed and opened again on the way take no more room than they do here.
    pub(super) fn lay_out(&mut self, chunks: &[u64], mut portion: impl FnMut(&[u64])) {
        let (limit_bytes, limit_ranges) = self.portion_limit;
        let (mut begin, mut bytes, mut ranges, mut last) = (0, 0, 0, NONE);
        self.borders.clear();
        self.is_laid_out = true;
        for (at, chunk) in chunks.iter().enumerate() {
            let index = self.index_of(*chunk);
            if index != NONE && index == last {
                continue;
            }
            last = index;
            let more = self.bytes_of(index, *chunk);
            if at > begin && (bytes + more > limit_bytes || ranges == limit_ranges) {
                portion(chunks.get(begin..at).unwrap_or_default());
                self.borders.push_back(*chunk);
                (begin, bytes, ranges) = (at, 0, 0);
            }
            bytes += more;
            ranges += 1;
        }
        portion(chunks.get(begin..).unwrap_or_default());
    }

    /// The walk is past all chunks.
    pub(super) fn end_walk(&mut self) {
        self.walked = u64::MAX;
    }

    /// The walk found a chunk, the next in its order, that was never touched.
    pub(super) fn skip(&mut self, chunk: u64) {
        self.walked = chunk + 1;
    }

    /// Whether a chunk is open or being opened.
    pub(super) fn is_covered(&self, chunk: u64) -> bool {
        let range = self.ranges.get(self.index_of(chunk) as usize);
        range.is_some_and(|range| matches!(range.stage, Stage::Open | Stage::Opening { .. }))
    }

    /// The walk reaches a chunk, the next in its order, that is needed, as are the `stretch` (of at
    /// least one) chunks of its region from there on.
    pub(super) fn reach(&mut self, chunk: u64, stretch: u64) -> Step {
        let index = self.index_of(chunk);
        if let Some(range) = self.ranges.get(index as usize).copied() {
            if matches!(range.stage, Stage::Closing { .. }) {
                return Step::Wait;
            }
            if range.portion.is_none() {
                self.add_to_portion(index, chunk, range.run.bytes());
            }
            self.walked = chunk + 1;
            return Step::Covered;
        }
        let (run, chunks) = self.new_range(chunk, stretch);
        if let Some(step) = self.make_room(chunk, run.bytes()) {
            return step;
        }
        let id = self.take(run, chunk, chunks);
        self.add_to_portion(id.0, chunk, run.bytes());
        self.walked = chunk + chunks;
        Step::Open(Named { id, run }, chunks)
    }

    /// The range that would be opened for `chunk`, and its chunks.
    fn new_range(&self, chunk: u64, stretch: u64) -> (Run, u64) {
        let border = self.borders.iter().find(|border| **border > chunk);
        let end = border.map_or(u64::MAX, |border| *border);
        let wanted = stretch.clamp(1, self.range_chunks).min(end - chunk);
        let is_free = |number: &u64| self.index_of(chunk + number) == NONE;
        let chunks = 1 + (1..wanted).take_while(is_free).count() as u64;
        let mut run = Run {
            first: Default::default(),
            pages: 0,
        };
        for number in chunk..chunk + chunks {
            let Some(piece) = self.chunks.chunk(number) else {
                break;
            };
            if run.pages == 0 {
                run.first = piece.first;
            }
            run.pages += piece.pages;
        }
        (run, chunks)
    }

    /// What has to be done before so many bytes can be opened for `chunk`; `None` when nothing has.
    fn make_room(&mut self, chunk: u64, bytes: u64) -> Option<Step> {
        // The portion comes first: a lane that waits for this chunk may pass all before it.
        if self.walk == Walk::Followed {
            self.cross(chunk, bytes);
        }
        let fits = |held_bytes: u64, held: usize| {
            held_bytes + bytes <= self.window_bytes && held < RANGES_MAX
        };
        if fits(self.held_bytes, self.held) {
            return None;
        }
        if fits(
            self.held_bytes - self.closing_bytes,
            self.held - self.closing,
        ) {
            return Some(Step::Wait);
        }
        match self.victim() {
            Some(index) => Some(self.close(index)),
            None if self.walk == Walk::Ahead && self.closing == 0 => Some(Step::Full),
            None => Some(Step::Wait),
        }
    }

    /// Whether what follows lies in a new portion, if so many bytes come with it.
    fn cross(&mut self, chunk: u64, bytes: u64) {
        let (limit_bytes, limit_ranges) = self.portion_limit;
        let is_new = if self.is_laid_out {
            self.borders.front().is_some_and(|border| *border <= chunk)
        } else {
            self.portion_ranges > 0
                && (self.portion_bytes + bytes > limit_bytes || self.portion_ranges >= limit_ranges)
        };
        if is_new {
            if self.is_laid_out {
                self.borders.pop_front();
            }
            self.portion += 1;
            self.portion_bytes = 0;
            self.portion_ranges = 0;
        }
    }

    fn add_to_portion(&mut self, index: u32, chunk: u64, bytes: u64) {
        if self.walk == Walk::Followed {
            self.cross(chunk, bytes);
        }
        self.portion_bytes += bytes;
        self.portion_ranges += 1;
        if let Some(range) = self.ranges.get_mut(index as usize) {
            range.portion = Some(self.portion);
        }
        self.used.push_back(index);
    }

    /// A range that may be closed now.
    fn victim(&mut self) -> Option<u32> {
        if let Some(index) = self.idle.pop() {
            return Some(index);
        }
        if self.walk == Walk::Ahead {
            return None;
        }
        let passed = self.passed.iter().copied().min().unwrap_or(u32::MAX);
        let is_passed = |index: &u32| {
            let range = self.ranges.get(*index as usize);
            range.is_some_and(|range| {
                range.stage == Stage::Open && range.portion.is_some_and(|portion| portion < passed)
            })
        };
        if self.used.front().is_some_and(is_passed) {
            return self.used.pop_front();
        }
        while let Some(index) = self.ahead.pop() {
            let range = self.ranges.get(index as usize);
            if range.is_some_and(|range| range.portion.is_none() && range.stage == Stage::Open) {
                return Some(index);
            }
        }
        None
    }

    // ---- ranges ----

    fn index_of(&self, chunk: u64) -> u32 {
        let index = usize::try_from(chunk).ok();
        let index = index.and_then(|chunk| self.of_chunk.get(chunk));
        index.copied().unwrap_or(NONE)
    }

    /// The bytes of a range, or of the chunk alone where there is none.
    fn bytes_of(&self, index: u32, chunk: u64) -> u64 {
        match self.ranges.get(index as usize) {
            Some(range) => range.run.bytes(),
            None => (self.chunks.chunk(chunk)).map_or(0, |chunk| chunk.run().bytes()),
        }
    }

    fn set_chunks(&mut self, first: u64, chunks: u64, index: u32) {
        let first = first as usize;
        let slots = self.of_chunk.get_mut(first..first + chunks as usize);
        slots.unwrap_or_default().fill(index);
    }

    fn take(&mut self, run: Run, first_chunk: u64, chunks: u64) -> RangeId {
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
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.ranges.push(range);
                // At most RANGES_MAX.
                (self.ranges.len() - 1) as u32
            }
        };
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

    fn close(&mut self, index: u32) -> Step {
        let Some(range) = self.ranges.get_mut(index as usize) else {
            return Step::Wait;
        };
        range.stage = Stage::Closing {
            is_retired: false,
            is_closed: false,
        };
        self.closing += 1;
        self.closing_bytes += range.run.bytes();
        Step::Close(Named {
            id: RangeId(index),
            run: range.run,
        })
    }

    fn stage_mut(&mut self, id: RangeId) -> Option<&mut Stage> {
        self.ranges
            .get_mut(id.0 as usize)
            .map(|range| &mut range.stage)
    }

    /// The range that begins and ends as `run` does.
    fn find(&self, run: Run) -> Option<RangeId> {
        let index = self.index_of(self.chunks.number_of(run.first)?);
        let range = self.ranges.get(index as usize)?;
        (range.run == run).then_some(RangeId(index))
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
        let range = self.find(run).and_then(|id| self.ranges.get(id.0 as usize));
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

    // ---- lanes ----

    /// How a lane finds a chunk of this round.
    pub(super) fn standing(&self, chunk: u64) -> Standing {
        if chunk >= self.walked {
            return Standing::Unreached(self.portion);
        }
        let Some(range) = self.ranges.get(self.index_of(chunk) as usize) else {
            return Standing::Unneeded;
        };
        match (range.portion, range.stage) {
            (Some(portion), Stage::Open) => Standing::Open(portion),
            (Some(portion), Stage::Opening { .. }) => Standing::Opening(portion),
            _ => Standing::Unneeded,
        }
    }

    /// A lane puts nothing in portions below `portion` any more, and all that it put there is
    /// confirmed. Whether that says anything new.
    pub(super) fn pass(&mut self, lane: usize, portion: u32) -> bool {
        match self.passed.get_mut(lane) {
            Some(passed) if *passed < portion => {
                *passed = portion;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
