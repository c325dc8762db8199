//! How a queue pair becomes connected, with which settings.
//!
//! # InfiniBand, RoCE, iWARP
//!
//! This is the room that knows what differs between them ([`DeviceKind`]). Over InfiniBand and RoCE
//! this side moves the queue pair to RTR and RTS, with time limits, retries and marks of its own
//! choice, and confirms the answer. Over iWARP a lane is a TCP connection: the kernel moves the pair
//! when it connects or accepts, and there is nothing to set and nothing to confirm. What is lost is
//! repeated by TCP, what finds no buffer ends the connection. The side that connected has to send
//! first (RFC 5044, section 7.1): the source does, as a destination's first message answers a fence.
//!
//! There a queue pair can't be opened to the peer's writes once it is connected either: cxgb4 refuses
//! it, and siw looks at no such flag (`siw_proc_write`, Linux, siw_qp_rx.c). So it is open from the
//! beginning, and what keeps a lane out that was not confirmed is that no memory is registered for
//! the peer before all are, and no lane let in afterwards ([`Setup`], `destination`).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::Options;
use super::connection::{Connected, Parts};
use super::error::RdmaError;
use super::outbox::Window;
use super::verbs::{
    ConnectParameters, ConnectionEvent, ConnectionId, Device, DeviceKind, EventChannel, EventKind,
    NextState, OwnAddress, PortState, QueuePairAttributes,
};
use super::watch::Watch;
use super::wire::{self, End};
use crate::deadline::Deadline;
use crate::lane::{LaneError, LaneNumber};

/// [`Options::ack_timeout`] where none is asked for: 67 ms. A lost last packet costs a pause that
/// much. Seven times that, all tries together, is 0.5 s, or 1.9 s with a device that takes four times
/// as long: longer than a path takes to be switched, and below the engine's peer timeout of 5 s, so
/// that a dead path is reported as such. rdma_cm would take 17 s.
const ACK_TIMEOUT: u8 = 14;

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

/// How often a lane or a listener is made that finds its port in use. rdma_cm chooses a port at
/// random out of those that nobody uses for RDMA; over iWARP it is one of TCP's too, and there some
/// hundreds of 28,000 may be taken. With a thousand, this many tries in vain are one in 600,000.
pub(super) const CONNECT_TRIES: u32 = 4;

/// Which end of a lane this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Source,
    Destination,
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
        // once the lane is confirmed, or, over iWARP, once it is registered.
        let is_source = self.role == Role::Source;
        let is_iwarp = self.device.kind() == DeviceKind::Iwarp;
        attributes.let_peer(is_source, is_iwarp && !is_source);
        if let Some(index) = self.options.pkey_index {
            attributes.set_partition(index);
        }
        parts.pair.modify(attributes).map_err(&system)?;
        parts
            .post_receives()
            .map_err(self.system("posting receives"))
    }

    /// What the source is told when the destination has accepted.
    pub(super) fn answer(&self) -> EventKind {
        match self.device.kind() {
            DeviceKind::InfiniBand => EventKind::Response,
            DeviceKind::Iwarp => EventKind::Established,
        }
    }

    /// What is left for this side to do before a queue pair sends: at the source once the
    /// destination has accepted, at the destination before it accepts.
    pub(super) fn make_ready(
        &self,
        parts: &Parts,
        id: &ConnectionId,
        unreachable: impl Fn(io::Error) -> LaneError,
    ) -> Result<Connected, LaneError> {
        match (self.device.kind(), self.role) {
            (DeviceKind::InfiniBand, Role::Source) => {
                let connected = self.move_pair(parts, id)?;
                id.establish().map_err(unreachable)?;
                Ok(connected)
            }
            (DeviceKind::InfiniBand, Role::Destination) => self.move_pair(parts, id),
            (DeviceKind::Iwarp, _) => self.name_connection(id),
        }
    }

    /// Drops what did not become a connection. Over iWARP the kernel keeps who drops it waiting
    /// until the peer or the driver has answered ([`ConnectionId::connect`]), so that is left to a
    /// thread of its own; what it holds is pinned for that long, two pages.
    pub(super) fn abandon(&self, parts: Parts, id: ConnectionId) {
        match self.device.kind() {
            DeviceKind::InfiniBand => drop((parts, id)),
            DeviceKind::Iwarp => {
                let thread = std::thread::Builder::new().name("dunlin-abandon".to_owned());
                // Where there is no thread to be had, they are dropped here.
                let _ = thread.spawn(move || drop((id, parts)));
            }
        }
    }

    /// Over iWARP there is nothing left to do; what both ends know of the connection is which one
    /// it is.
    fn name_connection(&self, id: &ConnectionId) -> Result<Connected, LaneError> {
        let Some((own, peer)) = id.addresses() else {
            let error = io::Error::other("its addresses are not known");
            return Err(self.system("connecting a queue pair")(error));
        };
        // No path MTU to speak of: TCP cuts the stream as it likes.
        Ok(self.connected(End::of_tcp(own), End::of_tcp(peer), 0))
    }

    /// To RTR and RTS.
    fn move_pair(&self, parts: &Parts, id: &ConnectionId) -> Result<Connected, LaneError> {
        let system = self.system("connecting a queue pair");
        let mut attributes = id.attributes(NextState::ReadyToReceive).map_err(&system)?;
        attributes.set_marks(self.options.tos, self.options.service_level);
        attributes.set_buffer_wait(BUFFER_WAIT);
        let limits = self.device.limits();
        attributes.limit_reads(limits.reads_in_max, limits.reads_out_max);
        let port = self
            .device
            .port(self.port)
            .map_err(|error| error.on(self.number, "connecting a queue pair"))?;
        // The route knows the path, the port its own link: never more than either.
        let path_mtu = attributes.path_mtu().min(port.path_mtu);
        attributes.set_path_mtu(path_mtu);
        let own = self.own_end(parts, &attributes, &port)?;
        let (queue_pair, address) = attributes.peer();
        parts.pair.modify(attributes).map_err(&system)?;
        let mut attributes = id.attributes(NextState::ReadyToSend).map_err(&system)?;
        let ack_timeout = self.options.ack_timeout.unwrap_or(ACK_TIMEOUT);
        attributes.set_retries(ack_timeout.min(31), RETRIES, BUFFER_RETRIES);
        attributes.limit_reads(limits.reads_in_max, limits.reads_out_max);
        parts.pair.modify(attributes).map_err(&system)?;
        let peer = End {
            number: queue_pair,
            address,
        };
        Ok(self.connected(own, peer, path_mtu))
    }

    fn connected(&self, own: End, peer: End, path_mtu: u32) -> Connected {
        let (source, destination) = match self.role {
            Role::Source => (own, peer),
            Role::Destination => (peer, own),
        };
        Connected {
            identity: wire::identity(source, destination),
            window: Window::of(self.device.limits(), path_mtu, self.options.window_bytes),
        }
    }

    fn own_end(
        &self,
        parts: &Parts,
        attributes: &QueuePairAttributes,
        port: &PortState,
    ) -> Result<End, LaneError> {
        let doing = "connecting a queue pair";
        let own = attributes.own_address();
        let found = match own {
            OwnAddress::Global(index) => Some(index),
            OwnAddress::Local(_) => None,
        };
        if let Some(wanted) = self.options.gid_index
            && found != Some(wanted)
        {
            let none = || "none: packets stay in one subnet".to_owned();
            let error = RdmaError::OtherWay {
                address: self.address,
                what: "GID index",
                wanted: wanted.to_string(),
                found: found.map_or_else(none, |found| found.to_string()),
            };
            return Err(error.on(self.number, doing));
        }
        let address = match own {
            OwnAddress::Global(index) => self
                .device
                .global_id(attributes.port(), index)
                .map_err(|error| error.on(self.number, doing))?,
            OwnAddress::Local(bits) => port.local_address(bits),
        };
        Ok(End {
            number: parts.pair.number(),
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
