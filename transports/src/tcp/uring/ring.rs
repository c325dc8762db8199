//! A lane's ring: what is submitted to it, and what comes back. The memory that its operations use
//! is the stream's (see the laws of `uring`).
//!
//! The ring is made disabled and enabled by the first call, because a lane is opened on one thread
//! and used on another. A lane that moves to yet another thread, with nothing on its way, gets a
//! new ring. The socket is its one registered file, which saves the lookup and the reference count
//! of each operation.
//!
//! The kernel keeps completions for the issuing thread's next entry that asks for them, and says in
//! the ring's memory that it does (`IORING_SETUP_TASKRUN_FLAG`): so what came meanwhile is taken
//! with the next submission, at no call of its own.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::debts::Debts;
use crate::deadline::Deadline;
use crate::lane::{LaneWork, Observer};
use crate::tcp::stream::StreamError;

/// Entries in the submission queue: a send, a receive and a cancellation.
const ENTRIES: u32 = 4;

/// Entries in the completion queue: one for each of these, and a notification for each batch that
/// waits for one, of which there are 16 at most. What finds no room the kernel keeps until the next
/// entry.
const COMPLETIONS: u32 = 32;

/// How long a cancellation is waited for before the socket is shut down to help it. It takes
/// microseconds.
pub(super) const CANCEL_TIME_EXPECTED: Duration = Duration::from_secs(1);

/// From linux/io_uring.h: the notification says whether the kernel copied.
pub(super) const SEND_ZC_REPORT_USAGE: u16 = 1 << 3;

/// From linux/io_uring.h: it did, at least a part.
const NOTIF_USAGE_ZC_COPIED: u32 = 1 << 31;

/// What an operation is, and its place among the results.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Send,
    Receive,
    Cancel,
}

impl Operation {
    /// What completions name it by; below the number of its flight.
    fn tag(self, flight: u64) -> u64 {
        flight << 8 | self as u64
    }
}

pub(super) struct Ring {
    ring: IoUring,
    /// The thread that may enter the ring: the first that did.
    issuer: Option<ThreadId>,
    /// The ring can't be entered any more; nothing is submitted.
    is_broken: bool,
    socket: Arc<TcpStream>,
    /// Operations that the kernel may be working on: the numbers of their flights.
    pending: [Option<u64>; 3],
    /// Results that were seen and not yet asked for, by operation.
    results: [Option<i32>; 3],
    /// Notifications to come.
    pub(super) debts: Debts,
    submissions: u64,
    /// When each operation was submitted, by the observer's clock.
    submitted: [Option<u64>; 3],
    pub(super) observer: Observer,
}

impl Ring {
    /// Whether a ring can be made here.
    pub(super) fn probe() -> io::Result<()> {
        new_ring().map(|_| ())
    }

    pub(super) fn new(socket: Arc<TcpStream>) -> io::Result<Self> {
        Ok(Self {
            ring: ring_for(&socket)?,
            issuer: None,
            is_broken: false,
            socket,
            pending: [None; 3],
            results: [None; 3],
            debts: Debts::default(),
            submissions: 0,
            submitted: [None; 3],
            observer: Observer::default(),
        })
    }

    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Entries into the kernel so far.
    pub(super) fn submissions(&self) -> u64 {
        self.submissions
    }

    pub(super) fn is_pending(&self, operation: Operation) -> bool {
        self.pending_flight(operation).is_some()
    }

    fn pending_flight(&self, operation: Operation) -> Option<u64> {
        self.pending.get(operation as usize).copied().flatten()
    }

    /// Nothing can be awaited any more: sees to laws 2 and 3.
    fn give_up(&mut self, error: io::Error) -> StreamError {
        self.is_broken = true;
        let _ = self.socket.shutdown(Shutdown::Both);
        // Ends: a connection that was shut down takes no more bytes from the peer.
        let mut discarded = [0; 16 << 10];
        while matches!(
            rustix::net::recv(&*self.socket, &mut discarded, RecvFlags::DONTWAIT),
            Ok((1.., _)) | Err(Errno::INTR)
        ) {}
        error.into()
    }

    fn is_issuer(&self) -> bool {
        self.issuer == Some(std::thread::current().id())
    }

    /// Sees to it that this thread may enter the ring.
    fn enable(&mut self) -> Result<(), StreamError> {
        if self.is_broken {
            return Err(StreamError::Closed);
        }
        if self.is_issuer() {
            return Ok(());
        }
        if self.pending.iter().any(Option::is_some) {
            return Err(self.give_up(io::Error::other(
                "the lane moved to another thread in the middle of a batch",
            )));
        }
        if self.issuer.is_some() {
            self.ring = ring_for(&self.socket)?;
            self.debts.lose();
        }
        self.ring.submitter().register_enable_rings()?;
        self.issuer = Some(std::thread::current().id());
        Ok(())
    }

    /// Puts an entry into the submission queue.
    ///
    /// # Safety
    ///
    /// What the entry points to is valid until its completion was seen, and until the flight is owed
    /// no notification; for ever if that never comes.
    pub(super) unsafe fn push(
        &mut self,
        operation: Operation,
        flight: u64,
        entry: squeue::Entry,
    ) -> Result<(), StreamError> {
        self.enable()?;
        let entry = entry.user_data(operation.tag(flight));
        // SAFETY: the caller vouches for the entry.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed
            .map_err(|_| StreamError::System(io::Error::other("the submission queue is full")))?;
        if let Some(pending) = self.pending.get_mut(operation as usize) {
            *pending = Some(flight);
        }
        if let Some(submitted) = self.submitted.get_mut(operation as usize)
            && operation != Operation::Cancel
        {
            *submitted = self.observer.now();
        }
        Ok(())
    }

    /// Submits what is queued without waiting. What can't be submitted now stays queued.
    pub(super) fn submit(&mut self) -> Result<(), StreamError> {
        self.submissions += 1;
        match self.ring.submit() {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => Err(self.give_up(error)),
            },
        }
    }

    /// Submits what is queued, and waits for `operation`'s result; `None` at the deadline.
    pub(super) fn wait(
        &mut self,
        operation: Operation,
        deadline: Deadline,
    ) -> Result<Option<i32>, StreamError> {
        self.enable()?;
        loop {
            self.reap();
            let result = self.results.get_mut(operation as usize);
            if let Some(result) = result.and_then(Option::take) {
                return Ok(Some(result));
            }
            let left = deadline.remaining();
            if left.is_zero() && self.ring.submission().is_empty() {
                return Ok(None);
            }
            if !self.enter(left)? && left.is_zero() {
                return Ok(None);
            }
        }
    }

    /// Submits what is queued, and waits for any completion for at most so long. `false` where the
    /// kernel was short of memory for a moment; what could not be submitted stays queued.
    fn enter(&mut self, left: Duration) -> Result<bool, StreamError> {
        let timeout = Timespec::new()
            .sec(left.as_secs())
            .nsec(left.subsec_nanos());
        let arguments = SubmitArgs::new().timespec(&timeout);
        self.submissions += 1;
        match self.ring.submitter().submit_with_args(1, &arguments) {
            Ok(_) => Ok(true),
            Err(error) => match error.raw_os_error() {
                // Over time or interrupted; callers look at both.
                Some(libc::ETIME | libc::EINTR) => Ok(true),
                Some(libc::EAGAIN | libc::EBUSY) => {
                    std::thread::yield_now();
                    Ok(false)
                }
                _ => Err(self.give_up(error)),
            },
        }
    }

    /// Takes note of completions that are in the ring's memory. Needs no entry into the kernel.
    pub(super) fn reap(&mut self) {
        for completion in self.ring.completion() {
            let place = usize::from(completion.user_data() as u8);
            let flight = completion.user_data() >> 8;
            if cqueue::notif(completion.flags()) {
                let usage = completion.result().cast_unsigned();
                self.debts
                    .notified(flight, usage & NOTIF_USAGE_ZC_COPIED != 0);
                continue;
            }
            if cqueue::more(completion.flags()) {
                self.debts.announced(flight, completion.result());
            }
            if let Some(result) = self.results.get_mut(place) {
                *result = Some(completion.result());
            }
            if let Some(pending) = self.pending.get_mut(place) {
                *pending = None;
            }
            if let Some(submitted) = self.submitted.get_mut(place) {
                self.observer.done(LaneWork::Submission, submitted.take());
            }
        }
    }

    /// Takes note of all completions that have come, those that the kernel keeps included.
    pub(super) fn collect(&mut self) {
        if self.is_issuer() && !self.is_broken && self.ring.submission().taskrun() {
            // Fails where the ring is given up, which the next call says.
            let _ = self.submit();
        }
        self.reap();
    }

    /// Waits until no notification is to come, or the deadline. Returns at once where the ring can't
    /// be entered.
    pub(super) fn await_notifications(&mut self, deadline: Deadline) {
        self.collect();
        while self.debts.are_awaited()
            && self.is_issuer()
            && !self.is_broken
            && !deadline.passed()
            && self.enter(deadline.remaining()).is_ok()
        {
            self.reap();
        }
    }

    /// Cancels an operation and awaits its completion. Returns its result: as if it had moved
    /// nothing where it was cancelled before it did.
    pub(super) fn withdraw(&mut self, operation: Operation) -> Result<i32, StreamError> {
        let flight = self.pending_flight(operation).unwrap_or_default();
        let cancel = opcode::AsyncCancel::new(operation.tag(flight)).build();
        // SAFETY: a cancellation points to nothing.
        unsafe { self.push(Operation::Cancel, 0, cancel) }?;
        // No overall limit: law 1. It ends, since both a cancelled operation and one on a socket
        // that was shut down complete.
        let result = loop {
            match self.wait(operation, Deadline::after(CANCEL_TIME_EXPECTED))? {
                Some(result) => break result,
                None => _ = self.socket.shutdown(Shutdown::Both),
            }
        };
        while self
            .wait(Operation::Cancel, Deadline::after(CANCEL_TIME_EXPECTED))?
            .is_none()
        {}
        Ok(if result == -libc::ECANCELED {
            0
        } else {
            result
        })
    }
}

fn new_ring() -> io::Result<IoUring> {
    IoUring::builder()
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_cqsize(COMPLETIONS)
        .build(ENTRIES)
}

fn ring_for(socket: &TcpStream) -> io::Result<IoUring> {
    let ring = new_ring()?;
    ring.submitter().register_files(&[socket.as_raw_fd()])?;
    Ok(ring)
}

#[cfg(test)]
impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.ring.as_raw_fd()
    }
}
