//! What time it is, how threads are started, and where they wait.
//!
//! Whatever waits on another side of a move asks here and not `std`. As built for use, each item is
//! `std`'s, or an inline wrapper of it. With the cargo feature `simulation` a thread may belong to
//! a simulated world, in which time is virtual and a seed draws who runs next; every other thread
//! still gets `std`.
//!
//! | room | what is in it |
//! |---|---|
//! | here | the time, and sleeping |
//! | `monitor` | a value behind a lock, and waiting until it changes |
//! | `channel` | queues between threads |
//! | `threads` | starting threads, free or within a scope |
//! | `simulation` | worlds: virtual time, the baton that lets one thread run at a time, processes that can be killed |

use std::time::{Duration, Instant};

#[cfg(feature = "simulation")]
mod channel;
mod monitor;
#[cfg(feature = "simulation")]
pub mod simulation;
mod threads;

#[cfg(feature = "simulation")]
pub use self::channel::{Receiver, Sender, SyncSender, channel, sync_channel};
pub use self::monitor::Monitor;
pub use self::threads::{JoinHandle, Scope, ScopedJoinHandle, scope, spawn};
#[cfg(not(feature = "simulation"))]
pub use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

/// This moment.
#[inline]
pub fn now() -> Instant {
    #[cfg(feature = "simulation")]
    if let Some(member) = simulation::current() {
        return member.now();
    }
    Instant::now()
}

/// This moment by a clock that all hosts of a simulated world share, as the network between them
/// has; [`now`] is by the clock of the calling thread's host.
#[inline]
pub fn shared_now() -> Instant {
    #[cfg(feature = "simulation")]
    if let Some(member) = simulation::current() {
        return member.shared_now();
    }
    Instant::now()
}

/// The time since `begun`; zero when that is not in the past.
#[inline]
pub fn elapsed(begun: Instant) -> Duration {
    now().saturating_duration_since(begun)
}

/// Lets time pass.
#[inline]
pub fn sleep(duration: Duration) {
    #[cfg(feature = "simulation")]
    if let Some(member) = simulation::current() {
        return member.wait(Some(duration));
    }
    std::thread::sleep(duration);
}

/// A place where another thread may run first, for whoever shares more than a lock with others.
/// No lock may be held. Nothing outside of a simulation.
#[inline]
pub fn step() {
    #[cfg(feature = "simulation")]
    if let Some(member) = simulation::current() {
        member.step();
    }
}
