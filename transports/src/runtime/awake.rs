//! Waiting without falling asleep, for waits that are shorter than being woken.
//!
//! A thread that sleeps is woken within some microseconds on a processor that is awake itself, and
//! within 50 to 100 on one that has to be brought back from idling first, in a virtual machine above
//! all. A handover is a chain of such wakings, in both processes, while the guest waits.

use std::time::{Duration, Instant};

#[cfg(feature = "simulation")]
use super::simulation;
use super::{Receiver, RecvTimeoutError, TryRecvError};
use crate::deadline::Deadline;

/// How often the time is asked for: a look costs less than the clock.
const LOOKS_PER_YIELD: u32 = 16;

/// Looks until there is something, for at most `limit`. Other threads run in between, where there
/// are any that want this processor; so it is for moments, and not for a thread whose processor a
/// guest wants.
///
/// Nothing in a simulation, where being woken costs nothing and time passes only while all wait.
pub fn look_awake<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    #[cfg(feature = "simulation")]
    if simulation::current().is_some() {
        return None;
    }
    if limit.is_zero() {
        return None;
    }
    let begun = Instant::now();
    loop {
        for _ in 0..LOOKS_PER_YIELD {
            let found = look();
            if found.is_some() {
                return found;
            }
            std::hint::spin_loop();
        }
        std::thread::yield_now();
        if begun.elapsed() >= limit {
            return None;
        }
    }
}

/// As `receiver.recv_timeout(limit)`, awake for the first `awake` of it.
///
/// # Errors
///
/// As there.
pub fn receive_awake<T>(
    receiver: &Receiver<T>,
    awake: Duration,
    limit: Duration,
) -> Result<T, RecvTimeoutError> {
    let deadline = Deadline::after(limit);
    let received = look_awake(awake.min(limit), || match receiver.try_recv() {
        Ok(value) => Some(Ok(value)),
        Err(TryRecvError::Empty) => None,
        Err(TryRecvError::Disconnected) => Some(Err(RecvTimeoutError::Disconnected)),
    });
    received.unwrap_or_else(|| receiver.recv_timeout(deadline.remaining()))
}

#[cfg(test)]
mod tests {
    use super::super::sync_channel;
    use super::*;

    #[test]
    fn what_comes_is_received_whether_awake_or_asleep() {
        let (sender, receiver) = sync_channel(1);
        let long = Duration::from_secs(30);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in [1, 2] {
                    std::thread::sleep(Duration::from_millis(5));
                    sender.send(number).unwrap();
                }
            });
            assert_eq!(receive_awake(&receiver, long, long), Ok(1));
            let moment = Duration::from_micros(10);
            assert_eq!(receive_awake(&receiver, moment, long), Ok(2));
        });
        let moment = Duration::from_millis(1);
        let nothing = receive_awake(&receiver, moment, moment);
        assert_eq!(nothing, Err(RecvTimeoutError::Timeout));
        drop(sender);
        let nothing = receive_awake(&receiver, moment, moment);
        assert_eq!(nothing, Err(RecvTimeoutError::Disconnected));
    }
}
