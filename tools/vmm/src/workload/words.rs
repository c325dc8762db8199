//! Access to one page of guest memory, word by word.
//!
//! # Laws of this room
//!
//! 1. A [`PageWords`] borrows the [`MemoryMap`] it points into, so the page stays mapped.
//! 2. Every access is one aligned 8-byte atomic: the guest may write the same word at any time, and
//!    on x86-64 and AArch64 such an access never tears. No reference to the page's bytes is made.
//! 3. Accesses are relaxed; whoever needs an order puts a fence where it is needed.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use dunlin_transports::memory::{MemoryError, MemoryMap, PAGE_BYTES, PageNumber, Run};

/// Words of 8 bytes in a page.
pub const PAGE_WORDS: usize = (PAGE_BYTES / 8) as usize;

/// A page of guest memory as 512 little-endian words.
#[derive(Clone, Copy, Debug)]
pub struct PageWords<'map> {
    base: *mut u64,
    map: PhantomData<&'map MemoryMap>,
}

impl<'map> PageWords<'map> {
    /// The words of `page`.
    ///
    /// # Errors
    ///
    /// When there is no such page.
    pub fn new(map: &'map MemoryMap, page: PageNumber) -> Result<Self, MemoryError> {
        let address = map.host_address(Run {
            first: page,
            pages: 1,
        })?;
        Ok(Self {
            base: address.cast(),
            map: PhantomData,
        })
    }

    /// Reads a word. The index wraps at the page's end.
    #[inline]
    pub fn load(self, index: usize) -> u64 {
        self.word(index).load(Ordering::Relaxed)
    }

    /// Writes a word. The index wraps at the page's end.
    #[inline]
    pub fn store(self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::Relaxed);
    }

    #[inline]
    fn word(&self, index: usize) -> &AtomicU64 {
        // SAFETY: `new` got the address of a whole mapped page, aligned to it, from the map that
        // this value borrows; the masked index stays inside it. Everyone in this process who may
        // access it at the same time does so through atomics, the processor's string move or the
        // kernel (laws of `transports::memory`).
        unsafe { AtomicU64::from_ptr(self.base.add(index & (PAGE_WORDS - 1))) }
    }
}
