//! KVM's dirty log as a ring for each vCPU.
//!
//! The rings (`KVM_CAP_DIRTY_LOG_RING_ACQ_REL`) are enabled before the first vCPU is created. A
//! collection harvests every ring and then resets them, which re-arms the pages; the kernel demands
//! that the reset comes before their bytes are read. A ring that is nearly full throws its vCPU out
//! of the guest with exit 31 (`KVM_EXIT_DIRTY_RING_FULL`); its thread calls
//! [`KvmRing::on_ring_full`] and goes on.
//!
//! While a vCPU is in the guest the processor may still hold back writes that are not in its ring
//! (PML, Intel's log, is flushed by the kernel at each exit). A collection then does not report
//! them, and a later one does; the last collection comes after every vCPU has left `KVM_RUN`
//! (law 7), and misses nothing.
//!
//! A reset that a signal cuts short forgets pages (see the room `uninterrupted`). Signals are
//! blocked for it; and where the thread may have been stopped in it all the same, every page that it
//! was to re-arm counts as dirty in each collection from then on, until the tracking ends.

use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dunlin_transports::memory::PageNumber;
use kvm_bindings::{KVM_CAP_DIRTY_LOG_RING_ACQ_REL, kvm_enable_cap};
use kvm_ioctls::VmFd;

use super::ring_entries::RingEntries;
use super::uninterrupted::uninterrupted;
use super::{KvmError, KvmSlots, ioctl};
use crate::dirty::{DirtyBitmap, DirtySource};
use crate::guest::GuestError;

/// The exit reason of a vCPU whose ring is full; `kvm-ioctls` tells it as `Unsupported(31)`.
const EXIT_RING_FULL: u32 = 31;

/// The smallest ring: one page.
const RING_BYTES_MIN: u32 = 4096;

/// How often a reset is begun anew that did not take all that was taken from the rings. Once is
/// enough where nothing stops the thread, and each begins where the last one ended.
const RESETS_MAX: u32 = 64;

/// A guest's writes, by KVM's rings.
pub struct KvmRing {
    slots: KvmSlots,
    harvest: Mutex<Harvest>,
}

struct Harvest {
    rings: Vec<RingEntries>,
    /// Pages of entries that were taken: reported by the next collection.
    pending: DirtyBitmap,
    /// How many entries were taken and not yet reset.
    not_reset: u64,
    /// Pages that may not be armed any more: every collection reports them.
    unarmed: DirtyBitmap,
    /// The first entry that named no page of the guest. Kept, so that the vCPU's thread can go on
    /// and the move fails.
    stray: Option<(usize, u32, u64)>,
}

impl KvmRing {
    /// The exit reason of a vCPU whose ring is full, as [`kvm_ioctls::VcpuExit::Unsupported`] tells
    /// it.
    pub const EXIT_REASON: u32 = EXIT_RING_FULL;

    /// Turns the rings on, `bytes` (a power of two) for each vCPU at 16 bytes an entry. Before the
    /// VM's first vCPU is created. From then on the VM has no dirty bitmap.
    ///
    /// # Errors
    ///
    /// When KVM has no rings, or none of that size. Processors with PML need 16 KiB at least.
    pub fn enable(vm: &VmFd, bytes: u32) -> Result<(), KvmError> {
        let max = vm.check_extension_raw(KVM_CAP_DIRTY_LOG_RING_ACQ_REL.into());
        let max = u32::try_from(max).unwrap_or(0);
        if max == 0 {
            return Err(KvmError::Lacking("dirty ring"));
        }
        if !bytes.is_power_of_two() || bytes < RING_BYTES_MIN || bytes > max {
            return Err(KvmError::RingSize { bytes, max });
        }
        let mut capability = kvm_enable_cap {
            cap: KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
            ..Default::default()
        };
        capability.args[0] = bytes.into();
        vm.enable_cap(&capability)
            .map_err(KvmError::system("enabling the dirty rings"))
    }

    /// Maps the rings of `vcpus`, all vCPUs of the VM; `bytes` is what was enabled.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn new<'a, V: AsRawFd + 'a>(
        slots: KvmSlots,
        bytes: u32,
        vcpus: impl IntoIterator<Item = &'a V>,
    ) -> Result<Self, KvmError> {
        let rings = vcpus
            .into_iter()
            .map(|vcpu| RingEntries::map(vcpu.as_raw_fd(), bytes))
            .collect::<Result<_, _>>()
            .map_err(KvmError::io("mapping a dirty ring"))?;
        let clean = DirtyBitmap::new(slots.page_span());
        Ok(Self {
            slots,
            harvest: Mutex::new(Harvest {
                rings,
                pending: clean.clone(),
                not_reset: 0,
                unarmed: clean,
                stray: None,
            }),
        })
    }

    /// What a vCPU's thread does when its ring is full: takes what is in the rings, keeps it for the
    /// next collection, and makes room. The vCPU may be entered again afterwards.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn on_ring_full(&self) -> Result<(), KvmError> {
        self.lock().take(&self.slots)
    }

    fn try_collect(&self, into: &mut DirtyBitmap) -> Result<(), KvmError> {
        let mut harvest = self.lock();
        harvest.take(&self.slots)?;
        into.union(&harvest.pending);
        into.union(&harvest.unarmed);
        harvest.pending.clear();
        match harvest.stray {
            None => Ok(()),
            Some((vcpu, slot, offset)) => Err(KvmError::StrayRingEntry { vcpu, slot, offset }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Harvest> {
        self.harvest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Harvest {
    /// Takes what is in the rings into `pending`, and resets it.
    fn take(&mut self, slots: &KvmSlots) -> Result<(), KvmError> {
        for (vcpu, ring) in self.rings.iter_mut().enumerate() {
            let taken = ring.harvest(|slot, offset| match slots.page(slot, offset) {
                Some(page) => self.pending.set(page),
                None => self.stray = self.stray.or(Some((vcpu, slot, offset))),
            });
            self.not_reset += u64::from(taken);
        }
        let mut calls = 0;
        let mut whole = true;
        while self.not_reset > 0 && calls < RESETS_MAX {
            let call = uninterrupted(|| ioctl::reset_dirty_rings(slots.vm()))
                .map_err(KvmError::io("blocking signals"))?;
            let reset = call
                .value
                .map_err(KvmError::io("resetting the dirty rings"))?;
            self.not_reset = self.not_reset.saturating_sub(u64::from(reset));
            whole &= !call.stopped && self.not_reset == 0;
            calls += 1;
        }
        if !whole {
            self.unarmed.union(&self.pending);
        }
        match self.not_reset {
            0 => Ok(()),
            entries => Err(KvmError::RingNotReset { calls, entries }),
        }
    }
}

impl DirtySource for KvmRing {
    fn name(&self) -> &'static str {
        "kvm-ring"
    }

    fn start(&self) -> Result<(), GuestError> {
        {
            let mut harvest = self.lock();
            harvest.pending.clear();
            harvest.stray = None;
        }
        Ok(self.slots.log_dirty_pages(true)?)
    }

    fn collect(&self, into: &mut DirtyBitmap) -> Result<(), GuestError> {
        Ok(self.try_collect(into)?)
    }

    fn rearms_on_collect(&self) -> bool {
        true
    }

    fn rearm(&self, _first: PageNumber, _words: &[u64]) -> Result<(), GuestError> {
        Ok(())
    }

    fn stop(&self) -> Result<(), GuestError> {
        self.slots.log_dirty_pages(false)?;
        let mut harvest = self.lock();
        // What is left in the rings concerns nobody any more; taking it keeps them from filling.
        harvest.take(&self.slots)?;
        // The next tracking begins with every page armed.
        harvest.unarmed.clear();
        Ok(())
    }
}
