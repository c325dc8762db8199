//! Guest memory as KVM's memory slots: one slot for each region.
//!
//! # Laws of this room
//!
//! KVM gives the guest whatever host addresses a slot names. They come from a [`GuestMemory`] only,
//! and that memory stays mapped while the slots' owner lives, which keeps the VM alive too: nothing
//! unmaps memory that a VM of ours can still reach.

use std::sync::Arc;

use dunlin_transports::memory::{PAGE_BYTES, PageNumber};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use super::KvmError;
use crate::layout::{GuestAddress, GuestMemory};

/// The most pages in one slot: `KVM_MEM_MAX_NR_PAGES`, (1 << 31) - 1.
const SLOT_PAGES_MAX: u64 = (1 << 31) - 1;

/// One region as KVM sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// Its number, with the address space in the upper half as KVM has it.
    pub(super) number: u32,
    /// Its first page's number in the layout, a multiple of 64.
    pub(super) first_page: u64,
    /// Its length in pages.
    pub(super) pages: u64,
    guest_address: GuestAddress,
    host_address: u64,
}

/// A VM's memory slots for a guest's regions. Keeps both the VM and the memory alive.
#[derive(Clone)]
pub struct KvmSlots {
    vm: Arc<VmFd>,
    memory: GuestMemory,
    slots: Arc<[Slot]>,
}

impl KvmSlots {
    /// Describes the slots of `memory`'s regions in `vm`: `numbers` are their slot numbers, in the
    /// layout's order. Changes nothing in the VM.
    ///
    /// # Errors
    ///
    /// When there are not as many numbers as regions, or a region is too large for a slot.
    pub fn new(vm: Arc<VmFd>, memory: GuestMemory, numbers: &[u32]) -> Result<Self, KvmError> {
        let layout = memory.layout();
        let shapes = layout.regions();
        if shapes.len() != numbers.len() {
            return Err(KvmError::SlotCount {
                slots: numbers.len(),
                regions: shapes.len(),
            });
        }
        let mut slots = Vec::with_capacity(shapes.len());
        for (index, ((shape, region), number)) in
            shapes.iter().zip(memory.regions()).zip(numbers).enumerate()
        {
            let pages = shape.bytes / PAGE_BYTES;
            if pages > SLOT_PAGES_MAX {
                return Err(KvmError::SlotTooLarge {
                    address: shape.address,
                    pages,
                    max: SLOT_PAGES_MAX,
                });
            }
            slots.push(Slot {
                number: *number,
                first_page: layout.first_page(index).map_or(0, |first| first.0),
                pages,
                guest_address: shape.address,
                host_address: region.guest_mapping.base() as u64,
            });
        }
        Ok(Self {
            vm,
            memory,
            slots: slots.into(),
        })
    }

    /// Gives the memory to the VM, without dirty logging.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn register(&self) -> Result<(), KvmError> {
        self.set_flags(0)
    }

    pub(super) fn log_dirty_pages(&self, log: bool) -> Result<(), KvmError> {
        self.set_flags(if log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })
    }

    fn set_flags(&self, flags: u32) -> Result<(), KvmError> {
        for slot in self.slots.iter() {
            let region = kvm_userspace_memory_region {
                slot: slot.number,
                flags,
                guest_phys_addr: slot.guest_address.0,
                memory_size: slot.pages * PAGE_BYTES,
                userspace_addr: slot.host_address,
            };
            // SAFETY: the host range is the guest's mapping of a region of `self.memory`, which
            // stays mapped while this value lives; everything that uses the VM through this crate
            // holds one. Nobody has a Rust reference into guest memory (`HostMapping`'s contract).
            unsafe { self.vm.set_user_memory_region(region) }
                .map_err(KvmError::system("setting a memory slot"))?;
        }
        Ok(())
    }

    pub(super) fn vm(&self) -> &VmFd {
        &self.vm
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    /// One more than the highest page number: how long a bitmap of the slots is.
    pub(super) fn page_span(&self) -> u64 {
        self.memory.layout().page_span()
    }

    /// The slot whose share of the bitmap starts at or before a page.
    pub(super) fn slot_of(&self, page: PageNumber) -> Option<&Slot> {
        let behind = self.slots.partition_point(|slot| slot.first_page <= page.0);
        self.slots.get(behind.checked_sub(1)?)
    }

    /// The layout's page number of a slot's page.
    pub(super) fn page(&self, number: u32, offset: u64) -> Option<PageNumber> {
        let slot = self.slots.iter().find(|slot| slot.number == number)?;
        (offset < slot.pages).then(|| PageNumber(slot.first_page + offset))
    }
}

#[cfg(test)]
mod tests {
    use dunlin_transports::memory::{HostMapping, OwnedMapping};

    use super::*;
    use crate::dirty::{DirtyBitmap, DirtySource};
    use crate::kvm::KvmBitmap;
    use crate::layout::{Backing, Layout, Region, RegionShape};

    /// Regions of 3 and 70 pages in the slots 3 and 9.
    fn slots() -> Option<KvmSlots> {
        let kvm = match kvm_ioctls::Kvm::new() {
            Ok(kvm) => kvm,
            Err(error) => {
                println!("skipped: no KVM here: {error}");
                return None;
            }
        };
        let sizes = [(0, 3), (1 << 20, 70)];
        let shapes = sizes.map(|(address, pages)| RegionShape {
            address: GuestAddress(address),
            bytes: pages * PAGE_BYTES,
            backing: Backing::Anonymous,
            backing_page_bytes: PAGE_BYTES,
        });
        let regions = sizes.map(|(_, pages)| {
            let mapping: Arc<dyn HostMapping> =
                Arc::new(OwnedMapping::new(pages * PAGE_BYTES).unwrap());
            Region {
                file: None,
                file_offset: 0,
                guest_mapping: Arc::clone(&mapping),
                lane_mapping: mapping,
            }
        });
        let layout = Layout::new(1, shapes.to_vec()).unwrap();
        let memory = GuestMemory::new(layout, regions.into()).unwrap();
        let vm = Arc::new(kvm.create_vm().unwrap());
        assert!(KvmSlots::new(Arc::clone(&vm), memory.clone(), &[3]).is_err());
        Some(KvmSlots::new(vm, memory, &[3, 9]).unwrap())
    }

    #[test]
    fn slots_and_page_numbers_map_to_each_other() {
        let Some(slots) = slots() else { return };
        assert_eq!(slots.page(3, 2), Some(PageNumber(2)));
        assert_eq!(slots.page(3, 3), None);
        assert_eq!(slots.page(9, 69), Some(PageNumber(133)));
        assert_eq!(slots.page(9, u64::MAX), None);
        // The same number in another address space is another slot.
        assert_eq!(slots.page(1 << 16 | 9, 0), None);
        let number = |page| slots.slot_of(PageNumber(page)).map(|slot| slot.number);
        assert_eq!(number(2), Some(3));
        assert_eq!(number(64), Some(9));
    }

    #[test]
    fn a_bitmap_refuses_pages_outside_of_a_slot() {
        let Some(slots) = slots() else { return };
        slots.register().unwrap();
        let bitmap = KvmBitmap::new(slots).unwrap();
        bitmap.start().unwrap();
        let mut dirty = DirtyBitmap::new(134);
        bitmap.collect(&mut dirty).unwrap();
        assert!(bitmap.collect(&mut DirtyBitmap::new(64)).is_err());
        if bitmap.rearms_on_collect() {
            println!("skipped: this host's KVM has no manual dirty log protection");
            return;
        }
        // All of the second slot, which ends in the middle of a word.
        bitmap.rearm(PageNumber(64), &[u64::MAX, 0x3f]).unwrap();
        bitmap.rearm(PageNumber(128), &[0x3f]).unwrap();
        for (first, words) in [(64, 3), (128, 2), (0, 2), (65, 1), (192, 1), (1 << 40, 1)] {
            let outcome = bitmap.rearm(PageNumber(first), &vec![1; words]);
            assert!(outcome.is_err(), "{words} words from {first}");
        }
        bitmap.stop().unwrap();
        bitmap.stop().unwrap();
    }
}
