//! Reading pages that do not change, without touching what nobody wrote.
//!
//! A read through a mapping would allocate the untouched pages of a memfd, on a destination those
//! that the source never sent. So what the kernel says is untouched counts as zero pages
//! ([`Untouched`]), and the rest is read from the file (pread(2)), where a hole reads as zeros and
//! stays one. Memory without a file is read through its mapping: its untouched pages read as the
//! kernel's one zero page.

use std::sync::LazyLock;

use dunlin_engine::layout::{GuestMemory, Region};
use dunlin_engine::untouched::Untouched;
use dunlin_transports::memory::{MemoryError, PAGE_BYTES, PageNumber, Run};
use rustix::io::pread;
use xxhash_rust::xxh3::xxh3_64;

/// How many pages are read at once: 64 KiB, which the processor's nearer caches hold until the last
/// of them is looked at.
const WINDOW_PAGES: u64 = 16;

/// XXH3-64 of a page of zeros.
static ZERO_DIGEST: LazyLock<u64> = LazyLock::new(|| xxh3_64(&[0; PAGE_BYTES as usize]));

/// Reads the pages of a run that do not change, in ascending order.
pub(super) struct FixedPages<'memory> {
    memory: &'memory GuestMemory,
    run: Run,
    /// Parts of the run that nobody touched, in ascending order.
    untouched: Vec<Run>,
    /// The pages that `window` holds.
    first: u64,
    end: u64,
    window: Vec<u8>,
}

impl<'memory> FixedPages<'memory> {
    /// A reader of the fixed pages of `run`.
    pub(super) fn new(memory: &'memory GuestMemory, untouched: &Untouched, run: Run) -> Self {
        let mut ranges = Vec::new();
        untouched.for_each_range(run, |range| ranges.push(range));
        Self {
            memory,
            run,
            untouched: ranges,
            first: 0,
            end: 0,
            window: Vec::new(),
        }
    }

    /// XXH3-64 of a page.
    pub(super) fn digest(&mut self, number: PageNumber) -> Result<u64, MemoryError> {
        let next = self
            .untouched
            .partition_point(|range| range.end().0 <= number.0);
        if let Some(range) = self.untouched.get(next)
            && range.first.0 <= number.0
        {
            return Ok(*ZERO_DIGEST);
        }
        if !(self.first..self.end).contains(&number.0) {
            self.read_from(number)?;
        }
        let offset = ((number.0 - self.first) * PAGE_BYTES) as usize;
        let page = self.window.get(offset..offset + PAGE_BYTES as usize);
        // `read_from` put at least this page there.
        Ok(xxh3_64(page.unwrap_or_default()))
    }

    /// Fills the window from a page on.
    fn read_from(&mut self, number: PageNumber) -> Result<(), MemoryError> {
        // Forgotten first, so that a failure leaves no page of before behind.
        (self.first, self.end) = (0, 0);
        let outside = MemoryError::OutsideMemory {
            first: number,
            pages: 1,
        };
        let layout = self.memory.layout();
        let (index, in_region) = layout.region_of(number).ok_or(outside.clone())?;
        let region = self.memory.regions().get(index).ok_or(outside.clone())?;
        let shape = layout.regions().get(index).ok_or(outside)?;
        let pages = (shape.bytes / PAGE_BYTES - in_region)
            .min(self.run.end().0.saturating_sub(number.0))
            .clamp(1, WINDOW_PAGES);
        self.window.resize((pages * PAGE_BYTES) as usize, 0);
        if !read_file(region, in_region * PAGE_BYTES, &mut self.window) {
            let run = Run {
                first: number,
                pages: pages as u32,
            };
            self.memory.lane_map().copy_out(run, &mut self.window)?;
        }
        (self.first, self.end) = (number.0, number.0 + pages);
        Ok(())
    }
}

/// Reads a region's bytes from its file; `false` where it has none, or it can't be read.
fn read_file(region: &Region, offset: u64, mut into: &mut [u8]) -> bool {
    let Some(file) = &region.file else {
        return false;
    };
    let mut at = region.file_offset + offset;
    while !into.is_empty() {
        match pread(file, &mut *into, at) {
            Ok(read) if read > 0 => {
                at += read as u64;
                into = into.get_mut(read..).unwrap_or_default();
            }
            _ => return false,
        }
    }
    true
}
