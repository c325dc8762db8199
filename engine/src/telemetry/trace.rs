//! The timeline as a trace, in the JSON form that Perfetto (<https://ui.perfetto.dev>) and Chrome's
//! own viewer open: each end a process, each of its tracks a thread, each span a complete event
//! (`"ph":"X"`; 'Trace Event Format', the Chromium project).
//!
//! Events carry microseconds with three decimals: nanoseconds, exactly.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::declaration::Kind;
use super::measurements::MoveTelemetry;
use super::timeline::PlacedSpan;
use super::track::{Track, TrackKind};
use crate::report::Side;

/// What the two ends are called in a trace.
#[derive(Clone, Copy, Debug)]
pub struct TraceNames<'a> {
    /// The guest.
    pub guest: &'a str,
    /// The source's host.
    pub source: &'a str,
    /// The destination's host.
    pub destination: &'a str,
}

/// How many tracks of one kind have thread numbers of their own: as many as there are vCPUs and
/// lanes at most, many times over. Track numbers are 16 bits.
const TRACKS_OF_A_KIND: u64 = 1 << 16;

/// Writes the timeline.
///
/// # Errors
///
/// Those of `out`.
pub fn write(told: &MoveTelemetry, names: TraceNames<'_>, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{{\"displayTimeUnit\":\"ns\",")?;
    writeln!(out, "\"otherData\":{},", other_data(told, names))?;
    writeln!(out, "\"traceEvents\":[")?;
    let spans = &told.timeline.spans;
    let mut separator = "";
    let mut event = |event: &Value, out: &mut dyn Write| {
        write!(out, "{separator}{event}")?;
        separator = ",\n";
        io::Result::Ok(())
    };
    // The spans stand side by side and track by track.
    for of_a_side in spans.chunk_by(|one, next| one.side == next.side) {
        for of_a_track in of_a_side.chunk_by(|one, next| one.track == next.track) {
            let Some(first) = of_a_track.first() else {
                continue;
            };
            if of_a_side.first() == Some(first) {
                let (process, name) = process(first.side, names);
                event(&named("process_name", process, 0, &name), out)?;
                event(&sorted("process_sort_index", process, 0, process), out)?;
            }
            let (process, thread) = (process(first.side, names).0, thread(first.track));
            let name = first.track.to_string();
            event(&named("thread_name", process, thread, &name), out)?;
            event(&sorted("thread_sort_index", process, thread, thread), out)?;
        }
    }
    for span in spans {
        write!(out, "{separator}{}", complete_event(span, names))?;
        separator = ",\n";
    }
    writeln!(out, "\n]}}")
}

fn other_data(told: &MoveTelemetry, names: TraceNames<'_>) -> Value {
    json!({
        "guest": names.guest,
        "origin_monotonic_ns": told.timeline.origin_monotonic_ns.to_string(),
        "clock_error_ns": told.clock.map(|clock| clock.error_ns.to_string()),
        "dropped_spans": told.timeline.dropped_spans.to_string(),
    })
}

fn process(side: Side, names: TraceNames<'_>) -> (u64, String) {
    match side {
        Side::Source => (1, format!("source {}: {}", names.source, names.guest)),
        Side::Destination => (
            2,
            format!("destination {}: {}", names.destination, names.guest),
        ),
        Side::Link => (3, "link".to_owned()),
    }
}

/// A number for each track, in the order in which they are shown.
fn thread(track: Track) -> u64 {
    let kind = match track.kind() {
        TrackKind::Control => 0,
        TrackKind::Vcpu => 1,
        TrackKind::Lane => 2,
        TrackKind::Registrar => 3,
        TrackKind::Link => 4,
    };
    1 + kind * TRACKS_OF_A_KIND + u64::from(track.index())
}

fn named(what: &str, process: u64, thread: u64, name: &str) -> Value {
    json!({"ph": "M", "name": what, "pid": process, "tid": thread, "args": {"name": name}})
}

fn sorted(what: &str, process: u64, thread: u64, place: u64) -> Value {
    json!({"ph": "M", "name": what, "pid": process, "tid": thread, "args": {"sort_index": place}})
}

/// Written by hand for its decimals: as a floating-point number a time would lose its nanoseconds
/// after some hours. Nothing in it needs escaping: all names are declared.
fn complete_event(span: &PlacedSpan, names: TraceNames<'_>) -> String {
    let category = match span.name.declaration().kind {
        Kind::BlackoutPart => "blackout",
        _ => "phase",
    };
    let took_ns = span.end_ns.saturating_sub(span.begin_ns);
    format!(
        "{{\"ph\":\"X\",\"name\":\"{}\",\"cat\":\"{category}\",\"pid\":{},\"tid\":{},\
         \"ts\":{},\"dur\":{}}}",
        span.name.name(),
        process(span.side, names).0,
        thread(span.track),
        microseconds(span.begin_ns),
        microseconds(took_ns),
    )
}

fn microseconds(nanoseconds: u64) -> String {
    format!("{}.{:03}", nanoseconds / 1000, nanoseconds % 1000)
}

#[cfg(test)]
mod tests;
