//! All of it for people: a line for each cell and each reference, then what it says.

use super::results::{CellResult, ReferenceResult, Results};
use super::statistics::{PASSES_MIN, Spread};
use super::verdict::{Finding, Verdict, foremost, passes};
use crate::render::amounts::{counted, nanoseconds, rate};
use crate::render::palette::Palette;
use crate::render::text::printable;

/// A table's heads; what follows the first is aligned to the right.
const HEADS: [&str; 7] = [
    "cell",
    "goodput",
    "move",
    "blackout",
    "guest saw",
    "predicted",
    "cpu s/GiB",
];

/// Everything that was measured.
pub(crate) fn all(results: &Results, palette: Palette) -> String {
    let mut text = format!("\n{}\n\n", palette.strong(&headline(results)));
    let cells = results.cells.iter().filter(|cell| cell.left_out.is_none());
    let mut rows = vec![HEADS.map(str::to_owned)];
    rows.extend(cells.map(cell_row));
    let references = results.references.iter();
    let references = references.filter(|reference| reference.left_out.is_none());
    rows.extend(references.map(reference_row));
    text.push_str(&aligned(&rows));
    let versions = versions(results);
    if !versions.is_empty() {
        let line = format!("beside: {}", versions.join(", "));
        text.push_str(&format!("  {}\n", palette.faint(&printable(&line))));
    }
    for line in left_out(results) {
        text.push_str(&format!("  {}\n", palette.faint(&printable(&line))));
    }
    for cell in &results.cells {
        text.push_str(&failures(cell, palette));
    }
    for reference in &results.references {
        text.push_str(&reference_failures(reference, palette));
    }
    let is_too_few = |verdict: &Verdict| verdict.finding == Finding::TooFewPasses;
    if !results.verdicts.is_empty() && results.verdicts.iter().all(is_too_few) {
        text.push_str(&format!(
            "\n  too few passes to say which is better: {PASSES_MIN} are needed\n"
        ));
    } else {
        text.push('\n');
        let foremost = foremost(&results.verdicts);
        for verdict in &foremost {
            text.push_str(&format!("  {}\n", verdict.words));
        }
        if foremost.len() < results.verdicts.len() {
            let is_seen =
                |verdict: &&Verdict| matches!(verdict.finding, Finding::Better | Finding::Worse);
            let parts = results.verdicts.iter().filter(|verdict| verdict.cells == 1);
            let seen = parts.clone().filter(is_seen).count();
            text.push_str(&format!(
                "  pair by pair: a difference in {seen} of {}; --html and --json have each\n",
                parts.count()
            ));
        }
    }
    text.push_str(&format!(
        "\n  {}\n",
        palette.faint("Each figure is the median and, in brackets, the middle half of its runs.")
    ));
    text
}

/// The programs that were measured beside, each with its version.
fn versions(results: &Results) -> Vec<String> {
    let mut versions = Vec::new();
    for reference in &results.references {
        let program = reference.name.split(' ').next();
        if let (Some(program), Some(version)) = (program, &reference.version) {
            versions.push(format!("{program} {version}"));
        }
    }
    versions.dedup();
    versions
}

/// What was not run, and why: a line for each reason. Other programs are named one by one, since
/// each was looked for by itself.
pub(super) fn left_out(results: &Results) -> Vec<String> {
    let cells = results.cells.iter();
    let cells = cells.filter_map(|cell| Some((cell.cell.words(), cell.left_out.as_ref()?)));
    let references = results.references.iter();
    let references = references.filter_map(|row| Some((row.name.clone(), row.left_out.as_ref()?)));
    let of_cells = by_reason(cells).into_iter().map(|(reason, names)| {
        let first = names.first().map(String::as_str).unwrap_or_default();
        match names.len() - 1 {
            0 => format!("not run: {first}: {reason}"),
            1 => format!("not run: {first}, and another cell: {reason}"),
            others => format!("not run: {first}, and {others} more cells: {reason}"),
        }
    });
    let of_references = by_reason(references).into_iter();
    let of_references =
        of_references.map(|(reason, names)| format!("not run: {}: {reason}", names.join(", ")));
    of_cells.chain(of_references).collect()
}

/// What has the same reason, in order; each list has a name.
fn by_reason<'a>(
    all: impl Iterator<Item = (String, &'a String)>,
) -> Vec<(&'a String, Vec<String>)> {
    let mut reasons: Vec<(&String, Vec<String>)> = Vec::new();
    for (name, reason) in all {
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, names)) => names.push(name),
            None => reasons.push((reason, vec![name])),
        }
    }
    reasons
}

pub(super) fn headline(results: &Results) -> String {
    let place = match (&results.destination_host, results.is_one_host) {
        (Some(other), false) => format!("from {} to {}", host(&results.host), host(other)),
        _ => format!("two processes of one host, {}", host(&results.host)),
    };
    let passes = passes(results.passes.into());
    let ended = if results.is_interrupted {
        ", interrupted"
    } else {
        ""
    };
    format!(
        "{passes} in {}{ended}: {place}",
        nanoseconds(results.duration_ns)
    )
}

fn host(host: &dunlin_engine::report::Host) -> String {
    if host.kernel.is_empty() {
        return "a machine that did not tell".to_owned();
    }
    printable(&format!(
        "{}, {}, Linux {}",
        host.cpu,
        counted(host.cpus.into(), "CPU"),
        host.kernel
    ))
}

fn cell_row(cell: &CellResult) -> [String; 7] {
    let summary = &cell.summary;
    let predicted = summary
        .prediction_ratio
        .map(|spread| format!("{:.2}x", spread.median));
    [
        cell.cell.words(),
        spread(summary.goodput_bytes_per_s, rate),
        spread(summary.total_ns, nanoseconds),
        spread(summary.blackout_ns, nanoseconds),
        spread(summary.guest_visible_ns, nanoseconds),
        predicted.unwrap_or_else(|| "-".to_owned()),
        cpu_per_gib(cell).unwrap_or_else(|| "-".to_owned()),
    ]
}

/// Both sides' processor seconds for each GiB sent.
fn cpu_per_gib(cell: &CellResult) -> Option<String> {
    let runs = cell
        .runs
        .iter()
        .filter(|run| run.is_good() && run.sent_bytes > 0);
    let costs = runs.filter_map(|run| {
        let seconds = run.cpu_ns()? as f64 / 1e9;
        Some(seconds / (run.sent_bytes as f64 / (1_u64 << 30) as f64))
    });
    Spread::of(costs).map(|spread| format!("{:.2}", spread.median))
}

fn reference_row(reference: &ReferenceResult) -> [String; 7] {
    let of = |value: fn(&super::results::ReferenceRun) -> Option<u64>| {
        Spread::of(
            reference
                .runs
                .iter()
                .filter_map(value)
                .map(|value| value as f64),
        )
    };
    let latency = of(|run| run.latency_ns);
    let goodput = match latency {
        Some(_) => spread(latency, nanoseconds),
        None => spread(of(|run| run.goodput_bytes_per_s), rate),
    };
    let none = || "-".to_owned();
    [
        reference.name.clone(),
        goodput,
        spread(of(|run| run.total_ns), nanoseconds),
        spread(of(|run| run.blackout_ns), nanoseconds),
        none(),
        none(),
        none(),
    ]
}

/// The median, and the middle half where there is more than one value.
fn spread(spread: Option<Spread>, words: fn(u64) -> String) -> String {
    match spread {
        None => "-".to_owned(),
        Some(spread) if spread.count == 1 => words(spread.median as u64),
        Some(spread) => format!(
            "{} [{} {}]",
            words(spread.median as u64),
            bare(&words(spread.lower_quartile as u64)),
            bare(&words(spread.upper_quartile as u64))
        ),
    }
}

/// An amount without the space before its unit, for brackets.
fn bare(amount: &str) -> String {
    amount.replace(' ', "")
}

/// Runs that did not move the guest, by reason.
fn failures(cell: &CellResult, palette: Palette) -> String {
    let bad: Vec<_> = cell.runs.iter().filter(|run| !run.is_good()).collect();
    let Some(first) = bad.first() else {
        return String::new();
    };
    let line = format!(
        "{}: {} of {} did not move the guest: {}: {}",
        cell.cell.words(),
        bad.len(),
        counted(cell.runs.len() as u64, "run"),
        first.outcome,
        first.reason.as_deref().unwrap_or_default()
    );
    format!("  {}\n", palette.bad(&printable(&line)))
}

/// Runs of another program that gave no figures, by reason.
fn reference_failures(reference: &ReferenceResult, palette: Palette) -> String {
    let reasons = || reference.runs.iter().filter_map(|run| run.reason.as_ref());
    let Some(first) = reasons().next() else {
        return String::new();
    };
    let line = format!(
        "{}: {} of {} gave no figures: {first}",
        reference.name,
        reasons().count(),
        counted(reference.runs.len() as u64, "run"),
    );
    format!("  {}\n", palette.bad(&printable(&line)))
}

/// A table of rows; the first column to the left, the others to the right.
pub(crate) fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (place, (cell, width)) in row.iter().zip(&widths).enumerate() {
            line.push_str("  ");
            match place {
                0 => line.push_str(&format!("{cell:<width$}")),
                _ => line.push_str(&format!("{cell:>width$}")),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::example;

    #[test]
    fn a_table_has_every_cell_and_says_what_was_not_run() {
        let mut results = example::results(7);
        let text = all(&results, Palette::PLAIN);
        for words in [
            "tcp, 1 lane, 1 GiB, 100MiB/s sequential, kvm",
            "7 passes in 90 s: two processes of one host, A Processor",
            "not run: iperf3 -P 2: iperf3 is not installed",
            "memcpy",
            "2 lanes against 1 lane",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        results = example::results(2);
        for cell in &mut results.cells {
            cell.left_out = Some("no RDMA".to_owned());
        }
        let text = all(&results, Palette::PLAIN);
        assert!(text.contains("kvm, and another cell: no RDMA"), "{text}");
        assert!(text.contains("too few passes to say"), "{text}");
    }

    #[test]
    fn runs_that_failed_are_counted() {
        let mut results = example::results(7);
        results.cells[0].runs[3].outcome = "timed-out".to_owned();
        results.cells[0].runs[3].reason = Some("the link".to_owned());
        let text = all(&results, Palette::PLAIN);
        assert!(
            text.contains("1 of 7 runs did not move the guest: timed-out: the link"),
            "{text}"
        );
    }
}
