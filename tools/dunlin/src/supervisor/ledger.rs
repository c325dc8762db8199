//! The ledger of memory: what guests were promised, so that a shortage is a refusal before the
//! move and never a SIGBUS in it.
//!
//! A guest's memory is promised when it is let in, and taken page by page as it arrives. So the
//! kernel's own number (`MemAvailable`) is too large by what was promised and is not yet taken:
//!
//! ```text
//! free = min(MemAvailable, what the control group leaves) − Σ (promised − taken)
//! ```
//!
//! An operator who knows that guests use little of their memory may have less than all of it set
//! aside: of each guest a share in percent, of those that are here as well as of one that comes.
//!
//! Huge pages are different: the kernel sets them aside when the memory is allocated. Until then
//! they are promised here.
//!
//! Guests that this supervisor did not let in (they came to one before it, to another, or were
//! started here) were promised their memory by someone else. The ledger does not keep them: whoever
//! asks for a promise names them ([`Neighbour`]), as they are at that moment.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use super::host::{HostMemory, host_memory, taken_by};
use crate::render::amounts::bytes;

/// What a guest costs besides its memory: the process, its threads' stacks and rings.
const OVERHEAD_BYTES: u64 = 64 << 20;

/// Page tables: 8 bytes for each 4 KiB page, for each of up to two mappings and once more for
/// KVM's own.
const PAGE_TABLE_SHARE: u64 = 4096 / (3 * 8);

/// Why there is no room.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Shortage {
    /// The host has too little memory.
    #[error("this host has {} of memory free for guests, the guest needs {}", bytes(*free), bytes(*needed))]
    Memory {
        /// What is free.
        free: u64,
        /// What is needed.
        needed: u64,
    },
    /// The host has too few huge pages.
    #[error("this host has {} in free huge pages, the guest needs {}", bytes(*free), bytes(*needed))]
    HugePages {
        /// What is free.
        free: u64,
        /// What is needed.
        needed: u64,
    },
    /// The operator's limit is reached.
    #[error("--memory-limit leaves {} for guests here, the guest needs {}", bytes(*free), bytes(*needed))]
    Limit {
        /// What is left of it.
        free: u64,
        /// What is needed.
        needed: u64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Promise {
    bytes: u64,
    huge: bool,
    huge_set_aside: bool,
    process: Option<u32>,
}

impl Promise {
    /// What was promised and is not yet taken, of small pages and of huge ones.
    fn outstanding(&self, reserve: Reserve) -> (u64, u64) {
        if self.huge {
            let huge = if self.huge_set_aside { 0 } else { self.bytes };
            return (OVERHEAD_BYTES, huge);
        }
        let taken = self.process.map_or(0, taken_by);
        (need(reserve.of(self.bytes)).saturating_sub(taken), 0)
    }
}

/// Another guest of this host, as it says of itself. It may be one that the ledger knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    /// Its process.
    pub(crate) process: u32,
    /// Its memory.
    pub(crate) bytes: u64,
    /// Whether that is in huge pages.
    pub(crate) huge: bool,
    /// Whether it is allocated: a guest that is arriving may not have come to that.
    pub(crate) allocated: bool,
}

impl Neighbour {
    fn promise(&self) -> Promise {
        Promise {
            bytes: self.bytes,
            huge: self.huge,
            huge_set_aside: self.allocated,
            process: Some(self.process),
        }
    }
}

/// How much of a guest's memory is set aside for it, in percent.
#[derive(Clone, Copy, Debug)]
struct Reserve(u8);

impl Reserve {
    fn of(self, bytes: u64) -> u64 {
        let share = u128::from(bytes) * u128::from(self.0.min(100)) / 100;
        // At most `bytes`.
        share as u64
    }
}

/// What a guest of this size takes in all.
fn need(bytes: u64) -> u64 {
    bytes
        .saturating_add(bytes / PAGE_TABLE_SHARE)
        .saturating_add(OVERHEAD_BYTES)
}

/// Whether a guest that takes `memory` at once has room on this host. For one that is started here:
/// nothing is promised, since it takes its memory before it can be asked about it.
///
/// # Errors
///
/// When there is too little, with both numbers.
pub(crate) fn has_room(memory: u64, huge: bool) -> Result<(), Shortage> {
    fits(memory, huge, host_memory())
}

fn fits(memory: u64, huge: bool, free: HostMemory) -> Result<(), Shortage> {
    let needed = if huge { OVERHEAD_BYTES } else { need(memory) };
    if needed > free.available {
        return Err(Shortage::Memory {
            free: free.available,
            needed,
        });
    }
    if huge && memory > free.huge_free {
        return Err(Shortage::HugePages {
            free: free.huge_free,
            needed: memory,
        });
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Book {
    next: u64,
    promises: BTreeMap<u64, Promise>,
}

impl Book {
    /// All that was promised on this host: here, and to neighbours that are not in this book.
    fn all(&self, neighbours: &[Neighbour]) -> Vec<Promise> {
        let known = |neighbour: &&Neighbour| {
            self.promises
                .values()
                .any(|promise| promise.process == Some(neighbour.process))
        };
        let others = neighbours.iter().filter(|neighbour| !known(neighbour));
        self.promises
            .values()
            .copied()
            .chain(others.map(Neighbour::promise))
            .collect()
    }
}

/// The ledger. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    limit: Option<u64>,
    reserve: Reserve,
    book: Arc<Mutex<Book>>,
}

impl Ledger {
    /// An empty ledger, with the operator's limit on all guests' memory together, and the share of
    /// a guest's memory that has to be free for it, in percent.
    pub(crate) fn new(limit: Option<u64>, reserve: u8) -> Self {
        Self {
            limit,
            reserve: Reserve(reserve),
            book: Arc::default(),
        }
    }

    /// Promises a guest its memory, for as long as the entry lives. `neighbours` are the guests of
    /// this host; those that have a promise here are counted once.
    ///
    /// # Errors
    ///
    /// When there is too little, with both numbers.
    pub(crate) fn promise(
        &self,
        memory: u64,
        huge: bool,
        neighbours: &[Neighbour],
    ) -> Result<Entry, Shortage> {
        self.promise_of(memory, huge, neighbours, host_memory())
    }

    fn promise_of(
        &self,
        memory: u64,
        huge: bool,
        neighbours: &[Neighbour],
        host: HostMemory,
    ) -> Result<Entry, Shortage> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let promises = book.all(neighbours);
        if let Some(limit) = self.limit {
            let free = promises
                .iter()
                .fold(limit, |left, promise| left.saturating_sub(promise.bytes));
            if memory > free {
                return Err(Shortage::Limit {
                    free,
                    needed: memory,
                });
            }
        }
        let (small, large) = promises
            .iter()
            .map(|promise| promise.outstanding(self.reserve))
            .fold((0_u64, 0_u64), |sum, promise| {
                (
                    sum.0.saturating_add(promise.0),
                    sum.1.saturating_add(promise.1),
                )
            });
        let free = HostMemory {
            available: host.available.saturating_sub(small),
            huge_free: host.huge_free.saturating_sub(large),
        };
        let needed = if huge {
            memory
        } else {
            self.reserve.of(memory)
        };
        fits(needed, huge, free)?;
        let number = book.next;
        book.next += 1;
        book.promises.insert(
            number,
            Promise {
                bytes: memory,
                huge,
                huge_set_aside: false,
                process: None,
            },
        );
        Ok(Entry {
            number,
            book: Arc::clone(&self.book),
        })
    }
}

/// A promise. Dropped, it is given back.
#[derive(Debug)]
pub(crate) struct Entry {
    number: u64,
    book: Arc<Mutex<Book>>,
}

impl Entry {
    /// The process that takes the memory.
    pub(crate) fn belongs_to(&self, process: u32) {
        self.change(|promise| promise.process = Some(process));
    }

    /// The memory is allocated: huge pages are set aside by the kernel from now on.
    pub(crate) fn is_allocated(&self) {
        self.change(|promise| promise.huge_set_aside = true);
    }

    fn change(&self, change: impl FnOnce(&mut Promise)) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(promise) = book.promises.get_mut(&self.number) {
            change(promise);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.promises.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn host(available: u64, huge_free: u64) -> HostMemory {
        HostMemory {
            available,
            huge_free,
        }
    }

    #[test]
    fn two_promises_do_not_share_the_same_memory() {
        let ledger = Ledger::new(None, 100);
        let first = ledger
            .promise_of(2 * GIB, false, &[], host(4 * GIB, 0))
            .unwrap();
        let shortage = ledger
            .promise_of(2 * GIB, false, &[], host(4 * GIB, 0))
            .unwrap_err();
        assert!(matches!(shortage, Shortage::Memory { .. }), "{shortage}");
        drop(first);
        ledger
            .promise_of(2 * GIB, false, &[], host(4 * GIB, 0))
            .unwrap();
    }

    #[test]
    fn a_guest_that_uses_little_may_be_larger_than_what_is_free() {
        let ledger = Ledger::new(Some(100 * GIB), 10);
        let free = host(8 * GIB, 0);
        let first = ledger.promise_of(64 * GIB, false, &[], free).unwrap();
        // A tenth of each, the first one's as well.
        let second = ledger.promise_of(32 * GIB, false, &[], free);
        assert!(matches!(second, Err(Shortage::Memory { .. })));
        ledger.promise_of(10 * GIB, false, &[], free).unwrap();
        // The limit is about sizes.
        let third = ledger.promise_of(37 * GIB, false, &[], host(99 * GIB, 0));
        assert!(matches!(third, Err(Shortage::Limit { .. })));
        drop(first);
        // Huge pages are set aside whole.
        let huge = ledger.promise_of(8 * GIB, true, &[], host(8 * GIB, GIB));
        assert!(matches!(huge, Err(Shortage::HugePages { .. })));
    }

    #[test]
    fn the_limit_counts_all_guests() {
        let ledger = Ledger::new(Some(3 * GIB), 100);
        let _first = ledger
            .promise_of(2 * GIB, false, &[], host(99 * GIB, 0))
            .unwrap();
        assert_eq!(
            ledger
                .promise_of(2 * GIB, false, &[], host(99 * GIB, 0))
                .unwrap_err()
                .to_string(),
            "--memory-limit leaves 1 GiB for guests here, the guest needs 2 GiB"
        );
    }

    #[test]
    fn neighbours_count_once_whoever_let_them_in() {
        let ledger = Ledger::new(Some(3 * GIB), 100);
        // No process has this number: nothing of the memory is taken yet.
        let neighbour = |process| Neighbour {
            process,
            bytes: GIB,
            huge: false,
            allocated: true,
        };
        let (known, stranger) = (neighbour(u32::MAX), neighbour(u32::MAX - 1));
        let all = host(99 * GIB, 0);
        let first = ledger.promise_of(GIB, false, &[], all).unwrap();
        first.belongs_to(known.process);
        drop(ledger.promise_of(2 * GIB, false, &[known], all).unwrap());
        assert!(matches!(
            ledger.promise_of(2 * GIB, false, &[known, stranger], all),
            Err(Shortage::Limit { free: GIB, .. })
        ));
        // What they have not taken yet is still inside of MemAvailable.
        assert!(matches!(
            ledger.promise_of(GIB, false, &[stranger], host(3 * GIB, 0)),
            Err(Shortage::Memory { .. })
        ));
    }

    #[test]
    fn huge_pages_are_promised_until_the_kernel_sets_them_aside() {
        let ledger = Ledger::new(None, 100);
        let all = host(GIB, 3 * GIB);
        let first = ledger.promise_of(2 * GIB, true, &[], all).unwrap();
        assert!(matches!(
            ledger.promise_of(2 * GIB, true, &[], all),
            Err(Shortage::HugePages { free: GIB, .. })
        ));
        first.is_allocated();
        // The kernel's own number now lacks what the first guest has.
        assert!(ledger.promise_of(GIB, true, &[], host(GIB, GIB)).is_ok());
    }

    #[test]
    fn a_size_beyond_all_measure_is_a_shortage_and_no_overflow() {
        let ledger = Ledger::new(None, 100);
        let all = host(u64::MAX - 1, 0);
        assert!(ledger.promise_of(u64::MAX, false, &[], all).is_err());
    }
}
