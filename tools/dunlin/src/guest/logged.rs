//! A move's observer that also logs what it is told, under the session's name. What is told inside
//! the pause is passed on and not logged.

use std::sync::Mutex;

use dunlin_engine::milestone::Milestone;
use dunlin_engine::report::{Phase, Progress, Report};
use dunlin_engine::source::MoveObserver;
use dunlin_transports::lane::SessionId;
use tracing::{debug, info, warn};

use crate::metrics::exposition::word;

/// An observer, and the session that it observes.
pub(super) struct Logged<'a> {
    observer: &'a dyn MoveObserver,
    session: String,
    /// The last phase and round that were logged.
    told: Mutex<Option<(Phase, u32)>>,
}

impl<'a> Logged<'a> {
    /// Logs that a session begins.
    pub(super) fn begin(
        observer: &'a dyn MoveObserver,
        session: SessionId,
        guest: &str,
        to: &str,
        transport: &str,
    ) -> Self {
        let session = session.to_string();
        info!(%session, side = "source", guest, to, transport, "the move begins");
        Self {
            observer,
            session,
            told: Mutex::new(None),
        }
    }

    /// Logs how it ended.
    pub(super) fn over(&self, report: &Report) {
        let session = &self.session;
        let outcome = word(&report.outcome);
        let reason = report.reason.as_deref().unwrap_or_default();
        let (total_ns, sent_bytes) = (report.total_ns, report.sent_bytes);
        let blackout_ns = report.blackout.as_ref().map(|blackout| blackout.total_ns);
        if report.outcome.moved() {
            info!(%session, side = "source", outcome, total_ns, sent_bytes, blackout_ns, "the move is over");
        } else {
            warn!(%session, side = "source", outcome, reason, total_ns, "the move is over");
        }
        for round in &report.rounds {
            debug!(
                %session,
                side = "source",
                round = round.number,
                is_final = round.is_final,
                duration_ns = round.duration_ns,
                dirty_pages = round.dirty_pages,
                sent_bytes = round.sent_bytes,
                "a round of it"
            );
        }
    }
}

impl MoveObserver for Logged<'_> {
    fn progress(&self, progress: &Progress) {
        let now = (progress.phase, progress.round);
        let is_new = match self.told.lock() {
            Ok(mut told) => told.replace(now) != Some(now),
            Err(_) => false,
        };
        if is_new {
            debug!(
                session = %self.session,
                side = "source",
                phase = word(&progress.phase),
                round = progress.round,
                dirty_pages = progress.dirty_pages,
                sent_bytes = progress.sent_bytes,
                predicted_blackout_ns = progress.predicted_blackout_ns,
                "the move goes on"
            );
        }
        self.observer.progress(progress);
    }

    fn note(&self, note: &str) {
        info!(session = %self.session, side = "source", "{note}");
        self.observer.note(note);
    }

    // The guest is paused here, and the board warns on a thread of its own.
    fn in_doubt(&self, reason: &str) {
        self.observer.in_doubt(reason);
    }

    // Some of these are inside the pause.
    fn reached(&self, milestone: Milestone) {
        self.observer.reached(milestone);
    }
}
