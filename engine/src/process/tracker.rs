//! The source of dirty bits for memory that threads of this process write.

use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use dunlin_transports::memory::{PAGE_BYTES, PageNumber};

use super::userfaultfd::{PageMap, TrackingError, Userfaultfd};
use crate::dirty::{DirtyBitmap, DirtySource};
use crate::guest::GuestError;
use crate::layout::GuestMemory;

/// Tracks writes through the guest's mappings of its memory: anonymous, memfd and huge pages.
///
/// Collecting and re-arming is one step of the kernel. Only the guest's mapping is protected: a
/// write through the lanes' mapping of a memfd is not seen (nor slowed), and whoever writes that way
/// marks the page itself. A page is 4 KiB, with huge pages of hugetlbfs a whole huge page; a
/// transparent huge page is split by the first write to it.
///
/// Each first write to a page after it was collected costs the writer a fault that the kernel
/// resolves by itself.
pub struct ProcessMemoryTracker {
    memory: GuestMemory,
    tracking: Mutex<Option<Tracking>>,
}

/// What is there while writes are tracked.
struct Tracking {
    userfaultfd: Userfaultfd,
    page_map: PageMap,
}

impl ProcessMemoryTracker {
    /// A tracker of `memory`, which tracks nothing until it is started.
    pub fn new(memory: GuestMemory) -> Self {
        Self {
            memory,
            tracking: Mutex::new(None),
        }
    }

    /// Each region's first page, and the addresses of its guest mapping.
    fn ranges(&self) -> impl Iterator<Item = (PageNumber, Range<u64>)> {
        let layout = self.memory.layout();
        self.memory
            .regions()
            .iter()
            .enumerate()
            .filter_map(move |(index, region)| {
                let base = region.guest_mapping.base() as u64;
                let addresses = base..base + region.guest_mapping.bytes();
                Some((layout.first_page(index)?, addresses))
            })
    }

    fn begin(&self) -> Result<Tracking, TrackingError> {
        let tracking = Tracking {
            userfaultfd: Userfaultfd::open()?,
            page_map: PageMap::open()?,
        };
        // Where one of these fails, closing the descriptor takes back what was done before.
        for (_, addresses) in self.ranges() {
            tracking.userfaultfd.register(&addresses)?;
            tracking.userfaultfd.protect(&addresses)?;
        }
        Ok(tracking)
    }

    fn collect_into(
        &self,
        page_map: &mut PageMap,
        into: &mut DirtyBitmap,
    ) -> Result<(), TrackingError> {
        for (first, addresses) in self.ranges() {
            page_map.collect_written(&addresses, |written| {
                // The kernel reports what lies inside the range that it was given.
                let offset = written.start.saturating_sub(addresses.start) / PAGE_BYTES;
                let pages = written.end.saturating_sub(written.start) / PAGE_BYTES;
                into.set_range(PageNumber(first.0 + offset), pages);
            })?;
        }
        Ok(())
    }
}

impl DirtySource for ProcessMemoryTracker {
    fn name(&self) -> &'static str {
        "process"
    }

    /// Protects all memory. Does nothing when tracking is on already.
    fn start(&self) -> Result<(), GuestError> {
        // Whoever panicked with the lock held left a whole value: it is set in one step.
        let mut tracking = self.tracking.lock().unwrap_or_else(PoisonError::into_inner);
        if tracking.is_none() {
            let begun = self.begin();
            *tracking = Some(begun.map_err(|e| GuestError::new("starting to track writes", e))?);
        }
        Ok(())
    }

    /// Collects and protects again. After an error, what was collected so far is in `into`, and
    /// stays there: it will not be reported again unless it is written again.
    fn collect(&self, into: &mut DirtyBitmap) -> Result<(), GuestError> {
        let mut tracking = self.tracking.lock().unwrap_or_else(PoisonError::into_inner);
        let collected = match tracking.as_mut() {
            Some(tracking) => self.collect_into(&mut tracking.page_map, into),
            None => Err(TrackingError::NotStarted),
        };
        collected.map_err(|error| GuestError::new("collecting written pages", error))
    }

    fn rearms_on_collect(&self) -> bool {
        true
    }

    fn rearm(&self, _first: PageNumber, _words: &[u64]) -> Result<(), GuestError> {
        Ok(())
    }

    fn stop(&self) -> Result<(), GuestError> {
        let mut tracking = self.tracking.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(tracking) = tracking.take() else {
            return Ok(());
        };
        self.ranges()
            .try_for_each(|(_, addresses)| tracking.userfaultfd.unregister(&addresses))
            .map_err(|error| GuestError::new("stopping to track writes", error))
    }
}

impl fmt::Debug for ProcessMemoryTracker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ProcessMemoryTracker")
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}
