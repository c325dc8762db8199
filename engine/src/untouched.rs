//! Which pages were never touched: they read as zero, and can be passed over without being read.
//!
//! Reading a guest's untouched memory through its mapping is slow (each page is a fault) and, for
//! shared memory, even allocates it: a guest of 512 GiB that uses 2 would fill its host just by
//! being scanned. So the kernel is asked instead. What it says is taken only where it is proof, and
//! no answer, or an error, proves nothing: such pages are scanned.
//!
//! | memory | question | untouched is |
//! |---|---|---|
//! | memfd | cachestat(2), Linux 6.5 | neither a page in the page cache nor one in swap |
//! | memfd before 6.5, huge pages | pread(2) of the file, which allocates nothing | all that is read is zero |
//! | private anonymous | `/proc/self/pagemap` (kernel: admin-guide/mm/pagemap) | neither present nor swapped |
//!
//! What is not asked, and why:
//!
//! - `SEEK_DATA` and `SEEK_HOLE` take a page for a hole unless it is marked up to date. While the
//!   kernel moves a written page (compaction, NUMA balancing), the new page is in the file for a
//!   moment before it is so marked (`__migrate_folio` in mm/migrate.c, `folio_seek_hole_data` in
//!   mm/filemap.c): data would pass for a hole. Besides, they look on to the end of the hole or of
//!   the data, however far that is, under a lock of the file.
//! - mincore(2) does not count pages that are in swap.
//! - The pagemap of shared memory: a second mapping of a page reads as not present.
//!
//! Private memory that is tracked by userfaultfd write-protect shows a marker in each untouched
//! page, which pagemap reports as swapped: nothing is proven there. Scanning such memory costs a
//! fault a page, but allocates nothing.
//!
//! A probe counts only when the pages' dirty tracking was armed **before** it: then a write that
//! comes after it leaves a dirty bit behind.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dunlin_transports::memory::{HostMapping, PAGE_BYTES, PageNumber, Run};

use crate::layout::{GuestMemory, Layout, Region};

/// What a file is asked about at once where a range is neither all touched nor all untouched: the
/// pages of one bitmap word. Smaller holes are not worth a system call; they are scanned.
const PIECE_PAGES: u32 = 64;

/// How much of a file is read at once. A piece that holds data mostly shows it in its first pages.
const READ_BYTES: usize = 16 << 10;

/// How many pagemap entries are read at once: those of one chunk of 2 MiB fill a page.
const PAGEMAP_ENTRIES: usize = 512;
const PAGEMAP_ENTRY_BYTES: usize = 8;

/// Bits 61 to 63 of a pagemap entry: a file's page or shared, swapped (or moving, or a marker),
/// present.
const PAGEMAP_TOUCHED: u64 = 0b111 << 61;

/// cachestat(2) has this number on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

/// Asks the kernel which pages of a guest were never touched. Shared by all lanes.
pub struct Untouched {
    layout: Layout,
    probes: Vec<Probe>,
    failures: AtomicU64,
}

/// How a region is asked about.
enum Probe {
    /// By the page cache of a file that lives in nothing else (tmpfs, which memfd is).
    Cache(FileRange),
    /// By reading the file.
    Read(FileRange),
    /// By the page tables of this process, the only place where private memory is.
    Pagemap {
        pagemap: Arc<File>,
        mapping: Arc<dyn HostMapping>,
    },
    /// Not at all.
    Nothing,
}

struct FileRange {
    file: Arc<OwnedFd>,
    offset: u64,
}

impl Untouched {
    /// Finds out how each region can be asked about. A region's file, where there is one, is mapped
    /// shared, and a region without a file is private anonymous memory.
    pub fn new(memory: &GuestMemory) -> Self {
        let pagemap = File::open("/proc/self/pagemap").ok().map(Arc::new);
        let probes = memory
            .regions()
            .iter()
            .map(|region| Probe::of(region, pagemap.as_ref()))
            .collect();
        Self {
            layout: memory.layout().clone(),
            probes,
            failures: AtomicU64::new(0),
        }
    }

    /// Calls `found`, in ascending order, for ranges of `pages` (pages of one region) that are
    /// proven to read as zero. Pages for which it is not called may be anything.
    ///
    /// Tracking of `pages` must have been armed before. Memory that was given back to the kernel (a
    /// balloon's) reads as zero as well: whether the destination's copy is zero too is the caller's
    /// to know.
    pub fn for_each_range(&self, pages: Run, mut found: impl FnMut(Run)) {
        let region = self
            .layout
            .region_of(pages.first)
            .and_then(|(region, in_region)| {
                let region_pages = self.layout.regions().get(region)?.bytes / PAGE_BYTES;
                let fits = in_region + u64::from(pages.pages) <= region_pages;
                fits.then_some((self.probes.get(region)?, in_region))
            });
        let Some((probe, in_region)) = region else {
            return;
        };
        let mut joined = Joined {
            found: &mut found,
            first: pages.first,
            pages: 0,
        };
        let result = probe.ask(in_region, pages, &mut joined);
        joined.flush();
        if result.is_err() {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often the kernel gave an error instead of an answer.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

impl Probe {
    fn of(region: &Region, pagemap: Option<&Arc<File>>) -> Self {
        match (&region.file, pagemap) {
            (Some(file), _) => {
                let range = FileRange {
                    file: Arc::clone(file),
                    offset: region.file_offset,
                };
                // On any other file system, what is not in the page cache may be on a disk.
                let in_cache_only = rustix::fs::fstatfs(file)
                    .is_ok_and(|fs| i128::from(fs.f_type) == i128::from(libc::TMPFS_MAGIC));
                if in_cache_only && range.cached_pages(0, 1).is_ok() {
                    Self::Cache(range)
                } else {
                    Self::Read(range)
                }
            }
            (None, Some(pagemap)) if region.guest_mapping.base() == region.lane_mapping.base() => {
                Self::Pagemap {
                    pagemap: Arc::clone(pagemap),
                    mapping: Arc::clone(&region.lane_mapping),
                }
            }
            (None, _) => Self::Nothing,
        }
    }

    /// Tells `joined` what is untouched of `pages`, the first of which is the region's page
    /// `in_region`.
    fn ask(
        &self,
        in_region: u64,
        pages: Run,
        joined: &mut Joined<'_, impl FnMut(Run)>,
    ) -> io::Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Cache(file) => match file.cached_pages(in_region, pages.pages)? {
                0 => {
                    joined.add(pages.first.0, pages.pages);
                    Ok(())
                }
                cached if cached >= u64::from(pages.pages) => Ok(()),
                _ => for_each_piece(in_region, pages, |in_region, piece| {
                    if file.cached_pages(in_region, piece.pages)? == 0 {
                        joined.add(piece.first.0, piece.pages);
                    }
                    Ok(())
                }),
            },
            Self::Read(file) => for_each_piece(in_region, pages, |in_region, piece| {
                if file.reads_zero(in_region, piece.pages)? {
                    joined.add(piece.first.0, piece.pages);
                }
                Ok(())
            }),
            Self::Pagemap { pagemap, mapping } => {
                let first = mapping.base() as u64 / PAGE_BYTES + in_region;
                ask_pagemap(pagemap, first, pages, joined)
            }
        }
    }
}

impl FileRange {
    /// How many of the region's pages the file's page cache knows: in memory, or in swap.
    fn cached_pages(&self, in_region: u64, pages: u32) -> io::Result<u64> {
        /// `struct cachestat_range`.
        #[repr(C)]
        struct Range {
            offset: u64,
            bytes: u64,
        }
        /// `struct cachestat`.
        #[repr(C)]
        #[derive(Default)]
        struct Counts {
            cached: u64,
            dirty: u64,
            writeback: u64,
            evicted: u64,
            recently_evicted: u64,
        }
        let range = Range {
            offset: self.offset + in_region * PAGE_BYTES,
            bytes: u64::from(pages) * PAGE_BYTES,
        };
        let mut counts = Counts::default();
        let flags: libc::c_uint = 0;
        // SAFETY: the kernel reads `range` and writes `counts`, both of its own layout and alive
        // for the length of the call.
        let result = unsafe {
            libc::syscall(
                SYS_CACHESTAT,
                self.file.as_raw_fd(),
                &raw const range,
                &raw mut counts,
                flags,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(counts.cached.saturating_add(counts.evicted))
    }

    /// Whether the region's pages read as zero from the file. The kernel locks a page to read it,
    /// so none is missed that is being moved.
    fn reads_zero(&self, in_region: u64, pages: u32) -> io::Result<bool> {
        let mut buffer = [0; READ_BYTES];
        let mut offset = self.offset + in_region * PAGE_BYTES;
        let end = offset + u64::from(pages) * PAGE_BYTES;
        while offset < end {
            let bytes = (end - offset).min(READ_BYTES as u64) as usize;
            let read = rustix::io::pread(&self.file, &mut buffer[..bytes], offset)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if buffer[..read].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            offset += read as u64;
        }
        Ok(true)
    }
}

/// Cuts `pages` into pieces and calls `piece` with each and its first page's place in the region.
fn for_each_piece(
    in_region: u64,
    pages: Run,
    mut piece: impl FnMut(u64, Run) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    while done < pages.pages {
        let run = Run {
            first: PageNumber(pages.first.0 + u64::from(done)),
            pages: PIECE_PAGES.min(pages.pages - done),
        };
        piece(in_region + u64::from(done), run)?;
        done += run.pages;
    }
    Ok(())
}

/// `virtual_page` is the first page's number in this process's address space.
fn ask_pagemap(
    pagemap: &File,
    virtual_page: u64,
    pages: Run,
    joined: &mut Joined<'_, impl FnMut(Run)>,
) -> io::Result<()> {
    let mut buffer = [0; PAGEMAP_ENTRIES * PAGEMAP_ENTRY_BYTES];
    let mut done = 0;
    while done < u64::from(pages.pages) {
        let entries = (u64::from(pages.pages) - done).min(PAGEMAP_ENTRIES as u64) as usize;
        let wanted = &mut buffer[..entries * PAGEMAP_ENTRY_BYTES];
        let offset = (virtual_page + done) * PAGEMAP_ENTRY_BYTES as u64;
        let read = rustix::io::pread(pagemap, &mut *wanted, offset)?;
        let (entries, _) = wanted[..read].as_chunks::<PAGEMAP_ENTRY_BYTES>();
        if entries.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for entry in entries {
            if u64::from_ne_bytes(*entry) & PAGEMAP_TOUCHED == 0 {
                joined.add(pages.first.0 + done, 1);
            }
            done += 1;
        }
    }
    Ok(())
}

/// Joins neighbouring untouched ranges before they are told.
struct Joined<'f, F: FnMut(Run)> {
    found: &'f mut F,
    first: PageNumber,
    pages: u32,
}

impl<F: FnMut(Run)> Joined<'_, F> {
    fn add(&mut self, first: u64, pages: u32) {
        if self.first.0 + u64::from(self.pages) != first {
            self.flush();
            self.first = PageNumber(first);
        }
        // All ranges lie in one run, whose length fits.
        self.pages += pages;
    }

    fn flush(&mut self) {
        if self.pages > 0 {
            (self.found)(Run {
                first: self.first,
                pages: self.pages,
            });
            self.pages = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd;

    use dunlin_transports::memory::OwnedMapping;

    use super::*;
    use crate::layout::{Backing, GuestAddress, RegionShape};

    const PAGES: u64 = 1024;
    const BYTES: u64 = PAGES * PAGE_BYTES;

    /// A shared mapping of a file, never unmapped: tests are short.
    struct Shared(*mut u8);

    // SAFETY: mapped for good, page-aligned, and handed out as a raw pointer only.
    unsafe impl HostMapping for Shared {
        fn base(&self) -> *mut u8 {
            self.0
        }

        fn bytes(&self) -> u64 {
            BYTES
        }
    }
    // SAFETY: an address; access to what is behind it is raw and up to its users.
    unsafe impl Send for Shared {}
    // SAFETY: as for `Send`.
    unsafe impl Sync for Shared {}

    fn guest_memory(backing: Backing, region: Region) -> GuestMemory {
        let shape = RegionShape {
            address: GuestAddress(0),
            bytes: BYTES,
            backing,
            backing_page_bytes: PAGE_BYTES,
        };
        let layout = Layout::new(1, vec![shape]).unwrap();
        GuestMemory::new(layout, vec![region]).unwrap()
    }

    fn anonymous() -> GuestMemory {
        let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(BYTES).unwrap());
        let region = Region {
            file: None,
            file_offset: 0,
            guest_mapping: Arc::clone(&mapping),
            lane_mapping: mapping,
        };
        guest_memory(Backing::Anonymous, region)
    }

    fn file(flags: libc::c_uint) -> Option<GuestMemory> {
        // The region starts in the middle of the file.
        const FILE_OFFSET: u64 = 2 << 20;
        // SAFETY: the name is a NUL-terminated string.
        let fd = unsafe { libc::memfd_create(c"untouched".as_ptr(), flags) };
        assert!(fd >= 0);
        // SAFETY: just opened, and nobody else's.
        let file = Arc::new(unsafe { OwnedFd::from_raw_fd(fd) });
        rustix::fs::ftruncate(&file, FILE_OFFSET + BYTES).unwrap();
        let map = || -> Option<Arc<dyn HostMapping>> {
            // SAFETY: a new mapping at an address of the kernel's choice.
            let base = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    BYTES as usize,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED,
                    file.as_raw_fd(),
                    FILE_OFFSET as libc::off_t,
                )
            };
            (base != libc::MAP_FAILED).then(|| Arc::new(Shared(base.cast())) as _)
        };
        let region = Region {
            file: Some(Arc::clone(&file)),
            file_offset: FILE_OFFSET,
            guest_mapping: map()?,
            lane_mapping: map()?,
        };
        Some(guest_memory(Backing::Memfd, region))
    }

    fn write(memory: &GuestMemory, page: u64, byte: u8) {
        let run = Run {
            first: PageNumber(page),
            pages: 1,
        };
        memory.guest_map().copy_in(run, &[byte; 4096]).unwrap();
    }

    fn ranges(untouched: &Untouched, first: u64, pages: u32) -> Vec<(u64, u32)> {
        let mut found = Vec::new();
        let run = Run {
            first: PageNumber(first),
            pages,
        };
        untouched.for_each_range(run, |range| found.push((range.first.0, range.pages)));
        found
    }

    #[test]
    fn fresh_memory_is_untouched_whatever_backs_it() {
        for memory in [anonymous(), file(0).unwrap()] {
            let untouched = Untouched::new(&memory);
            assert_eq!(ranges(&untouched, 0, 1024), [(0, 1024)]);
            assert_eq!(ranges(&untouched, 960, 64), [(960, 64)]);
            assert_eq!(untouched.failures(), 0);
        }
    }

    #[test]
    fn a_range_outside_memory_proves_nothing() {
        for memory in [anonymous(), file(0).unwrap()] {
            let untouched = Untouched::new(&memory);
            assert_eq!(ranges(&untouched, 512, 513), []);
            assert_eq!(ranges(&untouched, 1024, 1), []);
            assert_eq!(ranges(&untouched, u64::MAX, 1), []);
        }
    }

    #[test]
    fn a_written_page_of_anonymous_memory_is_touched_and_no_other() {
        let memory = anonymous();
        // Huge pages would touch its neighbours too.
        let base = memory.guest_map().host_address(Run {
            first: PageNumber(0),
            pages: 1,
        });
        // SAFETY: advice about the range that the map holds.
        unsafe { libc::madvise(base.unwrap().cast(), BYTES as usize, libc::MADV_NOHUGEPAGE) };
        let untouched = Untouched::new(&memory);
        write(&memory, 3, 1);
        // Written with zeros is written.
        write(&memory, 700, 0);
        assert_eq!(ranges(&untouched, 0, 1024), [(0, 3), (4, 696), (701, 323)]);
        // A read maps the kernel's page of zeros: touched, as far as this room can tell.
        let mut page = [0; 4096];
        let run = Run {
            first: PageNumber(5),
            pages: 1,
        };
        memory.lane_map().copy_out(run, &mut page).unwrap();
        assert_eq!(ranges(&untouched, 4, 60), [(4, 1), (6, 58)]);
    }

    #[test]
    fn huge_pages_of_anonymous_memory_are_touched_as_a_whole() {
        let memory = anonymous();
        let untouched = Untouched::new(&memory);
        let run = Run {
            first: PageNumber(0),
            pages: 1024,
        };
        let base = memory.guest_map().host_address(run).unwrap();
        // SAFETY: advice about the range that the map holds.
        unsafe { libc::madvise(base.cast(), BYTES as usize, libc::MADV_HUGEPAGE) };
        write(&memory, 600, 1);
        let touched = 1024 - ranges(&untouched, 0, 1024).iter().map(|r| r.1).sum::<u32>();
        // 512 where the kernel found a huge page, 1 where it did not.
        assert!((1..=512).contains(&touched), "{touched}");
        let found = ranges(&untouched, 600, 1);
        assert_eq!(found, []);
    }

    /// A page in swap is not present, and still the guest's data. Swap is rarely to be had in a
    /// test; what pagemap says about it is in the kernel's documentation, and is imitated here.
    #[test]
    fn swapped_and_shared_pages_count_as_touched() {
        for bit in [61, 62, 63] {
            assert_ne!(1_u64 << bit & PAGEMAP_TOUCHED, 0);
        }
        // Soft-dirty and write-protected are no touch.
        assert_eq!((1_u64 << 55 | 1 << 57) & PAGEMAP_TOUCHED, 0);
    }

    fn check_pieces(memory: &GuestMemory, untouched: &Untouched) {
        write(memory, 3, 1);
        write(memory, 200, 1);
        // Pieces of 64: the first and the fourth.
        let expected = [(64, 128), (256, 768)];
        assert_eq!(ranges(untouched, 0, 1024), expected);
        assert_eq!(ranges(untouched, 64, 64), [(64, 64)]);
        assert_eq!(ranges(untouched, 0, 3), [(0, 3)]);
        // Touched after it was probed: the next probe says so (and its dirty bit does).
        write(memory, 65, 1);
        assert_eq!(ranges(untouched, 64, 64), []);
        for page in 512..1024 {
            write(memory, page, 0xff);
        }
        assert_eq!(ranges(untouched, 512, 512), []);
        assert_eq!(untouched.failures(), 0);
    }

    #[test]
    fn a_written_page_of_a_memfd_is_touched_through_either_mapping() {
        let memory = file(0).unwrap();
        let untouched = Untouched::new(&memory);
        if matches!(untouched.probes[0], Probe::Read(_)) {
            println!("skipped: this kernel has no cachestat(2)");
        }
        check_pieces(&memory, &untouched);
    }

    #[test]
    fn without_cachestat_the_file_is_read() {
        let memory = file(0).unwrap();
        let region = &memory.regions()[0];
        let mut untouched = Untouched::new(&memory);
        untouched.probes[0] = Probe::Read(FileRange {
            file: Arc::clone(region.file.as_ref().unwrap()),
            offset: region.file_offset,
        });
        check_pieces(&memory, &untouched);
        // Asking has allocated nothing: the pages written above are all that there is.
        let blocks = rustix::fs::fstat(region.file.as_ref().unwrap())
            .unwrap()
            .st_blocks;
        assert_eq!(blocks as u64 * 512, (3 + 512) * PAGE_BYTES);
    }

    #[test]
    fn asking_allocates_nothing() {
        let memory = file(0).unwrap();
        let untouched = Untouched::new(&memory);
        ranges(&untouched, 0, 1024);
        let file = memory.regions()[0].file.as_ref().unwrap();
        assert_eq!(rustix::fs::fstat(file).unwrap().st_blocks, 0);
    }

    #[test]
    fn huge_page_files_are_read() {
        let Some(memory) = file(libc::MFD_HUGETLB | libc::MFD_HUGE_2MB) else {
            println!("skipped: no free huge pages of 2 MiB");
            return;
        };
        let untouched = Untouched::new(&memory);
        assert!(matches!(untouched.probes[0], Probe::Read(_)));
        assert_eq!(ranges(&untouched, 0, 1024), [(0, 1024)]);
        write(&memory, 600, 1);
        // The piece that holds page 600; the rest of its huge page reads as zero.
        assert_eq!(ranges(&untouched, 0, 1024), [(0, 576), (640, 384)]);
    }

    #[test]
    fn an_error_proves_nothing_and_is_counted() {
        let memory = file(0).unwrap();
        let untouched = Untouched::new(&memory);
        let file = memory.regions()[0].file.as_ref().unwrap();
        rustix::fs::ftruncate(file, 0).unwrap();
        let mut reading = Untouched::new(&memory);
        reading.probes[0] = Probe::Read(FileRange {
            file: Arc::clone(file),
            offset: 0,
        });
        assert_eq!(ranges(&reading, 0, 64), []);
        assert_eq!(reading.failures(), 1);
        assert_eq!(untouched.failures(), 0);
    }
}
