//! Sets of pages, as ranges: what was prepared.

use std::collections::BTreeMap;

use crate::memory::Run;

/// A set of pages, kept as disjoint ranges that do not touch each other.
#[derive(Clone, Default)]
pub(crate) struct PreparedRanges {
    /// First page to the page behind the last.
    ranges: BTreeMap<u64, u64>,
}

impl PreparedRanges {
    /// Adds a run's pages.
    pub(crate) fn insert(&mut self, run: Run) {
        let (mut first, mut end) = (run.first.0, run.end().0);
        // Whatever overlaps or touches becomes one range. The last such range starts at or before
        // `end`; going backwards, the search is over at the first that ends before `first`.
        while let Some((&other_first, &other_end)) = self.ranges.range(..=end).next_back() {
            if other_end < first {
                break;
            }
            self.ranges.remove(&other_first);
            first = first.min(other_first);
            end = end.max(other_end);
        }
        self.ranges.insert(first, end);
    }

    /// Takes a run's pages out; `false`, and nothing is changed, when not all of them were in.
    pub(crate) fn remove(&mut self, run: Run) -> bool {
        let (first, end) = (run.first.0, run.end().0);
        let Some((other_first, other_end)) = self.around(run) else {
            return false;
        };
        self.ranges.remove(&other_first);
        if other_first < first {
            self.ranges.insert(other_first, first);
        }
        if end < other_end {
            self.ranges.insert(end, other_end);
        }
        true
    }

    /// Takes out whichever of a run's pages are in.
    pub(crate) fn subtract(&mut self, run: Run) {
        let (first, end) = (run.first.0, run.end().0);
        while let Some((&other_first, &other_end)) = self.ranges.range(..end).next_back() {
            if other_end <= first {
                break;
            }
            self.ranges.remove(&other_first);
            if end < other_end {
                self.ranges.insert(end, other_end);
            }
            if other_first < first {
                self.ranges.insert(other_first, first);
                break;
            }
        }
    }

    /// Whether all of a run's pages are in.
    pub(crate) fn contains(&self, run: Run) -> bool {
        self.around(run).is_some()
    }

    fn around(&self, run: Run) -> Option<(u64, u64)> {
        let (&first, &end) = self.ranges.range(..=run.first.0).next_back()?;
        (run.pages > 0 && run.end().0 <= end).then_some((first, end))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::PageNumber;

    fn run(first: u64, pages: u32) -> Run {
        Run {
            first: PageNumber(first),
            pages,
        }
    }

    proptest! {
        #[test]
        fn ranges_are_the_set_of_their_pages(
            steps in proptest::collection::vec((0..3, 0_u64..60, 1_u32..12), 1..60),
        ) {
            let mut ranges = PreparedRanges::default();
            let mut pages = [false; 80];
            for (step, first, count) in steps {
                let span = first as usize..first as usize + count as usize;
                if step == 0 {
                    ranges.insert(run(first, count));
                    pages[span].fill(true);
                } else if step == 1 {
                    ranges.subtract(run(first, count));
                    pages[span].fill(false);
                } else {
                    let all = pages[span.clone()].iter().all(|page| *page);
                    prop_assert_eq!(ranges.remove(run(first, count)), all);
                    if all {
                        pages[span].fill(false);
                    }
                }
                for first in 0..70_u64 {
                    for count in 1..5_u32 {
                        let span = first as usize..first as usize + count as usize;
                        let all = pages[span].iter().all(|page| *page);
                        prop_assert_eq!(ranges.contains(run(first, count)), all);
                    }
                }
            }
        }
    }
}
