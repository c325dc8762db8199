//! Requests, and lists of them that are posted together.

use rdma_sys::{ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wr_opcode};

/// A range of this side's registered memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rdma) struct LocalPiece {
    pub(in crate::rdma) address: u64,
    pub(in crate::rdma) bytes: u32,
    pub(in crate::rdma) key: u32,
}

/// The longest message that travels in its request; the transport has none that is longer.
pub(in crate::rdma) const INLINE_BYTES_MAX: usize = 16;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rdma) enum Transfer {
    /// Writes `from` to the peer's memory.
    Write {
        from: LocalPiece,
        to_address: u64,
        to_key: u32,
    },
    /// Reads the peer's memory into `into`.
    Read {
        into: LocalPiece,
        from_address: u64,
        from_key: u32,
    },
    /// Sends a message from a registered buffer.
    Send(LocalPiece),
    /// Sends a message that the request itself carries.
    SendInline([u8; INLINE_BYTES_MAX]),
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rdma) struct Request {
    /// What its completion is known by.
    pub(in crate::rdma) id: u64,
    /// What it asks for.
    pub(in crate::rdma) transfer: Transfer,
    /// Whether it completes visibly when it succeeds.
    pub(in crate::rdma) signalled: bool,
}

/// Requests to be posted together. Keeps its memory from one use to the next.
pub(in crate::rdma) struct RequestList {
    requests: Vec<ibv_send_wr>,
    pieces: Vec<ibv_sge>,
    messages: Vec<[u8; INLINE_BYTES_MAX]>,
    capacity: usize,
}

// SAFETY: the pointers in the requests are set and followed within `QueuePair::post` only, which
// has the list exclusively; between two posts nobody reads them.
unsafe impl Send for RequestList {}

impl RequestList {
    /// A list of up to `capacity` requests.
    pub(in crate::rdma) fn new(capacity: usize) -> Self {
        Self {
            requests: Vec::with_capacity(capacity),
            pieces: Vec::with_capacity(capacity),
            messages: Vec::with_capacity(capacity),
            capacity,
        }
    }

    /// How many are in it.
    pub(in crate::rdma) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether it has to be posted before more fit.
    pub(in crate::rdma) fn is_full(&self) -> bool {
        self.requests.len() >= self.capacity
    }

    /// Empties the list.
    pub(in crate::rdma) fn clear(&mut self) {
        self.requests.clear();
        self.pieces.clear();
        self.messages.clear();
    }

    /// Makes the last request's completion visible.
    pub(in crate::rdma) fn signal_last(&mut self) {
        if let Some(last) = self.requests.last_mut() {
            last.send_flags |= ibv_send_flags::IBV_SEND_SIGNALED.0;
        }
    }

    /// Adds a request.
    pub(in crate::rdma) fn push(&mut self, request: Request) {
        // SAFETY: all zero is a valid `ibv_send_wr`: integers, null pointers, and unions of those.
        let mut raw: ibv_send_wr = unsafe { std::mem::zeroed() };
        raw.wr_id = request.id;
        raw.num_sge = 1;
        if request.signalled {
            raw.send_flags = ibv_send_flags::IBV_SEND_SIGNALED.0;
        }
        let mut message = [0; INLINE_BYTES_MAX];
        let piece = match request.transfer {
            Transfer::Write {
                from,
                to_address,
                to_key,
            } => {
                raw.opcode = ibv_wr_opcode::IBV_WR_RDMA_WRITE;
                raw.wr.rdma.remote_addr = to_address;
                raw.wr.rdma.rkey = to_key;
                from
            }
            Transfer::Read {
                into,
                from_address,
                from_key,
            } => {
                raw.opcode = ibv_wr_opcode::IBV_WR_RDMA_READ;
                raw.wr.rdma.remote_addr = from_address;
                raw.wr.rdma.rkey = from_key;
                into
            }
            Transfer::Send(piece) => {
                raw.opcode = ibv_wr_opcode::IBV_WR_SEND;
                piece
            }
            Transfer::SendInline(bytes) => {
                raw.opcode = ibv_wr_opcode::IBV_WR_SEND;
                raw.send_flags |= ibv_send_flags::IBV_SEND_INLINE.0;
                message = bytes;
                LocalPiece {
                    address: 0,
                    bytes: INLINE_BYTES_MAX as u32,
                    key: 0,
                }
            }
        };
        self.requests.push(raw);
        self.pieces.push(ibv_sge {
            addr: piece.address,
            length: piece.bytes,
            lkey: piece.key,
        });
        self.messages.push(message);
    }

    /// Chains the requests, points each to its piece, and returns the first: null if there is none.
    /// The chain is good until the list changes or moves.
    pub(super) fn link(&mut self) -> *mut ibv_send_wr {
        let mut next = std::ptr::null_mut();
        let parts = self.requests.iter_mut().zip(&mut self.pieces);
        for ((request, piece), message) in parts.zip(&mut self.messages).rev() {
            if request.send_flags & ibv_send_flags::IBV_SEND_INLINE.0 != 0 {
                piece.addr = message.as_mut_ptr() as u64;
            }
            request.sg_list = &raw mut *piece;
            request.next = next;
            next = &raw mut *request;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(id: u64) -> Request {
        Request {
            id,
            transfer: Transfer::Write {
                from: LocalPiece {
                    address: 4096 * id,
                    bytes: 4096,
                    key: 7,
                },
                to_address: id,
                to_key: 9,
            },
            signalled: false,
        }
    }

    #[test]
    fn a_list_is_one_chain_in_the_order_of_pushing() {
        let mut list = RequestList::new(3);
        list.push(write(1));
        list.push(write(2));
        list.push(Request {
            id: 3,
            transfer: Transfer::SendInline(*b"sixteen bytes ..."[..16].first_chunk().unwrap()),
            signalled: false,
        });
        assert!(list.is_full());
        list.signal_last();
        let mut at: *const ibv_send_wr = list.link();
        let mut seen = Vec::new();
        while !at.is_null() {
            // SAFETY: `link` chained the list's own requests.
            let request = unsafe { &*at };
            // SAFETY: and pointed each to its own piece.
            let piece = unsafe { &*request.sg_list };
            let is_signalled = request.send_flags & ibv_send_flags::IBV_SEND_SIGNALED.0 != 0;
            seen.push((request.wr_id, piece.length, is_signalled));
            if request.wr_id == 3 {
                // SAFETY: an inline request's piece points to the list's own message.
                let message = unsafe { std::slice::from_raw_parts(piece.addr as *const u8, 16) };
                assert_eq!(message, b"sixteen bytes ..");
            }
            at = request.next;
        }
        assert_eq!(seen, [(1, 4096, false), (2, 4096, false), (3, 16, true)]);
    }
}
