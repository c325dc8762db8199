//! A figure against lanes or against dirty rate: a dot for each run, a line through the medians of
//! cells that differ in nothing else. Places are percentages, so that a chart stretches with the page
//! while its text keeps its size. What it shows stands in the table below it too, so it is hidden
//! from screen readers.

use maud::{Markup, html};

use super::strips::{unit, values};
use crate::bench::matrix::Cell;
use crate::bench::results::{CellResult, Figure, Results};
use crate::bench::statistics::Spread;
use crate::page::axis::{Axis, percent};
use crate::render::amounts::{bytes, counted};

/// How many colours there are that can be told apart; there are fewer transports.
const COLOURS: usize = 6;

/// Where values begin, in percent of the width: labels stand to the left.
const LEFT: f64 = 14.0;

/// Where the lowest value lies, in percent of the height: categories stand below.
const BOTTOM: f64 = 88.0;

/// Where the highest value lies.
const TOP: f64 = 6.0;

/// What lies on the horizontal axis, in order.
struct Category {
    /// By this they are ordered.
    rank: (u64, String),
    label: String,
}

/// Cells of one transport: a line.
struct Series {
    /// The transport's place among all of the results: its colour, in every chart.
    colour: usize,
    name: String,
    /// The values of each category.
    values: Vec<Vec<f64>>,
}

/// Cells that have everything else in common too: a chart.
struct Facet {
    name: String,
    series: Vec<Series>,
}

/// A figure against the number of lanes.
pub(super) fn against_lanes(results: &Results, figure: Figure) -> Markup {
    let category = |cell: &Cell| Category {
        // The engine's choice comes last.
        rank: (cell.lanes.map_or(u64::MAX, u64::from), String::new()),
        label: lanes(cell),
    };
    let facet = |cell: &Cell| {
        let memory = bytes(cell.memory_bytes);
        format!("{} guest, {memory}, {}", cell.guest, cell.dirtying())
    };
    charts("against lanes", results, figure, category, facet)
}

/// A figure against what the guest rewrites.
pub(super) fn against_dirty_rate(results: &Results, figure: Figure) -> Markup {
    let patterns = || results.cells.iter().map(|result| &result.cell.pattern);
    let patterns: std::collections::BTreeSet<&String> =
        patterns().filter(|pattern| *pattern != "none").collect();
    let category = |cell: &Cell| {
        let rate = match cell.dirty_bytes_per_s {
            None => "max".to_owned(),
            Some(0) => "idle".to_owned(),
            Some(rate) => format!("{}/s", bytes(rate)),
        };
        let is_told = patterns.len() > 1 && cell.dirty_bytes_per_s != Some(0);
        Category {
            rank: (
                cell.dirty_bytes_per_s.unwrap_or(u64::MAX),
                cell.pattern.clone(),
            ),
            label: match is_told {
                true => format!("{rate} {}", cell.pattern),
                false => rate,
            },
        }
    };
    let facet = |cell: &Cell| {
        let memory = bytes(cell.memory_bytes);
        format!("{} guest, {memory}, {}", cell.guest, lanes(cell))
    };
    charts("against dirty rate", results, figure, category, facet)
}

fn lanes(cell: &Cell) -> String {
    cell.lanes.map_or_else(
        || "auto lanes".to_owned(),
        |lanes| counted(lanes.into(), "lane"),
    )
}

fn charts(
    title: &str,
    results: &Results,
    figure: Figure,
    category: impl Fn(&Cell) -> Category,
    facet: impl Fn(&Cell) -> String,
) -> Markup {
    let cells: Vec<&CellResult> = results
        .cells
        .iter()
        .filter(|cell| !values(cell, figure).is_empty())
        .collect();
    let mut categories: Vec<Category> = cells.iter().map(|cell| category(&cell.cell)).collect();
    categories.sort_by(|left, right| left.rank.cmp(&right.rank));
    categories.dedup_by(|left, right| left.rank == right.rank);
    if categories.len() < 2 {
        return html! {};
    }
    let mut transports: Vec<&str> = Vec::new();
    for result in &results.cells {
        if !transports.contains(&result.cell.transport.as_str()) {
            transports.push(&result.cell.transport);
        }
    }
    let mut facets: Vec<Facet> = Vec::new();
    for cell in &cells {
        let name = facet(&cell.cell);
        let place = facets.iter().position(|facet| facet.name == name);
        let place = place.unwrap_or_else(|| {
            let series = transports.iter().enumerate();
            facets.push(Facet {
                name,
                series: series
                    .map(|(colour, name)| Series {
                        colour: colour % COLOURS,
                        name: (*name).to_owned(),
                        values: categories.iter().map(|_| Vec::new()).collect(),
                    })
                    .collect(),
            });
            facets.len() - 1
        });
        let rank = category(&cell.cell).rank;
        let column = categories.iter().position(|category| category.rank == rank);
        let series = facets.get_mut(place).and_then(|facet| {
            let mut all = facet.series.iter_mut();
            all.find(|series| series.name == cell.cell.transport)
        });
        let slot = series.zip(column);
        if let Some(slot) = slot.and_then(|(series, column)| series.values.get_mut(column)) {
            slot.extend(values(cell, figure));
        }
    }
    for facet in &mut facets {
        let is_drawn = |series: &Series| series.values.iter().any(|values| !values.is_empty());
        facet.series.retain(is_drawn);
    }
    let most = cells
        .iter()
        .flat_map(|cell| values(cell, figure))
        .fold(0.0, f64::max);
    // One axis for all, so that charts can be compared.
    let axis = Axis::linear(most as u64, unit(figure));
    html! {
        h3 { (capital(figure.name())) " " (title) }
        div.charts {
            @for facet in &facets {
                figure.chart {
                    figcaption {
                        (facet.name)
                        ul.keys {
                            @for series in &facet.series {
                                li.key.{ "s" (series.colour) } { (series.name) }
                            }
                        }
                    }
                    (drawn(&categories, &facet.series, axis))
                }
            }
        }
    }
}

/// A title's first letter.
fn capital(words: &str) -> String {
    let mut letters = words.chars();
    let first = letters.next().map(|letter| letter.to_uppercase());
    first.into_iter().flatten().chain(letters).collect()
}

fn drawn(categories: &[Category], series: &[Series], axis: Axis) -> Markup {
    let height = |value: f64| BOTTOM - axis.place(value as u64) / 100.0 * (BOTTOM - TOP);
    let width = (100.0 - LEFT) / categories.len() as f64;
    let middle = |column: usize| LEFT + width * (column as f64 + 0.5);
    // Lines stand side by side in a category, so that dots do not cover each other.
    let step = (width * 0.5 / series.len() as f64).min(4.0);
    let across = |column: usize, place: usize| {
        middle(column) + step * (place as f64 - (series.len() - 1) as f64 / 2.0)
    };
    let spots = |place: usize, series: &Series| -> Vec<(f64, f64)> {
        let columns = series.values.iter().enumerate();
        columns
            .filter_map(|(column, values)| {
                let spread = Spread::of(values.iter().copied())?;
                Some((across(column, place), height(spread.median)))
            })
            .collect()
    };
    html! {
        svg.plot aria-hidden="true" focusable="false" {
            @for tick in axis.ticks() {
                @let y = percent(BOTTOM - tick.place / 100.0 * (BOTTOM - TOP));
                line.grid x1="0" x2="100%" y1=(y) y2=(y) {}
                text x="0" y=(y) dy="-3" { (tick.label) }
            }
            @for (column, category) in categories.iter().enumerate() {
                text x=(percent(middle(column))) y="97%" text-anchor="middle" { (category.label) }
            }
            @for (place, series) in series.iter().enumerate() {
                @let spots = spots(place, series);
                @for pair in spots.windows(2) {
                    @if let [from, to] = pair {
                        line.{ "s" (series.colour) } x1=(percent(from.0)) y1=(percent(from.1)) x2=(percent(to.0)) y2=(percent(to.1)) {}
                    }
                }
                @for (column, values) in series.values.iter().enumerate() {
                    @for value in values {
                        circle.{ "s" (series.colour) } cx=(percent(across(column, place))) cy=(percent(height(*value))) r="3.5" {}
                    }
                }
                @for (x, y) in spots {
                    line.median.{ "s" (series.colour) } x1=(percent(x - step.min(1.5))) x2=(percent(x + step.min(1.5))) y1=(percent(y)) y2=(percent(y)) {}
                }
            }
        }
    }
}
