//! A delay in any part of the pause is found in that part, and in no other: in the receipt, in the
//! histograms, and in the trace.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that meets an impossible value should stop there and say so"
)]

mod simulated;

use std::time::Duration;

use dunlin_engine::guest::GuestError;
use dunlin_engine::planted::plant;
use dunlin_engine::report::{REMAINDER, Report, Side};
use dunlin_engine::settings::Verify;
use dunlin_engine::telemetry::trace::{self, TraceNames};
use dunlin_engine::telemetry::{End, Operation};
use serde_json::Value;

use simulated::machine::Machine;
use simulated::{Hooks, Session};

/// Far more than any part takes by itself, also on a host that does other things meanwhile.
const DELAY: Duration = Duration::from_millis(400);

/// Where in the pause it is, its name, and the histogram that has it too, where there is one: its
/// end and its operation.
type Part = (Side, &'static str, Option<(End, Operation)>);

/// Each part.
const PARTS: [Part; 21] = [
    (Side::Source, "park", None),
    (
        Side::Source,
        "collect",
        Some((End::Source, Operation::Harvest)),
    ),
    (Side::Source, "share-out", None),
    (
        Side::Source,
        "save-state",
        Some((End::Source, Operation::SaveState)),
    ),
    (
        Side::Source,
        "final-round",
        Some((End::Source, Operation::ZeroScan)),
    ),
    (
        Side::Source,
        "collect-again",
        Some((End::Source, Operation::Harvest)),
    ),
    (Side::Source, "fence", Some((End::Source, Operation::Fence))),
    (
        Side::Source,
        "digests",
        Some((End::Source, Operation::Digest)),
    ),
    (
        Side::Source,
        "send-prepare",
        Some((End::Source, Operation::SendState)),
    ),
    (Side::Link, "prepare-on-link", None),
    (Side::Destination, "fences", None),
    (
        Side::Destination,
        "digests",
        Some((End::Destination, Operation::Digest)),
    ),
    (
        Side::Destination,
        "load-state",
        Some((End::Destination, Operation::LoadState)),
    ),
    (
        Side::Destination,
        "acquire",
        Some((End::Destination, Operation::Outside)),
    ),
    (
        Side::Destination,
        "revoke-access",
        Some((End::Destination, Operation::RevokeAccess)),
    ),
    (Side::Link, "ready-on-link", None),
    (
        Side::Source,
        "record-give-up",
        Some((End::Source, Operation::CommitRecord)),
    ),
    (Side::Source, "commit", None),
    (Side::Link, "commit-on-link", None),
    (
        Side::Destination,
        "record-ownership",
        Some((End::Destination, Operation::CommitRecord)),
    ),
    (
        Side::Destination,
        "resume",
        Some((End::Destination, Operation::Resume)),
    ),
];

/// A move whose pause has every part: pages are written while it is paused and while state is
/// saved, and all memory is digested.
fn moved() -> Report {
    let writes = |page| {
        move |machine: &Machine| -> Result<(), GuestError> {
            machine.write(page, 9);
            Ok(())
        }
    };
    let hooks = Hooks {
        pause: Some(Box::new(writes(3))),
        save: Some(Box::new(writes(5))),
        ..Hooks::default()
    };
    let mut session = Session::new(&[2048, 512], hooks);
    session.source.write_all(0..1024, 1);
    let limit = 30 * DELAY;
    session.receive.peer_timeout = limit;
    session.set(|settings| {
        settings.verify = Verify::Full;
        settings.max_blackout = limit;
        settings.blackout_cap = Some(limit);
        settings.peer_timeout = limit;
    });
    let ended = session.run();
    ended.assert_moved();
    ended.report
}

/// What took as long as the delay or longer; what comes twice in a row, as parts of the two final
/// rounds do, once.
fn delayed(parts: impl Iterator<Item = (String, u64)>) -> Vec<String> {
    let delay_ns = DELAY.as_nanos() as u64;
    let long = parts.filter(|(_, took_ns)| *took_ns >= delay_ns);
    let mut names: Vec<_> = long.map(|(name, _)| name).collect();
    names.dedup();
    names
}

fn named(side: Side, name: &str) -> String {
    format!("{side:?} {name}")
}

/// What the trace of a move has of the pause, read as a viewer reads it.
fn in_the_trace(report: &Report) -> Vec<(String, u64)> {
    let names = TraceNames {
        guest: "vm1",
        source: "here",
        destination: "there",
    };
    let mut text = Vec::new();
    trace::write(report.telemetry.as_ref().unwrap(), names, &mut text).unwrap();
    let trace: Value = serde_json::from_slice(&text).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let parts = events.iter().filter(|event| event["cat"] == "blackout");
    parts
        .map(|event| {
            let side = match event["pid"].as_u64() {
                Some(1) => Side::Source,
                Some(2) => Side::Destination,
                _ => Side::Link,
            };
            let took_us = event["dur"].as_f64().unwrap();
            let name = event["name"].as_str().unwrap();
            (named(side, name), (took_us * 1e3).round() as u64)
        })
        .collect()
}

#[test]
fn a_delay_in_a_part_is_found_in_that_part_alone() {
    for (side, part, histogram) in PARTS {
        let place = match side {
            Side::Source => "source",
            Side::Destination => "destination",
            Side::Link => "link",
        };
        plant(&format!("{place}:{part}"), DELAY);
        let report = moved();
        let expected = vec![named(side, part)];

        let blackout = report.blackout.as_ref().unwrap();
        let told = blackout.parts.iter().map(|part| {
            assert!(part.name != REMAINDER || part.side == Side::Source);
            (named(part.side, &part.name), part.duration_ns)
        });
        let told_ns: u64 = blackout.parts.iter().map(|part| part.duration_ns).sum();
        assert_eq!(told_ns, blackout.total_ns);
        assert_eq!(delayed(told), expected, "in the receipt: {blackout:#?}");

        let drawn = in_the_trace(&report);
        assert_eq!(
            delayed(drawn.iter().cloned()),
            expected,
            "in the trace: {drawn:#?}"
        );

        let ends = report.telemetry.as_ref().unwrap().ends();
        let operations = ends.flat_map(|(end, told)| {
            let operations = told.operations.iter();
            operations.map(move |told| (format!("{end:?} {:?}", told.name), told.summary.max_ns))
        });
        let expected: Vec<_> = histogram
            .iter()
            .map(|(end, operation)| format!("{end:?} {operation:?}"))
            .collect();
        assert_eq!(delayed(operations), expected, "in histograms, of {part}");
    }
}
