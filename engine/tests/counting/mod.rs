//! The system's allocator, and a count of what each thread asks of it: the test's runner has threads
//! of its own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What a thread allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allocations {
    pub(crate) calls: usize,
    pub(crate) bytes: usize,
    pub(crate) largest: usize,
}

thread_local! {
    /// This thread's.
    pub(crate) static ALLOCATED: Cell<Allocations> = const {
        Cell::new(Allocations { calls: 0, bytes: 0, largest: 0 })
    };
}

struct Counting;

fn count(bytes: usize) {
    let mut all = ALLOCATED.get();
    all.calls += 1;
    all.bytes += bytes;
    all.largest = all.largest.max(bytes);
    ALLOCATED.set(all);
}

// SAFETY: every call goes on to the system's allocator as it came. Counting neither allocates (the
// cell is made at compile time and has no destructor) nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, bytes) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
