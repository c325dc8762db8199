//! All of it for people.

use std::fmt::Write as _;

use crate::results::{MEBIBYTE, Results, RowResults, Spread};
use crate::rows::WRITES_1_MIB;
use crate::usage::{Cpu, Usage};

/// What stands where there is no figure.
const NONE: &str = "-";

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

/// The median, and the least and the most behind it.
fn spread(spread: Option<Spread>, unit: f64, digits: usize) -> [String; 2] {
    let Some(spread) = spread else {
        return [NONE.to_owned(), String::new()];
    };
    let [median, least, most] =
        [spread.median, spread.least, spread.most].map(|value| value / unit);
    [
        format!("{median:.digits$}"),
        format!("({least:.digits$}-{most:.digits$})"),
    ]
}

fn figure(value: Option<f64>, digits: usize) -> String {
    value.map_or(NONE.to_owned(), |value| format!("{value:.digits$}"))
}

/// In programs, and in the kernel for them.
fn cpu(row: &RowResults, side: fn(&Usage) -> Cpu) -> [String; 2] {
    let cpu = row.cpu(side);
    [
        figure(cpu.map(|cpu| cpu.user_s), 2),
        figure(cpu.map(|cpu| cpu.system_s), 2),
    ]
}

/// Columns under headings: the first to the left, the others to the right.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(headings: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Self {
        let headings = headings
            .iter()
            .map(|heading| (*heading).to_owned())
            .collect();
        Self {
            rows: std::iter::once(headings).chain(rows).collect(),
        }
    }

    fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::from(" ");
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                line += &if column == 0 {
                    format!(" {cell:<width$}")
                } else {
                    format!("  {cell:>width$}")
                };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [
            vec!["long name".to_owned(), "1".to_owned()],
            vec!["x".to_owned(), "1000".to_owned()],
        ];
        let table = Table::new(&["", "of"], rows.into_iter());
        assert_eq!(
            table.text(),
            "               of\n  long name     1\n  x          1000\n"
        );
    }
}
