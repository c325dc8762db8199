//! Getting a vCPU out of the guest, from another thread.
//!
//! Two things together leave no gap: a signal ends `KVM_RUN` when the vCPU is in the guest, and
//! `immediate_exit` in its `kvm_run` ends the next `KVM_RUN` when it is not (kernel:
//! Documentation/virt/kvm/api.rst, 5). A `KVM_RUN` that ends by `immediate_exit` first completes
//! the exit that was pending, which is what parking needs (law 7).
//!
//! # Laws of this room
//!
//! `kvm_run` is shared with the kernel and with the vCPU's own thread. This room has a mapping of
//! its own of the page that holds `immediate_exit`, and touches nothing but that byte, atomically.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use dunlin_transports::memory::PAGE_BYTES;
use kvm_bindings::kvm_run;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// The signal that ends `KVM_RUN`: the first real-time one, whose handler does nothing.
pub(super) fn signal() -> libc::c_int {
    SIGRTMIN()
}

/// Sees to it that the signal does nothing but end `KVM_RUN`.
pub(super) fn install_signal_handler() -> io::Result<()> {
    static ERRNO: OnceLock<Option<i32>> = OnceLock::new();
    let errno = ERRNO.get_or_init(|| {
        register_signal_handler(signal(), on_signal)
            .err()
            .map(|error| error.errno())
    });
    errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
}

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// One vCPU's `immediate_exit`, and whether it is wanted out.
pub(super) struct Kick {
    page: NonNull<u8>,
    wanted: AtomicBool,
}

impl Kick {
    /// For the vCPU behind a file.
    pub(super) fn new(vcpu: &impl AsRawFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE_BYTES as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = NonNull::new(page.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self {
            page,
            wanted: AtomicBool::new(false),
        })
    }

    /// From now on no `KVM_RUN` stays in the guest, but for one that is there already: that one
    /// takes the signal.
    pub(super) fn want_out(&self) {
        self.wanted.store(true, Ordering::SeqCst);
        self.immediate_exit().store(1, Ordering::SeqCst);
    }

    /// Lets the vCPU in again.
    pub(super) fn let_in(&self) {
        self.immediate_exit().store(0, Ordering::SeqCst);
        self.wanted.store(false, Ordering::SeqCst);
    }

    /// Whether the vCPU is wanted out.
    pub(super) fn wanted_out(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        const OFFSET: usize = std::mem::offset_of!(kvm_run, immediate_exit);
        // SAFETY: `new` mapped a whole page, in which the byte lies, and it stays mapped while this
        // value lives. The kernel only reads the byte; the vCPU's thread leaves it to this room.
        unsafe { AtomicU8::from_ptr(self.page.as_ptr().add(OFFSET)) }
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `new`, belongs to this value, and is unmapped only here.
        unsafe { libc::munmap(self.page.as_ptr().cast(), PAGE_BYTES as usize) };
    }
}

// SAFETY: the value is the address of a page that it owns, and accesses to it are atomic.
unsafe impl Send for Kick {}
// SAFETY: as for `Send`.
unsafe impl Sync for Kick {}
