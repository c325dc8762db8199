//! Which pages a guest made dirty during a move, and when: recorded on one link, to be tried on
//! another.
//!
//! | room | what is in it |
//! |---|---|
//! | here | [`DirtyTrace`]: intervals of time, each with the pages that became dirty in it |
//! | `format` | the file: what its bytes mean, and their limits |
//! | `recorder` | records a move, between a guest's dirty sources and the engine |
//!
//! An interval is what lies between two collections of dirty pages: a round. Within it the order is
//! not known, and a page written twice counts once.

mod format;
mod recorder;

pub use self::format::{FILE_BYTES_MAX, TraceError};
pub use self::recorder::{RecordedGuest, Recorder};

use std::time::Duration;

use dunlin_engine::layout::Layout;
use dunlin_transports::memory::{PAGE_BYTES, PageNumber};

/// A guest's dirty pages in a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyTrace {
    /// The guest's regions: address and length of each, in pages.
    pub regions: Vec<(u64, u64)>,
    /// Whether the recording ended before the move did, as the file would have become too long.
    pub is_cut: bool,
    /// In order. The first begins when tracking did, each other one where the one before it ends.
    pub intervals: Vec<Interval>,
}

/// The time between two collections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interval {
    /// How long it is.
    pub length: Duration,
    /// Runs of pages that became dirty in it, ascending and apart: the first page's number through
    /// the whole layout, and how many.
    pub runs: Vec<(u64, u64)>,
}

impl Interval {
    /// How many pages became dirty.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|(_, pages)| pages).sum()
    }
}

impl DirtyTrace {
    /// The guest's memory.
    pub fn memory_bytes(&self) -> u64 {
        let pages: u64 = self.regions.iter().map(|(_, pages)| pages).sum();
        pages.saturating_mul(PAGE_BYTES)
    }

    /// The whole time.
    pub fn length(&self) -> Duration {
        self.intervals.iter().map(|interval| interval.length).sum()
    }

    /// How many pages became dirty in all intervals, each counted in each.
    pub fn pages(&self) -> u64 {
        self.intervals.iter().map(Interval::pages).sum()
    }

    /// What became dirty in a second, on average.
    pub fn bytes_per_s(&self) -> u64 {
        let seconds = self.length().as_secs_f64();
        match seconds > 0.0 {
            true => (self.pages() as f64 * PAGE_BYTES as f64 / seconds) as u64,
            false => 0,
        }
    }

    /// How many different pages became dirty.
    pub fn distinct_pages(&self) -> u64 {
        let runs = self.intervals.iter().flat_map(|interval| &interval.runs);
        let mut runs: Vec<(u64, u64)> = runs.copied().collect();
        runs.sort_unstable();
        let mut end = 0;
        let mut distinct = 0;
        for (first, pages) in runs {
            let run_end = first.saturating_add(pages);
            distinct += run_end.saturating_sub(first.max(end));
            end = end.max(run_end);
        }
        distinct
    }

    /// Whether a guest with this layout has the pages that the trace names.
    pub fn fits(&self, layout: &Layout) -> bool {
        self.regions == regions_of(layout)
    }
}

/// Address and length of each region, in pages.
fn regions_of(layout: &Layout) -> Vec<(u64, u64)> {
    let regions = layout.regions().iter();
    regions
        .map(|region| (region.address.0 / PAGE_BYTES, region.bytes / PAGE_BYTES))
        .collect()
}

/// The runs of ascending pages.
fn runs_of(pages: impl Iterator<Item = PageNumber>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == page.0 => *count += 1,
            _ => runs.push((page.0, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_once_or_each_time() {
        let interval = |ms, runs: &[(u64, u64)]| Interval {
            length: Duration::from_millis(ms),
            runs: runs.to_vec(),
        };
        let trace = DirtyTrace {
            regions: vec![(0, 4096)],
            is_cut: false,
            intervals: vec![
                interval(900, &[(10, 5), (100, 1)]),
                interval(100, &[(0, 11), (12, 2)]),
            ],
        };
        assert_eq!(trace.pages(), 19);
        assert_eq!(trace.distinct_pages(), 16);
        assert_eq!(trace.bytes_per_s(), 19 * PAGE_BYTES);
        assert_eq!(trace.memory_bytes(), 16 << 20);
    }

    #[test]
    fn pages_in_a_row_are_one_run() {
        let pages = [3, 4, 5, 9, 64, 65].map(PageNumber);
        assert_eq!(runs_of(pages.into_iter()), [(3, 3), (9, 1), (64, 2)]);
    }
}
