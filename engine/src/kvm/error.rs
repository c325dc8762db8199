//! Why something about a KVM guest failed.

use std::io;

use dunlin_transports::memory::PageNumber;
use thiserror::Error;

use crate::guest::GuestError;
use crate::layout::GuestAddress;
use crate::state::StateError;

/// Why something about a KVM guest failed.
#[derive(Debug, Error)]
pub enum KvmError {
    /// `/dev/kvm` is not there or may not be used.
    #[error("/dev/kvm can't be opened: {0} (is KVM loaded, and may this user read and write it?)")]
    Open(io::Error),
    /// KVM refused a call.
    #[error("KVM: {doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// KVM on this host lacks something.
    #[error("this host's KVM has no {0}")]
    Lacking(&'static str),
    /// The two sides' VMs are not made alike.
    #[error("one side has {0} in the kernel, the other not; create both VMs alike")]
    PlatformDiffers(&'static str),
    /// A section is not what it should be.
    #[error(transparent)]
    State(#[from] StateError),
    /// There are not as many slot numbers as regions.
    #[error("{slots} memory slots were named for {regions} regions")]
    SlotCount {
        /// How many slots.
        slots: usize,
        /// How many regions.
        regions: usize,
    },
    /// A region is larger than a memory slot can be.
    #[error("the region at {address} has {pages} pages, a KVM memory slot at most {max}")]
    SlotTooLarge {
        /// Where the region is.
        address: GuestAddress,
        /// Its length in pages.
        pages: u64,
        /// The most that a slot takes.
        max: u64,
    },
    /// Pages to re-arm, or a bitmap to fill, do not fit the layout.
    #[error("{pages} pages at {first} are not inside one memory slot's share of the bitmap")]
    OutsideSlot {
        /// The first page.
        first: PageNumber,
        /// How many.
        pages: u64,
    },
    /// A ring named a page that is in none of the guest's slots.
    #[error(
        "the dirty ring of vCPU {vcpu} names page {offset:#x} of slot {slot}, which is not guest memory"
    )]
    StrayRingEntry {
        /// Whose ring.
        vcpu: usize,
        /// The slot, with the address space in its upper half.
        slot: u32,
        /// The page in the slot.
        offset: u64,
    },
    /// Entries that were taken from the rings stay in them.
    #[error(
        "KVM_RESET_DIRTY_RINGS was called {calls} times and left {entries} entries that were taken"
    )]
    RingNotReset {
        /// How often it was called.
        calls: u32,
        /// How many entries it left.
        entries: u64,
    },
    /// A ring's size is impossible.
    #[error(
        "a dirty ring of {bytes} bytes is not possible here: a power of two from 4096 to {max}"
    )]
    RingSize {
        /// What was asked for.
        bytes: u32,
        /// The most that this host allows.
        max: u32,
    },
    /// The guest's TSC can't have its frequency here.
    #[error(
        "the guest's TSC runs at {source_khz} kHz, this host's at {destination_khz} kHz, more than \
         250 ppm apart, and KVM can't scale it here; choose a destination with the same frequency"
    )]
    TscFrequency {
        /// The source's, in kHz.
        source_khz: u32,
        /// The destination's, in kHz.
        destination_khz: u32,
    },
    /// The guest was shown processor features that this host lacks.
    #[error(
        "the guest uses processor features that this host lacks: CPUID leaf {leaf:#x}.{subleaf}, \
         register {register}, bits {bits:#010x}"
    )]
    Cpuid {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
        /// Which register.
        register: &'static str,
        /// The bits that are missing.
        bits: u32,
    },
    /// A model-specific register can't have the value it had.
    #[error("vCPU {vcpu}: MSR {index:#x} can't be set to {value:#x} on this host")]
    Msr {
        /// Which vCPU.
        vcpu: u32,
        /// Which register.
        index: u32,
        /// The value it had on the source.
        value: u64,
    },
    /// The vCPU has state that this host can't take.
    #[error("vCPU {vcpu}: {what}")]
    Vcpu {
        /// Which vCPU.
        vcpu: u32,
        /// What is wrong.
        what: String,
    },
}

impl KvmError {
    /// For `map_err` behind a call of `kvm-ioctls`.
    pub(super) fn system(doing: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::System {
            doing,
            source: error.into(),
        }
    }

    /// For `map_err` behind a call of this room.
    pub(super) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { doing, source }
    }
}

impl From<KvmError> for GuestError {
    fn from(error: KvmError) -> Self {
        Self::message(error.to_string())
    }
}
