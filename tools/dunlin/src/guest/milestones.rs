//! Stopping at a point of a move, for whoever tests what happens when a process is killed there:
//! `DUNLIN_STOP_AT=given-up` makes this process stop itself (SIGSTOP) when it gets there first.

use std::sync::atomic::{AtomicBool, Ordering};

use dunlin_engine::milestone::Milestone;
use rustix::process::{Signal, getpid, kill_process};

/// Names the milestone.
const VARIABLE: &str = "DUNLIN_STOP_AT";

/// Stops this process at a milestone, once.
#[derive(Debug)]
pub(crate) struct Stopper {
    at: Option<Milestone>,
    has_stopped: AtomicBool,
}

impl Stopper {
    /// What the environment says.
    pub(crate) fn from_environment() -> Self {
        let named = std::env::var(VARIABLE).ok();
        let at = named.and_then(|name| {
            let mut all = Milestone::ALL.iter().copied();
            all.find(|milestone| milestone.name() == name)
        });
        Self {
            at,
            has_stopped: AtomicBool::new(false),
        }
    }

    /// A milestone was reached.
    pub(crate) fn reached(&self, milestone: Milestone) {
        if self.at == Some(milestone) && !self.has_stopped.swap(true, Ordering::Relaxed) {
            // A process may always signal itself.
            let _ = kill_process(getpid(), Signal::STOP);
        }
    }
}
