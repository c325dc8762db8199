//! What was to be reached, and whether it was.

use std::fmt;

use crate::results::{Results, RowResults};
use crate::rows::{NIC_WINDOW, PIN_ALL, WRITES_1_MIB, WRITES_4_KIB};

/// The destination's processor time in programs that counts as nearly none: this part of one
/// processor while bytes flow.
const NEARLY_NONE_S_PER_GIB: f64 = 0.1;

/// What a figure is held against.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

/// One target, and what came out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    what: String,
    limit: Limit,
    /// `None` when it was not measured.
    found: Option<f64>,
}

impl Target {
    /// By what part of the limit it was missed; `None` when it was reached or not measured.
    fn missed_by(&self) -> Option<f64> {
        let missed = match self.limit {
            Limit::AtLeast(limit) => (limit - self.found?) / limit,
            Limit::AtMost(limit) => (self.found? - limit) / limit,
        };
        (missed > 0.0).then_some(missed)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = match self.limit {
            Limit::AtLeast(limit) => format!("at least {limit}"),
            Limit::AtMost(limit) => format!("at most {limit}"),
        };
        let Some(found) = self.found else {
            return write!(formatter, "{}: {limit}: not measured", self.what);
        };
        let verdict = match self.missed_by() {
            None => "reached".to_owned(),
            Some(part) => format!("missed by {:.0} %", (part * 100.0).max(1.0)),
        };
        write!(formatter, "{}: {limit}: {found:.3}, {verdict}", self.what)
    }
}

/// All targets.
pub(crate) fn all(results: &Results) -> Vec<Target> {
    let goodput = |row: &RowResults| row.goodput().map_or(0.0, |goodput| goodput.median);
    let best = |is_scattered: bool| {
        let rows = results.rows.iter();
        rows.filter(|row| row.row.is_dunlin_rdma(is_scattered) && !row.runs.is_empty())
            .max_by(|one, other| goodput(one).total_cmp(&goodput(other)))
    };
    let (large, small) = (best(false), best(true));
    let over = |row: Option<&RowResults>, name: &str| {
        let other = results
            .row(name)
            .map(goodput)
            .filter(|other| *other > 0.0)?;
        Some(goodput(row?) / other)
    };
    let named =
        |row: Option<&RowResults>| row.map_or("dunlin rdma".to_owned(), |row| row.row.name.clone());
    let work = results.row(NIC_WINDOW).and_then(RowResults::work);
    let target = |what: String, limit, found| Target { what, limit, found };
    vec![
        target(
            format!("goodput of '{}' over '{WRITES_1_MIB}'", named(large)),
            Limit::AtLeast(0.95),
            over(large, WRITES_1_MIB),
        ),
        target(
            format!("goodput of '{}' over '{PIN_ALL}'", named(large)),
            Limit::AtLeast(1.3),
            over(large, PIN_ALL),
        ),
        target(
            format!("goodput of '{}' over '{WRITES_4_KIB}'", named(small)),
            Limit::AtLeast(0.8),
            over(small, WRITES_4_KIB),
        ),
        target(
            format!("work requests for a MiB, '{NIC_WINDOW}'"),
            Limit::AtMost(1.05),
            work.map(|work| work[0]),
        ),
        target(
            format!("completions for a MiB, '{NIC_WINDOW}'"),
            Limit::AtMost(0.1),
            work.map(|work| work[2]),
        ),
        target(
            format!(
                "the destination's user seconds for a GiB while bytes flow, '{}'",
                named(large)
            ),
            Limit::AtMost(NEARLY_NONE_S_PER_GIB),
            large.and_then(RowResults::bulk).map(|(user_s, _)| user_s),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_words() {
        let target = |limit, found| Target {
            what: "x".to_owned(),
            limit,
            found,
        };
        for (limit, found, words) in [
            (
                Limit::AtLeast(0.95),
                Some(0.95),
                "x: at least 0.95: 0.950, reached",
            ),
            (
                Limit::AtLeast(0.8),
                Some(0.4),
                "x: at least 0.8: 0.400, missed by 50 %",
            ),
            (
                Limit::AtMost(0.1),
                Some(0.1001),
                "x: at most 0.1: 0.100, missed by 1 %",
            ),
            (Limit::AtMost(0.1), None, "x: at most 0.1: not measured"),
        ] {
            assert_eq!(target(limit, found).to_string(), words);
        }
    }
}
