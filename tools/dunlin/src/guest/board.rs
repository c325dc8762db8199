//! The board: what a guest's process knows of its guest, for everyone who asks. Control
//! connections read it, the thread that owns the guest writes it, a move's observer keeps it
//! current.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use dunlin_engine::guest::GuestOffer;
use dunlin_engine::milestone::Milestone;
use dunlin_engine::report::{Outcome, Progress, Report};
use dunlin_engine::session::Decision;
use dunlin_engine::settings::MoveHandle;
use dunlin_engine::source::MoveObserver;
use dunlin_vmm::machine::Gauge;

use super::milestones::Stopper;
use super::watch::{Attendance, Watch};
use crate::console;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::local::protocol::{
    GuestState, GuestStatus, LastMove, MoveOrder, MoveStatus, WorkloadStatus, nanoseconds,
};
use crate::metrics::exposition::Outcomes;

/// The most notes of one move that are kept for watchers who come late.
const NOTES_MAX: usize = 64;

/// How long a guest that is on its way is waited for by whoever wants to move or end it. The source
/// hears of the arrival some milliseconds before the guest's process notes it.
const SETTLING_MAX: Duration = Duration::from_secs(1);

/// What is known of a guest however it goes on.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// Its name.
    pub(crate) name: String,
    /// Its UUID.
    pub(crate) uuid: String,
    /// What runs it.
    pub(crate) kind: String,
    /// Its memory.
    pub(crate) memory_bytes: u64,
    /// What backs its memory.
    pub(crate) backing: String,
    /// Its vCPUs.
    pub(crate) vcpus: u32,
}

impl Facts {
    /// What an offer says; `backing` is this side's.
    pub(crate) fn of(offer: &GuestOffer, backing: &str) -> Self {
        Self {
            name: offer.identity.name.clone(),
            uuid: offer.identity.uuid.to_string(),
            kind: offer.kind.clone(),
            memory_bytes: offer.layout.bytes(),
            backing: backing.to_owned(),
            vcpus: offer.vcpus,
        }
    }
}

/// A move under way.
pub(super) struct UnderWay {
    pub(super) number: u64,
    pub(super) to: String,
    pub(super) handle: Arc<MoveHandle>,
    pub(super) progress: Option<Progress>,
    pub(super) progress_count: u64,
    pub(super) notes: VecDeque<String>,
    pub(super) notes_count: u64,
}

pub(super) struct Inner {
    pub(super) facts: Facts,
    pub(super) epoch: u64,
    pub(super) state: GuestState,
    pub(super) gauge: Option<Gauge>,
    pub(super) under_way: Option<UnderWay>,
    /// Why it is not known who owns the guest, while that is so; and how often that changed.
    pub(super) in_doubt: Option<(u64, String)>,
    pub(super) finished: Option<(u64, Arc<Report>, String)>,
    /// How the moves that are over ended.
    outcomes: Outcomes,
    pub(super) moves: u64,
    pub(super) attended: usize,
    /// Whether somebody asked for its end while a move was under way.
    pub(super) is_to_end: bool,
}

/// The board. Shared by reference count.
pub(crate) struct Board {
    stopper: Stopper,
    inner: Mutex<Inner>,
    pub(super) changed: Condvar,
}

/// What comes of asking for the guest's end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum EndAnswer {
    /// The guest ends now.
    Now,
    /// It ends when the move under way, which was cancelled, is over.
    AfterMove,
}

impl Board {
    /// The board of a guest that does not run yet: it is starting, or it is on its way here.
    pub(crate) fn new(facts: Facts, state: GuestState) -> Self {
        Self {
            stopper: Stopper::from_environment(),
            inner: Mutex::new(Inner {
                facts,
                epoch: 0,
                state,
                gauge: None,
                under_way: None,
                in_doubt: None,
                finished: None,
                outcomes: Outcomes::default(),
                moves: 0,
                attended: 0,
                is_to_end: false,
            }),
            changed: Condvar::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A thread that panicked with the lock left plain values behind, each valid by itself.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the board. A guest that is on its way is waited for a moment: its source may have told
    /// that it is here before this side has noted it.
    fn lock_settled(&self) -> MutexGuard<'_, Inner> {
        self.changed
            .wait_timeout_while(self.lock(), SETTLING_MAX, |inner| {
                inner.state == GuestState::Incoming
            })
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// The guest that was on its way here has begun to run.
    pub(crate) fn enters(&self, epoch: u64, gauge: Gauge) {
        let mut inner = self.lock();
        inner.epoch = epoch;
        inner.gauge = Some(gauge);
        if inner.state == GuestState::Incoming {
            inner.state = GuestState::Running;
        }
        self.changed.notify_all();
    }

    /// The guest runs here.
    pub(crate) fn runs(&self, facts: Facts, epoch: u64, gauge: Gauge) {
        let mut inner = self.lock();
        inner.facts = facts;
        inner.epoch = epoch;
        inner.gauge = Some(gauge);
        if matches!(inner.state, GuestState::Starting | GuestState::Incoming) {
            inner.state = GuestState::Running;
        }
        self.changed.notify_all();
    }

    /// How the guest is.
    pub(crate) fn status(&self) -> GuestStatus {
        let inner = self.lock();
        let workload = inner.gauge.as_ref().map(|gauge| {
            let counted = gauge.read();
            WorkloadStatus {
                pages_written: counted.pages_written,
                loops: counted.loops,
                longest_gap_ns: nanoseconds(counted.longest_gap),
            }
        });
        GuestStatus {
            name: inner.facts.name.clone(),
            uuid: inner.facts.uuid.clone(),
            epoch: inner.epoch,
            state: inner.state,
            kind: inner.facts.kind.clone(),
            pid: std::process::id(),
            memory_bytes: inner.facts.memory_bytes,
            backing: inner.facts.backing.clone(),
            vcpus: inner.facts.vcpus,
            workload,
            move_under_way: inner.under_way.as_ref().map(|under_way| MoveStatus {
                to: under_way.to.clone(),
                progress: under_way.progress.clone(),
            }),
            in_doubt: inner.in_doubt.as_ref().map(|(_, reason)| reason.clone()),
            last_move: inner.finished.as_ref().map(|(_, report, to)| LastMove {
                to: to.clone(),
                outcome: report.outcome,
                reason: report.reason.clone(),
            }),
        }
    }

    /// How the moves that are over ended, and the last one's report.
    pub(super) fn over(&self) -> (Outcomes, Option<Arc<Report>>) {
        let inner = self.lock();
        let last = inner.finished.as_ref();
        (
            inner.outcomes.clone(),
            last.map(|(_, report, _)| Arc::clone(report)),
        )
    }

    /// Begins a move, if the guest is one that can be moved now.
    ///
    /// # Errors
    ///
    /// When it is not, with the reason.
    pub(crate) fn begin_move(&self, order: &MoveOrder) -> Result<Arc<MoveHandle>, Failure> {
        let mut inner = self.lock_settled();
        let name = inner.facts.name.clone();
        let reason = match inner.state {
            GuestState::Running => None,
            GuestState::Starting => Some("is still starting; try again when it runs".to_owned()),
            GuestState::Incoming => Some("is still on its way here".to_owned()),
            GuestState::Moving => {
                let to = inner.under_way.as_ref().map(|move_| move_.to.clone());
                Some(format!(
                    "is already on its way to {}; 'dunlin cancel {name}' ends that",
                    to.unwrap_or_default()
                ))
            }
            GuestState::Moved => Some("was moved away just now".to_owned()),
            GuestState::UnknownOwner => Some(format!(
                "is paused: it is not known which side owns it; 'dunlin settle {name}' shows what to do"
            )),
            GuestState::Paused => {
                Some("is paused: it could not be resumed after a move".to_owned())
            }
            GuestState::Ending | GuestState::Discarded => Some("is about to end".to_owned()),
        };
        if let Some(reason) = reason {
            return Err(Failure::new(
                Exit::Conflict,
                format!("guest '{name}' {reason}"),
            ));
        }
        inner.moves += 1;
        let handle = Arc::new(MoveHandle::new(&order.settings()));
        inner.state = GuestState::Moving;
        inner.under_way = Some(UnderWay {
            number: inner.moves,
            to: order.to.clone(),
            handle: Arc::clone(&handle),
            progress: None,
            progress_count: 0,
            notes: VecDeque::new(),
            notes_count: 0,
        });
        Ok(handle)
    }

    /// Ends the move under way: says what became of the guest.
    pub(crate) fn end_move(&self, report: Report) {
        let mut inner = self.lock();
        let Some(under_way) = inner.under_way.take() else {
            return;
        };
        let state = match report.outcome {
            outcome if outcome.moved() => GuestState::Moved,
            Outcome::Unknown => GuestState::UnknownOwner,
            Outcome::NotResumed => GuestState::Paused,
            Outcome::DiscardedByHand => GuestState::Discarded,
            _ => GuestState::Running,
        };
        let is_settled = matches!(inner.state, GuestState::Moving | GuestState::UnknownOwner);
        if is_settled || state != GuestState::Running {
            inner.state = state;
        }
        if inner.is_to_end && inner.state == GuestState::Running {
            inner.state = GuestState::Ending;
        }
        inner.in_doubt = None;
        if state == GuestState::Moved {
            // It holds the guest's memory.
            inner.gauge = None;
        }
        inner.outcomes.add(report.outcome);
        inner.finished = Some((under_way.number, Arc::new(report), under_way.to));
        self.changed.notify_all();
    }

    /// Decides about a guest whose owner is not known.
    ///
    /// # Errors
    ///
    /// When it is known.
    pub(crate) fn decide(&self, decision: Decision, fenced: &str) -> Result<(), Failure> {
        let inner = self.lock();
        match &inner.under_way {
            Some(under_way) if inner.in_doubt.is_some() => {
                under_way.handle.decide(decision, fenced);
                Ok(())
            }
            _ => Err(Failure::new(
                Exit::Conflict,
                format!(
                    "it is known who owns guest '{}': there is nothing to settle",
                    inner.facts.name
                ),
            )),
        }
    }

    /// The handle of the move under way.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub(crate) fn handle(&self) -> Result<Arc<MoveHandle>, Failure> {
        let inner = self.lock();
        match &inner.under_way {
            Some(under_way) => Ok(Arc::clone(&under_way.handle)),
            None => Err(Failure::new(
                Exit::Conflict,
                format!("guest '{}' is not being moved", inner.facts.name),
            )),
        }
    }

    /// Asks for the guest's end. A move under way is cancelled first.
    ///
    /// # Errors
    ///
    /// When it is not known who owns the guest, unless `force` says that it does not matter.
    pub(crate) fn request_end(&self, force: bool) -> Result<EndAnswer, Failure> {
        let mut inner = self.lock_settled();
        let name = inner.facts.name.clone();
        match inner.state {
            GuestState::UnknownOwner if !force => {
                return Err(Failure::new(
                    Exit::UnknownOwner,
                    format!(
                        "it is not known which side owns guest '{name}': 'dunlin settle {name}' shows what to do; once you have seen that the destination runs it, 'dunlin stop {name} --force' ends it here"
                    ),
                ));
            }
            GuestState::UnknownOwner => {
                if let Some(under_way) = &inner.under_way {
                    let how = "'dunlin stop --force' was used";
                    under_way.handle.decide(Decision::DiscardHere, how);
                    return Ok(EndAnswer::AfterMove);
                }
            }
            GuestState::Discarded => return Ok(EndAnswer::AfterMove),
            // Ending it here could end it after it was handed over; only the source can say.
            GuestState::Incoming => {
                return Err(Failure::new(
                    Exit::Conflict,
                    format!(
                        "guest '{name}' is still on its way here: cancel the move at its source"
                    ),
                ));
            }
            GuestState::Moved => {
                return Err(Failure::new(
                    Exit::Conflict,
                    format!("guest '{name}' was moved away just now"),
                ));
            }
            _ => {}
        }
        inner.state = GuestState::Ending;
        self.changed.notify_all();
        match &inner.under_way {
            Some(under_way) => {
                let handle = Arc::clone(&under_way.handle);
                inner.is_to_end = true;
                handle.cancel();
                Ok(EndAnswer::AfterMove)
            }
            None => Ok(EndAnswer::Now),
        }
    }

    /// The guest's state.
    pub(crate) fn state(&self) -> GuestState {
        self.lock().state
    }

    /// Starts to watch the newest move, under way or over.
    ///
    /// # Errors
    ///
    /// When there was none.
    pub(crate) fn watch(self: &Arc<Self>) -> Result<Watch, Failure> {
        let inner = self.lock();
        if inner.moves == 0 {
            return Err(Failure::new(
                Exit::Conflict,
                format!("guest '{}' is not being moved", inner.facts.name),
            ));
        }
        Ok(Watch::new(self, inner.moves))
    }

    /// Counts someone who is being answered.
    pub(crate) fn attend(self: &Arc<Self>) -> Attendance {
        self.lock().attended += 1;
        Attendance::new(self)
    }

    /// Waits until nobody is being answered any more, so that everyone has their answer and the
    /// report before the process ends; at most `limit`.
    pub(crate) fn see_all_off(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut inner = self.lock();
        while inner.attended > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            inner = self
                .changed
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl MoveObserver for Board {
    fn progress(&self, progress: &Progress) {
        let mut inner = self.lock();
        if let Some(under_way) = &mut inner.under_way {
            let budget_ns = nanoseconds(under_way.handle.max_blackout());
            let mut progress = progress.clone();
            // With no prediction yet the end can't be told, and within the budget the pause is
            // next: either way a time left would be a guess that people hold against the move.
            if progress
                .predicted_blackout_ns
                .is_none_or(|predicted| predicted <= budget_ns)
            {
                progress.eta_ns = None;
            }
            under_way.progress = Some(progress);
            under_way.progress_count += 1;
            self.changed.notify_all();
        }
    }

    fn in_doubt(&self, reason: &str) {
        let mut inner = self.lock();
        if inner.state == GuestState::Moving || inner.state == GuestState::Ending {
            inner.state = GuestState::UnknownOwner;
        }
        let number = inner.in_doubt.as_ref().map_or(0, |(number, _)| number + 1);
        inner.in_doubt = Some((number, reason.to_owned()));
        self.changed.notify_all();
        drop(inner);
        // On a thread of its own: a terminal that takes nothing must not hold up the asking.
        let reason = reason.to_owned();
        let _ = thread::Builder::new()
            .name("warning".to_owned())
            .spawn(move || console::warn(reason));
    }

    fn reached(&self, milestone: Milestone) {
        self.stopper.reached(milestone);
    }

    fn note(&self, note: &str) {
        let mut inner = self.lock();
        if let Some(under_way) = &mut inner.under_way {
            if under_way.notes.len() == NOTES_MAX {
                under_way.notes.pop_front();
            }
            under_way.notes.push_back(note.to_owned());
            under_way.notes_count += 1;
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests;
