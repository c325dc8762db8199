//! Which ranges the peer may write, and who is writing now.
//!
//! A destination keeps one [`WriteGate`]. A lane asks it before each batch and tells it when the
//! batch is in memory; so `retire` and `revoke_all` can wait until nobody writes any more.

use std::sync::{MutexGuard, PoisonError, RwLock};

use crate::memory::Run;
use crate::ranges::PreparedRanges;
use crate::runtime::Monitor;

/// What both sides must have said about a range before a source may put into it.
#[derive(Default)]
pub(crate) struct SourceRanges {
    ranges: RwLock<(PreparedRanges, PreparedRanges)>,
}

impl SourceRanges {
    /// This side made a range ready to be sent from.
    pub(crate) fn prepare(&self, range: Run) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        ranges.0.insert(range);
    }

    /// Undoes `prepare`, and forgets what the destination granted of it; `false` when the range was
    /// not prepared.
    pub(crate) fn retire(&self, range: Run) -> bool {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let was_prepared = ranges.0.remove(range);
        if was_prepared {
            ranges.1.subtract(range);
        }
        was_prepared
    }

    /// The destination made a range ready to be written.
    pub(crate) fn grant(&self, range: Run) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        ranges.1.insert(range);
    }

    /// The first of `runs` that is not ready on both sides.
    pub(crate) fn first_unready(&self, runs: &[Run]) -> Option<Run> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let is_ready = |run: &&Run| ranges.0.contains(**run) && ranges.1.contains(**run);
        runs.iter().find(|run| !is_ready(run)).copied()
    }
}

#[derive(Default)]
struct GateState {
    ranges: PreparedRanges,
    revoked: bool,
    /// What each writer is writing now, by the writer's place; empty while it writes nothing.
    writing: Vec<Vec<Run>>,
}

/// Prepared ranges, and the writers that are at work in them.
#[derive(Default)]
pub(crate) struct WriteGate {
    state: Monitor<GateState>,
}

impl WriteGate {
    fn state(&self) -> MutexGuard<'_, GateState> {
        // No code panics while it holds the lock, so that the state is always a whole one.
        self.state.lock()
    }

    /// Lets the peer write a range; `false` after `revoke_all`.
    pub(crate) fn prepare(&self, range: Run) -> bool {
        let mut state = self.state();
        if !state.revoked {
            state.ranges.insert(range);
        }
        !state.revoked
    }

    /// Takes a range back, and waits for whoever writes there now. An honest source retires only
    /// what it has fenced, so that there is nobody; `interrupt` ends the lanes of another one.
    /// `false` when the range was not prepared.
    pub(crate) fn retire(&self, range: Run, interrupt: impl FnOnce()) -> bool {
        let overlaps = |run: &Run| run.first < range.end() && range.first < run.end();
        let mut state = self.state();
        if !state.ranges.remove(range) {
            return false;
        }
        let busy = |state: &GateState| state.writing.iter().flatten().any(overlaps);
        if busy(&state) {
            drop(state);
            interrupt();
            state = self.state();
            while busy(&state) {
                state = self.state.wait(state);
            }
        }
        true
    }

    /// Takes every range back and lets no writer in any more. Writers may still be at work: end
    /// what they wait for, then call [`WriteGate::wait_until_idle`].
    pub(crate) fn revoke(&self) {
        let mut state = self.state();
        state.revoked = true;
        state.ranges = PreparedRanges::default();
    }

    /// Waits until nobody writes.
    ///
    /// There is no time limit: returning early would break the promise of `revoke_all`. It ends
    /// because a writer whose connection was shut down waits for nothing but its own copying of at
    /// most one batch.
    pub(crate) fn wait_until_idle(&self) {
        let mut state = self.state();
        while state.writing.iter().any(|runs| !runs.is_empty()) {
            state = self.state.wait(state);
        }
    }

    /// A place for one more writer.
    pub(crate) fn add_writer(&self) -> WriterPlace {
        let mut state = self.state();
        state.writing.push(Vec::new());
        WriterPlace(state.writing.len() - 1)
    }

    /// Asks to write `runs`. They stay open for this writer until the permit is dropped.
    ///
    /// # Errors
    ///
    /// The first run that is not prepared.
    pub(crate) fn enter(
        &self,
        place: &WriterPlace,
        runs: impl Iterator<Item = Run> + Clone,
    ) -> Result<WritePermit<'_>, Run> {
        let mut state = self.state();
        if let Some(refused) = runs.clone().find(|run| !state.ranges.contains(*run)) {
            return Err(refused);
        }
        if let Some(writing) = state.writing.get_mut(place.0) {
            writing.clear();
            writing.extend(runs);
        }
        Ok(WritePermit {
            gate: self,
            place: place.0,
        })
    }
}

/// Where a gate notes what one lane is writing.
pub(crate) struct WriterPlace(usize);

/// Leave to write; given back when dropped.
pub(crate) struct WritePermit<'a> {
    gate: &'a WriteGate,
    place: usize,
}

impl Drop for WritePermit<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        if let Some(writing) = state.writing.get_mut(self.place) {
            writing.clear();
        }
        drop(state);
        self.gate.state.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::memory::PageNumber;

    fn run(first: u64, pages: u32) -> Run {
        Run {
            first: PageNumber(first),
            pages,
        }
    }

    #[test]
    fn revoking_waits_for_the_writer() {
        let gate = Arc::new(WriteGate::default());
        assert!(gate.prepare(run(0, 8)));
        let place = gate.add_writer();
        let permit = gate.enter(&place, [run(2, 2)].into_iter()).unwrap();
        gate.revoke();
        let over = Arc::new(AtomicBool::new(false));
        let waiter = {
            let (gate, over) = (Arc::clone(&gate), Arc::clone(&over));
            std::thread::spawn(move || {
                gate.wait_until_idle();
                over.load(Ordering::SeqCst)
            })
        };
        std::thread::sleep(std::time::Duration::from_millis(30));
        over.store(true, Ordering::SeqCst);
        drop(permit);
        assert!(waiter.join().unwrap());
        assert_eq!(
            gate.enter(&place, [run(2, 2)].into_iter()).err(),
            Some(run(2, 2))
        );
        assert!(!gate.prepare(run(0, 8)));
    }

    #[test]
    fn retiring_interrupts_only_a_writer_in_the_range() {
        let gate = WriteGate::default();
        assert!(gate.prepare(run(0, 8)));
        let place = gate.add_writer();
        let permit = gate.enter(&place, [run(2, 2)].into_iter()).unwrap();
        assert!(gate.retire(run(4, 4), || panic!("nobody writes there")));
        assert!(!gate.retire(run(4, 4), || panic!("not prepared")));
        assert!(gate.retire(run(3, 1), || drop(permit)));
        assert!(gate.enter(&place, [run(3, 1)].into_iter()).is_err());
        assert!(gate.enter(&place, [run(2, 1)].into_iter()).is_ok());
    }
}
