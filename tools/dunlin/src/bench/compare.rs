//! One result against another, cell by cell, and whether that is a regression.
//!
//! Where both programs were run in turns, passes are compared with each other; otherwise too, as the
//! n-th pass of one run with the n-th of the other, which then have nothing in common.

use serde::Serialize;

use super::matrix::Cell;
use super::results::{CellResult, Figure, Results};
use super::statistics::Ratio;
use super::table::aligned;
use super::verdict::{Finding, pairs, together};
use crate::exit::Exit;
use crate::render::palette::Palette;

/// The schema's name and version.
const SCHEMA: &str = "dunlin.comparison/1";

/// The figures that are compared. Processor time is told, and decides nothing: it is no promise.
const FIGURES: [Figure; 4] = [
    Figure::Goodput,
    Figure::Total,
    Figure::Blackout,
    Figure::Cpu,
];

/// All that the comparison of two results says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Comparison {
    /// [`SCHEMA`].
    schema: &'static str,
    /// The slowdown that is a failure.
    threshold: f64,
    /// Where the random resampling started.
    seed: u64,
    /// Whether both programs were run in turns.
    is_interleaved: bool,
    /// What came of it.
    pub(crate) outcome: Outcome,
    /// Each figure of each cell that both results have, and of all cells together.
    rows: Vec<Row>,
    /// Cells that only one of them has figures of, and why.
    unmatched: Vec<String>,
    /// What it means, in a sentence.
    words: String,
}

/// What came of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// No interval says that the judged one is slower by more than the threshold.
    Passed,
    /// One does.
    Slower,
    /// There was nothing to judge by.
    NotComparable,
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    /// The cell; `None`: all together.
    cell: Option<Cell>,
    figure: Figure,
    /// Judged over base.
    ratio: Ratio,
    finding: Finding,
    /// Whether it is slower by more than the threshold, and that decides.
    is_regression: bool,
}

impl Row {
    fn new(cell: Option<Cell>, figure: Figure, ratio: Ratio, threshold: f64) -> Self {
        let is_slower = if figure.more_is_better() {
            // Slower by a tenth means that the time for a byte is 1.1 times what it was.
            ratio.high < 1.0 / (1.0 + threshold)
        } else {
            ratio.low > 1.0 + threshold
        };
        Self {
            cell,
            figure,
            finding: Finding::of(Some(ratio), figure.more_is_better()),
            is_regression: is_slower && ratio.is_sayable() && figure != Figure::Cpu,
            ratio,
        }
    }
}

/// Judges a result against another.
pub(crate) fn compare(base: &Results, judged: &Results, threshold: f64, seed: u64) -> Comparison {
    let find = |cell: &Cell| judged.cells.iter().find(|other| other.cell == *cell);
    let mut rows = Vec::new();
    let mut unmatched = Vec::new();
    let mut matched: Vec<(&CellResult, &CellResult)> = Vec::new();
    for left in &base.cells {
        match find(&left.cell) {
            Some(right) if is_measured(left) && is_measured(right) => matched.push((left, right)),
            // What neither could run is nobody's difference.
            Some(right) if left.left_out.is_some() && right.left_out.is_some() => {}
            right => unmatched.push(reason(left, right)),
        }
    }
    let known = |cell: &Cell| base.cells.iter().any(|left| left.cell == *cell);
    let only_judged = judged.cells.iter().filter(|right| !known(&right.cell));
    unmatched
        .extend(only_judged.map(|right| format!("{}: only in the second", right.cell.words())));
    for figure in FIGURES {
        let all: Vec<Vec<(f64, f64)>> = matched
            .iter()
            .map(|(left, right)| pairs(&left.runs, &right.runs, figure))
            .collect();
        for ((left, _), pairs) in matched.iter().zip(&all) {
            if let Some(ratio) = Ratio::of(pairs, seed) {
                rows.push(Row::new(Some(left.cell.clone()), figure, ratio, threshold));
            }
        }
        if matched.len() > 1
            && let Some(ratio) = Ratio::of(&together(&matched, figure), seed)
        {
            rows.push(Row::new(None, figure, ratio, threshold));
        }
    }
    let is_sayable = rows.iter().any(|row| row.ratio.is_sayable());
    let outcome = match (is_sayable, rows.iter().any(|row| row.is_regression)) {
        (false, _) => Outcome::NotComparable,
        (true, true) => Outcome::Slower,
        (true, false) => Outcome::Passed,
    };
    let words = words(outcome, &rows, threshold);
    Comparison {
        schema: SCHEMA,
        threshold,
        seed,
        is_interleaved: base.is_interleaved && judged.is_interleaved,
        outcome,
        rows,
        unmatched,
        words,
    }
}

fn is_measured(cell: &CellResult) -> bool {
    cell.runs.iter().any(|run| run.is_good())
}

fn reason(left: &CellResult, right: Option<&CellResult>) -> String {
    let words = left.cell.words();
    match right {
        None => format!("{words}: only in the first"),
        Some(right) => match (is_measured(left), is_measured(right)) {
            (true, false) => format!("{words}: the second has no run that moved the guest"),
            (false, true) => format!("{words}: the first has no run that moved the guest"),
            _ => format!("{words}: neither has a run that moved the guest"),
        },
    }
}

fn words(outcome: Outcome, rows: &[Row], threshold: f64) -> String {
    let percent = threshold * 100.0;
    match outcome {
        Outcome::NotComparable => {
            "the two have no cell in common, or too few passes to judge by".to_owned()
        }
        Outcome::Passed => format!("no interval says that it is slower by more than {percent} %"),
        Outcome::Slower => {
            let bad = rows.iter().filter(|row| row.is_regression).count();
            format!(
                "slower by more than {percent} %: so say {bad} of {} intervals",
                rows.len()
            )
        }
    }
}

impl Comparison {
    /// The exit code that goes with it.
    pub(crate) fn exit(&self) -> Exit {
        match self.outcome {
            Outcome::Passed => Exit::Done,
            Outcome::Slower => Exit::Slower,
            Outcome::NotComparable => Exit::NotComparable,
        }
    }

    /// For people.
    pub(crate) fn rendered(&self, palette: Palette) -> String {
        let mut table = vec![["", "cell", "ratio", "95 % from", "to", "passes"].map(str::to_owned)];
        for row in &self.rows {
            let cell = row
                .cell
                .as_ref()
                .map_or_else(|| "all together".to_owned(), Cell::words);
            table.push([
                format!("{}, {cell}", row.figure.name()),
                String::new(),
                format!("{:.3}", row.ratio.ratio),
                format!("{:.3}", row.ratio.low),
                format!("{:.3}", row.ratio.high),
                row.ratio.passes.to_string(),
            ]);
        }
        let table: Vec<[String; 6]> = table
            .into_iter()
            .zip(std::iter::once(String::new()).chain(self.rows.iter().map(finding)))
            .map(|([name, _, ratio, low, high, passes], finding)| {
                let name = if name.is_empty() {
                    "second over first".to_owned()
                } else {
                    name
                };
                [name, ratio, low, high, passes, finding]
            })
            .collect();
        let mut text = aligned(&table);
        for line in &self.unmatched {
            text.push_str(&format!("  {}\n", palette.faint(line)));
        }
        let how = if self.is_interleaved {
            ""
        } else {
            " (run at different times: what else the machine did is in the ratios)"
        };
        let words = match self.outcome {
            Outcome::Passed => palette.good(&self.words),
            Outcome::Slower => palette.bad(&self.words),
            Outcome::NotComparable => palette.careful(&self.words),
        };
        text.push_str(&format!("\n  {words}{how}\n"));
        text
    }
}

fn finding(row: &Row) -> String {
    let words = match row.finding {
        Finding::Better => "better",
        Finding::Worse => "worse",
        Finding::Same => "the same",
        Finding::NoDifferenceSeen => "no difference seen",
        Finding::TooFewPasses => "too few passes",
        Finding::NothingToCompare => "nothing",
    };
    match row.is_regression {
        true => format!("{words}: SLOWER"),
        false => words.to_owned(),
    }
}

#[cfg(test)]
mod tests;
