//! docs/metrics.md: every declaration on one page, in Markdown.

use std::fmt::Write;

use super::completeness::{GAPS, MISPLACED};
use super::declaration::{Declaration, Kind};
use super::recorder::{
    CONTROL_SPANS, HISTOGRAM_BYTES, HISTOGRAM_DIGITS, HISTOGRAM_NS_MAX, HISTOGRAM_NS_MIN,
    LANE_SPANS,
};
use super::wire::{WIRE_BYTES_MAX, WIRE_SPANS_MAX};
use super::{clock_offset, declarations};

/// The page.
pub fn markdown() -> String {
    let mut page = String::new();
    // A String takes all that is written to it.
    let _ = write_page(&mut page);
    page
}

fn write_page(page: &mut impl Write) -> std::fmt::Result {
    writeln!(page, "# What a move measures\n")?;
    writeln!(
        page,
        "This page is made from the declarations in `engine/src/telemetry/`; a test compares the \
         two and says how to make it anew. The names in the first column are those of the JSON \
         report and of the trace, the last column has those for Prometheus. *Tracks* are who \
         measures: the session's thread (`control`), each lane, each vCPU, threads that register \
         memory (`registrar`), and the way between the two ends (`link`).\n"
    )?;
    writeln!(page, "## How it is measured\n")?;
    writeln!(
        page,
        "Each thread has a recorder of its own, made before the move: no lock, and no allocation \
         while it records. A histogram takes durations from {HISTOGRAM_NS_MIN} ns to {} h with \
         {HISTOGRAM_DIGITS} significant digits in {} KiB (shorter and longer ones count as the \
         first and the last); count, total, minimum and maximum are exact. A lane's recorder holds \
         {} spans, the session's {}; the oldest make room, and how many did \
         is told (`dropped_spans`). The destination's part goes to the source when the move is \
         over, in at most {} KiB with the last {} spans.\n",
        HISTOGRAM_NS_MAX / 3_600_000_000_000,
        HISTOGRAM_BYTES >> 10,
        thousands(LANE_SPANS),
        thousands(CONTROL_SPANS),
        WIRE_BYTES_MAX >> 10,
        thousands(WIRE_SPANS_MAX),
    )?;
    writeln!(
        page,
        "Lanes over TCP time each batch. Over RDMA only requests that ask for their completion can be \
         timed: a lane asks for one in many. There the destination's device writes what comes into \
         memory by itself, and nobody could time a `receive`.\n"
    )?;
    writeln!(
        page,
        "The destination's spans are placed on the source's clock by an offset from round trips on \
         the control connection, PREPARE with READY and COMMIT with RUNNING among them; `clock.error_ns` says how far they may be misplaced: half of the \
         best round trip at most, plus {} ns for each millisecond since, as two clocks may differ \
         by {} parts in a million. Where both ends run in one boot of one host they share a clock, \
         and the error is 0.",
        clock_offset::DRIFT_PPM,
        clock_offset::DRIFT_PPM,
    )?;
    for (title, kind, words) in [
        (
            "Parts of the blackout",
            Kind::BlackoutPart,
            "Spans on the timeline that follow each other without gap and add up to the blackout. \
             For Prometheus each is a value of the label `part`.",
        ),
        (
            "Phases",
            Kind::Phase,
            "The other spans on the timeline. Spans of one track nest or are disjoint. For \
             Prometheus each is a value of the label `phase`, all its spans added up.",
        ),
        (
            "Operations",
            Kind::Operation,
            "Each has a histogram: count, total, mean, minimum, 50, 90, 99 and 99.9 in a hundred, \
             maximum, for each lane and for all threads of an end together; and buckets, 16 to a \
             doubling. For Prometheus they are histograms in seconds.",
        ),
        (
            "Counters",
            Kind::Counter,
            "Amounts that only grow, for each lane where a lane counts them (label `lane`).",
        ),
        ("Gauges", Kind::Gauge, "Amounts as they last were."),
    ] {
        writeln!(page, "\n## {title}\n\n{words}\n")?;
        writeln!(
            page,
            "| name | unit | side | tracks | what it is | for Prometheus |"
        )?;
        writeln!(page, "|---|---|---|---|---|---|")?;
        for declaration in declarations().filter(|declaration| declaration.kind == kind) {
            row(page, declaration)?;
        }
    }
    writeln!(
        page,
        "\n## What is missing\n\nCounted by what keeps the rest; for Prometheus counters, `{}` with \
         the label `side`.\n",
        MISPLACED.prometheus_name,
    )?;
    writeln!(
        page,
        "| name | where in `telemetry` | what it is | for Prometheus |"
    )?;
    writeln!(page, "|---|---|---|---|")?;
    for gap in GAPS {
        writeln!(
            page,
            "| `{}` | {} | {} | `{}` |",
            gap.json_name, gap.place, gap.meaning, gap.prometheus_name,
        )?;
    }
    Ok(())
}

fn thousands(number: usize) -> String {
    match number / 1000 {
        0 => number.to_string(),
        thousands => format!("{thousands},{:03}", number % 1000),
    }
}

fn row(page: &mut impl Write, declaration: &Declaration) -> std::fmt::Result {
    let tracks: Vec<_> = declaration
        .tracks
        .iter()
        .map(|track| track.name())
        .collect();
    let name = declaration.json_name();
    let metric = declaration.prometheus_name();
    let labels = match (declaration.kind, declaration.class) {
        (Kind::BlackoutPart, _) => format!("{{part=\"{}\"}}", declaration.name),
        (Kind::Phase, _) => format!("{{phase=\"{}\"}}", declaration.name),
        (_, Some(class)) => format!("{{size=\"{}\"}}", class.size),
        _ => String::new(),
    };
    writeln!(
        page,
        "| `{name}` | {} | {} | {} | {} | `{metric}{labels}` |",
        declaration.unit.name(),
        declaration.sides.name(),
        tracks.join(", "),
        declaration.meaning,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With `DUNLIN_WRITE_DOCS=1` in its environment the test writes the page instead.
    #[test]
    fn the_page_in_docs_is_that_of_the_declarations() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        if std::env::var_os("DUNLIN_WRITE_DOCS").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        let made = markdown();
        let differs = made
            .lines()
            .zip(kept.lines().chain(std::iter::repeat("")))
            .find(|(new, kept)| new != kept);
        assert!(
            made == kept,
            "docs/metrics.md is not what the declarations say, first here:\n{differs:?}\n\
             make it anew: DUNLIN_WRITE_DOCS=1 cargo test -p dunlin-engine --lib telemetry::page"
        );
    }
}
