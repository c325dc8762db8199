//! A byte stream over io_uring: one ring for each lane, with the lane's thread as its only issuer.
//!
//! # Laws of this room
//!
//! 1. **Memory goes back only behind its completion.** An operation that has to end early (deadline,
//!    stall, drop) is cancelled, and its completion is awaited, before anybody hears of it. A socket
//!    that was shut down completes its operations by itself.
//! 2. **Memory whose completion can't be awaited is never freed.** That is so when the kernel no
//!    longer lets this thread into the ring, or when the stream is dropped or used, in the middle of
//!    a send, on another thread than the ring's. What the operation reads or writes (its segments
//!    with the guest memory and the buffer behind them, and its message header) is leaked then.
//! 3. **Nothing is received behind an error.** Before such a stream is given up its socket is shut
//!    down and emptied, so that an operation that still runs finds no byte to write into guest
//!    memory. The socket's lock orders the two.
//! 4. **A receive never outlives the call** that started it; a send may, until `settle_send`.
//!
//! Closing the ring would not do for laws 2 and 3. With `DEFER_TASKRUN` the kernel goes on with an
//! operation inside the issuing thread's `io_uring_enter`, with two exceptions: one that had to wait
//! for its socket 128 times (`APOLL_MAX_RETRY` in the kernel's io_uring/poll.c; a batch on a slow
//! link does) is handed to a worker thread of the kernel, and what a closed ring leaves behind may
//! run once more on the issuing thread, at any later time.
//!
//! `MSG_WAITALL` makes the kernel go on until a whole batch is moved, so an operation is one entry
//! into the kernel on a fast link; what a cancelled one had moved, its completion says (since Linux
//! 6.0; `DEFER_TASKRUN` itself needs 6.1, see io_uring_setup(2)).
//!
//! The ring is made disabled and enabled by the first call, because a lane is opened on one thread
//! and used on another. A lane that moves to yet another thread, with nothing on its way, gets a
//! new ring. The socket is its one registered file, which saves the lookup and the
//! reference count of each operation.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

use io_uring::types::{Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::socket::SendQueue;
use super::stream::{ByteStream, Segments, StreamError, Want};
use crate::deadline::Deadline;
use crate::lane::{LaneWork, Observer};

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

/// What an operation reads or writes, besides the socket.
struct Flight {
    segments: Segments,
    /// Points into `segments`.
    message: libc::msghdr,
}

// SAFETY: the pointers in `message` lead into `segments`, which go along.
unsafe impl Send for Flight {}

impl Flight {
    fn new(mut segments: Segments) -> Box<Self> {
        let message = segments.message();
        Box::new(Self { segments, message })
    }
}

pub(super) struct UringStream {
    ring: IoUring,
    /// The thread that may enter the ring: the first that did.
    issuer: Option<ThreadId>,
    /// The ring can't be entered any more; nothing is submitted.
    is_broken: bool,
    socket: Arc<TcpStream>,
    stall_limit: Duration,
    /// What is being sent, from `start_send` to `settle_send`.
    sending: Option<Box<Flight>>,
    /// What is being received into, during `receive`.
    receiving: Option<Box<Flight>>,
    /// Operations that the kernel may be working on.
    pending: [bool; 3],
    /// Results that were seen and not yet asked for, by operation.
    results: [Option<i32>; 3],
    submissions: u64,
    /// When each operation was submitted, by the observer's clock.
    submitted: [Option<u64>; 3],
    observer: Observer,
}

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
            sending: None,
            receiving: None,
            pending: [false; 3],
            results: [None; 3],
            submissions: 0,
            submitted: [None; 3],
            observer: Observer::default(),
        })
    }

    fn is_pending(&self, operation: Operation) -> bool {
        self.pending.get(operation as usize) == Some(&true)
    }

    fn set_pending(&mut self, operation: Operation) {
        if let Some(pending) = self.pending.get_mut(operation as usize) {
            *pending = true;
        }
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

    /// Sees to it that this thread may enter the ring.
    fn enable(&mut self) -> Result<(), StreamError> {
        if self.is_broken {
            return Err(StreamError::Closed);
        }
        let this_thread = std::thread::current().id();
        if self.issuer == Some(this_thread) {
            return Ok(());
        }
        if self.pending.contains(&true) {
            return Err(self.give_up(io::Error::other(
                "the lane moved to another thread in the middle of a batch",
            )));
        }
        if self.issuer.is_some() {
            self.ring = ring_for(&self.socket)?;
        }
        self.ring.submitter().register_enable_rings()?;
        self.issuer = Some(this_thread);
        Ok(())
    }

    /// Puts an entry into the submission queue.
    ///
    /// # Safety
    ///
    /// What the entry points to is valid until its completion was seen, for ever if it is not.
    unsafe fn push(
        &mut self,
        operation: Operation,
        entry: squeue::Entry,
    ) -> Result<(), StreamError> {
        self.enable()?;
        let entry = entry.user_data(operation.tag());
        // SAFETY: the caller vouches for the entry.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed
            .map_err(|_| StreamError::System(io::Error::other("the submission queue is full")))?;
        self.set_pending(operation);
        if let Some(submitted) = self.submitted.get_mut(operation as usize)
            && operation != Operation::Cancel
        {
            *submitted = self.observer.now();
        }
        Ok(())
    }

    /// Submits what is queued, and waits for `operation`'s result; `None` at the deadline.
    fn wait(
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
            let timeout = Timespec::new()
                .sec(left.as_secs())
                .nsec(left.subsec_nanos());
            let arguments = SubmitArgs::new().timespec(&timeout);
            self.submissions += 1;
            match self.ring.submitter().submit_with_args(1, &arguments) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    // Over time or interrupted; both are looked at above.
                    Some(libc::ETIME | libc::EINTR) => {}
                    // Short of memory for a moment. What could not be submitted stays queued.
                    Some(libc::EAGAIN | libc::EBUSY) if left.is_zero() => return Ok(None),
                    Some(libc::EAGAIN | libc::EBUSY) => std::thread::yield_now(),
                    _ => return Err(self.give_up(error)),
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
            if let Some(pending) = self.pending.get_mut(place) {
                *pending = false;
            }
            if let Some(submitted) = self.submitted.get_mut(place) {
                self.observer.done(LaneWork::Submission, submitted.take());
            }
        }
    }

    /// Cancels an operation and awaits its completion. Returns the bytes that it had moved.
    fn withdraw(&mut self, operation: Operation) -> Result<usize, StreamError> {
        let cancel = opcode::AsyncCancel::new(operation.tag()).build();
        // SAFETY: a cancellation points to nothing.
        unsafe { self.push(Operation::Cancel, cancel) }?;
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
    fn push_send(&mut self) -> Result<(), StreamError> {
        let Some(flight) = self.sending.as_mut() else {
            return Ok(());
        };
        flight.message = flight.segments.message();
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = opcode::SendMsg::new(Fixed(0), &raw const flight.message)
            .flags(flags as u32)
            .build();
        // SAFETY: the flight is on the heap, keeps what it points to, stays as it is until the
        // completion is seen, and is leaked if it never is (law 2).
        unsafe { self.push(Operation::Send, entry) }
    }

    /// Waits until all of `sending` has left.
    fn settle_flight(&mut self) -> Result<(), StreamError> {
        let mut queue = SendQueue::of(&self.socket);
        loop {
            let (moved, is_late) =
                match self.wait(Operation::Send, Deadline::after(self.stall_limit))? {
                    Some(result) => (count(result)?, false),
                    None => (self.withdraw(Operation::Send)?, true),
                };
            if is_late && moved == 0 && !queue.has_moved(&self.socket) {
                return Err(StreamError::Stalled);
            }
            let Some(flight) = self.sending.as_mut() else {
                return Ok(());
            };
            flight.segments.advance(moved);
            if flight.segments.bytes() == 0 {
                return Ok(());
            }
            self.push_send()?;
        }
    }

    /// Queues a receive into what is left in `receiving`.
    fn push_receive(&mut self, flags: libc::c_int) -> Result<(), StreamError> {
        let Some(flight) = self.receiving.as_mut() else {
            return Ok(());
        };
        flight.message = flight.segments.message();
        let entry = opcode::RecvMsg::new(Fixed(0), &raw mut flight.message)
            .flags(flags as u32)
            .build();
        // SAFETY: as for a send.
        unsafe { self.push(Operation::Receive, entry) }
    }

    /// Receives into `receiving`.
    fn receive_flight(&mut self, want: Want, deadline: Deadline) -> Result<usize, StreamError> {
        let mut received = 0;
        loop {
            let (until, flags) = match want {
                Want::All => (
                    Deadline::after(self.stall_limit).earlier(deadline),
                    libc::MSG_WAITALL,
                ),
                Want::Some => (deadline, 0),
            };
            self.push_receive(flags)?;
            let (moved, is_late) = match self.wait(Operation::Receive, until)? {
                Some(0) => return Err(StreamError::Closed),
                Some(result) => (count(result)?, false),
                None => (self.withdraw(Operation::Receive)?, true),
            };
            received += moved;
            let Some(flight) = self.receiving.as_mut() else {
                return Ok(received);
            };
            flight.segments.advance(moved);
            if flight.segments.bytes() == 0 || (want == Want::Some && moved > 0) {
                return Ok(received);
            }
            if deadline.passed() {
                return Err(StreamError::TimedOut);
            }
            if is_late && moved == 0 {
                return Err(StreamError::Stalled);
            }
        }
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
    fn start_send(&mut self, segments: Segments) -> Result<(), StreamError> {
        if self.is_broken || self.is_pending(Operation::Send) {
            return Err(StreamError::Closed);
        }
        self.sending = Some(Flight::new(segments));
        if let Err(error) = self.push_send() {
            self.sending = None;
            return Err(error);
        }
        self.submissions += 1;
        // The kernel takes at once what the socket's buffer has room for; the rest moves while
        // `settle_send` waits. What could not be submitted now, `settle_send` submits.
        match self.ring.submit() {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => Err(self.give_up(error)),
            },
        }
    }

    fn settle_send(&mut self) -> Result<Option<Segments>, StreamError> {
        if self.sending.is_none() {
            return Ok(None);
        }
        let settled = self.settle_flight();
        if self.is_pending(Operation::Send) {
            // Only behind an error. Law 2: it stays here until the stream is dropped.
            return settled.map(|()| None);
        }
        let used = self.sending.take();
        settled.map(|()| used.map(|flight| flight.segments))
    }

    fn receive(
        &mut self,
        segments: &mut Segments,
        want: Want,
        deadline: Deadline,
    ) -> Result<usize, StreamError> {
        if self.is_broken || self.is_pending(Operation::Receive) {
            return Err(StreamError::Closed);
        }
        let empty = segments.empty();
        self.receiving = Some(Flight::new(std::mem::replace(segments, empty)));
        let received = self.receive_flight(want, deadline);
        if !self.is_pending(Operation::Receive)
            && let Some(flight) = self.receiving.take()
        {
            *segments = flight.segments;
        }
        received
    }

    fn submissions(&self) -> u64 {
        self.submissions
    }

    fn observer(&mut self) -> &mut Observer {
        &mut self.observer
    }
}

impl Drop for UringStream {
    fn drop(&mut self) {
        // Completes whatever is in flight, and tells the peer now: the ring's own reference to the
        // socket goes away only some time after the ring.
        let _ = self.socket.shutdown(Shutdown::Both);
        // What is complete may be known without entering the ring.
        self.reap();
        for operation in [Operation::Send, Operation::Receive] {
            if self.is_pending(operation) {
                // Fails where the ring can't be entered, on another thread than its own above all.
                let _ = self.withdraw(operation);
            }
        }
        // Law 2: the kernel may still use these. At most once for each lane; the segments hold on
        // to the guest's mappings themselves.
        if self.is_pending(Operation::Send) {
            std::mem::forget(self.sending.take());
        }
        if self.is_pending(Operation::Receive) {
            std::mem::forget(self.receiving.take());
        }
    }
}

#[cfg(test)]
mod tests;
