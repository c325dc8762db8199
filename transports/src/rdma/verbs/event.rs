//! What a device says by itself: a port is down, a queue pair is broken, the device is gone.

use std::fmt;

/// `struct ibv_async_event`, with its kind as a number: the bindings have an enum there, and a
/// kind that is newer than the enum would be undefined behaviour.
#[repr(C)]
pub(super) struct RawDeviceEvent {
    /// A pointer to a queue, or a port's number in its first four bytes.
    pub(super) element: u64,
    pub(super) kind: u32,
}

const _: () = assert!(size_of::<RawDeviceEvent>() == size_of::<rdma_sys::ibv_async_event>());

/// An event of a device. The numbers are those of `enum ibv_event_type` (infiniband/verbs.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rdma) enum DeviceEvent {
    /// A completion queue overran or broke.
    CompletionQueueError,
    /// A queue pair failed in the device.
    QueuePairFatal,
    /// A queue pair got a request that it may not get.
    QueuePairRequestError,
    /// A queue pair got a request for memory that it may not reach.
    QueuePairAccessError,
    /// The device failed or was removed.
    DeviceFatal,
    /// A port went down.
    PortDown(u8),
    /// A port came up.
    PortUp(u8),
    /// Any other; none that ends a lane.
    Other(u32),
}

impl DeviceEvent {
    pub(super) fn from_raw(raw: &RawDeviceEvent) -> Self {
        // The port's number is an `int`, the first member of the union.
        let [a, b, c, d, ..] = raw.element.to_ne_bytes();
        let port = u8::try_from(i32::from_ne_bytes([a, b, c, d])).unwrap_or(0);
        match raw.kind {
            0 => Self::CompletionQueueError,
            1 => Self::QueuePairFatal,
            2 => Self::QueuePairRequestError,
            3 => Self::QueuePairAccessError,
            8 => Self::DeviceFatal,
            9 => Self::PortUp(port),
            10 => Self::PortDown(port),
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for DeviceEvent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CompletionQueueError => formatter.write_str("a completion queue failed"),
            Self::QueuePairFatal => formatter.write_str("a queue pair failed"),
            Self::QueuePairRequestError => {
                formatter.write_str("the peer sent a request that is not allowed here")
            }
            Self::QueuePairAccessError => {
                formatter.write_str("the peer reached for memory that is not open to it")
            }
            Self::DeviceFatal => formatter.write_str("the device failed or was removed"),
            Self::PortDown(port) => write!(formatter, "port {port} went down"),
            Self::PortUp(port) => write!(formatter, "port {port} came up"),
            Self::Other(kind) => write!(formatter, "event {kind}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_event_carries_its_port() {
        let mut element = [0; 8];
        element[..4].copy_from_slice(&2_i32.to_ne_bytes());
        let raw = |kind| RawDeviceEvent {
            element: u64::from_ne_bytes(element),
            kind,
        };
        assert_eq!(DeviceEvent::from_raw(&raw(10)), DeviceEvent::PortDown(2));
        assert_eq!(DeviceEvent::from_raw(&raw(9)), DeviceEvent::PortUp(2));
        // A kind of tomorrow is a number, not a broken enum.
        assert_eq!(DeviceEvent::from_raw(&raw(4711)), DeviceEvent::Other(4711));
    }
}
