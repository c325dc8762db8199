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
use dunlin_engine::protocol::MessageKind;
use dunlin_engine::report::{Outcome, REMAINDER, Report, Side};
use dunlin_engine::settings::Verify;
use dunlin_engine::telemetry::trace::{self, TraceNames};
use dunlin_engine::telemetry::{End, Kind, Operation, SpanName};
use dunlin_transports::inmemory::Place;
use serde_json::Value;

use simulated::machine::Machine;
use simulated::{Hooks, Session};

/// Far more than any part takes by itself, also on a host that does other things meanwhile.
const DELAY: Duration = Duration::from_millis(400);

/// What took so long was delayed. Registration begins beside the parts before its own, so that not
/// all of it is waited for.
const DELAYED: Duration = Duration::from_millis(300);

/// A move that has a part in its pause.
#[derive(Clone, Copy, Debug)]
enum Scenario {
    /// It has every part but those of the others: pages are written while it is paused and while
    /// state is saved, and all memory is digested.
    Moved,
    /// Memory is registered, and pages are written in the pause that were never touched before.
    Registered,
    /// RUNNING is lost.
    InDoubt,
    /// The destination can't load the state.
    Stayed,
}

/// Where in the pause a part is, its name, the histogram that has it too, where there is one, and a
/// move that has it.
struct Part(Side, &'static str, Option<(End, Operation)>, Scenario);

use End::{Destination as There, Source as Here};
use Scenario::{InDoubt, Moved, Registered, Stayed};

/// Each part. Those of the link, and what the session's thread does in no time or waits for, have no
/// histogram of their own.
const PARTS: [Part; 25] = [
    Part(Side::Source, "park", None, Moved),
    Part(
        Side::Source,
        "collect",
        Some((Here, Operation::Harvest)),
        Moved,
    ),
    Part(Side::Source, "share-out", None, Moved),
    Part(
        Side::Source,
        "registration",
        Some((Here, Operation::Registration)),
        Registered,
    ),
    Part(
        Side::Source,
        "save-state",
        Some((Here, Operation::SaveState)),
        Moved,
    ),
    Part(
        Side::Source,
        "final-round",
        Some((Here, Operation::ZeroScan)),
        Moved,
    ),
    Part(
        Side::Source,
        "collect-again",
        Some((Here, Operation::Harvest)),
        Moved,
    ),
    Part(Side::Source, "fence", Some((Here, Operation::Fence)), Moved),
    Part(
        Side::Source,
        "digests",
        Some((Here, Operation::Digest)),
        Moved,
    ),
    Part(
        Side::Source,
        "send-prepare",
        Some((Here, Operation::SendState)),
        Moved,
    ),
    Part(Side::Link, "prepare-on-link", None, Moved),
    Part(Side::Destination, "fences", None, Moved),
    Part(
        Side::Destination,
        "digests",
        Some((There, Operation::Digest)),
        Moved,
    ),
    Part(
        Side::Destination,
        "load-state",
        Some((There, Operation::LoadState)),
        Moved,
    ),
    Part(
        Side::Destination,
        "acquire",
        Some((There, Operation::Outside)),
        Moved,
    ),
    Part(
        Side::Destination,
        "revoke-access",
        Some((There, Operation::RevokeAccess)),
        Moved,
    ),
    Part(Side::Link, "ready-on-link", None, Moved),
    Part(
        Side::Source,
        "record-give-up",
        Some((Here, Operation::CommitRecord)),
        Moved,
    ),
    Part(Side::Source, "commit", None, Moved),
    Part(Side::Link, "commit-on-link", None, Moved),
    Part(
        Side::Destination,
        "record-ownership",
        Some((There, Operation::CommitRecord)),
        Moved,
    ),
    Part(
        Side::Destination,
        "resume",
        Some((There, Operation::Resume)),
        Moved,
    ),
    Part(Side::Source, "committed", None, InDoubt),
    Part(Side::Source, "in-doubt", None, InDoubt),
    Part(
        Side::Source,
        "resume",
        Some((Here, Operation::Resume)),
        Stayed,
    ),
];

/// The pages that are written before the guest moves.
const WRITTEN: std::ops::Range<u64> = 0..1024;

/// In memory that was not touched before.
const UNTOUCHED: u64 = 1600;

impl Scenario {
    fn report(self) -> Report {
        let writes = |page| {
            move |machine: &Machine| -> Result<(), GuestError> {
                machine.write(page, 9);
                Ok(())
            }
        };
        let paused_page = match self {
            Self::Registered => UNTOUCHED,
            _ => WRITTEN.start + 3,
        };
        let hooks = Hooks {
            pause: Some(Box::new(writes(paused_page))),
            save: Some(Box::new(writes(5))),
            ..Hooks::default()
        };
        let mut session = Session::new(&[2048, 512], hooks);
        session.source.write_all(WRITTEN, 1);
        let limit = 30 * DELAY;
        session.receive.peer_timeout = limit;
        session.set(|settings| {
            settings.verify = Verify::Full;
            settings.max_blackout = limit;
            settings.blackout_cap = Some(limit);
            settings.peer_timeout = limit;
        });
        match self {
            Self::Moved => {}
            Self::Registered => session.faults.register_memory(),
            Self::InDoubt => session.at(MessageKind::Running, |faults| {
                faults.cut_after(Place::Control, 0);
            }),
            Self::Stayed => {
                let fails = |_: &Machine| Err(GuestError::message("a vCPU is missing"));
                session.hooks.load = Some(Box::new(fails));
            }
        }
        let ended = session.run();
        match self {
            Self::Stayed => ended.assert_stayed(Outcome::PeerFailed),
            _ => ended.assert_moved(),
        }
        ended.report
    }
}

/// What was delayed; what comes twice in a row, as parts of the two final rounds do, once.
fn delayed(parts: impl Iterator<Item = (String, u64)>) -> Vec<String> {
    let delayed_ns = DELAYED.as_nanos() as u64;
    let long = parts.filter(|(_, took_ns)| *took_ns >= delayed_ns);
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

/// The histograms that have something that was delayed.
fn in_histograms(report: &Report) -> Vec<String> {
    let ends = report.telemetry.as_ref().unwrap().ends();
    let operations = ends.flat_map(|(end, told)| {
        let operations = told.operations.iter();
        operations.map(move |told| (format!("{end:?} {:?}", told.name), told.summary.max_ns))
    });
    delayed(operations)
}

#[test]
fn a_delay_in_a_part_is_found_in_that_part_alone() {
    for Part(side, part, histogram, scenario) in PARTS {
        let place = match side {
            Side::Source => "source",
            Side::Destination => "destination",
            Side::Link => "link",
        };
        plant(&format!("{place}:{part}"), DELAY);
        let report = scenario.report();
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

        let expected: Vec<_> = histogram
            .iter()
            .map(|(end, operation)| format!("{end:?} {operation:?}"))
            .collect();
        assert_eq!(in_histograms(&report), expected, "in histograms, of {part}");
    }
    each_part_is_tried();
    the_way_into_the_pause_is_no_part_of_it();
}

/// What the declaration has, and is not tried here, would go unseen.
fn each_part_is_tried() {
    for name in SpanName::ALL {
        let is_part = name.declaration().kind == Kind::BlackoutPart;
        let is_tried = PARTS.iter().any(|part| part.1 == name.name());
        assert_eq!(is_part, is_tried, "{}", name.name());
    }
}

/// A vCPU that leaves late lengthens no part: the pause begins when the first is parked.
fn the_way_into_the_pause_is_no_part_of_it() {
    plant("source:leaving", DELAY);
    let report = Moved.report();
    let blackout = report.blackout.as_ref().unwrap();
    let told = blackout.parts.iter();
    let told = told.map(|part| (part.name.clone(), part.duration_ns));
    assert!(delayed(told).is_empty(), "{blackout:#?}");
    assert!(blackout.leaving_ns >= DELAY.as_nanos() as u64);
    assert_eq!(in_histograms(&report), ["Source Kick"]);
}
