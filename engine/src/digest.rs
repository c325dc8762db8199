//! Digests of all of a paused guest's memory, for `--verify full`.

use std::sync::atomic::{AtomicUsize, Ordering};

use dunlin_transports::memory::{MemoryError, MemoryMap, PAGE_BYTES, PageNumber, Run};
use xxhash_rust::xxh3::Xxh3Default;

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

/// XXH3-64 of each 16 MiB of memory, computed by `threads` threads. The guest is paused.
///
/// # Errors
///
/// When a page is not guest memory, which `memory` itself rules out.
pub(crate) fn digests(memory: &MemoryMap, threads: usize) -> Result<Vec<u64>, MemoryError> {
    let blocks = blocks(memory);
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, u64)>, MemoryError> {
        let mut buffer = vec![0; (u64::from(COPY_PAGES) * PAGE_BYTES) as usize];
        let mut found = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(block) = blocks.get(index) else {
                return Ok(found);
            };
            found.push((index, digest(memory, *block, &mut buffer)?));
        }
    };
    let mut digests = vec![0; blocks.len()];
    let parts = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads.max(1)).map(|_| scope.spawn(work)).collect();
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

fn digest(memory: &MemoryMap, block: Run, buffer: &mut [u8]) -> Result<u64, MemoryError> {
    let mut hasher = Xxh3Default::new();
    let mut first = block.first.0;
    while first < block.end().0 {
        let pages = (block.end().0 - first).min(u64::from(COPY_PAGES)) as u32;
        let run = Run {
            first: PageNumber(first),
            pages,
        };
        let bytes = buffer.get_mut(..run.bytes() as usize).unwrap_or_default();
        memory.copy_out(run, bytes)?;
        hasher.update(bytes);
        first += u64::from(pages);
    }
    Ok(hasher.digest())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dunlin_transports::memory::OwnedMapping;

    use super::*;

    #[test]
    fn one_changed_byte_changes_the_digest_of_its_block_alone() {
        let pages = u64::from(BLOCK_PAGES) + 5;
        let mapping = OwnedMapping::new(pages * PAGE_BYTES).unwrap();
        let memory = MemoryMap::new(vec![Arc::new(mapping)]).unwrap();
        let before = digests(&memory, 2).unwrap();
        assert_eq!(before.len(), digest_count(&memory));
        let mut page = [0; PAGE_BYTES as usize];
        page[4095] = 1;
        let last = Run {
            first: PageNumber(pages - 1),
            pages: 1,
        };
        memory.copy_in(last, &page).unwrap();
        let after = digests(&memory, 1).unwrap();
        assert_eq!(after[0], before[0]);
        assert_ne!(after[1], before[1]);
    }
}
