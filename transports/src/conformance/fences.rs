//! What a fence promises, and its deadlines.

use std::time::Duration;

use super::Harness;
use super::session::{
    BRIEF, PATIENCE, Session, assert_all_same, assert_same, run, serve, shortly, soon,
};
use crate::lane::{FenceNumber, LaneError};
use crate::memory::Run;

/// Once every lane's fence is confirmed, all that was put on any is in memory: nothing is read
/// later, no lane is closed first.
pub fn a_fence_covers_what_was_put_on_every_lane(harness: &dyn Harness) {
    const LANES: u16 = 4;
    let session = Session::prepared(harness, &[4096]);
    let (mut sources, destinations) = session.open(LANES);
    let _servings: Vec<_> = destinations.into_iter().map(serve).collect();
    let runs: Vec<Run> = (0..64).map(|chunk| run(chunk * 64, 64)).collect();
    let fences: Vec<_> = sources
        .iter_mut()
        .enumerate()
        .map(|(index, lane)| {
            let share: Vec<Run> = runs
                .iter()
                .skip(index)
                .step_by(LANES.into())
                .copied()
                .collect();
            lane.put(&share).unwrap();
            lane.fence().unwrap()
        })
        .collect();
    for (lane, fence) in sources.iter_mut().zip(fences) {
        lane.wait_fence(fence, PATIENCE).unwrap();
    }
    assert_all_same(&session);
}

/// Fences count from one without gaps, on both sides, with or without puts between.
pub fn fences_count_from_one(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[16]);
    let (mut lane, serving) = session.open_served();
    let mut sent = Vec::new();
    for number in 1..=5 {
        if number % 2 == 0 {
            lane.put(&[run(number, 1)]).unwrap();
        }
        sent.push(lane.fence().unwrap());
    }
    assert_eq!(sent, (1..=5).map(FenceNumber).collect::<Vec<_>>());
    // A later fence settles the earlier ones; waiting for those again is no wait.
    lane.wait_fence(FenceNumber(3), PATIENCE).unwrap();
    lane.wait_fence(FenceNumber(5), PATIENCE).unwrap();
    lane.wait_fence(FenceNumber(1), BRIEF).unwrap();
    drop(lane);
    assert_eq!(serving.join().unwrap().fences, sent);
}

/// A wait for a fence ends at its stall limit, and a later wait for it still succeeds.
pub fn waiting_for_a_fence_ends_where_nothing_moves_and_can_be_taken_up_again(
    harness: &dyn Harness,
) {
    let session = Session::prepared(harness, &[16]);
    let (mut sources, mut destinations) = session.open(1);
    let (mut lane, other) = (sources.pop().unwrap(), destinations.pop().unwrap());
    lane.put(&[run(0, 16)]).unwrap();
    let fence = lane.fence().unwrap();
    // Nobody looks at the other end.
    let waited = lane.wait_fence(fence, BRIEF);
    assert!(
        matches!(waited, Err(LaneError::Stalled { .. })),
        "{waited:?}"
    );
    let _serving = serve(other);
    lane.wait_fence(fence, PATIENCE).unwrap();
    assert_all_same(&session);
}

/// A wait for a fence outlasts its limit for as long as something moves.
pub fn waiting_for_a_fence_lasts_while_something_moves(harness: &dyn Harness) {
    const FENCES: u64 = 20;
    const PAUSE: Duration = Duration::from_millis(100);
    // Half of what all takes, and ten times what one takes.
    const LIMIT: Duration = Duration::from_secs(1);
    let session = Session::prepared(harness, &[64]);
    let (mut sources, mut destinations) = session.open(1);
    let (mut lane, mut other) = (sources.pop().unwrap(), destinations.pop().unwrap());
    let mut last = FenceNumber(0);
    for page in 0..FENCES {
        lane.put(&[run(page, 1)]).unwrap();
        last = lane.fence().unwrap();
    }
    let taking = std::thread::spawn(move || {
        for _ in 0..FENCES {
            std::thread::sleep(PAUSE);
            other.next_fence(soon()).unwrap();
        }
        other
    });
    lane.wait_fence(last, LIMIT).unwrap();
    assert_eq!(last, FenceNumber(FENCES));
    assert_same(&session, run(0, FENCES as u32));
    taking.join().unwrap();
}

/// Nobody can confirm a fence that was never sent.
pub fn waiting_for_a_fence_that_was_never_sent_is_refused(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[16]);
    let (mut lane, _serving) = session.open_served();
    let fence = lane.fence().unwrap();
    assert!(lane.wait_fence(FenceNumber(fence.0 + 1), PATIENCE).is_err());
}

/// The destination's wait ends at its deadline too.
pub fn next_fence_ends_at_its_deadline(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[16]);
    let (_sources, mut destinations) = session.open(1);
    let waited = destinations.pop().unwrap().next_fence(shortly());
    assert!(
        matches!(waited, Err(LaneError::Stalled { .. })),
        "{waited:?}"
    );
}
