//! A byte stream over io_uring: one ring for each lane, with the lane's thread as its only issuer.
//!
//! | room | what is in it |
//! |---|---|
//! | `ring` | submissions and completions |
//! | `debts` | the notifications that are still to come |
//! | `zero_copy` | which batches are sent without a copy |
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
//! 5. **Memory that is sent without a copy goes back only behind its notification**, of which there
//!    is one for each completion that announced it (`IORING_CQE_F_MORE`): until then the kernel
//!    reads it whenever bytes leave or leave again. `settle_send` waits for the completion alone;
//!    the flight then lingers here, and the caller gets other segments. Laws 1 and 2 hold for it as
//!    if it were on its way.
//! 6. **No send waits for a notification.** At most `PENDING_MAX` flights linger; while so many do,
//!    batches are copied.
//!
//! Closing the ring would not do for laws 2 and 3. With `DEFER_TASKRUN` the kernel goes on with an
//! operation inside the issuing thread's `io_uring_enter`, with two exceptions: one that had to wait
//! for its socket 128 times (`APOLL_MAX_RETRY` in the kernel's io_uring/poll.c; a batch on a slow
//! link does) is handed to a worker thread of the kernel, and what a closed ring leaves behind may
//! run once more on the issuing thread, at any later time.
//!
//! # When notifications are awaited
//!
//! The peer's acknowledgement lets the kernel go of what it covers, within a round trip of the
//! completion. The word for a fence acknowledges all that was sent before, so behind it a lane has
//! all its notifications, or gets them with its next entry; a fence itself waits for none. Nobody
//! else has to wait for any: the segments hold on to the guest's mappings, and the kernel to the
//! pages. Only a stream that is dropped waits, a moment for the acknowledgements and then, as they do
//! not come, for the kernel to throw away what it has not sent, which disconnecting makes it do.
//! That takes next to no time after a move that went well, and ends a lane that did not.
//!
//! A guest that writes on changes what a segment holds when it is sent again. Its page was collected
//! before, so it is sent once more in a later round, behind a fence; the peer's TCP takes each byte
//! of the stream once. Where the processor makes the checksum, a write in between costs such a
//! segment's way, and no more.
//!
//! `MSG_WAITALL` makes the kernel go on until a whole batch is moved, so an operation is one entry
//! into the kernel on a fast link; what a cancelled one had moved, its completion says (since Linux
//! 6.0; `DEFER_TASKRUN` itself needs 6.1, see io_uring_setup(2)).

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use io_uring::opcode;
use io_uring::types::Fixed;

use self::ring::{CANCEL_TIME_EXPECTED, Operation, Ring, SEND_ZC_REPORT_USAGE};
use self::zero_copy::{Policy, is_refusal};
use super::ZeroCopy;
use super::mechanism::MechanismNote;
use super::socket::SendQueue;
use super::stream::{ByteStream, Segments, StreamError, Want};
use crate::deadline::Deadline;
use crate::lane::Observer;

mod debts;
mod ring;
mod zero_copy;

/// How long a dropped stream waits for the acknowledgements of what it sent without a copy: some
/// round trips of a long link. What the peer has not taken by then it is not going to be sent.
const ACKNOWLEDGEMENT_TIME: Duration = Duration::from_millis(200);

/// What an operation reads or writes, besides the socket.
struct Flight {
    /// No other of the stream's has it.
    number: u64,
    segments: Segments,
    /// Points into `segments`.
    message: libc::msghdr,
    /// The operation under way was to do without a copy.
    is_zero_copy: bool,
}

// SAFETY: the pointers in `message` lead into `segments`, which go along.
unsafe impl Send for Flight {}

pub(super) struct UringStream {
    ring: Ring,
    socket: Arc<TcpStream>,
    stall_limit: Duration,
    /// What is being sent, from `start_send` to `settle_send`.
    sending: Option<Box<Flight>>,
    /// What is being received into, during `receive`.
    receiving: Option<Box<Flight>>,
    /// What was sent, and waits for its notification. Behind its completion the kernel reads what the
    /// segments lead to, and no more the flight itself.
    lingering: Vec<Flight>,
    /// Segments of flights that lingered, for their memory.
    spare: Vec<Segments>,
    policy: Policy,
    note: Arc<MechanismNote>,
    flights: u64,
    zero_copy_bytes: u64,
}

impl UringStream {
    /// Whether a ring can be made here.
    pub(super) fn probe() -> io::Result<()> {
        Ring::probe()
    }

    pub(super) fn new(
        socket: Arc<TcpStream>,
        stall_limit: Duration,
        zero_copy: ZeroCopy,
        note: Arc<MechanismNote>,
    ) -> io::Result<Self> {
        Ok(Self {
            ring: Ring::new(Arc::clone(&socket))?,
            socket,
            stall_limit,
            sending: None,
            receiving: None,
            lingering: Vec::new(),
            spare: Vec::new(),
            policy: Policy::new(zero_copy),
            note,
            flights: 0,
            zero_copy_bytes: 0,
        })
    }

    fn flight(&mut self, mut segments: Segments) -> Box<Flight> {
        self.flights += 1;
        let message = segments.message();
        Box::new(Flight {
            number: self.flights,
            segments,
            message,
            is_zero_copy: false,
        })
    }

    /// Queues a send of what is left in `sending`.
    fn push_send(&mut self) -> Result<(), StreamError> {
        let Some(flight) = self.sending.as_mut() else {
            return Ok(());
        };
        flight.message = flight.segments.message();
        let guest_bytes = flight.segments.guest_bytes();
        flight.is_zero_copy = self.policy.takes(guest_bytes, self.lingering.len());
        let message = &raw const flight.message;
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
        let entry = if flight.is_zero_copy {
            self.policy.handed_over();
            opcode::SendMsgZc::new(Fixed(0), message)
                .ioprio(SEND_ZC_REPORT_USAGE)
                .flags(flags)
                .build()
        } else {
            opcode::SendMsg::new(Fixed(0), message).flags(flags).build()
        };
        // SAFETY: the flight is on the heap, keeps what it points to, stays as it is until the
        // completion is seen, and its memory until the notifications are (law 5); it is leaked if
        // they never are (law 2).
        unsafe { self.ring.push(Operation::Send, flight.number, entry) }
    }

    /// What a send's result says that it moved. A refusal to do without a copy is taken note of, and
    /// moved nothing: what is pushed next goes plainly.
    fn count_sent(&mut self, result: i32) -> Result<usize, StreamError> {
        let is_zero_copy = self.sending.as_ref().is_some_and(|sent| sent.is_zero_copy);
        if is_zero_copy && is_refusal(result) {
            let refusal = io::Error::from_raw_os_error(-result);
            if let Some(finding) = self.policy.refused(refusal, self.lingering.len()) {
                self.note.found(&finding);
            }
            return Ok(0);
        }
        let moved = count(result)?;
        if is_zero_copy {
            self.zero_copy_bytes += moved as u64;
        }
        Ok(moved)
    }

    /// Waits until all of `sending` has left.
    fn settle_flight(&mut self) -> Result<(), StreamError> {
        let mut queue = SendQueue::of(&self.socket);
        loop {
            let deadline = Deadline::after(self.stall_limit);
            let (result, is_late) = match self.ring.wait(Operation::Send, deadline)? {
                Some(result) => (result, false),
                None => (self.ring.withdraw(Operation::Send)?, true),
            };
            let moved = self.count_sent(result)?;
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

    /// Takes back what notifications have come for, and heeds what they say.
    fn reclaim(&mut self) {
        if let Some(is_copied) = self.ring.debts.take_word()
            && let Some(finding) = self.policy.told(is_copied)
        {
            self.note.found(&finding);
        }
        let debts = &self.ring.debts;
        let free = |flight: &mut Flight| !debts.owes(flight.number);
        let flights = self.lingering.extract_if(.., free);
        self.spare.extend(flights.map(|flight| flight.segments));
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
        unsafe { self.ring.push(Operation::Receive, flight.number, entry) }
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
            let (moved, is_late) = match self.ring.wait(Operation::Receive, until)? {
                Some(0) => return Err(StreamError::Closed),
                Some(result) => (count(result)?, false),
                None => (count(self.ring.withdraw(Operation::Receive)?)?, true),
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
        if self.ring.is_broken() || self.ring.is_pending(Operation::Send) {
            return Err(StreamError::Closed);
        }
        let flight = self.flight(segments);
        self.sending = Some(flight);
        if let Err(error) = self.push_send() {
            self.sending = None;
            return Err(error);
        }
        // The kernel takes at once what the socket's buffer has room for; the rest moves while
        // `settle_send` waits. What could not be submitted now, `settle_send` submits.
        self.ring.submit()
    }

    fn settle_send(&mut self) -> Result<Option<Segments>, StreamError> {
        if self.sending.is_none() {
            return Ok(None);
        }
        let settled = self.settle_flight();
        self.reclaim();
        if self.ring.is_pending(Operation::Send) {
            // Only behind an error. Law 2: it stays here until the stream is dropped.
            return settled.map(|()| None);
        }
        let used = self.sending.take().map(|flight| {
            if !self.ring.debts.owes(flight.number) {
                return flight.segments;
            }
            let other = self.spare.pop();
            let other = other.unwrap_or_else(|| flight.segments.empty());
            self.lingering.push(*flight);
            other
        });
        settled.map(|()| used)
    }

    fn receive(
        &mut self,
        segments: &mut Segments,
        want: Want,
        deadline: Deadline,
    ) -> Result<usize, StreamError> {
        if self.ring.is_broken() || self.ring.is_pending(Operation::Receive) {
            return Err(StreamError::Closed);
        }
        let empty = segments.empty();
        let flight = self.flight(std::mem::replace(segments, empty));
        self.receiving = Some(flight);
        let received = self.receive_flight(want, deadline);
        if !self.ring.is_pending(Operation::Receive)
            && let Some(flight) = self.receiving.take()
        {
            *segments = flight.segments;
        }
        // What the peer says acknowledges what was sent.
        if !self.lingering.is_empty() {
            self.ring.collect();
            self.reclaim();
        }
        received
    }

    fn submissions(&self) -> u64 {
        self.ring.submissions()
    }

    fn zero_copy_bytes(&self) -> u64 {
        self.zero_copy_bytes
    }

    fn observer(&mut self) -> &mut Observer {
        &mut self.ring.observer
    }
}

impl Drop for UringStream {
    fn drop(&mut self) {
        // Completes whatever is in flight, and tells the peer now: the ring's own reference to the
        // socket goes away only some time after the ring.
        let _ = self.socket.shutdown(Shutdown::Both);
        // What is complete may be known without entering the ring.
        self.ring.reap();
        for operation in [Operation::Send, Operation::Receive] {
            if self.ring.is_pending(operation) {
                // Fails where the ring can't be entered, on another thread than its own above all.
                let _ = self.ring.withdraw(operation);
            }
        }
        self.ring
            .await_notifications(Deadline::after(ACKNOWLEDGEMENT_TIME));
        if self.ring.debts.are_awaited() {
            // Has the kernel throw away what was not acknowledged. Nobody misses it: what a peer is
            // to have, it has confirmed behind a fence.
            let _ = rustix::net::connect_unspec(&*self.socket);
            self.ring
                .await_notifications(Deadline::after(CANCEL_TIME_EXPECTED));
        }
        // Law 2: the kernel may still use these. No more than so many for each lane; the segments
        // hold on to the guest's mappings themselves.
        if self.ring.is_pending(Operation::Receive) {
            std::mem::forget(self.receiving.take());
        }
        if self.ring.is_pending(Operation::Send) {
            std::mem::forget(self.sending.take());
        }
        let debts = &self.ring.debts;
        let sent = self.sending.take().map(|flight| *flight).into_iter();
        sent.chain(self.lingering.drain(..))
            .filter(|flight| debts.owes(flight.number))
            .for_each(std::mem::forget);
    }
}

#[cfg(test)]
mod tests;
