//! The tracker against real threads and the real kernel, for each backing.

use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dunlin_transports::memory::{HostMapping, PAGE_BYTES, PageNumber, Run};

use super::ProcessMemoryTracker;
use crate::dirty::{DirtyBitmap, DirtySource};
use crate::layout::{Backing, GuestAddress, GuestMemory, Layout, Region, RegionShape};

const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// Two regions of so many bytes each.
const REGION_BYTES: u64 = 2 * HUGE_PAGE_BYTES;

struct Mapped {
    base: *mut u8,
    bytes: u64,
}

impl Mapped {
    fn new(bytes: u64, file: Option<&OwnedFd>) -> Option<Self> {
        let (flags, fd) = match file {
            Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes as usize,
                protection,
                flags,
                fd,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return None;
        }
        if file.is_none() {
            // SAFETY: advice about the range that was just mapped. It gives transparent huge pages
            // to the anonymous case, so that their splitting is tested too.
            unsafe { libc::madvise(base, bytes as usize, libc::MADV_HUGEPAGE) };
        }
        Some(Self {
            base: base.cast(),
            bytes,
        })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and is unmapped only here.
        unsafe { libc::munmap(self.base.cast(), self.bytes as usize) };
    }
}

// SAFETY: the range stays mapped at one page-aligned address until drop, and leaves raw only.
unsafe impl HostMapping for Mapped {
    fn base(&self) -> *mut u8 {
        self.base
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

// SAFETY: the value is an address range; access to it is raw.
unsafe impl Send for Mapped {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mapped {}

fn region(backing: Backing) -> Option<Region> {
    let huge = match backing {
        Backing::Anonymous => {
            let mapping: Arc<dyn HostMapping> = Arc::new(Mapped::new(REGION_BYTES, None)?);
            return Some(Region {
                file: None,
                file_offset: 0,
                guest_mapping: Arc::clone(&mapping),
                lane_mapping: mapping,
            });
        }
        Backing::Memfd => 0,
        Backing::Hugetlb => libc::MFD_HUGETLB,
    };
    // SAFETY: the name is a NUL-terminated string; the call touches no other memory.
    let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC | huge) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the kernel just returned the descriptor, and nobody else has it.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::fs::ftruncate(&file, REGION_BYTES).ok()?;
    let guest_mapping = Arc::new(Mapped::new(REGION_BYTES, Some(&file))?);
    let lane_mapping = Arc::new(Mapped::new(REGION_BYTES, Some(&file))?);
    Some(Region {
        file: Some(Arc::new(file)),
        file_offset: 0,
        guest_mapping,
        lane_mapping,
    })
}

/// Memory of each backing that this host has.
fn memories() -> Vec<(Backing, GuestMemory)> {
    let mut memories = Vec::new();
    for backing in [Backing::Anonymous, Backing::Memfd, Backing::Hugetlb] {
        let shape = |address| RegionShape {
            address: GuestAddress(address),
            bytes: REGION_BYTES,
            backing,
            backing_page_bytes: match backing {
                Backing::Hugetlb => HUGE_PAGE_BYTES,
                _ => PAGE_BYTES,
            },
        };
        let layout = Layout::new(1, vec![shape(0), shape(1 << 32)]).unwrap();
        match (region(backing), region(backing)) {
            (Some(first), Some(second)) => {
                memories.push((
                    backing,
                    GuestMemory::new(layout, vec![first, second]).unwrap(),
                ));
            }
            _ => println!("skipped: no {} memory on this host", backing.name()),
        }
    }
    memories
}

fn pages(memory: &GuestMemory) -> u64 {
    memory.layout().page_span()
}

/// Writes one word of a page, as the guest does.
fn write(memory: &GuestMemory, page: u64, value: u64) {
    let run = Run {
        first: PageNumber(page),
        pages: 1,
    };
    let address = memory.guest_map().host_address(run).unwrap();
    // SAFETY: `host_address` vouches for a mapped, aligned page, which `memory` keeps mapped.
    unsafe { AtomicU64::from_ptr(address.cast()) }.store(value, Ordering::Relaxed);
}

fn collect(tracker: &ProcessMemoryTracker, memory: &GuestMemory) -> DirtyBitmap {
    let mut bitmap = DirtyBitmap::new(pages(memory));
    tracker.collect(&mut bitmap).unwrap();
    bitmap
}

/// What a write to `page` makes dirty: the backing's own page.
fn backing_page(memory: &GuestMemory, page: u64) -> std::ops::Range<u64> {
    let pages = memory.layout().regions()[0].backing_page_bytes / PAGE_BYTES;
    let first = page - page % pages;
    first..first + pages
}

#[test]
fn exactly_what_was_written_is_reported_and_reported_again() {
    for (backing, memory) in memories() {
        let tracker = ProcessMemoryTracker::new(memory.clone());
        // One page exists before, the others come to be while tracked.
        write(&memory, 3, 1);
        tracker.start().unwrap();
        assert_eq!(collect(&tracker, &memory).count(), 0, "{backing:?}");
        for turn in 0..3 {
            for page in [3, 700, pages(&memory) - 1] {
                write(&memory, page, turn);
                let found: Vec<u64> = collect(&tracker, &memory).pages().map(|p| p.0).collect();
                let expected: Vec<u64> = backing_page(&memory, page).collect();
                assert_eq!(found, expected, "{backing:?}, turn {turn}");
            }
        }
        assert_eq!(collect(&tracker, &memory).count(), 0, "{backing:?}");
        tracker.stop().unwrap();
    }
}

#[test]
fn more_pieces_than_one_scan_returns_are_all_reported() {
    for (backing, memory) in memories() {
        let tracker = ProcessMemoryTracker::new(memory.clone());
        tracker.start().unwrap();
        let mut expected = DirtyBitmap::new(pages(&memory));
        for page in (0..pages(&memory)).step_by(2).filter(|page| page % 64 != 8) {
            write(&memory, page, 1);
            let dirty = backing_page(&memory, page);
            expected.set_range(PageNumber(dirty.start), dirty.end - dirty.start);
        }
        assert_eq!(collect(&tracker, &memory), expected, "{backing:?}");
        assert_eq!(collect(&tracker, &memory).count(), 0, "{backing:?}");
    }
}

/// A system call that writes into its buffer faults in kernel mode.
#[test]
fn writes_by_the_kernel_are_reported() {
    for (backing, memory) in memories() {
        let tracker = ProcessMemoryTracker::new(memory.clone());
        tracker.start().unwrap();
        let run = Run {
            first: PageNumber(9),
            pages: 1,
        };
        let address = memory.guest_map().host_address(run).unwrap();
        let mut zeros = std::fs::File::open("/dev/zero").unwrap();
        // SAFETY: the page is mapped and nobody else accesses it while the slice lives.
        let buffer = unsafe { std::slice::from_raw_parts_mut(address, PAGE_BYTES as usize) };
        zeros.read_exact(buffer).unwrap();
        assert!(collect(&tracker, &memory).get(PageNumber(9)), "{backing:?}");
    }
}

#[test]
fn reads_and_the_lanes_mapping_are_not_reported() {
    for (backing, memory) in memories() {
        let tracker = ProcessMemoryTracker::new(memory.clone());
        tracker.start().unwrap();
        let mut bytes = [0; PAGE_BYTES as usize];
        let run = Run {
            first: PageNumber(5),
            pages: 1,
        };
        memory.guest_map().copy_out(run, &mut bytes).unwrap();
        if backing != Backing::Anonymous {
            memory
                .lane_map()
                .copy_in(run, &[1; PAGE_BYTES as usize])
                .unwrap();
        }
        assert_eq!(collect(&tracker, &memory).count(), 0, "{backing:?}");
        write(&memory, 5, 2);
        assert!(collect(&tracker, &memory).get(PageNumber(5)), "{backing:?}");
    }
}

#[test]
fn starting_and_stopping_twice_is_harmless() {
    for (backing, memory) in memories() {
        let tracker = ProcessMemoryTracker::new(memory.clone());
        tracker.stop().unwrap();
        tracker.start().unwrap();
        write(&memory, 1, 1);
        // The second start forgets nothing.
        tracker.start().unwrap();
        assert!(collect(&tracker, &memory).get(PageNumber(1)), "{backing:?}");
        tracker.stop().unwrap();
        tracker.stop().unwrap();

        write(&memory, 2, 1);
        let mut bitmap = DirtyBitmap::new(pages(&memory));
        let error = tracker.collect(&mut bitmap).unwrap_err();
        assert!(error.to_string().contains("not being tracked"), "{error}");
        assert_eq!(bitmap.count(), 0);
        // Memory is free for another tracker, which knows nothing of the past.
        let another = ProcessMemoryTracker::new(memory.clone());
        another.start().unwrap();
        assert_eq!(collect(&another, &memory).count(), 0, "{backing:?}");
        assert!(tracker.start().is_err(), "two trackers of one mapping");
        drop(another);
        tracker.start().unwrap();
        write(&memory, 4, 1);
        assert!(collect(&tracker, &memory).get(PageNumber(4)), "{backing:?}");
    }
}

/// Law 1: whoever collects first and copies then has, after the last collection of a guest at
/// rest, every byte of it.
#[test]
fn collecting_before_copying_loses_no_write_of_running_threads() {
    for (backing, memory) in memories() {
        let tracker = ProcessMemoryTracker::new(memory.clone());
        let running = AtomicBool::new(true);
        let mut copy = vec![0_u8; 2 * REGION_BYTES as usize];
        let mut take = |bitmap: &DirtyBitmap| {
            for page in bitmap.pages() {
                let run = Run {
                    first: page,
                    pages: 1,
                };
                let at = page.0 as usize * PAGE_BYTES as usize;
                let bytes = &mut copy[at..at + PAGE_BYTES as usize];
                memory.lane_map().copy_out(run, bytes).unwrap();
            }
        };
        tracker.start().unwrap();
        std::thread::scope(|scope| {
            for writer in 0..2_u64 {
                let (memory, running) = (&memory, &running);
                scope.spawn(move || {
                    let mut random = 0x9E37_79B9_7F4A_7C15 + writer;
                    let mut value = 1;
                    while running.load(Ordering::Relaxed) {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        // Each writer has pages of its own, a few of them hot.
                        let span = if random & 1 == 0 {
                            16
                        } else {
                            pages(memory) / 2
                        };
                        write(memory, (random >> 8) % span * 2 + writer, value);
                        value += 1;
                    }
                });
            }
            for _ in 0..200 {
                take(&collect(&tracker, &memory));
            }
            running.store(false, Ordering::Relaxed);
        });
        take(&collect(&tracker, &memory));
        assert_eq!(collect(&tracker, &memory).count(), 0, "{backing:?}");
        let mut whole = vec![0_u8; 2 * REGION_BYTES as usize];
        let (first, second) = whole.split_at_mut(REGION_BYTES as usize);
        for (run, bytes) in memory.guest_map().whole().into_iter().zip([first, second]) {
            memory.guest_map().copy_out(run, bytes).unwrap();
        }
        let differs = (0..pages(&memory) as usize)
            .find(|page| copy[page * 4096..][..4096] != whole[page * 4096..][..4096]);
        assert_eq!(differs, None, "{backing:?}");
    }
}
