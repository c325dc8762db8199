//! What was to be reached, and whether it was.

use std::fmt;

/// What a figure is held against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// Less is a miss.
    AtLeast(f64),
    /// More is.
    AtMost(f64),
}

/// One target, and what came out.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// What it is about.
    pub what: String,
    /// What was to be reached.
    pub limit: Limit,
    /// What was; `None` when it was not measured.
    pub found: Option<f64>,
}

impl Target {
    /// A target.
    pub fn new(what: impl Into<String>, limit: Limit, found: Option<f64>) -> Self {
        Self {
            what: what.into(),
            limit,
            found,
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_words() {
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
            assert_eq!(Target::new("x", limit, found).to_string(), words);
        }
    }
}
