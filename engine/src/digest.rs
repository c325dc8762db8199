//! Digests of all of a paused guest's memory, for `--verify full`.

use std::sync::atomic::{AtomicUsize, Ordering};

use dunlin_transports::deadline::Deadline;
use dunlin_transports::memory::{MemoryError, MemoryMap, PAGE_BYTES, PageNumber, Run};
use dunlin_transports::runtime;
use thiserror::Error;
use xxhash_rust::xxh3::Xxh3Default;

use crate::dirty::DirtyBitmap;
use crate::layout::GuestMemory;
use crate::untouched::Untouched;

/// Pages in one digest block: 16 MiB. Large enough that a terabyte's digests take 512 KiB in
/// PREPARE, small enough to say roughly where a difference is.
const BLOCK_PAGES: u32 = 4096;

/// Pages copied at a time before they are hashed (law 6 asks for a copy): 64 KiB, so that the copy
/// is still in the first-level cache's neighbour when it is read again.
const COPY_PAGES: u32 = 16;

/// The blocks of a memory, in order; each in one region.
fn blocks(memory: &MemoryMap) -> Vec<Run> {
    let mut blocks = Vec::new();
    for range in memory.whole() {
        let mut first = range.first.0;
        while first < range.end().0 {
            let pages = (range.end().0 - first).min(u64::from(BLOCK_PAGES)) as u32;
            blocks.push(Run {
                first: PageNumber(first),
                pages,
            });
            first += u64::from(pages);
        }
    }
    blocks
}

/// How many digests a memory has.
pub(crate) fn digest_count(memory: &MemoryMap) -> usize {
    blocks(memory).len()
}

/// Why memory could not be digested.
#[derive(Debug, Error)]
pub(crate) enum DigestError {
    /// A page is not guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The deadline passed.
    #[error("digesting memory took too long")]
    TimedOut,
}

/// XXH3-64 of each 16 MiB of memory, computed by `threads` threads. The guest is paused.
///
/// Memory that was never touched is not read (a read would allocate it), but digested as the zeros
/// that it is.
///
/// # Errors
///
/// When the deadline passes first. Pages that are not guest memory are ruled out by `memory`.
pub(crate) fn digests(
    memory: &GuestMemory,
    threads: usize,
    deadline: Deadline,
) -> Result<Vec<u64>, DigestError> {
    let blocks = blocks(memory.lane_map());
    let untouched = Untouched::new(memory);
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, u64)>, DigestError> {
        let mut buffer = vec![0; (u64::from(COPY_PAGES) * PAGE_BYTES) as usize];
        let mut found = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(block) = blocks.get(index) else {
                return Ok(found);
            };
            if deadline.passed() {
                return Err(DigestError::TimedOut);
            }
            found.push((
                index,
                digest(memory.lane_map(), &untouched, *block, &mut buffer)?,
            ));
        }
    };
    let mut digests = vec![0; blocks.len()];
    let parts = runtime::scope(|scope| {
        // Whatever thread can't be started, the others do its share.
        let helpers: Vec<_> = (1..threads.max(1))
            .filter_map(|_| scope.spawn("dunlin-digest", work).ok())
            .collect();
        let mut parts = vec![work()];
        // A helper can't panic; were one to, its blocks would digest as 0 and compare unequal.
        parts.extend(helpers.into_iter().filter_map(|helper| helper.join().ok()));
        parts
    });
    for part in parts {
        for (index, digest) in part? {
            if let Some(slot) = digests.get_mut(index) {
                *slot = digest;
            }
        }
    }
    Ok(digests)
}

fn digest(
    memory: &MemoryMap,
    untouched: &Untouched,
    block: Run,
    buffer: &mut [u8],
) -> Result<u64, MemoryError> {
    let mut known_zero = DirtyBitmap::new(u64::from(block.pages));
    untouched.for_each_range(block, |range| {
        let first = range.first.0.saturating_sub(block.first.0);
        known_zero.set_range(PageNumber(first), u64::from(range.pages));
    });
    let mut hasher = Xxh3Default::new();
    let mut first = 0;
    while first < block.pages {
        let pages = (block.pages - first).min(COPY_PAGES);
        let run = Run {
            first: PageNumber(block.first.0 + u64::from(first)),
            pages,
        };
        let bytes = buffer.get_mut(..run.bytes() as usize).unwrap_or_default();
        let is_untouched =
            |page: u32| known_zero.get(PageNumber(u64::from(first) + u64::from(page)));
        if (0..pages).all(is_untouched) {
            bytes.fill(0);
        } else {
            memory.copy_out(run, bytes)?;
        }
        hasher.update(bytes);
        first += pages;
    }
    Ok(hasher.digest())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use dunlin_transports::memory::{HostMapping, OwnedMapping};

    use super::*;
    use crate::layout::{Backing, GuestAddress, Layout, Region, RegionShape};

    const PAGES: u64 = BLOCK_PAGES as u64 + 5;

    fn memory() -> GuestMemory {
        let shape = RegionShape {
            address: GuestAddress(0),
            bytes: PAGES * PAGE_BYTES,
            backing: Backing::Anonymous,
            backing_page_bytes: PAGE_BYTES,
        };
        let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(shape.bytes).unwrap());
        let region = Region {
            file: None,
            file_offset: 0,
            guest_mapping: Arc::clone(&mapping),
            lane_mapping: mapping,
        };
        GuestMemory::new(Layout::new(1, vec![shape]).unwrap(), vec![region]).unwrap()
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(60))
    }

    #[test]
    fn one_changed_byte_changes_the_digest_of_its_block_alone() {
        let memory = memory();
        let before = digests(&memory, 2, soon()).unwrap();
        assert_eq!(before.len(), digest_count(memory.lane_map()));
        let mut page = [0; PAGE_BYTES as usize];
        page[4095] = 1;
        let last = Run {
            first: PageNumber(PAGES - 1),
            pages: 1,
        };
        memory.lane_map().copy_in(last, &page).unwrap();
        let after = digests(&memory, 1, soon()).unwrap();
        assert_eq!(after[0], before[0]);
        assert_ne!(after[1], before[1]);
    }

    #[test]
    fn untouched_memory_digests_as_zeros_that_were_written() {
        let (fresh, written) = (memory(), memory());
        let all = written.lane_map().whole();
        all.iter()
            .for_each(|run| written.lane_map().fill_zero(*run).unwrap());
        assert_eq!(
            digests(&fresh, 1, soon()).unwrap(),
            digests(&written, 1, soon()).unwrap()
        );
    }

    #[test]
    fn a_deadline_ends_it() {
        let passed = Deadline::after(Duration::ZERO);
        assert!(matches!(
            digests(&memory(), 2, passed),
            Err(DigestError::TimedOut)
        ));
    }
}
