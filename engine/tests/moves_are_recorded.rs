//! A move tells how long what it did took, on both ends, on one clock.

#![cfg(feature = "telemetry")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that meets an impossible value should stop there and say so"
)]

mod simulated;

use dunlin_engine::report::{Outcome, Side};
use dunlin_engine::telemetry::{End, Kind, Operation, SpanName};

use simulated::session::Ended;
use simulated::{Hooks, Session};

fn moved() -> Ended {
    let session = Session::new(&[2048, 512], Hooks::default());
    session.source.write_all(0..1024, 1);
    let ended = session.run();
    ended.assert_moved();
    ended
}

#[test]
fn both_ends_tell_what_they_measured() {
    let ended = moved();
    let report = &ended.report;
    assert_eq!(report.outcome, Outcome::Moved, "{:?}", report.reason);
    let telemetry = report.telemetry.as_ref().unwrap();
    for (end, operations) in [
        (
            End::Source,
            &[
                Operation::Harvest,
                Operation::ZeroScan,
                Operation::Fence,
                Operation::SaveState,
                Operation::SendState,
                Operation::CommitRecord,
            ][..],
        ),
        (
            End::Destination,
            &[
                Operation::Receive,
                Operation::LoadState,
                Operation::RevokeAccess,
                Operation::CommitRecord,
                Operation::Resume,
            ][..],
        ),
    ] {
        let told = telemetry.ends().find(|(told, _)| *told == end).unwrap().1;
        assert_eq!(told.misplaced, 0, "{end:?}");
        for operation in operations {
            assert!(
                told.operation(*operation).is_some(),
                "{end:?} {operation:?}"
            );
        }
        let puts = told.operations.iter().filter(|told| {
            let declaration = told.name.declaration();
            declaration.name.starts_with("put-") && told.name != Operation::PutZero
        });
        assert_eq!(puts.count() > 0, end == End::Source, "{end:?}");
        assert_eq!(told.lanes.len(), usize::from(report.lanes), "{end:?}");
    }
    assert_eq!(telemetry.timeline.cut_spans, 0);
    assert_eq!(telemetry.timeline.dropped_spans, 0);
}

/// The receipt and the timeline are two views of the same moments.
#[test]
fn each_part_of_the_pause_is_a_span() {
    let ended = moved();
    let report = &ended.report;
    let telemetry = report.telemetry.as_ref().unwrap();
    let blackout = report.blackout.as_ref().unwrap();
    let parts_ns: u64 = blackout.parts.iter().map(|part| part.duration_ns).sum();
    assert_eq!(parts_ns, blackout.total_ns);
    for part in &blackout.parts {
        let spans = telemetry.timeline.spans.iter().filter(|span| {
            let declaration = span.name.declaration();
            declaration.kind == Kind::BlackoutPart
                && declaration.name == part.name
                && span.side == part.side
        });
        let told_ns: u64 = spans.map(|span| span.end_ns - span.begin_ns).sum();
        let parts = blackout
            .parts
            .iter()
            .filter(|other| (&other.name, other.side) == (&part.name, part.side));
        let part_ns: u64 = parts.map(|part| part.duration_ns).sum();
        // A sending call may return behind the message's arrival: the receipt ends it there.
        if part.side != Side::Destination {
            assert_eq!(told_ns, part_ns, "{}", part.name);
        }
    }
    let has = |name| {
        telemetry
            .timeline
            .spans
            .iter()
            .any(|span| span.name == name)
    };
    for name in [
        SpanName::Connect,
        SpanName::Open,
        SpanName::Round,
        SpanName::Judge,
        SpanName::Handover,
        SpanName::LaneRound,
        SpanName::LaneReceive,
        SpanName::LoadState,
    ] {
        assert!(has(name), "{name:?}");
    }
}
