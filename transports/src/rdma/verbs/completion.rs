//! Completion queues, and the channel that announces what is in them.

use std::ffi::c_int;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rdma_sys::{ibv_comp_channel, ibv_cq, ibv_poll_cq, ibv_req_notify_cq, ibv_wc};

use super::{Device, check_returned, set_nonblocking};

/// How many completions one call takes off a queue. Enough that a busy queue is emptied in few
/// calls, few enough for the stack (48 bytes each).
const POLL_BATCH: usize = 32;

/// A descriptor that becomes readable when an armed queue gets a completion.
pub(in crate::rdma) struct CompletionChannel {
    channel: *mut ibv_comp_channel,
    device: Arc<Device>,
}

// SAFETY: law 7.
unsafe impl Send for CompletionChannel {}
// SAFETY: law 7.
unsafe impl Sync for CompletionChannel {}

impl CompletionChannel {
    /// A new channel on a device.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(in crate::rdma) fn new(device: &Arc<Device>) -> io::Result<Arc<Self>> {
        // SAFETY: the context is open.
        let channel = unsafe { (device.libraries.verbs.ibv_create_comp_channel)(device.context()) };
        if channel.is_null() {
            return Err(io::Error::last_os_error());
        }
        let channel = Self {
            channel,
            device: Arc::clone(device),
        };
        set_nonblocking(channel.descriptor())?;
        Ok(Arc::new(channel))
    }

    /// Readable when an armed queue has got a completion.
    pub(in crate::rdma) fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to the channel, which is there as long as `self`.
        unsafe { BorrowedFd::borrow_raw((*self.channel).fd) }
    }

    /// Takes the announcements that have come. A queue that announced has to be armed again.
    ///
    /// # Errors
    ///
    /// When the system fails to tell.
    pub(in crate::rdma) fn drain(&self) -> io::Result<()> {
        loop {
            let mut queue = std::ptr::null_mut();
            let mut context = std::ptr::null_mut();
            // SAFETY: the channel is there, and both are places for the answer. The call does not
            // wait: the descriptor is nonblocking.
            let result = unsafe {
                (self.device.libraries.verbs.ibv_get_cq_event)(
                    self.channel,
                    &raw mut queue,
                    &raw mut context,
                )
            };
            if result != 0 {
                let error = io::Error::last_os_error();
                return match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
                    _ => Err(error),
                };
            }
            // SAFETY: the queue that announced is not gone: destroying it waits for this.
            unsafe { (self.device.libraries.verbs.ibv_ack_cq_events)(queue, 1) };
        }
    }
}

impl Drop for CompletionChannel {
    fn drop(&mut self) {
        // SAFETY: law 3: its queues held it and are gone.
        unsafe { (self.device.libraries.verbs.ibv_destroy_comp_channel)(self.channel) };
    }
}

/// How a request ended. The numbers are those of `enum ibv_wc_status` (infiniband/verbs.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rdma) struct CompletionStatus(pub(in crate::rdma) u32);

impl CompletionStatus {
    /// The request was carried out.
    pub(in crate::rdma) const SUCCESS: Self = Self(0);
    /// The request was still waiting when the queue pair failed or was ended.
    pub(in crate::rdma) const FLUSHED: Self = Self(5);

    /// Whether the request may have failed because something else had: its queue pair, the device,
    /// the way to the peer. Other failures are about the request itself.
    pub(in crate::rdma) fn may_have_other_cause(self) -> bool {
        matches!(self.0, 2 | 5 | 12 | 19..)
    }
}

impl fmt::Display for CompletionStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            0 => "success",
            1 => "a message is longer than its buffer",
            2 => "this side's queue pair failed",
            4 => "this side's memory is not registered for this",
            5 => "the queue pair ended first",
            7 => "the peer's answer makes no sense",
            8 => "this side's memory may not be written",
            9 => "the peer does not take such a request",
            10 => "the peer does not let this memory be reached",
            11 => "the peer failed to carry it out",
            12 => "the peer does not answer",
            13 => "the peer has no buffer for the message",
            19 | 21 => "the device failed",
            other => return write!(formatter, "status {other}"),
        };
        formatter.write_str(text)
    }
}

/// The end of one request.
#[derive(Clone, Copy, Debug)]
pub(in crate::rdma) struct Completion {
    /// The number that the request was given.
    pub(in crate::rdma) id: u64,
    /// How it ended.
    pub(in crate::rdma) status: CompletionStatus,
    /// How many bytes a message had that was received; of no meaning for other requests, or where
    /// the status is not success.
    pub(in crate::rdma) bytes: u32,
    /// The vendor's own number for an error.
    pub(in crate::rdma) vendor_error: u32,
}

/// A queue of the ends of requests.
pub(in crate::rdma) struct CompletionQueue {
    queue: *mut ibv_cq,
    channel: Arc<CompletionChannel>,
}

// SAFETY: law 7.
unsafe impl Send for CompletionQueue {}
// SAFETY: law 7.
unsafe impl Sync for CompletionQueue {}

impl CompletionQueue {
    /// A queue for at least `entries` completions that announces on `channel` when armed.
    ///
    /// # Errors
    ///
    /// The system's, also where the device has no queue that long.
    pub(in crate::rdma) fn new(
        channel: &Arc<CompletionChannel>,
        entries: u32,
    ) -> io::Result<Arc<Self>> {
        let entries = c_int::try_from(entries).map_err(io::Error::other)?;
        // SAFETY: the context is open, the channel is of the same device, and vector 0 is always
        // there. The queue's context stays null and unused.
        let queue = unsafe {
            (channel.device.libraries.verbs.ibv_create_cq)(
                channel.device.context(),
                entries,
                std::ptr::null_mut(),
                channel.channel,
                0,
            )
        };
        if queue.is_null() {
            return Err(io::Error::last_os_error());
        }
        Ok(Arc::new(Self {
            queue,
            channel: Arc::clone(channel),
        }))
    }

    pub(super) fn as_ptr(&self) -> *mut ibv_cq {
        self.queue
    }

    /// Asks for an announcement of the next completion. What came before may not be announced: look
    /// once more before waiting.
    ///
    /// # Errors
    ///
    /// The device's.
    pub(in crate::rdma) fn arm(&self) -> io::Result<()> {
        // SAFETY: the queue is there; its function was checked when the device was opened.
        check_returned(unsafe { ibv_req_notify_cq(self.queue, 0) })
    }

    /// Takes what has come, some at a time, in order; hands each to `take`. Returns how many.
    ///
    /// # Errors
    ///
    /// When the queue failed.
    pub(in crate::rdma) fn poll(&self, mut take: impl FnMut(Completion)) -> io::Result<usize> {
        let mut batch: [MaybeUninit<ibv_wc>; POLL_BATCH] =
            [const { MaybeUninit::zeroed() }; POLL_BATCH];
        // SAFETY: the queue is there, its function was checked when the device was opened, and
        // `batch` has room for as many completions as are asked for.
        let taken = unsafe {
            ibv_poll_cq(
                self.queue,
                POLL_BATCH as i32,
                batch.as_mut_ptr().cast::<ibv_wc>(),
            )
        };
        let taken = usize::try_from(taken)
            .map_err(|_| io::Error::other("a completion queue failed to be read"))?;
        for entry in batch.iter().take(taken) {
            // SAFETY: the call wrote the first `taken` entries. It may leave out members that are of
            // no meaning for a kind of request; they are zero then, which is valid for all members:
            // integers throughout.
            let entry = unsafe { entry.assume_init_ref() };
            let status = CompletionStatus(entry.status);
            take(Completion {
                id: entry.wr_id,
                status,
                bytes: if status == CompletionStatus::SUCCESS {
                    entry.byte_len
                } else {
                    0
                },
                vendor_error: entry.vendor_err,
            });
        }
        Ok(taken)
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: law 3: the queue pairs that used it held it and are gone; law 5: its
        // announcements were acknowledged when they were taken.
        unsafe { (self.channel.device.libraries.verbs.ibv_destroy_cq)(self.queue) };
    }
}
