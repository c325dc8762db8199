//! The VM: memory slots, vCPUs, dirty tracking, and access to its state.

use std::sync::Arc;

use dunlin_engine::dirty::DirtySource;
use dunlin_engine::kvm::{
    Capabilities, CpuidTables, KvmBitmap, KvmError, KvmRing, KvmSlots, Platform, StateAccess,
    Tracking, capabilities,
};
use dunlin_engine::layout::GuestMemory;
use dunlin_engine::state::DeviceState;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::KvmGuestError;
use super::serial_port::SerialPort;
use super::vcpu_thread::{Crew, VcpuThread};
use crate::spec::DirtyTracking;

/// Bytes of a vCPU's dirty ring: 65,536 entries, 256 MiB of pages between two collections.
pub(super) const RING_BYTES: u32 = 1 << 20;

/// Where Intel processors without unrestricted guests keep three pages for real mode: below the
/// BIOS, in the hole that a PC's layout leaves (`KVM_SET_TSS_ADDR`).
const TSS_ADDRESS: usize = 0xfffb_d000;

/// What the vCPUs' CPUID comes from.
pub(super) enum CpuidSource {
    /// What this host supports, for a new guest.
    Host {
        /// How many vCPUs it has.
        vcpus: u32,
    },
    /// What the guest was shown where it comes from.
    Configuration {
        /// A table for each vCPU.
        tables: CpuidTables,
        /// Its TSC and controllers.
        platform: Platform,
    },
}

impl CpuidSource {
    /// Takes it out of an incoming guest's configuration.
    pub(super) fn take_from(configuration: &mut DeviceState, vcpus: u32) -> Result<Self, KvmError> {
        Ok(Self::Configuration {
            tables: CpuidTables::take_from(configuration, vcpus)?,
            platform: Platform::take_from(configuration)?,
        })
    }

    fn vcpus(&self) -> u32 {
        match self {
            Self::Host { vcpus } => *vcpus,
            // `take_from` read exactly as many as a u32 told.
            Self::Configuration { tables, .. } => tables.vcpus() as u32,
        }
    }
}

/// How writes are tracked here.
#[derive(Clone)]
enum Tracker {
    Bitmap(Arc<KvmBitmap>),
    Ring(Arc<KvmRing>),
}

/// The VM. Its vCPUs are handed to their threads once they are set up.
pub(super) struct Hardware {
    slots: KvmSlots,
    tracker: Tracker,
    vcpus: Vec<VcpuFd>,
    pub(super) cpuid: CpuidTables,
    pub(super) platform: Platform,
    pub(super) state: StateAccess,
}

impl Hardware {
    /// Makes a VM with its memory and vCPUs.
    pub(super) fn new(
        memory: &GuestMemory,
        cpuid: CpuidSource,
        tracking: DirtyTracking,
        ring_bytes: u32,
    ) -> Result<Self, KvmGuestError> {
        let host = capabilities()?;
        let kvm = Kvm::new().map_err(|error| KvmError::Open(error.into()))?;
        let vm = Arc::new(
            kvm.create_vm()
                .map_err(KvmGuestError::system("creating a VM"))?,
        );
        let ring = uses_ring(tracking, &host);
        let ring_bytes = ring_bytes.min(host.ring_bytes_max);
        if ring {
            // Before the first vCPU.
            KvmRing::enable(&vm, ring_bytes)?;
        }
        let (irqchip, pit) = match &cpuid {
            CpuidSource::Host { .. } => (true, true),
            CpuidSource::Configuration { platform, .. } => (platform.irqchip, platform.pit),
        };
        create_controllers(&vm, irqchip, pit)?;
        let slots = KvmSlots::in_pieces(Arc::clone(&vm), memory.clone(), 0);
        slots.register()?;
        let vcpus = (0..cpuid.vcpus())
            .map(|number| vm.create_vcpu(number.into()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(KvmGuestError::system(
                "creating a vCPU (fewer may be allowed here)",
            ))?;
        let first = vcpus.first().ok_or(KvmGuestError::Vcpus(0))?;
        let (tables, platform) = match cpuid {
            CpuidSource::Host { .. } => {
                for (number, vcpu) in (0..).zip(&vcpus) {
                    set_host_cpuid(&kvm, number, vcpu)?;
                }
                let platform = Platform::of(first, irqchip, pit)?;
                (CpuidTables::of(&vcpus)?, platform)
            }
            CpuidSource::Configuration { tables, platform } => {
                platform.check(first, host.tsc_control)?;
                tables.check(&kvm, first)?;
                for (number, vcpu) in (0..).zip(&vcpus) {
                    tables.set(number, vcpu)?;
                }
                // The guest's, which is what it has to find wherever it goes next: this host's own
                // frequency may differ, within what KVM takes for the same or because it scales.
                (tables, platform)
            }
        };
        let tracker = if ring {
            Tracker::Ring(Arc::new(KvmRing::new(slots.clone(), ring_bytes, &vcpus)?))
        } else {
            Tracker::Bitmap(Arc::new(KvmBitmap::new(slots.clone())?))
        };
        let state = StateAccess::new(&kvm, vm, first, platform)?;
        Ok(Self {
            slots,
            tracker,
            vcpus,
            cpuid: tables,
            platform,
            state,
        })
    }

    /// A vCPU that has not been handed to its thread.
    pub(super) fn vcpu(&self, number: u32) -> Option<&VcpuFd> {
        self.vcpus.get(number as usize)
    }

    /// Starts a thread for each vCPU; they are at rest.
    pub(super) fn start_threads(
        &mut self,
        ports: &Arc<SerialPort>,
    ) -> Result<(Arc<Crew>, Vec<VcpuThread>), KvmGuestError> {
        let ring = match &self.tracker {
            Tracker::Ring(ring) => Some(ring),
            Tracker::Bitmap(_) => None,
        };
        let mut threads = Vec::new();
        let crew = Crew::new(self.vcpus.len());
        for (number, vcpu) in std::mem::take(&mut self.vcpus).into_iter().enumerate() {
            let thread = VcpuThread::start(
                &crew,
                number,
                vcpu,
                Arc::clone(ports) as _,
                ring.cloned(),
                self.slots.clone(),
            )
            .map_err(KvmGuestError::io("starting a vCPU's thread"))?;
            threads.push(thread);
        }
        Ok((crew, threads))
    }

    /// What knows which pages the vCPUs wrote.
    pub(super) fn dirty_source(&self) -> Arc<dyn DirtySource> {
        match &self.tracker {
            Tracker::Bitmap(bitmap) => Arc::clone(bitmap) as _,
            Tracker::Ring(ring) => Arc::clone(ring) as _,
        }
    }
}

fn uses_ring(tracking: DirtyTracking, host: &Capabilities) -> bool {
    match tracking {
        DirtyTracking::Bitmap => false,
        DirtyTracking::Ring => true,
        DirtyTracking::Auto => host.preferred_tracking() == Tracking::Ring,
    }
}

fn create_controllers(vm: &VmFd, irqchip: bool, pit: bool) -> Result<(), KvmGuestError> {
    vm.set_tss_address(TSS_ADDRESS)
        .map_err(KvmGuestError::system("setting the TSS address"))?;
    if irqchip {
        vm.create_irq_chip()
            .map_err(KvmGuestError::system("creating the interrupt controllers"))?;
    }
    if pit {
        let config = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(config)
            .map_err(KvmGuestError::system("creating the PIT"))?;
    }
    Ok(())
}

/// What this host supports, with the vCPU's own APIC number (Intel SDM volume 2A, CPUID leaves 1,
/// 0xb and 0x1f).
fn set_host_cpuid(kvm: &Kvm, number: u32, vcpu: &VcpuFd) -> Result<(), KvmGuestError> {
    let mut table = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmGuestError::system("reading the supported CPUID"))?;
    for entry in table.as_mut_slice() {
        match entry.function {
            1 => entry.ebx = entry.ebx & 0x00ff_ffff | number << 24,
            0xb | 0x1f => entry.edx = number,
            _ => {}
        }
    }
    vcpu.set_cpuid2(&table)
        .map_err(KvmGuestError::system("setting CPUID"))
}
