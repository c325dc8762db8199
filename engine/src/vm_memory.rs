//! For VMMs whose guest memory is `vm_memory`'s: [`guest_memory`] makes the engine's own type of it
//! (feature `vm-memory`). Nothing is mapped anew: the guest's mapping is the lanes' as well.
//!
//! # Laws of this room
//!
//! 1. A `Mapping` keeps vm-memory's own region alive, which owns the address range; so the
//!    range stays mapped for as long as anything of the engine's points into it.
//! 2. Nothing here reads or writes through it. vm-memory itself makes no Rust reference to guest
//!    memory either, it goes by volatile slices.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use dunlin_transports::memory::{HostMapping, MemoryError, PAGE_BYTES};
use thiserror::Error;
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use crate::layout::{Backing, GuestAddress, GuestMemory, Layout, LayoutError, Region, RegionShape};

/// Why memory of vm-memory's can't be moved.
#[derive(Debug, Error)]
pub enum VmMemoryError {
    /// Its regions are no layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Its regions can't be mapped by page numbers.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A region is mapped without the right to read and write.
    #[error("the region at {address} is not mapped for reading and writing")]
    NotWritable {
        /// Where the guest sees it.
        address: GuestAddress,
    },
    /// A region is mapped in a way of which it can't be told what the guest never touched.
    #[error(
        "the region at {address} is {what}: give it a file that is mapped shared, such as a memfd, \
         or private anonymous memory"
    )]
    Mapped {
        /// Where the guest sees it.
        address: GuestAddress,
        /// How it is mapped.
        what: &'static str,
    },
    /// The kernel refused something about a region's file.
    #[error("the region at {address}: {doing}: {source}")]
    System {
        /// Where the guest sees it.
        address: GuestAddress,
        /// What was being done.
        doing: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// The engine's view of `memory`, which stays mapped while the view (or a clone) lives.
/// `generation` is that of [`Layout::generation`]: to be counted up when regions are added or
/// removed.
///
/// # Errors
///
/// When a region is not made of whole pages, not writable, or mapped in a way that can't be moved.
pub fn guest_memory<B: Bitmap + Send + Sync + 'static>(
    memory: &GuestMemoryMmap<B>,
    generation: u64,
) -> Result<GuestMemory, VmMemoryError> {
    let mut shapes = Vec::new();
    let mut regions = Vec::new();
    for region in memory.iter() {
        let (shape, region) = converted(region)?;
        shapes.push(shape);
        regions.push(region);
    }
    Ok(GuestMemory::new(Layout::new(generation, shapes)?, regions)?)
}

fn converted<B: Bitmap + Send + Sync + 'static>(
    region: &GuestRegionMmap<B>,
) -> Result<(RegionShape, Region), VmMemoryError> {
    let address = GuestAddress(region.start_addr().0);
    let writable = libc::PROT_READ | libc::PROT_WRITE;
    if region.prot() & writable != writable {
        return Err(VmMemoryError::NotWritable { address });
    }
    let shared = region.flags() & libc::MAP_TYPE != libc::MAP_PRIVATE;
    let (file, file_offset, backing, backing_page_bytes) = match (region.file_offset(), shared) {
        (Some(place), true) => {
            let system = |doing| {
                move |source| VmMemoryError::System {
                    address,
                    doing,
                    source,
                }
            };
            let file: OwnedFd = place
                .file()
                .try_clone()
                .map_err(system("duplicating its file"))?
                .into();
            let found = rustix::fs::fstatfs(&file)
                .map_err(|error| system("asking for its file system")(error.into()))?;
            let huge = i128::from(found.f_type) == i128::from(libc::HUGETLBFS_MAGIC);
            let (backing, page_bytes) = if huge {
                // A file system of huge pages has them for blocks.
                let page_bytes = u64::try_from(found.f_bsize).unwrap_or(PAGE_BYTES);
                (Backing::Hugetlb, page_bytes)
            } else {
                (Backing::Memfd, PAGE_BYTES)
            };
            (Some(Arc::new(file)), place.start(), backing, page_bytes)
        }
        (None, false) => (None, 0, Backing::Anonymous, PAGE_BYTES),
        // What the guest did not write is what the file says, which pagemap does not tell from
        // zeros.
        (Some(_), false) => {
            let what = "a private mapping of a file";
            return Err(VmMemoryError::Mapped { address, what });
        }
        // What is swapped out looks untouched in the pagemap of shared memory (law 5).
        (None, true) => {
            let what = "shared memory without a file";
            return Err(VmMemoryError::Mapped { address, what });
        }
    };
    let shape = RegionShape {
        address,
        bytes: region.len(),
        backing,
        backing_page_bytes,
    };
    let mapping: Arc<dyn HostMapping> = Arc::new(Mapping(region.get_mmap()));
    let region = Region {
        file,
        file_offset,
        guest_mapping: Arc::clone(&mapping),
        lane_mapping: mapping,
    };
    Ok((shape, region))
}

/// A region of vm-memory's.
struct Mapping<B>(Arc<MmapRegion<B>>);

// SAFETY: `MmapRegion` unmaps its range only when it is dropped, which this value's share of it
// prevents, or does not own it, and then whoever made it has promised that it outlives the region
// (`build_raw`). It is mapped readable and writable: `converted` looked. mmap aligns it, and
// `GuestMemory::new` checks that it is whole pages. vm-memory makes no reference into it.
unsafe impl<B: Bitmap + Send + Sync> HostMapping for Mapping<B> {
    fn base(&self) -> *mut u8 {
        self.0.as_ptr()
    }

    fn bytes(&self) -> u64 {
        self.0.size() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use dunlin_transports::memory::{PageNumber, Run};
    use vm_memory::mmap::MmapRegionBuilder;
    use vm_memory::{Bytes, FileOffset, GuestAddress as VmAddress};

    use super::*;

    const BYTES: usize = 64 << 10;

    fn memfd(bytes: usize) -> File {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, bytes as u64).unwrap();
        file.into()
    }

    fn of(region: MmapRegion) -> GuestMemoryMmap {
        let region = GuestRegionMmap::new(region, VmAddress(0x10_0000)).unwrap();
        GuestMemoryMmap::from_regions(vec![region]).unwrap()
    }

    fn refusal(region: MmapRegion) -> String {
        guest_memory(&of(region), 1).unwrap_err().to_string()
    }

    #[test]
    fn both_views_show_the_same_bytes_and_the_engines_outlives_the_vmms() {
        let place = FileOffset::new(memfd(3 * BYTES), BYTES as u64);
        let theirs: GuestMemoryMmap = GuestMemoryMmap::from_ranges_with_files([
            (VmAddress(0), BYTES, None),
            (VmAddress(1 << 32), 2 * BYTES, Some(place)),
        ])
        .unwrap();
        let ours = guest_memory(&theirs, 7).unwrap();
        let layout = ours.layout();
        assert_eq!(layout.generation(), 7);
        let backings: Vec<_> = layout
            .regions()
            .iter()
            .map(|region| region.backing)
            .collect();
        assert_eq!(backings, [Backing::Anonymous, Backing::Memfd]);
        assert_eq!(layout.bytes(), 3 * BYTES as u64);
        let page = layout
            .page_of(GuestAddress((1 << 32) + PAGE_BYTES))
            .unwrap();

        theirs
            .write_slice(b"dunlin", VmAddress((1 << 32) + PAGE_BYTES))
            .unwrap();
        drop(theirs);
        let run = Run {
            first: page,
            pages: 1,
        };
        let mut bytes = vec![0; PAGE_BYTES as usize];
        ours.lane_map().copy_out(run, &mut bytes).unwrap();
        assert_eq!(&bytes[..6], b"dunlin");
        // The file is the region's too, from its offset on.
        let region = &ours.regions()[1];
        assert_eq!(region.file_offset, BYTES as u64);
        let mut bytes = [0; 6];
        let file = region.file.as_ref().unwrap();
        rustix::io::pread(file, &mut bytes, region.file_offset + PAGE_BYTES).unwrap();
        assert_eq!(&bytes, b"dunlin");
    }

    #[test]
    fn what_nobody_touched_is_found() {
        for file in [None, Some(FileOffset::new(memfd(BYTES), 0))] {
            let theirs: GuestMemoryMmap =
                GuestMemoryMmap::from_ranges_with_files([(VmAddress(0), BYTES, file)]).unwrap();
            let ours = guest_memory(&theirs, 1).unwrap();
            let untouched = crate::untouched::Untouched::new(&ours);
            let all = Run {
                first: PageNumber(0),
                pages: (BYTES as u64 / PAGE_BYTES) as u32,
            };
            let mut pages = 0;
            untouched.for_each_range(all, |run| pages += run.pages);
            assert_eq!(pages, all.pages);
        }
    }

    #[test]
    fn what_can_t_be_moved_is_refused() {
        let place = || FileOffset::new(memfd(BYTES), 0);
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        let build = |builder: MmapRegionBuilder, prot, flags| {
            let builder = builder.with_mmap_prot(prot).with_mmap_flags(flags);
            builder.build().unwrap()
        };
        let with_file = || MmapRegionBuilder::new(BYTES).with_file_offset(place());
        let without = || MmapRegionBuilder::new(BYTES);

        let read_only = build(with_file(), libc::PROT_READ, libc::MAP_SHARED);
        assert!(refusal(read_only).contains("at 0x100000 is not mapped for reading and writing"));
        let private = build(with_file(), writable, libc::MAP_PRIVATE);
        assert!(refusal(private).contains("a private mapping of a file"));
        let shared = build(without(), writable, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        assert!(refusal(shared).contains("shared memory without a file"));
        let odd = MmapRegion::new(BYTES + 1).unwrap();
        assert!(refusal(odd).contains("not made of whole pages"));
    }
}
