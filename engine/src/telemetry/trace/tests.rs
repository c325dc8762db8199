//! The trace is JSON, each track's spans nest, and their times are exact.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::*;
use crate::clock::Timestamp;
use crate::telemetry::timeline::Span;
use crate::telemetry::{ClockRelation, Recording, SpanName, example};

fn trace(told: &MoveTelemetry) -> Vec<Value> {
    let names = TraceNames {
        guest: "a \"guest\"\n",
        source: "host-a",
        destination: "host-b",
    };
    let mut out = Vec::new();
    write(told, names, &mut out).unwrap();
    let mut trace: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(trace["otherData"]["guest"], "a \"guest\"\n");
    assert_eq!(trace["displayTimeUnit"], "ns");
    match trace["traceEvents"].take() {
        Value::Array(events) => events,
        other => panic!("{other}"),
    }
}

fn of_kind<'a>(events: &'a [Value], phase: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["ph"] == phase).collect()
}

/// Nanoseconds of a number of microseconds as it stands in the file.
fn nanoseconds(number: &Value) -> u64 {
    (number.as_f64().unwrap() * 1000.0).round() as u64
}

#[test]
fn every_span_is_told_on_a_track_that_has_a_name() {
    let told = example::whole_move();
    let events = trace(&told);
    let row = |event: &Value| (event["pid"].as_u64(), event["tid"].as_u64());
    let threads = of_kind(&events, "M").into_iter();
    let threads = threads.filter(|event| event["name"] == "thread_name");
    let threads: BTreeMap<_, _> = threads
        .map(|event| (row(event), event["args"]["name"].as_str().unwrap()))
        .collect();
    let spans = of_kind(&events, "X");
    assert_eq!(spans.len(), told.timeline.spans.len());
    for (event, span) in spans.into_iter().zip(&told.timeline.spans) {
        assert_eq!(event["name"], span.name.name());
        assert_eq!(threads[&row(event)], span.track.to_string());
        assert_eq!(nanoseconds(&event["ts"]), span.begin_ns);
        assert_eq!(nanoseconds(&event["dur"]), span.end_ns - span.begin_ns);
    }
    let processes = of_kind(&events, "M").into_iter();
    let processes = processes.filter(|event| event["name"] == "process_name");
    let processes: Vec<_> = processes
        .map(|event| {
            (
                event["pid"].as_u64().unwrap(),
                event["args"]["name"].clone(),
            )
        })
        .collect();
    assert_eq!(
        processes,
        [
            (1, Value::from("source host-a: a \"guest\"\n")),
            (2, Value::from("destination host-b: a \"guest\"\n")),
            (3, Value::from("link")),
        ]
    );
}

#[test]
fn spans_of_one_row_nest_even_where_they_were_recorded_otherwise() {
    let span = |name, begin, end| Span {
        name,
        track: Track::Control,
        begin: Timestamp(begin),
        end: Timestamp(end),
    };
    let source = Recording {
        spans: vec![
            span(SpanName::Round, 1_000, 5_000),
            span(SpanName::Judge, 4_000, 6_000),
            span(SpanName::Handover, 6_000, 9_000),
            span(SpanName::Park, 6_000, 7_000),
            span(SpanName::Collect, 7_000, 9_000),
        ],
        ..Recording::default()
    };
    let told = MoveTelemetry::new(source, None, Some(ClockRelation::SAME));
    assert_eq!(told.timeline.cut_spans, 1);
    let events = trace(&told);
    let mut rows: BTreeMap<(u64, u64), Vec<(u64, u64)>> = BTreeMap::new();
    for event in of_kind(&events, "X") {
        let row = (
            event["pid"].as_u64().unwrap(),
            event["tid"].as_u64().unwrap(),
        );
        let begin = nanoseconds(&event["ts"]);
        rows.entry(row)
            .or_default()
            .push((begin, begin + nanoseconds(&event["dur"])));
    }
    for (row, spans) in rows {
        for one in &spans {
            for other in &spans {
                let is_disjoint = one.1 <= other.0 || other.1 <= one.0;
                let is_nested = (one.0 <= other.0 && other.1 <= one.1)
                    || (other.0 <= one.0 && one.1 <= other.1);
                assert!(is_disjoint || is_nested, "{one:?} and {other:?} on {row:?}");
            }
        }
    }
}

#[test]
fn long_moves_keep_their_nanoseconds() {
    assert_eq!(microseconds(86_400_000_000_001), "86400000000.001");
    assert_eq!(microseconds(1_002), "1.002");
    assert_eq!(microseconds(999), "0.999");
}

#[test]
fn rows_are_told_apart() {
    let tracks = TrackKind::ALL.iter();
    let tracks =
        tracks.flat_map(|kind| [0, 1, u16::MAX].map(|index| thread(Track::new(*kind, index))));
    let distinct: BTreeSet<_> = tracks.collect();
    // Of the session's thread and of the link there is one each.
    assert_eq!(distinct.len(), 3 * 3 + 2);
}

#[test]
fn a_move_without_spans_is_a_trace_all_the_same() {
    let nothing = MoveTelemetry::new(Recording::default(), None, None);
    assert!(trace(&nothing).is_empty());
}
