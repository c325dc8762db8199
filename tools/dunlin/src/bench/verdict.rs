//! What the figures say, in words, and how sure that is.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::matrix::Cell;
use super::results::{CellResult, Figure, ReferenceResult, Run};
use super::statistics::{PASSES_MIN, RESOLUTION, Ratio};

/// One comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// What is compared with what.
    pub(crate) subject: String,
    /// How many pairs of cells it is about, taken together; 0: a cell and another program.
    #[serde(default)]
    pub(crate) cells: usize,
    /// By which figure.
    pub(crate) figure: Figure,
    /// The ratio; `None` where no pass has both.
    pub(crate) ratio: Option<Ratio>,
    /// What that means.
    pub(crate) finding: Finding,
    /// All of it in one sentence.
    pub(crate) words: String,
}

/// What a ratio means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Finding {
    /// The judged one is better; so says the whole interval.
    Better,
    /// It is worse; so says the whole interval.
    Worse,
    /// The whole interval is within the resolution of 1.
    Same,
    /// The interval includes 1, or comes closer to it than the resolution.
    NoDifferenceSeen,
    /// There are too few passes to say anything.
    TooFewPasses,
    /// There is nothing to compare.
    NothingToCompare,
}

impl Finding {
    /// Of a ratio.
    pub(crate) fn of(ratio: Option<Ratio>, more_is_better: bool) -> Self {
        let Some(ratio) = ratio else {
            return Self::NothingToCompare;
        };
        if !ratio.is_sayable() {
            return Self::TooFewPasses;
        }
        let (below, above) = (1.0 - RESOLUTION, 1.0 + RESOLUTION);
        if ratio.low >= below && ratio.high <= above {
            Self::Same
        } else if ratio.low > above {
            if more_is_better {
                Self::Better
            } else {
                Self::Worse
            }
        } else if ratio.high < below {
            if more_is_better {
                Self::Worse
            } else {
                Self::Better
            }
        } else {
            Self::NoDifferenceSeen
        }
    }

    /// In words, as the end of a sentence.
    pub(crate) fn words(self, figure: Figure) -> String {
        match self {
            Self::Better if figure.more_is_better() => "more".to_owned(),
            Self::Worse if figure.more_is_better() => "less".to_owned(),
            Self::Better => "shorter".to_owned(),
            Self::Worse => "longer".to_owned(),
            Self::Same => format!("the same within {:.0} %", RESOLUTION * 100.0),
            Self::NoDifferenceSeen => "no difference seen".to_owned(),
            Self::TooFewPasses => format!("too few passes to say, {PASSES_MIN} are needed"),
            Self::NothingToCompare => "nothing to compare".to_owned(),
        }
    }
}

/// A ratio with its interval.
pub(crate) fn ratio_words(ratio: &Ratio) -> String {
    format!(
        "{:.2} times (95 %: {:.2} to {:.2}, {})",
        ratio.ratio,
        ratio.low,
        ratio.high,
        passes(ratio.passes as u64)
    )
}

impl Verdict {
    /// About pairs `(measure, judged)`, one a pass; `cells` as in the field.
    pub(crate) fn about(
        subject: String,
        cells: usize,
        figure: Figure,
        pairs: &[(f64, f64)],
        seed: u64,
    ) -> Self {
        let ratio = Ratio::of(pairs, seed);
        let finding = Finding::of(ratio, figure.more_is_better());
        let measured = ratio.as_ref().map(ratio_words).unwrap_or_default();
        let words = match finding {
            Finding::NothingToCompare => {
                format!("{subject}: {}: nothing to compare", figure.name())
            }
            _ => format!(
                "{subject}: {} {measured}: {}",
                figure.name(),
                finding.words(figure)
            ),
        };
        Self {
            subject,
            cells,
            figure,
            ratio,
            finding,
            words,
        }
    }
}

/// The passes in which both have the figure.
pub(crate) fn pairs(base: &[Run], judged: &[Run], figure: Figure) -> Vec<(f64, f64)> {
    let value_in = |runs: &[Run], pass: u32| {
        let run = runs.iter().find(|run| run.pass == pass)?;
        figure.of(run)
    };
    base.iter()
        .filter_map(|run| Some((figure.of(run)?, value_in(judged, run.pass)?)))
        .collect()
}

/// Passes, counted in words.
pub(crate) fn passes(count: u64) -> String {
    match count {
        1 => "1 pass".to_owned(),
        _ => format!("{} passes", crate::render::amounts::count(count)),
    }
}

/// All pairs of cells as one: in each pass the geometric mean of the cells' figures. Noise that
/// differs from cell to cell averages out, so a difference in everything shows here first. A pass in
/// which a cell failed says nothing of all of them.
pub(crate) fn together(matched: &[(&CellResult, &CellResult)], figure: Figure) -> Vec<(f64, f64)> {
    let all = matched.iter().flat_map(|(left, _)| &left.runs);
    let numbers: BTreeSet<u32> = all.map(|run| run.pass).collect();
    let value = |cell: &CellResult, pass: u32| {
        let run = cell.runs.iter().find(|run| run.pass == pass)?;
        figure.of(run).filter(|value| *value > 0.0)
    };
    let mean = |logs: &[f64]| (logs.iter().sum::<f64>() / logs.len() as f64).exp();
    let both = |pass: u32| -> Option<(Vec<f64>, Vec<f64>)> {
        let pairs = matched.iter();
        pairs
            .map(|(left, right)| Some((value(left, pass)?.ln(), value(right, pass)?.ln())))
            .collect()
    };
    let means = numbers.into_iter().filter_map(both);
    means
        .map(|(left, right)| (mean(&left), mean(&right)))
        .collect()
}

/// A dimension in which two cells may differ.
struct Dimension {
    /// A cell without it, to see whether two differ in nothing else.
    without: fn(Cell) -> Cell,
    /// Its value in words.
    value: fn(&Cell) -> String,
}

const DIMENSIONS: [Dimension; 3] = [
    Dimension {
        without: |cell| Cell {
            transport: String::new(),
            ..cell
        },
        value: |cell| cell.transport.clone(),
    },
    Dimension {
        without: |cell| Cell {
            lanes: None,
            ..cell
        },
        value: |cell| {
            cell.lanes.map_or_else(
                || "auto lanes".to_owned(),
                |lanes| crate::render::amounts::counted(lanes.into(), "lane"),
            )
        },
    },
    Dimension {
        without: |cell| Cell {
            guest: String::new(),
            ..cell
        },
        value: |cell| format!("a {} guest", cell.guest),
    },
];

/// The figures that cells are judged by.
const FIGURES: [Figure; 2] = [Figure::Goodput, Figure::Blackout];

/// Two cells that differ in one dimension alone.
struct Match<'a> {
    /// The values there, judged against base.
    values: String,
    base: &'a CellResult,
    judged: &'a CellResult,
}

/// Each cell and the first that differs from it in this dimension alone.
fn matches<'a>(cells: &'a [CellResult], dimension: &Dimension) -> Vec<Match<'a>> {
    let run = |cell: &&CellResult| !cell.runs.is_empty();
    let mut matches = Vec::new();
    for (place, judged) in cells.iter().enumerate().filter(|(_, cell)| run(cell)) {
        let rest = (dimension.without)(judged.cell.clone());
        let base = cells.iter().take(place).filter(run).find(|base| {
            base.cell != judged.cell && (dimension.without)(base.cell.clone()) == rest
        });
        let Some(base) = base else { continue };
        let values = format!(
            "{} against {}",
            (dimension.value)(&judged.cell),
            (dimension.value)(&base.cell)
        );
        matches.push(Match {
            values,
            base,
            judged,
        });
    }
    matches
}

/// What the matrix says: where cells differ in one dimension alone, all of them together and then
/// pair by pair; then the best cell against each reference.
pub(crate) fn of_matrix(
    cells: &[CellResult],
    references: &[ReferenceResult],
    seed: u64,
) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for dimension in &DIMENSIONS {
        let matches = matches(cells, dimension);
        let mut groups: Vec<(&str, Vec<(&CellResult, &CellResult)>)> = Vec::new();
        for found in &matches {
            let pair = (found.base, found.judged);
            match groups.iter_mut().find(|(name, _)| *name == found.values) {
                Some((_, pairs)) => pairs.push(pair),
                None => groups.push((&found.values, vec![pair])),
            }
        }
        for (values, matched) in groups.iter().filter(|(_, matched)| matched.len() > 1) {
            let subject = format!("{values} ({} pairs of cells together)", matched.len());
            verdicts.extend(FIGURES.map(|figure| {
                let pairs = together(matched, figure);
                Verdict::about(subject.clone(), matched.len(), figure, &pairs, seed)
            }));
        }
        for found in &matches {
            let subject = format!("{} ({})", found.values, found.judged.cell.words());
            verdicts.extend(FIGURES.map(|figure| {
                let pairs = pairs(&found.base.runs, &found.judged.runs, figure);
                Verdict::about(subject.clone(), 1, figure, &pairs, seed)
            }));
        }
    }
    let goodput = |cell: &CellResult| cell.summary.goodput_bytes_per_s.map(|spread| spread.median);
    let best = cells
        .iter()
        .filter(|cell| goodput(cell).is_some())
        .max_by(|left, right| {
            goodput(left)
                .unwrap_or(0.0)
                .total_cmp(&goodput(right).unwrap_or(0.0))
        });
    let Some(best) = best else {
        return verdicts;
    };
    for reference in references
        .iter()
        .filter(|reference| !reference.runs.is_empty())
    {
        let subject = format!(
            "the best cell ({}) against {}",
            best.cell.words(),
            reference.name
        );
        for figure in FIGURES {
            let value = |pass: u32| {
                let run = reference.runs.iter().find(|run| run.pass == pass)?;
                match figure {
                    Figure::Goodput => run.goodput_bytes_per_s,
                    _ => run.blackout_ns,
                }
            };
            let pairs: Vec<(f64, f64)> = best
                .runs
                .iter()
                .filter_map(|run| Some((value(run.pass)? as f64, figure.of(run)?)))
                .collect();
            if !pairs.is_empty() {
                verdicts.push(Verdict::about(subject.clone(), 0, figure, &pairs, seed));
            }
        }
    }
    verdicts
}

/// The verdicts that a person reads first: of cells together, and of what stands alone. The others
/// are their parts.
pub(crate) fn foremost(verdicts: &[Verdict]) -> Vec<&Verdict> {
    let values = |verdict: &Verdict| {
        let end = verdict.subject.find(" (");
        verdict.subject.get(..end.unwrap_or(0)).map(str::to_owned)
    };
    let groups: BTreeSet<_> = verdicts
        .iter()
        .filter(|verdict| verdict.cells > 1)
        .map(values)
        .collect();
    let is_part = |verdict: &Verdict| verdict.cells == 1 && groups.contains(&values(verdict));
    let all = verdicts.iter();
    all.filter(|verdict| !is_part(verdict)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(values: &[(f64, f64)], figure: Figure) -> Verdict {
        Verdict::about("B against A".to_owned(), 1, figure, values, 1)
    }

    #[test]
    fn words_follow_from_the_interval() {
        let seven = |judged: f64| vec![(1.0, judged); 7];
        for (judged, figure, finding) in [
            (1.2, Figure::Goodput, Finding::Better),
            (0.8, Figure::Goodput, Finding::Worse),
            (1.2, Figure::Blackout, Finding::Worse),
            (0.8, Figure::Blackout, Finding::Better),
            (1.005, Figure::Blackout, Finding::Same),
        ] {
            assert_eq!(
                about(&seven(judged), figure).finding,
                finding,
                "{judged} {figure:?}"
            );
        }
        let verdict = about(&seven(1.2), Figure::Goodput);
        assert_eq!(
            verdict.words,
            "B against A: goodput 1.20 times (95 %: 1.20 to 1.20, 7 passes): more"
        );
        let mixed = [
            (1.0, 0.7),
            (1.0, 1.4),
            (1.0, 0.8),
            (1.0, 1.3),
            (1.0, 0.9),
            (1.0, 1.2),
        ];
        let verdict = about(&mixed, Figure::Blackout);
        assert_eq!(verdict.finding, Finding::NoDifferenceSeen);
        assert!(
            verdict.words.ends_with(": no difference seen"),
            "{}",
            verdict.words
        );
        let verdict = about(&seven(1.2)[..5], Figure::Blackout);
        assert!(
            verdict
                .words
                .ends_with("too few passes to say, 6 are needed")
        );
        assert_eq!(about(&[], Figure::Cpu).finding, Finding::NothingToCompare);
    }

    #[test]
    fn passes_are_paired_by_number() {
        let run = |pass, goodput| Run {
            pass,
            outcome: "moved".to_owned(),
            goodput_bytes_per_s: goodput,
            ..Run::default()
        };
        let base = [run(1, 10), run(2, 20), run(3, 30)];
        let judged = [
            run(3, 33),
            run(1, 11),
            Run {
                pass: 2,
                ..Run::default()
            },
        ];
        assert_eq!(
            pairs(&base, &judged, Figure::Goodput),
            [(10.0, 11.0), (30.0, 33.0)]
        );
    }

    #[test]
    fn pairs_of_cells_are_judged_together_and_come_first() {
        let results = crate::bench::example::results(7);
        let other_memory = |result: &CellResult| {
            let mut other = result.clone();
            other.cell.memory_bytes *= 2;
            other
        };
        let mut cells = results.cells.clone();
        cells.extend(results.cells.iter().map(other_memory));
        let verdicts = of_matrix(&cells, &[], 1);
        let counts: Vec<usize> = verdicts.iter().map(|verdict| verdict.cells).collect();
        assert_eq!(counts, [2, 2, 1, 1, 1, 1]);
        let first = &verdicts[0];
        assert_eq!(
            first.subject,
            "2 lanes against 1 lane (2 pairs of cells together)"
        );
        // Twice the same pair says what the pair says.
        let ratio = |place: usize| verdicts[place].ratio.unwrap().ratio;
        assert!((ratio(0) - ratio(2)).abs() < 1e-9);
        let foremost = foremost(&verdicts);
        assert_eq!(foremost.len(), 2);
        assert!(foremost.iter().all(|verdict| verdict.cells == 2));
        assert_eq!(
            super::foremost(&results.verdicts).len(),
            results.verdicts.len()
        );
    }
}
