//! With which settings a queue pair goes from state to state.

use std::ffi::{c_int, c_uint};

use rdma_sys::{ibv_access_flags, ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_state};

use super::GlobalId;

/// The states of a queue pair on its way to being connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rdma) enum NextState {
    /// INIT: receives can be posted.
    Initialized,
    /// RTR: it takes what the peer sends.
    ReadyToReceive,
    /// RTS: it sends.
    ReadyToSend,
}

impl NextState {
    pub(super) fn raw(self) -> c_uint {
        match self {
            Self::Initialized => ibv_qp_state::IBV_QPS_INIT,
            Self::ReadyToReceive => ibv_qp_state::IBV_QPS_RTR,
            Self::ReadyToSend => ibv_qp_state::IBV_QPS_RTS,
        }
    }
}

/// The attributes with which a queue pair goes to its next state.
pub(in crate::rdma) struct QueuePairAttributes {
    raw: ibv_qp_attr,
    mask: c_int,
}

impl QueuePairAttributes {
    pub(super) fn new(raw: ibv_qp_attr, mask: c_int) -> Self {
        Self { raw, mask }
    }

    pub(super) fn blank() -> ibv_qp_attr {
        // SAFETY: all zero is a valid `ibv_qp_attr`: integers throughout.
        unsafe { std::mem::zeroed() }
    }

    pub(super) fn raw_mut(&mut self) -> &mut ibv_qp_attr {
        &mut self.raw
    }

    pub(super) fn mask(&self) -> c_int {
        self.mask
    }

    fn set(&mut self, flag: ibv_qp_attr_mask) {
        self.mask |= flag.0 as c_int;
    }

    /// What the peer may do with memory that is registered for it.
    pub(in crate::rdma) fn let_peer(&mut self, read: bool, write: bool) {
        let mut flags = ibv_access_flags(0);
        if read {
            flags |= ibv_access_flags::IBV_ACCESS_REMOTE_READ;
        }
        if write {
            flags |= ibv_access_flags::IBV_ACCESS_REMOTE_WRITE;
        }
        self.raw.qp_access_flags = flags.0;
        self.set(ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS);
    }

    /// Which entry of the port's table of partitions is used.
    pub(in crate::rdma) fn set_partition(&mut self, index: u16) {
        self.raw.pkey_index = index;
        self.set(ibv_qp_attr_mask::IBV_QP_PKEY_INDEX);
    }

    /// How the packets are marked: traffic class, and service level.
    pub(in crate::rdma) fn set_marks(&mut self, traffic_class: Option<u8>, level: Option<u8>) {
        if let Some(class) = traffic_class {
            self.raw.ah_attr.grh.traffic_class = class;
        }
        if let Some(level) = level {
            self.raw.ah_attr.sl = level;
        }
    }

    /// The path MTU, as `enum ibv_mtu` counts.
    pub(in crate::rdma) fn path_mtu(&self) -> u32 {
        self.raw.path_mtu
    }

    /// Sets the path MTU, as `enum ibv_mtu` counts.
    pub(in crate::rdma) fn set_path_mtu(&mut self, mtu: u32) {
        self.raw.path_mtu = mtu;
        self.set(ibv_qp_attr_mask::IBV_QP_PATH_MTU);
    }

    /// How long the peer is told to wait when a message of its finds no buffer here: a code, see
    /// ibv_modify_qp(3).
    pub(in crate::rdma) fn set_buffer_wait(&mut self, code: u8) {
        self.raw.min_rnr_timer = code;
        self.set(ibv_qp_attr_mask::IBV_QP_MIN_RNR_TIMER);
    }

    /// When and how often to send again: the time limit's exponent, 4.096 µs times two to its power,
    /// and the two counts of [`ConnectParameters`].
    pub(in crate::rdma) fn set_retries(&mut self, exponent: u8, retries: u8, buffer_retries: u8) {
        self.raw.timeout = exponent;
        self.raw.retry_cnt = retries;
        self.raw.rnr_retry = buffer_retries;
        self.set(ibv_qp_attr_mask::IBV_QP_TIMEOUT);
        self.set(ibv_qp_attr_mask::IBV_QP_RETRY_CNT);
        self.set(ibv_qp_attr_mask::IBV_QP_RNR_RETRY);
    }

    /// No more reads at a time than this side's device can answer and have under way: where the peer
    /// connects, it is the peer's numbers that stand here.
    pub(in crate::rdma) fn limit_reads(&mut self, reads_in_max: u8, reads_out_max: u8) {
        self.raw.max_dest_rd_atomic = self.raw.max_dest_rd_atomic.min(reads_in_max);
        self.raw.max_rd_atomic = self.raw.max_rd_atomic.min(reads_out_max);
    }

    /// The peer's queue pair and address, for attributes of [`NextState::ReadyToReceive`].
    pub(in crate::rdma) fn peer(&self) -> (u32, GlobalId) {
        let address = &self.raw.ah_attr;
        let address = match address.is_global {
            0 => GlobalId::of_local(address.dlid),
            // SAFETY: both members of the union are 16 bytes without padding, all of them
            // initialised.
            _ => GlobalId(unsafe { address.grh.dgid.raw }),
        };
        (self.raw.dest_qp_num, address)
    }

    /// The port of this side's device.
    pub(in crate::rdma) fn port(&self) -> u8 {
        self.raw.ah_attr.port_num
    }

    /// By which of the port's addresses the peer knows this side.
    pub(in crate::rdma) fn own_address(&self) -> OwnAddress {
        let address = &self.raw.ah_attr;
        match address.is_global {
            0 => OwnAddress::Local(address.src_path_bits),
            _ => OwnAddress::Global(address.grh.sgid_index),
        }
    }
}

/// One of a port's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rdma) enum OwnAddress {
    /// The entry of its table of GIDs.
    Global(u8),
    /// Its LID with these low bits: packets that stay in one InfiniBand subnet have no global
    /// header, and no GID in them.
    Local(u8),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_packets_have_no_global_header_both_ends_go_by_their_lids() {
        let raw = QueuePairAttributes::blank();
        let mut attributes = QueuePairAttributes::new(raw, 0);
        let raw = attributes.raw_mut();
        raw.dest_qp_num = 7;
        raw.ah_attr.dlid = 0x0123;
        raw.ah_attr.src_path_bits = 1;
        assert_eq!(attributes.peer(), (7, GlobalId::of_local(0x0123)));
        assert_eq!(attributes.own_address(), OwnAddress::Local(1));

        let raw = attributes.raw_mut();
        raw.ah_attr.is_global = 1;
        raw.ah_attr.grh.sgid_index = 3;
        assert_eq!(attributes.peer(), (7, GlobalId([0; 16])));
        assert_eq!(attributes.own_address(), OwnAddress::Global(3));
    }
}
