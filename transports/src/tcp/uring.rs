//! A byte stream over io_uring: one ring for each lane, with the lane's thread as its only issuer.
//!
//! # Laws of this room
//!
//! 1. **Memory goes back only behind its completion.** An operation that has to end early (deadline,
//!    stall) is cancelled, and its completion is awaited, before anybody hears of it. A socket that
//!    was shut down completes its operations by itself.
//! 2. **Nothing runs behind the thread's back.** With `DEFER_TASKRUN` the kernel moves bytes only
//!    inside the issuing thread's `io_uring_enter`. So where an operation can't be completed any
//!    more (the ring is broken, or dropped on another thread), nothing touches its memory: closing
//!    the ring ends it.
//! 3. **A receive never outlives the call** that started it; a send may, until `settle_send`.
//!
//! The ring is made disabled and enabled by the first call, because a lane is opened on one thread
//! and used on another. A lane that moves to yet another thread, with nothing on its way, gets a
//! new ring. The socket is its one registered file, which saves the lookup and the
//! reference count of each operation.
//!
//! `MSG_WAITALL` makes the kernel go on until a whole batch is moved, so an operation is one entry
//! into the kernel on a fast link; what a cancelled one had moved, its completion says (since Linux
//! 6.0; `DEFER_TASKRUN` itself needs 6.1, see io_uring_setup(2)).

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

use io_uring::types::{Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

use super::socket::SendQueue;
use super::stream::{ByteStream, Segments, StreamError, Want};
use crate::deadline::Deadline;

/// Entries in the submission queue: a send, a receive and a cancellation.
const ENTRIES: u32 = 4;

/// How long a cancellation is waited for before the socket is shut down to help it. It takes
/// microseconds.
const CANCEL_TIME_EXPECTED: Duration = Duration::from_secs(1);

/// What an operation is, and its place among the results.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Send,
    Receive,
    Cancel,
}

impl Operation {
    fn tag(self) -> u64 {
        self as u64
    }
}

pub(super) struct UringStream {
    ring: IoUring,
    /// The thread that may enter the ring: the first that did.
    issuer: Option<ThreadId>,
    /// The kernel refused an entry: what is queued may point to memory that is gone, so nothing is
    /// submitted any more.
    is_broken: bool,
    socket: Arc<TcpStream>,
    stall_limit: Duration,
    /// What is being sent. `message` points into `segments`, whose heap block does not move.
    sending: Segments,
    message: Box<libc::msghdr>,
    is_sending: bool,
    /// Results that were seen and not yet asked for, by operation.
    results: [Option<i32>; 3],
    submissions: u64,
}

// SAFETY: the pointers in `message` lead into `sending`, which moves along with the value; the ring
// itself may move between threads, see the laws.
unsafe impl Send for UringStream {}

impl UringStream {
    /// Whether a ring can be made here.
    pub(super) fn probe() -> io::Result<()> {
        new_ring().map(|_| ())
    }

    pub(super) fn new(socket: Arc<TcpStream>, stall_limit: Duration) -> io::Result<Self> {
        Ok(Self {
            ring: ring_for(&socket)?,
            issuer: None,
            is_broken: false,
            socket,
            stall_limit,
            sending: Segments::default(),
            message: Box::new(Segments::default().message()),
            is_sending: false,
            results: [None; 3],
            submissions: 0,
        })
    }

    /// Puts an entry into the submission queue, and enables the ring if this is the first.
    ///
    /// # Safety
    ///
    /// What the entry points to is valid until its completion was seen.
    unsafe fn push(&mut self, entry: squeue::Entry) -> Result<(), StreamError> {
        if self.is_broken {
            return Err(StreamError::Closed);
        }
        let this_thread = std::thread::current().id();
        if self.issuer != Some(this_thread) {
            if self.is_sending {
                return Err(StreamError::System(io::Error::other(
                    "the lane moved to another thread in the middle of a batch",
                )));
            }
            if self.issuer.is_some() {
                self.ring = ring_for(&self.socket)?;
            }
            self.ring.submitter().register_enable_rings()?;
            self.issuer = Some(this_thread);
        }
        // SAFETY: the caller vouches for the entry.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| StreamError::System(io::Error::other("the submission queue is full")))
    }

    /// Submits what is queued, and waits for `operation`'s result; `None` at the deadline.
    fn wait(
        &mut self,
        operation: Operation,
        deadline: Deadline,
    ) -> Result<Option<i32>, StreamError> {
        loop {
            if self.is_broken {
                return Err(StreamError::Closed);
            }
            self.reap();
            let result = self.results.get_mut(operation as usize);
            if let Some(result) = result.and_then(Option::take) {
                return Ok(Some(result));
            }
            let left = deadline.remaining();
            if left.is_zero() && self.ring.submission().is_empty() {
                return Ok(None);
            }
            let timeout = Timespec::new()
                .sec(left.as_secs())
                .nsec(left.subsec_nanos());
            let arguments = SubmitArgs::new().timespec(&timeout);
            self.submissions += 1;
            match self.ring.submitter().submit_with_args(1, &arguments) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    // Over time or interrupted (both looked at above), or short of memory for a
                    // moment.
                    Some(libc::ETIME | libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::EBUSY) if !left.is_zero() => {
                        std::thread::yield_now();
                    }
                    _ => {
                        self.is_broken = true;
                        return Err(error.into());
                    }
                },
            }
        }
    }

    fn reap(&mut self) {
        for completion in self.ring.completion() {
            let place = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
            if let Some(result) = self.results.get_mut(place) {
                *result = Some(completion.result());
            }
        }
    }

    /// Cancels an operation and awaits its completion. Returns the bytes that it had moved.
    fn withdraw(&mut self, operation: Operation) -> Result<usize, StreamError> {
        let cancel = opcode::AsyncCancel::new(operation.tag())
            .build()
            .user_data(Operation::Cancel.tag());
        // SAFETY: a cancellation points to nothing.
        unsafe { self.push(cancel) }?;
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
        match usize::try_from(result) {
            Ok(moved) => Ok(moved),
            Err(_) if -result == libc::ECANCELED => Ok(0),
            Err(_) => count(result),
        }
    }

    /// Queues a send of what is left in `sending`.
    ///
    /// # Safety
    ///
    /// `self.sending` is readable memory until the completion was seen.
    unsafe fn push_send(&mut self) -> Result<(), StreamError> {
        *self.message = self.sending.message();
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = opcode::SendMsg::new(Fixed(0), &raw const *self.message)
            .flags(flags as u32)
            .build()
            .user_data(Operation::Send.tag());
        // SAFETY: the message is on the heap and unchanged until the next send, which follows this
        // one's completion; for the segments the caller vouches.
        unsafe { self.push(entry) }?;
        self.is_sending = true;
        Ok(())
    }
}

fn new_ring() -> io::Result<IoUring> {
    IoUring::builder()
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(ENTRIES)
}

fn ring_for(socket: &TcpStream) -> io::Result<IoUring> {
    let ring = new_ring()?;
    ring.submitter().register_files(&[socket.as_raw_fd()])?;
    Ok(ring)
}

/// A completion's byte count. What asks for another try counts as none.
fn count(result: i32) -> Result<usize, StreamError> {
    if let Ok(count) = usize::try_from(result) {
        return Ok(count);
    }
    match -result {
        libc::EINTR | libc::EAGAIN => Ok(0),
        code => Err(io::Error::from_raw_os_error(code).into()),
    }
}

impl ByteStream for UringStream {
    unsafe fn start_send(&mut self, segments: Segments) -> Result<(), StreamError> {
        self.sending = segments;
        // SAFETY: the caller vouches for the segments until `settle_send` or drop, and both see to
        // the completion.
        unsafe { self.push_send() }?;
        self.submissions += 1;
        // The kernel takes at once what the socket's buffer has room for; the rest moves while
        // `settle_send` waits. What could not be submitted now, `settle_send` submits.
        match self.ring.submit() {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => {
                    self.is_broken = true;
                    Err(error.into())
                }
            },
        }
    }

    fn settle_send(&mut self) -> Result<Segments, StreamError> {
        if !self.is_sending {
            return Ok(std::mem::take(&mut self.sending));
        }
        let mut queue = SendQueue::of(&self.socket);
        while self.is_sending {
            let (moved, is_late) =
                match self.wait(Operation::Send, Deadline::after(self.stall_limit))? {
                    Some(result) => {
                        self.is_sending = false;
                        (count(result)?, false)
                    }
                    None => {
                        let moved = self.withdraw(Operation::Send);
                        self.is_sending = false;
                        (moved?, true)
                    }
                };
            if is_late && moved == 0 && !queue.has_moved(&self.socket) {
                return Err(StreamError::Stalled);
            }
            self.sending.advance(moved);
            if self.sending.bytes() > 0 {
                // SAFETY: `start_send`'s caller vouched for the segments until this returns.
                unsafe { self.push_send() }?;
            }
        }
        Ok(std::mem::take(&mut self.sending))
    }

    unsafe fn receive(
        &mut self,
        segments: &mut Segments,
        want: Want,
        deadline: Deadline,
    ) -> Result<usize, StreamError> {
        let mut received = 0;
        while segments.bytes() > 0 {
            let (until, flags) = match want {
                Want::All => (
                    Deadline::after(self.stall_limit).earlier(deadline),
                    libc::MSG_WAITALL,
                ),
                Want::Some => (deadline, 0),
            };
            let mut message = segments.message();
            let entry = opcode::RecvMsg::new(Fixed(0), &raw mut message)
                .flags(flags as u32)
                .build()
                .user_data(Operation::Receive.tag());
            // SAFETY: `message` and `segments` stay as they are until the completion is seen, in
            // `wait` or in `withdraw`; where these fail, law 2 holds. For the memory behind the
            // segments the caller vouches.
            unsafe { self.push(entry) }?;
            let (moved, is_late) = match self.wait(Operation::Receive, until)? {
                Some(0) => return Err(StreamError::Closed),
                Some(result) => (count(result)?, false),
                None => (self.withdraw(Operation::Receive)?, true),
            };
            segments.advance(moved);
            received += moved;
            if want == Want::Some && moved > 0 {
                break;
            }
            if deadline.passed() && segments.bytes() > 0 {
                return Err(StreamError::TimedOut);
            }
            if is_late && moved == 0 {
                return Err(StreamError::Stalled);
            }
        }
        Ok(received)
    }

    fn submissions(&self) -> u64 {
        self.submissions
    }
}

impl Drop for UringStream {
    fn drop(&mut self) {
        // Completes whatever is in flight, and tells the peer now: the ring's own reference to the
        // socket goes away only some time after the ring.
        let _ = self.socket.shutdown(Shutdown::Both);
        if self.is_sending {
            // Fails on another thread than the ring's; then law 2 holds.
            let _ = self.withdraw(Operation::Send);
        }
    }
}
