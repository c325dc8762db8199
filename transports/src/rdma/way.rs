//! How an address leads to a device, and whether it is one that the operator wants.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::error::RdmaError;
use super::verbs::{ConnectionId, Device, DeviceKind, EventChannel, EventKind, Libraries};
use super::watch::wait_readable;
use super::{LinkLayer, Options};
use crate::deadline::Deadline;

/// How long rdma_cm may look for an address or a route: about what ARP and a path record take with
/// some losses. The caller's deadline counts too.
pub(super) const RESOLVE_LIMIT_MS: u32 = 2000;

/// An address as rdma_cm takes it: IPv4 as such, where a socket for both versions has it in the form
/// of IPv6.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), address.port()),
        // With its scope.
        IpAddr::V6(_) => address,
    }
}

/// A device, and the port of it that leads to an address.
pub(super) struct Way {
    pub(super) device: Arc<Device>,
    pub(super) port: u8,
    pub(super) link_layer: LinkLayer,
}

impl Way {
    /// The way that a connection's address led to, if it is the one that the operator wants.
    pub(super) fn of(
        libraries: &'static Libraries,
        id: &ConnectionId,
        address: SocketAddr,
        options: &Options,
    ) -> Result<Self, RdmaError> {
        let Some((name, port)) = id.device() else {
            return Err(RdmaError::NoRoute {
                address,
                source: io::Error::other("it is on no RDMA device"),
            });
        };
        check_way(&name, port, address, options)?;
        let device = Device::open(libraries, &name)?;
        if device.kind() == DeviceKind::Iwarp {
            check_options(&name, options)?;
        }
        let state = device.port(port)?;
        if !state.is_active {
            return Err(RdmaError::PortDown { device: name, port });
        }
        Ok(Self {
            device,
            port,
            link_layer: state.link_layer,
        })
    }

    /// The way to a peer.
    pub(super) fn to(
        libraries: &'static Libraries,
        peer: SocketAddr,
        options: &Options,
        deadline: Deadline,
    ) -> Result<Self, RdmaError> {
        let no_manager = RdmaError::NoConnectionManager;
        let no_route = |source| RdmaError::NoRoute {
            address: peer,
            source,
        };
        let channel = EventChannel::new(libraries).map_err(no_manager)?;
        let id = ConnectionId::new(&channel).map_err(no_manager)?;
        id.resolve_address(options.bind, peer, RESOLVE_LIMIT_MS)
            .map_err(no_route)?;
        loop {
            match channel.next().map_err(no_route)? {
                Some(event) if event.kind == EventKind::AddressResolved => break,
                Some(event) => return Err(no_route(event.reason())),
                None if deadline.passed() => {
                    return Err(no_route(io::ErrorKind::TimedOut.into()));
                }
                None => wait_readable([channel.descriptor()], deadline).map_err(no_route)?,
            }
        }
        Self::of(libraries, &id, peer, options)
    }
}

/// Sees to it that the way to an address is the one that the operator wants.
fn check_way(
    device: &str,
    port: u8,
    address: SocketAddr,
    options: &Options,
) -> Result<(), RdmaError> {
    let other = |what, wanted: String, found: String| RdmaError::OtherWay {
        address,
        what,
        wanted,
        found,
    };
    match &options.device {
        Some(wanted) if wanted != device => {
            return Err(other("RDMA device", wanted.clone(), device.to_owned()));
        }
        _ => {}
    }
    match options.port {
        Some(wanted) if wanted != port => Err(other("port", wanted.to_string(), port.to_string())),
        _ => Ok(()),
    }
}

/// Sees to it that nothing is asked of iWARP that it does not have: who asks for a partition or a
/// service level means to keep this traffic apart, and would not learn that it is not.
fn check_options(device: &str, options: &Options) -> Result<(), RdmaError> {
    let asked = [
        (options.gid_index.is_some(), "a GID index"),
        (options.service_level.is_some(), "a service level"),
        (options.pkey_index.is_some(), "a partition key"),
        (
            options.ack_timeout.is_some(),
            "a time limit for acknowledgements",
        ),
    ];
    match asked.into_iter().find(|(is_asked, _)| *is_asked) {
        Some((_, what)) => Err(RdmaError::NotOverIwarp {
            device: device.to_owned(),
            what,
        }),
        None => Ok(()),
    }
}
