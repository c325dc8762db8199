//! Guest memory as lanes see it: page numbers, runs, and the host mappings behind them.
//!
//! # Laws of this room
//!
//! 1. **A running guest's memory is never a `&[u8]`.** The guest, or the kernel on its behalf, may
//!    change any byte at any time, so a Rust reference to it would be unsound. Everything here is
//!    a raw pointer, a volatile copy, or a pointer handed to the kernel or a NIC.
//! 2. **A mapping outlives everything that points into it.** A [`MemoryMap`] holds its mappings by
//!    [`Arc`]; whoever hands a pointer to the kernel holds the map until the kernel is done with it.
//! 3. **Every access is bounds-checked here, once**, from page numbers to host pointers; nothing
//!    else in the project computes a host address of guest memory.

use std::sync::Arc;
use std::{fmt, io};

use thiserror::Error;

/// Bytes in a page, the unit of dirty tracking, whatever the backing's own page size.
pub const PAGE_BYTES: u64 = 4096;

/// Page numbers of regions start at multiples of this, so that one region's dirty bits fill whole
/// words of the layout's bitmap (and KVM clears its log in multiples of 64 pages).
pub const REGION_ALIGNMENT_PAGES: u64 = 64;

/// The most bytes that one layout may describe: 64 TiB. It bounds what a peer's layout can make
/// this side allocate (a bitmap of it takes 2 GiB; the layout is checked against the host's memory
/// long before that).
pub const MEMORY_BYTES_MAX: u64 = 64 << 40;

/// A page's place in a layout: its regions laid end to end, each starting at a multiple of
/// [`REGION_ALIGNMENT_PAGES`]. Not a guest-physical frame number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNumber(pub u64);

impl fmt::Display for PageNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "page {}", self.0)
    }
}

/// Consecutive pages of one region, sent as one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run {
    /// The first page.
    pub first: PageNumber,
    /// How many pages; a run of none is invalid.
    pub pages: u32,
}

impl Run {
    /// The run's length in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.pages) * PAGE_BYTES
    }

    /// The page behind the run's last.
    pub fn end(self) -> PageNumber {
        PageNumber(self.first.0.saturating_add(u64::from(self.pages)))
    }
}

/// A piece of this process's address space through which a region's bytes are reached.
///
/// # Safety
///
/// For as long as the value lives, `base() .. base() + bytes()` is mapped readable and writable
/// and stays at that address, `base()` is aligned to [`PAGE_BYTES`], and nobody holds a Rust
/// reference into it.
pub unsafe trait HostMapping: Send + Sync {
    /// The first byte.
    fn base(&self) -> *mut u8;
    /// The length in bytes, a multiple of [`PAGE_BYTES`].
    fn bytes(&self) -> u64;
}

/// What is wrong with a range of pages or with a map.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MemoryError {
    /// The run is empty, or some of it is in no region, or it crosses from one region to the next.
    #[error("a run of {pages} pages at {first} is not inside one region of guest memory")]
    OutsideMemory {
        /// First page of the run.
        first: PageNumber,
        /// Its length in pages.
        pages: u64,
    },
    /// A mapping's address or length is not a multiple of the page size, or it is empty.
    #[error("region {region}: a mapping of {bytes} bytes is empty or not made of whole pages")]
    NotWholePages {
        /// Index of the region.
        region: usize,
        /// The mapping's length in bytes.
        bytes: u64,
    },
    /// The regions add up to more than [`MEMORY_BYTES_MAX`].
    #[error("the regions add up to more than {MEMORY_BYTES_MAX} bytes")]
    TooLarge,
}

struct MappedRegion {
    first: u64,
    pages: u64,
    mapping: Arc<dyn HostMapping>,
}

/// All of a guest's memory through the lanes' mappings. Cheap to clone; clones share the mappings.
#[derive(Clone)]
pub struct MemoryMap {
    regions: Arc<[MappedRegion]>,
    page_span: u64,
}

impl MemoryMap {
    /// A map of `mappings`, one for each region, in the layout's order.
    ///
    /// # Errors
    ///
    /// When a mapping is empty or not made of whole pages, or all together are too large.
    pub fn new(mappings: Vec<Arc<dyn HostMapping>>) -> Result<Self, MemoryError> {
        let mut regions = Vec::with_capacity(mappings.len());
        let mut next = 0_u64;
        for (region, mapping) in mappings.into_iter().enumerate() {
            let bytes = mapping.bytes();
            if bytes == 0
                || !bytes.is_multiple_of(PAGE_BYTES)
                || !(mapping.base() as u64).is_multiple_of(PAGE_BYTES)
            {
                return Err(MemoryError::NotWholePages { region, bytes });
            }
            let first = next;
            let pages = bytes / PAGE_BYTES;
            next = next_region_start(first, pages).ok_or(MemoryError::TooLarge)?;
            regions.push(MappedRegion {
                first,
                pages,
                mapping,
            });
        }
        let page_span = regions.last().map_or(0, |last| last.first + last.pages);
        Ok(Self {
            regions: regions.into(),
            page_span,
        })
    }

    /// One more than the highest page number in use: the length, in bits, of a bitmap of it all.
    pub fn page_span(&self) -> u64 {
        self.page_span
    }

    /// One run for each region (several where a region has more pages than a run can hold).
    pub fn whole(&self) -> Vec<Run> {
        let mut runs = Vec::with_capacity(self.regions.len());
        for region in self.regions.iter() {
            let end = region.first + region.pages;
            let mut first = region.first;
            while first < end {
                // A chunk border below 2^32 pages, so that the pieces stay aligned.
                let pages = u32::try_from(end - first).unwrap_or(1 << 31);
                runs.push(Run {
                    first: PageNumber(first),
                    pages,
                });
                first += u64::from(pages);
            }
        }
        runs
    }

    /// The host address of a run's first byte. The run's bytes lie behind it, contiguous, and stay
    /// mapped while this map (or a clone) lives.
    ///
    /// # Errors
    ///
    /// When the run is not inside one region.
    pub fn host_address(&self, run: Run) -> Result<*mut u8, MemoryError> {
        let outside = || MemoryError::OutsideMemory {
            first: run.first,
            pages: u64::from(run.pages),
        };
        let index = self
            .regions
            .partition_point(|region| region.first <= run.first.0);
        let region = index
            .checked_sub(1)
            .and_then(|index| self.regions.get(index));
        let region = region.ok_or_else(outside)?;
        let page_in_region = run.first.0 - region.first;
        let inside = page_in_region
            .checked_add(u64::from(run.pages))
            .is_some_and(|end| end <= region.pages && run.pages > 0);
        if !inside {
            return Err(outside());
        }
        // `page_in_region` is inside the mapping, so neither the product nor the sum can wrap.
        Ok(region
            .mapping
            .base()
            .wrapping_add((page_in_region * PAGE_BYTES) as usize))
    }

    /// Checks that a run is inside one region.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub fn check(&self, run: Run) -> Result<(), MemoryError> {
        self.host_address(run).map(|_| ())
    }

    /// Copies a run out of guest memory into `buffer`, which is exactly as long.
    ///
    /// The guest may write meanwhile: the copy may hold a mix of old and new bytes.
    ///
    /// # Errors
    ///
    /// When the run is not inside one region, or `buffer` has another length.
    pub fn copy_out(&self, run: Run, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let source = self.host_address_for(run, buffer.len())?;
        // SAFETY: `host_address_for` checked that `buffer.len()` bytes are mapped at `source`, and
        // the map keeps them so. The destination is a distinct, exclusively borrowed buffer. The
        // source may change during the copy; see `copy_volatile`.
        unsafe { copy_volatile(source, buffer.as_mut_ptr(), buffer.len()) };
        Ok(())
    }

    /// Copies `bytes`, exactly as long as the run, into guest memory.
    ///
    /// # Errors
    ///
    /// When the run is not inside one region, or `bytes` has another length.
    pub fn copy_in(&self, run: Run, bytes: &[u8]) -> Result<(), MemoryError> {
        let destination = self.host_address_for(run, bytes.len())?;
        // SAFETY: as in `copy_out`, with the directions exchanged.
        unsafe { copy_volatile(bytes.as_ptr(), destination, bytes.len()) };
        Ok(())
    }

    /// Writes zeros over a run.
    ///
    /// # Errors
    ///
    /// When the run is not inside one region.
    pub fn fill_zero(&self, run: Run) -> Result<(), MemoryError> {
        const ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];
        let destination = self.host_address(run)?;
        for page in 0..run.pages as usize {
            let at = destination.wrapping_add(page * PAGE_BYTES as usize);
            // SAFETY: `host_address` checked that the whole run is mapped; `at` is inside it.
            unsafe { copy_volatile(ZEROS.as_ptr(), at, ZEROS.len()) };
        }
        Ok(())
    }

    /// Has the kernel back a run with memory now, so that nobody waits for a page fault there later
    /// (`MADV_POPULATE_WRITE`, Linux 5.14). No byte changes.
    ///
    /// # Errors
    ///
    /// When the run is not inside one region, or the kernel's: it has no such call or no memory.
    pub fn populate(&self, run: Run) -> io::Result<()> {
        let base = self.host_address(run).map_err(io::Error::other)?;
        loop {
            // SAFETY: `host_address` checked that the whole run is mapped. The call changes no
            // byte and no reference of this process's: it makes writable what is mapped so.
            let result = unsafe {
                libc::madvise(base.cast(), run.bytes() as usize, libc::MADV_POPULATE_WRITE)
            };
            if result == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    fn host_address_for(&self, run: Run, bytes: usize) -> Result<*mut u8, MemoryError> {
        if run.bytes() != bytes as u64 {
            return Err(MemoryError::OutsideMemory {
                first: run.first,
                pages: bytes as u64 / PAGE_BYTES,
            });
        }
        self.host_address(run)
    }
}

impl fmt::Debug for MemoryMap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("MemoryMap")
            .field("regions", &self.regions.len())
            .field("page_span", &self.page_span)
            .finish()
    }
}

/// Where the next region starts when one starts at page `first` and has `pages` pages; `None` when
/// that would pass [`MEMORY_BYTES_MAX`].
pub fn next_region_start(first: u64, pages: u64) -> Option<u64> {
    let end = first.checked_add(pages)?;
    (end <= MEMORY_BYTES_MAX / PAGE_BYTES).then(|| end.next_multiple_of(REGION_ALIGNMENT_PAGES))
}

/// Copies `bytes` bytes, one side of which may be written by others meanwhile.
///
/// The copy is made by the processor's string move, outside of what the compiler may assume about
/// memory, so a concurrent writer yields a mix of old and new bytes and nothing worse.
///
/// # Safety
///
/// `source` is readable and `destination` writable for `bytes` bytes, and they do not overlap.
pub unsafe fn copy_volatile(source: *const u8, destination: *mut u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `rep movsb` reads and writes exactly the ranges that the caller vouches for. The
    // direction flag is clear by the ABI. The block is declared to touch memory.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") bytes => _,
            inout("rsi") source => _,
            inout("rdi") destination => _,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    for offset in 0..bytes {
        // SAFETY: `offset` is below `bytes`, for which the caller vouches.
        unsafe {
            destination
                .add(offset)
                .write_volatile(source.add(offset).read_volatile())
        };
    }
}

/// Zero-filled private memory of this process, as a region's mapping: for tests and tools.
pub struct OwnedMapping {
    base: *mut u8,
    bytes: u64,
}

impl OwnedMapping {
    /// Maps `bytes` bytes (rounded up to whole pages) of fresh zero-filled memory.
    ///
    /// # Errors
    ///
    /// The kernel's, when the memory can't be mapped.
    pub fn new(bytes: u64) -> io::Result<Self> {
        let bytes = bytes.max(1).next_multiple_of(PAGE_BYTES);
        let length = usize::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            base: base.cast(),
            bytes,
        })
    }
}

impl Drop for OwnedMapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, belongs to this value, and is unmapped only here.
        unsafe { libc::munmap(self.base.cast(), self.bytes as usize) };
    }
}

// SAFETY: the memory stays mapped at one address until drop, is page-aligned, and is handed out as
// a raw pointer only.
unsafe impl HostMapping for OwnedMapping {
    fn base(&self) -> *mut u8 {
        self.base
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

// SAFETY: the value is an address range; access to what is behind it is raw and up to its users.
unsafe impl Send for OwnedMapping {}
// SAFETY: as for `Send`.
unsafe impl Sync for OwnedMapping {}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(sizes: &[u64]) -> MemoryMap {
        let mappings = sizes
            .iter()
            .map(|pages| -> Arc<dyn HostMapping> {
                Arc::new(OwnedMapping::new(pages * PAGE_BYTES).unwrap())
            })
            .collect();
        MemoryMap::new(mappings).unwrap()
    }

    fn run(first: u64, pages: u32) -> Run {
        Run {
            first: PageNumber(first),
            pages,
        }
    }

    #[test]
    fn regions_start_at_aligned_page_numbers() {
        let map = map(&[3, 70, 1]);
        assert_eq!(map.whole(), vec![run(0, 3), run(64, 70), run(192, 1)]);
        assert_eq!(map.page_span(), 193);
    }

    #[test]
    fn runs_outside_a_region_are_refused() {
        let map = map(&[3, 70]);
        for bad in [
            run(0, 0),
            run(0, 4),
            run(3, 1),
            run(63, 2),
            run(64, 71),
            run(u64::MAX, 2),
        ] {
            assert!(map.check(bad).is_err(), "{bad:?}");
        }
        for good in [run(0, 3), run(2, 1), run(64, 70), run(133, 1)] {
            map.check(good).unwrap();
        }
    }

    #[test]
    fn copies_reach_the_right_bytes() {
        let map = map(&[2, 2]);
        let page = [7_u8; PAGE_BYTES as usize];
        map.copy_in(run(65, 1), &page).unwrap();
        let mut both = vec![1_u8; 2 * PAGE_BYTES as usize];
        map.copy_out(run(64, 2), &mut both).unwrap();
        assert!(both[..PAGE_BYTES as usize].iter().all(|byte| *byte == 0));
        assert_eq!(&both[PAGE_BYTES as usize..], &page);
        map.fill_zero(run(65, 1)).unwrap();
        map.copy_out(run(64, 2), &mut both).unwrap();
        assert!(both.iter().all(|byte| *byte == 0));
        assert!(map.copy_out(run(64, 1), &mut both).is_err());
    }
}
