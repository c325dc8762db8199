//! What is proven untouched, on each kind of memory that a host has.

use std::os::fd::FromRawFd;

use dunlin_transports::memory::OwnedMapping;

use super::*;
use crate::layout::{Backing, GuestAddress, RegionShape};

const PAGES: u64 = 1024;
const BYTES: u64 = PAGES * PAGE_BYTES;

/// A shared mapping of a file, never unmapped: tests are short.
struct Shared(*mut u8);

// SAFETY: mapped for good, page-aligned, and handed out as a raw pointer only.
unsafe impl HostMapping for Shared {
    fn base(&self) -> *mut u8 {
        self.0
    }

    fn bytes(&self) -> u64 {
        BYTES
    }
}
// SAFETY: an address; access to what is behind it is raw and up to its users.
unsafe impl Send for Shared {}
// SAFETY: as for `Send`.
unsafe impl Sync for Shared {}

fn guest_memory(backing: Backing, region: Region) -> GuestMemory {
    let shape = RegionShape {
        address: GuestAddress(0),
        bytes: BYTES,
        backing,
        backing_page_bytes: PAGE_BYTES,
    };
    let layout = Layout::new(1, vec![shape]).unwrap();
    GuestMemory::new(layout, vec![region]).unwrap()
}

fn anonymous() -> GuestMemory {
    let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(BYTES).unwrap());
    let region = Region {
        file: None,
        file_offset: 0,
        guest_mapping: Arc::clone(&mapping),
        lane_mapping: mapping,
    };
    guest_memory(Backing::Anonymous, region)
}

fn file(flags: libc::c_uint) -> Option<GuestMemory> {
    // The region starts in the middle of the file.
    const FILE_OFFSET: u64 = 2 << 20;
    // SAFETY: the name is a NUL-terminated string.
    let fd = unsafe { libc::memfd_create(c"untouched".as_ptr(), flags) };
    assert!(fd >= 0);
    // SAFETY: just opened, and nobody else's.
    let file = Arc::new(unsafe { OwnedFd::from_raw_fd(fd) });
    rustix::fs::ftruncate(&file, FILE_OFFSET + BYTES).unwrap();
    let map = || -> Option<Arc<dyn HostMapping>> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BYTES as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                FILE_OFFSET as libc::off_t,
            )
        };
        (base != libc::MAP_FAILED).then(|| Arc::new(Shared(base.cast())) as _)
    };
    let region = Region {
        file: Some(Arc::clone(&file)),
        file_offset: FILE_OFFSET,
        guest_mapping: map()?,
        lane_mapping: map()?,
    };
    Some(guest_memory(Backing::Memfd, region))
}

fn write(memory: &GuestMemory, page: u64, byte: u8) {
    let run = Run {
        first: PageNumber(page),
        pages: 1,
    };
    memory.guest_map().copy_in(run, &[byte; 4096]).unwrap();
}

fn ranges(untouched: &Untouched, first: u64, pages: u32) -> Vec<(u64, u32)> {
    let mut found = Vec::new();
    let run = Run {
        first: PageNumber(first),
        pages,
    };
    untouched.for_each_range(run, |range| found.push((range.first.0, range.pages)));
    found
}

#[test]
fn fresh_memory_is_untouched_whatever_backs_it() {
    for memory in [anonymous(), file(0).unwrap()] {
        let untouched = Untouched::new(&memory);
        assert_eq!(ranges(&untouched, 0, 1024), [(0, 1024)]);
        assert_eq!(ranges(&untouched, 960, 64), [(960, 64)]);
        assert_eq!(untouched.failures(), 0);
    }
}

#[test]
fn a_range_outside_memory_proves_nothing() {
    for memory in [anonymous(), file(0).unwrap()] {
        let untouched = Untouched::new(&memory);
        assert_eq!(ranges(&untouched, 512, 513), []);
        assert_eq!(ranges(&untouched, 1024, 1), []);
        assert_eq!(ranges(&untouched, u64::MAX, 1), []);
    }
}

#[test]
fn a_written_page_of_anonymous_memory_is_touched_and_no_other() {
    let memory = anonymous();
    // Huge pages would touch its neighbours too.
    let base = memory.guest_map().host_address(Run {
        first: PageNumber(0),
        pages: 1,
    });
    // SAFETY: advice about the range that the map holds.
    unsafe { libc::madvise(base.unwrap().cast(), BYTES as usize, libc::MADV_NOHUGEPAGE) };
    let untouched = Untouched::new(&memory);
    write(&memory, 3, 1);
    // Written with zeros is written.
    write(&memory, 700, 0);
    assert_eq!(ranges(&untouched, 0, 1024), [(0, 3), (4, 696), (701, 323)]);
    // A read maps the kernel's page of zeros: touched, as far as this room can tell.
    let mut page = [0; 4096];
    let run = Run {
        first: PageNumber(5),
        pages: 1,
    };
    memory.lane_map().copy_out(run, &mut page).unwrap();
    assert_eq!(ranges(&untouched, 4, 60), [(4, 1), (6, 58)]);
}

#[test]
fn huge_pages_of_anonymous_memory_are_touched_as_a_whole() {
    let memory = anonymous();
    let untouched = Untouched::new(&memory);
    let run = Run {
        first: PageNumber(0),
        pages: 1024,
    };
    let base = memory.guest_map().host_address(run).unwrap();
    // SAFETY: advice about the range that the map holds.
    unsafe { libc::madvise(base.cast(), BYTES as usize, libc::MADV_HUGEPAGE) };
    write(&memory, 600, 1);
    let touched = 1024 - ranges(&untouched, 0, 1024).iter().map(|r| r.1).sum::<u32>();
    // 512 where the kernel found a huge page, 1 where it did not.
    assert!((1..=512).contains(&touched), "{touched}");
    let found = ranges(&untouched, 600, 1);
    assert_eq!(found, []);
}

/// A page in swap is not present, and still the guest's data. Swap is rarely to be had in a
/// test; what pagemap says about it is in the kernel's documentation, and is imitated here.
#[test]
fn swapped_and_shared_pages_count_as_touched() {
    for bit in [61, 62, 63] {
        assert_ne!(1_u64 << bit & PAGEMAP_TOUCHED, 0);
    }
    // Soft-dirty and write-protected are no touch.
    assert_eq!((1_u64 << 55 | 1 << 57) & PAGEMAP_TOUCHED, 0);
}

fn check_pieces(memory: &GuestMemory, untouched: &Untouched) {
    write(memory, 3, 1);
    write(memory, 200, 1);
    // Pieces of 64: the first and the fourth.
    let expected = [(64, 128), (256, 768)];
    assert_eq!(ranges(untouched, 0, 1024), expected);
    assert_eq!(ranges(untouched, 64, 64), [(64, 64)]);
    assert_eq!(ranges(untouched, 0, 3), [(0, 3)]);
    // Touched after it was probed: the next probe says so (and its dirty bit does).
    write(memory, 65, 1);
    assert_eq!(ranges(untouched, 64, 64), []);
    for page in 512..1024 {
        write(memory, page, 0xff);
    }
    assert_eq!(ranges(untouched, 512, 512), []);
    assert_eq!(untouched.failures(), 0);
}

#[test]
fn a_written_page_of_a_memfd_is_touched_through_either_mapping() {
    let memory = file(0).unwrap();
    let untouched = Untouched::new(&memory);
    if matches!(untouched.probes[0], Probe::Read(_)) {
        println!("skipped: this kernel has no cachestat(2)");
    }
    check_pieces(&memory, &untouched);
}

#[test]
fn without_cachestat_the_file_is_read() {
    let memory = file(0).unwrap();
    let region = &memory.regions()[0];
    let mut untouched = Untouched::new(&memory);
    untouched.probes[0] = Probe::Read(FileRange {
        file: Arc::clone(region.file.as_ref().unwrap()),
        offset: region.file_offset,
    });
    check_pieces(&memory, &untouched);
    // Asking has allocated nothing: the pages written above are all that there is.
    let blocks = rustix::fs::fstat(region.file.as_ref().unwrap())
        .unwrap()
        .st_blocks;
    assert_eq!(blocks as u64 * 512, (3 + 512) * PAGE_BYTES);
}

#[test]
fn asking_allocates_nothing() {
    let memory = file(0).unwrap();
    let untouched = Untouched::new(&memory);
    ranges(&untouched, 0, 1024);
    let file = memory.regions()[0].file.as_ref().unwrap();
    assert_eq!(rustix::fs::fstat(file).unwrap().st_blocks, 0);
}

#[test]
fn huge_page_files_are_read() {
    let Some(memory) = file(libc::MFD_HUGETLB | libc::MFD_HUGE_2MB) else {
        println!("skipped: no free huge pages of 2 MiB");
        return;
    };
    let untouched = Untouched::new(&memory);
    assert!(matches!(untouched.probes[0], Probe::Read(_)));
    assert_eq!(ranges(&untouched, 0, 1024), [(0, 1024)]);
    write(&memory, 600, 1);
    // The piece that holds page 600; the rest of its huge page reads as zero.
    assert_eq!(ranges(&untouched, 0, 1024), [(0, 576), (640, 384)]);
}

#[test]
fn an_error_proves_nothing_and_is_counted() {
    let memory = file(0).unwrap();
    let untouched = Untouched::new(&memory);
    let file = memory.regions()[0].file.as_ref().unwrap();
    rustix::fs::ftruncate(file, 0).unwrap();
    let mut reading = Untouched::new(&memory);
    reading.probes[0] = Probe::Read(FileRange {
        file: Arc::clone(file),
        offset: 0,
    });
    assert_eq!(ranges(&reading, 0, 64), []);
    assert_eq!(reading.failures(), 1);
    assert_eq!(untouched.failures(), 0);
}
