//! Rewriting memory as a trace says: which page is due when.
//!
//! Time begins when tracking does, as in the trace. An interval's pages are spread evenly over it, in
//! ascending order: more is not known of it. At its end the trace begins again, for as long as the
//! move takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dunlin_engine::clock::Timestamp;
use dunlin_engine::dirty::{DirtyBitmap, DirtySource};
use dunlin_engine::guest::GuestError;
use dunlin_transports::memory::PageNumber;

use crate::dirty_trace::{DirtyTrace, Interval};

/// A trace, and when it began.
#[derive(Debug)]
pub(super) struct Replay {
    trace: DirtyTrace,
    length_ns: u64,
    /// Nanoseconds of the monotonic clock; 0: not yet.
    began: AtomicU64,
}

impl Replay {
    /// A replay that waits.
    pub(super) fn new(trace: DirtyTrace) -> Self {
        Self {
            length_ns: nanoseconds(&trace.intervals),
            trace,
            began: AtomicU64::new(0),
        }
    }

    fn begin(&self) {
        self.began.store(Timestamp::now().0, Ordering::Release);
    }
}

/// Where a thread of `vcpus` stands in the replay: it writes every page whose place in the trace is
/// its number.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    replay: &'a Replay,
    vcpu: u64,
    vcpus: u64,
    /// The beginning that all else here belongs to.
    began: u64,
    /// When the interval begins.
    at: u64,
    interval: usize,
    /// The pages of the interval, and how many of them are behind.
    pages: u64,
    behind: u64,
    run: usize,
    in_run: u64,
}

impl<'a> Cursor<'a> {
    /// Stands at the beginning.
    pub(super) fn new(replay: &'a Replay, vcpu: u32, vcpus: u32) -> Self {
        Self {
            replay,
            vcpu: u64::from(vcpu),
            vcpus: u64::from(vcpus.max(1)),
            began: 0,
            at: 0,
            interval: 0,
            pages: 0,
            behind: 0,
            run: 0,
            in_run: 0,
        }
    }

    /// The page that is due now, if one is; the next call has the one after it.
    pub(super) fn due(&mut self, now: u64) -> Option<PageNumber> {
        let began = self.replay.began.load(Ordering::Acquire);
        if began == 0 {
            return None;
        }
        if began != self.began {
            self.began = began;
            self.at = began;
            self.enter(0);
        }
        // Each turn goes one page on, or one interval; a turn through the whole trace ends it.
        let mut passed = 0;
        while passed <= self.replay.trace.intervals.len() {
            let interval = self.replay.trace.intervals.get(self.interval)?;
            if self.behind == self.pages {
                let end = self.at.saturating_add(length_ns(interval));
                if now < end {
                    return None;
                }
                self.at = end;
                self.enter(self.interval + 1);
                passed += 1;
                continue;
            }
            let share = u128::from(length_ns(interval)) * u128::from(self.behind);
            let due = self
                .at
                .saturating_add((share / u128::from(self.pages)) as u64);
            if now < due {
                return None;
            }
            let is_own = self.behind % self.vcpus == self.vcpu;
            let page = self.step(interval)?;
            if is_own {
                return Some(page);
            }
        }
        None
    }

    /// Goes to an interval; behind the last one is the first.
    fn enter(&mut self, interval: usize) {
        let intervals = &self.replay.trace.intervals;
        self.interval = match interval < intervals.len() {
            true => interval,
            false => {
                // Who is behind by more than the whole trace begins anew.
                let late = Timestamp::now().0.saturating_sub(self.at);
                if late > self.replay.length_ns {
                    self.at = self.at.saturating_add(late);
                }
                0
            }
        };
        let entered = intervals.get(self.interval);
        self.pages = entered.map_or(0, Interval::pages);
        self.behind = 0;
        self.run = 0;
        self.in_run = 0;
    }

    /// Takes the page that stands next.
    fn step(&mut self, interval: &Interval) -> Option<PageNumber> {
        let (first, pages) = *interval.runs.get(self.run)?;
        let page = PageNumber(first + self.in_run);
        self.behind += 1;
        self.in_run += 1;
        if self.in_run == pages {
            self.run += 1;
            self.in_run = 0;
        }
        Some(page)
    }
}

fn nanoseconds(intervals: &[Interval]) -> u64 {
    intervals.iter().map(length_ns).fold(0, u64::saturating_add)
}

fn length_ns(interval: &Interval) -> u64 {
    u64::try_from(interval.length.as_nanos()).unwrap_or(u64::MAX)
}

/// A dirty source that begins the replay when tracking begins.
pub(super) struct BeginsReplay {
    pub(super) source: Arc<dyn DirtySource>,
    pub(super) replay: Arc<Replay>,
}

impl DirtySource for BeginsReplay {
    fn name(&self) -> &'static str {
        self.source.name()
    }

    fn start(&self) -> Result<(), GuestError> {
        self.source.start()?;
        self.replay.begin();
        Ok(())
    }

    fn collect(&self, into: &mut DirtyBitmap) -> Result<(), GuestError> {
        self.source.collect(into)
    }

    fn rearms_on_collect(&self) -> bool {
        self.source.rearms_on_collect()
    }

    fn rearm(&self, first: PageNumber, words: &[u64]) -> Result<(), GuestError> {
        self.source.rearm(first, words)
    }

    fn stop(&self) -> Result<(), GuestError> {
        self.source.stop()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn replay(intervals: &[(u64, &[(u64, u64)])]) -> Replay {
        let intervals = intervals.iter().map(|(ns, runs)| Interval {
            length: Duration::from_nanos(*ns),
            runs: runs.to_vec(),
        });
        Replay::new(DirtyTrace {
            regions: vec![(0, 4096)],
            is_cut: false,
            intervals: intervals.collect(),
        })
    }

    /// The pages that are due by then, after the beginning.
    fn due(cursor: &mut Cursor<'_>, after: u64) -> Vec<u64> {
        let now = cursor.replay.began.load(Ordering::Relaxed) + after;
        std::iter::from_fn(|| cursor.due(now))
            .map(|page| page.0)
            .collect()
    }

    #[test]
    fn pages_are_due_in_their_interval_and_the_trace_begins_again() {
        // A quarter of an hour, so that nothing here is behind by a whole trace.
        const S: u64 = 1_000_000_000_000;
        let replay = replay(&[(10 * S, &[(7, 2), (20, 1)]), (S, &[]), (S, &[(9, 1)])]);
        let mut cursor = Cursor::new(&replay, 0, 1);
        assert_eq!(cursor.due(u64::MAX), None, "tracking has not begun");
        replay.begin();
        assert_eq!(due(&mut cursor, 0), [7]);
        assert!(due(&mut cursor, S).is_empty());
        assert_eq!(due(&mut cursor, 4 * S), [8]);
        assert_eq!(due(&mut cursor, 10 * S), [20]);
        assert_eq!(due(&mut cursor, 11 * S), [9]);
        assert_eq!(due(&mut cursor, 12 * S), [7]);
        // Tracking begins again: so does the trace.
        replay.began.fetch_add(1, Ordering::Relaxed);
        assert_eq!(due(&mut cursor, 0), [7]);
    }

    #[test]
    fn threads_share_the_pages() {
        let replay = replay(&[(1_000_000_000_000, &[(0, 5), (10, 6)])]);
        replay.begin();
        let mut all = Vec::new();
        for vcpu in 0..3 {
            let mut cursor = Cursor::new(&replay, vcpu, 3);
            all.extend(due(&mut cursor, 999_999_999_999));
        }
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 15]);
    }

    #[test]
    fn a_trace_of_nothing_ends() {
        for intervals in [&[][..], &[(0, &[][..])], &[(5, &[][..]), (0, &[][..])]] {
            let replay = replay(intervals);
            replay.begin();
            let mut cursor = Cursor::new(&replay, 0, 1);
            assert!(due(&mut cursor, 1_000_000).is_empty());
        }
        // Nor does one that takes no time go on for ever.
        let replay = replay(&[(0, &[(3, 1)])]);
        replay.begin();
        let mut cursor = Cursor::new(&replay, 0, 1);
        assert_eq!(cursor.due(u64::MAX), Some(PageNumber(3)));
    }
}
