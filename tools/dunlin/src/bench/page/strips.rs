//! Each run as a dot on a line, one line a cell, all on one axis: the distribution, not only its
//! middle.

use maud::{Markup, html};

use super::words;
use crate::bench::results::{CellResult, Figure, Results};
use crate::bench::statistics::Spread;
use crate::page::axis::{Axis, AxisUnit, percent};
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

/// The table of a figure.
pub(super) fn table_of(results: &Results, figure: Figure) -> Markup {
    let cells: Vec<&CellResult> = results
        .cells
        .iter()
        .filter(|cell| spread(cell, figure).is_some())
        .collect();
    if cells.is_empty() {
        return html! { p.why { "No run has it." } };
    }
    let most = cells
        .iter()
        .flat_map(|cell| values(cell, figure))
        .fold(0.0, f64::max);
    let axis = Axis::linear(most as u64, unit(figure));
    let columns = [
        Column::new("Cell", Form::Name),
        Column::new("median", Form::Number),
        Column::new("least", Form::Number),
        Column::new("most", Form::Number),
        Column::new("each run", Form::Picture),
    ];
    let rows: Vec<Vec<Markup>> = cells
        .iter()
        .filter_map(|cell| row(cell, figure, axis))
        .collect();
    let caption = html! { "Each run is a dot; the bar is the middle half, the line the median." };
    table(&caption, &columns, Some(&axis.drawn()), &rows)
}

fn row(cell: &CellResult, figure: Figure, axis: Axis) -> Option<Vec<Markup>> {
    let spread = spread(cell, figure)?;
    // A dot at the axis's end stays inside.
    let place = |value: f64| percent(axis.place(value as u64).clamp(0.8, 99.2));
    let (begin, width) = axis.stretch(spread.lower_quartile as u64, spread.upper_quartile as u64);
    let shapes = html! {
        rect.half x=(percent(begin)) width=(percent(width)) y="4" height="14" {}
        @for value in values(cell, figure) { circle.run cx=(place(value)) cy="11" r="3.5" {} }
        line.mark x1=(place(spread.median)) x2=(place(spread.median)) y1="2" y2="20" {}
    };
    // A value and its unit stay on one line.
    let number = |value: f64| html! { (words(figure, value).replace(' ', "\u{a0}")) };
    Some(vec![
        html! { (cell.cell.words()) },
        number(spread.median),
        number(spread.least),
        number(spread.most),
        axis.row(&shapes),
    ])
}
