//! Measuring moves: a matrix of cells, run in passes, beside other programs, and what the figures
//! say.
//!
//! Everything is done as a user would do it: by the program's own commands, in processes of their
//! own. So another build of the program can be measured in turns with this one.
//!
//! | room | what is in it |
//! |---|---|
//! | [`matrix`] | the cells, and whether they can run here |
//! | [`passes`] | the order of runs |
//! | [`one_move`] | one run of a cell |
//! | [`references`] | what other programs reach |
//! | [`processes`] | processes: started, waited for within bounds, ended |
//! | [`processor_time`] | whose processor time a run was |
//! | [`results`] | what was measured: `dunlin.bench/1` |
//! | [`statistics`] | medians, and the interval of a ratio |
//! | [`verdict`] | what the figures say |
//! | [`compare`] | one result against another |
//! | [`private`] | what is private in a text |
//! | [`bundle`] | results and facts for an issue tracker, nothing private in them |
//! | [`progress`] | where the passes stand |
//! | [`table`], [`csv`] | all of it for people, and for spreadsheets |
//! | [`page`] | all of it as a page of HTML |

pub(crate) mod bundle;
pub(crate) mod compare;
pub(crate) mod csv;
#[cfg(test)]
pub(crate) mod example;
pub(crate) mod matrix;
pub(crate) mod one_move;
pub(crate) mod page;
pub(crate) mod passes;
pub(crate) mod private;
pub(crate) mod processes;
pub(crate) mod processor_time;
pub(crate) mod progress;
pub(crate) mod references;
pub(crate) mod results;
pub(crate) mod statistics;
pub(crate) mod table;
pub(crate) mod verdict;

/// Why a run gave no figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Somebody has had enough.
    Interrupted,
    /// It failed; in one sentence.
    Failed(String),
}

impl Stop {
    /// `doing` failed because of `error`.
    pub(crate) fn failed(doing: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Self::Failed(format!("{doing}: {error}"))
    }
}

/// Whether somebody has had enough.
pub(crate) type Interrupted<'a> = &'a dyn Fn() -> bool;
