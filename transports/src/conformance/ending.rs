//! Revoking, stopping, and peers that vanish.

use std::time::Duration;

use super::session::{PATIENCE, Session, run, scribble, serve, settle, snapshot, soon, tickets};
use super::{Harness, Pair};
use crate::lane::{LaneError, SourceLane};
use crate::memory::Run;

/// How long a late write is given to show itself.
const LATE: Duration = Duration::from_millis(100);

/// Long enough for a thread to have begun to wait. Only what is tested depends on it, not the
/// outcome: a thread that is late finds the endpoint stopped already.
const SETTLING: Duration = Duration::from_millis(50);

fn is_stopped(error: &LaneError) -> bool {
    matches!(error, LaneError::Stopped(_))
}

/// Puts again and again until the lane fails.
fn put_until_error(lane: &mut dyn SourceLane, run: Run) -> LaneError {
    loop {
        if let Err(error) = lane.put(&[run]) {
            return error;
        }
    }
}

/// What was sent but not yet taken when access is revoked never reaches memory.
pub fn revoking_keeps_out_what_is_under_way(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[64]);
    let (mut sources, mut destinations) = session.open(1);
    let (mut lane, mut other) = (sources.pop().unwrap(), destinations.pop().unwrap());
    let fence = lane.put(&[run(0, 64)]).and_then(|()| lane.fence()).unwrap();
    let before = snapshot(&session.destination_memory);
    session.pair.destination.revoke_all().unwrap();
    // A transport that writes without the destination's processor may have been faster; what is in
    // memory now stays as it is.
    let after = snapshot(&session.destination_memory);
    assert!(other.next_fence(soon()).is_err());
    assert!(lane.wait_fence(fence, PATIENCE).is_err());
    std::thread::sleep(LATE);
    assert_eq!(snapshot(&session.destination_memory), after);
    assert_eq!(before.len(), after.len());
}

/// A source that goes on writing all the while reaches nothing once revoking has returned.
pub fn revoking_stops_a_source_that_goes_on_writing(harness: &dyn Harness) {
    const LANES: u16 = 2;
    let session = Session::prepared(harness, &[4096]);
    let (sources, destinations) = session.open(LANES);
    let servings: Vec<_> = destinations.into_iter().map(serve).collect();
    std::thread::scope(|scope| {
        let memory = &session.source_memory;
        for (index, mut lane) in sources.into_iter().enumerate() {
            let half = run(index as u64 * 2048, 2048);
            scope.spawn(move || {
                for seed in 0.. {
                    // Other bytes each time, so that a late write shows.
                    scribble(memory, run(half.first.0, 8), seed);
                    scribble(memory, run(half.first.0 + 2000, 8), seed);
                    let round = lane.put(&[half]).and_then(|()| {
                        let fence = lane.fence()?;
                        lane.wait_fence(fence, PATIENCE)
                    });
                    if round.is_err() {
                        return;
                    }
                }
            });
        }
        std::thread::sleep(SETTLING);
        session.pair.destination.revoke_all().unwrap();
        let after = snapshot(&session.destination_memory);
        std::thread::sleep(LATE);
        let later = snapshot(&session.destination_memory);
        assert!(after == later, "a byte arrived after revoking had returned");
        session.pair.source.stop();
    });
    for serving in servings {
        serving.join().unwrap();
    }
}

/// A put that blocks because nobody takes its bytes ends when its endpoint is stopped.
pub fn stopping_ends_a_blocked_put(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[8192]);
    let (mut sources, _destinations) = session.open(1);
    let mut lane = sources.pop().unwrap();
    std::thread::scope(|scope| {
        let putting = scope.spawn(move || {
            let error = put_until_error(&mut *lane, run(0, 8192));
            (error, lane.fence())
        });
        std::thread::sleep(SETTLING);
        session.pair.source.stop();
        let (error, fence) = putting.join().unwrap();
        assert!(is_stopped(&error), "{error}");
        assert!(fence.is_err(), "a stopped lane is of no use");
    });
}

/// Waits for fences end when the endpoint of their side is stopped.
pub fn stopping_ends_a_wait_for_a_fence_on_both_sides(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[16]);
    let (mut sources, mut destinations) = session.open(2);
    let (mut waiting_source, _idle_source) = (sources.remove(0), sources.remove(0));
    let (_idle, mut waiting_destination) = (destinations.remove(0), destinations.remove(0));
    let Pair {
        source,
        destination,
        ..
    } = &session.pair;
    std::thread::scope(|scope| {
        let fencing = scope.spawn(move || {
            let fence = waiting_source.fence()?;
            waiting_source.wait_fence(fence, PATIENCE)
        });
        let receiving = scope.spawn(move || waiting_destination.next_fence(soon()));
        std::thread::sleep(SETTLING);
        destination.stop();
        let error = receiving.join().unwrap().unwrap_err();
        assert!(is_stopped(&error), "{error}");
        source.stop();
        source.stop();
        // The destination's stop ended the connection; which came first is a race.
        let error = fencing.join().unwrap().unwrap_err();
        assert!(
            is_stopped(&error) || matches!(error, LaneError::Closed(_)),
            "{error}"
        );
    });
}

/// Waits for lanes end when the endpoint of their side is stopped, and no new one begins.
pub fn stopping_ends_a_wait_for_a_lane_on_both_sides(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[16]);
    let Pair {
        source,
        destination,
        ..
    } = &session.pair;
    let tickets = tickets(1);
    std::thread::scope(|scope| {
        let accepting = scope.spawn(|| destination.accept_lane(&tickets, soon()).map(|_| ()));
        std::thread::sleep(SETTLING);
        destination.stop();
        let error = accepting.join().unwrap().unwrap_err();
        assert!(is_stopped(&error), "{error}");
        let error = destination
            .accept_lane(&tickets, soon())
            .map(|_| ())
            .unwrap_err();
        assert!(is_stopped(&error), "{error}");

        // Nobody accepts any more.
        let opening = scope.spawn(|| {
            let ticket = tickets.first().unwrap();
            source.open_lane(ticket, soon()).map(|_| ())
        });
        std::thread::sleep(SETTLING);
        source.stop();
        let error = opening.join().unwrap().unwrap_err();
        assert!(is_stopped(&error), "{error}");
    });
}

/// A destination's wait ends when the source is gone, also in the middle of things.
pub fn a_source_that_vanishes_is_noticed(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[16]);
    let (mut lane, serving) = session.open_served();
    lane.put(&[run(0, 16)]).unwrap();
    settle(&mut *lane);
    lane.put(&[run(0, 4)]).unwrap();
    drop(lane);
    let served = serving.join().unwrap();
    assert_eq!(served.fences.len(), 1);
    assert!(
        !matches!(served.error, LaneError::Stalled { .. }),
        "{}",
        served.error
    );
}

/// A source's puts or waits fail when the destination is gone.
pub fn a_destination_that_vanishes_is_noticed(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[4096]);
    let (mut sources, destinations) = session.open(1);
    let mut lane = sources.pop().unwrap();
    drop(destinations);
    let result = lane.put(&[run(0, 4096)]).and_then(|()| {
        let fence = lane.fence()?;
        lane.wait_fence(fence, PATIENCE)
    });
    let error = result.unwrap_err();
    assert!(!matches!(error, LaneError::Stalled { .. }), "{error}");
}
