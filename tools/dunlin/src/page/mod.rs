//! A move as one page of HTML: nothing outside of it is needed, and nothing in it runs.
//!
//! | room | what is in it |
//! |---|---|
//! | here | which sections there are, in which order |
//! | [`document`] | the document around them: head, style, the report as JSON |
//! | [`figure`] | a figure, with the place in the report that it comes from |
//! | [`table`] | tables whose rows hold a piece of the picture |
//! | [`axis`] | where a value lies on an axis, and the axis's ticks |
//! | [`summary`] | how the move ended, and the figures that people ask for first |
//! | [`pause`] | the pause, part by part |
//! | [`rounds`] | round by round |
//! | [`tracks`] | who did what when, on both ends |
//! | [`latencies`] | how long operations took |
//! | [`facts`] | the guest, its memory's comparison, the hosts, what was counted |
//!
//! Pictures are drawn here, as SVG in the cells of tables: a screen reader reads the table, and no
//! script is needed. Whatever stands in a report is text: `maud` escapes it.

pub(crate) mod axis;
pub(crate) mod document;
mod facts;
pub(crate) mod figure;
mod latencies;
mod pause;
mod rounds;
mod summary;
pub(crate) mod table;
mod tracks;

use dunlin_engine::report::Report;

use crate::failure::Failure;

/// The page of a move.
///
/// # Errors
///
/// When the report can't be written as JSON.
pub(crate) fn page(report: &Report) -> Result<String, Failure> {
    let json = serde_json::to_string(report)
        .map_err(|error| Failure::system("the report as JSON", error))?;
    let mut sections = Vec::new();
    if let Some(blackout) = &report.blackout {
        sections.push(pause::section(blackout));
    }
    if !report.rounds.is_empty() {
        sections.push(rounds::section(&report.rounds));
    }
    if let Some(told) = &report.telemetry {
        sections.extend(tracks::sections(told));
        sections.extend(latencies::section(told));
    }
    sections.extend(facts::sections(report));
    Ok(document::document(
        &summary::title(report),
        &summary::header(report),
        &sections,
        &document::Embedded {
            id: "report",
            json: &json,
        },
    ))
}

#[cfg(test)]
mod tests;
