//! Who did what when: each track of both ends as a strip, over the whole move and over the pause.

use std::collections::BTreeMap;

use dunlin_engine::report::Side;
use dunlin_engine::telemetry::timeline::{PlacedSpan, Timeline};
use dunlin_engine::telemetry::{Counter, Kind, MoveTelemetry, SpanName, Track, TrackKind};
use maud::{Markup, html};

use super::axis::{Axis, AxisUnit, percent};
use super::document::Section;
use super::figure;
use super::pause::side;
use super::table::{Column, Form, table};
use crate::render::amounts;

/// The most tracks that are shown; all are in the data.
const TRACKS_SHOWN: usize = 96;

/// How many names of what a track did stand in its row: those that took longest.
const NAMES_TOLD: usize = 3;

/// Spans of one name that are closer than this are drawn as one: one in so many parts of the
/// window, which is less than a pixel.
const PARTS_SEEN: u64 = 1500;

/// The sections; none where nothing was placed in time.
pub(super) fn sections(told: &MoveTelemetry) -> Vec<Section> {
    let timeline = &told.timeline;
    let end = timeline.spans.iter().map(|span| span.end_ns).max();
    let Some(end) = end.filter(|end| *end > 0) else {
        return Vec::new();
    };
    let mut sections = vec![Section {
        id: "time",
        heading: "Lanes over time",
        body: html! {
            (strips(timeline, Window { from: 0, to: end }, &whole_caption(timeline)))
            (lanes(told))
        },
    }];
    if let Some(window) = pause(timeline) {
        let caption = html! {
            "The same within the pause of " (amounts::nanoseconds(window.to - window.from))
            ", counted from its begin."
        };
        sections.push(Section {
            id: "time-in-the-pause",
            heading: "Inside the pause",
            body: strips(timeline, window, &caption),
        });
    }
    sections
}

fn whole_caption(timeline: &Timeline) -> Markup {
    html! {
        "Each track of both ends on the source's clock: "
        span.key.work { "copying" } ", " span.key.wait { "waiting for a fence" } ", "
        span.key.pause { "parts of the pause" } ", " span.key.other { "everything else" } "."
        @if timeline.dropped_spans > 0 {
            " There was no room for "
            (figure::count("/telemetry/timeline/dropped_spans", timeline.dropped_spans))
            " earlier spans: the oldest go first."
        }
    }
}

/// A stretch of the timeline.
#[derive(Clone, Copy)]
struct Window {
    from: u64,
    to: u64,
}

/// The pause: from the first of its parts to the last.
fn pause(timeline: &Timeline) -> Option<Window> {
    let parts = timeline.spans.iter();
    let parts = parts.filter(|span| span.name.declaration().kind == Kind::BlackoutPart);
    let (from, to) = parts.fold((u64::MAX, 0), |(from, to), span| {
        (from.min(span.begin_ns), to.max(span.end_ns))
    });
    (from < to).then_some(Window { from, to })
}

fn strips(timeline: &Timeline, window: Window, caption: &Markup) -> Markup {
    let axis = Axis::linear(window.to - window.from, AxisUnit::Nanoseconds);
    let mut rows = Vec::new();
    let mut left_out = 0;
    let same =
        |one: &PlacedSpan, next: &PlacedSpan| (one.side, one.track) == (next.side, next.track);
    for of_a_track in timeline.spans.chunk_by(same) {
        let seen: Vec<_> = of_a_track
            .iter()
            .filter_map(|span| within(span, window))
            .collect();
        let Some(first) = seen.first() else {
            continue;
        };
        if rows.len() == TRACKS_SHOWN {
            left_out += 1;
            continue;
        }
        let (side, class) = side(first.side);
        rows.push(vec![
            html! { (first.track) },
            html! { span.side.(class) { (side) } },
            html! { (words(&seen)) },
            axis.row(&shapes(&seen, axis)),
        ]);
    }
    let columns = [
        Column::new("Track", Form::Name),
        Column::new("where", Form::Place),
        Column::new("what it did", Form::Text),
        Column::new("when", Form::Picture),
    ];
    let caption = html! {
        (caption)
        @if left_out > 0 { " " (amounts::counted(left_out, "track")) " more are in the data." }
    };
    table(&caption, &columns, Some(&axis.drawn()), &rows)
}

/// A span's part inside a window, counted from the window's begin.
fn within(span: &PlacedSpan, window: Window) -> Option<PlacedSpan> {
    let begin_ns = span.begin_ns.max(window.from);
    let end_ns = span.end_ns.min(window.to);
    (begin_ns < end_ns || (span.begin_ns == span.end_ns && begin_ns == end_ns)).then(|| {
        PlacedSpan {
            begin_ns: begin_ns - window.from,
            end_ns: end_ns - window.from,
            ..*span
        }
    })
}

/// What a track did, in words: what took longest, how often, how long.
fn words(spans: &[PlacedSpan]) -> String {
    let mut did: BTreeMap<SpanName, (u64, u64)> = BTreeMap::new();
    for span in spans {
        let (times, took) = did.entry(span.name).or_default();
        *times += 1;
        *took = took.saturating_add(span.end_ns - span.begin_ns);
    }
    let mut did: Vec<_> = did.into_iter().collect();
    did.sort_by_key(|(_, (_, took))| std::cmp::Reverse(*took));
    let rest = did.split_off(did.len().min(NAMES_TOLD));
    let mut told: Vec<_> = did
        .iter()
        .map(|(name, (times, took))| {
            let times = match times {
                1 => String::new(),
                times => format!(" ({}×)", amounts::count(*times)),
            };
            format!("{} {}{times}", name.name(), amounts::nanoseconds(*took))
        })
        .collect();
    if !rest.is_empty() {
        let took = rest.iter().map(|(_, (_, took))| took);
        let took = took.fold(0_u64, |sum, took| sum.saturating_add(*took));
        told.push(format!(
            "{} others {}",
            rest.len(),
            amounts::nanoseconds(took)
        ));
    }
    told.join(", ")
}

/// The spans, drawn; inner ones above outer ones, which come first.
fn shapes(spans: &[PlacedSpan], axis: Axis) -> Markup {
    let Axis::Linear { end, .. } = axis else {
        return html! {};
    };
    let mut drawn: Vec<PlacedSpan> = Vec::new();
    for span in spans {
        match drawn.last_mut() {
            Some(last)
                if last.name == span.name
                    && span.begin_ns.saturating_sub(last.end_ns) < end / PARTS_SEEN =>
            {
                last.end_ns = last.end_ns.max(span.end_ns);
            }
            _ => drawn.push(*span),
        }
    }
    html! {
        @for span in &drawn {
            @let (x, width) = axis.stretch(span.begin_ns, span.end_ns);
            @let (class, y, height) = look(span.name);
            rect.(class) x=(percent(x)) width=(percent(width)) y=(y) height=(height) {}
        }
    }
}

/// How a span looks: its class, and its place and height in a strip of 22.
fn look(name: SpanName) -> (&'static str, u32, u32) {
    match name {
        SpanName::Handover => ("other", 3, 16),
        SpanName::Round | SpanName::LaneRound | SpanName::LaneReceive | SpanName::ReceiveRounds => {
            ("work", 4, 14)
        }
        SpanName::LaneFence => ("wait", 6, 10),
        SpanName::VcpuKick | SpanName::VcpuParked | SpanName::VcpuEnter => ("paused", 6, 10),
        _ if name.declaration().kind == Kind::BlackoutPart => ("paused", 6, 10),
        _ => ("other", 6, 10),
    }
}

/// What each lane carried, and how fast while it copied.
fn lanes(told: &MoveTelemetry) -> Markup {
    let mut rows = Vec::new();
    let mut fastest = 0;
    let mut carried = Vec::new();
    for (end, measured) in told.ends() {
        for (place, lane) in measured.lanes.iter().take(TRACKS_SHOWN).enumerate() {
            let payload = lane.counters.get(&Counter::Payload).copied().unwrap_or(0);
            let side = match end {
                dunlin_engine::telemetry::End::Source => Side::Source,
                dunlin_engine::telemetry::End::Destination => Side::Destination,
            };
            let busy_ns = busy(&told.timeline, side, lane.lane);
            let rate = u128::from(payload) * 1_000_000_000;
            let rate = rate.checked_div(u128::from(busy_ns)).unwrap_or(0);
            let rate = u64::try_from(rate).unwrap_or(u64::MAX);
            fastest = fastest.max(rate);
            carried.push((end, place, lane.lane, payload, busy_ns, rate));
        }
    }
    if carried.iter().all(|(.., payload, _, _)| *payload == 0) {
        return html! {};
    }
    let axis = Axis::linear(fastest, AxisUnit::BytesPerSecond);
    for (end, place, lane, payload, busy_ns, rate) in carried {
        let name = end.name();
        let from = format!("/telemetry/{name}/lanes/{place}/counters/payload_bytes");
        let (x, width) = axis.stretch(0, rate);
        let known = busy_ns > 0;
        let shapes = html! {
            @if known && rate > 0 {
                rect.(name) x=(percent(x)) width=(percent(width)) y="6" height="10" {}
            }
        };
        rows.push(vec![
            html! { "lane " (lane) },
            html! { span.side.(name) { (name) } },
            figure::bytes(&from, payload),
            html! { @if known { (amounts::nanoseconds(busy_ns)) } @else { "–" } },
            html! { @if known { (amounts::rate(rate)) } @else { "–" } },
            axis.row(&shapes),
        ]);
    }
    let columns = [
        Column::new("Lane", Form::Name),
        Column::new("where", Form::Place),
        Column::new("guest bytes", Form::Number),
        Column::new("busy", Form::Number),
        Column::new("rate", Form::Number),
        Column::new("picture", Form::Picture),
    ];
    let caption =
        html! { "What each lane carried, and how fast in the time in which it was copying." };
    table(&caption, &columns, Some(&axis.drawn()), &rows)
}

/// How long a lane was at it, as far as its spans tell.
fn busy(timeline: &Timeline, side: Side, lane: u16) -> u64 {
    let spans = timeline.spans.iter().filter(|span| {
        span.side == side
            && span.track == Track::new(TrackKind::Lane, lane)
            && matches!(span.name, SpanName::LaneRound | SpanName::LaneReceive)
    });
    spans.fold(0, |sum: u64, span| {
        sum.saturating_add(span.end_ns.saturating_sub(span.begin_ns))
    })
}
