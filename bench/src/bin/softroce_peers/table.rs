//! All of it for people.

use std::fmt::Write as _;

use dunlin_bench::table::{Table, figure, spread};
use dunlin_bench::usage::{Cpu, Usage};

use crate::results::{MEBIBYTE, Results, RowResults};
use crate::rows::{WRITES_1_MIB, What};

/// The tables, and the targets in words.
pub(crate) fn all(results: &Results) -> String {
    let mut text = String::new();
    let bytes = results.bytes as f64 / MEBIBYTE;
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "\nDunlin and its peers over one wire: {bytes:.0} MiB of random memory each, medians of {} runs (least-most)",
        results.passes
    );
    let _ = writeln!(
        text,
        "{}; {}; took {} s",
        results.machine,
        results.qemu.as_deref().unwrap_or("no QEMU"),
        results.seconds
    );
    text += "\nHow fast\n\n";
    let headings = [
        "",
        "MiB/s",
        "",
        "of writes",
        "seconds",
        "",
        "blackout ms",
        "",
        "resent",
    ];
    text += &Table::new(
        &headings,
        results.rows.iter().map(|row| speed(row, results)),
    )
    .text();
    text += "\nProcessor seconds for a GiB, in programs and in the kernel for them; and while bytes flow\n\n";
    let headings = [
        "",
        "source",
        "kernel",
        "destination",
        "kernel",
        "machine",
        "in bulk: destination",
        "with kernel",
    ];
    text += &Table::new(&headings, results.rows.iter().map(processor)).text();
    text += "\nWhat the source asks of its RDMA device for a MiB, and both sides of the kernel for a GiB\n\n";
    let headings = [
        "",
        "requests",
        "doorbells",
        "completions",
        "registrations",
        "calls: source",
        "destination",
    ];
    text += &Table::new(&headings, results.rows.iter().map(work)).text();
    let named = results.rows.iter().filter_map(most_calls);
    let named: Vec<Vec<String>> = named.flatten().collect();
    if !named.is_empty() {
        text += "\nWhich calls those of Dunlin's are, the most frequent ones, for a GiB\n\n";
        text += &Table::new(&["", "", ""], named).text();
    }
    text += "\nTargets\n\n";
    for target in crate::targets::all(results) {
        let _ = writeln!(text, "  {target}");
    }
    for (row, reason) in &results.left_out {
        let _ = writeln!(text, "\nleft out: {row}: {reason}");
    }
    for failure in results.failures() {
        let _ = writeln!(text, "\nFAILED: {failure}");
    }
    text
}

fn speed(row: &RowResults, results: &Results) -> Vec<String> {
    let reference = results.row(WRITES_1_MIB).and_then(RowResults::goodput);
    let ratio = row.goodput().zip(reference);
    let ratio = ratio.map(|(own, reference)| own.median / reference.median);
    let mut cells = vec![row.row.name.clone()];
    cells.extend(spread(row.goodput(), MEBIBYTE, 1));
    cells.push(figure(ratio, 2));
    cells.extend(spread(row.seconds(), 1.0, 2));
    cells.extend(spread(row.blackout_s(), 1e-3, 1));
    cells.push(figure(row.retries().map(|retries| retries.median), 0));
    cells
}

fn processor(row: &RowResults) -> Vec<String> {
    let mut cells = vec![row.row.name.clone()];
    cells.extend(cpu(row, |usage| usage.source));
    cells.extend(cpu(row, |usage| usage.destination));
    cells.push(figure(row.machine_s(), 1));
    let bulk = row.bulk();
    cells.push(figure(bulk.map(|(user_s, _)| user_s), 3));
    cells.push(figure(bulk.map(|(_, run_s)| run_s), 3));
    cells
}

fn work(row: &RowResults) -> Vec<String> {
    let mut cells = vec![row.row.name.clone()];
    let work = row.work();
    cells.extend((0..4).map(|at| figure(work.map(|work| work[at]), 3)));
    let calls = row.calls();
    cells.extend((0..2).map(|at| figure(calls.map(|calls| calls[at]), 0)));
    cells
}

/// A line for each side of one of Dunlin's rows: the calls by name.
fn most_calls(row: &RowResults) -> Option<[Vec<String>; 2]> {
    if !matches!(row.row.what, What::Dunlin { .. }) {
        return None;
    }
    let [source, destination] = row.most_calls()?;
    let words = |calls: Vec<(&str, f64)>| {
        let calls = calls
            .iter()
            .map(|(name, count)| format!("{name} {count:.0}"));
        calls.collect::<Vec<_>>().join(", ")
    };
    Some([
        vec![row.row.name.clone(), "source".to_owned(), words(source)],
        vec![String::new(), "destination".to_owned(), words(destination)],
    ])
}

/// In programs, and in the kernel for them.
fn cpu(row: &RowResults, side: fn(&Usage) -> Cpu) -> [String; 2] {
    let cpu = row.cpu(side);
    [
        figure(cpu.map(|cpu| cpu.user_s), 2),
        figure(cpu.map(|cpu| cpu.system_s), 2),
    ]
}
