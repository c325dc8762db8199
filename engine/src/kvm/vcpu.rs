//! Section `kvm.vcpu.N`, version 1: the state of vCPU N.
//!
//! Fields hold the kernel's structs as they are (x86-64, little-endian) unless told otherwise.
//!
//! | field | what |
//! |---|---|
//! | 1 | `kvm_mp_state` |
//! | 2 | `kvm_regs` |
//! | 3 | `kvm_sregs` |
//! | 4 | XSAVE area, 4096 bytes and more (`KVM_CAP_XSAVE2`) |
//! | 5 | `kvm_xcrs` |
//! | 6 | `kvm_debugregs` |
//! | 7 | `kvm_lapic_state`; missing: no interrupt controllers in the kernel |
//! | 8 | nested state, header and data; missing: the guest runs no guests |
//! | 9 | MSRs, each an index (u32) and a value (u64) |
//! | 10 | `kvm_vcpu_events` |
//! | 11 | the TSC's frequency in kHz (u64) |
//! | 12 | the TSC (u64) … |
//! | 13 | … at this real time of the host in nanoseconds (u64) |
//! | 14 | the TSC's offset from the host's (u64); missing: unknown or scaled |
//! | 15 | the APIC timer's TSC deadline (u64); missing: not armed |
//!
//! Saved in the order MP_STATE, REGS, SREGS, XSAVE, XCRS, DEBUGREGS, LAPIC, nested, time, MSRs,
//! VCPU_EVENTS, because reading the MP state makes KVM deliver a pending INIT or SIPI, and events
//! are changed by the calls before. Restored in the same order, with the TSC's frequency before the
//! MSRs that count by it, the LAPIC after SREGS (which hold its base) and before the MSRs (its
//! timer), and the events last; the TSC itself comes after the VM's clock ([`VcpuTime::restore`]).

use kvm_bindings::{
    kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;

use super::ioctl::{self, XSAVE_BYTES_MIN};
use super::time::{VcpuTime, same_frequency};
use super::{KvmError, StateAccess, abi, msrs, nested};
use crate::state::{Section, StateError};

/// The section's version.
pub(super) const VERSION: u16 = 1;

/// The most that a field of variable length may have: far above any XSAVE area (AMX: 11 KiB).
const FIELD_BYTES_MAX: usize = 1 << 20;

mod field {
    pub(super) const MP_STATE: u16 = 1;
    pub(super) const REGS: u16 = 2;
    pub(super) const SREGS: u16 = 3;
    pub(super) const XSAVE: u16 = 4;
    pub(super) const XCRS: u16 = 5;
    pub(super) const DEBUGREGS: u16 = 6;
    pub(super) const LAPIC: u16 = 7;
    pub(super) const NESTED: u16 = 8;
    pub(super) const MSRS: u16 = 9;
    pub(super) const EVENTS: u16 = 10;
    pub(super) const TSC_KHZ: u16 = 11;
    pub(super) const TSC: u16 = 12;
    pub(super) const REALTIME_NS: u16 = 13;
    pub(super) const TSC_OFFSET: u16 = 14;
    pub(super) const TSC_DEADLINE: u16 = 15;
}

/// A vCPU's state, between KVM and the section.
struct VcpuRecord {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Vec<u8>,
    xcrs: kvm_xcrs,
    debugregs: kvm_debugregs,
    lapic: Option<kvm_lapic_state>,
    nested: Option<Vec<u8>>,
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    time: VcpuTime,
}

/// The name of vCPU `number`'s section.
pub(super) fn section_name(number: u32) -> String {
    format!("kvm.vcpu.{number}")
}

impl VcpuRecord {
    fn to_section(&self, number: u32) -> Section {
        let mut section = Section::new(section_name(number), VERSION);
        section
            .put(field::MP_STATE, abi::bytes_of(&self.mp_state))
            .put(field::REGS, abi::bytes_of(&self.regs))
            .put(field::SREGS, abi::bytes_of(&self.sregs))
            .put(field::XSAVE, self.xsave.as_slice())
            .put(field::XCRS, abi::bytes_of(&self.xcrs))
            .put(field::DEBUGREGS, abi::bytes_of(&self.debugregs))
            .put(field::MSRS, msrs::to_bytes(&self.msrs))
            .put(field::EVENTS, abi::bytes_of(&self.events))
            .put_u64(field::TSC_KHZ, self.time.tsc_khz.into())
            .put_u64(field::TSC, self.time.tsc)
            .put_u64(field::REALTIME_NS, self.time.realtime_ns);
        if let Some(lapic) = &self.lapic {
            section.put(field::LAPIC, abi::bytes_of(lapic));
        }
        if let Some(nested) = &self.nested {
            section.put(field::NESTED, nested.as_slice());
        }
        if let Some(offset) = self.time.tsc_offset {
            section.put_u64(field::TSC_OFFSET, offset);
        }
        if let Some(deadline) = self.time.tsc_deadline {
            section.put_u64(field::TSC_DEADLINE, deadline);
        }
        section
    }

    fn from_section(number: u32, mut section: Section) -> Result<Self, StateError> {
        let s = &mut section;
        let tsc_khz = s.require_u64(field::TSC_KHZ)?;
        let tsc_khz = u32::try_from(tsc_khz)
            .map_err(|_| s.bad(field::TSC_KHZ, format!("{tsc_khz} kHz is no frequency")))?;
        let xsave = s.require(field::XSAVE)?;
        if xsave.len() < XSAVE_BYTES_MIN || xsave.len() > FIELD_BYTES_MAX {
            let reason = format!("{} bytes are not an XSAVE area", xsave.len());
            return Err(s.bad(field::XSAVE, reason));
        }
        let msr_bytes = s.require(field::MSRS)?;
        let msrs = msrs::from_bytes(&msr_bytes).ok_or_else(|| {
            let reason = format!("{} bytes are not whole MSRs", msr_bytes.len());
            s.bad(field::MSRS, reason)
        })?;
        let nested = s.take(field::NESTED);
        if let Some(nested) = &nested
            && (nested.len() < ioctl::NESTED_HEADER_BYTES || nested.len() > FIELD_BYTES_MAX)
        {
            let reason = format!("{} bytes are not a nested state", nested.len());
            return Err(s.bad(field::NESTED, reason));
        }
        let record = Self {
            mp_state: abi::require(s, field::MP_STATE)?,
            regs: abi::require(s, field::REGS)?,
            sregs: abi::require(s, field::SREGS)?,
            xsave,
            xcrs: abi::require(s, field::XCRS)?,
            debugregs: abi::require(s, field::DEBUGREGS)?,
            lapic: abi::take(s, field::LAPIC)?,
            nested,
            msrs,
            events: abi::require(s, field::EVENTS)?,
            time: VcpuTime {
                tsc_khz,
                tsc: s.require_u64(field::TSC)?,
                realtime_ns: s.require_u64(field::REALTIME_NS)?,
                tsc_offset: abi::take_u64(s, field::TSC_OFFSET)?,
                tsc_deadline: abi::take_u64(s, field::TSC_DEADLINE)?,
                vcpu: number,
            },
        };
        section.finish()?;
        Ok(record)
    }
}

impl StateAccess {
    /// Reads the state of vCPU `number`, which is parked with its pending exit completed (law 7).
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn save_vcpu(&self, number: u32, vcpu: &VcpuFd) -> Result<Section, KvmError> {
        let system = KvmError::system;
        let mp_state = vcpu
            .get_mp_state()
            .map_err(system("reading the MP state"))?;
        let regs = vcpu.get_regs().map_err(system("reading registers"))?;
        let sregs = vcpu.get_sregs().map_err(system("reading SREGS"))?;
        let mut xsave = vec![0; self.xsave_bytes];
        ioctl::get_xsave(&self.vm, vcpu, &mut xsave).map_err(KvmError::io("reading XSAVE"))?;
        let xcrs = vcpu.get_xcrs().map_err(system("reading XCRS"))?;
        let debugregs = vcpu
            .get_debug_regs()
            .map_err(system("reading debug registers"))?;
        let lapic = self
            .platform
            .irqchip
            .then(|| vcpu.get_lapic().map_err(system("reading the LAPIC")))
            .transpose()?;
        let nested = match self.nested_bytes_max {
            0 => None,
            max => ioctl::get_nested_state(vcpu, max)
                .map_err(KvmError::io("reading nested state"))?
                .filter(|state| !nested::is_empty(state, sregs.efer)),
        };
        let time = VcpuTime::read(number, vcpu, self.host_tsc_khz, self.has_tsc_deadline)?;
        let msrs = msrs::read(vcpu, &self.msrs)?;
        let events = vcpu
            .get_vcpu_events()
            .map_err(system("reading pending events"))?;
        let record = VcpuRecord {
            mp_state,
            regs,
            sregs,
            xsave,
            xcrs,
            debugregs,
            lapic,
            nested,
            msrs,
            events,
            time,
        };
        Ok(record.to_section(number))
    }

    /// Sets the state of vCPU `number`, whose CPUID is set and which has not run. Returns its time,
    /// to be restored when the VM's clock is.
    ///
    /// # Errors
    ///
    /// When the section is not a vCPU's of this version, or KVM refuses some of it.
    pub fn load_vcpu(
        &self,
        number: u32,
        vcpu: &VcpuFd,
        section: Section,
    ) -> Result<VcpuTime, KvmError> {
        let system = KvmError::system;
        let record = VcpuRecord::from_section(number, section)?;
        let xsave = self.fitted_xsave(number, record.xsave)?;
        if record.lapic.is_some() != self.platform.irqchip {
            return Err(KvmError::PlatformDiffers("interrupt controllers"));
        }
        vcpu.set_mp_state(record.mp_state)
            .map_err(system("setting the MP state"))?;
        vcpu.set_regs(&record.regs)
            .map_err(system("setting registers"))?;
        vcpu.set_sregs(&record.sregs)
            .map_err(system("setting SREGS"))?;
        ioctl::set_xsave(&self.vm, vcpu, &xsave).map_err(KvmError::io("setting XSAVE"))?;
        vcpu.set_xcrs(&record.xcrs)
            .map_err(system("setting XCRS"))?;
        vcpu.set_debug_regs(&record.debugregs)
            .map_err(system("setting debug registers"))?;
        if let Some(lapic) = &record.lapic {
            vcpu.set_lapic(lapic).map_err(system("setting the LAPIC"))?;
        }
        if let Some(nested) = &record.nested {
            if self.nested_bytes_max < nested.len() {
                return Err(KvmError::Lacking(
                    "room for the state of the guest's own guests",
                ));
            }
            ioctl::set_nested_state(vcpu, nested).map_err(KvmError::io("setting nested state"))?;
        }
        self.set_frequency(vcpu, record.time.tsc_khz)?;
        msrs::write(vcpu, number, &record.msrs)?;
        vcpu.set_vcpu_events(&record.events)
            .map_err(system("setting pending events"))?;
        let scaled = self
            .host_tsc_khz
            .is_some_and(|host| !same_frequency(host, record.time.tsc_khz));
        Ok(VcpuTime {
            tsc_offset: record.time.tsc_offset.filter(|_| !scaled),
            ..record.time
        })
    }

    /// An area of this host's size. A longer one fits if there is nothing in what is too much.
    fn fitted_xsave(&self, number: u32, mut area: Vec<u8>) -> Result<Vec<u8>, KvmError> {
        let too_much = area.get(self.xsave_bytes..).unwrap_or_default();
        if too_much.iter().any(|byte| *byte != 0) {
            return Err(KvmError::Vcpu {
                vcpu: number,
                what: format!(
                    "its XSAVE area has {} bytes in use, this host's has {}",
                    area.len(),
                    self.xsave_bytes
                ),
            });
        }
        area.resize(self.xsave_bytes, 0);
        Ok(area)
    }

    fn set_frequency(&self, vcpu: &VcpuFd, tsc_khz: u32) -> Result<(), KvmError> {
        let here = vcpu
            .get_tsc_khz()
            .map_err(KvmError::system("reading the TSC's frequency"))?;
        if here == tsc_khz {
            return Ok(());
        }
        if !same_frequency(here, tsc_khz) && self.host_tsc_khz.is_none() {
            return Err(KvmError::TscFrequency {
                source_khz: tsc_khz,
                destination_khz: here,
            });
        }
        vcpu.set_tsc_khz(tsc_khz)
            .map_err(KvmError::system("setting the TSC's frequency"))
    }
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;
    use crate::state::DeviceState;

    fn record() -> VcpuRecord {
        VcpuRecord {
            mp_state: kvm_mp_state { mp_state: 3 },
            regs: kvm_regs {
                rip: 0x1000,
                rflags: 2,
                ..Default::default()
            },
            sregs: kvm_sregs {
                cr0: 1,
                ..Default::default()
            },
            xsave: vec![5; 4096],
            xcrs: kvm_xcrs {
                nr_xcrs: 1,
                ..Default::default()
            },
            debugregs: kvm_debugregs {
                dr6: 0xffff_0ff0,
                ..Default::default()
            },
            lapic: Some(kvm_lapic_state::default()),
            nested: None,
            msrs: vec![(0xc000_0080, 0xd01)],
            events: kvm_vcpu_events {
                flags: 3,
                ..Default::default()
            },
            time: VcpuTime {
                tsc_khz: 2_000_000,
                tsc: 1 << 40,
                realtime_ns: 99,
                tsc_offset: Some(u64::MAX),
                tsc_deadline: None,
                vcpu: 4,
            },
        }
    }

    /// The bytes of version 1 stay what they are. All of them are 6 KiB, so their digest
    /// stands for them.
    #[test]
    fn golden_bytes() {
        let mut state = DeviceState::new();
        state.push(record().to_section(4));
        let bytes = state.encode().unwrap();
        assert_eq!(bytes[..16], *b"\x81\x83\x6akvm.vcpu.4\x01\xad\x01");
        assert_eq!(
            (bytes.len(), xxh3_64(&bytes)),
            (6260, 16_724_048_483_739_462_441)
        );
        let section = DeviceState::decode(&bytes)
            .unwrap()
            .require("kvm.vcpu.4", VERSION)
            .unwrap();
        let read = VcpuRecord::from_section(4, section).unwrap();
        assert_eq!(read.to_section(4), record().to_section(4));
        assert_eq!(read.time, record().time);
    }

    #[test]
    fn what_is_wrong_with_a_section_is_told_by_name() {
        let error = |change: fn(&mut Section)| {
            let mut section = record().to_section(4);
            change(&mut section);
            match VcpuRecord::from_section(4, section) {
                Ok(_) => "none".to_owned(),
                Err(error) => error.to_string(),
            }
        };
        assert_eq!(
            error(|section| {
                section.put(77, vec![]);
            }),
            "section 'kvm.vcpu.4' has field 77, which is not known to this build"
        );
        assert_eq!(
            error(|section| {
                section.put(2, vec![0; 3]);
            }),
            "section 'kvm.vcpu.4', field 2: 3 bytes instead of 144"
        );
        assert_eq!(
            error(|section| {
                section.take(10);
            }),
            "section 'kvm.vcpu.4' lacks field 10"
        );
        assert_eq!(
            error(|section| {
                section.put(9, vec![0; 13]);
            }),
            "section 'kvm.vcpu.4', field 9: 13 bytes are not whole MSRs"
        );
        assert_eq!(
            error(|section| {
                section.put(4, vec![0; 100]);
            }),
            "section 'kvm.vcpu.4', field 4: 100 bytes are not an XSAVE area"
        );
        assert_eq!(
            error(|section| {
                section.put(8, vec![0; 100]);
            }),
            "section 'kvm.vcpu.4', field 8: 100 bytes are not a nested state"
        );
        assert_eq!(error(|_| ()), "none");
    }
}
