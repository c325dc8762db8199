//! Where recorders lie once their threads are done with them, until all are merged.
//!
//! A recorder that is [`Kept`] gets here by itself when it is dropped, however its thread ends.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::{DestinationLane, LaneObserver, LaneWork, SourceLane};
use dunlin_transports::runtime;

use super::declaration::End;
use super::{Operation, Recorder, Recording, Track};
use crate::clock::Timestamp;

/// What a lane itself tells of: its thread records the rest.
const OF_THE_LANE: [Operation; 6] = [
    Operation::Put4KiB,
    Operation::Put64KiB,
    Operation::Put1MiB,
    Operation::PutMore,
    Operation::Submission,
    Operation::Receive,
];

/// How often it is looked whether a recorder has come.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// One end's recorders. Clones are the same shelf.
#[derive(Clone)]
pub(crate) struct Shelf {
    end: End,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Recorders that are still out.
    out: usize,
    done: Vec<Recorder>,
}

impl Shelf {
    /// An empty one.
    pub(crate) fn new(end: End) -> Self {
        Self {
            end,
            state: Arc::default(),
        }
    }

    /// A recorder of the thread `track`. Allocates.
    pub(crate) fn recorder(&self, track: Track) -> Kept {
        let recorder = match track {
            Track::Lane(_) => Recorder::beside(self.end, track, &OF_THE_LANE),
            Track::Control => Recorder::beside(self.end, track, &[Operation::ControlRoundTrip]),
            _ => Recorder::new(self.end, track),
        };
        self.keep(recorder)
    }

    /// The recorder of the thread that reads the control connection.
    pub(crate) fn reader(&self) -> Kept {
        let operations = [Operation::ControlRoundTrip];
        let recorder = Recorder::of_operations(self.end, Track::Control, &operations);
        self.keep(recorder)
    }

    /// The recorder of a thread that does nothing but register memory, before the move.
    pub(crate) fn registrar(&self) -> Kept {
        let operations = [Operation::Registration];
        let recorder = Recorder::of_operations(self.end, Track::Registrar(0), &operations);
        self.keep(recorder)
    }

    /// Makes a lane tell how long its own work takes.
    pub(crate) fn observe_source(&self, lane: &mut dyn SourceLane) {
        if cfg!(feature = "telemetry") {
            lane.observe(self.observer(lane.number().0));
        }
    }

    /// As [`Shelf::observe_source`].
    pub(crate) fn observe_destination(&self, lane: &mut dyn DestinationLane) {
        if cfg!(feature = "telemetry") {
            lane.observe(self.observer(lane.number().0));
        }
    }

    fn observer(&self, lane: u16) -> Box<dyn LaneObserver> {
        let recorder = Recorder::of_operations(self.end, Track::Lane(lane), &OF_THE_LANE);
        Box::new(self.keep(recorder))
    }

    fn keep(&self, recorder: Recorder) -> Kept {
        self.with(|state| state.out += 1);
        Kept {
            recorder,
            shelf: self.clone(),
            is_out: true,
        }
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What all recorders measured that lie here. Those that are out are waited for, up to the
    /// deadline.
    pub(crate) fn merge(&self, deadline: Deadline) -> Recording {
        while self.with(|state| state.out > 0) && !deadline.passed() {
            runtime::sleep(LOOK_INTERVAL);
        }
        Recording::merge(self.with(|state| std::mem::take(&mut state.done)))
    }
}

/// A recorder that gets back to its shelf when it is dropped.
pub(crate) struct Kept {
    recorder: Recorder,
    shelf: Shelf,
    /// Whether it is waited for.
    is_out: bool,
}

impl Kept {
    /// Puts what was recorded so far onto the shelf; what follows is not told any more.
    pub(crate) fn end(&mut self) {
        if !std::mem::replace(&mut self.is_out, false) {
            return;
        }
        let nothing = Recorder::of_operations(self.shelf.end, Track::Control, &[]);
        let recorder = std::mem::replace(&mut self.recorder, nothing);
        self.shelf.with(|state| {
            state.out = state.out.saturating_sub(1);
            state.done.push(recorder);
        });
    }
}

impl Deref for Kept {
    type Target = Recorder;

    fn deref(&self) -> &Recorder {
        &self.recorder
    }
}

impl DerefMut for Kept {
    fn deref_mut(&mut self) -> &mut Recorder {
        &mut self.recorder
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.end();
    }
}

impl LaneObserver for Kept {
    fn now(&self) -> u64 {
        Timestamp::now().0
    }

    fn took(&mut self, work: LaneWork, begun: u64, ended: u64) {
        let operation = match work {
            LaneWork::Put { bytes } => Operation::put(bytes),
            LaneWork::Submission => Operation::Submission,
            LaneWork::Receive => Operation::Receive,
        };
        let duration = Duration::from_nanos(ended.saturating_sub(begun));
        self.recorder.took(operation, duration);
    }
}

#[cfg(all(test, feature = "telemetry"))]
mod tests {
    use super::*;
    use crate::telemetry::{Counter, Moment};

    const AT_ONCE: Duration = Duration::ZERO;

    fn merged(shelf: &Shelf) -> Recording {
        shelf.merge(Deadline::after(AT_ONCE))
    }

    #[test]
    fn a_recorder_comes_back_however_its_thread_ends() {
        let shelf = Shelf::new(End::Source);
        let mut recorder = shelf.recorder(Track::Control);
        let thread = std::thread::spawn(move || {
            recorder.count(Counter::Rounds, 3);
            std::panic::panic_any("a thread that ends early");
        });
        assert!(thread.join().is_err());
        let told = merged(&shelf).measurements;
        assert_eq!(told.counters[&Counter::Rounds], 3);
    }

    #[test]
    fn what_follows_the_end_is_not_told_and_nobody_waits_for_it() {
        let shelf = Shelf::new(End::Source);
        let mut recorder = shelf.recorder(Track::Control);
        let at = Moment::at(Timestamp(1));
        recorder.between(Operation::Harvest, at, at);
        recorder.end();
        recorder.end();
        recorder.between(Operation::Harvest, at, at);
        assert_eq!(shelf.with(|state| (state.out, state.done.len())), (0, 1));
        let told = merged(&shelf).measurements;
        assert_eq!(told.operation(Operation::Harvest).unwrap().summary.count, 1);
        drop(recorder);
        assert_eq!(shelf.with(|state| (state.out, state.done.len())), (0, 0));
    }

    /// A thread that never ends costs the time that was given, and what it recorded.
    #[test]
    fn recorders_that_are_out_are_waited_for_in_vain_up_to_the_deadline() {
        let shelf = Shelf::new(End::Destination);
        let mut out = shelf.recorder(Track::Lane(1));
        out.count(Counter::Runs, 1);
        let mut here = shelf.recorder(Track::Lane(0));
        here.count(Counter::Runs, 2);
        drop(here);
        let told = shelf.merge(Deadline::after(LOOK_INTERVAL)).measurements;
        assert_eq!(told.counters[&Counter::Runs], 2);
    }

    /// A lane's thread and the lane itself each have a recorder: together they are one lane.
    #[test]
    fn the_two_recorders_of_a_lane_are_told_as_one() {
        let shelf = Shelf::new(End::Source);
        let mut thread = shelf.recorder(Track::Lane(4));
        let at = Moment::at(Timestamp(1));
        thread.between(Operation::Fence, at, at);
        let mut lane = shelf.observer(4);
        lane.took(LaneWork::Put { bytes: 4096 }, 10, 20);
        drop((thread, lane));
        let told = merged(&shelf).measurements;
        assert_eq!((told.lanes.len(), told.misplaced), (1, 0));
        let names: Vec<_> = told.lanes[0].operations.iter().map(|o| o.name).collect();
        assert_eq!(names, [Operation::Put4KiB, Operation::Fence]);
    }
}
