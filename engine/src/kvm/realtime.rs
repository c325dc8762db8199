//! The host's CLOCK_REALTIME, read or used together with something that takes a call of its own.
//!
//! A thread can lose its processor between the two, and what was read at the one moment would be
//! taken for that of the other: a guest's clock would be wrong by that long. So it is looked at how
//! long both took together, by a clock that nobody sets, and they are done again where that was too
//! long.

use crate::clock::Timestamp;

/// How long both may take, in nanoseconds: several times what they do on a host whose processors are
/// its own.
const APART_NS: u64 = 20_000;

/// How often a call is made at most. Where every one takes long, the guest should not wait for more
/// of them.
const ATTEMPTS: u32 = 4;

/// CLOCK_REALTIME, in nanoseconds.
pub(super) fn now_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}

/// What `read` said, and the time at which it did, in nanoseconds, by the attempt that tells it best.
pub(super) fn read_at<T, E>(mut read: impl FnMut() -> Result<T, E>) -> Result<(T, u64), E> {
    let mut attempt = || {
        let (before, time) = (Timestamp::now(), now_ns());
        let value = read()?;
        let apart = Timestamp::now().0.saturating_sub(before.0);
        Ok((apart, value, time.saturating_add(apart / 2)))
    };
    let mut best = attempt()?;
    for _ in 1..ATTEMPTS {
        if best.0 <= APART_NS {
            break;
        }
        let again = attempt()?;
        if again.0 < best.0 {
            best = again;
        }
    }
    Ok((best.1, best.2))
}

/// Calls `set` with the time, in nanoseconds, until it was over soon enough for that time to be true.
/// What `set` does last counts.
pub(super) fn set_at<E>(mut set: impl FnMut(u64) -> Result<(), E>) -> Result<(), E> {
    for _ in 0..ATTEMPTS {
        let (before, time) = (Timestamp::now(), now_ns());
        set(time)?;
        if Timestamp::now().0.saturating_sub(before.0) <= APART_NS {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;

    const LOST: Duration = Duration::from_millis(30);

    #[test]
    fn a_reading_in_which_the_processor_was_lost_is_taken_again() {
        let mut calls = 0;
        let begun = now_ns();
        let read = || {
            calls += 1;
            if calls == 1 {
                sleep(LOST);
            }
            Ok::<_, Infallible>(calls)
        };
        let Ok((call, time)) = read_at(read);
        assert!(call > 1, "the first is told");
        assert!(time - begun >= LOST.as_nanos() as u64, "{begun} {time}");
    }

    #[test]
    fn a_setting_in_which_the_processor_was_lost_is_made_again() {
        let mut times = Vec::new();
        let Ok(()) = set_at(|now| {
            if times.is_empty() {
                sleep(LOST);
            }
            times.push(now);
            Ok::<_, Infallible>(())
        });
        let (first, last) = (times[0], times[times.len() - 1]);
        assert!(last - first >= LOST.as_nanos() as u64, "{times:?}");
    }

    #[test]
    fn calls_that_always_take_long_come_to_an_end_and_errors_end_them() {
        let mut calls = 0;
        let slow = || {
            calls += 1;
            sleep(Duration::from_millis(1));
            Ok::<_, Infallible>(())
        };
        let Ok(((), _)) = read_at(slow);
        assert_eq!(calls, ATTEMPTS);
        assert_eq!(read_at(|| Err::<(), _>(5)), Err(5));
        assert_eq!(set_at(|_| Err(6)), Err(6));
    }
}
