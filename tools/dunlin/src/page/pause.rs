//! The pause: its parts one after the other on the source's clock, with what was predicted; and the
//! three ways in which it is known as a whole.

use dunlin_engine::report::{BlackoutReport, Side};
use maud::{Markup, html};

use super::axis::{Axis, AxisUnit, percent};
use super::document::Section;
use super::figure;
use super::table::{Column, Form, table};
use crate::render::text::printable;

/// The most vCPUs that are listed one by one.
const VCPUS_SHOWN: usize = 256;

/// The section.
pub(super) fn section(blackout: &BlackoutReport) -> Section {
    Section {
        id: "pause",
        heading: "The pause",
        body: html! {
            (whole(blackout))
            (waterfall(blackout))
            (vcpus(blackout))
        },
    }
}

/// The whole of it, as both ends, the prediction and the guest have it.
fn whole(blackout: &BlackoutReport) -> Markup {
    let mut known = vec![(
        "as the engine measured it",
        "/blackout/total_ns",
        blackout.total_ns,
        "total",
    )];
    if let Some(seen) = blackout.guest_visible_ns {
        let from = "/blackout/guest_visible_ns";
        known.push(("as the guest saw it", from, seen, "guest"));
    }
    let from = "/blackout/predicted_ns";
    known.push((
        "as it was predicted",
        from,
        blackout.predicted_ns,
        "predicted",
    ));
    let longest = known.iter().map(|(_, _, took, _)| *took).max();
    let axis = Axis::linear(longest.unwrap_or(0), AxisUnit::Nanoseconds);
    let rows: Vec<_> = known
        .iter()
        .map(|(name, from, took, class)| {
            let bar = bar(axis, 0, *took, class);
            vec![
                html! { (name) },
                figure::duration(from, *took),
                axis.row(&bar),
            ]
        })
        .collect();
    let columns = [
        Column::new("The whole pause", Form::Name),
        Column::new("took", Form::Number),
        Column::new("picture", Form::Picture),
    ];
    let caption = html! {
        "The whole pause, from the first vCPU parked to the last vCPU running. Budget "
        (figure::duration("/blackout/budget_ns", blackout.budget_ns))
        ", cap " (figure::duration("/blackout/cap_ns", blackout.cap_ns)) "."
    };
    table(&caption, &columns, Some(&axis.drawn()), &rows)
}

/// The receipt: each part where it lies in time.
fn waterfall(blackout: &BlackoutReport) -> Markup {
    // Room for what was predicted behind the end, but not so much that the pause itself gets small.
    let mut end = blackout.total_ns;
    let mut begin = 0_u64;
    for part in &blackout.parts {
        let predicted = predicted(blackout, &part.name).map_or(0, |(_, predicted_ns)| predicted_ns);
        end = end.max(begin.saturating_add(predicted));
        begin = begin.saturating_add(part.duration_ns);
    }
    let most = blackout.total_ns.saturating_add(blackout.total_ns / 3);
    let axis = Axis::linear(end.min(most), AxisUnit::Nanoseconds);

    let mut rows = Vec::new();
    let mut begin = 0_u64;
    for (place, part) in blackout.parts.iter().enumerate() {
        let took = part.duration_ns;
        let end = begin.saturating_add(took);
        // A name that comes twice was predicted once.
        let is_first = blackout
            .parts
            .iter()
            .position(|first| first.name == part.name)
            == Some(place);
        let predicted = predicted(blackout, &part.name).filter(|_| is_first);
        let (side, class) = side(part.side);
        let shapes = html! {
            @if let Some((_, predicted_ns)) = predicted {
                @let (x, width) = axis.stretch(begin, begin.saturating_add(predicted_ns));
                rect.expected x=(percent(x)) width=(percent(width)) y="3" height="16" {}
            }
            (bar(axis, begin, end, class))
        };
        // What took no time adds nothing to see.
        if took > 0 || predicted.is_some() {
            rows.push(vec![
                html! { (printable(&part.name)) },
                html! { span.side.(class) { (side) } },
                figure::duration(&format!("/blackout/parts/{place}/duration_ns"), took),
                match predicted {
                    Some((term, predicted_ns)) => expected(term, predicted_ns),
                    None => html! { "–" },
                },
                axis.row(&shapes),
            ]);
        }
        begin = end;
    }
    for (term, predicted) in blackout.predicted_parts.iter().enumerate() {
        let is_part = blackout
            .parts
            .iter()
            .any(|part| part.name == predicted.name);
        if !is_part && predicted.duration_ns > 0 {
            rows.push(vec![
                html! { (printable(&predicted.name)) },
                html! { span.side { "predicted only" } },
                html! { "–" },
                expected(term, predicted.duration_ns),
                axis.row(&html! {}),
            ]);
        }
    }
    let columns = [
        Column::new("Part", Form::Name),
        Column::new("where", Form::Place),
        Column::new("took", Form::Number),
        Column::new("predicted", Form::Number),
        Column::new("when in the pause", Form::Picture),
    ];
    let caption = html! {
        "Its parts, in order, on the source's clock: without gap or overlap, they add up to the \
         whole. Outlines are what was predicted."
        @match blackout.clock_error_ns {
            Some(0) => {}
            Some(error_ns) => {
                " The destination's parts may be misplaced by up to "
                (figure::duration("/blackout/clock_error_ns", error_ns)) "."
            }
            None => " How the destination's clock stands is not known: its parts are in the link's."
        }
    };
    table(&caption, &columns, Some(&axis.drawn()), &rows)
}

/// Each vCPU's own pause.
fn vcpus(blackout: &BlackoutReport) -> Markup {
    let own = &blackout.vcpus_ns;
    if own.len() < 2 {
        return html! {};
    }
    let rows: Vec<_> = own.iter().take(VCPUS_SHOWN).enumerate().collect();
    let left_out = own.len() - rows.len();
    let axis = Axis::linear(
        own.iter().copied().max().unwrap_or(0),
        AxisUnit::Nanoseconds,
    );
    let rows: Vec<_> = rows
        .into_iter()
        .map(|(vcpu, took)| {
            vec![
                html! { "vCPU " (vcpu) },
                figure::duration(&format!("/blackout/vcpus_ns/{vcpu}"), *took),
                axis.row(&bar(axis, 0, *took, "total")),
            ]
        })
        .collect();
    let columns = [
        Column::new("vCPU", Form::Name),
        Column::new("paused", Form::Number),
        Column::new("picture", Form::Picture),
    ];
    let caption = html! {
        "Each vCPU's own pause, from parked to running."
        @if left_out > 0 { " " (left_out) " more are in the data." }
    };
    table(&caption, &columns, Some(&axis.drawn()), &rows)
}

/// What was predicted for a part, and which term of the prediction it is.
fn predicted(blackout: &BlackoutReport, name: &str) -> Option<(usize, u64)> {
    let mut terms = blackout.predicted_parts.iter().enumerate();
    terms
        .find(|(_, term)| term.name == name && term.duration_ns > 0)
        .map(|(place, term)| (place, term.duration_ns))
}

fn expected(term: usize, predicted_ns: u64) -> Markup {
    figure::duration(
        &format!("/blackout/predicted_parts/{term}/duration_ns"),
        predicted_ns,
    )
}

fn bar(axis: Axis, from: u64, to: u64, class: &str) -> Markup {
    if to == from {
        return html! {};
    }
    let (x, width) = axis.stretch(from, to);
    html! { rect.(class) x=(percent(x)) width=(percent(width)) y="6" height="10" {} }
}

/// A side's name, and the class of what is drawn of it.
pub(super) fn side(side: Side) -> (&'static str, &'static str) {
    match side {
        Side::Source => ("source", "source"),
        Side::Destination => ("destination", "destination"),
        Side::Link => ("link", "link"),
    }
}
