//! Lanes that have identities, as those of a fabric have: each is confirmed over control before it
//! carries anything, and whatever is wrong with that leaves the guest at home.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that meets an impossible value should stop there and say so"
)]

mod simulated;

use std::sync::Arc;

use dunlin_engine::protocol::{Lanes, Message, MessageKind};
use dunlin_engine::report::Outcome;
use dunlin_transports::inmemory::Place;
use dunlin_transports::lane::{LaneNumber, SourceLane};

use simulated::by_hand::{DestinationByHand, SourceByHand};
use simulated::{Call, Hooks, Session};

const REGIONS: [u64; 2] = [600, 64];

fn named() -> Session {
    let session = Session::new(&REGIONS, Hooks::default());
    session.source.write_all(0..600, 3);
    session.faults.name_lanes();
    session
}

#[test]
fn confirmed_lanes_move_a_guest() {
    let session = named();
    let faults = Arc::clone(&session.faults);
    let ended = session.run();
    ended.assert_moved();
    // Which lane takes which chunk is chance; each of them is fenced.
    for lane in [0, 1] {
        assert!(faults.messages(Place::Lane(LaneNumber(lane))) > 0);
    }
}

/// The source's `open_lane` has returned, the destination's `accept_lane` has not: LANES comes first
/// and is held.
#[test]
fn lanes_named_before_the_destination_has_them_are_waited_for() {
    let mut session = named();
    session.set(|settings| settings.lanes = Some(1));
    session.faults.hold_admission();
    session.at(MessageKind::Lanes, |faults| faults.end_hold_of_admission());
    session.run().assert_moved();
}

#[test]
fn lanes_that_the_destination_never_gets_are_not_waited_for_for_ever() {
    let mut session = named();
    session.set(|settings| settings.lanes = Some(1));
    session.faults.hold_admission();
    let ended = session.run();
    ended.assert_stayed(Outcome::PeerFailed);
    assert!(ended.report.rounds.is_empty());
}

#[test]
fn another_ones_lane_is_found_and_the_guest_stays() {
    let session = named();
    session.faults.let_impostor_in(LaneNumber(1));
    let faults = Arc::clone(&session.faults);
    let ended = session.run();
    ended.assert_stayed(Outcome::PeerFailed);
    ended.assert_reason("not what the source named");
    for lane in [0, 1] {
        assert_eq!(faults.messages(Place::Lane(LaneNumber(lane))), 0);
    }
}

/// A source that has said which its lanes are, and waits.
fn naming(there: &mut DestinationByHand) {
    there.faults.name_lanes();
    let hello = there.hello();
    there.welcome(&hello);
    match there.by_hand.expect(MessageKind::Lanes) {
        Message::Lanes(lanes) => assert_eq!(lanes.identities(2).unwrap().len(), 2),
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_the_destinations_word_nothing_is_put() {
    let mut there = DestinationByHand::new(&REGIONS, |_| ());
    naming(&mut there);
    let heard = there.by_hand.hear_out();
    assert!(matches!(heard.as_slice(), [Message::Abort(_)]), "{heard:?}");
    let report = there.ended();
    assert_eq!(report.outcome, Outcome::PeerFailed);
    let reason = report.reason.unwrap();
    assert!(reason.contains("has not confirmed the lanes"), "{reason}");
    assert_eq!(there.faults.messages(Place::Lane(LaneNumber(0))), 0);
    assert!(there.machine.runs());
}

#[test]
fn a_cancel_is_heeded_while_the_word_is_waited_for() {
    let mut there = DestinationByHand::new(&REGIONS, |settings| {
        settings.peer_timeout = std::time::Duration::from_secs(20);
    });
    naming(&mut there);
    there.handle.cancel();
    assert_eq!(there.ended().outcome, Outcome::Cancelled);
    assert!(there.machine.runs());
}

/// A destination that is ready for LANES, and its source's lanes.
fn welcomed() -> (SourceByHand, Vec<Box<dyn SourceLane>>) {
    let mut source = SourceByHand::new(&REGIONS);
    source.faults.name_lanes();
    source.hello(2);
    let lanes = source.welcomed();
    (source, lanes)
}

fn identities(lanes: &[Box<dyn SourceLane>]) -> Message {
    let identities = lanes.iter().map(|lane| lane.identity()).collect();
    Message::Lanes(Lanes::new(identities))
}

fn assert_gave_up(mut source: SourceByHand, what: &str) {
    let heard = source.by_hand.hear_out();
    let last = heard.last();
    assert!(
        matches!(last, Some(Message::Aborted(_))),
        "{what}: {heard:?}"
    );
    assert!(source.ended().is_err(), "{what}");
    assert_eq!(source.destination().count(Call::Run), 0, "{what}");
}

#[test]
fn lanes_that_are_named_wrongly_end_the_session() {
    for (what, identities) in [
        ("none", vec![]),
        ("one of two", vec![vec![0, 0]]),
        ("three of two", vec![vec![0, 0], vec![1, 0], vec![2, 0]]),
        ("the other way round", vec![vec![1, 0], vec![0, 0]]),
        ("without a name", vec![vec![], vec![]]),
        ("too long", vec![vec![0, 0], vec![0; 65]]),
    ] {
        let (mut source, _lanes) = welcomed();
        source.by_hand.say(&Message::Lanes(Lanes::new(identities)));
        assert_gave_up(source, what);
    }
}

#[test]
fn lanes_are_named_once_and_prepare_waits_for_the_word() {
    let (mut source, lanes) = welcomed();
    source.by_hand.say(&identities(&lanes));
    source.by_hand.expect(MessageKind::LanesConfirmed);
    source.by_hand.say(&identities(&lanes));
    assert_gave_up(source, "named twice");

    // One lane is missing, so the first LANES is held.
    for (what, next) in [
        ("named twice, unconfirmed", None),
        ("PREPARE before the word", Some(())),
    ] {
        let mut source = SourceByHand::new(&REGIONS);
        source.hello(2);
        source.by_hand.expect(MessageKind::Welcome);
        let named = Message::Lanes(Lanes::new(vec![vec![]; 2]));
        source.by_hand.say(&named);
        match next {
            None => drop(source.by_hand.say(&named)),
            Some(()) => source.prepare(vec![0, 0], 0),
        }
        assert_gave_up(source, what);
    }
}

#[test]
fn a_lane_that_is_used_before_the_word_breaks_the_session() {
    let (source, mut lanes) = welcomed();
    let _ = lanes.iter_mut().map(|lane| lane.fence()).count();
    assert_gave_up(source, "an early fence");
}
