//! Registrations in memory: none, unless a test orders them; then each side has a device that
//! registers what is prepared, which takes its time and may fail.
//!
//! They follow RDMA's rules: a range is registered and deregistered whole, and ranges do not
//! overlap.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::faults::Faults;
use super::network::NO_LANE;
use crate::lane::{LaneError, RegistrationCounters};
use crate::memory::Run;
use crate::range_map::RangeMap;
use crate::runtime;

/// One of the two sides, where they do not have the same orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

/// What is ordered of one side's device, and what all of its endpoints have registered.
#[derive(Default)]
struct Device {
    limit_bytes: Option<u64>,
    delay: Duration,
    /// How many registrations follow before one that is refused.
    refused_after: Option<u64>,
    counters: RegistrationCounters,
}

/// Both sides' devices.
#[derive(Default)]
pub(super) struct Devices {
    are_there: bool,
    source: Device,
    destination: Device,
}

impl Devices {
    fn of(&mut self, side: Side) -> &mut Device {
        match side {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.destination,
        }
    }
}

/// What is ordered of registrations.
impl Faults {
    /// Both sides have registrations from now on: give this order before the endpoints are made.
    pub fn register_memory(&self) {
        self.state().devices.are_there = true;
    }

    /// No more bytes than this can be registered at a time: what would go beyond is refused.
    pub fn limit_registrations(&self, side: Side, bytes_max: u64) {
        self.state().devices.of(side).limit_bytes = Some(bytes_max);
    }

    /// Each registration takes so long from now on, and each end of one too.
    pub fn delay_registrations(&self, side: Side, delay: Duration) {
        self.state().devices.of(side).delay = delay;
    }

    /// Refuses the registration that follows after `skipped` others.
    pub fn refuse_registration(&self, side: Side, skipped: u64) {
        self.state().devices.of(side).refused_after = Some(skipped);
    }

    /// What the side's endpoints have registered so far; those that are gone have ended theirs.
    pub fn registrations(&self, side: Side) -> RegistrationCounters {
        self.state().devices.of(side).counters
    }
}

/// An endpoint's registrations.
pub(super) struct Registrations {
    faults: Arc<Faults>,
    side: Side,
    own: Mutex<Own>,
}

#[derive(Default)]
struct Own {
    /// Each with whether it is registered yet.
    ranges: RangeMap<bool>,
    counters: RegistrationCounters,
}

fn refusal(reason: String) -> LaneError {
    LaneError::System {
        lane: NO_LANE,
        doing: "preparing memory",
        source: std::io::Error::other(reason),
    }
}

fn count_made(counters: &mut RegistrationCounters, bytes: u64) {
    counters.made += 1;
    counters.bytes += bytes;
    counters.bytes_max = counters.bytes_max.max(counters.bytes);
}

fn count_ended(counters: &mut RegistrationCounters, ended: u64, bytes: u64) {
    counters.ended += ended;
    counters.bytes = counters.bytes.saturating_sub(bytes);
}

impl Registrations {
    pub(super) fn new(faults: Arc<Faults>, side: Side) -> Self {
        Self {
            faults,
            side,
            own: Mutex::default(),
        }
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn delay(&self) -> Duration {
        self.faults.state().devices.of(self.side).delay
    }

    pub(super) fn are_there(&self) -> bool {
        self.faults.state().devices.are_there
    }

    pub(super) fn counters(&self) -> RegistrationCounters {
        self.own().counters
    }

    /// Registers a range, if there are registrations.
    pub(super) fn register(&self, range: Run) -> Result<(), LaneError> {
        if !self.are_there() {
            return Ok(());
        }
        let noted = self.own().ranges.insert(range, false);
        noted
            .map_err(|other| refusal(format!("{range:?} overlaps {other:?}, which is prepared")))?;
        runtime::sleep(self.delay());
        let taken = self.take_from_device(range.bytes());
        let mut own = self.own();
        match &taken {
            Ok(()) => {
                count_made(&mut own.counters, range.bytes());
                if let Some(is_registered) = own.ranges.get_mut(range) {
                    *is_registered = true;
                }
            }
            Err(_) => drop(own.ranges.remove(range)),
        }
        taken
    }

    fn take_from_device(&self, bytes: u64) -> Result<(), LaneError> {
        let mut state = self.faults.state();
        let device = state.devices.of(self.side);
        let registered = device.counters.bytes;
        match device.limit_bytes {
            Some(limit) if registered + bytes > limit => {
                return Err(refusal(format!(
                    "registering {bytes} bytes of memory, {registered} being registered already: \
                     the limit is {limit} bytes"
                )));
            }
            _ => {}
        }
        match &mut device.refused_after {
            Some(0) => {
                device.refused_after = None;
                return Err(refusal(format!(
                    "registering {bytes} bytes of memory: the device refuses"
                )));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        count_made(&mut device.counters, bytes);
        Ok(())
    }

    /// Ends the registrations that a range consists of, once `close` has taken its pages from the
    /// lanes; `false`, and nothing is changed, when the range was not prepared.
    pub(super) fn deregister(&self, range: Run, close: impl FnOnce() -> bool) -> bool {
        if !self.are_there() {
            return close();
        }
        let taken = self
            .own()
            .ranges
            .take(range, |is_registered| *is_registered);
        let Some(taken) = taken else { return false };
        let was_open = close();
        runtime::sleep(self.delay());
        let ended = taken.len() as u64;
        count_ended(&mut self.own().counters, ended, range.bytes());
        let mut state = self.faults.state();
        let device = state.devices.of(self.side);
        count_ended(&mut device.counters, ended, range.bytes());
        was_open
    }
}

impl Registrations {
    /// Ends all registrations.
    pub(super) fn deregister_all(&self) {
        let mut own = self.own();
        let RegistrationCounters {
            made, ended, bytes, ..
        } = own.counters;
        drop(own.ranges.take_all());
        count_ended(&mut own.counters, made - ended, bytes);
        drop(own);
        let mut state = self.faults.state();
        let device = state.devices.of(self.side);
        count_ended(&mut device.counters, made - ended, bytes);
    }
}

/// An endpoint that goes deregisters what it has.
impl Drop for Registrations {
    fn drop(&mut self) {
        self.deregister_all();
    }
}
