//! Bounded queues between the ends. Faults act here; what a message means is not known here.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::faults::{Faults, Passage, Place};
use super::network::Request;
use crate::control::Frame;
use crate::deadline::Deadline;
use crate::memory::Run;
use crate::runtime;

/// Payload bytes that may wait in one direction before a send blocks: some batches of a real lane.
const QUEUE_BYTES_MAX: u64 = 64 << 20;

/// Messages that may wait, so that those without payload are bounded too.
const QUEUE_MESSAGES_MAX: usize = 1 << 16;

/// The default stall limit: as for TCP lanes.
const STALL_LIMIT: Duration = Duration::from_secs(10);

/// What travels.
#[derive(Debug)]
pub(super) enum Message {
    /// Bytes for a run, as they were when put.
    Put { run: Run, bytes: Vec<u8> },
    /// Zeros for a run.
    Zero { run: Run },
    /// A fence, or the word that it was seen.
    Fence { number: u64 },
    /// A control frame.
    Control { frame: Frame },
}

impl Message {
    fn payload(&mut self) -> &mut [u8] {
        match self {
            Self::Put { bytes, .. } => bytes,
            Self::Control { frame } => &mut frame.payload,
            Self::Zero { .. } | Self::Fence { .. } => &mut [],
        }
    }
}

/// Which way a queue leads. A stalled lane is stalled on the way to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    ToDestination,
    ToSource,
}

/// Why a send or a receive ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WireError {
    Closed,
    TimedOut,
    Stopped,
}

struct Queue {
    place: Place,
    way: Way,
    messages: VecDeque<(Instant, Message)>,
    bytes: u64,
    closed: bool,
}

/// All queues of one network, and the lanes that ask to be let in.
pub(super) struct Wires {
    queues: HashMap<u64, Queue>,
    next_queue: u64,
    pub(super) requests: Vec<Request>,
    pub(super) stall_limit: Duration,
    pub(super) queue_bytes_max: u64,
}

impl Default for Wires {
    fn default() -> Self {
        Self {
            queues: HashMap::new(),
            next_queue: 0,
            requests: Vec::new(),
            stall_limit: STALL_LIMIT,
            queue_bytes_max: QUEUE_BYTES_MAX,
        }
    }
}

impl Wires {
    fn open(&mut self, place: Place, way: Way) -> u64 {
        self.next_queue += 1;
        self.queues.insert(
            self.next_queue,
            Queue {
                place,
                way,
                messages: VecDeque::new(),
                bytes: 0,
                closed: false,
            },
        );
        self.next_queue
    }
}

/// One end of one direction. Dropping either end closes it; the receiver still gets what was sent.
pub(super) struct WireEnd {
    faults: Arc<Faults>,
    queue: u64,
    is_receiver: bool,
}

/// Opens one direction: the sending end and the receiving end.
pub(super) fn open(faults: &Arc<Faults>, place: Place, way: Way) -> (WireEnd, WireEnd) {
    let queue = faults.state().wires.open(place, way);
    let end = |is_receiver| WireEnd {
        faults: Arc::clone(faults),
        queue,
        is_receiver,
    };
    (end(false), end(true))
}

impl WireEnd {
    /// The queue's name, for `stop`.
    pub(super) fn queue(&self) -> u64 {
        self.queue
    }

    /// How many messages were sent and not yet received.
    pub(super) fn waiting(&self) -> usize {
        let state = self.faults.state();
        let queue = state.wires.queues.get(&self.queue);
        queue.map_or(0, |queue| queue.messages.len())
    }

    /// Sends one message; waits while the queue is full, up to the stall limit and the
    /// deadline.
    pub(super) fn send(
        &self,
        mut message: Message,
        deadline: Option<Deadline>,
        stopped: &AtomicBool,
    ) -> Result<(), WireError> {
        runtime::step();
        let bytes = message.payload().len() as u64;
        let mut state = self.faults.state();
        let stall = Deadline::after(state.wires.stall_limit);
        let deadline = deadline.map_or(stall, |deadline| deadline.earlier(stall));
        if let (Some(hook), Some(queue)) = (self.faults.hook(), state.wires.queues.get(&self.queue))
        {
            let passage = Passage {
                place: queue.place,
                bytes,
                control_kind: match &message {
                    Message::Control { frame } => Some(frame.kind),
                    _ => None,
                },
            };
            drop(state);
            hook(passage);
            state = self.faults.state();
        }
        loop {
            if stopped.load(Ordering::SeqCst) {
                return Err(WireError::Stopped);
            }
            let queue_bytes_max = state.wires.queue_bytes_max;
            let state_now = &mut *state;
            let Some(queue) = state_now.wires.queues.get_mut(&self.queue) else {
                return Err(WireError::Closed);
            };
            if queue.closed || state_now.orders.is_cut(queue.place) {
                return Err(WireError::Closed);
            }
            // A message larger than the whole queue may enter an empty one.
            let has_room = queue.messages.is_empty()
                || (queue.bytes + bytes <= queue_bytes_max
                    && queue.messages.len() < QUEUE_MESSAGES_MAX);
            if has_room {
                state_now.orders.count(queue.place, bytes);
                if state_now.orders.is_cut_by(queue.place, bytes) {
                    queue.closed = true;
                    self.faults.state.notify_all();
                    return Err(WireError::Closed);
                }
                state_now.orders.corrupt(queue.place, message.payload());
                let arrives = runtime::now() + state_now.orders.delay(queue.place);
                queue.bytes += bytes;
                queue.messages.push_back((arrives, message));
                self.faults.state.notify_all();
                return Ok(());
            }
            let left = deadline.remaining();
            if left.is_zero() {
                return Err(WireError::TimedOut);
            }
            state = self.faults.state.wait_timeout(state, left);
        }
    }

    /// Waits for the next message.
    pub(super) fn receive(
        &self,
        deadline: Deadline,
        stopped: &AtomicBool,
    ) -> Result<Message, WireError> {
        runtime::step();
        let mut state = self.faults.state();
        loop {
            if stopped.load(Ordering::SeqCst) {
                return Err(WireError::Stopped);
            }
            let state_now = &mut *state;
            let Some(queue) = state_now.wires.queues.get_mut(&self.queue) else {
                return Err(WireError::Closed);
            };
            let orders = &state_now.orders;
            let mut left = deadline.remaining();
            let held = orders.is_silent(queue.place)
                || (orders.is_stalled(queue.place) && queue.way == Way::ToDestination);
            if !held {
                match queue.messages.front() {
                    Some((arrives, _)) => {
                        let early = arrives.saturating_duration_since(runtime::now());
                        if early.is_zero() {
                            let Some((_, mut message)) = queue.messages.pop_front() else {
                                continue;
                            };
                            queue.bytes -= message.payload().len() as u64;
                            self.faults.state.notify_all();
                            return Ok(message);
                        }
                        left = left.min(early);
                    }
                    None if queue.closed || orders.is_cut(queue.place) => {
                        return Err(WireError::Closed);
                    }
                    None => {}
                }
            }
            if deadline.passed() {
                return Err(WireError::TimedOut);
            }
            state = self.faults.state.wait_timeout(state, left);
        }
    }
}

impl Drop for WireEnd {
    fn drop(&mut self) {
        let mut state = self.faults.state();
        if self.is_receiver {
            // Nobody can receive what is left.
            state.wires.queues.remove(&self.queue);
        } else if let Some(queue) = state.wires.queues.get_mut(&self.queue) {
            queue.closed = true;
        }
        drop(state);
        self.faults.state.notify_all();
    }
}

/// Ends everything that one side uses: sets its stop flag, closes its queues, so that the other
/// side sees them closed, and wakes whoever waits. The lock is taken in between, so that no waiter
/// can have looked at the flag and not yet be asleep.
pub(super) fn stop(faults: &Faults, stopped: &AtomicBool, queues: &Mutex<Vec<u64>>) {
    stopped.store(true, Ordering::SeqCst);
    let mut state = faults.state();
    for queue in queues.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        if let Some(queue) = state.wires.queues.get_mut(queue) {
            queue.closed = true;
        }
    }
    drop(state);
    faults.state.notify_all();
}
