//! Transports: how a guest's pages and the control messages of a move reach the other host.
//!
//! This crate knows memory ranges, lanes and frames. It knows no guest, no round and no
//! handover; those are the engine's.
//!
//! | room | what is in it |
//! |---|---|
//! | [`memory`] | page numbers, runs, and the host mappings that lanes read and write |
//! | [`lane`] | the traits of one lane and of the endpoint that opens lanes |
//! | [`control`] | the traits of the control channel: bounded frames both ways |
//! | [`deadline`] | points in time by which a wait must end |
//! | [`runtime`] | what time it is, how threads are started, and where they wait |
//! | `ranges`, `range_map` | sets of pages; ranges as they came |
//! | `prepared` | which ranges the peer may write, and who is writing now |
//! | `published` | a value at which many threads look without sharing a lock |
//! | `tcp` | lanes and control over TCP: io_uring, or plain `writev`/`readv` |
//! | `rdma` | lanes over RDMA: writes from guest memory to guest memory |
//! | `inmemory` | both ends in one process, with faults that a test orders |
//! | `conformance` | the one suite that every transport passes |

pub mod control;
pub mod deadline;
pub mod lane;
pub mod memory;
pub mod runtime;

#[cfg(any(test, feature = "tcp", feature = "testing"))]
mod prepared;
#[cfg(any(test, feature = "tcp", feature = "testing"))]
mod published;
#[cfg(any(test, feature = "rdma", feature = "testing"))]
mod range_map;
#[cfg(any(test, feature = "tcp", feature = "testing"))]
mod ranges;

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
#[cfg(any(test, feature = "testing"))]
pub mod inmemory;
#[cfg(feature = "rdma")]
pub mod rdma;
#[cfg(feature = "tcp")]
pub mod tcp;
