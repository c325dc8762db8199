//! Bytes arrive, in order, and nowhere else.

use super::Harness;
use super::session::{
    Random, Session, assert_all_same, assert_same, bytes, run, scribble, serve, settle,
};
use crate::lane::SourceLane;
use crate::memory::{MemoryMap, PAGE_BYTES, Run};

/// Each page of a put arrives whole.
pub fn single_pages_arrive(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[8]);
    let (mut lane, _serving) = session.open_served();
    assert_eq!(lane.number().0, 0);
    for page in [0, 7, 3] {
        lane.put(&[run(page, 1)]).unwrap();
    }
    settle(&mut *lane);
    for page in [0, 7, 3] {
        assert_same(&session, run(page, 1));
    }
}

/// A run larger than any batch, buffer or message arrives.
pub fn a_big_run_arrives(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[6000]);
    let (mut lane, _serving) = session.open_served();
    lane.put(&[run(0, 6000)]).unwrap();
    settle(&mut *lane);
    assert_all_same(&session);
}

/// Thousands of short runs arrive, and what lies between them stays as it was.
pub fn many_scattered_runs_arrive_and_touch_nothing_else(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[6000]);
    scribble(&session.destination_memory, run(0, 6000), 99);
    let (mut lane, _serving) = session.open_served();
    let is_put = |page: u64| page % 3 != 1;
    let runs: Vec<Run> = (0..6000)
        .filter(|page| page % 3 != 1)
        .map(|page| run(page, 1))
        .collect();
    // Some in one call, the rest in calls of their own.
    let (together, apart) = runs.split_at(2500);
    lane.put(together).unwrap();
    for run in apart {
        lane.put(std::slice::from_ref(run)).unwrap();
    }
    settle(&mut *lane);
    let untouched = super::session::memory(&[6000]);
    scribble(&untouched, run(0, 6000), 99);
    for page in 0..6000 {
        let expected = if is_put(page) {
            &session.source_memory
        } else {
            &untouched
        };
        assert_eq!(
            super::session::first_difference(expected, &session.destination_memory, run(page, 1)),
            None
        );
    }
}

/// Runs of different regions, with gaps between their page numbers, arrive.
pub fn runs_in_several_regions_arrive(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[3, 70, 1, 200]);
    let (mut lane, _serving) = session.open_served();
    let runs = session.source_memory.whole();
    assert_eq!(runs.len(), 4);
    lane.put(&runs).unwrap();
    settle(&mut *lane);
    assert_all_same(&session);
}

/// What is put as zero reads as zero, whatever was there, and its neighbours stay.
pub fn zero_pages_read_as_zero(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[9000]);
    scribble(&session.destination_memory, run(0, 9000), 5);
    let before = bytes(&session.destination_memory, run(0, 1));
    let (mut lane, _serving) = session.open_served();
    lane.put_zero(&[run(1, 1), run(3, 2), run(100, 8800)])
        .unwrap();
    settle(&mut *lane);
    for zero in [run(1, 1), run(3, 2), run(100, 8800)] {
        assert!(
            bytes(&session.destination_memory, zero)
                .iter()
                .all(|byte| *byte == 0)
        );
    }
    assert_eq!(bytes(&session.destination_memory, run(0, 1)), before);
    for kept in [run(2, 1), run(5, 95), run(8900, 100)] {
        assert!(
            bytes(&session.destination_memory, kept)
                .iter()
                .any(|byte| *byte != 0)
        );
    }
}

/// What is put again once the earlier put is fenced is what stays, whether bytes or zeros.
pub fn what_is_put_last_stays(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[64]);
    let (mut lane, _serving) = session.open_served();
    let is_zero = |page: u64| {
        bytes(&session.destination_memory, run(page, 1))
            .iter()
            .all(|b| *b == 0)
    };

    lane.put(&[run(0, 32)]).unwrap();
    lane.put_zero(&[run(40, 4)]).unwrap();
    settle(&mut *lane);
    lane.put_zero(&[run(4, 8)]).unwrap();
    lane.put(&[run(41, 1)]).unwrap();
    settle(&mut *lane);
    lane.put(&[run(6, 2)]).unwrap();
    settle(&mut *lane);
    lane.put_zero(&[run(7, 1)]).unwrap();
    settle(&mut *lane);
    for page in (0..4).chain([6]).chain(12..32).chain([41]) {
        assert_same(&session, run(page, 1));
    }
    for page in [4, 5, 7, 8, 9, 10, 11, 40, 42, 43] {
        assert!(is_zero(page), "page {page} was put as zero last");
    }

    // The same page, changed between two puts: the later bytes stay. (A guest does the same; the
    // first copy may be torn, the second may not.)
    for seed in 10..30 {
        scribble(&session.source_memory, run(50, 2), seed);
        lane.put(&[run(50, 2)]).unwrap();
        settle(&mut *lane);
    }
    assert_same(&session, run(50, 2));
}

/// Both sides count the same payload and the same zero pages, where the destination counts.
pub fn counters_tell_what_was_put(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[3000]);
    let (mut lane, serving) = session.open_served();
    assert_eq!(lane.counters().payload_bytes, 0);
    lane.put(&[run(0, 1), run(10, 2000)]).unwrap();
    lane.put_zero(&[run(2500, 7)]).unwrap();
    settle(&mut *lane);
    let sent = lane.counters();
    drop(lane);
    let received = serving.join().unwrap().counters;
    assert_eq!(sent.payload_bytes, 2001 * PAGE_BYTES);
    assert_eq!(sent.runs, 2);
    assert_eq!(sent.zero_pages, 7);
    assert!(sent.wire_bytes >= sent.payload_bytes);
    assert!(sent.submissions > 0);
    if let Some(received) = received {
        assert_eq!(received.payload_bytes, sent.payload_bytes);
        assert_eq!(received.zero_pages, sent.zero_pages);
    }
}

/// Rounds of random puts and zeros on six lanes, fenced like a move's rounds.
pub fn random_traffic_on_many_lanes_compares_equal(harness: &dyn Harness) {
    const LANES: usize = 6;
    const ROUNDS: u64 = 4;
    let session = Session::prepared(harness, &[2000, 77, 3000]);
    let (mut sources, destinations) = session.open(LANES as u16);
    let servings: Vec<_> = destinations.into_iter().map(serve).collect();
    let mut random = Random::new(42);
    for round in 0..ROUNDS {
        // Each lane's share of this round; chunks change lanes from round to round.
        let mut shares: Vec<Vec<(Run, bool)>> = vec![Vec::new(); LANES];
        for region in session.source_memory.whole() {
            let mut page = region.first.0;
            while page < region.end().0 {
                let left = region.end().0 - page;
                let pages = (1 + random.below(40)).min(left) as u32;
                let piece = run(page, pages);
                page += u64::from(pages);
                // The first round sends everything.
                if round > 0 && random.below(3) == 0 {
                    continue;
                }
                let is_zero = random.below(4) == 0;
                change(&session.source_memory, piece, round, is_zero);
                if let Some(share) = shares.get_mut(random.below(LANES as u64) as usize) {
                    share.push((piece, is_zero));
                }
            }
        }
        std::thread::scope(|scope| {
            for (lane, share) in sources.iter_mut().zip(&shares) {
                scope.spawn(move || send_share(&mut **lane, share));
            }
        });
        assert_all_same(&session);
    }
    drop(sources);
    for serving in servings {
        assert_eq!(serving.join().unwrap().fences.len() as u64, ROUNDS);
    }
}

fn change(memory: &MemoryMap, piece: Run, round: u64, is_zero: bool) {
    if is_zero {
        memory.fill_zero(piece).unwrap();
    } else {
        scribble(memory, piece, 1000 + round);
    }
}

fn send_share(lane: &mut dyn SourceLane, share: &[(Run, bool)]) {
    for (piece, is_zero) in share {
        if *is_zero {
            lane.put_zero(&[*piece]).unwrap();
        } else {
            lane.put(&[*piece]).unwrap();
        }
    }
    settle(lane);
}
