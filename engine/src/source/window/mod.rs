//! The window: which ranges of guest memory are registered on both sides, opened ahead of the lanes
//! and closed behind them, so that no more than a budget is pinned at once. Only for transports with
//! registrations.
//!
//! ```text
//!   walk (one thread) ── job ──▶ register (a few threads): prepare, retire ──┐
//!     │ ── OPEN, CLOSE ──▶ destination ── GRANTS, CLOSED ──▶ session's thread ┤
//!     │                                                                      ▼
//!     └───────────────────────────────────────────────── plan, behind one lock ◀── lanes at the gate
//! ```
//!
//! A round is walked in the order in which lanes take its chunks, in **portions** of half the
//! window: lanes work in one while the next is opened. A lane that goes on to a later portion has a
//! fence confirmed first, and so **passes** the earlier ones; a range is closed only when all lanes
//! have passed it. Where all that a round needs fits, there is one portion and nothing to pass.
//!
//! | room | what is in it |
//! |---|---|
//! | here | what is shared, and what lanes and the session's thread ask of it |
//! | `open_set` | the ranges, and how each gets from stage to stage |
//! | `plan` | which of them is opened and closed when: rules alone |
//! | `walk` | the thread that goes ahead of the lanes, and those that register |

mod open_set;
mod plan;
mod walk;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dunlin_transports::lane::LaneNumber;
use dunlin_transports::memory::{PageNumber, Run};
use dunlin_transports::runtime::Monitor;

use self::open_set::{Named, OpenSet};
use self::plan::{Plan, Standing, Step, Walk};
pub(super) use self::walk::{WalkOrder, WindowDone, start};
use crate::chunk::{CHUNK_PAGES, Chunk, ChunkPlan, add_shares};
use crate::clock::Timestamp;
use crate::dirty::DirtyBitmap;
use crate::jobs::Jobs;
use crate::layout::Layout;

/// How long a thread waits at a time before it looks whether it shall stop.
const NAP: Duration = Duration::from_millis(100);

/// What a lane is told about a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// It may be put.
    Open,
    /// It was never touched, and is not open.
    Unneeded,
    /// It lies in this portion or a later one: have a fence confirmed, pass, and ask again.
    Behind(u32),
    /// The move is over.
    Stopped,
}

/// What opening took so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OpeningTally {
    pub(super) closed: u64,
    pub(super) opened_bytes: u64,
    /// The time in which at least one range was being opened.
    pub(super) opening: Duration,
}

/// What has to be opened for a final round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unopened {
    /// Bytes of chunks that are not open.
    pub(super) bytes: u64,
    /// Of these, what can't be opened before the pause, since not all fits.
    pub(super) in_pause_bytes: u64,
    /// How often every lane would have to go on from one portion to the next.
    pub(super) crossings: u32,
}

/// Work for the threads that register.
#[derive(Clone, Copy)]
enum Job {
    Prepare(Named),
    Retire(Named),
}

struct State {
    plan: Plan,
    is_stopped: bool,
    /// Lanes and walks that wait for a change.
    waiting: u32,
    /// Lanes that stand at the gate.
    at_gate: usize,
    /// When a range was last opened, closed, or asked for, or a lane came to the gate.
    progress: Timestamp,
    opening_since: Option<Timestamp>,
    opening: Duration,
}

/// What is shared between the walk, the threads that register, the lanes and the session's thread.
pub(super) struct Window {
    bytes: u64,
    chunks: ChunkPlan,
    state: Monitor<State>,
    jobs: Jobs<Job>,
    /// Pages that were touched behind the walk's back, a bit each: collected and re-armed already.
    postponed: Vec<AtomicU64>,
    has_postponed: AtomicBool,
}

impl State {
    fn note_progress(&mut self) {
        let now = Timestamp::now();
        self.progress = now;
        let (opening, _) = self.plan.set.under_way();
        match self.opening_since {
            None if opening > 0 => self.opening_since = Some(now),
            Some(since) if opening == 0 => {
                self.opening += now.since(since);
                self.opening_since = None;
            }
            _ => {}
        }
    }
}

impl Window {
    /// A window of so many bytes; `None` when that is too few for a chunk to be opened beside
    /// another that is being closed.
    pub(super) fn new(layout: &Layout, bytes: u64, lanes: usize) -> Option<Self> {
        let words = usize::try_from(layout.page_span().div_ceil(64)).unwrap_or(usize::MAX);
        let chunks = ChunkPlan::new(layout, CHUNK_PAGES);
        let plan = Plan::new(chunks.clone(), bytes, lanes);
        (bytes >= plan::WINDOW_BYTES_MIN).then(|| Self {
            bytes,
            chunks,
            jobs: Jobs::default(),
            state: Monitor::new(State {
                plan,
                is_stopped: false,
                waiting: 0,
                at_gate: 0,
                progress: Timestamp::now(),
                opening_since: None,
                opening: Duration::ZERO,
            }),
            postponed: std::iter::repeat_with(|| AtomicU64::new(0))
                .take(words)
                .collect(),
            has_postponed: AtomicBool::new(false),
        })
    }

    /// How many bytes may be open at once.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Ends every wait.
    pub(super) fn stop(&self) {
        self.state.lock().is_stopped = true;
        self.state.notify_all();
        self.jobs.stop();
    }

    fn changed(&self, waiting: u32) {
        if waiting > 0 {
            self.state.notify_all();
        }
    }

    // ---- lanes ----

    /// A lane asks for a chunk of its round, or a part of one. `portion` is where it is, and
    /// `is_fenced` whether all that it put is confirmed. Waits until the chunk can be used, and adds
    /// the time to `waited`. Meanwhile the lane's device is looked at by `look`, now and then: it is
    /// only the lane that hears of a link that went down.
    ///
    /// # Errors
    ///
    /// What `look` says.
    pub(super) fn ask<E>(
        &self,
        lane: LaneNumber,
        first: PageNumber,
        portion: &mut u32,
        is_fenced: bool,
        waited: &mut Duration,
        mut look: impl FnMut() -> Result<(), E>,
    ) -> Result<Gate, E> {
        let Some(chunk) = self.chunks.number_of(first) else {
            return Ok(Gate::Unneeded);
        };
        let mut state = self.state.lock();
        let mut waiting_since = None;
        let mut looked = Timestamp::now();
        let gate = loop {
            if state.is_stopped {
                break Ok(Gate::Stopped);
            }
            let (reached, is_open) = match state.plan.standing(chunk) {
                Standing::Unneeded => break Ok(Gate::Unneeded),
                Standing::Unreached(reached) | Standing::Opening(reached) => (reached, false),
                Standing::Open(reached) => (reached, true),
            };
            if *portion < reached {
                // Also where the chunk is not open yet: its room may be what this lane holds up.
                if !is_fenced {
                    break Ok(Gate::Behind(reached));
                }
                *portion = reached;
                if state.plan.pass(usize::from(lane.0), reached) {
                    self.changed(state.waiting);
                }
            }
            if is_open {
                break Ok(Gate::Open);
            }
            if waiting_since.is_none() {
                state.progress = Timestamp::now();
                state.at_gate += 1;
                waiting_since = Some(state.progress);
            }
            // Not each time that anything is opened: it is a system call.
            if Timestamp::now().since(looked) >= NAP {
                if let Err(error) = look() {
                    break Err(error);
                }
                looked = Timestamp::now();
            }
            state.waiting += 1;
            state = self.state.wait_timeout(state, NAP);
            state.waiting -= 1;
        };
        if let Some(since) = waiting_since {
            state.at_gate -= 1;
            *waited += Timestamp::now().since(since);
        }
        gate
    }

    /// A lane is past all portions before this one: it puts nothing there any more, and all that it
    /// put is confirmed.
    pub(super) fn pass(&self, lane: LaneNumber, portion: u32) {
        let mut state = self.state.lock();
        if state.plan.pass(usize::from(lane.0), portion) {
            self.changed(state.waiting);
        }
    }

    /// Whether lanes have to pass portions in this round, so that what they put has to be confirmed
    /// at its end too.
    pub(super) fn has_portions(&self) -> bool {
        self.state.lock().plan.has_portions()
    }

    /// Pages of a chunk that is not open: they go into the next collection.
    pub(super) fn postpone(&self, runs: &[Run]) {
        for page in runs.iter().flat_map(|run| run.first.0..run.end().0) {
            if let Some(word) = self.postponed.get((page / 64) as usize) {
                // Relaxed: the round's end, a channel there and back, orders it.
                word.fetch_or(1 << (page % 64), Ordering::Relaxed);
            }
        }
        self.has_postponed.store(true, Ordering::Release);
    }

    // ---- the session's thread ----

    /// Adds the postponed pages to `pending`. Between rounds.
    pub(super) fn take_postponed(&self, pending: &mut DirtyBitmap) {
        if !self.has_postponed.swap(false, Ordering::AcqRel) {
            return;
        }
        for (index, postponed) in self.postponed.iter().enumerate() {
            let bits = postponed.swap(0, Ordering::Relaxed);
            pending.add_words(index, &[bits]);
        }
    }

    /// A round is about to be walked: lanes wait until it is.
    pub(super) fn reset(&self) {
        self.state.lock().plan.reset();
    }

    /// Shares out a final round's pages, portion by portion, and puts its chunks into `chunks`.
    /// Whether it has to be walked; where everything is open already it has not.
    pub(super) fn divide(
        &self,
        dirty: &DirtyBitmap,
        chunks: &mut Vec<u64>,
        shares: &mut [Vec<Chunk>],
    ) -> bool {
        list_dirty(&self.chunks, dirty, chunks);
        let plan = &mut self.state.lock().plan;
        let mut share = |portion: &[u64]| {
            let portion = || {
                portion
                    .iter()
                    .filter_map(|number| self.chunks.chunk(*number))
            };
            let total = portion().map(|chunk| dirty_pages(chunk.words(dirty))).sum();
            add_shares(dirty, portion(), total, shares);
        };
        plan.reset();
        plan.begin(Walk::Followed, chunks);
        if !plan.are_open(chunks) {
            plan.lay_out(chunks, share);
            return true;
        }
        share(chunks);
        for chunk in chunks.iter() {
            plan.reach(*chunk, 1);
        }
        plan.end_walk();
        false
    }

    /// What would have to be opened for a final round of these pages.
    pub(super) fn unopened(&self, dirty: &DirtyBitmap, chunks: &mut Vec<u64>) -> Unopened {
        list_dirty(&self.chunks, dirty, chunks);
        let state = self.state.lock();
        let portions = state.plan.portions(chunks);
        let bytes = state.plan.unopened_bytes(chunks);
        Unopened {
            bytes,
            in_pause_bytes: if portions > 1 { bytes } else { 0 },
            crossings: u32::try_from(portions.saturating_sub(1)).unwrap_or(u32::MAX),
        }
    }

    /// The destination has granted a range. Whether that was due.
    pub(super) fn granted(&self, run: Run) -> bool {
        self.heard(|set| set.granted(run))
    }

    /// The destination has closed a range. Whether that was due.
    pub(super) fn closed(&self, run: Run) -> bool {
        self.heard(|set| set.closed(run))
    }

    fn heard(&self, hear: impl FnOnce(&mut OpenSet) -> Option<bool>) -> bool {
        let mut state = self.state.lock();
        let Some(is_done) = hear(&mut state.plan.set) else {
            return false;
        };
        state.note_progress();
        if is_done {
            self.changed(state.waiting);
        }
        true
    }

    /// Whether this side waits for such a grant; before it is given to the endpoint.
    pub(super) fn awaits_grant(&self, run: Run) -> bool {
        self.state.lock().plan.set.awaits_grant(run)
    }

    /// What is waited for, where nothing has been opened or closed for `limit` though it is due; or
    /// where all lanes wait and nothing is, which would be an error of this program.
    pub(super) fn overdue(&self, limit: Duration) -> Option<String> {
        let state = self.state.lock();
        let (opening, closing) = state.plan.set.under_way();
        let waited = Timestamp::now().since(state.progress);
        if waited < limit {
            return None;
        }
        if opening + closing == 0 {
            let is_stuck = state.at_gate > 0 && state.at_gate >= state.plan.lanes_on_the_way();
            return is_stuck.then(|| "all lanes wait for memory, and none is asked for".to_owned());
        }
        let first = state.plan.set.first_under_way()?;
        Some(format!(
            "no range was opened or closed for {} ms; {opening} are being opened, {closing} closed, \
             {} pages at {} among them",
            waited.as_millis(),
            first.pages,
            first.first
        ))
    }

    /// What opening took so far, and how often lanes had to pass in this round.
    pub(super) fn tally(&self) -> (OpeningTally, u32) {
        let state = self.state.lock();
        let tally = state.plan.set.tally();
        let tally = OpeningTally {
            closed: tally.closed,
            opened_bytes: tally.opened_bytes,
            opening: state.opening,
        };
        (tally, state.plan.crossings())
    }
}

/// Puts the numbers of the chunks that have dirty pages into `chunks`.
fn list_dirty(plan: &ChunkPlan, dirty: &DirtyBitmap, chunks: &mut Vec<u64>) {
    chunks.clear();
    chunks.extend(plan.dirty_chunks(dirty));
}

fn dirty_pages(words: &[u64]) -> u64 {
    words.iter().map(|word| u64::from(word.count_ones())).sum()
}
