//! Whole rounds against the plan, in random order: lanes, device and peer each take a step when a
//! seed says so. What must hold is counted here a second time, in the simplest way.

use std::collections::BTreeMap;

use dunlin_transports::memory::{PAGE_BYTES, PageNumber};
use proptest::prelude::*;

use super::*;
use crate::chunk::CHUNK_PAGES;
use crate::layout::{Backing, GuestAddress, Layout, RegionShape};

const CHUNK: u64 = CHUNK_PAGES as u64;

fn chunks_of(region_chunks: &[u64]) -> ChunkPlan {
    let shape = |(index, chunks): (usize, &u64)| RegionShape {
        address: GuestAddress((index as u64) << 40),
        // The last chunk of each region is half a one.
        bytes: chunks * CHUNK_BYTES - CHUNK_BYTES / 2,
        backing: Backing::Memfd,
        backing_page_bytes: PAGE_BYTES,
    };
    let shapes = region_chunks.iter().enumerate().map(shape).collect();
    ChunkPlan::new(&Layout::new(1, shapes).unwrap(), CHUNK_PAGES)
}

/// A small deterministic generator (SplitMix64).
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Opening,
    Open,
    Closing,
}

#[derive(Default)]
struct Lane {
    /// What it has still to do, first chunk last; empty and `None` at its end.
    own: Vec<u64>,
    chunk: Option<u64>,
    portion: u32,
    /// Chunks that it put since its last confirmed fence.
    unfenced: Vec<u64>,
    is_done: bool,
}

/// What the seed may choose from.
#[derive(Clone, Copy)]
enum Turn {
    Walk,
    Lane(usize),
    Device(usize),
    Peer(usize),
}

struct World {
    chunks: ChunkPlan,
    plan: Plan,
    window_bytes: u64,
    seeded: Seeded,
    /// Every range that is registered on either side, as this room sees it.
    seen: BTreeMap<u64, (Run, Seen)>,
    device: Vec<(Named, bool)>,
    peer: Vec<(Run, bool)>,
    lanes: Vec<Lane>,
    list: Vec<u64>,
    /// How many of the list, as claimed by lanes and as walked.
    claimed: usize,
    walked: usize,
    untouched: Vec<u64>,
    put: Vec<u64>,
    crossed: u32,
    /// Whether lanes may be done before they have begun.
    may_idle: bool,
}

impl World {
    fn new(region_chunks: &[u64], window_chunks: u64, lanes: usize, seed: u64) -> Self {
        let window_bytes = window_chunks * CHUNK_BYTES + CHUNK_BYTES / 4;
        Self {
            chunks: chunks_of(region_chunks),
            plan: Plan::new(chunks_of(region_chunks), window_bytes, lanes),
            window_bytes,
            seeded: Seeded(seed),
            seen: BTreeMap::new(),
            device: Vec::new(),
            peer: Vec::new(),
            lanes: (0..lanes).map(|_| Lane::default()).collect(),
            list: Vec::new(),
            claimed: 0,
            walked: 0,
            untouched: Vec::new(),
            put: Vec::new(),
            crossed: 0,
            may_idle: false,
        }
    }

    fn check(&self) {
        let bytes: u64 = self.seen.values().map(|(run, _)| run.bytes()).sum();
        assert!(
            bytes <= self.window_bytes,
            "{bytes} of {}",
            self.window_bytes
        );
        let mut end = 0;
        for (run, _) in self.seen.values() {
            assert!(run.first.0 >= end, "{run:?} overlaps the one before it");
            end = run.end().0;
        }
    }

    fn open(&mut self, named: Named) {
        self.seen
            .insert(named.run.first.0, (named.run, Seen::Opening));
        self.device.push((named, true));
        self.peer.push((named.run, true));
        self.check();
    }

    /// Law 2: nothing is closed before every lane's fence behind it is confirmed.
    fn close(&mut self, named: Named) {
        let run = named.run;
        let seen = self.seen.get_mut(&run.first.0).unwrap();
        assert_eq!(*seen, (run, Seen::Open));
        seen.1 = Seen::Closing;
        let is_in = |chunk: &&u64| {
            let first = self.chunks.chunk(**chunk).unwrap().first;
            run.first <= first && first < run.end()
        };
        for (number, lane) in self.lanes.iter().enumerate() {
            let unfenced = lane.unfenced.iter().find(is_in);
            assert_eq!(unfenced, None, "{run:?} is closed below lane {number}");
            let at_hand = lane.chunk.iter().find(is_in).filter(|chunk| {
                // One that waits for the walk has not begun.
                !matches!(self.plan.standing(**chunk), Standing::Unreached(_))
            });
            assert_eq!(at_hand, None, "{run:?} is closed under lane {number}");
        }
        self.device.push((named, false));
        self.peer.push((run, false));
    }

    /// One step of the walk; `false` when it can't go on now.
    fn walk(&mut self, walk: Walk) -> bool {
        let Some(chunk) = self.list.get(self.walked).copied() else {
            self.plan.end_walk();
            return false;
        };
        if self.untouched.contains(&chunk) && !self.plan.set.is_covered(chunk) {
            self.plan.skip(chunk);
            self.walked += 1;
            return true;
        }
        let follows = |number: &u64| {
            let next = chunk + number;
            self.list.get(self.walked + *number as usize) == Some(&next)
                && !self.chunks.begins_region(next)
                && !self.untouched.contains(&next)
        };
        let stretch = 1 + (1..8).take_while(follows).count() as u64;
        match self.plan.reach(chunk, stretch) {
            Step::Covered => self.walked += 1,
            Step::Open(named, chunks) => {
                assert!(chunks <= stretch);
                self.walked += chunks as usize;
                self.open(named);
            }
            Step::Close(named) => self.close(named),
            Step::Full => {
                assert_eq!(walk, Walk::Ahead);
                self.walked = self.list.len();
            }
            Step::Wait => return false,
        }
        true
    }

    fn fence(&mut self, lane: usize, portion: u32) {
        let lane_of = &mut self.lanes[lane];
        lane_of.unfenced.clear();
        lane_of.portion = portion;
        self.plan.pass(lane, portion);
    }

    /// One step of a lane; `false` when it can't go on now.
    fn lane(&mut self, number: usize, is_claimed: bool) -> bool {
        if self.lanes[number].is_done {
            return false;
        }
        if self.lanes[number].chunk.is_none() {
            let next = if is_claimed {
                let next = self.list.get(self.claimed).copied();
                self.claimed += 1;
                next
            } else {
                self.lanes[number].own.pop()
            };
            self.lanes[number].chunk = next;
            if next.is_none() {
                self.fence(number, u32::MAX);
                self.lanes[number].is_done = true;
            }
            return true;
        }
        let chunk = self.lanes[number].chunk.unwrap();
        let standing = self.plan.standing(chunk);
        match standing {
            Standing::Unreached(portion) | Standing::Opening(portion) => {
                let passes = self.lanes[number].portion < portion;
                if passes {
                    self.fence(number, portion);
                }
                return passes;
            }
            Standing::Unneeded => assert!(self.untouched.contains(&chunk), "{chunk} is needed"),
            Standing::Open(portion) => {
                if self.lanes[number].portion < portion {
                    self.crossed += 1;
                    self.fence(number, portion);
                }
                let first = self.chunks.chunk(chunk).unwrap().first.0;
                let (_, (run, seen)) = self.seen.range(..=first).next_back().unwrap();
                assert!(
                    first < run.end().0 && *seen == Seen::Open,
                    "put into {seen:?}"
                );
                self.lanes[number].unfenced.push(chunk);
                self.put.push(chunk);
            }
        }
        self.lanes[number].chunk = None;
        true
    }

    fn device(&mut self, which: usize) {
        let (named, is_open) = self.device.swap_remove(which);
        let is_done = if is_open {
            self.plan.set.prepared(named.id)
        } else {
            self.plan.set.retired(named.id)
        };
        self.done(named.run, is_open, is_done);
    }

    fn peer(&mut self, which: usize) {
        let (run, is_open) = self.peer.swap_remove(which);
        let is_done = if is_open {
            // What was not asked for is noticed, and so is what was said before.
            let other = Run {
                first: run.first,
                pages: run.pages + 1,
            };
            assert_eq!(self.plan.set.granted(other), None);
            assert_eq!(self.plan.set.closed(run), None);
            let is_done = self.plan.set.granted(run).unwrap();
            assert_eq!(self.plan.set.granted(run), None);
            is_done
        } else {
            assert_eq!(self.plan.set.granted(run), None);
            self.plan.set.closed(run).unwrap()
        };
        self.done(run, is_open, is_done);
    }

    fn done(&mut self, run: Run, is_open: bool, is_done: bool) {
        if is_done && is_open {
            self.seen.get_mut(&run.first.0).unwrap().1 = Seen::Open;
        } else if is_done {
            self.seen.remove(&run.first.0);
        }
    }

    fn turns(&self, has_lanes: bool) -> Vec<Turn> {
        let mut turns = vec![Turn::Walk];
        if has_lanes {
            turns.extend((0..self.lanes.len()).map(Turn::Lane));
        }
        turns.extend((0..self.device.len()).map(Turn::Device));
        turns.extend((0..self.peer.len()).map(Turn::Peer));
        turns
    }

    /// Everybody takes steps until nobody can: then all must be done.
    fn play(&mut self, walk: Walk, is_claimed: bool) {
        let has_lanes = walk == Walk::Followed;
        loop {
            let mut turns = self.turns(has_lanes);
            let mut has_moved = false;
            while !turns.is_empty() && !has_moved {
                let turn = turns.swap_remove(self.seeded.below(turns.len()));
                has_moved = match turn {
                    Turn::Walk => self.walk(walk),
                    Turn::Lane(lane) => self.lane(lane, is_claimed),
                    Turn::Device(which) => {
                        self.device(which);
                        true
                    }
                    Turn::Peer(which) => {
                        self.peer(which);
                        true
                    }
                };
            }
            if !has_moved {
                break;
            }
        }
        assert_eq!(self.walked, self.list.len(), "the walk is stuck");
        assert!(!has_lanes || self.lanes.iter().all(|lane| lane.is_done));
        assert_eq!(self.plan.set.under_way(), (0, 0));
        self.check();
    }

    fn begin(&mut self, list: &[u64], untouched: &[u64], walk: Walk) {
        self.list = list.to_vec();
        self.untouched = untouched.to_vec();
        (self.claimed, self.walked, self.crossed) = (0, 0, 0);
        self.put.clear();
        self.lanes
            .iter_mut()
            .for_each(|lane| *lane = Lane::default());
        self.plan.reset();
        // A lane may find nothing to do before the walk has begun; but one has to.
        let idle = self.lanes.len() - 1;
        for lane in 0..idle {
            if walk == Walk::Followed && self.may_idle && self.seeded.below(4) == 0 {
                self.fence(lane, u32::MAX);
                self.lanes[lane].is_done = true;
            }
        }
        self.plan.begin(walk, list);
    }

    /// A round in which lanes claim.
    fn claimed(&mut self, list: &[u64], untouched: &[u64]) {
        self.may_idle = true;
        self.begin(list, untouched, Walk::Followed);
        self.play(Walk::Followed, true);
        self.assert_put();
    }

    /// A round that is divided beforehand, each portion among all lanes.
    fn divided(&mut self, list: &[u64]) {
        self.may_idle = false;
        self.begin(list, &[], Walk::Followed);
        let lanes = &mut self.lanes;
        let mut all = Vec::new();
        self.plan.lay_out(list, |portion| {
            all.extend_from_slice(portion);
            let share = portion.len().div_ceil(lanes.len()).max(1);
            for (lane, chunks) in lanes.iter_mut().zip(portion.chunks(share)) {
                lane.own.extend(chunks);
            }
        });
        assert_eq!(all, list);
        lanes.iter_mut().for_each(|lane| lane.own.reverse());
        self.play(Walk::Followed, false);
        self.assert_put();
    }

    /// What is to come is opened, as far as it fits.
    fn ahead(&mut self, list: &[u64]) {
        let before: Vec<u64> = list
            .iter()
            .copied()
            .filter(|c| self.plan.set.is_covered(*c))
            .collect();
        self.begin(list, &[], Walk::Ahead);
        self.play(Walk::Ahead, false);
        // Nothing that is needed was closed for something else that is.
        assert!(before.iter().all(|chunk| self.plan.set.is_covered(*chunk)));
        let bytes: u64 = list.len() as u64 * CHUNK_BYTES;
        if self.plan.portions(list) == 1 && bytes <= self.window_bytes {
            assert!(self.plan.are_open(list));
            assert_eq!(self.plan.unopened_bytes(list), 0);
        }
    }

    /// Every needed chunk was put once.
    fn assert_put(&mut self) {
        self.put.sort_unstable();
        let needed = self
            .list
            .iter()
            .filter(|chunk| !self.untouched.contains(chunk));
        let mut put = self
            .put
            .iter()
            .filter(|chunk| !self.untouched.contains(chunk));
        assert!(needed.eq(&mut put), "put {:?} of {:?}", self.put, self.list);
    }
}

fn subset(all: u64, share: usize, seeded: &mut Seeded) -> Vec<u64> {
    (0..all).filter(|_| seeded.below(8) < share).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whole_moves_keep_the_rules(
        region_chunks in proptest::collection::vec(1_u64..24, 1..4),
        window_chunks in 3_u64..40,
        lanes in 1_usize..5,
        seed in any::<u64>(),
        rounds in proptest::collection::vec((0_usize..3, 0_usize..9), 1..6),
    ) {
        let all: u64 = region_chunks.iter().sum();
        let mut world = World::new(&region_chunks, window_chunks, lanes, seed);
        let untouched = subset(all, 3, &mut Seeded(seed ^ 1));
        let list: Vec<u64> = (0..all).collect();
        world.claimed(&list, &untouched);
        // What was never touched is never registered.
        for chunk in &untouched {
            prop_assert!(!world.plan.set.is_covered(*chunk));
        }
        for (kind, share) in rounds {
            let list = subset(all, share, &mut Seeded(seed ^ share as u64));
            let fits = world.plan.portions(&list) == 1;
            match kind {
                0 => world.claimed(&list, &[]),
                1 => world.divided(&list),
                _ => {
                    world.ahead(&list);
                    world.divided(&list);
                }
            }
            if fits && kind < 2 {
                prop_assert_eq!(world.plan.crossings(), 0);
            }
        }
        prop_assert!(world.plan.set.tally().held_bytes_max <= world.window_bytes);
    }
}

#[test]
fn where_all_fits_nothing_is_closed_and_nobody_crosses() {
    let mut world = World::new(&[40], 40, 3, 5);
    let all: Vec<u64> = (0..40).collect();
    for _ in 0..3 {
        world.claimed(&all, &[]);
        assert_eq!((world.crossed, world.plan.crossings()), (0, 0));
    }
    let tally = world.plan.set.tally();
    assert_eq!((tally.opened, tally.closed), (10, 0));
    assert_eq!(tally.opened_bytes, 40 * CHUNK_BYTES - CHUNK_BYTES / 2);
}

#[test]
fn what_the_round_does_not_need_is_closed_first() {
    let mut world = World::new(&[20], 8, 1, 1);
    world.claimed(&[0, 4, 8, 12], &[]);
    let opened = world.plan.set.tally().opened;
    // 4 ranges of one chunk are open; of 5 more, one does not fit.
    world.claimed(&[4, 8, 12, 14, 15, 16, 17, 18], &[]);
    assert_eq!(world.plan.set.tally().closed, 1);
    assert!(!world.plan.set.is_covered(0) && world.plan.set.is_covered(4));
    assert!(world.plan.set.tally().opened > opened);
}

#[test]
fn ranges_grow_with_the_guest_and_shrink_with_the_window() {
    let length = |chunks, window| {
        Plan::new(chunks_of(&[chunks]), window, 1)
            .set
            .range_chunks()
    };
    assert_eq!(length(64, u64::MAX), 4);
    assert_eq!(length(64, 8 << 20), 1);
    assert_eq!(length(64, WINDOW_BYTES_MIN), 1);
    assert_eq!(length(64, 16 << 20), 2);
    // 1 TiB in 16,384 ranges.
    let length = length(1 << 19, u64::MAX);
    assert!((1 << 19) / length <= RANGES_MAX as u64, "{length}");
}

#[test]
fn a_page_in_the_middle_of_a_range_names_none() {
    let mut world = World::new(&[8], 8, 1, 1);
    world.claimed(&[0, 1, 2, 3], &[]);
    let whole = world.seen.values().next().unwrap().0;
    let part = Run {
        first: PageNumber(whole.first.0 + CHUNK),
        pages: CHUNK_PAGES,
    };
    assert_eq!(world.plan.set.closed(part), None);
    assert_eq!(world.plan.set.granted(whole), None);
}
