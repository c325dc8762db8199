//! Allocating guest memory.
//!
//! Mapping is vm-memory's business. What is here is which file backs a region, and that memfd and
//! huge pages are mapped twice, once for the guest and once for the lanes.
//!
//! # Law of this room
//!
//! A `Mapping` owns its address range, and nothing else maps or unmaps there. The address leaves as
//! a raw pointer only: never as a slice or a reference, since the guest may write at any time.

mod huge_tmpfs;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use dunlin_engine::layout::{
    Backing, GuestAddress, GuestMemory, Layout, LayoutError, Region, RegionShape,
};
use dunlin_transports::memory::{HostMapping, MemoryError, PAGE_BYTES};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use thiserror::Error;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion};

/// Where the hole below 4 GiB begins that a PC leaves for devices: memory past it continues at
/// [`HIGH_MEMORY`].
pub const LOW_MEMORY_END: u64 = 3 << 30;

/// Where memory continues above the 32-bit hole.
pub const HIGH_MEMORY: u64 = 4 << 30;

/// What `/proc/PID/maps` calls a guest's memory.
const NAME: &str = "dunlin-guest";

/// Why memory could not be had.
#[derive(Debug, Error)]
pub enum AllocateError {
    /// The layout is not possible.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Mappings and layout don't fit together.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel has no room.
    #[error("{bytes} bytes of {} memory can't be had: {source}{hint}", backing.name())]
    System {
        /// How much was asked for.
        bytes: u64,
        /// What kind.
        backing: Backing,
        /// The kernel's reason.
        source: io::Error,
        /// What to do about it.
        hint: String,
    },
    /// The size is not made of the backing's pages.
    #[error("{bytes} bytes are not a multiple of the page size of {} memory, {page_bytes} bytes", backing.name())]
    NotWholePages {
        /// How much was asked for.
        bytes: u64,
        /// What kind.
        backing: Backing,
        /// Its page size.
        page_bytes: u64,
    },
}

/// The regions of a PC with `bytes` of memory: all below [`LOW_MEMORY_END`], the rest from
/// [`HIGH_MEMORY`] on.
///
/// # Errors
///
/// When `bytes` is not a layout's size.
pub fn pc_layout(bytes: u64, backing: Backing) -> Result<Layout, AllocateError> {
    let backing_page_bytes = backing_page_bytes(backing);
    if bytes == 0 || !bytes.is_multiple_of(backing_page_bytes) {
        return Err(AllocateError::NotWholePages {
            bytes,
            backing,
            page_bytes: backing_page_bytes,
        });
    }
    let shape = |address, bytes| RegionShape {
        address: GuestAddress(address),
        bytes,
        backing,
        backing_page_bytes,
    };
    let mut regions = vec![shape(0, bytes.min(LOW_MEMORY_END))];
    if bytes > LOW_MEMORY_END {
        regions.push(shape(HIGH_MEMORY, bytes - LOW_MEMORY_END));
    }
    Ok(Layout::new(1, regions)?)
}

/// The page size of a backing on this host, in bytes.
pub fn backing_page_bytes(backing: Backing) -> u64 {
    match backing {
        Backing::Memfd | Backing::Anonymous => PAGE_BYTES,
        Backing::Hugetlb => huge_page_bytes(),
    }
}

/// The same layout on another backing: a destination may back memory in its own way.
///
/// # Errors
///
/// When the sizes are not made of the backing's pages.
pub fn rebacked(layout: &Layout, backing: Backing) -> Result<Layout, AllocateError> {
    let page_bytes = backing_page_bytes(backing);
    let regions = layout.regions().iter().map(|region| RegionShape {
        backing,
        backing_page_bytes: page_bytes,
        ..*region
    });
    if let Some(odd) = layout
        .regions()
        .iter()
        .find(|region| !region.bytes.is_multiple_of(page_bytes))
    {
        return Err(AllocateError::NotWholePages {
            bytes: odd.bytes,
            backing,
            page_bytes,
        });
    }
    Ok(Layout::new(layout.generation(), regions.collect())?)
}

/// Allocates fresh memory for a layout. Memfd and huge pages get two mappings, one for the guest
/// and one for the lanes; anonymous memory has one.
///
/// # Errors
///
/// When the kernel has no room. Huge pages are reserved here and now, so that using them later
/// can't fail.
pub fn allocate(layout: Layout) -> Result<GuestMemory, AllocateError> {
    allocate_with(layout, memfd)
}

/// The same for a guest that is about to arrive, which will write most of it at once: a memfd's
/// memory comes in huge pages wherever this host has some for it ([`comes_in_huge_pages`]).
///
/// # Errors
///
/// As [`allocate`].
pub fn allocate_for_arrival(layout: Layout) -> Result<GuestMemory, AllocateError> {
    allocate_with(layout, file_in_huge_pages)
}

fn allocate_with(
    layout: Layout,
    memfd: fn() -> io::Result<OwnedFd>,
) -> Result<GuestMemory, AllocateError> {
    let regions = layout
        .regions()
        .iter()
        .map(|shape| allocate_region(shape, memfd))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(GuestMemory::new(layout, regions)?)
}

fn allocate_region(
    shape: &RegionShape,
    memfd: fn() -> io::Result<OwnedFd>,
) -> Result<Region, AllocateError> {
    let failed = |source: io::Error| AllocateError::System {
        bytes: shape.bytes,
        backing: shape.backing,
        hint: hint(shape, &source),
        source,
    };
    match shape.backing {
        Backing::Anonymous => {
            let mapping: Arc<dyn HostMapping> =
                Arc::new(Mapping::anonymous(shape.bytes).map_err(failed)?);
            Ok(Region {
                file: None,
                file_offset: 0,
                guest_mapping: Arc::clone(&mapping),
                lane_mapping: mapping,
            })
        }
        Backing::Memfd | Backing::Hugetlb => {
            let file = match shape.backing {
                Backing::Hugetlb => hugetlb(),
                _ => memfd(),
            };
            let file = Arc::new(file.map_err(failed)?);
            ftruncate(&file, shape.bytes).map_err(|error| failed(error.into()))?;
            let guest_mapping = Mapping::shared(&file, shape.bytes).map_err(failed)?;
            let lane_mapping = Mapping::shared(&file, shape.bytes).map_err(failed)?;
            Ok(Region {
                file: Some(file),
                file_offset: 0,
                guest_mapping: Arc::new(guest_mapping),
                lane_mapping: Arc::new(lane_mapping),
            })
        }
    }
}

/// Whether an arriving guest's memory comes in huge pages on this host, when it is asked for.
pub fn comes_in_huge_pages(backing: Backing) -> bool {
    match backing {
        Backing::Hugetlb => true,
        Backing::Anonymous => is_advice_heeded("enabled"),
        Backing::Memfd => is_advice_heeded("shmem_enabled") || huge_tmpfs::file(NAME).is_ok(),
    }
}

fn is_advice_heeded(file: &str) -> bool {
    is_choice_heeding(&choice(file))
}

/// What the kernel does about transparent huge pages, as in `always [madvise] never` (kernel:
/// admin-guide/mm/transhuge); nothing where it has none.
fn choice(file: &str) -> String {
    let text = std::fs::read_to_string(format!("/sys/kernel/mm/transparent_hugepage/{file}"));
    text.unwrap_or_default()
}

fn is_choice_heeding(text: &str) -> bool {
    ["always", "within_size", "advise", "madvise", "force"]
        .iter()
        .any(|choice| text.contains(&format!("[{choice}]")))
}

/// Has a guest's memory, which is fresh, backed by small pages: what is touched takes no more than
/// its own pages then.
pub fn keep_to_small_pages(memory: &GuestMemory) {
    for region in memory.regions() {
        for mapping in [&region.guest_mapping, &region.lane_mapping] {
            let (base, bytes) = (mapping.base(), mapping.bytes() as usize);
            // SAFETY: advice about a range that stays mapped while `mapping` lives; it changes no
            // contents. Memory in huge pages of its own refuses it.
            unsafe { libc::madvise(base.cast(), bytes, libc::MADV_NOHUGEPAGE) };
        }
    }
}

fn hint(shape: &RegionShape, source: &io::Error) -> String {
    let short = source.raw_os_error() == Some(libc::ENOMEM);
    match shape.backing {
        Backing::Hugetlb if short => {
            let pages = shape.bytes.div_ceil(shape.backing_page_bytes);
            format!(
                " (too few free huge pages; 'sysctl vm.nr_hugepages={pages}' or more reserves them)"
            )
        }
        _ => String::new(),
    }
}

fn memfd() -> io::Result<OwnedFd> {
    Ok(memfd_create(NAME, MemfdFlags::CLOEXEC)?)
}

fn hugetlb() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB;
    Ok(memfd_create(NAME, flags)?)
}

/// Where that takes a privilege that this process lacks, a memfd serves.
fn file_in_huge_pages() -> io::Result<OwnedFd> {
    if is_advice_heeded("shmem_enabled") {
        return memfd();
    }
    huge_tmpfs::file(NAME).or_else(|_| memfd())
}

fn huge_page_bytes() -> u64 {
    const USUAL: u64 = 2 << 20;
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    info.lines()
        .find_map(|line| line.strip_prefix("Hugepagesize:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map_or(USUAL, |kib| kib * 1024)
}

/// A range of this process's address space that holds a region.
struct Mapping {
    region: MmapRegion<()>,
}

impl Mapping {
    fn shared(file: &OwnedFd, bytes: u64) -> io::Result<Self> {
        let file = FileOffset::new(File::from(file.try_clone()?), 0);
        let mapping = Self::map(bytes, libc::MAP_SHARED, Some(file))?;
        // Heeded by the files of `huge_tmpfs`, and by memfds where 'shmem_enabled' is 'advise'.
        mapping.advise(libc::MADV_HUGEPAGE);
        Ok(mapping)
    }

    fn anonymous(bytes: u64) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let mapping = Self::map(bytes, flags, None)?;
        mapping.advise(libc::MADV_HUGEPAGE);
        Ok(mapping)
    }

    /// Touching fresh memory is several times cheaper with transparent huge pages. Where the kernel
    /// has none, or for huge pages of its own, small pages serve and the advice is refused.
    fn advise(&self, advice: libc::c_int) {
        // SAFETY: advice about a range that this value owns; it changes no contents.
        unsafe { libc::madvise(self.base().cast(), self.region.size(), advice) };
    }

    fn map(bytes: u64, flags: libc::c_int, file: Option<FileOffset>) -> io::Result<Self> {
        let length = usize::try_from(bytes).map_err(io::Error::other)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        match MmapRegion::build(file, length, protection, flags) {
            Ok(region) => Ok(Self { region }),
            Err(MmapRegionError::Mmap(error)) => Err(error),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

// SAFETY: an `MmapRegion` stays mapped at one address until it is dropped, mmap aligns it to pages,
// and this value hands it out as a raw pointer only.
unsafe impl HostMapping for Mapping {
    fn base(&self) -> *mut u8 {
        self.region.as_ptr()
    }

    fn bytes(&self) -> u64 {
        self.region.size() as u64
    }
}

#[cfg(test)]
mod tests {
    use dunlin_transports::memory::{PageNumber, Run};

    use super::*;

    #[test]
    fn both_mappings_of_a_memfd_show_the_same_bytes() {
        let memory = allocate(pc_layout(1 << 20, Backing::Memfd).unwrap()).unwrap();
        let run = Run {
            first: PageNumber(3),
            pages: 1,
        };
        memory.guest_map().copy_in(run, &[9; 4096]).unwrap();
        let mut page = [0; 4096];
        memory.lane_map().copy_out(run, &mut page).unwrap();
        assert_eq!(page, [9; 4096]);
    }

    #[test]
    fn arriving_memory_is_the_same_in_huge_pages_and_is_all_given_back() {
        let shape = pc_layout(32 << 20, Backing::Memfd).unwrap();
        let memory = allocate_for_arrival(shape).unwrap();
        let run = Run {
            first: PageNumber(600),
            pages: 1,
        };
        memory.lane_map().copy_in(run, &[7; 4096]).unwrap();
        let mut page = [0; 4096];
        memory.guest_map().copy_out(run, &mut page).unwrap();
        assert_eq!(page, [7; 4096]);

        let file = memory.regions()[0].file.clone().unwrap();
        let allocated = || rustix::fs::fstat(&file).unwrap().st_blocks as u64 * 512;
        let page_bytes = match comes_in_huge_pages(Backing::Memfd) {
            true => 2 << 20,
            false => PAGE_BYTES,
        };
        assert_eq!(allocated(), page_bytes);
        // Small pages, where they are asked for.
        keep_to_small_pages(&memory);
        let run = Run {
            first: PageNumber(4096),
            pages: 1,
        };
        memory.lane_map().copy_in(run, &[7; 4096]).unwrap();
        assert_eq!(allocated(), page_bytes + PAGE_BYTES);
    }

    #[test]
    fn the_kernels_choice_is_read() {
        assert!(is_choice_heeding("always [madvise] never\n"));
        assert!(is_choice_heeding(
            "always within_size [advise] never deny force\n"
        ));
        assert!(!is_choice_heeding(
            "always within_size advise [never] deny force\n"
        ));
        assert!(!is_choice_heeding(""));
    }

    #[test]
    fn memory_past_the_hole_continues_at_4_gib() {
        let layout = pc_layout(6 << 30, Backing::Anonymous).unwrap();
        let regions: Vec<_> = layout
            .regions()
            .iter()
            .map(|r| (r.address.0, r.bytes))
            .collect();
        assert_eq!(regions, vec![(0, 3 << 30), (4 << 30, 3 << 30)]);
        assert!(pc_layout(5000, Backing::Memfd).is_err());
    }
}
