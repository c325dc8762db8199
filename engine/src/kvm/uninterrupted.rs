//! A call into the kernel that no signal cuts short.
//!
//! `KVM_RESET_DIRTY_RINGS` needs it: when a signal is pending, newer kernels leave it half way
//! (virt/kvm/dirty_ring.c, "Bail from the dirty ring reset flow if a signal is pending"; seen in
//! 6.18) and forget up to 64 pages that are out of the ring already and not yet protected again.
//! The call says nothing of that. Whatever the guest then writes to these pages is in no ring: its
//! writes are lost.
//!
//! So the thread blocks its signals for the call; they come in afterwards. What can't be blocked (a
//! stop, the freezer, a debugger) takes the processor from the thread before it is back from the
//! kernel, and the kernel counts that as given up by the thread itself. That count is looked at.

use std::io;
use std::mem::MaybeUninit;

/// What a call that was meant to be uninterrupted came to.
pub(super) struct Uninterrupted<T> {
    /// What the call returned.
    pub value: T,
    /// Whether the thread may have been stopped in it all the same. Waiting for a lock in the kernel
    /// looks alike, so this is said too often rather than not often enough.
    pub stopped: bool,
}

/// Makes a call with this thread's signals blocked.
///
/// # Errors
///
/// When the kernel does not block them, or does not count; the call was then not made.
pub(super) fn uninterrupted<T>(call: impl FnOnce() -> T) -> io::Result<Uninterrupted<T>> {
    let _blocked = BlockedSignals::new()?;
    let before = processor_given_up()?;
    let value = call();
    // What was made can't be unmade: where the count fails now, the worse is believed.
    let stopped = processor_given_up().ok() != Some(before);
    Ok(Uninterrupted { value, stopped })
}

/// How often this thread gave its processor up before its time was over.
fn processor_given_up() -> io::Result<libc::c_long> {
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the kernel fills the struct that it is given room for.
    if unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it filled the struct.
    Ok(unsafe { usage.assume_init() }.ru_nvcsw)
}

/// All signals of this thread are blocked while the value lives; it stays on its thread.
struct BlockedSignals {
    before: libc::sigset_t,
}

impl BlockedSignals {
    fn new() -> io::Result<Self> {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the first call fills `all`; the second reads it and fills `before`.
        let errno = unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr())
        };
        if errno != 0 {
            return Err(io::Error::from_raw_os_error(errno));
        }
        // SAFETY: the call succeeded, so it filled the set.
        let before = unsafe { before.assume_init() };
        Ok(Self { before })
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set was filled by the kernel. It fails only for a bad argument.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    static HANDLED: AtomicU32 = AtomicU32::new(0);

    extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        HANDLED.fetch_add(1, Ordering::SeqCst);
    }

    #[test]
    fn a_signal_comes_in_behind_the_call() {
        let signal = vmm_sys_util::signal::SIGRTMIN() + 3;
        vmm_sys_util::signal::register_signal_handler(signal, on_signal).unwrap();
        let done = uninterrupted(|| {
            // SAFETY: the thread signals itself, with a signal that has a handler.
            assert_eq!(
                unsafe { libc::pthread_kill(libc::pthread_self(), signal) },
                0
            );
            HANDLED.load(Ordering::SeqCst)
        });
        assert_eq!(done.unwrap().value, 0);
        assert_eq!(HANDLED.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn who_sleeps_in_the_call_may_have_been_stopped() {
        let done = uninterrupted(|| std::thread::sleep(Duration::from_millis(1)));
        assert!(done.unwrap().stopped);
    }
}
