//! All of it for people.

use std::fmt::Write as _;

use dunlin_bench::table::{Table, figure, spread};

use crate::results::{Results, RowResults};
use crate::rows::Link;
use crate::verdicts;

const MEBIBYTE: f64 = 1_048_576.0;

/// The tables, and the targets in words.
pub(crate) fn all(results: &Results) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "\nDunlin beside its peers over TCP: {} MiB of random memory each, medians of {} runs (least-most)",
        results.bytes >> 20,
        results.passes
    );
    let _ = writeln!(text, "{}; took {} s", results.machine, results.seconds);
    for program in &results.programs {
        let _ = writeln!(text, "{program}");
    }
    for link in Link::ALL {
        let rows: Vec<&RowResults> = results
            .rows
            .iter()
            .filter(|results| results.row.link == link)
            .collect();
        if rows.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\nOver {link}\n");
        let headings = [
            "",
            "GB/s",
            "",
            "seconds",
            "",
            "pause ms",
            "",
            "guest saw ms",
            "CPU s/GiB: source",
            "destination",
            "both",
            "MiB beyond: source",
            "destination",
        ];
        text += &Table::new(&headings, rows.into_iter().map(row)).text();
    }
    text += "\nThe raw socket's best settings (bytes a call, sockets' buffers, memory)\n\n";
    for (link, (settings, _)) in &results.settings {
        let buffer = match settings.socket_buffer_bytes {
            0 => "the kernel's own".to_owned(),
            bytes => format!("{} KiB", bytes >> 10),
        };
        let _ = writeln!(
            text,
            "  {link}, {} streams: {} KiB, {buffer}, {}",
            settings.streams,
            settings.buffer_bytes >> 10,
            settings.memory
        );
    }
    text += "\nTargets\n\n";
    for target in verdicts::all(results) {
        let _ = writeln!(text, "  {target}");
    }
    for (row, reason) in &results.left_out {
        let _ = writeln!(text, "\nleft out: {row}: {reason}");
    }
    for failure in &results.failures {
        let _ = writeln!(text, "\nFAILED: {failure}");
    }
    text
}

fn row(row: &RowResults) -> Vec<String> {
    let mut cells = vec![row.row.name.clone()];
    cells.extend(spread(row.goodput(), 1e9, 2));
    cells.extend(spread(row.seconds(), 1.0, 2));
    cells.extend(spread(row.blackout_s(), 1e-3, 1));
    cells.push(figure(row.guest_gap_s().map(|gap| gap.median * 1e3), 1));
    let cpu = row.cpu_s();
    cells.push(figure(cpu.map(|[source, _]| source), 2));
    cells.push(figure(cpu.map(|[_, destination]| destination), 2));
    cells.push(figure(cpu.map(|both| both.iter().sum()), 2));
    let memory = row.memory_bytes();
    cells.push(figure(memory.map(|[source, _]| source / MEBIBYTE), 0));
    cells.push(figure(
        memory.map(|[_, destination]| destination / MEBIBYTE),
        0,
    ));
    cells
}
