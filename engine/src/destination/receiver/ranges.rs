//! Ranges that the source opens and closes while the move runs: what it may ask for, the threads
//! that register, and what it is told.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::*;
use crate::jobs::Jobs;
use crate::layout::Layout;
use crate::protocol::{RANGES_IN_MESSAGE_MAX, RANGES_MAX, Ranges};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Opening,
    Open,
    Closing,
}

/// Why a source's OPEN or CLOSE is not acceptable.
#[derive(Debug, thiserror::Error)]
pub(super) enum RangeError {
    #[error("the source asks for {} pages at {}, which are not inside one region", .0.pages, .0.first)]
    Outside(Run),
    #[error("the source asks for {} pages at {}, some of which are open already", .0.pages, .0.first)]
    Overlapping(Run),
    #[error("the source asks for {asked} bytes beside {held}; the pin budget is {budget}")]
    OverBudget { asked: u64, held: u64, budget: u64 },
    #[error("the source asks for more than {RANGES_MAX} ranges")]
    TooMany,
    #[error("the source closes {} pages at {}, which are not open", .0.pages, .0.first)]
    NotOpen(Run),
}

/// What is open, and what the source may have.
struct Ledger {
    budget_bytes: u64,
    held_bytes: u64,
    opening: usize,
    /// By their first page.
    ranges: BTreeMap<u64, (Run, Stage)>,
}

impl Ledger {
    fn new(budget_bytes: u64) -> Self {
        Self {
            budget_bytes,
            held_bytes: 0,
            opening: 0,
            ranges: BTreeMap::new(),
        }
    }

    fn open(&mut self, layout: &Layout, range: Run) -> Result<(), RangeError> {
        let last = PageNumber(range.end().0.saturating_sub(1));
        let inside = |page| layout.region_of(page).map(|found| found.0);
        if inside(range.first).is_none() || inside(range.first) != inside(last) {
            return Err(RangeError::Outside(range));
        }
        let before = self.ranges.range(..range.end().0).next_back();
        if before.is_some_and(|(_, (before, _))| before.end() > range.first) {
            return Err(RangeError::Overlapping(range));
        }
        if self.held_bytes.saturating_add(range.bytes()) > self.budget_bytes {
            return Err(RangeError::OverBudget {
                asked: range.bytes(),
                held: self.held_bytes,
                budget: self.budget_bytes,
            });
        }
        if self.ranges.len() >= RANGES_MAX {
            return Err(RangeError::TooMany);
        }
        self.ranges.insert(range.first.0, (range, Stage::Opening));
        self.held_bytes += range.bytes();
        self.opening += 1;
        Ok(())
    }

    fn close(&mut self, range: Run) -> Result<(), RangeError> {
        match self.ranges.get_mut(&range.first.0) {
            Some((open, stage)) if *open == range && *stage == Stage::Open => {
                *stage = Stage::Closing;
                Ok(())
            }
            _ => Err(RangeError::NotOpen(range)),
        }
    }

    fn opened(&mut self, range: Run) {
        if let Some((_, stage)) = self.ranges.get_mut(&range.first.0) {
            *stage = Stage::Open;
            self.opening = self.opening.saturating_sub(1);
        }
    }

    fn closed(&mut self, range: Run) {
        if self.ranges.remove(&range.first.0).is_some() {
            self.held_bytes = self.held_bytes.saturating_sub(range.bytes());
        }
    }
}

#[derive(Clone, Copy)]
enum Job {
    Open(Run),
    Close(Run),
}

enum Done {
    Opened(Grant),
    Closed(Run),
}

/// The threads that register for one session.
#[derive(Default)]
pub(super) struct Pool {
    /// At most [`RANGES_MAX`]: the ledger sees to it.
    jobs: Jobs<Job>,
    done: Mutex<Vec<Done>>,
}

impl Pool {
    /// Ends the threads, each once it is done with what it does.
    pub(super) fn stop(&self) {
        self.jobs.stop();
    }

    /// Notes what is done. Whether nothing else was waiting to be told.
    fn note(&self, done: Done) -> bool {
        let mut all = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(done);
        all.len() == 1
    }

    fn take_done(&self) -> Vec<Done> {
        let mut all = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut all)
    }

    /// One thread: registers and deregisters until the pool is stopped.
    fn serve(
        &self,
        endpoint: &dyn DestinationEndpoint,
        recorder: &mut Recorder,
        inputs: &SyncSender<Input>,
    ) {
        while let Some(job) = self.jobs.next() {
            let begun = recorder.now();
            let (done, operation) = match job {
                Job::Open(range) => (
                    endpoint.prepare(range).map(Done::Opened),
                    Operation::Registration,
                ),
                Job::Close(range) => (
                    endpoint.retire(range).map(|()| Done::Closed(range)),
                    Operation::Deregistration,
                ),
            };
            let ended = recorder.done(operation, begun);
            if operation == Operation::Registration {
                recorder.span(SpanName::Register, begun, ended);
            }
            let told = match done {
                Ok(done) => match self.note(done) {
                    true => inputs.send(Input::RangesDone),
                    false => Ok(()),
                },
                Err(error) => inputs.send(Input::RangeFailed(error)),
            };
            if told.is_err() {
                return;
            }
        }
    }
}

/// Starts the threads that register.
pub(super) fn start_pool<'scope>(
    scope: &Scope<'scope, '_>,
    pool: &'scope Pool,
    endpoint: &'scope dyn DestinationEndpoint,
    inputs: &SyncSender<Input>,
    shelf: &Shelf,
) -> std::io::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for index in (0..).take(cores.min(PREPARERS_MAX)) {
        let inputs = inputs.clone();
        let mut recorder = shelf.recorder(Track::Registrar(index));
        scope.spawn("dunlin-prepare", move || {
            pool.serve(endpoint, &mut recorder, &inputs)
        })?;
    }
    Ok(())
}

/// The session thread's view of them.
pub(super) struct OpenRanges<'a> {
    ledger: Ledger,
    pool: &'a Pool,
    /// What OPEN or CLOSE said, until it was acted on.
    pub(super) asked: Vec<Run>,
}

impl<'a> OpenRanges<'a> {
    pub(super) fn new(budget_bytes: u64, pool: &'a Pool) -> Self {
        Self {
            ledger: Ledger::new(budget_bytes),
            pool,
            asked: Vec::new(),
        }
    }

    /// How many ranges are being opened.
    pub(super) fn opening(&self) -> usize {
        self.ledger.opening
    }

    fn open(&mut self, layout: &Layout) -> Result<(), RangeError> {
        let asked = std::mem::take(&mut self.asked);
        for range in &asked {
            self.ledger.open(layout, *range)?;
        }
        self.pool.jobs.order(asked.into_iter().map(Job::Open));
        Ok(())
    }

    fn close(&mut self) -> Result<(), RangeError> {
        let asked = std::mem::take(&mut self.asked);
        for range in &asked {
            self.ledger.close(*range)?;
        }
        self.pool.jobs.order(asked.into_iter().map(Job::Close));
        Ok(())
    }

    /// The messages for what is done.
    fn words(&mut self) -> Vec<Message> {
        let (mut grants, mut closed) = (Vec::new(), Vec::new());
        for done in self.pool.take_done() {
            match done {
                Done::Opened(grant) => {
                    self.ledger.opened(grant.range);
                    grants.push(grant);
                }
                Done::Closed(range) => {
                    self.ledger.closed(range);
                    closed.push(range);
                }
            }
        }
        let grants = grants.chunks(RANGES_IN_MESSAGE_MAX);
        let closed = closed.chunks(RANGES_IN_MESSAGE_MAX);
        let grants = grants.map(|grants| Message::Grants(Grants::new(grants)));
        grants
            .chain(closed.map(|closed| Message::Closed(Ranges::new(closed))))
            .collect()
    }
}

impl Drop for OpenRanges<'_> {
    /// The threads end with the session, however that ends: its scope waits for them.
    fn drop(&mut self) {
        self.pool.stop();
    }
}

impl<F: GuestFactory> Destination<'_, F> {
    /// OPEN or CLOSE came.
    pub(super) fn heard_ranges(
        &mut self,
        ranges: &Ranges,
        kind: MessageKind,
        event: Event,
    ) -> Event {
        let asked = match ranges.to_runs(kind) {
            Ok(asked) => asked,
            Err(error) => return self.failed(&error.to_string()),
        };
        // A transport whose lanes have identities: they are confirmed before anything is opened.
        if !self.session.has_confirmed_lanes() && !self.endpoint.contact().is_empty() {
            return self.failed(&format!("the source may not say {kind:?} now"));
        }
        match &mut self.ranges {
            Some(ranges) => ranges.asked = asked,
            None => return self.failed("the source asks for ranges where nothing is registered"),
        }
        event
    }

    pub(super) fn open_ranges(&mut self) -> Option<Event> {
        let layout = &self.hello.offer().layout;
        let opened = self.ranges.as_mut()?.open(layout);
        opened.err().map(|error| self.failed(&error.to_string()))
    }

    pub(super) fn close_ranges(&mut self) -> Option<Event> {
        let closed = self.ranges.as_mut()?.close();
        closed.err().map(|error| self.failed(&error.to_string()))
    }

    /// What was registered in the whole move, where anything is.
    pub(super) fn registrations(&self) -> Option<WireRegistrations> {
        let counters = self.endpoint.registrations();
        let has_registrations = self.endpoint.has_registrations();
        has_registrations.then_some(WireRegistrations {
            made: counters.made,
            ended: counters.ended,
            bytes_max: counters.bytes_max,
        })
    }

    pub(super) fn tell_ranges(&mut self) -> Option<Event> {
        let words = self.ranges.as_mut()?.words();
        words.iter().find_map(|word| self.send(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Backing, GuestAddress, RegionShape};

    fn run(first: u64, pages: u32) -> Run {
        Run {
            first: PageNumber(first),
            pages,
        }
    }

    /// Two regions, of 512 and 100 pages; the second begins at page 512.
    fn layout() -> Layout {
        let region = |(address, pages)| RegionShape {
            address: GuestAddress(address),
            bytes: pages * PAGE_BYTES,
            backing: Backing::Memfd,
            backing_page_bytes: PAGE_BYTES,
        };
        Layout::new(1, [(0, 512), (1 << 30, 100)].map(region).to_vec()).unwrap()
    }

    #[test]
    fn what_is_open_is_counted_until_it_is_closed() {
        let layout = &layout();
        let mut ledger = Ledger::new(300 * PAGE_BYTES);
        ledger.open(layout, run(0, 200)).unwrap();
        assert!(matches!(
            ledger.open(layout, run(200, 101)),
            Err(RangeError::OverBudget { .. })
        ));
        ledger.open(layout, run(200, 100)).unwrap();
        assert_eq!(ledger.opening, 2);
        // Nothing is closed before it is open, or in part, or twice.
        assert!(ledger.close(run(0, 200)).is_err());
        ledger.opened(run(0, 200));
        for other in [run(0, 199), run(1, 199), run(300, 5)] {
            assert!(ledger.close(other).is_err(), "{other:?}");
        }
        ledger.close(run(0, 200)).unwrap();
        assert!(ledger.close(run(0, 200)).is_err());
        // Its room is taken until it is closed.
        assert!(ledger.open(layout, run(512, 1)).is_err());
        ledger.closed(run(0, 200));
        ledger.open(layout, run(100, 100)).unwrap();
        assert_eq!((ledger.held_bytes, ledger.opening), (200 * PAGE_BYTES, 2));
    }

    #[test]
    fn what_is_no_memory_or_open_already_is_refused() {
        let layout = &layout();
        let mut ledger = Ledger::new(u64::MAX);
        for outside in [
            run(0, 513),
            run(511, 2),
            run(512, 101),
            run(612, 1),
            run(u64::MAX, 1),
            run(0, u32::MAX),
        ] {
            let opened = ledger.open(layout, outside);
            assert!(matches!(opened, Err(RangeError::Outside(_))), "{outside:?}");
        }
        ledger.open(layout, run(100, 100)).unwrap();
        for overlapping in [
            run(100, 100),
            run(99, 2),
            run(199, 1),
            run(0, 512),
            run(150, 1),
        ] {
            let opened = ledger.open(layout, overlapping);
            assert!(
                matches!(opened, Err(RangeError::Overlapping(_))),
                "{overlapping:?}"
            );
        }
        ledger.open(layout, run(200, 1)).unwrap();
        ledger.open(layout, run(99, 1)).unwrap();
    }

    #[test]
    fn ranges_are_bounded_in_number() {
        let pages = RANGES_MAX as u64 + 1;
        let shape = RegionShape {
            address: GuestAddress(0),
            bytes: pages * PAGE_BYTES,
            backing: Backing::Memfd,
            backing_page_bytes: PAGE_BYTES,
        };
        let layout = Layout::new(1, vec![shape]).unwrap();
        let mut ledger = Ledger::new(u64::MAX);
        for page in 0..RANGES_MAX as u64 {
            ledger.open(&layout, run(page, 1)).unwrap();
        }
        let opened = ledger.open(&layout, run(pages - 1, 1));
        assert!(matches!(opened, Err(RangeError::TooMany)));
    }
}
