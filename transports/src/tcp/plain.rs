//! A byte stream over `sendmsg` and `recvmsg`, for hosts where io_uring is not to be had.
//!
//! # Laws of this room
//!
//! The kernel touches the segments only while a call runs, so nothing outlives one; and while it
//! runs the segments keep their memory.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::PollFlags;

use super::socket::{SendQueue, wait_ready};
use super::stream::{ByteStream, Segments, StreamError, Want};
use crate::deadline::Deadline;
use crate::lane::Observer;

pub(super) struct PlainStream {
    socket: Arc<TcpStream>,
    stall_limit: Duration,
    sending: Option<Segments>,
    submissions: u64,
    observer: Observer,
}

impl PlainStream {
    pub(super) fn new(socket: Arc<TcpStream>, stall_limit: Duration) -> Self {
        Self {
            socket,
            stall_limit,
            sending: None,
            submissions: 0,
            observer: Observer::default(),
        }
    }

    /// Sends what the socket takes without waiting; whether anything moved.
    fn send_some(&mut self) -> Result<bool, StreamError> {
        let mut moved = false;
        while let Some(sending) = self.sending.as_mut().filter(|left| left.bytes() > 0) {
            let message = sending.message();
            self.submissions += 1;
            // SAFETY: the message points into `sending`, untouched during the call, whose segments
            // are readable.
            let sent = unsafe {
                libc::sendmsg(
                    self.socket.as_raw_fd(),
                    &message,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            };
            match outcome(sent)? {
                Some(sent) => sending.advance(sent),
                None => break,
            }
            moved = true;
        }
        Ok(moved)
    }

    fn is_sending(&self) -> bool {
        self.sending.as_ref().is_some_and(|left| left.bytes() > 0)
    }
}

/// A call's result: `None` when it would have had to wait (or a signal came).
fn outcome(result: isize) -> Result<Option<usize>, StreamError> {
    if let Ok(count) = usize::try_from(result) {
        return Ok(Some(count));
    }
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
        _ => Err(error.into()),
    }
}

impl ByteStream for PlainStream {
    fn start_send(&mut self, segments: Segments) -> Result<(), StreamError> {
        self.sending = Some(segments);
        self.send_some().map(|_| ())
    }

    fn settle_send(&mut self) -> Result<Option<Segments>, StreamError> {
        if !self.is_sending() {
            return Ok(self.sending.take());
        }
        let mut queue = SendQueue::of(&self.socket);
        let mut stalled = Deadline::after(self.stall_limit);
        while self.is_sending() {
            self.submissions += 1;
            let is_late = !wait_ready(&*self.socket, PollFlags::OUT, stalled)?;
            if is_late && !queue.has_moved(&self.socket) {
                return Err(StreamError::Stalled);
            }
            if self.send_some()? || is_late {
                stalled = Deadline::after(self.stall_limit);
            }
        }
        Ok(self.sending.take())
    }

    fn receive(
        &mut self,
        segments: &mut Segments,
        want: Want,
        deadline: Deadline,
    ) -> Result<usize, StreamError> {
        let limit = |want| match want {
            Want::All => Deadline::after(self.stall_limit).earlier(deadline),
            Want::Some => deadline,
        };
        let mut until = limit(want);
        let mut received = 0;
        while segments.bytes() > 0 {
            let mut message = segments.message();
            self.submissions += 1;
            // SAFETY: the message points into `segments`, untouched during the call, which are
            // writable.
            let count =
                unsafe { libc::recvmsg(self.socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
            match outcome(count)? {
                Some(0) => return Err(StreamError::Closed),
                Some(count) => {
                    segments.advance(count);
                    received += count;
                    if want == Want::Some {
                        break;
                    }
                    // A peer that trickles is still held to the deadline.
                    if deadline.passed() {
                        return Err(StreamError::TimedOut);
                    }
                    until = limit(want);
                }
                None => {
                    self.submissions += 1;
                    if !wait_ready(&*self.socket, PollFlags::IN, until)? {
                        return Err(if deadline.passed() {
                            StreamError::TimedOut
                        } else {
                            StreamError::Stalled
                        });
                    }
                }
            }
        }
        Ok(received)
    }

    fn submissions(&self) -> u64 {
        self.submissions
    }

    fn observer(&mut self) -> &mut Observer {
        &mut self.observer
    }
}

impl Drop for PlainStream {
    fn drop(&mut self) {
        // The endpoint may hold the socket a moment longer; the peer should know now.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}
