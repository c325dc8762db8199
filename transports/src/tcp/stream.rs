//! The byte stream that carries a lane's frames: whole lengths, from and to guest memory.
//!
//! A lane frames; a stream moves bytes. TLS slots in here later.
//!
//! # Laws of this room
//!
//! 1. **Segments are addresses, never slices**: they point into guest memory, which changes while
//!    the kernel reads it (see [`crate::memory`]).
//! 2. **Segments keep alive what they point to**: guest memory by a [`MemoryMap`], everything else
//!    as their own buffer, which nobody reaches while a segment leads into it. So whoever holds
//!    them may hand them to the kernel.
//! 3. **Segments that the kernel may still use are not dropped.** A stream takes them over, gives
//!    them back once the kernel has let go, and leaks them where it can't know that.

use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;

use super::mechanism::MechanismNote;
use super::plain::PlainStream;
use super::uring::UringStream;
use super::{Mechanism, Options, socket};
use crate::deadline::Deadline;
use crate::lane::Observer;
use crate::memory::{MemoryError, MemoryMap, Run};

/// Pieces of guest memory, one behind the other, as the kernel wants them; and a buffer of their
/// own around them, for what is not guest memory.
pub(super) struct Segments {
    memory: MemoryMap,
    own: Vec<u8>,
    /// The first is kept for the front of `own`, and is empty where there is none.
    iovecs: Vec<libc::iovec>,
    /// The first that is not used up.
    next: usize,
    bytes: usize,
    /// Of these, bytes of guest memory when none was used up.
    guest_bytes: usize,
}

// SAFETY: the addresses lead into `memory` and `own`, which go along.
unsafe impl Send for Segments {}

impl Segments {
    /// No segments; those to come are of this memory.
    pub(super) fn new(memory: MemoryMap) -> Self {
        Self {
            memory,
            own: Vec::new(),
            iovecs: Vec::new(),
            next: 1,
            bytes: 0,
            guest_bytes: 0,
        }
    }

    /// No segments, of the same memory.
    pub(super) fn empty(&self) -> Self {
        Self::new(self.memory.clone())
    }

    /// Takes all segments out.
    pub(super) fn clear(&mut self) {
        self.iovecs.clear();
        self.own.clear();
        self.next = 1;
        self.bytes = 0;
        self.guest_bytes = 0;
    }

    /// Adds a run of guest memory at the end.
    pub(super) fn push_run(&mut self, run: Run) -> Result<(), MemoryError> {
        let base = self.memory.host_address(run)?;
        self.push(base, run.bytes() as usize);
        self.guest_bytes += run.bytes() as usize;
        Ok(())
    }

    fn push(&mut self, base: *mut u8, bytes: usize) {
        if self.iovecs.is_empty() {
            self.iovecs.push(iovec(std::ptr::null_mut(), 0));
        }
        self.iovecs.push(iovec(base, bytes));
        self.bytes += bytes;
    }

    /// Puts a buffer around the runs: its first `front` bytes before them, the rest behind. Only
    /// where there is none yet; else everything goes, so that nothing leads into the old one.
    pub(super) fn wrap(&mut self, own: Vec<u8>, front: usize) {
        if !self.own.is_empty() {
            self.clear();
        }
        self.own = own;
        let front = front.min(self.own.len());
        let back = self.own.len() - front;
        let base = self.own.as_mut_ptr();
        if back > 0 || self.iovecs.is_empty() {
            self.push(base.wrapping_add(front), back);
        }
        if let Some(first) = self.iovecs.first_mut().filter(|_| front > 0) {
            *first = iovec(base, front);
            self.next = 0;
            self.bytes += front;
        }
    }

    /// Makes the bytes of a buffer from `from` on the only segment.
    pub(super) fn set_buffer(&mut self, own: Vec<u8>, from: usize) {
        let end = own.len();
        self.set_part(own, from..end);
    }

    /// Makes some bytes of a buffer the only segment; those that it has of them.
    pub(super) fn set_part(&mut self, own: Vec<u8>, part: Range<usize>) {
        self.clear();
        self.own = own;
        let end = part.end.min(self.own.len());
        let start = part.start.min(end);
        let base = self.own.as_mut_ptr();
        self.push(base.wrapping_add(start), end - start);
    }

    /// Gives the buffer back, and takes all segments out.
    pub(super) fn take_buffer(&mut self) -> Vec<u8> {
        let own = std::mem::take(&mut self.own);
        self.clear();
        own
    }

    /// How many bytes are left.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many of these are guest memory, at most: which of them are used up is not looked at.
    pub(super) fn guest_bytes(&self) -> usize {
        self.guest_bytes.min(self.bytes)
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
    pub(super) fn fill_front(&mut self, mut bytes: &[u8]) -> usize {
        let mut copied = 0;
        while let Some(first) = self.iovecs.get(self.next) {
            let part = first.iov_len.min(bytes.len());
            let Some((head, rest)) = bytes.split_at_checked(part).filter(|_| part > 0) else {
                break;
            };
            // SAFETY: `part` bytes are readable in `head`, and writable in the segment by law 2. A
            // borrowed buffer is neither guest memory nor the one that is owned here.
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

fn iovec(base: *mut u8, bytes: usize) -> libc::iovec {
    libc::iovec {
        iov_base: base.cast(),
        iov_len: bytes,
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
    fn start_send(&mut self, segments: Segments) -> Result<(), StreamError>;

    /// Waits until all has left, and gives the used segments back; `None` when nothing was being
    /// sent. They are others where the kernel still reads those. It fails once nothing moves for the
    /// stall limit.
    fn settle_send(&mut self) -> Result<Option<Segments>, StreamError>;

    /// Receives into `segments` (not empty) and takes off what was filled. Returns how many bytes.
    ///
    /// Where the kernel can't be made to let go of them, an error and no segments are left.
    fn receive(
        &mut self,
        segments: &mut Segments,
        want: Want,
        deadline: Deadline,
    ) -> Result<usize, StreamError>;

    /// System calls made so far.
    fn submissions(&self) -> u64;

    /// Bytes given to the kernel to be sent without a copy, whether it managed to or not.
    fn zero_copy_bytes(&self) -> u64 {
        0
    }

    /// Who wants to know how long things take: the lane's observer.
    fn observer(&mut self) -> &mut Observer;
}

/// Makes a stream of a connected socket. What it turns out to use goes into the note.
pub(super) fn open(
    socket: &Arc<TcpStream>,
    options: &Options,
    note: &Arc<MechanismNote>,
) -> io::Result<Box<dyn ByteStream>> {
    let stall_limit = options.stall_limit;
    let plain = || Box::new(PlainStream::new(Arc::clone(socket), stall_limit));
    if options.mechanism == Mechanism::Plain {
        return Ok(plain());
    }
    let (socket, noted) = (Arc::clone(socket), Arc::clone(note));
    match UringStream::new(socket, stall_limit, options.zero_copy, noted) {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) if options.mechanism == Mechanism::Auto => {
            note.falls_back(&error);
            Ok(plain())
        }
        Err(error) => Err(error),
    }
}
