//! What the destination must know of a KVM guest before the pause: sections `kvm.cpuid` and
//! `kvm.platform` of its configuration, both version 1.
//!
//! | section | field | what |
//! |---|---|---|
//! | `kvm.cpuid` | 1 + N | the CPUID table of vCPU N: `kvm_cpuid_entry2`s |
//! | `kvm.platform` | 1 | the TSC's frequency in kHz (u64) |
//! | | 2 | whether PIC, IOAPIC and LAPIC are the kernel's (u64, 0 or 1) |
//! | | 3 | whether the PIT is the kernel's (u64, 0 or 1) |

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Kvm, VcpuFd};

use super::time::same_frequency;
use super::{KvmError, abi};
use crate::state::{DeviceState, FIELDS_MAX, Section, StateError};

const PLATFORM: &str = "kvm.platform";
const CPUID: &str = "kvm.cpuid";
const VERSION: u16 = 1;

mod field {
    pub(super) const TSC_KHZ: u16 = 1;
    pub(super) const IRQCHIP: u16 = 2;
    pub(super) const PIT: u16 = 3;
}

/// What a KVM guest's machine is, besides memory and vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Platform {
    /// The frequency of the guest's TSC in kHz.
    pub tsc_khz: u32,
    /// Whether the interrupt controllers are the kernel's.
    pub irqchip: bool,
    /// Whether the PIT is the kernel's.
    pub pit: bool,
}

impl Platform {
    /// The platform of a VM, of which `vcpu` is any vCPU.
    ///
    /// # Errors
    ///
    /// When KVM does not tell the TSC's frequency.
    pub fn of(vcpu: &VcpuFd, irqchip: bool, pit: bool) -> Result<Self, KvmError> {
        let tsc_khz = vcpu
            .get_tsc_khz()
            .map_err(KvmError::system("reading the TSC's frequency"))?;
        Ok(Self {
            tsc_khz,
            irqchip,
            pit,
        })
    }

    /// Whether a guest of this platform can run where `vcpu`, a fresh one, was created.
    /// `tsc_control` is [`super::Capabilities::tsc_control`].
    ///
    /// # Errors
    ///
    /// When the guest's TSC can't have its frequency there.
    pub fn check(&self, vcpu: &VcpuFd, tsc_control: bool) -> Result<(), KvmError> {
        let here = Self::of(vcpu, self.irqchip, self.pit)?.tsc_khz;
        if same_frequency(self.tsc_khz, here) || tsc_control {
            return Ok(());
        }
        Err(KvmError::TscFrequency {
            source_khz: self.tsc_khz,
            destination_khz: here,
        })
    }

    /// Its section.
    pub fn to_section(&self) -> Section {
        let mut section = Section::new(PLATFORM, VERSION);
        section
            .put_u64(field::TSC_KHZ, self.tsc_khz.into())
            .put_u64(field::IRQCHIP, self.irqchip.into())
            .put_u64(field::PIT, self.pit.into());
        section
    }

    /// Takes its section out of a configuration.
    ///
    /// # Errors
    ///
    /// When it is missing or not of this version.
    pub fn take_from(configuration: &mut DeviceState) -> Result<Self, KvmError> {
        let mut section = configuration.require(PLATFORM, VERSION)?;
        let khz = section.require_u64(field::TSC_KHZ)?;
        let tsc_khz = u32::try_from(khz)
            .ok()
            .filter(|khz| *khz > 0)
            .ok_or_else(|| section.bad(field::TSC_KHZ, format!("{khz} kHz is no frequency")))?;
        let platform = Self {
            tsc_khz,
            irqchip: require_bool(&mut section, field::IRQCHIP)?,
            pit: require_bool(&mut section, field::PIT)?,
        };
        section.finish()?;
        Ok(platform)
    }
}

fn require_bool(section: &mut Section, field: u16) -> Result<bool, StateError> {
    match section.require_u64(field)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(section.bad(field, format!("{other} is neither 0 nor 1"))),
    }
}

/// The CPUID tables of a guest's vCPUs. They differ in the APIC's number above all.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuidTables {
    tables: Vec<Vec<kvm_cpuid_entry2>>,
}

impl CpuidTables {
    /// The tables of `vcpus`, in their order.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn of<'a>(vcpus: impl IntoIterator<Item = &'a VcpuFd>) -> Result<Self, KvmError> {
        let table = |vcpu: &VcpuFd| {
            vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES)
                .map(|table| table.as_slice().to_vec())
                .map_err(KvmError::system("reading CPUID"))
        };
        let tables = vcpus.into_iter().map(table).collect::<Result<_, _>>()?;
        Ok(Self { tables })
    }

    /// How many vCPUs there are tables of.
    pub fn vcpus(&self) -> usize {
        self.tables.len()
    }

    /// Sets vCPU `number`'s table on `vcpu`, which has not run.
    ///
    /// # Errors
    ///
    /// When there is none of that number, or KVM refuses it.
    pub fn set(&self, number: u32, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let table = self.tables.get(number as usize).ok_or(KvmError::Vcpu {
            vcpu: number,
            what: "the configuration has no CPUID of it".to_owned(),
        })?;
        let table = CpuId::from_entries(table).map_err(|_| KvmError::Vcpu {
            vcpu: number,
            what: format!("a CPUID of {} entries is too long", table.len()),
        })?;
        vcpu.set_cpuid2(&table)
            .map_err(KvmError::system("setting CPUID"))
    }

    /// Whether this host has every processor feature that the guest was shown. `vcpu` is a fresh
    /// one: its CPUID is set to all that is supported, and then read back, because a back end that
    /// can't hide a feature of the processor from its guests shows it there (the software back end
    /// PVM does; on others the two are the same). [`CpuidTables::set`] follows.
    ///
    /// # Errors
    ///
    /// The first register of feature bits that it lacks some of.
    pub fn check(&self, kvm: &Kvm, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::system("reading the supported CPUID"))?;
        vcpu.set_cpuid2(&supported)
            .map_err(KvmError::system("setting CPUID"))?;
        let shown = vcpu
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::system("reading CPUID"))?;
        self.check_against(shown.as_slice())
    }

    fn check_against(&self, host: &[kvm_cpuid_entry2]) -> Result<(), KvmError> {
        for guest in self.tables.iter().flatten() {
            for register in FEATURES
                .iter()
                .filter(|known| known.leaf == guest.function && known.subleaf == guest.index)
            {
                let here = host
                    .iter()
                    .find(|entry| entry.function == guest.function && entry.index == guest.index)
                    .map_or(0, |entry| register.name.of(entry));
                let bits = register.name.of(guest) & !here & !register.not_compared;
                if bits != 0 {
                    return Err(KvmError::Cpuid {
                        leaf: guest.function,
                        subleaf: guest.index,
                        register: register.name.text(),
                        bits,
                    });
                }
            }
        }
        Ok(())
    }

    /// Their section.
    pub fn to_section(&self) -> Section {
        let mut section = Section::new(CPUID, VERSION);
        for (field, table) in (1..).zip(&self.tables) {
            let bytes: Vec<u8> = table.iter().flat_map(abi::bytes_of).copied().collect();
            section.put(field, bytes);
        }
        section
    }

    /// Takes the tables of `vcpus` vCPUs out of a configuration.
    ///
    /// # Errors
    ///
    /// When the section is missing or not of this version, or has not as many tables.
    pub fn take_from(configuration: &mut DeviceState, vcpus: u32) -> Result<Self, KvmError> {
        let mut section = configuration.require(CPUID, VERSION)?;
        let fields = u16::try_from(vcpus)
            .ok()
            .filter(|count| usize::from(*count) < FIELDS_MAX)
            .ok_or_else(|| KvmError::Vcpu {
                vcpu: vcpus,
                what: "more vCPUs than a configuration can hold".to_owned(),
            })?;
        let mut tables = Vec::new();
        for field in 1..=fields {
            let bytes = section.require(field)?;
            let entries = bytes.chunks(size_of::<kvm_cpuid_entry2>());
            let table: Option<Vec<kvm_cpuid_entry2>> = entries.map(abi::from_bytes).collect();
            match table {
                Some(table) if table.len() <= KVM_MAX_CPUID_ENTRIES => tables.push(table),
                _ => {
                    let reason = format!("{} bytes are not a CPUID table", bytes.len());
                    return Err(section.bad(field, reason).into());
                }
            }
        }
        section.finish()?;
        Ok(Self { tables })
    }
}

/// A register of a CPUID leaf that holds feature bits: a guest may use each that it was shown.
struct FeatureRegister {
    leaf: u32,
    subleaf: u32,
    name: Register,
    /// Bits that KVM does not report as supported although a guest may have them: it switches them
    /// with a control register (OSXSAVE, OSPKE), or the APIC's (APIC, x2APIC, TSC deadline) or
    /// the VMM's own devices decide (HTT, MONITOR, hypervisor).
    not_compared: u32,
}

#[derive(Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Eax => "EAX",
            Self::Ebx => "EBX",
            Self::Ecx => "ECX",
            Self::Edx => "EDX",
        }
    }
}

const fn features(leaf: u32, subleaf: u32, name: Register, not_compared: u32) -> FeatureRegister {
    FeatureRegister {
        leaf,
        subleaf,
        name,
        not_compared,
    }
}

/// Intel SDM volume 2A and AMD APM volume 3, CPUID.
const FEATURES: [FeatureRegister; 12] = [
    features(
        1,
        0,
        Register::Ecx,
        1 << 3 | 1 << 21 | 1 << 24 | 1 << 27 | 1 << 31,
    ),
    features(1, 0, Register::Edx, 1 << 9 | 1 << 28),
    features(7, 0, Register::Ebx, 0),
    features(7, 0, Register::Ecx, 1 << 4),
    features(7, 0, Register::Edx, 0),
    features(7, 1, Register::Eax, 0),
    // The state components that XCR0 may name.
    features(0xd, 0, Register::Eax, 0),
    features(0xd, 0, Register::Edx, 0),
    features(0xd, 1, Register::Eax, 0),
    features(0x8000_0001, 0, Register::Ecx, 0),
    features(0x8000_0001, 0, Register::Edx, 1 << 9),
    features(0x8000_0008, 0, Register::Ebx, 0),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, ecx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            ecx,
            ..Default::default()
        }
    }

    #[test]
    fn golden_bytes() {
        let mut configuration = DeviceState::new();
        let platform = Platform {
            tsc_khz: 2_000_000,
            irqchip: true,
            pit: false,
        };
        configuration.push(platform.to_section());
        let golden = b"\x81\x83\x6ckvm.platform\x01\xa3\
            \x01\x48\x80\x84\x1e\0\0\0\0\0\x02\x48\x01\0\0\0\0\0\0\0\x03\x48\0\0\0\0\0\0\0\0";
        assert_eq!(configuration.encode().unwrap(), golden);
        assert_eq!(Platform::take_from(&mut configuration).unwrap(), platform);

        let tables = CpuidTables {
            tables: vec![vec![entry(1, 7), entry(7, 0)], vec![entry(1, 7)]],
        };
        let mut configuration = DeviceState::new();
        configuration.push(tables.to_section());
        let bytes = configuration.encode().unwrap();
        assert_eq!(bytes[..17], *b"\x81\x83\x69kvm.cpuid\x01\xa2\x01\x58\x50");
        assert_eq!(
            CpuidTables::take_from(&mut configuration.clone(), 2).unwrap(),
            tables
        );
        assert!(CpuidTables::take_from(&mut configuration.clone(), 1).is_err());
        assert!(CpuidTables::take_from(&mut configuration, 3).is_err());
    }

    #[test]
    fn a_feature_that_the_host_lacks_is_named() {
        let guest = CpuidTables {
            tables: vec![vec![entry(1, 0b101 | 1 << 27)]],
        };
        guest.check_against(&[entry(1, 0b111)]).unwrap();
        assert_eq!(
            guest.check_against(&[entry(1, 1)]).unwrap_err().to_string(),
            "the guest uses processor features that this host lacks: CPUID leaf 0x1.0, register \
             ECX, bits 0x00000004"
        );
    }
}
