//! What the peer lets be reached: its ranges, with their keys.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::wire::MemoryKey;
use crate::lane::{Grant, LaneError, LaneNumber};
use crate::memory::{MemoryMap, PAGE_BYTES, PageNumber, Run};
use crate::range_map::RangeMap;

/// The ranges that the peer granted.
#[derive(Default)]
pub(super) struct Grants {
    ranges: RwLock<RangeMap<MemoryKey>>,
}

/// The grants as they are now: nobody changes them while this is held, so not for long.
pub(super) struct GrantsView<'a>(RwLockReadGuard<'a, RangeMap<MemoryKey>>);

impl GrantsView<'_> {
    /// The range that a page was granted in, and its key.
    pub(super) fn at(&self, page: PageNumber) -> Option<(Run, MemoryKey)> {
        self.0.at(page).map(|(range, key)| (range, *key))
    }
}

impl Grants {
    fn ranges(&self) -> RwLockWriteGuard<'_, RangeMap<MemoryKey>> {
        // No code panics while it holds the lock, so a poisoned state is still a whole one.
        self.ranges.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// To look ranges up.
    pub(super) fn view(&self) -> GrantsView<'_> {
        GrantsView(self.ranges.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the peer's grants. A range that was granted before gets its new key: the peer retired
    /// and prepared it again.
    ///
    /// # Errors
    ///
    /// When a grant is malformed, its range is not guest memory, or it overlaps another one.
    pub(super) fn accept(
        &self,
        memory: &MemoryMap,
        grants: &[Grant],
        lane: LaneNumber,
    ) -> Result<(), LaneError> {
        let protocol = |violation| LaneError::Protocol { lane, violation };
        for grant in grants {
            let range = grant.range;
            memory
                .check(range)
                .map_err(|source| LaneError::Memory { lane, source })?;
            let Some(key) = MemoryKey::read(&grant.key, range.bytes()) else {
                let bytes = grant.key.len();
                return Err(protocol(format!("a grant with a bad key of {bytes} bytes")));
            };
            let mut ranges = self.ranges();
            if let Some(known) = ranges.get_mut(range) {
                *known = key;
                continue;
            }
            ranges.insert(range, key).map_err(|other| {
                protocol(format!(
                    "a grant of {} pages at {} overlaps one of {} pages at {}",
                    range.pages, range.first, other.pages, other.first
                ))
            })?;
        }
        Ok(())
    }

    /// Forgets whatever was granted of a range.
    pub(super) fn forget(&self, range: Run) {
        let mut ranges = self.ranges();
        while let Some(other) = ranges.last_overlapping(range) {
            let Some(key) = ranges.remove(other) else {
                return;
            };
            let behind = other.end().0.saturating_sub(range.end().0);
            let before = range.first.0.saturating_sub(other.first.0);
            let skipped = u64::from(other.pages) - behind;
            let parts = [(other.first, before, 0), (range.end(), behind, skipped)];
            for (first, pages, skipped) in parts {
                // Parts of a range that was granted: their number of pages is one of 32 bits.
                let pages = u32::try_from(pages).unwrap_or(0);
                let key = MemoryKey {
                    // Inside the range, whose end was checked to be an address.
                    address: key.address.wrapping_add(skipped * PAGE_BYTES),
                    ..key
                };
                if pages > 0 {
                    // What was taken out is free.
                    let _ = ranges.insert(Run { first, pages }, key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::memory::{HostMapping, OwnedMapping};

    const LANE: LaneNumber = LaneNumber(0);

    fn run(first: u64, pages: u32) -> Run {
        Run {
            first: PageNumber(first),
            pages,
        }
    }

    fn memory() -> MemoryMap {
        let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(64 * PAGE_BYTES).unwrap());
        MemoryMap::new(vec![mapping]).unwrap()
    }

    fn key(key: u32, skipped_pages: u64) -> MemoryKey {
        MemoryKey {
            key,
            address: (u64::from(key) << 32) + skipped_pages * PAGE_BYTES,
        }
    }

    fn grant(range: Run, number: u32) -> Grant {
        Grant {
            range,
            key: key(number, 0).encode(),
        }
    }

    #[test]
    fn bad_grants_are_refused() {
        let grants = Grants::default();
        let memory = memory();
        let accept = |range, key| grants.accept(&memory, &[grant(range, key)], LANE);
        accept(run(10, 10), 1).unwrap();
        // Granted anew, with another key.
        accept(run(10, 10), 2).unwrap();
        assert_eq!(
            grants.view().at(PageNumber(19)),
            Some((run(10, 10), key(2, 0)))
        );
        for bad in [run(5, 6), run(19, 1), run(10, 9), run(0, 64), run(60, 5)] {
            assert!(accept(bad, 3).is_err(), "{bad:?}");
        }
        let short = Grant {
            range: run(0, 1),
            key: vec![0; 11],
        };
        assert!(grants.accept(&memory, &[short], LANE).is_err());
    }

    #[test]
    fn what_is_forgotten_is_cut_out() {
        let grants = Grants::default();
        let all = [grant(run(0, 10), 1), grant(run(10, 20), 2)];
        grants.accept(&memory(), &all, LANE).unwrap();
        grants.forget(run(8, 4));
        grants.forget(run(20, 5));
        grants.forget(run(40, 5));
        let expected = [
            (7, Some((run(0, 8), key(1, 0)))),
            (8, None),
            (11, None),
            (12, Some((run(12, 8), key(2, 2)))),
            (19, Some((run(12, 8), key(2, 2)))),
            (20, None),
            (24, None),
            (25, Some((run(25, 5), key(2, 15)))),
            (30, None),
        ];
        for (page, expected) in expected {
            assert_eq!(grants.view().at(PageNumber(page)), expected, "{page}");
        }
        grants.forget(run(0, 64));
        grants
            .accept(&memory(), &[grant(run(0, 64), 3)], LANE)
            .unwrap();
    }
}
