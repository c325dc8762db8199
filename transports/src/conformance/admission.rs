//! Who is let in: ranges, and lanes.

use super::session::{PATIENCE, Session, run, serve, settle, shortly, snapshot, soon, tickets};
use super::{Harness, Pair};
use crate::lane::{LaneError, LaneNumber, LaneTicket, LaneToken, SessionId, SourceLane};
use crate::memory::Run;

/// Puts a run and sees it fail, at once or at the fence: that is the transport's choice.
fn assert_put_fails(lane: &mut dyn SourceLane, run: Run) {
    let result = lane.put(&[run]).and_then(|()| {
        let fence = lane.fence()?;
        lane.wait_fence(fence, PATIENCE)
    });
    assert!(result.is_err(), "{run:?} was taken");
}

/// A run that is not inside one region never leaves this side.
pub fn a_put_outside_of_memory_is_refused(harness: &dyn Harness) {
    for bad in [
        run(0, 0),
        run(10, 7),
        run(16, 1),
        run(60, 10),
        run(u64::MAX, 2),
        run(80, 1),
    ] {
        let session = Session::prepared(harness, &[16, 16]);
        let (mut lane, _serving) = session.open_served();
        let put = lane.put(&[bad]);
        assert!(put.is_err(), "{bad:?} was taken");
        let before = snapshot(&session.destination_memory);
        let (mut lane, _serving) = {
            let session = Session::prepared(harness, &[16, 16]);
            session.open_served()
        };
        assert!(lane.put_zero(&[bad]).is_err(), "{bad:?} was taken as zero");
        assert_eq!(snapshot(&session.destination_memory), before);
    }
    let session = Session::bare(harness, &[16, 16]);
    let Pair {
        source,
        destination,
        ..
    } = &session.pair;
    assert!(source.prepare(run(10, 7)).is_err());
    assert!(destination.prepare(run(10, 7)).is_err());
}

/// Only what both sides prepared can be put.
pub fn a_put_into_what_was_not_prepared_lands_nowhere(harness: &dyn Harness) {
    for bad in [run(32, 1), run(30, 4), run(0, 64), run(63, 1)] {
        for is_zero in [false, true] {
            let session = Session::bare(harness, &[64]);
            super::session::scribble(&session.destination_memory, run(0, 64), 8);
            session.prepare(run(0, 32));
            let (mut lane, _serving) = session.open_served();
            let before = snapshot(&session.destination_memory);
            if is_zero {
                let put = lane.put_zero(&[bad]).and_then(|()| {
                    let fence = lane.fence()?;
                    lane.wait_fence(fence, PATIENCE)
                });
                assert!(put.is_err(), "{bad:?} was taken as zero");
            } else {
                assert_put_fails(&mut *lane, bad);
            }
            assert_eq!(snapshot(&session.destination_memory), before);
        }
    }
}

/// What the destination retired can't be put any more, even by a source that still holds a grant.
pub fn a_put_into_what_was_retired_lands_nowhere(harness: &dyn Harness) {
    let session = Session::bare(harness, &[64]);
    session.prepare(run(0, 32));
    session.prepare(run(32, 32));
    let (mut lane, _serving) = session.open_served();
    lane.put(&[run(0, 64)]).unwrap();
    settle(&mut *lane);
    session.pair.destination.retire(run(32, 32)).unwrap();
    super::session::scribble_all(&session.source_memory, 2);
    lane.put(&[run(0, 32)]).unwrap();
    settle(&mut *lane);
    let before = snapshot(&session.destination_memory);
    assert_put_fails(&mut *lane, run(40, 2));
    assert_eq!(snapshot(&session.destination_memory), before);

    session.pair.source.retire(run(0, 32)).unwrap();
    let again = session.pair.source.retire(run(0, 32));
    assert!(
        matches!(again, Err(LaneError::NotPrepared { .. })),
        "{again:?}"
    );
}

/// Retiring is for what was prepared.
pub fn what_was_never_prepared_cannot_be_retired(harness: &dyn Harness) {
    let session = Session::bare(harness, &[64]);
    session.prepare(run(0, 32));
    session.prepare_late();
    let Pair {
        source,
        destination,
        ..
    } = &session.pair;
    assert!(source.retire(run(32, 32)).is_err());
    assert!(destination.retire(run(32, 32)).is_err());
    source.retire(run(0, 32)).unwrap();
    destination.retire(run(0, 32)).unwrap();
    assert!(destination.retire(run(0, 32)).is_err());
}

/// Another session's, another lane's, a guessed or a used ticket opens nothing, and the wait for
/// the right one goes on.
pub fn lanes_without_a_valid_ticket_are_turned_away(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[16]);
    let Pair {
        source,
        destination,
        ..
    } = &session.pair;
    let expected = tickets(2);
    let [first, second] = expected.as_slice() else {
        panic!("two tickets");
    };
    let wrong = [
        LaneTicket {
            session: SessionId([8; 16]),
            ..first.clone()
        },
        LaneTicket {
            number: LaneNumber(9),
            ..first.clone()
        },
        // Lane 1 with the token of lane 0.
        LaneTicket {
            number: second.number,
            ..first.clone()
        },
        LaneTicket {
            token: LaneToken([0; 32]),
            ..first.clone()
        },
    ];
    std::thread::scope(|scope| {
        let accepting = scope.spawn(|| {
            let lane = destination.accept_lane(&expected, soon()).unwrap();
            assert_eq!(lane.number(), first.number);
            let lane = serve(lane);
            let other = destination.accept_lane(&expected, soon()).unwrap();
            assert_eq!(other.number(), second.number);
            (lane, serve(other))
        });
        for ticket in &wrong {
            let refused = source.open_lane(ticket, soon()).map(|_| ());
            assert!(
                matches!(refused, Err(LaneError::Refused { .. })),
                "{refused:?}"
            );
        }
        let mut lane = source.open_lane(first, soon()).unwrap();
        // The same ticket again, while the first lane is still there.
        let refused = source.open_lane(first, soon()).map(|_| ());
        assert!(
            matches!(refused, Err(LaneError::Refused { .. })),
            "{refused:?}"
        );
        let other = source.open_lane(second, soon()).unwrap();
        let _servings = accepting.join().unwrap();
        session.confirm(&*lane);
        session.confirm(&*other);
        session.prepare_late();
        lane.put(&[run(0, 16)]).unwrap();
        settle(&mut *lane);
        super::session::assert_all_same(&session);
    });
}

/// What the source names over control has to be what is connected: another lane's identity, a
/// changed one, and one for a lane that is not there are refused, and nothing can be put then.
/// Transports that bind lanes by the ticket alone have no identity, and take no other.
pub fn a_lane_that_is_not_the_one_named_over_control_writes_nothing(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[16]);
    let Pair {
        source,
        destination,
        ..
    } = &session.pair;
    let tickets = tickets(2);
    std::thread::scope(|scope| {
        let accepting = scope.spawn(|| {
            let lanes = [(); 2].map(|()| destination.accept_lane(&tickets, soon()).unwrap());
            lanes.map(serve)
        });
        let mut lanes: Vec<_> = tickets
            .iter()
            .map(|ticket| source.open_lane(ticket, soon()).unwrap())
            .collect();
        let _servings = accepting.join().unwrap();
        let identity = lanes.first().unwrap().identity();
        let mut changed = identity.clone();
        match changed.first_mut() {
            Some(byte) => *byte ^= 1,
            None => changed.push(1),
        }
        let number = LaneNumber(0);
        assert!(destination.confirm(number, &changed).is_err());
        if identity.is_empty() {
            return;
        }
        assert!(destination.confirm(LaneNumber(1), &identity).is_err());
        assert!(destination.confirm(LaneNumber(7), &identity).is_err());
        let before = snapshot(&session.destination_memory);
        for lane in &mut lanes {
            assert_put_fails(&mut **lane, run(0, 16));
        }
        assert_eq!(snapshot(&session.destination_memory), before);
    });
}

/// Where a device can't keep out a lane that was not confirmed, there is nothing that it could write:
/// nothing is prepared before it is confirmed, and no lane is let in afterwards. Elsewhere the order
/// is free.
pub fn memory_is_not_open_beside_a_lane_that_was_not_confirmed(harness: &dyn Harness) {
    let session = Session::bare(harness, &[16]);
    let destination = &session.pair.destination;
    if !destination.confirms_before_opening() {
        session.prepare(run(0, 8));
        let (mut lane, _serving) = session.open_served();
        session.prepare(run(8, 8));
        lane.put(&[run(0, 16)]).unwrap();
        settle(&mut *lane);
        super::session::assert_all_same(&session);
        return;
    }
    let source = &session.pair.source;
    let tickets = tickets(2);
    let [first, second] = tickets.as_slice() else {
        panic!("two tickets");
    };
    std::thread::scope(|scope| {
        let accepting = scope.spawn(|| destination.accept_lane(&tickets, soon()).unwrap());
        let mut lane = source.open_lane(first, soon()).unwrap();
        let _serving = serve(accepting.join().unwrap());
        let early = destination.prepare(run(0, 16));
        assert!(
            matches!(early, Err(LaneError::Protocol { .. })),
            "{early:?}"
        );
        session.confirm(&*lane);
        session.prepare(run(0, 16));
        session.prepare_late();
        let accepting = scope.spawn(|| destination.accept_lane(&tickets, soon()).map(|_| ()));
        let late = source.open_lane(second, soon()).map(|_| ());
        assert!(matches!(late, Err(LaneError::Refused { .. })), "{late:?}");
        let late = accepting.join().unwrap();
        assert!(matches!(late, Err(LaneError::Protocol { .. })), "{late:?}");
        lane.put(&[run(0, 16)]).unwrap();
        settle(&mut *lane);
        super::session::assert_all_same(&session);
    });
}

/// A contact that is no address of the transport's is refused.
pub fn a_malformed_contact_is_refused(harness: &dyn Harness) {
    let session = Session::bare(harness, &[16]);
    let source = &session.pair.source;
    for bad in [[0; 1].as_slice(), &[4; 7], &[9; 24], &[0xff; 64]] {
        assert!(source.accept_contact(bad).is_err(), "{bad:?}");
    }
}

/// A destination does not wait for lanes for ever.
pub fn waiting_for_a_lane_ends_at_its_deadline(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[16]);
    let waited = session.pair.destination.accept_lane(&tickets(1), shortly());
    let waited = waited.map(|_| ());
    assert!(
        matches!(waited, Err(LaneError::Stalled { .. })),
        "{waited:?}"
    );
}

/// A source does not wait for being let in for ever.
pub fn opening_a_lane_that_nobody_accepts_ends_at_its_deadline(harness: &dyn Harness) {
    let session = Session::prepared(harness, &[16]);
    for ticket in tickets(1) {
        assert!(session.pair.source.open_lane(&ticket, shortly()).is_err());
    }
}
