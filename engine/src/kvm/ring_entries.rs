//! One vCPU's dirty ring: its mapping, and reading it as KVM demands.
//!
//! # Laws of this room
//!
//! 1. The kernel writes entries while we read: every access is an atomic one. An entry's `flags` are
//!    loaded with acquire before its slot and offset are read, and stored with release after
//!    (kernel: Documentation/virt/kvm/api.rst, 8.29, "Once an entry is dirty …").
//! 2. Entries are taken in sequence, none skipped: that is all that `KVM_RESET_DIRTY_RINGS` can
//!    take back.
//! 3. One reader at a time: [`RingEntries::harvest`] takes `&mut self`.

use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};

use super::ioctl;

/// `KVM_DIRTY_GFN_F_DIRTY` and `KVM_DIRTY_GFN_F_RESET` (`include/uapi/linux/kvm.h`); bindgen leaves
/// the two out.
const DIRTY: u32 = 1 << 0;
const RESET: u32 = 1 << 1;

/// `struct kvm_dirty_gfn`, as two threads of which one is the kernel share it.
#[repr(C)]
pub(super) struct Entry {
    flags: AtomicU32,
    slot: AtomicU32,
    offset: AtomicU64,
}

const _: () = assert!(size_of::<Entry>() == size_of::<kvm_dirty_gfn>());

/// One vCPU's dirty ring.
pub(super) struct RingEntries {
    base: NonNull<Entry>,
    count: u32,
    next: u32,
}

impl RingEntries {
    /// Maps the ring of a vCPU; `bytes` is what was enabled for the VM.
    pub(super) fn map(vcpu: RawFd, bytes: u32) -> io::Result<Self> {
        let base = ioctl::map_vcpu_pages(vcpu, KVM_DIRTY_LOG_PAGE_OFFSET, bytes as usize)?;
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self {
            base,
            count: bytes / size_of::<Entry>() as u32,
            next: 0,
        })
    }

    /// Takes every entry that is dirty now, at most one ring full, and hands its slot and offset to
    /// `take`. Their pages stay unprotected until `KVM_RESET_DIRTY_RINGS`.
    pub(super) fn harvest(&mut self, mut take: impl FnMut(u32, u64)) -> u32 {
        // SAFETY: `map` mapped `count` entries at `base`, aligned to pages, and they stay mapped
        // while this value lives. All of an entry's fields are atomics, so sharing it with the
        // kernel is sound; any bytes are a value of them.
        let entries =
            unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.count as usize) };
        harvest(entries, &mut self.next, &mut take)
    }
}

/// Takes the dirty entries from `next` on; returns how many there were.
fn harvest(entries: &[Entry], next: &mut u32, take: &mut impl FnMut(u32, u64)) -> u32 {
    let mut taken = 0;
    // Bounded by the ring's length: KVM fills behind us only what was reset.
    while (taken as usize) < entries.len() {
        let index = *next as usize % entries.len();
        let Some(entry) = entries.get(index) else {
            break;
        };
        let flags = entry.flags.load(Ordering::Acquire);
        if flags & (DIRTY | RESET) != DIRTY {
            break;
        }
        take(
            entry.slot.load(Ordering::Relaxed),
            entry.offset.load(Ordering::Relaxed),
        );
        entry.flags.store(RESET, Ordering::Release);
        *next = (index as u32).wrapping_add(1);
        taken += 1;
    }
    taken
}

impl Drop for RingEntries {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map`, belongs to this value, and is unmapped only here.
        unsafe {
            libc::munmap(
                self.base.as_ptr().cast(),
                self.count as usize * size_of::<Entry>(),
            )
        };
    }
}

// SAFETY: the value is the address of a mapping that it owns; what is behind it is atomics.
unsafe impl Send for RingEntries {}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(states: &[u32]) -> Vec<Entry> {
        let entry = |(index, flags): (usize, &u32)| Entry {
            flags: AtomicU32::new(*flags),
            slot: AtomicU32::new(7),
            offset: AtomicU64::new(index as u64),
        };
        states.iter().enumerate().map(entry).collect()
    }

    #[test]
    fn entries_are_taken_in_sequence_up_to_the_first_that_is_not_dirty() {
        let entries = ring(&[DIRTY, DIRTY, 0, DIRTY]);
        let mut next = 0;
        let mut seen = Vec::new();
        assert_eq!(
            harvest(&entries, &mut next, &mut |_, offset| seen.push(offset)),
            2
        );
        assert_eq!(seen, vec![0, 1]);
        assert_eq!(entries[0].flags.load(Ordering::Relaxed), RESET);
        assert_eq!(entries[3].flags.load(Ordering::Relaxed), DIRTY);
    }

    #[test]
    fn a_full_ring_is_taken_once_and_the_place_wraps() {
        let entries = ring(&[DIRTY; 4]);
        let mut next = 3;
        let mut seen = Vec::new();
        assert_eq!(
            harvest(&entries, &mut next, &mut |_, offset| seen.push(offset)),
            4
        );
        assert_eq!(seen, vec![3, 0, 1, 2]);
        assert_eq!(harvest(&entries, &mut next, &mut |_, _| ()), 0);
    }
}
