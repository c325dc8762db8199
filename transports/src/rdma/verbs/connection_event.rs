//! rdma_cm's events: answers to what was asked of a connection, and what the peer does with it.

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rdma_sys::{rdma_cm_event_type as kind, rdma_event_channel};

use super::{ConnectionId, Libraries, set_nonblocking};

/// The most bytes of a peer's private data that are taken. Requests carry up to 56, answers up to
/// 196 (rdma_connect(3), rdma_accept(3)); this transport's own have no more than 56.
const PRIVATE_BYTES_MAX: usize = 56;

/// A stream of events of the connections that were made on it.
pub(in crate::rdma) struct EventChannel {
    channel: *mut rdma_event_channel,
    pub(super) libraries: &'static Libraries,
}

// SAFETY: law 7.
unsafe impl Send for EventChannel {}
// SAFETY: law 7.
unsafe impl Sync for EventChannel {}

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rdma) enum EventKind {
    /// The peer's address leads to a device.
    AddressResolved,
    /// The way to the peer is known.
    RouteResolved,
    /// Somebody wants to connect; the event brings the new connection.
    Request,
    /// The peer accepted; this side has to confirm.
    Response,
    /// Both sides are connected.
    Established,
    /// The peer refused.
    Rejected,
    /// The peer ended the connection.
    Disconnected,
    /// The device is going away.
    DeviceRemoved,
    /// Something that was asked for failed: the number is rdma_cm's for the event.
    Failed(u32),
    /// Any other.
    Other(u32),
}

/// One event.
pub(in crate::rdma) struct ConnectionEvent {
    /// What it says.
    pub(in crate::rdma) kind: EventKind,
    /// A negative error number, or the reason of a rejection.
    pub(in crate::rdma) status: i32,
    /// What the peer sent along, at most 56 bytes; may be padded with zeros.
    pub(in crate::rdma) private_data: Vec<u8>,
    /// The connection that a request asks for.
    pub(in crate::rdma) request: Option<ConnectionId>,
    /// rdma_cm's name of the event.
    name: String,
}

impl fmt::Debug for ConnectionEvent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} (status {})", self.name, self.status)
    }
}

impl ConnectionEvent {
    /// The system's reason, for an event that says that something failed.
    pub(in crate::rdma) fn reason(&self) -> io::Error {
        if self.status < 0 {
            return io::Error::from_raw_os_error(self.status.saturating_neg());
        }
        io::Error::other(format!("{} (status {})", self.name, self.status))
    }
}

impl EventChannel {
    /// A new channel.
    ///
    /// # Errors
    ///
    /// The system's: without the kernel module `rdma_ucm` there is no such thing.
    pub(in crate::rdma) fn new(libraries: &'static Libraries) -> io::Result<Arc<Self>> {
        // SAFETY: takes nothing.
        let channel = unsafe { (libraries.connection_manager.rdma_create_event_channel)() };
        if channel.is_null() {
            return Err(io::Error::last_os_error());
        }
        let channel = Self { channel, libraries };
        set_nonblocking(channel.descriptor())?;
        Ok(Arc::new(channel))
    }

    /// Readable when there is an event.
    pub(in crate::rdma) fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to the channel, which is there as long as `self`.
        unsafe { BorrowedFd::borrow_raw((*self.channel).fd) }
    }

    pub(super) fn as_ptr(&self) -> *mut rdma_event_channel {
        self.channel
    }

    /// The next event, if there is one. A connection that an event brings stays on this channel
    /// until it is moved.
    ///
    /// # Errors
    ///
    /// When the system fails to tell.
    pub(in crate::rdma) fn next(self: &Arc<Self>) -> io::Result<Option<ConnectionEvent>> {
        let functions = &self.libraries.connection_manager;
        let mut event = std::ptr::null_mut();
        // SAFETY: the channel is there and `event` is a place for the answer. The call does not
        // wait: the descriptor is nonblocking.
        let result = unsafe { (functions.rdma_get_cm_event)(self.channel, &raw mut event) };
        if result != 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        // SAFETY: the call succeeded, so `event` is an event, ours until it is acknowledged below.
        let raw = unsafe { &*event };
        let number = raw.event;
        let kind = match number {
            kind::RDMA_CM_EVENT_ADDR_RESOLVED => EventKind::AddressResolved,
            kind::RDMA_CM_EVENT_ROUTE_RESOLVED => EventKind::RouteResolved,
            kind::RDMA_CM_EVENT_CONNECT_REQUEST => EventKind::Request,
            kind::RDMA_CM_EVENT_CONNECT_RESPONSE => EventKind::Response,
            kind::RDMA_CM_EVENT_ESTABLISHED => EventKind::Established,
            kind::RDMA_CM_EVENT_REJECTED => EventKind::Rejected,
            kind::RDMA_CM_EVENT_DISCONNECTED => EventKind::Disconnected,
            kind::RDMA_CM_EVENT_DEVICE_REMOVAL => EventKind::DeviceRemoved,
            kind::RDMA_CM_EVENT_ADDR_ERROR
            | kind::RDMA_CM_EVENT_ROUTE_ERROR
            | kind::RDMA_CM_EVENT_CONNECT_ERROR
            | kind::RDMA_CM_EVENT_UNREACHABLE => EventKind::Failed(number),
            _ => EventKind::Other(number),
        };
        let mut private_data = Vec::new();
        if matches!(
            kind,
            EventKind::Request | EventKind::Response | EventKind::Established | EventKind::Rejected
        ) {
            // SAFETY: events of connections of this kind have `conn`; it is integers and a pointer,
            // and librdmacm fills in or zeroes the whole event.
            let parameters = unsafe { raw.param.conn };
            let bytes = usize::from(parameters.private_data_len).min(PRIVATE_BYTES_MAX);
            if !parameters.private_data.is_null() {
                // SAFETY: librdmacm says that so many bytes are there; they are part of the event,
                // which nobody changes, and are copied before it is acknowledged.
                let data =
                    unsafe { std::slice::from_raw_parts(parameters.private_data.cast(), bytes) };
                private_data.extend_from_slice(data);
            }
        }
        let request = (kind == EventKind::Request).then_some(raw.id);
        let status = raw.status;
        // SAFETY: a function from a number to a constant string, also for numbers of no event.
        let name = unsafe { (functions.rdma_event_str)(number) };
        let name = if name.is_null() {
            format!("event {number}")
        } else {
            // SAFETY: what is not null is a constant string of the library.
            let name = unsafe { CStr::from_ptr(name) };
            name.to_string_lossy().into_owned()
        };
        // SAFETY: the event is acknowledged once, and not used from here on: law 5.
        unsafe { (functions.rdma_ack_cm_event)(event) };
        let request = request.and_then(|id| {
            // SAFETY: a request's connection is new, and nobody else's: whoever takes the event has
            // to destroy it.
            unsafe { ConnectionId::from_request(self, id) }
        });
        Ok(Some(ConnectionEvent {
            kind,
            status,
            private_data,
            request,
            name,
        }))
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: law 3: the connections on it held it and are gone.
        unsafe { (self.libraries.connection_manager.rdma_destroy_event_channel)(self.channel) };
    }
}
