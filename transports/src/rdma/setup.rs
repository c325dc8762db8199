//! How an address leads to a device, and how a queue pair becomes connected, with which settings.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::connection::{Connected, Parts};
use super::error::RdmaError;
use super::outbox::Window;
use super::verbs::{
    ConnectParameters, ConnectionEvent, ConnectionId, Device, EventChannel, EventKind, Libraries,
    NextState, QueuePairAttributes,
};
use super::watch::{Watch, wait_readable};
use super::wire::{self, End};
use super::{LinkLayer, Options};
use crate::deadline::Deadline;
use crate::lane::{LaneError, LaneNumber};

/// How often the device sends again what is not acknowledged. With [`Options::ack_timeout`] it says
/// how long a dead path goes unnoticed. Not 7, the most that its three bits hold: rxe takes that as
/// for ever (Linux 6.1, `rxe_comp.c`), and would never report a peer that has gone.
const RETRIES: u8 = 6;

/// How often the device sends a message again for which the peer has no buffer. Not 7, which is for
/// ever: rdma_cm's default, with which an underrun stalls in silence. Between peers that keep to the
/// protocol there always is a buffer.
const BUFFER_RETRIES: u8 = 6;

/// The code for 0.64 ms (ibv_modify_qp(3), `min_rnr_timer`): how long the peer waits before it sends
/// such a message again. rdma_cm leaves 0, which is the longest, 655 ms. With the retries above a
/// peer that has sent too much learns of it within some 4 ms.
const BUFFER_WAIT: u8 = 12;

/// How many reads a lane has under way, as far as the device goes: the most that common devices
/// have. Only post-copy reads.
const READS_MAX: u8 = 16;

/// How long rdma_cm may look for an address or a route: about what ARP and a path record take with
/// some losses. The caller's deadline counts too.
pub(super) const RESOLVE_LIMIT_MS: u32 = 2000;

/// Which end of a lane this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Source,
    Destination,
}

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

/// Takes a queue pair from one state to the next until it is connected.
pub(super) struct Setup<'a> {
    pub(super) number: LaneNumber,
    pub(super) role: Role,
    pub(super) device: &'a Device,
    pub(super) port: u8,
    pub(super) options: &'a Options,
    pub(super) address: SocketAddr,
}

impl Setup<'_> {
    fn system(&self, doing: &'static str) -> impl Fn(io::Error) -> LaneError {
        let lane = self.number;
        move |source| LaneError::System {
            lane,
            doing,
            source,
        }
    }

    /// What this side says when it connects or accepts.
    pub(super) fn parameters<'b>(
        &self,
        parts: &Parts,
        private_data: &'b [u8],
    ) -> ConnectParameters<'b> {
        let limits = self.device.limits();
        ConnectParameters {
            queue_pair: parts.pair.number(),
            private_data,
            reads_in: READS_MAX.min(limits.reads_in_max),
            reads_out: READS_MAX.min(limits.reads_out_max),
            retries: RETRIES,
            buffer_retries: BUFFER_RETRIES,
        }
    }

    /// To INIT, with the receives posted: from here on nothing that comes is lost.
    pub(super) fn initialize(&self, parts: &Parts, id: &ConnectionId) -> Result<(), LaneError> {
        let system = self.system("setting up a queue pair");
        let found = id.device();
        if found != Some((self.device.name().to_owned(), self.port)) {
            let (name, port) = found.unwrap_or_default();
            let error = RdmaError::OtherWay {
                address: self.address,
                what: "RDMA device and port",
                wanted: format!("{} {}", self.device.name(), self.port),
                found: format!("{name} {port}"),
            };
            return Err(error.on(self.number, "setting up a queue pair"));
        }
        let mut attributes = id.attributes(NextState::Initialized).map_err(&system)?;
        // The source's memory may be read where it is offered; the destination's may be written
        // once the lane is confirmed.
        attributes.let_peer(self.role == Role::Source, false);
        if let Some(index) = self.options.pkey_index {
            attributes.set_partition(index);
        }
        parts.pair.modify(attributes).map_err(&system)?;
        parts
            .post_receives()
            .map_err(self.system("posting receives"))
    }

    /// To RTR and RTS.
    pub(super) fn make_ready(
        &self,
        parts: &Parts,
        id: &ConnectionId,
    ) -> Result<Connected, LaneError> {
        let system = self.system("connecting a queue pair");
        let mut attributes = id.attributes(NextState::ReadyToReceive).map_err(&system)?;
        attributes.set_marks(self.options.tos, self.options.service_level);
        attributes.set_buffer_wait(BUFFER_WAIT);
        let port = self
            .device
            .port(self.port)
            .map_err(|error| error.on(self.number, "connecting a queue pair"))?;
        // The route knows the path, the port its own link: never more than either.
        let path_mtu = attributes.path_mtu().min(port.path_mtu);
        attributes.set_path_mtu(path_mtu);
        let own = self.own_end(parts, &attributes)?;
        let (queue_pair, address) = attributes.peer();
        parts.pair.modify(attributes).map_err(&system)?;
        let mut attributes = id.attributes(NextState::ReadyToSend).map_err(&system)?;
        attributes.set_retries(self.options.ack_timeout.min(31), RETRIES, BUFFER_RETRIES);
        parts.pair.modify(attributes).map_err(&system)?;
        let peer = End {
            queue_pair,
            address,
        };
        let (source, destination) = match self.role {
            Role::Source => (own, peer),
            Role::Destination => (peer, own),
        };
        Ok(Connected {
            identity: wire::identity(source, destination),
            window: Window::of(self.device.limits(), path_mtu, self.options.window_bytes),
        })
    }

    fn own_end(&self, parts: &Parts, attributes: &QueuePairAttributes) -> Result<End, LaneError> {
        let doing = "connecting a queue pair";
        let (port, index) = attributes.own_address();
        if let Some(wanted) = self.options.gid_index
            && wanted != index
        {
            let error = RdmaError::OtherWay {
                address: self.address,
                what: "GID index",
                wanted: wanted.to_string(),
                found: index.to_string(),
            };
            return Err(error.on(self.number, doing));
        }
        let address = self
            .device
            .global_id(port, index)
            .map_err(|error| error.on(self.number, doing))?;
        Ok(End {
            queue_pair: parts.pair.number(),
            address,
        })
    }
}

/// Waits for a connection's next event.
///
/// # Errors
///
/// [`LaneError::Stalled`] at the deadline; what ended the endpoint's lanes, if something did.
pub(super) fn next_event(
    channel: &Arc<EventChannel>,
    watch: &Watch,
    lane: LaneNumber,
    doing: &'static str,
    deadline: Deadline,
) -> Result<ConnectionEvent, LaneError> {
    let begun = Instant::now();
    let system = |source| LaneError::System {
        lane,
        doing,
        source,
    };
    loop {
        watch.look();
        if let Some(ended) = watch.ended(lane) {
            return Err(ended);
        }
        if let Some(event) = channel.next().map_err(system)? {
            return Ok(event);
        }
        if deadline.passed() {
            return Err(LaneError::Stalled {
                lane,
                doing,
                waited: begun.elapsed(),
            });
        }
        let descriptor = channel.descriptor();
        watch
            .wait([descriptor, descriptor], deadline)
            .map_err(system)?;
    }
}
