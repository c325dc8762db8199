//! The threads of the window: one walks through each round ahead of the lanes, a few register.

use std::sync::Arc;

use dunlin_transports::lane::{LaneError, SourceEndpoint};
use dunlin_transports::memory::Run;
use dunlin_transports::runtime::{Receiver, Scope, Sender, SyncSender, channel};

use super::super::lanes::{LaneContext, Round};
use super::{Job, NAP, Step, Walk, Window, list_dirty};
use crate::link::Speaker;
use crate::planted;
use crate::protocol::{Message, RANGES_IN_MESSAGE_MAX, Ranges};
use crate::telemetry::{Operation, Recorder, Shelf, SpanName, Track};

/// How many threads register at most: beyond some few they wait for the same locks of the kernel,
/// and the lanes need processors too.
const REGISTERING_MAX: usize = 4;

/// How many ranges one OPEN names at most. The first ones of a round name fewer, so that lanes need
/// not wait for a whole batch.
const BATCH_MAX: usize = 32;

/// Lanes that wait are told once in so many chunks of a stretch that was never touched, not of each:
/// waking them costs more than the step.
const SKIPPED_UNTOLD_MAX: u32 = 32;

/// Through what to walk.
pub(in crate::source) enum WalkOrder {
    /// A round whose chunks lanes claim.
    Round(Arc<Round>),
    /// The chunks of a round that was begun already.
    Begun(Vec<u64>),
    /// What a round will need, while nobody follows.
    Ahead(Vec<u64>),
}

/// A word of the window's threads.
#[derive(Debug)]
pub(in crate::source) enum WindowDone {
    /// The walk that was ordered is over. The list that was given with it comes back.
    Walked(Vec<u64>),
    /// This side could not register.
    Failed(LaneError),
    /// The destination could not be asked.
    Unsaid(String),
}

/// Starts the threads. They end when the sender of orders is dropped and the window is stopped.
pub(in crate::source) fn start<'scope, 'env, E>(
    scope: &Scope<'scope, 'env>,
    window: &Arc<Window>,
    endpoint: &'env dyn SourceEndpoint,
    context: &'env LaneContext<'env>,
    speaker: Speaker,
    done: &SyncSender<E>,
    shelf: &Shelf,
) -> std::io::Result<Sender<WalkOrder>>
where
    E: From<WindowDone> + Send + 'static,
{
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for index in (0..).take(cores.min(REGISTERING_MAX)) {
        let (window, done) = (Arc::clone(window), done.clone());
        let mut recorder = shelf.recorder(Track::Registrar(index));
        scope.spawn("dunlin-register", move || {
            register(&window, endpoint, &mut recorder, &done)
        })?;
    }
    let (sender, orders) = channel();
    let (window, done) = (Arc::clone(window), done.clone());
    let mut walker = Walker {
        window,
        context,
        speaker,
        batch: 1,
        opening: Vec::new(),
        closing: Vec::new(),
    };
    scope.spawn("dunlin-open", move || walker.serve(&orders, &done))?;
    Ok(sender)
}

/// Prepares and retires what is asked for, until the window is stopped.
fn register<E: From<WindowDone>>(
    window: &Window,
    endpoint: &dyn SourceEndpoint,
    recorder: &mut Recorder,
    done: &SyncSender<E>,
) {
    while let Some(job) = window.jobs.next() {
        let begun = recorder.now();
        planted::delay("source:registration");
        let (result, operation) = match job {
            Job::Prepare(named) => (endpoint.prepare(named.run), Operation::Registration),
            Job::Retire(named) => (endpoint.retire(named.run), Operation::Deregistration),
        };
        let done_at = recorder.done(operation, begun);
        if operation == Operation::Registration {
            recorder.span(SpanName::Register, begun, done_at);
        }
        match result {
            Ok(()) => window.job_done(job),
            Err(error) => {
                let _ = done.send(WindowDone::Failed(error).into());
                return;
            }
        }
    }
}

impl Window {
    fn job_done(&self, job: Job) {
        let mut state = self.state.lock();
        let is_done = match job {
            Job::Prepare(named) => state.plan.set.prepared(named.id),
            Job::Retire(named) => state.plan.set.retired(named.id),
        };
        state.note_progress();
        if is_done {
            self.changed(state.waiting);
        }
    }
}

/// Why a walk ended before its end.
enum Cut {
    Stopped,
    Unsaid(String),
}

struct Walker<'env> {
    window: Arc<Window>,
    context: &'env LaneContext<'env>,
    speaker: Speaker,
    /// How many ranges the next OPEN names.
    batch: usize,
    /// Ranges that the destination has yet to be asked for.
    opening: Vec<Run>,
    closing: Vec<Run>,
}

impl Walker<'_> {
    fn serve<E: From<WindowDone>>(&mut self, orders: &Receiver<WalkOrder>, done: &SyncSender<E>) {
        let mut chunks = Vec::new();
        while let Ok(order) = orders.recv() {
            self.batch = 1;
            let walked = match order {
                WalkOrder::Round(round) => {
                    list_dirty(&self.window.chunks, &round.dirty, &mut chunks);
                    self.begin(Walk::Followed, &chunks);
                    let walked = self.walk(&chunks, round.is_first);
                    walked.map(|()| Vec::new())
                }
                WalkOrder::Begun(chunks) => self.walk(&chunks, false).map(|()| chunks),
                WalkOrder::Ahead(chunks) => {
                    self.window.reset();
                    self.begin(Walk::Ahead, &chunks);
                    let walked = self.walk(&chunks, false);
                    walked
                        .and_then(|()| self.wait_until_open())
                        .map(|()| chunks)
                }
            };
            let word = match walked {
                Ok(chunks) => WindowDone::Walked(chunks),
                Err(Cut::Unsaid(reason)) => WindowDone::Unsaid(reason),
                Err(Cut::Stopped) => return,
            };
            if done.send(word.into()).is_err() {
                return;
            }
        }
    }

    fn begin(&self, walk: Walk, chunks: &[u64]) {
        self.window.state.lock().plan.begin(walk, chunks);
    }

    /// Goes through chunks in ascending order. `is_first`: some may be untouched.
    fn walk(&mut self, chunks: &[u64], is_first: bool) -> Result<(), Cut> {
        let mut at = 0;
        // How many from `at` on are known to be touched.
        let mut touched = 0;
        // Chunks skipped of which no lane was told.
        let mut untold = 0;
        while let Some(chunk) = chunks.get(at).copied() {
            touched = self.stretch(chunks, at, touched, is_first);
            if touched == 0 {
                // Lanes wait for what was decided on, and the rest of the hole may take its time.
                self.say()?;
                let mut state = self.window.state.lock();
                if state.is_stopped {
                    return Err(Cut::Stopped);
                }
                state.plan.skip(chunk);
                untold += 1;
                if untold >= SKIPPED_UNTOLD_MAX {
                    self.window.changed(state.waiting);
                    untold = 0;
                }
                at += 1;
                continue;
            }
            if std::mem::take(&mut untold) > 0 {
                let waiting = self.window.state.lock().waiting;
                self.window.changed(waiting);
            }
            let walked = self.reach(chunk, touched as u64)?;
            if walked == 0 {
                break;
            }
            at += walked;
            touched = touched.saturating_sub(walked);
        }
        self.say()?;
        let mut state = self.window.state.lock();
        state.plan.end_walk();
        self.window.changed(state.waiting);
        Ok(())
    }

    /// How many neighbouring chunks from `at` on, as many as a range may have, are to be opened
    /// together; `known` of them are known to be touched.
    fn stretch(&self, chunks: &[u64], at: usize, known: usize, is_first: bool) -> usize {
        let state = self.window.state.lock();
        let all = &self.window.chunks;
        let most = state.plan.set.range_chunks() as usize;
        let is_covered = chunks
            .get(at)
            .is_some_and(|chunk| state.plan.set.is_covered(*chunk));
        drop(state);
        if is_covered {
            return 1;
        }
        let mut before = None;
        let list = chunks.get(at..).unwrap_or_default().iter().take(most);
        let needed = list.enumerate().take_while(|(place, chunk)| {
            let is_next = before
                .replace(**chunk)
                .is_none_or(|before| before + 1 == **chunk && !all.begins_region(**chunk));
            let is_touched = || {
                let chunk = all.chunk(**chunk);
                chunk.is_some_and(|chunk| !self.context.is_untouched(chunk))
            };
            is_next && (*place < known || !is_first || is_touched())
        });
        needed.count()
    }

    /// Sees to it that a chunk is open, or being opened; how many chunks that took, 0 when there is
    /// no room for it.
    fn reach(&mut self, chunk: u64, stretch: u64) -> Result<usize, Cut> {
        loop {
            let mut state = self.window.state.lock();
            if state.is_stopped {
                return Err(Cut::Stopped);
            }
            match state.plan.reach(chunk, stretch) {
                Step::Covered => {
                    self.window.changed(state.waiting);
                    return Ok(1);
                }
                Step::Full => return Ok(0),
                Step::Open(named, chunks) => {
                    state.note_progress();
                    self.window.changed(state.waiting);
                    drop(state);
                    self.window.jobs.order([Job::Prepare(named)]);
                    self.opening.push(named.run);
                    if self.opening.len() >= self.batch {
                        self.say()?;
                        self.batch = (self.batch * 2).min(BATCH_MAX);
                    }
                    return Ok(chunks as usize);
                }
                Step::Close(named) => {
                    state.note_progress();
                    drop(state);
                    self.window.jobs.order([Job::Retire(named)]);
                    self.closing.push(named.run);
                    if self.closing.len() >= RANGES_IN_MESSAGE_MAX {
                        self.say()?;
                    }
                }
                Step::Wait => {
                    if !self.opening.is_empty() || !self.closing.is_empty() {
                        drop(state);
                        self.say()?;
                        continue;
                    }
                    // A new portion may have begun: who waits for it has to pass.
                    self.window.changed(state.waiting);
                    state.waiting += 1;
                    let mut state = self.window.state.wait_timeout(state, NAP);
                    state.waiting -= 1;
                }
            }
        }
    }

    /// Asks the destination for what was decided on.
    fn say(&mut self) -> Result<(), Cut> {
        let speaker = &self.speaker;
        let send = |message| {
            let sent = speaker.send(&message);
            sent.map_err(|error| Cut::Unsaid(error.to_string()))
        };
        // Closing first: the room that it makes may be needed for what is opened.
        if !self.closing.is_empty() {
            send(Message::Close(Ranges::new(&self.closing)))?;
            self.closing.clear();
        }
        if !self.opening.is_empty() {
            send(Message::Open(Ranges::new(&self.opening)))?;
            self.opening.clear();
        }
        Ok(())
    }

    /// Waits until all that was asked for is open.
    fn wait_until_open(&self) -> Result<(), Cut> {
        let mut state = self.window.state.lock();
        while state.plan.set.under_way().0 > 0 {
            if state.is_stopped {
                return Err(Cut::Stopped);
            }
            state.waiting += 1;
            state = self.window.state.wait_timeout(state, NAP);
            state.waiting -= 1;
        }
        Ok(())
    }
}
