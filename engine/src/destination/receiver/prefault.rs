//! Backing a guest's memory: all of it before the source is told to begin, or what the source says
//! that it will write, ahead of its lanes.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::lanes::PREPARERS_MAX;
use super::*;
use crate::jobs::Jobs;
use crate::protocol::{PREFAULT_PAGES_MAX, Ranges};

/// What a thread backs ahead of the lanes at once, in pages: a huge page. Nobody waits longer than
/// for that when it is to end.
const AHEAD_PAGES: u32 = ((2 << 20) / PAGE_BYTES) as u32;

/// How many of these wait for a thread at most: what is in several times 256 MiB, which is how far
/// ahead a source names memory. What is more goes unheeded.
const WAITING_MAX: usize = 1024;

/// What a thread has backed at once, in pages: 16 MiB, some milliseconds of the kernel's work, so
/// that the threads end at about the same time.
const PIECE_PAGES: usize = 4096;

/// How many threads back memory ahead of the lanes: those processors that lanes leave. Lanes that
/// have to share theirs lose more than they gain, as what is backed early has left the cache when
/// its data comes (`cargo run --release -p dunlin-bench --bin prefault`).
pub(super) fn threads_ahead(
    hello: &Hello,
    settings: &ReceiveSettings,
    endpoint: &dyn DestinationEndpoint,
    lanes: usize,
) -> usize {
    let is_told = hello.message.capabilities & capability::PREFAULT != 0;
    let is_wanted = settings.prefault_ahead && !settings.prefault_all;
    if !is_told || !is_wanted || endpoint.has_registrations() {
        return 0;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.saturating_sub(lanes).min(PREPARERS_MAX)
}

/// The threads that back memory ahead of the lanes, and what they have to do. Nothing waits for
/// them: what they do not reach faults when it is written.
pub(super) struct Backers {
    memory: MemoryMap,
    jobs: Jobs<Run>,
}

impl Backers {
    pub(super) fn new(memory: MemoryMap) -> Self {
        Self {
            memory,
            jobs: Jobs::default(),
        }
    }

    /// Starts so many threads, as far as the system does.
    pub(super) fn start<'scope>(
        &'scope self,
        scope: &Scope<'scope, '_>,
        threads: usize,
        shelf: &Shelf,
    ) {
        for index in (0..).take(threads) {
            let recorder = shelf.recorder(Track::Registrar(index));
            // Without it there is less that is ahead.
            let _ = scope.spawn("dunlin-prefault", move || self.serve(recorder));
        }
    }

    fn serve(&self, mut recorder: Kept) {
        let mut busy = None;
        while let Some(range) = self.jobs.next() {
            let begun = recorder.now();
            if self.memory.populate(range).is_err() {
                // The next one fails as well: a kernel that can't, or no memory.
                self.jobs.stop();
                break;
            }
            let ended = recorder.done(Operation::Prefault, begun);
            busy = Some((busy.map_or(begun, |(first, _)| first), ended));
        }
        if let Some((begun, ended)) = busy {
            recorder.span(SpanName::Prefault, begun, ended);
        }
    }
}

/// The session thread's view of them; dropping it ends them.
pub(super) struct Ahead<'a>(pub(super) &'a Backers);

impl Ahead<'_> {
    /// Ends the threads, each once it has backed what it is at; what waits is left to the lanes.
    pub(super) fn stop(&self) {
        self.0.jobs.stop();
    }

    /// Takes in what the source will write.
    ///
    /// # Errors
    ///
    /// What is wrong with it, where that is no guest memory or too much at once.
    fn take_in(&self, ranges: &Ranges) -> Result<(), String> {
        let ranges = ranges.to_runs(MessageKind::Prefault);
        let ranges = ranges.map_err(|error| error.to_string())?;
        for range in &ranges {
            if range.pages > PREFAULT_PAGES_MAX {
                return Err(format!(
                    "PREFAULT of {} pages at once; {PREFAULT_PAGES_MAX} are possible",
                    range.pages
                ));
            }
            let check = self.0.memory.check(*range);
            check.map_err(|error| format!("PREFAULT: {error}"))?;
        }
        let pieces = ranges.into_iter().flat_map(pieces);
        self.0.jobs.order_within(pieces, WAITING_MAX);
        Ok(())
    }
}

/// Cuts a range at huge pages' borders.
fn pieces(range: Run) -> impl Iterator<Item = Run> {
    let mut rest = range;
    std::iter::from_fn(move || {
        let to_border = AHEAD_PAGES - (rest.first.0 % u64::from(AHEAD_PAGES)) as u32;
        let piece = Run {
            first: rest.first,
            pages: rest.pages.min(to_border),
        };
        rest = Run {
            first: piece.end(),
            pages: rest.pages - piece.pages,
        };
        (piece.pages > 0).then_some(piece)
    })
}

impl Drop for Ahead<'_> {
    /// The threads end with the session, however that ends: its scope waits for them.
    fn drop(&mut self) {
        self.stop();
    }
}

impl<F: GuestFactory> Destination<'_, F> {
    /// PREFAULT came. It may still come behind the first round, and is of no use then.
    pub(super) fn heard_prefault(&mut self, ranges: &Ranges) -> Option<Event> {
        let refused = match &self.ahead {
            None => "the source says PREFAULT where it was not asked to".to_owned(),
            Some(ahead) => ahead.take_in(ranges).err()?,
        };
        Some(self.failed(&refused))
    }
}

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

    fn ranges(first: u64, pages: u32) -> Ranges {
        let first = PageNumber(first);
        Ranges::new(&[Run { first, pages }])
    }

    /// Which pages of a mapping are backed.
    fn backed(mapping: &dyn HostMapping) -> Vec<bool> {
        let pages = (mapping.bytes() / PAGE_BYTES) as usize;
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
        resident.into_iter().map(|byte| byte & 1 == 1).collect()
    }

    #[test]
    fn what_is_expected_is_backed_and_nothing_else() {
        let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(64 * PAGE_BYTES).unwrap());
        let backers = Backers::new(MemoryMap::new(vec![Arc::clone(&mapping)]).unwrap());
        let shelf = Shelf::new(End::Destination);
        runtime::scope(|scope| {
            let ahead = Ahead(&backers);
            backers.start(&scope, 2, &shelf);
            ahead.take_in(&ranges(8, 16)).unwrap();
            ahead.take_in(&ranges(40, 8)).unwrap();
            let expected: Vec<_> = (0..64)
                .map(|page| (8..24).contains(&page) || (40..48).contains(&page))
                .collect();
            let limit = Deadline::after(Duration::from_secs(30));
            while backed(mapping.as_ref()) != expected {
                assert!(!limit.passed(), "{:?}", backed(mapping.as_ref()));
                runtime::sleep(Duration::from_millis(1));
            }
        });
    }

    #[test]
    fn a_range_is_cut_at_huge_pages_borders() {
        let run = |first, pages| Run {
            first: PageNumber(first),
            pages,
        };
        let cut: Vec<_> = pieces(run(500, 600)).collect();
        assert_eq!(cut, [run(500, 12), run(512, 512), run(1024, 76)]);
        assert_eq!(pieces(run(512, 512)).collect::<Vec<_>>(), [run(512, 512)]);
    }

    #[test]
    fn what_is_no_memory_or_too_much_is_refused() {
        let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(64 * PAGE_BYTES).unwrap());
        let backers = Backers::new(MemoryMap::new(vec![mapping]).unwrap());
        let ahead = Ahead(&backers);
        for (first, pages) in [(0, 65), (64, 1), (u64::MAX, 1), (0, PREFAULT_PAGES_MAX + 1)] {
            assert!(
                ahead.take_in(&ranges(first, pages)).is_err(),
                "{pages} at {first}"
            );
        }
        // Nobody takes them; what waits stays bounded.
        for _ in 0..2 * WAITING_MAX {
            ahead.take_in(&ranges(0, 64)).unwrap();
        }
        assert_eq!(backers.jobs.waiting(), WAITING_MAX);
    }

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
        for mapping in &mappings {
            assert!(backed(mapping.as_ref()).into_iter().all(|backed| backed));
        }
    }
}
