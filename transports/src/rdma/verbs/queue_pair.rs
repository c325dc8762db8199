//! Queue pairs: their states, and posting requests to them.

use std::ffi::c_int;
use std::io;
use std::sync::Arc;

use rdma_sys::{
    ibv_access_flags, ibv_post_recv, ibv_post_send, ibv_qp, ibv_qp_attr, ibv_qp_attr_mask,
    ibv_qp_cap, ibv_qp_init_attr, ibv_qp_state, ibv_qp_type, ibv_recv_wr, ibv_sge,
};

use super::{CompletionQueue, ProtectionDomain, QueuePairAttributes, RequestList, check_returned};

/// How long a queue pair's queues are.
#[derive(Clone, Copy, Debug)]
pub(in crate::rdma) struct QueuePairShape {
    /// Requests that may be under way.
    pub(in crate::rdma) sends: u32,
    /// Receives that may be posted.
    pub(in crate::rdma) receives: u32,
    /// Bytes that a request may carry in itself; a device may have less.
    pub(in crate::rdma) inline_bytes: u32,
}

/// A reliable connected queue pair.
pub(in crate::rdma) struct QueuePair {
    pair: *mut ibv_qp,
    inline_bytes: u32,
    _sends: Arc<CompletionQueue>,
    _receives: Arc<CompletionQueue>,
    domain: Arc<ProtectionDomain>,
}

// SAFETY: law 7.
unsafe impl Send for QueuePair {}
// SAFETY: law 7.
unsafe impl Sync for QueuePair {}

impl QueuePair {
    /// A new queue pair, in the state RESET.
    ///
    /// # Errors
    ///
    /// The system's, also where the device has no queues that long.
    pub(in crate::rdma) fn new(
        domain: &Arc<ProtectionDomain>,
        sends: &Arc<CompletionQueue>,
        receives: &Arc<CompletionQueue>,
        shape: QueuePairShape,
    ) -> io::Result<Self> {
        let mut attributes = ibv_qp_init_attr {
            qp_context: std::ptr::null_mut(),
            send_cq: sends.as_ptr(),
            recv_cq: receives.as_ptr(),
            srq: std::ptr::null_mut(),
            cap: ibv_qp_cap {
                max_send_wr: shape.sends,
                max_recv_wr: shape.receives,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: shape.inline_bytes,
            },
            qp_type: ibv_qp_type::IBV_QPT_RC,
            // Each request says whether its completion is wanted.
            sq_sig_all: 0,
        };
        let verbs = &domain.device().libraries.verbs;
        // SAFETY: domain and queues are there and of one device; the call reads `attributes` and
        // writes to `cap` what it made.
        let mut pair = unsafe { (verbs.ibv_create_qp)(domain.as_ptr(), &raw mut attributes) };
        if pair.is_null() && shape.inline_bytes > 0 {
            // A device without inline data refuses the whole; the messages go by a buffer then.
            attributes.cap.max_inline_data = 0;
            // SAFETY: as above.
            pair = unsafe { (verbs.ibv_create_qp)(domain.as_ptr(), &raw mut attributes) };
        }
        if pair.is_null() {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            pair,
            inline_bytes: attributes.cap.max_inline_data,
            _sends: Arc::clone(sends),
            _receives: Arc::clone(receives),
            domain: Arc::clone(domain),
        })
    }

    /// Its number, by which the peer's device names it.
    pub(in crate::rdma) fn number(&self) -> u32 {
        // SAFETY: the pair is there, and its number does not change.
        unsafe { (*self.pair).qp_num }
    }

    /// How many bytes a request may carry in itself.
    pub(in crate::rdma) fn inline_bytes(&self) -> u32 {
        self.inline_bytes
    }

    /// Goes to the state that the attributes name.
    ///
    /// # Errors
    ///
    /// When the device does not take them.
    pub(in crate::rdma) fn modify(&self, mut attributes: QueuePairAttributes) -> io::Result<()> {
        let mask = attributes.mask();
        self.modify_raw(attributes.raw_mut(), mask)
    }

    fn modify_raw(&self, raw: &mut ibv_qp_attr, mask: c_int) -> io::Result<()> {
        // SAFETY: the pair is there, and `raw` holds what `mask` says; the call only reads it.
        let result = unsafe {
            (self.domain.device().libraries.verbs.ibv_modify_qp)(self.pair, &raw mut *raw, mask)
        };
        check_returned(result)
    }

    /// Opens memory registered for the peer's writes to it, or closes it. For a connected pair.
    ///
    /// # Errors
    ///
    /// The device's.
    pub(in crate::rdma) fn let_peer_write(&self, open: bool) -> io::Result<()> {
        let mut raw = QueuePairAttributes::blank();
        raw.qp_access_flags = if open {
            ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0
        } else {
            0
        };
        self.modify_raw(&mut raw, ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS.0 as c_int)
    }

    /// Ends it: from when this returns the device carries out nothing of the peer's any more, and
    /// all requests that wait complete as flushed. May be called in any state but RESET, and again.
    ///
    /// # Errors
    ///
    /// The device's; a device that is gone carries nothing out either.
    pub(in crate::rdma) fn end(&self) -> io::Result<()> {
        let mut raw = QueuePairAttributes::blank();
        raw.qp_state = ibv_qp_state::IBV_QPS_ERR;
        self.modify_raw(&mut raw, ibv_qp_attr_mask::IBV_QP_STATE.0 as c_int)
    }

    /// Posts a buffer for one message of the peer's: `bytes` bytes at `address` of the registration
    /// with `key`.
    ///
    /// # Errors
    ///
    /// When the queue is full or the pair not set up.
    pub(in crate::rdma) fn post_receive(
        &self,
        id: u64,
        address: u64,
        bytes: u32,
        key: u32,
    ) -> io::Result<()> {
        let mut piece = ibv_sge {
            addr: address,
            length: bytes,
            lkey: key,
        };
        let mut request = ibv_recv_wr {
            wr_id: id,
            next: std::ptr::null_mut(),
            sg_list: &raw mut piece,
            num_sge: 1,
        };
        let mut refused = std::ptr::null_mut();
        // SAFETY: the pair is there, its function was checked when the device was opened, and the
        // request and its piece are read during the call only. What the device may write is checked
        // against the registration: law 1.
        let result = unsafe { ibv_post_recv(self.pair, &raw mut request, &raw mut refused) };
        check_returned(result)
    }

    /// Posts all requests of a list, with one doorbell, and empties the list.
    ///
    /// # Errors
    ///
    /// When the queue is full or the pair is not connected; some of the requests may be under way.
    pub(in crate::rdma) fn post(&self, list: &mut RequestList) -> io::Result<()> {
        let first = list.link();
        if first.is_null() {
            return Ok(());
        }
        let mut refused = std::ptr::null_mut();
        // SAFETY: the pair is there and its function was checked when the device was opened. `link`
        // has just made of the list's requests a chain that ends with a null pointer, each with its
        // own piece; the list, held exclusively, stays as it is until the call returns, and the
        // device's queue holds copies afterwards. Memory that the requests name is checked by the
        // device: law 1; but an inline request's bytes are read here, and those are the list's own.
        let result = unsafe { ibv_post_send(self.pair, first, &raw mut refused) };
        list.clear();
        check_returned(result)
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: law 3: nothing was made from it; law 5: its events were acknowledged.
        unsafe { (self.domain.device().libraries.verbs.ibv_destroy_qp)(self.pair) };
    }
}
