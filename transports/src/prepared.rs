//! Which ranges the peer may write, and who is writing now.
//!
//! A destination keeps one [`WriteGate`]. A lane asks it before each batch and tells it when the
//! batch is in memory; so `retire` and `revoke_all` can wait until nobody writes any more.

use std::sync::{Arc, Mutex, PoisonError};

use crate::memory::Run;
use crate::published::{Published, View};
use crate::ranges::PreparedRanges;
use crate::runtime::Monitor;

/// What both sides must have said about a range before a source may put into it.
#[derive(Default)]
pub(crate) struct SourceRanges(Published<Ready>);

#[derive(Clone, Default)]
pub(crate) struct Ready {
    /// What this side made ready to be sent from.
    here: PreparedRanges,
    /// What the destination made ready to be written.
    there: PreparedRanges,
}

impl SourceRanges {
    /// This side made a range ready to be sent from.
    pub(crate) fn prepare(&self, range: Run) {
        self.0.change(|ready| ready.here.insert(range));
    }

    /// Undoes `prepare`, and forgets what the destination granted of it; `false` when the range was
    /// not prepared.
    pub(crate) fn retire(&self, range: Run) -> bool {
        self.0.change(|ready| {
            let was_prepared = ready.here.remove(range);
            if was_prepared {
                ready.there.subtract(range);
            }
            was_prepared
        })
    }

    /// The destination made a range ready to be written.
    pub(crate) fn grant(&self, range: Run) {
        self.0.change(|ready| ready.there.insert(range));
    }

    /// The first of `runs` that is not ready on both sides. `view` is the asking lane's own.
    pub(crate) fn first_unready(&self, view: &mut View<Ready>, runs: &[Run]) -> Option<Run> {
        let ready = self.0.look(view);
        let is_ready = |run: &&Run| ready.here.contains(**run) && ready.there.contains(**run);
        runs.iter().find(|run| !is_ready(run)).copied()
    }
}

/// Prepared ranges, and the writers that are at work in them.
///
/// Lanes share no lock on the way of a batch: each has its own, which others take only to take a
/// range back, and its own view of what is prepared. What is taken back is published before the
/// writers are looked at one by one: who entered before that look is seen writing, and who enters
/// behind it sees the change, as both take the writer's lock.
#[derive(Default)]
pub(crate) struct WriteGate {
    prepared: Published<Prepared>,
    writers: Mutex<Vec<Arc<Writer>>>,
}

#[derive(Clone, Default)]
struct Prepared {
    ranges: PreparedRanges,
    is_revoked: bool,
}

/// One lane, as its gate sees it.
#[derive(Default)]
struct Writer {
    state: Monitor<WriterState>,
}

#[derive(Default)]
struct WriterState {
    view: View<Prepared>,
    /// What it is writing now; empty while it writes nothing.
    writing: Vec<Run>,
    /// Whether somebody waits for it to be done.
    is_awaited: bool,
}

impl Writer {
    /// Waits until it writes nothing that `concerns`.
    fn wait_while(&self, concerns: impl Fn(&Run) -> bool) {
        let mut state = self.state.lock();
        while state.writing.iter().any(&concerns) {
            state.is_awaited = true;
            state = self.state.wait(state);
        }
    }
}

impl WriteGate {
    fn writers(&self) -> Vec<Arc<Writer>> {
        let writers = self.writers.lock();
        writers.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets the peer write a range; `false` after `revoke_all`.
    pub(crate) fn prepare(&self, range: Run) -> bool {
        self.prepared.change(|prepared| {
            if !prepared.is_revoked {
                prepared.ranges.insert(range);
            }
            !prepared.is_revoked
        })
    }

    /// Takes a range back, and waits for whoever writes there now. An honest source retires only
    /// what it has fenced, so that there is nobody; `interrupt` ends the lanes of another one.
    /// `false` when the range was not prepared.
    pub(crate) fn retire(&self, range: Run, interrupt: impl FnOnce()) -> bool {
        let overlaps = |run: &Run| run.first < range.end() && range.first < run.end();
        if !self
            .prepared
            .change(|prepared| prepared.ranges.remove(range))
        {
            return false;
        }
        let writers = self.writers();
        let is_busy = |writer: &Arc<Writer>| writer.state.lock().writing.iter().any(overlaps);
        if writers.iter().any(is_busy) {
            interrupt();
            writers
                .iter()
                .for_each(|writer| writer.wait_while(overlaps));
        }
        true
    }

    /// Takes every range back and lets no writer in any more. Writers may still be at work: end
    /// what they wait for, then call [`WriteGate::wait_until_idle`].
    pub(crate) fn revoke(&self) {
        self.prepared.change(|prepared| {
            *prepared = Prepared {
                ranges: PreparedRanges::default(),
                is_revoked: true,
            };
        });
    }

    /// Waits until nobody writes.
    ///
    /// There is no time limit: returning early would break the promise of `revoke_all`. It ends
    /// because a writer whose connection was shut down waits for nothing but its own copying of at
    /// most one batch.
    pub(crate) fn wait_until_idle(&self) {
        self.writers()
            .iter()
            .for_each(|writer| writer.wait_while(|_| true));
    }

    /// A place for one more writer.
    pub(crate) fn add_writer(&self) -> WriterPlace {
        let writer = Arc::<Writer>::default();
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        writers.push(Arc::clone(&writer));
        WriterPlace(writer)
    }

    /// Asks to write `runs`. They stay open for this writer until the permit is dropped.
    ///
    /// # Errors
    ///
    /// The first run that is not prepared.
    pub(crate) fn enter<'a>(
        &self,
        place: &'a WriterPlace,
        runs: impl Iterator<Item = Run> + Clone,
    ) -> Result<WritePermit<'a>, Run> {
        let mut state = place.0.state.lock();
        let state = &mut *state;
        let ranges = &self.prepared.look(&mut state.view).ranges;
        if let Some(refused) = runs.clone().find(|run| !ranges.contains(*run)) {
            return Err(refused);
        }
        state.writing.clear();
        state.writing.extend(runs);
        Ok(WritePermit { writer: &place.0 })
    }
}

/// Where a gate notes what one lane is writing.
pub(crate) struct WriterPlace(Arc<Writer>);

/// Leave to write; given back when dropped.
pub(crate) struct WritePermit<'a> {
    writer: &'a Writer,
}

impl Drop for WritePermit<'_> {
    fn drop(&mut self) {
        let mut state = self.writer.state.lock();
        state.writing.clear();
        // Waking is a system call.
        let is_awaited = std::mem::take(&mut state.is_awaited);
        drop(state);
        if is_awaited {
            self.writer.state.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::time::{Duration, Instant};

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
        std::thread::sleep(Duration::from_millis(30));
        over.store(true, Ordering::SeqCst);
        drop(permit);
        assert!(waiter.join().unwrap());
        assert_eq!(
            gate.enter(&place, [run(2, 2)].into_iter()).err(),
            Some(run(2, 2))
        );
        assert!(!gate.prepare(run(0, 8)));
    }

    /// Says that it is over when it is dropped.
    struct Over<'a>(&'a AtomicBool);

    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// A writer is never at work in a range that was taken back, however the two meet.
    #[test]
    fn no_writer_is_in_a_range_that_was_taken_back() {
        let gate = WriteGate::default();
        let (is_open, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
        let (is_caught, entered) = (AtomicBool::new(false), AtomicU64::new(0));
        let limit = Instant::now() + Duration::from_secs(60);
        std::thread::scope(|scope| {
            // However this ends, the writers do too.
            let _over = Over(&is_over);
            for _ in 0..3 {
                scope.spawn(|| {
                    let place = gate.add_writer();
                    while !is_over.load(Ordering::Relaxed) {
                        if let Ok(permit) = gate.enter(&place, [run(2, 2)].into_iter()) {
                            entered.fetch_add(1, Ordering::Relaxed);
                            std::thread::yield_now();
                            if !is_open.load(Ordering::SeqCst) {
                                is_caught.store(true, Ordering::SeqCst);
                            }
                            drop(permit);
                        }
                        std::thread::yield_now();
                    }
                });
            }
            for _ in 0..500 {
                is_open.store(true, Ordering::SeqCst);
                assert!(gate.prepare(run(0, 8)));
                let before = entered.load(Ordering::Relaxed);
                while entered.load(Ordering::Relaxed) == before {
                    assert!(Instant::now() < limit, "nobody is let in");
                    std::thread::yield_now();
                }
                assert!(gate.retire(run(0, 8), || ()));
                is_open.store(false, Ordering::SeqCst);
                // Whoever is let in now is found out.
                (0..8).for_each(|_| std::thread::yield_now());
            }
        });
        assert!(!is_caught.load(Ordering::SeqCst));
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
