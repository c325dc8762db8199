//! The kernel's calls for asynchronous write-protection and for scanning what was written.
//!
//! The numbers and structures are those of `include/uapi/linux/userfaultfd.h` and
//! `include/uapi/linux/fs.h` of Linux 6.7, the first version with both calls; the kernel's
//! documentation is `admin-guide/mm/userfaultfd.rst` and `admin-guide/mm/pagemap.rst`.
//!
//! # Laws of this room
//!
//! 1. Every structure is `repr(C)`, has the kernel's layout (tested by size), and outlives the call
//!    that it is handed to.
//! 2. The calls change page protection and read marks; they never change the bytes of memory, so
//!    they are sound on any range. A range that is not mapped is an error of the kernel.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use thiserror::Error;

/// Why writes can't be tracked.
#[derive(Debug, Error)]
pub enum TrackingError {
    /// No userfaultfd could be had.
    #[error(
        "userfaultfd is refused: {syscall}; /dev/userfaultfd: {device}; allow the system call, \
         or give this user the device"
    )]
    Refused {
        /// The system call's reason.
        syscall: io::Error,
        /// The device's reason.
        device: io::Error,
    },
    /// The kernel is too old for what is needed.
    #[error("this kernel can't track writes of a process: {lacks} is missing; Linux 6.7 has it")]
    Unsupported {
        /// What is missing.
        lacks: &'static str,
    },
    /// A call failed.
    #[error("{doing} {bytes} bytes at {start:#x}: {source}")]
    Call {
        /// What was being done.
        doing: &'static str,
        /// Where.
        start: u64,
        /// How much.
        bytes: u64,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A collection was asked for before tracking was started.
    #[error("writes of the process are not being tracked")]
    NotStarted,
}

/// `UFFD_API`.
const API: u64 = 0xAA;

/// `UFFD_USER_MODE_ONLY`: allowed without privilege whatever `vm.unprivileged_userfaultfd` says.
///
/// The flag refuses *reports* of faults in kernel mode. In asynchronous mode there are no reports:
/// the fault handler takes the protection off by itself, the same way for a store of a thread and
/// for a system call that writes into its buffer. So nothing is lost by it (a test has a `read`
/// write into tracked memory).
const USER_MODE_ONLY: libc::c_int = 1;

/// `UFFD_FEATURE_WP_HUGETLBFS_SHMEM`: write-protection of memfd and huge pages.
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;

/// `UFFD_FEATURE_WP_UNPOPULATED`: protection also of pages that do not exist yet.
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;

/// `UFFD_FEATURE_WP_ASYNC`: the kernel resolves write faults by itself.
const FEATURE_WP_ASYNC: u64 = 1 << 15;

/// `UFFDIO_REGISTER_MODE_WP`.
const REGISTER_MODE_WP: u64 = 1 << 1;

/// `UFFDIO_WRITEPROTECT_MODE_WP`.
const WRITEPROTECT_MODE_WP: u64 = 1 << 0;

/// `PAGE_IS_WRITTEN`: the page is not write-protected any more.
const PAGE_IS_WRITTEN: u64 = 1 << 1;

/// `PM_SCAN_WP_MATCHING`: protect what is reported, under the same page-table lock.
const SCAN_WP_MATCHING: u64 = 1 << 0;

/// `PM_SCAN_CHECK_WPASYNC`: fail (EPERM) on memory that is not tracked, rather than skip it.
const SCAN_CHECK_WPASYNC: u64 = 1 << 1;

/// How many ranges one scan returns at most: 24 KiB of buffer. A scan that fills it is continued.
const SCAN_RANGES: usize = 1024;

/// How much one call protects: short enough that the guest's own page faults don't wait long for
/// the address space's lock (FACTS: 17 ms for 1 GiB), and a multiple of every huge page's size.
const PROTECT_BYTES: u64 = 1 << 30;

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct UffdRange {
    start: u64,
    len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    range: UffdRange,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
struct WriteProtect {
    range: UffdRange,
    mode: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `_IOC`, as on every architecture but a few old ones (`include/uapi/asm-generic/ioctl.h`).
const fn request(direction: u64, group: u8, number: u8, bytes: usize) -> libc::c_ulong {
    (direction << 30 | (bytes as u64) << 16 | (group as u64) << 8 | number as u64) as libc::c_ulong
}

const NONE: u64 = 0;
const READ: u64 = 2;
const READ_WRITE: u64 = 3;

const USERFAULTFD_NEW: libc::c_ulong = request(NONE, 0xAA, 0x00, 0);
const UFFDIO_API: libc::c_ulong = request(READ_WRITE, 0xAA, 0x3F, size_of::<Api>());
const UFFDIO_REGISTER: libc::c_ulong = request(READ_WRITE, 0xAA, 0x00, size_of::<Register>());
const UFFDIO_UNREGISTER: libc::c_ulong = request(READ, 0xAA, 0x01, size_of::<UffdRange>());
const UFFDIO_WRITEPROTECT: libc::c_ulong =
    request(READ_WRITE, 0xAA, 0x06, size_of::<WriteProtect>());
const PAGEMAP_SCAN: libc::c_ulong = request(READ_WRITE, b'f', 16, size_of::<ScanArgument>());

/// A userfaultfd in asynchronous write-protect mode. Closing it ends all protection it set.
#[derive(Debug)]
pub(super) struct Userfaultfd {
    fd: OwnedFd,
}

impl Userfaultfd {
    /// Opens one: by the system call, or by `/dev/userfaultfd` where a sandbox refuses the call.
    pub(super) fn open() -> Result<Self, TrackingError> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
        // SAFETY: the call takes flags and no pointer.
        let number = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let fd = match owned(number) {
            Ok(fd) => fd,
            Err(syscall) => {
                by_device(flags).map_err(|device| TrackingError::Refused { syscall, device })?
            }
        };
        let mut api = Api {
            api: API,
            features: FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | FEATURE_WP_HUGETLBFS_SHMEM,
            ioctls: 0,
        };
        // SAFETY: `api` is the structure of this request and outlives the call.
        if unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) } < 0 {
            return Err(TrackingError::Unsupported {
                lacks: "asynchronous userfaultfd write-protect",
            });
        }
        Ok(Self { fd })
    }

    /// Registers a range for write-protection; protects nothing yet.
    pub(super) fn register(&self, range: &Range<u64>) -> Result<(), TrackingError> {
        let mut register = Register {
            range: uffd_range(range),
            mode: REGISTER_MODE_WP,
            ioctls: 0,
        };
        // SAFETY: `register` is the structure of this request and outlives the call.
        let result =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) };
        done(result, "tracking writes to", range)
    }

    /// Unregisters a range, which takes all protection off it.
    pub(super) fn unregister(&self, range: &Range<u64>) -> Result<(), TrackingError> {
        let mut argument = uffd_range(range);
        // SAFETY: `argument` is the structure of this request and outlives the call.
        let result =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_UNREGISTER, &raw mut argument) };
        done(result, "no longer tracking writes to", range)
    }

    /// Protects a whole registered range, pages that do not exist yet included.
    pub(super) fn protect(&self, range: &Range<u64>) -> Result<(), TrackingError> {
        let mut start = range.start;
        while start < range.end {
            let piece = start..range.end.min(start.saturating_add(PROTECT_BYTES));
            let mut argument = WriteProtect {
                range: uffd_range(&piece),
                mode: WRITEPROTECT_MODE_WP,
            };
            // SAFETY: `argument` is the structure of this request and outlives the call.
            let result =
                unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_WRITEPROTECT, &raw mut argument) };
            done(result, "write-protecting", &piece)?;
            start = piece.end;
        }
        Ok(())
    }
}

/// This process's page map, for scans.
#[derive(Debug)]
pub(super) struct PageMap {
    file: File,
    found: Vec<PageRegion>,
}

impl PageMap {
    /// Opens it.
    pub(super) fn open() -> Result<Self, TrackingError> {
        let file = File::open("/proc/self/pagemap").map_err(|source| TrackingError::Call {
            doing: "opening /proc/self/pagemap to scan",
            start: 0,
            bytes: 0,
            source,
        })?;
        Ok(Self {
            file,
            found: vec![PageRegion::default(); SCAN_RANGES],
        })
    }

    /// Finds all written pages of a registered range, protects them again, and tells of each piece
    /// of them. A write is either seen by this scan or faults after it: the kernel does both under
    /// the lock of the page table, and flushes the processors' caches of it before it returns.
    ///
    /// What was told before an error is protected again.
    pub(super) fn collect_written(
        &mut self,
        range: &Range<u64>,
        mut written: impl FnMut(Range<u64>),
    ) -> Result<(), TrackingError> {
        let mut start = range.start;
        while start < range.end {
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                flags: SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC,
                start,
                end: range.end,
                walk_end: 0,
                vec: self.found.as_mut_ptr() as u64,
                vec_len: self.found.len() as u64,
                max_pages: 0,
                category_inverted: 0,
                category_mask: PAGE_IS_WRITTEN,
                category_anyof_mask: 0,
                return_mask: PAGE_IS_WRITTEN,
            };
            // SAFETY: `argument` is the structure of this request; its `vec` points to `vec_len`
            // elements that this value owns, and both outlive the call.
            let count =
                unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
            let left = start..range.end;
            if count < 0 {
                let source = io::Error::last_os_error();
                return Err(match source.raw_os_error() {
                    Some(libc::ENOTTY) => TrackingError::Unsupported {
                        lacks: "PAGEMAP_SCAN",
                    },
                    _ => call_failed("scanning", &left, source),
                });
            }
            let count = usize::try_from(count).unwrap_or(0);
            for piece in self.found.iter().take(count) {
                written(piece.start..piece.end);
            }
            if argument.walk_end <= start {
                // The kernel never does this; without the check a scan could turn for ever.
                let source = io::Error::other("the scan did not move on");
                return Err(call_failed("scanning", &left, source));
            }
            start = argument.walk_end;
        }
        Ok(())
    }
}

fn by_device(flags: libc::c_int) -> io::Result<OwnedFd> {
    let device = File::open("/dev/userfaultfd")?;
    // The device's permissions are the permission for faults of every mode.
    // SAFETY: the request takes flags and no pointer.
    let number = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_NEW, flags) };
    owned(number.into())
}

fn owned(number: libc::c_long) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    let number = RawFd::try_from(number).map_err(io::Error::other)?;
    // SAFETY: the kernel just returned this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn uffd_range(range: &Range<u64>) -> UffdRange {
    UffdRange {
        start: range.start,
        len: range.end - range.start,
    }
}

fn done(result: libc::c_int, doing: &'static str, range: &Range<u64>) -> Result<(), TrackingError> {
    if result < 0 {
        return Err(call_failed(doing, range, io::Error::last_os_error()));
    }
    Ok(())
}

fn call_failed(doing: &'static str, range: &Range<u64>, source: io::Error) -> TrackingError {
    TrackingError::Call {
        doing,
        start: range.start,
        bytes: range.end - range.start,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers that a C compiler makes of the kernel's headers.
    #[test]
    fn requests_have_the_kernels_numbers() {
        assert_eq!(USERFAULTFD_NEW, 0xAA00);
        assert_eq!(UFFDIO_API, 0xC018_AA3F);
        assert_eq!(UFFDIO_REGISTER, 0xC020_AA00);
        assert_eq!(UFFDIO_UNREGISTER, 0x8010_AA01);
        assert_eq!(UFFDIO_WRITEPROTECT, 0xC018_AA06);
        assert_eq!(PAGEMAP_SCAN, 0xC060_6610);
    }

    #[test]
    fn the_device_works_where_it_is_there() {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
        match by_device(flags) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                panic!("/dev/userfaultfd refuses the flags: {error}")
            }
            Err(error) => println!("skipped: no /dev/userfaultfd: {error}"),
        }
    }
}
