//! Records what a guest's dirty sources report to the engine: stands between the two, and changes
//! nothing of it. It costs the encoding of each collection, also in the pause.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dunlin_engine::clock::Timestamp;
use dunlin_engine::dirty::{DirtyBitmap, DirtySource};
use dunlin_engine::guest::{Guest, GuestError, GuestOffer, HandoverCosts, PauseRecord, SelfCheck};
use dunlin_engine::layout::{GuestMemory, Layout};
use dunlin_engine::state::DeviceState;
use dunlin_transports::deadline::Deadline;
use dunlin_transports::memory::PageNumber;

use super::format::{FILE_BYTES_MAX, put_interval, whole};
use super::{Interval, regions_of, runs_of};

/// What a file has besides its intervals: the head, and at most 1024 regions of two numbers.
const HEAD_BYTES_MAX: u64 = 32 << 10;

/// Records one move at a time; the last one's trace is kept.
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Mutex<Recording>>);

#[derive(Debug)]
struct Recording {
    regions: Vec<(u64, u64)>,
    /// Whole intervals, as in the file, and how many.
    encoded: Vec<u8>,
    count: u64,
    is_cut: bool,
    /// When tracking began, or the last whole interval ended; `None` before tracking.
    since: Option<Timestamp>,
    /// The end of the interval that was collected last, to which other sources may add.
    open: Option<Timestamp>,
    /// Its pages. Made once: a large guest's would take milliseconds in the pause.
    pages: DirtyBitmap,
}

impl Recorder {
    /// A recorder for a guest with this layout.
    pub fn new(layout: &Layout) -> Self {
        Self(Arc::new(Mutex::new(Recording {
            regions: regions_of(layout),
            pages: DirtyBitmap::new(layout.page_span()),
            encoded: Vec::new(),
            count: 0,
            is_cut: false,
            since: None,
            open: None,
        })))
    }

    /// The trace as a file's bytes; `None` when nothing was tracked.
    pub fn finish(&self) -> Option<Vec<u8>> {
        let mut recording = self.lock();
        recording.since?;
        recording.close();
        Some(whole(
            &recording.regions,
            recording.is_cut,
            recording.count,
            &recording.encoded,
        ))
    }

    fn lock(&self) -> MutexGuard<'_, Recording> {
        // A trace that lacks what a panicking thread would have added is a trace.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recording {
    /// Tracking begins: what was recorded before belongs to a move that led nowhere.
    fn begin(&mut self) {
        self.encoded.clear();
        self.count = 0;
        self.is_cut = false;
        self.open = None;
        self.pages.clear();
        self.since = Some(Timestamp::now());
    }

    /// A source reported pages. The first of a guest's sources ends the interval, the others add to
    /// it.
    fn add(&mut self, pages: &DirtyBitmap, is_first: bool) {
        if is_first {
            self.close();
            self.open = Some(Timestamp::now());
        }
        if self.open.is_some() {
            self.pages.union(pages);
        }
    }

    /// Writes down the interval that was collected last.
    fn close(&mut self) {
        let Some(end) = self.open.take() else {
            return;
        };
        let runs = runs_of(self.pages.pages());
        self.pages.clear();
        let Some(since) = self.since.replace(end) else {
            return;
        };
        if self.is_cut {
            return;
        }
        let length = self.encoded.len();
        let interval = Interval {
            length: end.since(since),
            runs,
        };
        put_interval(&mut self.encoded, &interval);
        if self.encoded.len() as u64 > FILE_BYTES_MAX - HEAD_BYTES_MAX {
            self.encoded.truncate(length);
            self.is_cut = true;
        } else {
            self.count += 1;
        }
    }
}

/// A guest whose dirty sources are recorded while the engine moves it.
pub struct RecordedGuest<'a> {
    guest: &'a mut dyn Guest,
    recorder: Recorder,
}

impl<'a> RecordedGuest<'a> {
    /// Records a guest.
    pub fn new(guest: &'a mut dyn Guest, recorder: &Recorder) -> Self {
        Self {
            guest,
            recorder: recorder.clone(),
        }
    }
}

impl Guest for RecordedGuest<'_> {
    fn offer(&self) -> Result<GuestOffer, GuestError> {
        self.guest.offer()
    }

    fn memory(&self) -> &GuestMemory {
        self.guest.memory()
    }

    fn dirty_sources(&self) -> Vec<Arc<dyn DirtySource>> {
        let page_span = self.guest.memory().layout().page_span();
        let sources = self.guest.dirty_sources().into_iter().enumerate();
        let recorded = sources.map(|(place, source)| {
            let recorded = RecordedSource {
                source,
                recorder: self.recorder.clone(),
                is_first: place == 0,
                reported: Mutex::new(DirtyBitmap::new(page_span)),
            };
            Arc::new(recorded) as Arc<dyn DirtySource>
        });
        recorded.collect()
    }

    fn pause(&mut self, deadline: Deadline) -> Result<PauseRecord, GuestError> {
        self.guest.pause(deadline)
    }

    fn save_state(&mut self) -> Result<DeviceState, GuestError> {
        self.guest.save_state()
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.guest.resume()
    }

    fn handover_costs(&self) -> HandoverCosts {
        self.guest.handover_costs()
    }

    fn self_check(&self) -> Option<Arc<dyn SelfCheck>> {
        self.guest.self_check()
    }
}

struct RecordedSource {
    source: Arc<dyn DirtySource>,
    recorder: Recorder,
    is_first: bool,
    /// What one collection reports; empty between two.
    reported: Mutex<DirtyBitmap>,
}

impl DirtySource for RecordedSource {
    fn name(&self) -> &'static str {
        self.source.name()
    }

    fn start(&self) -> Result<(), GuestError> {
        if self.is_first {
            self.recorder.lock().begin();
        }
        self.source.start()
    }

    fn collect(&self, into: &mut DirtyBitmap) -> Result<(), GuestError> {
        // Apart from `into`, in which pages may be that were reported before.
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = self.source.collect(&mut reported);
        // An error forgets nothing: what was reported all the same goes on.
        into.union(&reported);
        if outcome.is_ok() {
            self.recorder.lock().add(&reported, self.is_first);
        }
        reported.clear();
        outcome
    }

    fn rearms_on_collect(&self) -> bool {
        self.source.rearms_on_collect()
    }

    fn rearm(&self, first: PageNumber, words: &[u64]) -> Result<(), GuestError> {
        self.source.rearm(first, words)
    }

    fn stop(&self) -> Result<(), GuestError> {
        self.source.stop()
    }
}

#[cfg(test)]
mod tests {
    use dunlin_engine::dirty::MarkedPages;
    use dunlin_engine::layout::Backing;

    use super::*;
    use crate::dirty_trace::DirtyTrace;
    use crate::memory::pc_layout;

    fn recorded(recorder: &Recorder, source: Arc<MarkedPages>, is_first: bool) -> RecordedSource {
        RecordedSource {
            source,
            recorder: recorder.clone(),
            is_first,
            reported: Mutex::new(DirtyBitmap::new(4096)),
        }
    }

    #[test]
    fn collections_of_all_sources_become_intervals_and_nothing_is_kept_from_the_engine() {
        let layout = pc_layout(16 << 20, Backing::Memfd).unwrap();
        let recorder = Recorder::new(&layout);
        assert_eq!(recorder.finish(), None);
        let marks = [(); 2].map(|()| Arc::new(MarkedPages::new(layout.page_span())));
        let first = recorded(&recorder, Arc::clone(&marks[0]), true);
        let second = recorded(&recorder, Arc::clone(&marks[1]), false);
        // A move that led nowhere leaves nothing.
        first.start().unwrap();
        marks[0].mark(PageNumber(77));
        first.collect(&mut DirtyBitmap::new(4096)).unwrap();
        first.start().unwrap();
        second.start().unwrap();
        let mut pending = DirtyBitmap::new(4096);
        pending.set(PageNumber(4000));
        for pages in [[5, 9], [9, 10]] {
            marks[0].mark(PageNumber(pages[0]));
            marks[1].mark(PageNumber(pages[1]));
            first.collect(&mut pending).unwrap();
            second.collect(&mut pending).unwrap();
        }
        let collected: Vec<u64> = pending.pages().map(|page| page.0).collect();
        assert_eq!(collected, [5, 9, 10, 4000]);
        let trace = DirtyTrace::decode(&recorder.finish().unwrap()).unwrap();
        assert!(trace.fits(&layout) && !trace.is_cut);
        let runs: Vec<_> = trace.intervals.iter().map(|one| one.runs.clone()).collect();
        assert_eq!(runs, [vec![(5, 1), (9, 1)], vec![(9, 2)]]);
    }

    #[test]
    fn a_recording_that_grows_too_long_is_cut() {
        let layout = pc_layout(4 << 30, Backing::Memfd).unwrap();
        let recorder = Recorder::new(&layout);
        let mut recording = recorder.lock();
        recording.begin();
        let mut scattered = DirtyBitmap::new(layout.page_span());
        (0..layout.page_span())
            .step_by(2)
            .for_each(|page| scattered.set(PageNumber(page)));
        // A MiB each.
        (0..17).for_each(|_| recording.add(&scattered, true));
        drop(recording);
        let bytes = recorder.finish().unwrap();
        assert!(bytes.len() as u64 <= FILE_BYTES_MAX);
        let trace = DirtyTrace::decode(&bytes).unwrap();
        assert!(trace.is_cut);
        assert_eq!(trace.intervals.len(), 15);
    }
}
