//! Work that one thread orders and a few others do, in the order in which it was ordered.

use std::collections::VecDeque;

use dunlin_transports::runtime::Monitor;

/// Jobs that wait for a thread. Its length is bounded by whoever orders.
pub(crate) struct Jobs<J> {
    state: Monitor<State<J>>,
}

struct State<J> {
    waiting: VecDeque<J>,
    is_stopped: bool,
}

impl<J> Default for Jobs<J> {
    fn default() -> Self {
        Self {
            state: Monitor::new(State {
                waiting: VecDeque::new(),
                is_stopped: false,
            }),
        }
    }
}

impl<J> Jobs<J> {
    /// Puts jobs behind those that wait.
    pub(crate) fn order(&self, jobs: impl IntoIterator<Item = J>) {
        self.state.lock().waiting.extend(jobs);
        self.state.notify_all();
    }

    /// The same, as long as no more than `most` wait; what is more is forgotten.
    pub(crate) fn order_within(&self, jobs: impl IntoIterator<Item = J>, most: usize) {
        let mut state = self.state.lock();
        let room = most.saturating_sub(state.waiting.len());
        state.waiting.extend(jobs.into_iter().take(room));
        drop(state);
        self.state.notify_all();
    }

    /// How many wait.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// Ends the threads, each once it is done with what it does; what waits is left undone.
    pub(crate) fn stop(&self) {
        self.state.lock().is_stopped = true;
        self.state.notify_all();
    }

    /// Waits for the next job; `None` once stopped.
    pub(crate) fn next(&self) -> Option<J> {
        let mut state = self.state.lock();
        loop {
            if state.is_stopped {
                return None;
            }
            if let Some(job) = state.waiting.pop_front() {
                return Some(job);
            }
            state = self.state.wait(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_come_in_order_and_none_behind_the_stop() {
        let jobs = Jobs::default();
        jobs.order([1, 2, 3]);
        assert_eq!((jobs.next(), jobs.next()), (Some(1), Some(2)));
        jobs.stop();
        assert_eq!(jobs.next(), None);
    }

    #[test]
    fn a_stop_ends_a_wait() {
        let jobs = Jobs::<u32>::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| jobs.next());
            jobs.stop();
            assert_eq!(waiting.join().unwrap(), None);
        });
    }
}
