//! Cuts runs where a registration of either side ends: a request names one key of each.

use super::verbs::LocalPiece;
use super::wire::MemoryKey;
use crate::memory::{PAGE_BYTES, PageNumber, Run};

/// Part of a run that lies in one registration on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) own: LocalPiece,
    pub(super) peer_address: u64,
    pub(super) peer_key: u32,
}

/// Cuts runs. `own` and `peer` say in which registered range a page is, and with which key.
///
/// Both are asked only where the last answer does not reach: runs come in order, and a range holds
/// many of them.
pub(super) struct Cutter<Own, Peer> {
    own: Own,
    peer: Peer,
    last_own: Option<(Run, MemoryKey)>,
    last_peer: Option<(Run, MemoryKey)>,
}

impl<Own, Peer> Cutter<Own, Peer>
where
    Own: Fn(PageNumber) -> Option<(Run, MemoryKey)>,
    Peer: Fn(PageNumber) -> Option<(Run, MemoryKey)>,
{
    pub(super) fn new(own: Own, peer: Peer) -> Self {
        Self {
            own,
            peer,
            last_own: None,
            last_peer: None,
        }
    }

    /// Takes a piece of at most `pages_max` pages off the front of a run that has pages left;
    /// `None` when its first page is not registered on both sides.
    pub(super) fn next(&mut self, rest: &mut Run, pages_max: u32) -> Option<Piece> {
        let first = rest.first;
        let own = reaching(&mut self.last_own, &self.own, first)?;
        let peer = reaching(&mut self.last_peer, &self.peer, first)?;
        let pages = rest
            .pages
            .min(pages_max)
            .min(pages_until(first, own.0.end()))
            .min(pages_until(first, peer.0.end()));
        rest.first = PageNumber(first.0 + u64::from(pages));
        rest.pages -= pages;
        Some(Piece {
            own: LocalPiece {
                address: address_of(own, first),
                bytes: pages.saturating_mul(PAGE_BYTES as u32),
                key: own.1.key,
            },
            peer_address: address_of(peer, first),
            peer_key: peer.1.key,
        })
    }
}

/// The range that a page is in: the last one, or the one that is found.
fn reaching(
    last: &mut Option<(Run, MemoryKey)>,
    find: &impl Fn(PageNumber) -> Option<(Run, MemoryKey)>,
    page: PageNumber,
) -> Option<(Run, MemoryKey)> {
    match last {
        Some((range, _)) if range.first <= page && page < range.end() => {}
        _ => *last = find(page),
    }
    *last
}

/// How many pages from one that is before the end to the end.
fn pages_until(page: PageNumber, end: PageNumber) -> u32 {
    u32::try_from(end.0.saturating_sub(page.0)).unwrap_or(u32::MAX)
}

/// A page's address, as requests name it.
fn address_of((range, key): (Run, MemoryKey), page: PageNumber) -> u64 {
    // Inside the range, whose end is an address.
    let skipped = page.0.wrapping_sub(range.first.0).wrapping_mul(PAGE_BYTES);
    key.address.wrapping_add(skipped)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::range_map::RangeMap;

    fn run(first: u64, pages: u32) -> Run {
        Run {
            first: PageNumber(first),
            pages,
        }
    }

    /// Ranges from border to border, each with the key of its first page, and so that a page's
    /// address tells its number.
    fn ranges(borders: &BTreeSet<u64>, base: u64) -> RangeMap<MemoryKey> {
        let mut map = RangeMap::default();
        let mut first = 0;
        for border in borders.iter().copied().chain([64]) {
            let key = MemoryKey {
                key: first as u32,
                address: base + first * PAGE_BYTES,
            };
            map.insert(run(first, (border - first) as u32), key)
                .unwrap();
            first = border;
        }
        map
    }

    fn borders() -> impl Strategy<Value = BTreeSet<u64>> {
        proptest::collection::btree_set(1_u64..64, 0..10)
    }

    proptest! {
        #[test]
        fn pieces_are_the_runs_and_cross_no_border(
            own in borders(),
            peer in borders(),
            gap in 0_u64..64,
            runs in proptest::collection::vec((0_u64..70, 1_u32..64), 1..5),
            pages_max in 1_u32..20,
        ) {
            let (own_map, mut peer_map) = (ranges(&own, 1 << 40), ranges(&peer, 1 << 50));
            let hole = peer_map.at(PageNumber(gap)).unwrap().0;
            peer_map.remove(hole).unwrap();
            let find = |map: &RangeMap<MemoryKey>, page| {
                map.at(page).map(|(range, key)| (range, *key))
            };
            let mut cutter = Cutter::new(|page| find(&own_map, page), |page| find(&peer_map, page));
            for (first, pages) in runs {
                let mut rest = run(first, pages);
                let mut at = first;
                while rest.pages > 0 {
                    let is_there = at < 64 && !(hole.first.0..hole.end().0).contains(&at);
                    let Some(piece) = cutter.next(&mut rest, pages_max) else {
                        prop_assert!(!is_there, "{}", at);
                        break;
                    };
                    prop_assert!(is_there);
                    let count = u64::from(piece.own.bytes) / PAGE_BYTES;
                    prop_assert!(count > 0 && count <= u64::from(pages_max));
                    prop_assert_eq!(piece.own.address, (1 << 40) + at * PAGE_BYTES);
                    prop_assert_eq!(piece.peer_address, (1 << 50) + at * PAGE_BYTES);
                    // The key is that of the range with the first and the last page.
                    for (map, key) in [(&own_map, piece.own.key), (&peer_map, piece.peer_key)] {
                        let (_, first) = find(map, PageNumber(at)).unwrap();
                        let (_, last) = find(map, PageNumber(at + count - 1)).unwrap();
                        prop_assert_eq!((first.key, last.key), (key, key));
                    }
                    at += count;
                    prop_assert_eq!(rest.first.0, at);
                    prop_assert_eq!(u64::from(rest.pages), first + u64::from(pages) - at);
                }
            }
        }
    }
}
