//! The destination fetches pages itself, where the transport can; where it can't, it says so.

use std::io::ErrorKind;

use super::Harness;
use super::session::{
    PATIENCE, Session, assert_same, run, scribble, settle, shortly, snapshot, soon,
};
use crate::lane::{Grant, LaneError};
use crate::memory::Run;

fn is_unsupported(error: &LaneError) -> bool {
    matches!(error, LaneError::System { source, .. } if source.kind() == ErrorKind::Unsupported)
}

/// Offers a range; `None` where the transport has no such thing.
fn offer(session: &Session, range: Run) -> Option<Grant> {
    match session.pair.source.offer(range) {
        Ok(offer) => Some(offer),
        Err(error) => {
            assert!(is_unsupported(&error), "{error}");
            None
        }
    }
}

/// What the source offers can be fetched, across the borders of what either side registered, while
/// the lane carries puts as well.
pub fn offered_pages_can_be_fetched(harness: &dyn Harness) {
    let session = Session::bare(harness, &[3000]);
    for range in [run(0, 1000), run(1000, 2000)] {
        session.prepare(range);
    }
    let (mut sources, mut destinations) = session.open(1);
    let (mut lane, mut other) = (sources.pop().unwrap(), destinations.pop().unwrap());
    let offers: Option<Vec<_>> = [run(0, 700), run(700, 1300), run(2000, 500)]
        .into_iter()
        .map(|range| offer(&session, range))
        .collect();
    let Some(offers) = offers else {
        // A transport without the verb says so on the other side too, and goes on working.
        assert!(is_unsupported(
            &other.get(&[run(0, 1)], soon()).unwrap_err()
        ));
        return;
    };
    session.pair.destination.accept_offers(&offers).unwrap();
    let fetched = [run(3, 1), run(600, 1700), run(2499, 1)];
    other.get(&fetched, soon()).unwrap();
    for run in fetched {
        assert_same(&session, run);
    }
    // Fetched again after the source changed, with puts on the same lane.
    lane.put(&[run(2600, 100)]).unwrap();
    let fence = lane.fence().unwrap();
    scribble(&session.source_memory, run(0, 10), 77);
    other.get(&[run(0, 10)], soon()).unwrap();
    assert_same(&session, run(0, 10));
    other.next_fence(soon()).unwrap();
    lane.wait_fence(fence, PATIENCE).unwrap();
    assert_same(&session, run(2600, 100));
}

/// Only what is offered can be fetched, and what was retired can't be any more.
pub fn what_was_not_offered_cannot_be_fetched(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[64]);
    let Some(offered) = offer(&session, run(0, 32)) else {
        return;
    };
    session.pair.destination.accept_offers(&[offered]).unwrap();
    let (mut sources, mut destinations) = session.open(1);
    let (mut lane, mut other) = (sources.pop().unwrap(), destinations.pop().unwrap());
    let before = snapshot(&session.destination_memory);
    for bad in [run(32, 1), run(31, 2), run(63, 2), run(0, 0)] {
        assert!(other.get(&[bad], soon()).is_err(), "{bad:?}");
    }
    assert_eq!(snapshot(&session.destination_memory), before);
    // None of that has left this side, so the lane still works.
    let serving = std::thread::spawn(move || {
        other.next_fence(soon()).unwrap();
        other
    });
    settle(&mut *lane);
    let mut other = serving.join().unwrap();
    session.pair.source.retire(run(0, 32)).unwrap();
    assert!(other.get(&[run(0, 1)], soon()).is_err());
    assert_eq!(snapshot(&session.destination_memory), before);
    // A lane whose request was turned down is of no use.
    assert!(other.next_fence(shortly()).is_err());
}
