//! Reading pages that do not change, without touching what nobody wrote.
//!
//! A read through a mapping would allocate the untouched pages of a memfd, on a destination those
//! that the source never sent. So holes are recognised by `SEEK_DATA` and `SEEK_HOLE` (lseek(2))
//! and count as zero pages.

use std::os::fd::AsFd;
use std::sync::LazyLock;

use dunlin_engine::layout::{Backing, GuestMemory};
use dunlin_transports::memory::{MemoryError, PAGE_BYTES, PageNumber, Run};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

/// XXH3-64 of a page of zeros.
static ZERO_DIGEST: LazyLock<u64> = LazyLock::new(|| xxh3_64(&[0; PAGE_BYTES as usize]));

/// Reads pages that do not change, in ascending order, without touching what is a hole.
pub(super) struct FixedPages<'memory> {
    memory: &'memory GuestMemory,
    /// What is known of the file around the last page: its region, and up to which offset it is a
    /// hole or data.
    extent: Option<Extent>,
    bytes: [u8; PAGE_BYTES as usize],
}

#[derive(Clone, Copy)]
struct Extent {
    region: usize,
    start: u64,
    end: u64,
    hole: bool,
}

impl<'memory> FixedPages<'memory> {
    pub(super) fn new(memory: &'memory GuestMemory) -> Self {
        Self {
            memory,
            extent: None,
            bytes: [0; PAGE_BYTES as usize],
        }
    }

    /// XXH3-64 of a page.
    pub(super) fn digest(&mut self, number: PageNumber) -> Result<u64, MemoryError> {
        if self.is_hole(number) {
            return Ok(*ZERO_DIGEST);
        }
        let run = Run {
            first: number,
            pages: 1,
        };
        self.memory.lane_map().copy_out(run, &mut self.bytes)?;
        // Nearly always decided by the first bytes.
        if self.bytes.iter().all(|byte| *byte == 0) {
            return Ok(*ZERO_DIGEST);
        }
        Ok(xxh3_64(&self.bytes))
    }

    fn is_hole(&mut self, number: PageNumber) -> bool {
        let Some((region, in_region)) = self.memory.layout().region_of(number) else {
            return false;
        };
        let offset = in_region * PAGE_BYTES;
        let known = self.extent.filter(|extent| {
            extent.region == region && (extent.start..extent.end).contains(&offset)
        });
        let extent = known.or_else(|| self.extent_at(region, offset));
        self.extent = extent;
        extent.is_some_and(|extent| extent.hole)
    }

    /// What the file has at an offset of the region; `None` where it can't be told, which is so
    /// for anonymous memory (whose untouched pages read as the kernel's one zero page) and for huge
    /// pages (hugetlbfs knows no holes).
    fn extent_at(&self, region: usize, offset: u64) -> Option<Extent> {
        let shape = self.memory.layout().regions().get(region)?;
        let behind = self.memory.regions().get(region)?;
        let file = behind.file.as_ref()?;
        if shape.backing != Backing::Memfd {
            return None;
        }
        let file = file.as_fd();
        let at = behind.file_offset + offset;
        let extent = |end: u64, hole| {
            Some(Extent {
                region,
                start: offset,
                end: end - behind.file_offset,
                hole,
            })
        };
        match seek(file, SeekFrom::Data(at)) {
            Ok(data) if data > at => extent(data, true),
            // No data up to the file's end.
            Err(Errno::NXIO) => extent(behind.file_offset + shape.bytes, true),
            Ok(_) => match seek(file, SeekFrom::Hole(at)) {
                Ok(hole) if hole > at => extent(hole, false),
                _ => None,
            },
            Err(_) => None,
        }
    }
}
