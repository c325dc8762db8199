//! Guest memory as KVM's memory slots: one for each region, or several.
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

/// The most bytes of a slot where this room makes the slots. Collecting copies one slot's dirty log
/// after the other into the same buffer, and one of 32 KiB stays in the nearest cache: the logs of a
/// clean guest of 8 GiB took 150 µs in one slot for each of its two regions, and 25 in these; 240 and
/// 95 where something else had filled the caches (an AMD EPYC, `kvm_guest` with its vCPU parked).
const PIECE_BYTES: u64 = 1 << 30;

/// A region, or a part of one, as KVM sees it.
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
    /// In the layout's order.
    slots: Arc<[Slot]>,
    /// Their numbers in ascending order, each with its slot's place.
    by_number: Arc<[(u32, usize)]>,
}

impl KvmSlots {
    /// Describes the slots of `memory`'s regions in `vm`, one for each: `numbers` are their slot
    /// numbers, in the layout's order. Changes nothing in the VM.
    ///
    /// # Errors
    ///
    /// When there are not as many numbers as regions, or a region is too large for a slot.
    pub fn new(vm: Arc<VmFd>, memory: GuestMemory, numbers: &[u32]) -> Result<Self, KvmError> {
        let shapes = memory.layout().regions();
        if shapes.len() != numbers.len() {
            return Err(KvmError::SlotCount {
                slots: numbers.len(),
                regions: shapes.len(),
            });
        }
        if let Some(large) = shapes
            .iter()
            .find(|shape| shape.bytes / PAGE_BYTES > SLOT_PAGES_MAX)
        {
            return Err(KvmError::SlotTooLarge {
                address: large.address,
                pages: large.bytes / PAGE_BYTES,
                max: SLOT_PAGES_MAX,
            });
        }
        Ok(Self::of(vm, memory, u64::MAX, numbers.iter().copied()))
    }

    /// Describes slots of at most a GiB for `memory`'s regions in `vm`, numbered from `first_number`
    /// on in the layout's order: writes in them are collected faster than in larger ones. Changes
    /// nothing in the VM.
    pub fn in_pieces(vm: Arc<VmFd>, memory: GuestMemory, first_number: u32) -> Self {
        Self::of(vm, memory, PIECE_BYTES, first_number..)
    }

    fn of(
        vm: Arc<VmFd>,
        memory: GuestMemory,
        piece_bytes: u64,
        mut numbers: impl Iterator<Item = u32>,
    ) -> Self {
        let layout = memory.layout();
        let mut slots = Vec::new();
        for (index, (shape, region)) in layout.regions().iter().zip(memory.regions()).enumerate() {
            let first_page = layout.first_page(index).map_or(0, |first| first.0);
            let mut begin = 0;
            while begin < shape.bytes {
                let bytes = piece_bytes.min(shape.bytes - begin);
                slots.extend(numbers.next().map(|number| Slot {
                    number,
                    first_page: first_page + begin / PAGE_BYTES,
                    pages: bytes / PAGE_BYTES,
                    guest_address: GuestAddress(shape.address.0 + begin),
                    host_address: region.guest_mapping.base() as u64 + begin,
                }));
                begin += bytes;
            }
        }
        let numbers = slots.iter().map(|slot| slot.number);
        let mut by_number: Vec<_> = numbers.zip(0..).collect();
        by_number.sort_unstable();
        Self {
            vm,
            memory,
            slots: slots.into(),
            by_number: by_number.into(),
        }
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
        let found = self
            .by_number
            .binary_search_by_key(&number, |(number, _)| *number);
        let (_, place) = self.by_number.get(found.ok()?)?;
        let slot = self.slots.get(*place)?;
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

    /// A VM, and regions of so many pages for it, each at a GiB's border from 0 on.
    fn vm_with<const REGIONS: usize>(sizes: [u64; REGIONS]) -> Option<(Arc<VmFd>, GuestMemory)> {
        let kvm = match kvm_ioctls::Kvm::new() {
            Ok(kvm) => kvm,
            Err(error) => {
                println!("skipped: no KVM here: {error}");
                return None;
            }
        };
        let mut address = 0;
        let shapes = sizes.map(|pages| {
            let shape = RegionShape {
                address: GuestAddress(address),
                bytes: pages * PAGE_BYTES,
                backing: Backing::Anonymous,
                backing_page_bytes: PAGE_BYTES,
            };
            address += shape.bytes.next_multiple_of(1 << 30);
            shape
        });
        let regions = sizes.map(|pages| {
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
        Some((Arc::new(kvm.create_vm().unwrap()), memory))
    }

    /// Regions of 3 and 70 pages in the slots 3 and 9.
    fn slots() -> Option<KvmSlots> {
        let (vm, memory) = vm_with([3, 70])?;
        assert!(KvmSlots::new(Arc::clone(&vm), memory.clone(), &[3]).is_err());
        Some(KvmSlots::new(vm, memory, &[3, 9]).unwrap())
    }

    #[test]
    fn pieces_cover_every_page_of_all_regions_once() {
        let gib = 1 << 18;
        let Some((vm, memory)) = vm_with([gib, 2 * gib + 70, 3]) else {
            return;
        };
        let layout = memory.layout().clone();
        let slots = KvmSlots::in_pieces(vm, memory, 7);
        let covered: Vec<_> = slots
            .iter()
            .map(|slot| (slot.number, slot.guest_address.0, slot.pages))
            .collect();
        let expected = [
            (7, 0, gib),
            (8, 1 << 30, gib),
            (9, 2 << 30, gib),
            (10, 3 << 30, 70),
            (11, 4 << 30, 3),
        ];
        assert_eq!(covered, expected);
        for (number, offset, region, page) in [
            (8, 0, 1, 0),
            (9, 1, 1, gib + 1),
            (10, 69, 1, 2 * gib + 69),
            (11, 2, 2, 2),
        ] {
            let expected = PageNumber(layout.first_page(region).unwrap().0 + page);
            assert_eq!(slots.page(number, offset), Some(expected));
            assert_eq!(slots.slot_of(expected).unwrap().number, number);
        }
        assert_eq!(slots.page(10, 70), None);
        assert_eq!(slots.page(12, 0), None);
        slots.register().unwrap();
        let bitmap = KvmBitmap::new(slots).unwrap();
        bitmap.start().unwrap();
        let mut dirty = DirtyBitmap::new(layout.page_span());
        bitmap.collect(&mut dirty).unwrap();
        // Where logs begin with every bit set, that is each page once.
        assert!([0, 3 * gib + 73].contains(&dirty.count()));
        bitmap.stop().unwrap();
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
