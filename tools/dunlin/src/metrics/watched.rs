//! A move that is watched from outside: what `send` can tell of it.

use std::sync::{Mutex, PoisonError};

use dunlin_engine::report::{Progress, Report};

use super::Source;
use super::exposition::{Exposition, Outcomes};

/// What was heard of a move.
#[derive(Default)]
pub(crate) struct MoveSeen(Mutex<Heard>);

#[derive(Default)]
struct Heard {
    guest: String,
    progress: Option<Progress>,
    report: Option<Report>,
}

impl MoveSeen {
    /// Where the move stands.
    pub(crate) fn progress(&self, guest: &str, progress: &Progress) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.guest = guest.to_owned();
        heard.progress = Some(progress.clone());
    }

    /// It is over.
    pub(crate) fn over(&self, report: &Report) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.progress = None;
        heard.report = Some(report.clone());
    }
}

impl Source for MoveSeen {
    fn text(&self) -> String {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut exposition = Exposition::new();
        if let Some(progress) = &heard.progress {
            exposition.progress(&heard.guest, progress);
        }
        if let Some(report) = &heard.report {
            exposition.last_move(report);
            let mut over = Outcomes::default();
            over.add(report.outcome);
            exposition.moves(&report.guest.name, &over);
        }
        exposition.text()
    }
}
