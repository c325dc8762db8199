//! Results as one page of HTML: nothing outside of it is needed, and nothing in it runs. The frame,
//! the tables and the axes are those of a move's page.
//!
//! | room | what is in it |
//! |---|---|
//! | here | which sections there are, in which order |
//! | [`chart`] | a figure against lanes or dirty rate |
//! | [`forest`] | verdicts as intervals around 1 |
//! | [`strips`] | each run as a dot on a line |

mod chart;
mod forest;
mod strips;

use maud::{Markup, html};

use super::results::{Figure, ReferenceResult, ReferenceRun, Results};
use super::statistics::{PASSES_MIN, Spread};
use super::table::{headline, left_out};
use super::verdict::{Finding, foremost};
use crate::failure::Failure;
use crate::page::document::{Embedded, Section, document};
use crate::page::figure::said;
use crate::page::table::{Column, Form, table};
use crate::render::amounts::{counted, nanoseconds, rate};

/// The page.
///
/// # Errors
///
/// When the results can't be written as JSON.
pub(crate) fn page(results: &Results) -> Result<String, Failure> {
    let json = serde_json::to_string(results)
        .map_err(|error| Failure::system("the results as JSON", error))?;
    let mut sections = Vec::new();
    if !results.verdicts.is_empty() {
        sections.push(verdicts(results));
    }
    sections.push(figure_section(
        "goodput",
        "Goodput",
        Figure::Goodput,
        results,
    ));
    sections.push(figure_section(
        "blackout",
        "Blackout",
        Figure::Blackout,
        results,
    ));
    sections.push(figure_section(
        "cpu",
        "Processor time",
        Figure::Cpu,
        results,
    ));
    if !results.references.is_empty() {
        sections.push(references(results));
    }
    sections.push(conditions(results));
    Ok(document(
        "dunlin bench",
        &header(results),
        &sections,
        &Embedded {
            id: "results",
            json: &json,
        },
    ))
}

/// The median of another program's runs. The results have no place for it: `*` in its stands for each
/// of the runs.
fn median_of_runs(
    number: usize,
    reference: &ReferenceResult,
    field: &str,
    figure: Figure,
    value: fn(&ReferenceRun) -> Option<u64>,
) -> Markup {
    let values = reference.runs.iter().filter_map(value);
    match Spread::of(values.map(|value| value as f64)) {
        Some(spread) => said(
            &format!("/references/{number}/runs/*/{field}"),
            spread.median,
            &words(figure, spread.median),
        ),
        None => html! { "–" },
    }
}

/// A value of a figure, in words.
fn words(figure: Figure, value: f64) -> String {
    let value = value as u64;
    match figure {
        Figure::Goodput => rate(value),
        _ => nanoseconds(value),
    }
}

/// What a figure's spread is called in a cell's summary.
fn place_of(figure: Figure) -> &'static str {
    match figure {
        Figure::Goodput => "goodput_bytes_per_s",
        Figure::Total => "total_ns",
        Figure::Blackout => "blackout_ns",
        Figure::GuestVisible => "guest_visible_ns",
        Figure::Cpu => "cpu_ns",
    }
}

/// The median of a cell, which stands at that place.
fn median(number: usize, figure: Figure, value: f64) -> Markup {
    let name = place_of(figure);
    let from = format!("/cells/{number}/summary/{name}/median");
    said(&from, value, &words(figure, value))
}

fn header(results: &Results) -> Markup {
    let cells = || results.cells.iter().enumerate();
    let medians = |figure: Figure| {
        cells().filter_map(move |(number, cell)| {
            let spread = strips::spread(cell, figure)?;
            Some((spread.median, number, cell.cell.words()))
        })
    };
    let most = medians(Figure::Goodput).max_by(|left, right| left.0.total_cmp(&right.0));
    let least = medians(Figure::Blackout).min_by(|left, right| left.0.total_cmp(&right.0));
    let measured = cells().filter(|(_, cell)| !cell.runs.is_empty()).count();
    html! {
        p.product { "dunlin" span.what { "measured moves" } }
        h1 {
            (counted(measured as u64, "cell"))
            @if results.is_interrupted { span.outcome.careful { "interrupted" } }
        }
        p.why { (headline(results)) }
        dl.figures {
            @if let Some((value, number, cell)) = most {
                div { dt { "Highest goodput" } dd { (median(number, Figure::Goodput, value)) } dd.which { (cell) } }
            }
            @if let Some((value, number, cell)) = least {
                div.pause { dt { "Shortest blackout" } dd { (median(number, Figure::Blackout, value)) } dd.which { (cell) } }
            }
        }
    }
}

fn verdicts(results: &Results) -> Section {
    let all = &results.verdicts;
    let is_too_few = all
        .iter()
        .all(|verdict| verdict.finding == Finding::TooFewPasses);
    Section {
        id: "verdicts",
        heading: "What it says",
        body: html! {
            @if is_too_few {
                p.why {
                    "Too few passes to say which is better: " (PASSES_MIN) " are needed. The ratios \
                     are there all the same."
                }
            } @else {
                ul.verdicts {
                    @for verdict in foremost(all) { li { (verdict.words) } }
                }
            }
            p.why {
                "A ratio is the median of the passes' ratios; the interval holds the middle 95 % of \
                 the medians of 10,000 random draws of passes (seed " (results.seed) ")."
            }
            details {
                summary { "Each of " (all.len()) " comparisons" }
                (forest::table_of(all))
            }
        },
    }
}

fn figure_section(
    id: &'static str,
    heading: &'static str,
    figure: Figure,
    results: &Results,
) -> Section {
    Section {
        id,
        heading,
        body: html! {
            (chart::against_lanes(results, figure))
            (chart::against_dirty_rate(results, figure))
            (strips::table_of(results, figure))
        },
    }
}

fn references(results: &Results) -> Section {
    let columns = [
        Column::new("Program", Form::Name),
        Column::new("what it does", Form::Text),
        Column::new("goodput", Form::Number),
        Column::new("one operation", Form::Number),
        Column::new("blackout", Form::Number),
    ];
    let rows: Vec<Vec<Markup>> = results
        .references
        .iter()
        .enumerate()
        .map(|(number, reference)| {
            let cell = |field: &str, figure: Figure, value: fn(&ReferenceRun) -> Option<u64>| {
                median_of_runs(number, reference, field, figure, value)
            };
            let what = match &reference.left_out {
                None => match &reference.version {
                    None => reference.what.clone(),
                    Some(version) => format!("{} (version {version})", reference.what),
                },
                Some(reason) => format!("not run: {reason}"),
            };
            vec![
                html! { (reference.name) },
                html! { (what) },
                cell("goodput_bytes_per_s", Figure::Goodput, |run| {
                    run.goodput_bytes_per_s
                }),
                cell("latency_ns", Figure::Total, |run| run.latency_ns),
                cell("blackout_ns", Figure::Blackout, |run| run.blackout_ns),
            ]
        })
        .collect();
    let caption = html! { "Other programs in the same passes; medians. QEMU's blackout is what it tells of itself." };
    Section {
        id: "references",
        heading: "Other programs",
        body: table(&caption, &columns, None, &rows),
    }
}

fn conditions(results: &Results) -> Section {
    let host = |host: &dunlin_engine::report::Host| {
        format!(
            "{}, {}, Linux {}",
            host.cpu,
            counted(host.cpus.into(), "CPU"),
            host.kernel
        )
    };
    Section {
        id: "conditions",
        heading: "How it was measured",
        body: html! {
            dl.facts {
                div { dt { "Program" } dd { "dunlin " (results.dunlin) } }
                div { dt { "Passes" } dd { (results.passes) " of " (results.passes_asked) ", after " (results.warm_up_passes) " of warm-up" } }
                div { dt { "Took" } dd { (nanoseconds(results.duration_ns)) } }
                div { dt { "Budget for the pause" } dd { (nanoseconds(results.max_blackout_ns)) } }
                div { dt { "Source" } dd { (host(&results.host)) } }
                @if let Some(other) = &results.destination_host {
                    div { dt { "Destination" } dd { (host(other)) } }
                } @else {
                    div { dt { "Destination" } dd { "another process of the same host: both share its processors and its memory" } }
                }
            }
            @for line in left_out(results) { p.why { (line) } }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::example;

    #[test]
    fn the_page_has_every_cell_and_escapes_what_it_tells() {
        let mut results = example::results(7);
        results.references[1].left_out = Some("<script>alert(1)</script>".to_owned());
        let page = page(&results).unwrap();
        assert!(page.starts_with("<!DOCTYPE html>"), "{page}");
        assert_eq!(page.matches("<script").count(), 1, "only the data");
        assert!(page.contains("&lt;script&gt;alert"));
        for cell in &results.cells {
            assert!(page.contains(&cell.cell.words()), "{}", cell.cell.words());
        }
        for outside in ["http:", "https:", "url(", "src="] {
            assert!(!page.contains(outside), "{outside}");
        }
        // A dot for each run: in a chart and in a strip, for each of three figures, of two cells.
        assert_eq!(page.matches("<circle").count(), 2 * 3 * 2 * 7);
    }

    #[test]
    fn figures_on_the_page_are_those_of_the_results() {
        let results = example::results(7);
        let page = page(&results).unwrap();
        let goodput = results.cells[1].summary.goodput_bytes_per_s.unwrap().median;
        assert!(
            page.contains(&words(Figure::Goodput, goodput).replace(' ', "\u{a0}")),
            "{page}"
        );
        for verdict in &results.verdicts {
            assert!(page.contains(&verdict.words), "{}", verdict.words);
            assert!(page.contains(&verdict.subject), "{}", verdict.subject);
        }
    }

    #[test]
    fn nothing_measured_is_a_page_too() {
        let mut results = example::results(1);
        for cell in &mut results.cells {
            cell.runs.clear();
            cell.left_out = Some("no RDMA: none".to_owned());
        }
        results.references.clear();
        results.verdicts.clear();
        assert!(
            page(&results)
                .unwrap()
                .contains("kvm, and another cell: no RDMA: none")
        );
    }
}
