//! Section `kvm.vm`, version 1: the state of the VM besides its vCPUs.
//!
//! | field | what |
//! |---|---|
//! | 1 | kvmclock in nanoseconds (u64) … |
//! | 2 | … at this real time of the host in nanoseconds (u64) … |
//! | 3 | … and this TSC of the host (u64); missing: KVM does not read it with the clock |
//! | 4 | `kvm_irqchip` of the master PIC; missing, as 5 and 6: no interrupt controllers in the kernel |
//! | 5 | `kvm_irqchip` of the slave PIC |
//! | 6 | `kvm_irqchip` of the IOAPIC |
//! | 7 | `kvm_pit_state2`; missing: no PIT in the kernel |
//!
//! Restored after the vCPUs: the IOAPIC looks for their LAPICs, and the clock comes last.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};

use super::time::ClockReading;
use super::{ClockAdvance, KvmError, StateAccess, abi};
use crate::state::{Section, StateError};

/// The section's name.
pub(super) const NAME: &str = "kvm.vm";

/// The section's version.
pub(super) const VERSION: u16 = 1;

mod field {
    pub(super) const KVMCLOCK_NS: u16 = 1;
    pub(super) const REALTIME_NS: u16 = 2;
    pub(super) const HOST_TSC: u16 = 3;
    pub(super) const PIT: u16 = 7;
}

/// Each interrupt controller's field, and its number in KVM.
const CHIPS: [(u16, u32); 3] = [
    (4, KVM_IRQCHIP_PIC_MASTER),
    (5, KVM_IRQCHIP_PIC_SLAVE),
    (6, KVM_IRQCHIP_IOAPIC),
];

/// A VM's state, between KVM and the section.
struct VmRecord {
    clock: ClockReading,
    /// In the order of `CHIPS`; empty where there are none.
    chips: Vec<kvm_irqchip>,
    pit: Option<kvm_pit_state2>,
}

impl VmRecord {
    fn to_section(&self) -> Section {
        let mut section = Section::new(NAME, VERSION);
        section
            .put_u64(field::KVMCLOCK_NS, self.clock.kvmclock_ns)
            .put_u64(field::REALTIME_NS, self.clock.realtime_ns);
        if let Some(tsc) = self.clock.host_tsc {
            section.put_u64(field::HOST_TSC, tsc);
        }
        for ((field, _), chip) in CHIPS.iter().zip(&self.chips) {
            section.put(*field, abi::bytes_of(chip));
        }
        if let Some(pit) = &self.pit {
            section.put(field::PIT, abi::bytes_of(pit));
        }
        section
    }

    fn from_section(mut section: Section, irqchip: bool) -> Result<Self, StateError> {
        let s = &mut section;
        let clock = ClockReading {
            kvmclock_ns: s.require_u64(field::KVMCLOCK_NS)?,
            realtime_ns: s.require_u64(field::REALTIME_NS)?,
            host_tsc: abi::take_u64(s, field::HOST_TSC)?,
        };
        let mut chips = Vec::new();
        for (field, number) in CHIPS.iter().filter(|_| irqchip) {
            let chip: kvm_irqchip = abi::require(s, *field)?;
            if chip.chip_id != *number {
                let reason = format!("it is chip {} instead of {number}", chip.chip_id);
                return Err(s.bad(*field, reason));
            }
            chips.push(chip);
        }
        let pit = abi::take(s, field::PIT)?;
        section.finish()?;
        Ok(Self { clock, chips, pit })
    }
}

impl StateAccess {
    /// Reads the VM's state. All vCPUs are parked.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn save_vm(&self) -> Result<Section, KvmError> {
        let mut chips = Vec::new();
        for (_, number) in CHIPS.iter().filter(|_| self.platform.irqchip) {
            let mut chip = kvm_irqchip {
                chip_id: *number,
                ..Default::default()
            };
            self.vm
                .get_irqchip(&mut chip)
                .map_err(KvmError::system("reading an interrupt controller"))?;
            chips.push(chip);
        }
        let pit = self
            .platform
            .pit
            .then(|| self.vm.get_pit2())
            .transpose()
            .map_err(KvmError::system("reading the PIT"))?;
        let clock = ClockReading::now(&self.vm)?;
        Ok(VmRecord { clock, chips, pit }.to_section())
    }

    /// Sets the VM's state, after its vCPUs' and before any of them runs. kvmclock goes on from
    /// where it was, by the time that passed.
    ///
    /// # Errors
    ///
    /// When the section is not of this version, or KVM refuses some of it.
    pub fn load_vm(&self, section: Section) -> Result<ClockAdvance, KvmError> {
        let record = VmRecord::from_section(section, self.platform.irqchip)?;
        for chip in &record.chips {
            self.vm
                .set_irqchip(chip)
                .map_err(KvmError::system("setting an interrupt controller"))?;
        }
        if record.pit.is_some() != self.platform.pit {
            return Err(KvmError::PlatformDiffers("a PIT"));
        }
        if let Some(pit) = &record.pit {
            self.vm
                .set_pit2(pit)
                .map_err(KvmError::system("setting the PIT"))?;
        }
        record.clock.restore(&self.vm)
    }
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;
    use crate::state::DeviceState;

    fn record() -> VmRecord {
        let chip = |(_, chip_id): &(u16, u32)| kvm_irqchip {
            chip_id: *chip_id,
            ..Default::default()
        };
        VmRecord {
            clock: ClockReading {
                kvmclock_ns: 1,
                realtime_ns: 2,
                host_tsc: Some(3),
            },
            chips: CHIPS.iter().map(chip).collect(),
            pit: Some(kvm_pit_state2::default()),
        }
    }

    #[test]
    fn golden_bytes() {
        let mut state = DeviceState::new();
        state.push(record().to_section());
        let bytes = state.encode().unwrap();
        assert_eq!(
            bytes[..22],
            *b"\x81\x83\x66kvm.vm\x01\xa7\x01\x48\x01\0\0\0\0\0\0\0\x02"
        );
        assert_eq!(
            (bytes.len(), xxh3_64(&bytes)),
            (1728, 5_365_425_730_837_183_260)
        );
        let section = state.require(NAME, VERSION).unwrap();
        let read = VmRecord::from_section(section, true).unwrap();
        assert_eq!(read.to_section(), record().to_section());
    }

    #[test]
    fn a_chip_in_the_wrong_place_and_a_chip_too_many_are_refused() {
        let mut swapped = record().to_section();
        let ioapic = swapped.take(6).unwrap();
        swapped.put(4, ioapic);
        assert!(VmRecord::from_section(swapped, true).is_err());
        assert_eq!(
            VmRecord::from_section(record().to_section(), false)
                .err()
                .map(|error| error.to_string()),
            Some("section 'kvm.vm' has field 4, which is not known to this build".to_owned())
        );
    }
}
