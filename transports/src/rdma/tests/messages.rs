//! Messages that break the protocol.

use super::super::connection::FENCES_IN_FLIGHT_MAX;
use super::super::wire::Message;
use super::lane::{FenceNumber, LaneError};
use super::*;

fn inline(message: Message) -> Transfer {
    Transfer::SendInline(message.encode())
}

/// Makes the source send something, and returns what the destination's lane thinks of it.
fn received(transfers: &[Transfer]) -> Option<LaneError> {
    let mut session = Session::new()?;
    post(&session.source_end(), transfers);
    Some(session.destination_lane.next_fence(soon()).unwrap_err())
}

#[test]
fn messages_that_are_no_fence_end_the_lane() {
    let _pinned = Pinned::watch();
    let mut bad_magic = Message::Fence(1).encode();
    bad_magic[0] ^= 1;
    for bad in [
        inline(Message::Word(1)),
        inline(Message::Fence(0)),
        inline(Message::Fence(2)),
        inline(Message::Fence(u64::MAX)),
        Transfer::SendInline(bad_magic),
    ] {
        let Some(error) = received(&[bad]) else {
            return;
        };
        assert!(
            matches!(error, LaneError::Protocol { .. }),
            "{bad:?}: {error}"
        );
    }
}

#[test]
fn messages_of_another_length_end_the_lane() {
    let _pinned = Pinned::watch();
    for bytes in [0, 15, 17, 4096] {
        let Some(mut session) = Session::new() else {
            return;
        };
        let piece = session.own_piece(bytes);
        post(&session.source_end(), &[Transfer::Send(piece)]);
        let error = session.destination_lane.next_fence(soon()).unwrap_err();
        assert!(
            !matches!(error, LaneError::Stalled { .. }),
            "{bytes}: {error}"
        );
        session.assert_untouched();
    }
}

#[test]
fn words_for_fences_that_were_not_sent_end_the_lane() {
    let _pinned = Pinned::watch();
    for number in [0, 2, u64::MAX] {
        let Some(mut session) = Session::new() else {
            return;
        };
        let fence = session.source_lane.fence().unwrap();
        post(&session.destination_end(), &[inline(Message::Word(number))]);
        let error = session.source_lane.wait_fence(fence, PATIENCE).unwrap_err();
        assert!(matches!(error, LaneError::Protocol { .. }), "{error}");
    }
}

#[test]
fn more_messages_than_there_are_buffers_for_fail_soon_on_both_sides() {
    let _pinned = Pinned::watch();
    let Some(mut session) = Session::new() else {
        return;
    };
    let too_many = 2 * u64::from(FENCES_IN_FLIGHT_MAX);
    let fences: Vec<_> = (1..=too_many).map(|n| inline(Message::Fence(n))).collect();
    let source = session.source_end();
    post(&source, &fences);
    // Nobody takes any. Were the retries without end, neither would this wait be.
    if session.is_iwarp() {
        // There are none, nor a word for what found no buffer: the connection ends.
        await_end(&source);
    } else {
        let all = completions(&source, fences.len());
        let no_buffer = all.iter().filter(|end| end.status == CompletionStatus(13));
        assert_eq!(no_buffer.count(), 1, "{all:?}");
    }
    // Those that found a buffer are good; then the lane ends.
    let mut seen = 0;
    let error = loop {
        match session.destination_lane.next_fence(soon()) {
            Ok(FenceNumber(number)) => {
                seen += 1;
                assert_eq!(number, seen);
            }
            Err(error) => break error,
        }
    };
    assert!(seen <= u64::from(FENCES_IN_FLIGHT_MAX));
    assert!(!matches!(error, LaneError::Stalled { .. }), "{error}");
}

#[test]
fn fences_wait_for_room_where_the_destination_does_not_look() {
    let _pinned = Pinned::watch();
    let Some(mut session) = Session::new() else {
        return;
    };
    for _ in 0..FENCES_IN_FLIGHT_MAX {
        session.source_lane.fence().unwrap();
    }
    std::thread::scope(|scope| {
        let lane = &mut session.source_lane;
        let one_more = scope.spawn(move || {
            let fence = lane.fence()?;
            lane.wait_fence(fence, PATIENCE)
        });
        for number in 1..=u64::from(FENCES_IN_FLIGHT_MAX) + 1 {
            let seen = session.destination_lane.next_fence(soon()).unwrap();
            assert_eq!(seen, FenceNumber(number));
        }
        one_more.join().unwrap().unwrap();
    });
}

#[test]
fn a_peer_whose_queue_pair_has_failed_is_found_by_the_device() {
    let _pinned = Pinned::watch();
    // Not told: the connection is there as far as rdma_cm knows.
    let Some(mut session) = Session::new() else {
        return;
    };
    session.destination_end().pair().end().unwrap();
    let lane = &mut session.source_lane;
    let put = lane.put(&[run(0, PAGES)]).and_then(|()| {
        let fence = lane.fence()?;
        lane.wait_fence(fence, PATIENCE)
    });
    let error = put.unwrap_err();
    assert!(!matches!(error, LaneError::Stalled { .. }), "{error}");
    let error = session.destination_lane.next_fence(soon()).unwrap_err();
    assert!(!matches!(error, LaneError::Stalled { .. }), "{error}");
}
