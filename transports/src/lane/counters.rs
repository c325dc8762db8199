//! What lanes and endpoints count.

use std::time::Duration;

/// What passed over one lane since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneCounters {
    /// Guest bytes put, without framing.
    pub payload_bytes: u64,
    /// All bytes on the wire that the transport accounts for, framing included.
    pub wire_bytes: u64,
    /// Runs put.
    pub runs: u64,
    /// Pages put as zero.
    pub zero_pages: u64,
    /// System calls (or doorbells) made for them.
    pub submissions: u64,
    /// Bytes among `wire_bytes` that the system was given to send without a copy. Whether it avoided
    /// the copy, the endpoint's mechanism says.
    pub zero_copy_bytes: u64,
    /// Guest bytes among `payload_bytes` that travelled compressed.
    pub compressed_bytes: u64,
    /// Time that the lane spent compressing or decompressing, in vain or not; copies included.
    pub compressing: Duration,
}

/// What a lane asked of its device since it was opened; all zero for a transport without one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Requests given to the device: writes, reads and messages.
    pub work_requests: u64,
    /// Times that the device was told of new requests; each tells of one or many.
    pub doorbells: u64,
    /// Completions taken from the device; requests that do not ask for one complete silently.
    pub completions: u64,
}

/// Registrations of an endpoint's memory; all zero for a transport that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegistrationCounters {
    /// How many were made.
    pub made: u64,
    /// How many were ended.
    pub ended: u64,
    /// Bytes registered, and so pinned, at this moment.
    pub bytes: u64,
    /// The most that were at any moment.
    pub bytes_max: u64,
}
