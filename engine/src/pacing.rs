//! Pacing: keeps all lanes together under a number of bytes a second.
//!
//! The rule is apart from the clock ([`Schedule`]), so that it can be tested without waiting.

use std::sync::Mutex;
use std::time::Duration;

use dunlin_transports::runtime;

use crate::clock::Timestamp;

/// The longest sleep at a time: within this, a cancelled move or a changed limit is noticed.
const NAP_MAX: Duration = Duration::from_millis(10);

/// How far what is sent may run ahead of the limit after a lull. Long enough that a late wake-up
/// (a scheduler's tick is 1 to 10 ms) costs no throughput, short enough that a switch with small
/// buffers does not see it.
const BURST: Duration = Duration::from_millis(10);

const NANOSECONDS_IN_SECOND: u128 = 1_000_000_000;

/// Shared by all lanes of a move; each takes its bytes before it sends them.
#[derive(Debug, Default)]
pub struct Pacer {
    schedule: Mutex<Schedule>,
}

impl Pacer {
    /// A pacer that has seen no bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits until `bytes` more bytes may be sent, at `limit()` bytes a second; returns at once
    /// where that is `None`. The limit is asked for anew between naps of at most 10 ms, and `stop`
    /// as well: when that says yes, the wait ends.
    ///
    /// One take is never divided: a larger one than fits the burst passes, and those after it wait
    /// for as much longer.
    pub fn take(&self, bytes: u64, limit: impl Fn() -> Option<u64>, stop: impl Fn() -> bool) {
        while !stop() {
            let Some(limit) = limit() else {
                return;
            };
            // A poisoned lock: a lane died in here, between two of the schedule's fields at worst.
            let mut schedule = self
                .schedule
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let wait = schedule.take(Timestamp::now(), bytes, limit);
            drop(schedule);
            match wait {
                None => return,
                Some(wait) => runtime::sleep(wait.min(NAP_MAX)),
            }
        }
    }
}

/// What was sent and what may be, as a point in time: the moment by which all that was taken so
/// far is sent at the limit's pace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    paid_until: Timestamp,
    limit: u64,
}

impl Schedule {
    /// Takes `bytes` at `now`, if `limit` bytes a second let them be sent: `None`. Otherwise takes
    /// nothing and says how long that would still be.
    pub fn take(&mut self, now: Timestamp, bytes: u64, limit: u64) -> Option<Duration> {
        // What is owed stays the same number of bytes when the limit changes, and is waited for at
        // the new pace.
        let owed_ns = rescaled(self.paid_until.since(now), self.limit, limit);
        self.limit = limit;
        if owed_ns > 0 {
            self.paid_until = Timestamp(now.0.saturating_add(owed_ns));
            return Some(Duration::from_nanos(owed_ns));
        }
        let earliest = now.0.saturating_sub(BURST.as_nanos() as u64);
        let from = self.paid_until.0.max(earliest);
        self.paid_until = Timestamp(from.saturating_add(nanoseconds(bytes, limit)));
        None
    }
}

/// The time that what takes `owed` at `old` bytes a second takes at `new`.
fn rescaled(owed: Duration, old: u64, new: u64) -> u64 {
    let owed_ns = owed.as_nanos();
    let owed_ns = if old == new {
        owed_ns
    } else {
        owed_ns.saturating_mul(u128::from(old.max(1))) / u128::from(new.max(1))
    };
    u64::try_from(owed_ns).unwrap_or(u64::MAX)
}

/// How long `bytes` take at `limit` bytes a second, rounded up, so that small takes can't add up to
/// more than the limit. A limit of zero counts as one byte a second.
fn nanoseconds(bytes: u64, limit: u64) -> u64 {
    let nanoseconds = (u128::from(bytes) * NANOSECONDS_IN_SECOND).div_ceil(limit.max(1).into());
    u64::try_from(nanoseconds).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const SECOND: u64 = 1_000_000_000;

    /// Sends batches as fast as the schedule lets it, and returns how many bytes were sent.
    fn send(schedule: &mut Schedule, from: u64, to: u64, batch: u64, limit: u64) -> u64 {
        let mut now = from;
        let mut sent = 0;
        while now < to {
            match schedule.take(Timestamp(now), batch, limit) {
                None => sent += batch,
                Some(wait) => now += u64::try_from(wait.as_nanos()).unwrap().max(1),
            }
        }
        sent
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let pacer = Pacer::new();
        pacer.take(u64::MAX, || Some(1), || false);
        pacer.take(u64::MAX, || None, || false);
    }

    #[test]
    fn a_lull_buys_a_short_burst_only() {
        let mut schedule = Schedule::default();
        let limit = 100 * MIB;
        assert_eq!(schedule.take(Timestamp(SECOND), 1, limit), None);
        // An hour later: 10 ms' worth is 1 MiB, and the batch that passes it.
        let hour = 3600 * SECOND;
        let sent = (0..1000)
            .take_while(|_| schedule.take(Timestamp(hour), MIB / 4, limit).is_none())
            .count() as u64;
        assert_eq!(sent, 5);
    }

    #[test]
    fn a_changed_limit_changes_the_wait_at_once() {
        let mut schedule = Schedule::default();
        let start = Timestamp(SECOND);
        assert_eq!(schedule.take(start, 10 * MIB, MIB), None);
        // Ten seconds, less the burst.
        let slow = schedule.take(start, 1, MIB).unwrap();
        assert_eq!(slow, Duration::from_millis(9_990));
        let fast = schedule.take(start, 1, 10 * MIB).unwrap();
        assert_eq!(fast, Duration::from_millis(999));
        let slow_again = schedule.take(start, 1, MIB).unwrap();
        assert_eq!(slow_again, slow);
        assert_eq!(
            schedule.take(Timestamp(start.0 + 10 * SECOND), 1, MIB),
            None
        );
    }

    #[test]
    fn a_stop_ends_the_wait() {
        let pacer = Pacer::new();
        let limit = || Some(1);
        pacer.take(MIB, limit, || false);
        // Twelve days at this pace.
        let asked = std::cell::Cell::new(0);
        pacer.take(1, limit, || asked.replace(asked.get() + 1) > 2);
        assert!(asked.get() > 2);
    }

    proptest! {
        #[test]
        fn the_limit_holds_over_any_second(
            batch in 4096_u64..4 * MIB,
            limit in MIB..1000 * MIB,
        ) {
            let mut schedule = Schedule::default();
            let sent = send(&mut schedule, SECOND, 2 * SECOND, batch, limit);
            let burst = limit / 100;
            prop_assert!(sent <= limit + burst + batch + 1, "{} over {}", sent, limit);
            prop_assert!(sent + batch >= limit, "{} under {}", sent, limit);
        }
    }
}
