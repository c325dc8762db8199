//! How long operations took: percentiles on a logarithmic axis.

use dunlin_engine::telemetry::measurements::{OperationMeasurement, Summary};
use dunlin_engine::telemetry::{End, MoveTelemetry};
use maud::{Markup, html};

use super::axis::{Axis, AxisUnit, percent};
use super::document::Section;
use super::figure;
use super::table::{Column, Form, table};

/// The section; none where nothing was measured.
pub(super) fn section(told: &MoveTelemetry) -> Option<Section> {
    let summaries = told.ends().flat_map(|(_, measured)| {
        measured
            .operations
            .iter()
            .map(|operation| operation.summary)
    });
    let summaries: Vec<Summary> = summaries.collect();
    let least = summaries.iter().map(|summary| summary.min_ns).min()?;
    let most = summaries.iter().map(|summary| summary.max_ns).max()?;
    let axis = Axis::logarithmic(least, most, AxisUnit::Nanoseconds);
    let body = html! {
        @for (end, measured) in told.ends() {
            @if !measured.operations.is_empty() { (of_end(end, &measured.operations, axis)) }
        }
        details {
            summary { "What each operation is" }
            dl.words {
                @for name in dunlin_engine::telemetry::Operation::ALL {
                    dt { (name.name()) }
                    dd { (name.declaration().meaning) }
                }
            }
        }
    };
    Some(Section {
        id: "latencies",
        heading: "How long operations took",
        body,
    })
}

fn of_end(end: End, operations: &[OperationMeasurement], axis: Axis) -> Markup {
    let columns = [
        Column::new("Operation", Form::Name),
        Column::new("times", Form::Number),
        Column::new("p50", Form::Number),
        Column::new("p90", Form::Number),
        Column::new("p99", Form::Number),
        Column::new("p99.9", Form::Number),
        Column::new("longest", Form::Number),
        Column::new("on a logarithmic axis", Form::Picture),
    ];
    let rows: Vec<_> = operations
        .iter()
        .enumerate()
        .map(|(place, operation)| row(end, place, operation, axis))
        .collect();
    let caption = html! {
        "On the " span.side.(end.name()) { (end.name()) }
        ", all its threads together, on a logarithmic axis: from the shortest to the longest, the \
         bar from p50 to p99, the mark at p90."
    };
    table(&caption, &columns, Some(&axis.drawn()), &rows)
}

fn row(end: End, place: usize, operation: &OperationMeasurement, axis: Axis) -> Vec<Markup> {
    let at = |field: &str| format!("/telemetry/{}/operations/{place}/{field}", end.name());
    let summary = operation.summary;
    let (from, to) = (axis.place(summary.min_ns), axis.place(summary.max_ns));
    let (x, width) = axis.stretch(summary.p50_ns, summary.p99_ns);
    let mark = percent(axis.place(summary.p90_ns).clamp(0.4, 99.6));
    let shapes = html! {
        line.range x1=(percent(from.min(99.6))) x2=(percent(to.max(from + 0.4))) y1="11" y2="11" {}
        rect.(end.name()) x=(percent(x)) width=(percent(width)) y="6" height="10" {}
        line.mark x1=(mark) x2=(mark) y1="3" y2="19" {}
    };
    vec![
        html! { (operation.name.name()) },
        figure::count(&at("count"), summary.count),
        figure::duration(&at("p50_ns"), summary.p50_ns),
        figure::duration(&at("p90_ns"), summary.p90_ns),
        figure::duration(&at("p99_ns"), summary.p99_ns),
        figure::duration(&at("p999_ns"), summary.p999_ns),
        figure::duration(&at("max_ns"), summary.max_ns),
        axis.row(&shapes),
    ]
}
