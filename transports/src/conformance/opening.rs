//! Ranges come and go while the lanes are at work elsewhere.

use super::session::{
    PATIENCE, Random, Session, assert_all_same, assert_same, prepare, run, scribble, scribble_all,
    settle, snapshot,
};
use super::{Harness, Pair};
use crate::lane::LaneError;
use crate::memory::{PAGE_BYTES, Run};

/// What this side retired can't be put any more, whatever the destination still grants; and not
/// either once it is prepared again, before the destination has granted it anew.
pub fn a_put_into_what_this_side_retired_is_refused(harness: &dyn Harness) {
    for is_prepared_again in [false, true] {
        let session = Session::bare(harness, &[64]);
        for range in [run(0, 16), run(16, 16), run(32, 32)] {
            session.prepare(range);
        }
        let (mut lane, _serving) = session.open_served();
        lane.put(&[run(0, 64)]).unwrap();
        settle(&mut *lane);
        let source = &session.pair.source;
        source.retire(run(16, 16)).unwrap();
        if is_prepared_again {
            source.prepare(run(16, 16)).unwrap();
        }
        let before = snapshot(&session.destination_memory);
        scribble(&session.source_memory, run(16, 16), 2);
        for bad in [run(16, 1), run(31, 1), run(15, 2), run(31, 2), run(0, 64)] {
            for refused in [lane.put(&[bad]), lane.put_zero(&[bad])] {
                let is_named = matches!(refused, Err(LaneError::NotPrepared { .. }));
                // A lane that has failed says only that it is closed.
                let is_closed = matches!(refused, Err(LaneError::Closed(_)));
                assert!(is_named || is_closed, "{bad:?}: {refused:?}");
            }
        }
        assert_eq!(snapshot(&session.destination_memory), before);
    }
}

/// A range that both sides retired can be prepared again, and granted again; then it can be put.
pub fn a_range_is_prepared_and_granted_again(harness: &dyn Harness) {
    let session = Session::bare(harness, &[64]);
    let ranges = [run(0, 16), run(16, 8), run(24, 40)];
    for range in ranges {
        session.prepare(range);
    }
    let (mut lane, _serving) = session.open_served();
    let Pair {
        source,
        destination,
        ..
    } = &session.pair;
    for round in 0..3 {
        scribble_all(&session.source_memory, 10 + round);
        lane.put(&[run(0, 64)]).unwrap();
        settle(&mut *lane);
        assert_all_same(&session);
        // Two of them at once, as they were prepared.
        for range in [run(0, 24), run(24, 40)] {
            source.retire(range).unwrap();
            destination.retire(range).unwrap();
        }
        // Next time with another border.
        let border = 8 + 8 * round as u32;
        for range in [
            run(0, border),
            run(u64::from(border), 24 - border),
            run(24, 40),
        ] {
            if range.pages > 0 {
                session.prepare(range);
            }
        }
    }
}

/// A run arrives whose sides prepared it with borders of their own.
pub fn a_run_over_the_borders_of_both_sides_arrives(harness: &dyn Harness) {
    let session = Session::bare(harness, &[3000]);
    let (mut lane, _serving) = session.open_served();
    let source = &session.pair.source;
    for range in [run(0, 40), run(40, 1000), run(1040, 1960)] {
        source.prepare(range).unwrap();
    }
    let destination = &session.pair.destination;
    let granted = [run(0, 7), run(7, 900), run(907, 133), run(1040, 1960)];
    let grants = granted.map(|range| destination.prepare(range).unwrap());
    // In any order, in batches.
    let (first, last) = grants.split_at(3);
    source.accept_grants(last).unwrap();
    source.accept_grants(first).unwrap();
    lane.put(&[run(0, 3000)]).unwrap();
    settle(&mut *lane);
    assert_all_same(&session);
    lane.put_zero(&[run(0, 3000)]).unwrap();
    settle(&mut *lane);
    let all = snapshot(&session.destination_memory);
    assert!(all.iter().flatten().all(|byte| *byte == 0));
}

/// Several threads prepare and retire ranges, on both sides, while a lane puts into another one,
/// and then into theirs.
pub fn ranges_come_and_go_while_a_lane_puts_elsewhere(harness: &dyn Harness) {
    const THREADS: u64 = 4;
    const TURNS: u64 = 12;
    const SHARE: u32 = 256;
    let session = Session::bare(harness, &[SHARE as u64 * (THREADS + 1)]);
    session.prepare(run(0, SHARE));
    let (mut lane, _serving) = session.open_served();
    let source = &*session.pair.source;
    let destination = &*session.pair.destination;
    std::thread::scope(|scope| {
        for thread in 1..=THREADS {
            scope.spawn(move || {
                let mut random = Random::new(thread);
                let share = thread * u64::from(SHARE);
                for turn in 0..TURNS {
                    let border = 1 + random.below(u64::from(SHARE) - 1);
                    let behind = u64::from(SHARE) - border;
                    let parts = [
                        run(share, border as u32),
                        run(share + border, behind as u32),
                    ];
                    for part in parts {
                        prepare(source, destination, part);
                    }
                    // The last stay.
                    if turn + 1 < TURNS {
                        let whole: Run = run(share, SHARE);
                        source.retire(whole).unwrap();
                        destination.retire(whole).unwrap();
                    }
                }
            });
        }
        for seed in 0..20 {
            scribble(&session.source_memory, run(seed, 1), 100 + seed);
            lane.put(&[run(0, SHARE)]).unwrap();
            settle(&mut *lane);
            assert_same(&session, run(0, SHARE));
        }
    });
    lane.put(&session.source_memory.whole()).unwrap();
    let fence = lane.fence().unwrap();
    lane.wait_fence(fence, PATIENCE).unwrap();
    assert_all_same(&session);
}

/// What is registered is counted, and the most that ever was; a transport without registrations
/// counts none.
pub fn registrations_are_counted(harness: &dyn Harness) {
    let session = Session::bare(harness, &[64]);
    let Pair {
        source,
        destination,
        ..
    } = &session.pair;
    let counts = || {
        [source.registrations(), destination.registrations()]
            .map(|counts| [counts.made, counts.ended, counts.bytes, counts.bytes_max])
    };
    let before = counts();
    session.prepare_late();
    for range in [run(0, 16), run(16, 8), run(24, 4)] {
        session.prepare(range);
    }
    for range in [run(0, 24), run(24, 4)] {
        source.retire(range).unwrap();
        destination.retire(range).unwrap();
    }
    session.prepare(run(0, 8));
    let has_some = source.has_registrations();
    assert_eq!(has_some, destination.has_registrations());
    let expected = match has_some {
        true => [4, 3, 8 * PAGE_BYTES, 28 * PAGE_BYTES],
        false => [0; 4],
    };
    assert_eq!(before, [[0; 4]; 2]);
    assert_eq!(counts(), [expected; 2]);
    if has_some {
        // A registration can't be cut, and does not overlap another.
        assert!(source.retire(run(0, 4)).is_err());
        assert!(destination.retire(run(4, 4)).is_err());
        assert!(source.prepare(run(7, 4)).is_err());
        assert!(destination.prepare(run(0, 8)).is_err());
        assert_eq!(counts(), [expected; 2]);
    }
}
