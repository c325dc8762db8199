//! rdma_cm: from an IP address to a connected queue pair.
//!
//! Queue pairs are made and moved from state to state by this transport, not by librdmacm: it knows
//! the addresses, and this side decides about time limits, retries and access. So a queue pair's
//! registrations, events and domain are those of the session's own device, whoever connected it.
//! Over iWARP it is the kernel that moves them, but for INIT.

use std::ffi::{c_int, c_void};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rdma_sys::{rdma_cm_id, rdma_conn_param, rdma_port_space};

use super::address::{RawAddress, any_port};
use super::device::text;
use super::{EventChannel, NextState, QueuePairAttributes, check};

/// rdma_cm's level and name of the option for the traffic class (rdma/rdma_cma.h).
const OPTION_LEVEL_ID: c_int = 0;
const OPTION_TOS: c_int = 0;

/// What both sides of a connection tell each other when they make it.
#[derive(Clone, Copy, Debug)]
pub(in crate::rdma) struct ConnectParameters<'a> {
    /// This side's queue pair.
    pub(in crate::rdma) queue_pair: u32,
    /// What the peer gets to read, in the clear: at most 56 bytes in a request.
    pub(in crate::rdma) private_data: &'a [u8],
    /// How many reads of the peer's this side answers at a time.
    pub(in crate::rdma) reads_in: u8,
    /// How many reads this side has under way.
    pub(in crate::rdma) reads_out: u8,
    /// How often the device sends again what is not answered, 0 to 7.
    pub(in crate::rdma) retries: u8,
    /// How often it sends again what the peer has no buffer for, 0 to 6 (7 is for ever).
    pub(in crate::rdma) buffer_retries: u8,
}

impl ConnectParameters<'_> {
    fn raw(&self) -> rdma_conn_param {
        rdma_conn_param {
            private_data: self.private_data.as_ptr().cast(),
            private_data_len: u8::try_from(self.private_data.len()).unwrap_or(u8::MAX),
            responder_resources: self.reads_in,
            initiator_depth: self.reads_out,
            flow_control: 1,
            retry_count: self.retries,
            rnr_retry_count: self.buffer_retries,
            srq: 0,
            qp_num: self.queue_pair,
        }
    }
}

/// One connection of rdma_cm, or a listener.
pub(in crate::rdma) struct ConnectionId {
    id: *mut rdma_cm_id,
    channel: Arc<EventChannel>,
}

// SAFETY: law 7.
unsafe impl Send for ConnectionId {}
// SAFETY: law 7.
unsafe impl Sync for ConnectionId {}

impl ConnectionId {
    /// A new connection on a channel, not yet to anywhere.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(in crate::rdma) fn new(channel: &Arc<EventChannel>) -> io::Result<Self> {
        let mut id = std::ptr::null_mut();
        // SAFETY: the channel is there and `id` is a place for the answer.
        let result = unsafe {
            (channel.libraries.connection_manager.rdma_create_id)(
                channel.as_ptr(),
                &raw mut id,
                std::ptr::null_mut(),
                rdma_port_space::RDMA_PS_TCP,
            )
        };
        check(result)?;
        Ok(Self {
            id,
            channel: Arc::clone(channel),
        })
    }

    /// Takes over the connection that a request brought.
    ///
    /// # Safety
    ///
    /// `id` came with a request on `channel`, and has no other owner.
    pub(super) unsafe fn from_request(
        channel: &Arc<EventChannel>,
        id: *mut rdma_cm_id,
    ) -> Option<Self> {
        (!id.is_null()).then(|| Self {
            id,
            channel: Arc::clone(channel),
        })
    }

    /// Listens at an address; port 0 lets the system choose.
    ///
    /// # Errors
    ///
    /// The system's: the address is nobody's here, or no RDMA device has it.
    pub(in crate::rdma) fn listen(&self, address: SocketAddr, backlog: u16) -> io::Result<()> {
        let functions = &self.channel.libraries.connection_manager;
        let mut raw = RawAddress::new(address);
        // SAFETY: the connection is there; the address is read during the call.
        check(unsafe { (functions.rdma_bind_addr)(self.id, raw.as_mut_ptr()) })?;
        // SAFETY: the connection is there.
        check(unsafe { (functions.rdma_listen)(self.id, backlog.into()) })
    }

    /// Binds to one of this host's addresses, which leads to the device that has it.
    ///
    /// # Errors
    ///
    /// The system's: the address is nobody's here, or no RDMA device has it.
    pub(in crate::rdma) fn bind(&self, address: IpAddr) -> io::Result<()> {
        let mut raw = RawAddress::new(any_port(address));
        // SAFETY: the connection is there; the address is read during the call.
        check(unsafe {
            (self.channel.libraries.connection_manager.rdma_bind_addr)(self.id, raw.as_mut_ptr())
        })
    }

    /// The port that a listener got.
    pub(in crate::rdma) fn port(&self) -> u16 {
        // SAFETY: the connection is there.
        let port =
            unsafe { (self.channel.libraries.connection_manager.rdma_get_src_port)(self.id) };
        u16::from_be(port)
    }

    /// This side's address and port, and the peer's: once the address is resolved, or of a request.
    /// Over iWARP they are those of the TCP connection.
    pub(in crate::rdma) fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        // SAFETY: the connection is there. Both places are unions as large and as aligned as a
        // `sockaddr_storage`, all zero until librdmacm fills them in, with the family first; zero
        // is no family that is read.
        unsafe {
            let route = &raw const (*self.id).route.addr;
            let own = RawAddress::read((&raw const (*route).src_addr_union).cast())?;
            let peer = RawAddress::read((&raw const (*route).dst_addr_union).cast())?;
            Some((own, peer))
        }
    }

    /// The name of the device that an address led to, and the number of its port; `None` before.
    pub(in crate::rdma) fn device(&self) -> Option<(String, u8)> {
        // SAFETY: the connection is there; its context and that one's device are null or of an open
        // device, which librdmacm keeps for as long as the connection.
        unsafe {
            let context = (*self.id).verbs.as_ref()?;
            let device = context.device.as_ref()?;
            Some((text(&device.name), (*self.id).port_num))
        }
    }

    /// Sets the traffic class of what the connection itself sends, and of its queue pair.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(in crate::rdma) fn set_traffic_class(&self, class: u8) -> io::Result<()> {
        let mut class = class;
        // SAFETY: the connection is there; the option is one byte, read during the call.
        check(unsafe {
            (self.channel.libraries.connection_manager.rdma_set_option)(
                self.id,
                OPTION_LEVEL_ID,
                OPTION_TOS,
                (&raw mut class).cast::<c_void>(),
                size_of::<u8>(),
            )
        })
    }

    /// Looks for the device that leads to an address; answered by an event.
    ///
    /// # Errors
    ///
    /// The system's, where it knows at once.
    pub(in crate::rdma) fn resolve_address(
        &self,
        from: Option<IpAddr>,
        to: SocketAddr,
        limit_ms: u32,
    ) -> io::Result<()> {
        let mut from = from.map(|address| RawAddress::new(any_port(address)));
        let mut to = RawAddress::new(to);
        let source = from
            .as_mut()
            .map_or(std::ptr::null_mut(), RawAddress::as_mut_ptr);
        // SAFETY: the connection is there; the addresses are read during the call, and a null
        // source leaves the choice to the system.
        check(unsafe {
            (self.channel.libraries.connection_manager.rdma_resolve_addr)(
                self.id,
                source,
                to.as_mut_ptr(),
                c_int::try_from(limit_ms).unwrap_or(c_int::MAX),
            )
        })
    }

    /// Looks for the way there; answered by an event.
    ///
    /// # Errors
    ///
    /// The system's, where it knows at once.
    pub(in crate::rdma) fn resolve_route(&self, limit_ms: u32) -> io::Result<()> {
        // SAFETY: the connection is there.
        check(unsafe {
            (self.channel.libraries.connection_manager.rdma_resolve_route)(
                self.id,
                c_int::try_from(limit_ms).unwrap_or(c_int::MAX),
            )
        })
    }

    /// What a queue pair needs in order to go to the next state of this connection.
    ///
    /// # Errors
    ///
    /// When the connection is not that far.
    pub(in crate::rdma) fn attributes(&self, state: NextState) -> io::Result<QueuePairAttributes> {
        let mut raw = QueuePairAttributes::blank();
        raw.qp_state = state.raw();
        let mut mask = 0;
        // SAFETY: the connection is there; `raw` names the state and is, with `mask`, the place for
        // the answer.
        check(unsafe {
            (self.channel.libraries.connection_manager.rdma_init_qp_attr)(
                self.id,
                &raw mut raw,
                &raw mut mask,
            )
        })?;
        Ok(QueuePairAttributes::new(raw, mask))
    }

    /// Asks the peer for the connection; answered by an event.
    ///
    /// Over iWARP the kernel waits here until TCP is connected (`kernel_bindconnect`, Linux,
    /// siw_cm.c): as long as TCP sends SYN again, some 2 minutes, where nothing answers at all.
    /// And it lets nobody drop the connection before the peer or the driver's own time limit, 10 s
    /// with siw, has answered (`IWCM_F_CONNECT_WAIT`, iwcm.c).
    ///
    /// # Errors
    ///
    /// The system's, where it knows at once.
    pub(in crate::rdma) fn connect(&self, parameters: ConnectParameters<'_>) -> io::Result<()> {
        let mut raw = parameters.raw();
        // SAFETY: the connection is there; the parameters and the data that they point to are read
        // during the call.
        check(unsafe {
            (self.channel.libraries.connection_manager.rdma_connect)(self.id, &raw mut raw)
        })
    }

    /// Confirms the peer's answer.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(in crate::rdma) fn establish(&self) -> io::Result<()> {
        // SAFETY: the connection is there.
        check(unsafe { (self.channel.libraries.connection_manager.rdma_establish)(self.id) })
    }

    /// Accepts what a request asks for.
    ///
    /// # Errors
    ///
    /// The system's, also where the peer has given up meanwhile.
    pub(in crate::rdma) fn accept(&self, parameters: ConnectParameters<'_>) -> io::Result<()> {
        let mut raw = parameters.raw();
        // SAFETY: as for `connect`.
        check(unsafe {
            (self.channel.libraries.connection_manager.rdma_accept)(self.id, &raw mut raw)
        })
    }

    /// Refuses what a request asks for, and says why.
    ///
    /// # Errors
    ///
    /// The system's, also where the peer has given up meanwhile.
    pub(in crate::rdma) fn reject(&self, private_data: &[u8]) -> io::Result<()> {
        let bytes = u8::try_from(private_data.len()).unwrap_or(u8::MAX);
        // SAFETY: the connection is there; the data are read during the call.
        check(unsafe {
            (self.channel.libraries.connection_manager.rdma_reject)(
                self.id,
                private_data.as_ptr().cast(),
                bytes,
            )
        })
    }

    /// Tells the peer that this side is done. Fails, without harm, where there is no connection any
    /// more.
    pub(in crate::rdma) fn disconnect(&self) {
        // SAFETY: the connection is there.
        unsafe { (self.channel.libraries.connection_manager.rdma_disconnect)(self.id) };
    }

    /// Moves the connection to a channel of its own, so that its events come there.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(in crate::rdma) fn move_to(mut self, channel: &Arc<EventChannel>) -> io::Result<Self> {
        // SAFETY: connection and channel are there. The call waits until the connection's events on
        // the old channel are acknowledged, and they are: law 5.
        check(unsafe {
            (channel.libraries.connection_manager.rdma_migrate_id)(self.id, channel.as_ptr())
        })?;
        self.channel = Arc::clone(channel);
        Ok(self)
    }

    /// Its channel.
    pub(in crate::rdma) fn channel(&self) -> &Arc<EventChannel> {
        &self.channel
    }
}

impl Drop for ConnectionId {
    fn drop(&mut self) {
        // SAFETY: the connection belongs to this value; its events were acknowledged: law 5. The
        // queue pair is not librdmacm's.
        unsafe { (self.channel.libraries.connection_manager.rdma_destroy_id)(self.id) };
    }
}
