//! The byte stream that carries a lane's frames: whole lengths, from and to raw memory.
//!
//! A lane frames; a stream moves bytes. TLS slots in here later.
//!
//! # Laws of this room
//!
//! 1. **Segments are addresses, never slices**: they point into guest memory, which changes while
//!    the kernel reads it (see [`crate::memory`]).
//! 2. **Memory that was handed over belongs to the stream until it says otherwise**: a send until
//!    `settle_send` returned or the stream was dropped, a receive until `receive` returned, with
//!    whatever result. An implementation that ends a wait early first makes sure that the kernel
//!    has let go.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use super::plain::PlainStream;
use super::uring::UringStream;
use super::{Mechanism, socket};
use crate::deadline::Deadline;

/// Pieces of memory, one behind the other, as the kernel wants them.
#[derive(Default)]
pub(super) struct Segments {
    iovecs: Vec<libc::iovec>,
    /// The first that is not used up.
    next: usize,
    bytes: usize,
}

// SAFETY: addresses and lengths; what is behind them is vouched for where they are handed over.
unsafe impl Send for Segments {}

impl Segments {
    pub(super) fn clear(&mut self) {
        self.iovecs.clear();
        self.next = 0;
        self.bytes = 0;
    }

    pub(super) fn push(&mut self, base: *mut u8, bytes: usize) {
        self.iovecs.push(libc::iovec {
            iov_base: base.cast(),
            iov_len: bytes,
        });
        self.bytes += bytes;
    }

    /// Gives the first segment its memory, where a place was kept for it by pushing nothing.
    pub(super) fn set_first(&mut self, base: *mut u8, bytes: usize) {
        if let Some(first) = self.iovecs.first_mut() {
            self.bytes = self.bytes - first.iov_len + bytes;
            *first = libc::iovec {
                iov_base: base.cast(),
                iov_len: bytes,
            };
        }
    }

    /// How many bytes are left.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes `count` bytes off the front, where they were moved.
    pub(super) fn advance(&mut self, count: usize) {
        let mut count = count.min(self.bytes);
        self.bytes -= count;
        while let Some(first) = self.iovecs.get_mut(self.next) {
            if count < first.iov_len {
                first.iov_base = first.iov_base.wrapping_byte_add(count);
                first.iov_len -= count;
                return;
            }
            count -= first.iov_len;
            self.next += 1;
        }
    }

    /// Copies bytes to the front, and takes it off. Returns how many found room.
    ///
    /// # Safety
    ///
    /// The segments are writable memory.
    pub(super) unsafe fn fill_front(&mut self, mut bytes: &[u8]) -> usize {
        let mut copied = 0;
        while let Some(first) = self.iovecs.get(self.next) {
            let part = first.iov_len.min(bytes.len());
            let Some((head, rest)) = bytes.split_at_checked(part).filter(|_| part > 0) else {
                break;
            };
            // SAFETY: `part` bytes are readable in `head` and, as the caller vouches, writable in
            // the segment. A private buffer and guest memory do not overlap.
            unsafe { crate::memory::copy_volatile(head.as_ptr(), first.iov_base.cast(), part) };
            self.advance(part);
            copied += part;
            bytes = rest;
        }
        copied
    }

    /// A message header for what is left. It points into this value, which must stay as it is
    /// while the header is used.
    pub(super) fn message(&mut self) -> libc::msghdr {
        let rest = self.iovecs.get_mut(self.next..).unwrap_or_default();
        // SAFETY: all zeros is a valid `msghdr`: null pointers and no lengths.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = rest.as_mut_ptr();
        message.msg_iovlen = rest.len() as _;
        message
    }
}

/// Why a stream failed.
#[derive(Debug)]
pub(super) enum StreamError {
    /// The peer is gone, or the socket was shut down.
    Closed,
    /// The deadline passed.
    TimedOut,
    /// Nothing moved for as long as is allowed.
    Stalled,
    /// The system failed a call.
    System(io::Error),
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> Self {
        if socket::is_closed(&error) {
            Self::Closed
        } else if error.raw_os_error() == Some(libc::ETIMEDOUT) {
            // The kernel's own: unacknowledged for `user_timeout`, or probes without an answer.
            Self::Stalled
        } else {
            Self::System(error)
        }
    }
}

/// How much a receive waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// All segments full. The stall limit holds besides the deadline.
    All,
    /// At least one byte.
    Some,
}

/// Moves bytes over a connection. Used by one thread, not necessarily the one that made it.
pub(super) trait ByteStream: Send {
    /// Starts to send all of `segments`. Only when nothing is being sent.
    ///
    /// # Safety
    ///
    /// The segments are readable memory until `settle_send` returns or the stream is dropped.
    unsafe fn start_send(&mut self, segments: Segments) -> Result<(), StreamError>;

    /// Waits until all has left, and gives the used segments back. It fails once nothing moves for
    /// the stall limit.
    fn settle_send(&mut self) -> Result<Segments, StreamError>;

    /// Receives into `segments` (not empty) and takes off what was filled. Returns how many bytes.
    ///
    /// # Safety
    ///
    /// The segments are writable memory until this returns.
    unsafe fn receive(
        &mut self,
        segments: &mut Segments,
        want: Want,
        deadline: Deadline,
    ) -> Result<usize, StreamError>;

    /// System calls made so far.
    fn submissions(&self) -> u64;
}

/// What an endpoint's lanes use, as reports name it.
pub(super) fn probe(mechanism: Mechanism) -> String {
    match mechanism {
        Mechanism::Plain => "writev".to_owned(),
        Mechanism::IoUring => "io_uring".to_owned(),
        Mechanism::Auto => match UringStream::probe() {
            Ok(()) => "io_uring".to_owned(),
            Err(error) => fallback(&error),
        },
    }
}

fn fallback(error: &io::Error) -> String {
    format!("writev (io_uring: {error})")
}

/// Makes a stream of a connected socket. Where `Auto` has to do without io_uring, `note` is told
/// the mechanism's name.
pub(super) fn open(
    socket: &Arc<TcpStream>,
    mechanism: Mechanism,
    stall_limit: Duration,
    note: impl FnOnce(String),
) -> io::Result<Box<dyn ByteStream>> {
    let plain = || Box::new(PlainStream::new(Arc::clone(socket), stall_limit));
    if mechanism == Mechanism::Plain {
        return Ok(plain());
    }
    match UringStream::new(Arc::clone(socket), stall_limit) {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) if mechanism == Mechanism::Auto => {
            note(fallback(&error));
            Ok(plain())
        }
        Err(error) => Err(error),
    }
}
