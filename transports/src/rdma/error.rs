//! Why RDMA can't be used, or stopped working, with the value and the way out.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use thiserror::Error;

use crate::lane::{LaneError, LaneNumber};

/// What went wrong with a library, a device or a registration.
#[derive(Debug, Error)]
pub enum RdmaError {
    /// A library is not there.
    #[error(
        "there is no {library} ({source}); install the package {package} (Debian's name), or use \
         tcp://"
    )]
    NoLibrary {
        /// Its file's name.
        library: &'static str,
        /// The Debian package that has it.
        package: &'static str,
        /// The loader's reason.
        source: libloading::Error,
    },
    /// A library is too old.
    #[error("{library} has no {function} ({source}); install a newer {package} (28 or later)")]
    NoFunction {
        /// The function.
        function: &'static str,
        /// The library's file's name.
        library: &'static str,
        /// The Debian package that has it.
        package: &'static str,
        /// The loader's reason.
        source: libloading::Error,
    },
    /// The list of devices can't be had.
    #[error("listing RDMA devices: {0}; is the kernel module ib_uverbs loaded?")]
    Devices(io::Error),
    /// No device has the name.
    #[error("there is no RDMA device '{wanted}'; there are: {}", Names(present))]
    NoSuchDevice {
        /// The name that was asked for.
        wanted: String,
        /// Those that are there.
        present: Vec<String>,
    },
    /// The device is not of a kind that lanes can use.
    #[error(
        "RDMA device {device} is neither InfiniBand nor RoCE nor iWARP: others are not supported"
    )]
    DeviceKind {
        /// The device.
        device: String,
    },
    /// Something was asked for that iWARP does not have.
    #[error(
        "{what} was asked for, and RDMA device {device} is iWARP, which has none; leave it off, or \
         name an address that another device has"
    )]
    NotOverIwarp {
        /// The device.
        device: String,
        /// What was asked for.
        what: &'static str,
    },
    /// This host's addresses can't be had.
    #[error("listing this host's IP addresses: {0}")]
    Addresses(io::Error),
    /// A device refused something.
    #[error("RDMA device {device}: {doing}: {source}")]
    Device {
        /// The device.
        device: String,
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// rdma_cm is not there.
    #[error("no connection manager ({0}); is the kernel module rdma_ucm loaded?")]
    NoConnectionManager(io::Error),
    /// No device leads to an address.
    #[error(
        "no RDMA device leads to {address}: {source}; `rdma link` and `ibv_devinfo` show what there is"
    )]
    NoRoute {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// Another device, port or address index leads there than was asked for.
    #[error("{address} is reached by {what} {found}, not by {wanted}")]
    OtherWay {
        /// The address.
        address: SocketAddr,
        /// What differs.
        what: &'static str,
        /// What was asked for.
        wanted: String,
        /// What it is.
        found: String,
    },
    /// The port of the device carries nothing.
    #[error("port {port} of RDMA device {device} is down")]
    PortDown {
        /// The device.
        device: String,
        /// Its port.
        port: u8,
    },
    /// The device said by itself that something failed.
    #[error("RDMA device {device}: {event}")]
    Event {
        /// The device.
        device: String,
        /// What it said.
        event: String,
    },
    /// The device can't page on demand.
    #[error(
        "on-demand paging was asked for, and RDMA device {device} can't write out of memory that \
         is not pinned: {lack}; leave it off (memory is pinned then), or name a device that can \
         (`ibv_devinfo -v` shows it)"
    )]
    NoPagingOnDemand {
        /// The device.
        device: String,
        /// What it lacks.
        lack: &'static str,
    },
    /// No memory, where there is a limit for locked memory: most often that is in the way.
    #[error(
        "registering {bytes} bytes of memory, {registered} being registered already: beyond what \
         may be locked, or out of memory; the limit for the whole process is {limit_bytes} bytes \
         (RLIMIT_MEMLOCK){}; raise it with `ulimit -l unlimited`, or LimitMEMLOCK=infinity in the \
         systemd unit, or free memory on this host",
        if *may_lock {
            ", and in a user namespace (a container) or with siw it holds in spite of CAP_IPC_LOCK"
        } else {
            ""
        }
    )]
    LockedMemory {
        /// The range's length.
        bytes: u64,
        /// What this endpoint has registered already.
        registered: u64,
        /// The soft limit.
        limit_bytes: u64,
        /// Whether the thread has CAP_IPC_LOCK, which lifts the limit in the initial user namespace
        /// only.
        may_lock: bool,
    },
    /// A range is longer than the device can register.
    #[error(
        "registering {bytes} bytes of memory: RDMA device {device} takes at most {bytes_max} in one \
         registration; prepare the range in pieces"
    )]
    RegistrationTooLong {
        /// The range's length.
        bytes: u64,
        /// The device.
        device: String,
        /// Its limit.
        bytes_max: u64,
    },
    /// The system or the device refused to end a registration.
    #[error(
        "ending the registration of {bytes} bytes of memory with RDMA device {device}: {source}; \
         they stay pinned, until this process ends at the latest"
    )]
    Deregistration {
        /// The range's length.
        bytes: u64,
        /// The device.
        device: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The system or the device refused a registration.
    #[error(
        "registering {bytes} bytes of memory with RDMA device {device}, {registered} being \
         registered already in {registrations} registrations (the device takes \
         {registrations_max}): {source}{}",
        hint(source)
    )]
    Registration {
        /// The range's length.
        bytes: u64,
        /// What this endpoint has registered already.
        registered: u64,
        /// In how many registrations.
        registrations: u64,
        /// How many the device takes, all users together.
        registrations_max: u32,
        /// The device.
        device: String,
        /// The system's reason.
        source: io::Error,
    },
}

struct Names<'a>(&'a [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return formatter.write_str("none (`rdma link` shows what the kernel has)");
        }
        formatter.write_str(&self.0.join(", "))
    }
}

/// What helps against a refused registration.
fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOMEM) => "; free memory on this host, or move a smaller guest",
        Some(libc::EFAULT) => "; its pages can't be made present (too few huge pages?)",
        _ => "",
    }
}

impl RdmaError {
    /// As a lane's error.
    pub(super) fn on(self, lane: LaneNumber, doing: &'static str) -> LaneError {
        LaneError::System {
            lane,
            doing,
            source: io::Error::other(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_for_locked_memory_is_named_with_the_capability_too() {
        for may_lock in [false, true] {
            let error = RdmaError::LockedMemory {
                bytes: 4096,
                registered: 8192,
                limit_bytes: 65536,
                may_lock,
            };
            let text = error.to_string();
            for word in ["65536 bytes (RLIMIT_MEMLOCK)", "LimitMEMLOCK=infinity"] {
                assert!(text.contains(word), "{text}");
            }
            assert_eq!(text.contains("CAP_IPC_LOCK"), may_lock, "{text}");
        }
    }
}
