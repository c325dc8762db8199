//! All of it for people.

use std::fmt::Write as _;
use std::time::Duration;

use dunlin_bench::table::{Table, figure, spread};

use crate::results::Results;
use crate::verdicts;

const MEBIBYTE: f64 = 1_048_576.0;

/// What all figures have in common.
pub(crate) struct Title {
    pub(crate) machine: String,
    pub(crate) passes: u32,
    pub(crate) took: Duration,
}

/// The tables, and the targets in words.
pub(crate) fn text(title: &Title, all: &[Results]) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "\nMoves over loopback TCP, medians of {} (least-most)",
        title.passes
    );
    let _ = writeln!(text, "{}; took {} s", title.machine, title.took.as_secs());
    let mut groups: Vec<&str> = all.iter().map(|results| results.case.group).collect();
    groups.dedup();
    for group in groups {
        let headings = [
            group,
            "seconds",
            "",
            "pause ms",
            "",
            "GB/s",
            "",
            "CPU s/GiB used: source",
            "destination",
            "engine MiB: source",
            "destination",
            "resident MiB: source",
            "destination",
        ];
        let rows = all.iter().filter(|results| results.case.group == group);
        text.push('\n');
        text += &Table::new(&headings, rows.map(row)).text();
    }
    text += "\nTargets\n\n";
    for target in verdicts::all(all) {
        let _ = writeln!(text, "  {target}");
    }
    for results in all {
        if let Some(reason) = &results.left_out {
            let _ = writeln!(text, "\nleft out: {}: {reason}", results.case.name);
        }
        for failure in &results.failures {
            let _ = writeln!(text, "\nFAILED: {}: {failure}", results.case.name);
        }
    }
    text
}

fn row(results: &Results) -> Vec<String> {
    let mut cells = vec![results.case.name.clone()];
    cells.extend(spread(results.total_s(), 1.0, 2));
    cells.extend(spread(results.pause_s(), 1e-3, 2));
    cells.extend(spread(results.goodput(), 1e9, 2));
    let cpu = results.cpu_s();
    cells.push(figure(cpu.map(|[source, _]| source), 2));
    cells.push(figure(cpu.map(|[_, destination]| destination), 2));
    let mebibytes = |bytes: f64| bytes / MEBIBYTE;
    for (both, decimals) in [(results.engine_bytes(), 1), (results.resident_bytes(), 0)] {
        let sides = both.map_or([None; 2], |both| both.map(Some));
        cells.extend(sides.map(|bytes| figure(bytes.map(mebibytes), decimals)));
    }
    cells
}
