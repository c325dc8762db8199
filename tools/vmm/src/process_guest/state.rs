//! What is moved besides memory: the clock that the control pages' ticks belong to.
//!
//! Section `process.vm`, version 1. Fields: 1 the source's `CLOCK_MONOTONIC` in nanoseconds when it
//! was saved; 2 the source's boot id (empty: unknown).

use dunlin_engine::clock::{Timestamp, boot_id};
use dunlin_engine::state::{DeviceState, Section, StateError};

const SECTION: &str = "process.vm";
const VERSION: u16 = 1;
const FIELD_CLOCK: u16 = 1;
const FIELD_BOOT_ID: u16 = 2;

/// The longest boot id: a UUID has 36 characters.
const BOOT_ID_BYTES_MAX: usize = 64;

/// A host's monotonic clock at a moment, and the boot that it counts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClockState {
    clock: Timestamp,
    boot_id: String,
}

impl ClockState {
    /// This host's clock now.
    pub(super) fn now() -> Self {
        Self {
            boot_id: boot_id(),
            clock: Timestamp::now(),
        }
    }

    /// The section that tells of it.
    pub(super) fn to_section(&self) -> Section {
        let mut section = Section::new(SECTION, VERSION);
        section
            .put_u64(FIELD_CLOCK, self.clock.0)
            .put(FIELD_BOOT_ID, self.boot_id.as_bytes());
        section
    }

    /// Takes the section out of a guest's state.
    pub(super) fn take(state: &mut DeviceState) -> Result<Self, StateError> {
        let mut section = state.require(SECTION, VERSION)?;
        let clock = Timestamp(section.require_u64(FIELD_CLOCK)?);
        let boot_id = section.require(FIELD_BOOT_ID)?;
        if boot_id.len() > BOOT_ID_BYTES_MAX {
            return Err(section.bad(FIELD_BOOT_ID, format!("{} bytes", boot_id.len())));
        }
        let boot_id = String::from_utf8(boot_id)
            .map_err(|error| section.bad(FIELD_BOOT_ID, error.to_string()))?;
        section.finish()?;
        Ok(Self { clock, boot_id })
    }

    /// How many ticks `here` is ahead of this clock: 0 where both count from the same boot.
    ///
    /// Between two hosts the time from saving to loading is not known here, so the guest sees its
    /// pause shorter by that. (The engine measures the whole pause on the source's clock.)
    pub(super) fn ticks_ahead(&self, here: &Self) -> i64 {
        if self.boot_id == here.boot_id && !self.boot_id.is_empty() {
            return 0;
        }
        // Exact for any two clocks that run for less than 146 years.
        here.clock.0.wrapping_sub(self.clock.0).cast_signed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(nanoseconds: u64, boot_id: &str) -> ClockState {
        ClockState {
            clock: Timestamp(nanoseconds),
            boot_id: boot_id.to_owned(),
        }
    }

    #[test]
    fn clocks_of_one_boot_are_one_clock() {
        assert_eq!(clock(5, "a").ticks_ahead(&clock(9, "a")), 0);
        assert_eq!(clock(5, "a").ticks_ahead(&clock(9, "b")), 4);
        assert_eq!(clock(9, "a").ticks_ahead(&clock(5, "b")), -4);
        assert_eq!(clock(5, "").ticks_ahead(&clock(9, "")), 4);
    }

    #[test]
    fn the_section_reads_back_and_bad_ones_are_refused() {
        let mut golden = Section::new("process.vm", 1);
        golden.put_u64(1, 77).put(2, b"boot".as_slice());
        assert_eq!(clock(77, "boot").to_section(), golden);
        let take = |section: Section| {
            let mut state = DeviceState::new();
            state.push(section);
            ClockState::take(&mut state)
        };
        assert_eq!(take(golden.clone()), Ok(clock(77, "boot")));
        for (field, bytes) in [
            (1, vec![1]),
            (2, vec![0xff]),
            (2, vec![b'x'; 65]),
            (3, vec![]),
        ] {
            let mut bad = golden.clone();
            bad.put(field, bytes);
            assert!(take(bad).is_err(), "field {field}");
        }
        assert!(ClockState::take(&mut DeviceState::new()).is_err());
    }
}
