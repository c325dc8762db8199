//! Ranges of pages as they came, each with something of its own: what is registered, what is
//! granted.

use std::collections::BTreeMap;

use crate::memory::{PageNumber, Run};

/// Ranges that do not overlap, kept as they came, each with something that goes with it: what a
/// registration can be, which is made and ended whole.
pub(crate) struct RangeMap<T> {
    /// By first page: pages, and what goes with them.
    ranges: BTreeMap<u64, (u32, T)>,
}

impl<T> Default for RangeMap<T> {
    fn default() -> Self {
        Self {
            ranges: BTreeMap::new(),
        }
    }
}

impl<T> RangeMap<T> {
    /// Adds a range.
    ///
    /// # Errors
    ///
    /// One that it overlaps; nothing is changed then.
    pub(crate) fn insert(&mut self, range: Run, value: T) -> Result<(), Run> {
        match self.last_overlapping(range) {
            Some(other) => Err(other),
            None => {
                self.ranges.insert(range.first.0, (range.pages, value));
                Ok(())
            }
        }
    }

    /// The last range that has a page of `range`.
    pub(crate) fn last_overlapping(&self, range: Run) -> Option<Run> {
        // None starts behind the one that starts last before the end, and none that starts before
        // it reaches beyond its start.
        let (first, (pages, _)) = self.ranges.range(..range.end().0).next_back()?;
        let other = run_of(*first, *pages);
        (other.end() > range.first).then_some(other)
    }

    /// The range that a page is in, and what goes with it.
    #[cfg(any(test, feature = "rdma"))]
    pub(crate) fn at(&self, page: PageNumber) -> Option<(Run, &T)> {
        let (first, (pages, value)) = self.ranges.range(..=page.0).next_back()?;
        let range = run_of(*first, *pages);
        (page < range.end()).then_some((range, value))
    }

    /// What goes with just this range.
    pub(crate) fn get_mut(&mut self, range: Run) -> Option<&mut T> {
        let (pages, value) = self.ranges.get_mut(&range.first.0)?;
        (*pages == range.pages).then_some(value)
    }

    /// Takes one range out, as it came.
    pub(crate) fn remove(&mut self, range: Run) -> Option<T> {
        self.get_mut(range)?;
        let (_, value) = self.ranges.remove(&range.first.0)?;
        Some(value)
    }

    /// Takes the ranges out of which `range` consists, without gaps and to its end, if each of them
    /// may go; `None`, and nothing is changed, otherwise.
    pub(crate) fn take(&mut self, range: Run, may_go: impl Fn(&T) -> bool) -> Option<Vec<T>> {
        let mut next = range.first.0;
        while next < range.end().0 {
            let (pages, value) = self.ranges.get(&next)?;
            if !may_go(value) {
                return None;
            }
            next += u64::from(*pages);
        }
        if next != range.end().0 || range.pages == 0 {
            return None;
        }
        let mut taken = Vec::new();
        let mut next = range.first.0;
        while next < range.end().0 {
            let (pages, value) = self.ranges.remove(&next)?;
            next += u64::from(pages);
            taken.push(value);
        }
        Some(taken)
    }

    /// Takes all of them out.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = T> + use<T> {
        let all = std::mem::take(&mut self.ranges);
        all.into_values().map(|(_, value)| value)
    }
}

fn run_of(first: u64, pages: u32) -> Run {
    Run {
        first: PageNumber(first),
        pages,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(first: u64, pages: u32) -> Run {
        run_of(first, pages)
    }

    proptest! {
        #[test]
        fn ranges_stay_as_they_came(
            steps in proptest::collection::vec((any::<bool>(), 0_u64..60, 1_u32..12), 1..80),
        ) {
            let mut map = RangeMap::default();
            let mut all: Vec<(Run, usize)> = Vec::new();
            for (value, (add, first, count)) in steps.into_iter().enumerate() {
                let range = run(first, count);
                if add {
                    let overlaps = |other: &Run| other.first < range.end() && range.first < other.end();
                    let last = all.iter().map(|(other, _)| *other).filter(overlaps).max();
                    prop_assert_eq!(map.insert(range, value).err(), last);
                    if last.is_none() {
                        all.push((range, value));
                        all.sort();
                    }
                } else {
                    let inside = |other: &Run| range.first <= other.first && other.end() <= range.end();
                    let parts: Vec<_> = all.iter().filter(|(other, _)| inside(other)).copied().collect();
                    let pages: u32 = parts.iter().map(|(other, _)| other.pages).sum();
                    let values: Vec<_> = parts.iter().map(|(_, value)| *value).collect();
                    let is_whole = pages == count;
                    // One that may not stay keeps the others.
                    prop_assert_eq!(map.take(range, |value| !values.contains(value)), None);
                    prop_assert_eq!(map.take(range, |_| true), is_whole.then_some(values));
                    if is_whole {
                        all.retain(|(other, _)| !inside(other));
                    }
                }
                for page in 0..75_u64 {
                    let page = PageNumber(page);
                    let expected = all.iter().find(|(other, _)| other.first <= page && page < other.end());
                    let found = map.at(page).map(|(range, value)| (range, *value));
                    prop_assert_eq!(found, expected.copied());
                }
            }
            for (range, value) in all {
                let longer = run(range.first.0, range.pages + 1);
                prop_assert_eq!(map.remove(longer), None);
                prop_assert_eq!(map.get_mut(range).copied(), Some(value));
                prop_assert_eq!(map.remove(range), Some(value));
                prop_assert_eq!(map.at(range.first).is_some(), false);
            }
        }
    }
}
