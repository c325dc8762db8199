//! Each run as a dot on a line, one line a cell, all on one axis: the distribution, not only its
//! middle.

use maud::{Markup, html};

use super::{place_of, words};
use crate::bench::results::{CellResult, Figure, ReferenceResult, Results};
use crate::bench::statistics::Spread;
use crate::page::axis::{Axis, AxisUnit, percent};
use crate::page::figure::said;
use crate::page::table::{Column, Form, table};

/// A figure's spread over a cell's runs.
pub(super) fn spread(cell: &CellResult, figure: Figure) -> Option<Spread> {
    Spread::of(values(cell, figure))
}

/// A figure's value in each run that moved the guest.
pub(super) fn values(cell: &CellResult, figure: Figure) -> Vec<f64> {
    cell.runs.iter().filter_map(|run| figure.of(run)).collect()
}

/// What a figure's values are told in.
pub(super) fn unit(figure: Figure) -> AxisUnit {
    match figure {
        Figure::Goodput => AxisUnit::BytesPerSecond,
        _ => AxisUnit::Nanoseconds,
    }
}

/// A reference beyond so many times the cells' most has no row among them: on its axis they would
/// all look the same. It stands among the other programs.
const BEYOND: f64 = 3.0;

/// What a row is about, and its values.
struct Row {
    name: String,
    place: Place,
    values: Vec<f64>,
}

/// Where a row's figures stand in the results.
enum Place {
    /// Its spread, as a JSON pointer.
    Spread(String),
    /// Only the values, as a JSON pointer in which `*` stands for each of the runs.
    Runs(String),
}

/// The table of a figure: every cell, and other programs that have it.
pub(super) fn table_of(results: &Results, figure: Figure) -> Markup {
    let cells = results.cells.iter().enumerate();
    let mut rows: Vec<Row> = cells
        .map(|(number, cell)| Row {
            name: cell.cell.words(),
            place: Place::Spread(format!("/cells/{number}/summary/{}", place_of(figure))),
            values: values(cell, figure),
        })
        .filter(|row| !row.values.is_empty())
        .collect();
    if rows.is_empty() {
        return html! { p.why { "No run has it." } };
    }
    let most = rows
        .iter()
        .flat_map(|row| &row.values)
        .fold(0.0, |most: f64, value| most.max(*value));
    let references = results.references.iter().enumerate();
    let references = references.map(|(number, reference)| Row {
        name: reference.name.clone(),
        place: Place::Runs(format!("/references/{number}/runs/*/{}", place_of(figure))),
        values: reference_values(reference, figure),
    });
    let fits = |row: &Row| {
        let values = &row.values;
        !values.is_empty() && values.iter().all(|value| *value <= most * BEYOND)
    };
    rows.extend(references.filter(fits));
    let most = rows
        .iter()
        .flat_map(|row| &row.values)
        .fold(0.0, |most: f64, value| most.max(*value));
    let axis = Axis::linear(most as u64, unit(figure));
    let columns = [
        Column::new("Cell, or other program", Form::Name),
        Column::new("median", Form::Number),
        Column::new("least", Form::Number),
        Column::new("most", Form::Number),
        Column::new("each run", Form::Picture),
    ];
    let rows: Vec<Vec<Markup>> = rows
        .iter()
        .filter_map(|row| drawn(row, figure, axis))
        .collect();
    let caption = html! { "Each run is a dot; the bar is the middle half, the line the median." };
    table(&caption, &columns, Some(&axis.drawn()), &rows)
}

/// A figure's value in each run of another program.
fn reference_values(reference: &ReferenceResult, figure: Figure) -> Vec<f64> {
    let values = reference.runs.iter().filter_map(|run| match figure {
        Figure::Goodput => run.goodput_bytes_per_s,
        Figure::Total => run.total_ns,
        Figure::Blackout => run.blackout_ns,
        Figure::GuestVisible | Figure::Cpu => None,
    });
    values.map(|value| value as f64).collect()
}

fn drawn(row: &Row, figure: Figure, axis: Axis) -> Option<Vec<Markup>> {
    let spread = Spread::of(row.values.iter().copied())?;
    // A dot at the axis's end stays inside.
    let place = |value: f64| percent(axis.place(value as u64).clamp(0.8, 99.2));
    let (begin, width) = axis.stretch(spread.lower_quartile as u64, spread.upper_quartile as u64);
    let shapes = html! {
        rect.half x=(percent(begin)) width=(percent(width)) y="4" height="14" {}
        @for value in &row.values { circle.run cx=(place(*value)) cy="11" r="3.5" {} }
        line.mark x1=(place(spread.median)) x2=(place(spread.median)) y1="2" y2="20" {}
    };
    let number = |which: &str, value: f64| match &row.place {
        Place::Spread(place) => said(&format!("{place}/{which}"), value, &words(figure, value)),
        Place::Runs(place) if which == "median" => said(place, value, &words(figure, value)),
        Place::Runs(_) => html! { (words(figure, value).replace(' ', "\u{a0}")) },
    };
    Some(vec![
        html! { (row.name) },
        number("median", spread.median),
        number("least", spread.least),
        number("most", spread.most),
        axis.row(&shapes),
    ])
}
