//! Queues between threads, with the names and errors of `std::sync::mpsc`, on a [`Monitor`]: so
//! that a simulated world sees who waits. Only in builds with the feature `simulation`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{RecvError, RecvTimeoutError, SendError, TryRecvError};
use std::time::Duration;

use super::{Monitor, step};
use crate::deadline::Deadline;

struct State<T> {
    waiting: VecDeque<T>,
    senders: usize,
    has_receiver: bool,
}

struct Shared<T> {
    state: Monitor<State<T>>,
    capacity: usize,
}

impl<T> Shared<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        step();
        let mut state = self.state.lock();
        loop {
            if !state.has_receiver {
                return Err(SendError(value));
            }
            if state.waiting.len() < self.capacity {
                state.waiting.push_back(value);
                drop(state);
                self.state.notify_all();
                return Ok(());
            }
            state = self.state.wait(state);
        }
    }

    fn add_sender(&self) {
        self.state.lock().senders += 1;
    }

    fn remove_sender(&self) {
        self.state.lock().senders -= 1;
        self.state.notify_all();
    }
}

macro_rules! sender {
    ($name:ident, $words:literal) => {
        #[doc = $words]
        pub struct $name<T>(Arc<Shared<T>>);

        impl<T> $name<T> {
            /// Sends a value, once there is room for it.
            ///
            /// # Errors
            ///
            /// When there is no receiver any more; the value is in the error.
            pub fn send(&self, value: T) -> Result<(), SendError<T>> {
                self.0.send(value)
            }
        }

        impl<T> Clone for $name<T> {
            fn clone(&self) -> Self {
                self.0.add_sender();
                Self(Arc::clone(&self.0))
            }
        }

        impl<T> Drop for $name<T> {
            fn drop(&mut self) {
                self.0.remove_sender();
            }
        }
    };
}

sender!(Sender, "The sending end of a queue without a bound.");
sender!(SyncSender, "The sending end of a bounded queue.");

/// The receiving end of a queue.
pub struct Receiver<T>(Arc<Shared<T>>);

/// A queue without a bound.
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let shared = shared(usize::MAX);
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

/// A queue in which at most `bound` values wait; at least one, so that there is no rendezvous.
pub fn sync_channel<T>(bound: usize) -> (SyncSender<T>, Receiver<T>) {
    let shared = shared(bound.max(1));
    (SyncSender(Arc::clone(&shared)), Receiver(shared))
}

fn shared<T>(capacity: usize) -> Arc<Shared<T>> {
    let state = State {
        waiting: VecDeque::new(),
        senders: 1,
        has_receiver: true,
    };
    Arc::new(Shared {
        state: Monitor::new(state),
        capacity,
    })
}

impl<T> Receiver<T> {
    /// The next value, if one waits.
    ///
    /// # Errors
    ///
    /// When none waits, or none will come any more.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        step();
        let mut state = self.0.state.lock();
        match state.waiting.pop_front() {
            Some(value) => {
                drop(state);
                self.0.state.notify_all();
                Ok(value)
            }
            None if state.senders == 0 => Err(TryRecvError::Disconnected),
            None => Err(TryRecvError::Empty),
        }
    }

    /// Waits for the next value.
    ///
    /// # Errors
    ///
    /// When none will come any more.
    pub fn recv(&self) -> Result<T, RecvError> {
        self.receive(None).map_err(|_| RecvError)
    }

    /// Waits for the next value, for at most `limit`.
    ///
    /// # Errors
    ///
    /// When none came, or none will come any more.
    pub fn recv_timeout(&self, limit: Duration) -> Result<T, RecvTimeoutError> {
        self.receive(Some(Deadline::after(limit)))
    }

    fn receive(&self, deadline: Option<Deadline>) -> Result<T, RecvTimeoutError> {
        step();
        let mut state = self.0.state.lock();
        loop {
            if let Some(value) = state.waiting.pop_front() {
                drop(state);
                self.0.state.notify_all();
                return Ok(value);
            }
            if state.senders == 0 {
                return Err(RecvTimeoutError::Disconnected);
            }
            state = match deadline {
                None => self.0.state.wait(state),
                Some(deadline) if deadline.passed() => return Err(RecvTimeoutError::Timeout),
                Some(deadline) => self.0.state.wait_timeout(state, deadline.remaining()),
            };
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.has_receiver = false;
        // What nobody receives is dropped behind the lock: it may be the end of another queue.
        let left_over = std::mem::take(&mut state.waiting);
        drop(state);
        self.0.state.notify_all();
        drop(left_over);
    }
}
