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
mod tests;
