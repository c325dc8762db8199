//! A small safe layer over verbs and rdma_cm: what a lane needs of them, and no more.
//!
//! This is the one room of RDMA with `unsafe` in it.
//!
//! # Laws of this room
//!
//! 1. **A device reaches registered memory only, and no Rust reference points into registered
//!    memory.** What is registered is a [`HostMapping`](crate::memory::HostMapping)'s, whose
//!    contract says just that. So posting a request is safe whatever it names: the device compares
//!    key, address and length of each with its registrations and fails the request where they
//!    don't match; and where they match, it reads or writes memory that is raw to everybody.
//! 2. **A registration ends before its mapping does.** A [`MemoryRegion`] holds the mapping, and
//!    deregisters before it lets go.
//! 3. **A handle outlives what was made from it.** Each owns one object of the library and an
//!    [`Arc`](std::sync::Arc) of the objects it was made from, and is destroyed in its `Drop`, so
//!    children go first. The functions themselves come from libraries that are never unloaded.
//! 4. **No handle is handed out.** Raw pointers stay in this room; what leaves it are numbers, keys
//!    and bytes, copied.
//! 5. **Every event is acknowledged before the call that took it returns**: destroying an object
//!    waits, without bound, for events of it that are not.
//! 6. **No call here waits for the peer or for an event.** Descriptors are nonblocking, and
//!    whatever may take time is asked for and answered by an event. Waiting, with a deadline, is
//!    done outside, by poll(2). Over iWARP the kernel does wait in two places, each time for a
//!    bounded while, and says nothing that could prevent it: `connect` until TCP is connected, and
//!    dropping a connection that was asked for until it is answered
//!    ([`ConnectionId::connect`](connection::ConnectionId::connect)).
//! 7. **Handles may be used from several threads.** All objects of libibverbs are safe for that
//!    unless asked not to be (ibv_alloc_td(3)); librdmacm's calls name a connection to the kernel by
//!    a number and lock the little that they keep of it. Destroying is for the last owner: `Drop`.
//! 8. **What the library or the device says is checked**: null pointers, return codes, lengths,
//!    numbers of unknown kinds. None of it can panic or index.
//!
//! | room | what is in it |
//! |---|---|
//! | `libraries` | the functions, looked up at run time |
//! | `device` | devices, their limits, ports and addresses |
//! | `paging` | whether they can use memory that is not pinned |
//! | `event` | what a device says by itself: a port is down, a queue pair is broken |
//! | `memory_region` | protection domains and registrations |
//! | `completion` | completion queues, and the channel that announces them |
//! | `queue_pair` | queue pairs, and posting to them |
//! | `request` | requests, and lists of them that are posted together |
//! | `attributes` | with which settings a queue pair goes from state to state |
//! | `connection` | rdma_cm: from an IP address to a connected queue pair |
//! | `connection_event` | rdma_cm's events: what became of it, what the peer does |
//! | `address` | IP addresses as the system's calls take and give them |

mod address;
mod attributes;
mod completion;
mod connection;
mod connection_event;
mod device;
mod event;
mod libraries;
mod memory_region;
mod paging;
mod queue_pair;
mod request;

pub(super) use address::local_addresses;
pub(super) use attributes::{NextState, OwnAddress, QueuePairAttributes};
pub(super) use completion::{Completion, CompletionChannel, CompletionQueue, CompletionStatus};
pub(super) use connection::{ConnectParameters, ConnectionId};
pub(super) use connection_event::{ConnectionEvent, EventChannel, EventKind};
pub(super) use device::{Device, DeviceKind, DeviceLimits, GlobalId, PortState, Rxe};
pub(super) use event::DeviceEvent;
pub(super) use libraries::Libraries;
pub(super) use memory_region::{Access, MemoryRegion, ProtectionDomain, RegisterError};
pub(super) use queue_pair::{QueuePair, QueuePairShape};
pub(super) use request::{INLINE_BYTES_MAX, LocalPiece, Request, RequestList, Transfer};

use std::io;
use std::os::fd::BorrowedFd;

/// Makes a descriptor of the library's nonblocking, and not inherited by programs that are started.
fn set_nonblocking(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
    fcntl_setfl(descriptor, fcntl_getfl(descriptor)? | OFlags::NONBLOCK)?;
    fcntl_setfd(descriptor, fcntl_getfd(descriptor)? | FdFlags::CLOEXEC)?;
    Ok(())
}

/// The error of a call that says `-1` and leaves the reason in `errno`.
fn check(result: std::ffi::c_int) -> io::Result<()> {
    if result == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// The error of a call that returns the reason itself (verbs do; some old providers return `-1`).
fn check_returned(result: std::ffi::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        reason => Err(io::Error::from_raw_os_error(reason.saturating_abs())),
    }
}
