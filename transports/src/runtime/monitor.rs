//! A value behind a lock, and waiting until it changes.
//!
//! The lock is `std`'s in a simulation too: there only one thread runs at a time and none stops
//! with the lock held, so it is always free.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[cfg(feature = "simulation")]
use super::simulation;

/// A value that threads share, and whose changes they wait for.
#[derive(Default)]
pub struct Monitor<T> {
    value: Mutex<T>,
    changed: Condvar,
    #[cfg(feature = "simulation")]
    waiting: simulation::Waiting,
}

impl<T> Monitor<T> {
    /// A monitor of a value.
    pub fn new(value: T) -> Self {
        Self {
            value: Mutex::new(value),
            changed: Condvar::new(),
            #[cfg(feature = "simulation")]
            waiting: simulation::Waiting::default(),
        }
    }

    /// The value, locked. A thread that panicked with it locked left it as it was.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the lock back until [`Monitor::notify_all`] is called, or for no reason; then takes
    /// it again.
    #[inline]
    pub fn wait<'a>(&'a self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        #[cfg(feature = "simulation")]
        if let Some(member) = simulation::current() {
            self.waiting.wait(&member, None, || drop(guard));
            return self.lock();
        }
        self.changed
            .wait(guard)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Monitor::wait`], for at most `limit`.
    #[inline]
    pub fn wait_timeout<'a>(
        &'a self,
        guard: MutexGuard<'a, T>,
        limit: Duration,
    ) -> MutexGuard<'a, T> {
        #[cfg(feature = "simulation")]
        if let Some(member) = simulation::current() {
            self.waiting.wait(&member, Some(limit), || drop(guard));
            return self.lock();
        }
        let waited = self.changed.wait_timeout(guard, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Wakes whoever waits.
    #[inline]
    pub fn notify_all(&self) {
        #[cfg(feature = "simulation")]
        self.waiting.wake_all();
        self.changed.notify_all();
    }
}
