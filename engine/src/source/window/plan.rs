//! The walk through a round: in which portion each range is used, what is opened next, and what is
//! closed to make room. Rules alone, without threads, clock or device. The property tests beside it
//! hold them.

use std::collections::VecDeque;

use dunlin_transports::memory::Run;

use super::open_set::{Named, OpenSet, RangeId, Stage};
use crate::chunk::{CHUNK_BYTES, ChunkPlan};
use crate::protocol::RANGES_MAX;

/// The smallest window: two portions of a chunk each, and one chunk that is being closed.
pub(super) const WINDOW_BYTES_MIN: u64 = 3 * CHUNK_BYTES;

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

/// How much a portion may hold.
#[derive(Clone, Copy, Debug)]
struct PortionLimit {
    bytes: u64,
    ranges: usize,
}

/// The open set, and the walk through a round.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// What is open.
    pub(super) set: OpenSet,
    walk: Walk,
    /// Chunks below this number are walked.
    walked: u64,
    /// The portion at which the walk is, and what it has in it.
    portion: u32,
    portion_bytes: u64,
    portion_ranges: usize,
    portion_limit: PortionLimit,
    /// First chunks of portions that were laid out beforehand, the next one first.
    borders: VecDeque<u64>,
    is_laid_out: bool,
    /// Of each lane: all that it put in portions below this number is confirmed, and it puts
    /// nothing there any more.
    passed: Vec<u32>,
    /// Open ranges that this round does not need.
    idle: Vec<RangeId>,
    /// Open ranges that it needs, the furthest ahead last.
    ahead: Vec<RangeId>,
    /// Ranges that the walk has reached, in its order.
    used: VecDeque<RangeId>,
}

impl Plan {
    /// A plan in which nothing is open.
    pub(super) fn new(chunks: ChunkPlan, window_bytes: u64, lanes: usize) -> Self {
        let count = usize::try_from(chunks.chunks()).unwrap_or(usize::MAX);
        let ranges_max = RANGES_MAX.min(count);
        Self {
            set: OpenSet::new(chunks, window_bytes),
            walk: Walk::Followed,
            walked: 0,
            portion: 0,
            portion_bytes: 0,
            portion_ranges: 0,
            portion_limit: PortionLimit {
                bytes: window_bytes,
                ranges: RANGES_MAX,
            },
            borders: VecDeque::new(),
            is_laid_out: false,
            passed: vec![0; lanes],
            idle: Vec::with_capacity(ranges_max),
            ahead: Vec::with_capacity(ranges_max),
            used: VecDeque::with_capacity(ranges_max),
        }
    }

    /// How many portions the round has had so far, beyond the first.
    pub(super) fn crossings(&self) -> u32 {
        self.portion
    }

    /// Whether the round may have more than one portion.
    pub(super) fn has_portions(&self) -> bool {
        self.portion_limit.bytes < self.set.window_bytes()
    }

    // ---- a round ----

    /// A round is about to begin, or a walk that nobody follows: until [`Plan::begin`] every chunk
    /// counts as not reached. Lanes may be told of the round from here on: one that finds nothing to
    /// do passes everything before the walk has begun.
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

    /// Begins a walk through these chunks, in ascending order: those that may be needed. Behind
    /// [`Plan::reset`].
    pub(super) fn begin(&mut self, walk: Walk, chunks: &[u64]) {
        self.walk = walk;
        self.set.forget_portions();
        self.idle.clear();
        self.ahead.clear();
        for chunk in chunks {
            let Some(id) = self.set.of_chunk(*chunk) else {
                continue;
            };
            let range = self.set.get_mut(id);
            let Some(range) = range.filter(|range| range.stage == Stage::Open) else {
                continue;
            };
            // Marked for a moment, to find the others.
            if range.portion.replace(0).is_none() {
                self.ahead.push(id);
            }
        }
        let is_idle = |(id, range): (RangeId, &super::open_set::Range)| {
            let is_unmarked = range.stage == Stage::Open && range.portion.is_none();
            is_unmarked.then_some(id)
        };
        self.idle.extend(self.set.iter().filter_map(is_idle));
        self.set.forget_portions();
        let (window_bytes, ranges_max) = (self.set.window_bytes(), RANGES_MAX);
        self.portion_limit = match self.fits(chunks) {
            true => PortionLimit {
                bytes: window_bytes,
                ranges: ranges_max,
            },
            false => PortionLimit {
                bytes: window_bytes / 2,
                ranges: ranges_max / 2,
            },
        };
    }

    /// The most bytes and ranges that these chunks can take.
    fn demand(&self, chunks: &[u64]) -> (u64, usize) {
        let (mut bytes, mut ranges, mut last) = (0, 0, None);
        for chunk in chunks {
            let id = self.set.of_chunk(*chunk);
            if id.is_none() || id != last {
                bytes += self.set.bytes_at(*chunk);
                ranges += 1;
            }
            last = id;
        }
        (bytes, ranges)
    }

    fn fits(&self, chunks: &[u64]) -> bool {
        let (bytes, ranges) = self.demand(chunks);
        bytes <= self.set.window_bytes() && ranges <= RANGES_MAX
    }

    /// Bytes of these chunks that are neither open nor being opened.
    pub(super) fn unopened_bytes(&self, chunks: &[u64]) -> u64 {
        let unopened = chunks.iter().filter(|chunk| !self.set.is_covered(**chunk));
        unopened.map(|chunk| self.set.chunk_bytes(*chunk)).sum()
    }

    /// How many portions a round of these chunks would have.
    pub(super) fn portions(&self, chunks: &[u64]) -> usize {
        if self.fits(chunks) {
            return 1;
        }
        let half = (self.set.window_bytes() / 2).max(1);
        let portions = self.demand(chunks).0.div_ceil(half);
        usize::try_from(portions).unwrap_or(usize::MAX)
    }

    /// Whether all of these chunks are open.
    pub(super) fn are_open(&self, chunks: &[u64]) -> bool {
        chunks.iter().all(|chunk| {
            let range = self.set.at_chunk(*chunk);
            range.is_some_and(|range| range.stage == Stage::Open)
        })
    }

    /// Lays the round's portions out beforehand: behind [`Plan::begin`], for a round whose chunks
    /// are all needed. Calls `portion` with the chunks of each, in order.
    ///
    /// Ranges that are closed and opened again on the way take no more room than they do here.
    pub(super) fn lay_out(&mut self, chunks: &[u64], mut portion: impl FnMut(&[u64])) {
        let limit = self.portion_limit;
        let (mut begin, mut bytes, mut ranges, mut last) = (0, 0, 0, None);
        self.borders.clear();
        self.is_laid_out = true;
        for (at, chunk) in chunks.iter().enumerate() {
            let id = self.set.of_chunk(*chunk);
            if id.is_some() && id == last {
                continue;
            }
            last = id;
            let more = self.set.bytes_at(*chunk);
            if at > begin && (bytes + more > limit.bytes || ranges == limit.ranges) {
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

    /// The walk reaches a chunk, the next in its order, that is needed, as are the `stretch` (of at
    /// least one) chunks of its region from there on.
    pub(super) fn reach(&mut self, chunk: u64, stretch: u64) -> Step {
        if let Some(id) = self.set.of_chunk(chunk) {
            return self.reach_range(id, chunk);
        }
        // A range lies in one portion.
        let border = self.borders.iter().find(|border| **border > chunk);
        let most = border.map_or(stretch, |border| stretch.min(border - chunk));
        let (run, chunks) = self.set.new_range(chunk, most);
        if let Some(step) = self.make_room(chunk, run) {
            return step;
        }
        let id = self.set.open(run, chunk, chunks);
        self.add_to_portion(id, chunk, run.bytes());
        self.walked = chunk + chunks;
        Step::Open(Named { id, run }, chunks)
    }

    fn reach_range(&mut self, id: RangeId, chunk: u64) -> Step {
        let Some(range) = self.set.get(id).copied() else {
            return Step::Wait;
        };
        if matches!(range.stage, Stage::Closing { .. }) {
            return Step::Wait;
        }
        if range.portion.is_none() {
            self.add_to_portion(id, chunk, range.run.bytes());
        }
        self.walked = chunk + 1;
        Step::Covered
    }

    /// What has to be done before a range can be opened at `chunk`; `None` when nothing has.
    fn make_room(&mut self, chunk: u64, run: Run) -> Option<Step> {
        // The portion comes first: a lane that waits for this chunk may pass all before it.
        self.cross(chunk, run.bytes());
        if self.set.has_room(run.bytes(), false) {
            return None;
        }
        if self.set.has_room(run.bytes(), true) {
            return Some(Step::Wait);
        }
        let victim = self.victim().and_then(|id| self.set.close(id));
        Some(match victim {
            Some(victim) => Step::Close(victim),
            None if self.walk == Walk::Ahead && self.set.under_way().1 == 0 => Step::Full,
            None => Step::Wait,
        })
    }

    /// Begins a new portion, if so many bytes at `chunk` do not belong to the one before.
    fn cross(&mut self, chunk: u64, bytes: u64) {
        let limit = self.portion_limit;
        let is_full = self.portion_ranges > 0
            && (self.portion_bytes + bytes > limit.bytes || self.portion_ranges >= limit.ranges);
        let is_new = match (self.walk, self.is_laid_out) {
            (Walk::Ahead, _) => false,
            (Walk::Followed, false) => is_full,
            (Walk::Followed, true) => self.borders.front().is_some_and(|next| *next <= chunk),
        };
        if is_new {
            // There is one where they were laid out.
            self.borders.pop_front();
            self.portion += 1;
            self.portion_bytes = 0;
            self.portion_ranges = 0;
        }
    }

    fn add_to_portion(&mut self, id: RangeId, chunk: u64, bytes: u64) {
        self.cross(chunk, bytes);
        self.portion_bytes += bytes;
        self.portion_ranges += 1;
        if let Some(range) = self.set.get_mut(id) {
            range.portion = Some(self.portion);
        }
        self.used.push_back(id);
    }

    /// A range that may be closed now: one that the round does not need, else one that all lanes
    /// have passed, else the one that is needed last.
    fn victim(&mut self) -> Option<RangeId> {
        if let Some(id) = self.idle.pop() {
            return Some(id);
        }
        if self.walk == Walk::Ahead {
            return None;
        }
        let passed = self.passed.iter().copied().min().unwrap_or(u32::MAX);
        let is_passed = |id: &RangeId| {
            self.set.get(*id).is_some_and(|range| {
                range.stage == Stage::Open && range.portion.is_some_and(|portion| portion < passed)
            })
        };
        if self.used.front().is_some_and(is_passed) {
            return self.used.pop_front();
        }
        while let Some(id) = self.ahead.pop() {
            let range = self.set.get(id);
            if range.is_some_and(|range| range.portion.is_none() && range.stage == Stage::Open) {
                return Some(id);
            }
        }
        None
    }

    // ---- lanes ----

    /// How a lane finds a chunk of this round.
    pub(super) fn standing(&self, chunk: u64) -> Standing {
        if chunk >= self.walked {
            return Standing::Unreached(self.portion);
        }
        let Some(range) = self.set.at_chunk(chunk) else {
            return Standing::Unneeded;
        };
        match (range.portion, range.stage) {
            (Some(portion), Stage::Open) => Standing::Open(portion),
            (Some(portion), Stage::Opening { .. }) => Standing::Opening(portion),
            _ => Standing::Unneeded,
        }
    }

    /// How many lanes are not at their round's end.
    pub(super) fn lanes_on_the_way(&self) -> usize {
        let on_the_way = self.passed.iter().filter(|passed| **passed < u32::MAX);
        on_the_way.count()
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
