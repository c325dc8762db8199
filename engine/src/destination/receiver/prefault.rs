//! Backing a guest's memory before the source is told to begin.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::lanes::PREPARERS_MAX;
use super::*;

/// What a thread has backed at once, in pages: 16 MiB, some milliseconds of the kernel's work, so
/// that the threads end at about the same time.
const PIECE_PAGES: usize = 4096;

/// Has the kernel back all of a guest's memory, on a few threads: from then on nothing of it faults.
pub(super) fn populate_all(memory: &MemoryMap) -> Result<(), GuestError> {
    let pieces: Vec<Run> = memory
        .whole()
        .into_iter()
        .flat_map(|run| {
            let skipped = (0..run.pages).step_by(PIECE_PAGES);
            skipped.map(move |skipped| Run {
                first: PageNumber(run.first.0 + u64::from(skipped)),
                pages: (PIECE_PAGES as u32).min(run.pages - skipped),
            })
        })
        .collect();
    let next = AtomicUsize::new(0);
    let populate = || {
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = memory.populate(*piece) {
                // The others need not go on.
                next.store(pieces.len(), Ordering::Relaxed);
                return Err(GuestError::new(
                    "the guest's memory can't be prefaulted",
                    error,
                ));
            }
        }
        Ok(())
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let helpers = cores.min(PREPARERS_MAX).min(pieces.len()).saturating_sub(1);
    runtime::scope(|scope| {
        // One that can't be started leaves more to the others.
        let started = (0..helpers).map_while(|_| scope.spawn("dunlin-prefault", populate).ok());
        let started: Vec<_> = started.collect();
        let mut outcome = populate();
        for helper in started {
            let ended = helper.join();
            let ended = ended.map_err(|_| GuestError::message("a thread that prefaults panicked"));
            outcome = outcome.and(ended.and_then(|ended| ended));
        }
        outcome
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dunlin_transports::memory::{HostMapping, OwnedMapping};

    use super::*;

    #[test]
    fn every_page_is_backed_and_keeps_its_bytes() {
        let page_bytes = PAGE_BYTES as usize;
        let mappings = [5, 2 * PIECE_PAGES as u64 + 3].map(|pages| {
            let mapping: Arc<dyn HostMapping> =
                Arc::new(OwnedMapping::new(pages * PAGE_BYTES).unwrap());
            mapping
        });
        let memory = MemoryMap::new(mappings.to_vec()).unwrap();
        let written = Run {
            first: PageNumber(64 + 7),
            pages: 1,
        };
        memory.copy_in(written, &vec![9; page_bytes]).unwrap();
        populate_all(&memory).unwrap();
        let mut bytes = vec![0; page_bytes];
        memory.copy_out(written, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 9));
        for (mapping, pages) in mappings.iter().zip([5, 2 * PIECE_PAGES + 3]) {
            let mut resident = vec![0_u8; pages];
            // SAFETY: mincore(2) writes a byte for each page of the mapping, which is alive.
            let result = unsafe {
                libc::mincore(
                    mapping.base().cast(),
                    mapping.bytes() as usize,
                    resident.as_mut_ptr(),
                )
            };
            assert_eq!(result, 0);
            assert!(resident.iter().all(|byte| byte & 1 == 1));
        }
    }
}
