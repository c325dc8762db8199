//! What the peer lets be reached: its ranges, with their keys, and where one ends and the next
//! begins.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use super::wire::PeerKey;
use crate::lane::{Grant, LaneError, LaneNumber};
use crate::memory::{MemoryMap, PAGE_BYTES, Run};

/// Part of a run that lies in one of the peer's registrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PeerPiece {
    pub(super) run: Run,
    pub(super) address: u64,
    pub(super) key: u32,
}

#[derive(Clone, Copy)]
struct Granted {
    pages: u32,
    key: PeerKey,
}

/// The ranges that the peer granted, by their first page.
#[derive(Default)]
pub(super) struct Grants {
    ranges: RwLock<BTreeMap<u64, Granted>>,
}

impl Grants {
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
            let Some(key) = PeerKey::read(&grant.key, range.bytes()) else {
                let bytes = grant.key.len();
                return Err(protocol(format!("a grant with a bad key of {bytes} bytes")));
            };
            let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
            let before = ranges.range(..range.end().0).next_back();
            if let Some((first, granted)) = before
                && *first + u64::from(granted.pages) > range.first.0
                && (*first, granted.pages) != (range.first.0, range.pages)
            {
                return Err(protocol(format!(
                    "a grant of {} pages at {} overlaps one of {} pages at page {first}",
                    range.pages, range.first, granted.pages
                )));
            }
            let pages = range.pages;
            ranges.insert(range.first.0, Granted { pages, key });
        }
        Ok(())
    }

    /// Cuts a run at the borders of the peer's registrations, and hands out the pieces in order.
    /// `None` when not all of it is granted; pieces before the gap were handed out then.
    pub(super) fn cut(&self, run: Run, mut take: impl FnMut(PeerPiece)) -> Option<()> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let mut rest = run;
        while rest.pages > 0 {
            let (first, granted) = ranges.range(..=rest.first.0).next_back()?;
            let skipped = rest.first.0 - first;
            let left = u64::from(granted.pages).checked_sub(skipped)?;
            let pages = u32::try_from(left).ok()?.min(rest.pages);
            if pages == 0 {
                return None;
            }
            take(PeerPiece {
                run: Run {
                    first: rest.first,
                    pages,
                },
                // Inside the range, whose end was checked to be an address.
                address: granted.key.address.wrapping_add(skipped * PAGE_BYTES),
                key: granted.key.key,
            });
            rest.first.0 += u64::from(pages);
            rest.pages -= pages;
        }
        Some(())
    }

    /// Whether all of a run is granted.
    pub(super) fn covers(&self, run: Run) -> bool {
        run.pages > 0 && self.cut(run, |_| ()).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::memory::{HostMapping, OwnedMapping, PageNumber};

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

    fn grant(range: Run, key: u32) -> Grant {
        let key = PeerKey {
            key,
            address: u64::from(key) << 32,
        };
        Grant {
            range,
            key: key.encode(),
        }
    }

    #[test]
    fn a_run_is_cut_where_a_registration_ends() {
        let grants = Grants::default();
        let both = [grant(run(0, 10), 1), grant(run(10, 20), 2)];
        grants.accept(&memory(), &both, LANE).unwrap();
        let mut pieces = Vec::new();
        grants.cut(run(8, 5), |piece| pieces.push(piece)).unwrap();
        let expected = [
            PeerPiece {
                run: run(8, 2),
                address: (1 << 32) + 8 * PAGE_BYTES,
                key: 1,
            },
            PeerPiece {
                run: run(10, 3),
                address: 2 << 32,
                key: 2,
            },
        ];
        assert_eq!(pieces, expected);
        assert!(!grants.covers(run(29, 2)));
        assert!(!grants.covers(run(0, 0)));
        assert!(grants.covers(run(29, 1)));
    }

    #[test]
    fn bad_grants_are_refused() {
        let grants = Grants::default();
        let memory = memory();
        grants
            .accept(&memory, &[grant(run(10, 10), 1)], LANE)
            .unwrap();
        // Granted anew, with another key.
        grants
            .accept(&memory, &[grant(run(10, 10), 2)], LANE)
            .unwrap();
        for bad in [run(5, 6), run(19, 1), run(10, 9), run(0, 64), run(60, 5)] {
            assert!(
                grants.accept(&memory, &[grant(bad, 3)], LANE).is_err(),
                "{bad:?}"
            );
        }
        let short = Grant {
            range: run(0, 1),
            key: vec![0; 11],
        };
        assert!(grants.accept(&memory, &[short], LANE).is_err());
    }

    proptest! {
        #[test]
        fn pieces_are_the_run(borders in proptest::collection::btree_set(1_u64..64, 0..10), first in 0_u64..64, pages in 1_u32..64) {
            let grants = Grants::default();
            let mut at = 0;
            for (key, border) in borders.into_iter().chain([64]).enumerate() {
                let range = run(at, (border - at) as u32);
                grants.accept(&memory(), &[grant(range, key as u32 + 1)], LANE).unwrap();
                at = border;
            }
            let asked = run(first, pages);
            let mut pieces = Vec::new();
            let all = grants.cut(asked, |piece| pieces.push(piece)).is_some();
            prop_assert_eq!(all, asked.end().0 <= 64);
            let mut next = first;
            for piece in &pieces {
                prop_assert_eq!(piece.run.first.0, next);
                next = piece.run.end().0;
            }
            prop_assert_eq!(next, asked.end().0.min(64));
        }
    }
}
