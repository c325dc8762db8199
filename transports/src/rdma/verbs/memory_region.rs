//! Protection domains, and registrations of memory in them.

use std::io;
use std::sync::Arc;

use rdma_sys::{ibv_access_flags, ibv_mr, ibv_pd};

use super::{Device, DeviceKind, LocalPiece, check_returned};
use crate::memory::{MemoryError, MemoryMap, PAGE_BYTES, PageNumber, Run};

/// The boundary to which addresses on the wire keep their place in memory: 1 GiB, the largest page
/// of x86-64. A device can then map a registration with the pages that its memory has.
const PAGE_BYTES_MAX: u64 = 1 << 30;

/// What a registration is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rdma) enum Access {
    /// This side's device reads it, to send it.
    Send,
    /// The same, out of memory that is not pinned: the device has its pages made present when it
    /// comes to them. Only where [`Device::lacks_for_paging`] says nothing.
    SendOnDemand,
    /// This side's device writes it: what it receives.
    Receive,
    /// The peer writes it.
    PeerWrites,
    /// The peer reads it.
    PeerReads,
}

/// # Relaxed ordering
///
/// Guest memory is registered with `IBV_ACCESS_RELAXED_ORDERING`: transfers may then pass each other
/// on the bus, where device and bus gain by that (ibv_reg_mr(3)). The flag is in the range of those
/// that are optional: `ibv_reg_mr_iova2` leaves it out where the kernel does not know such flags,
/// and a driver ignores those that it does not have.
///
/// What it takes away is the order of writes to memory, also on one queue pair: the earlier of two
/// writes to one page may stay. So no page is put twice between two fences (the rule of
/// `crate::lane`, and law 2 of the engine). What it leaves alone is what a completion means: all
/// data that came before it is visible, earlier transfers' included (the same page). A fence is a
/// completed receive, found in its completion queue; so fences need nothing of the writes' order.
/// The messages' own buffers are registered without the flag, and no memory is ever polled.
impl Access {
    fn flags(self) -> u32 {
        let flags = match self {
            // Local reads need no permission.
            Self::Send => ibv_access_flags::IBV_ACCESS_RELAXED_ORDERING,
            // No relaxed ordering: with paging it is the faults that take time.
            Self::SendOnDemand => ibv_access_flags::IBV_ACCESS_ON_DEMAND,
            // Messages: never relaxed, see below.
            Self::Receive => ibv_access_flags::IBV_ACCESS_LOCAL_WRITE,
            // Never `ON_DEMAND`: the peer could then reach pages that nobody registered.
            Self::PeerWrites => {
                ibv_access_flags::IBV_ACCESS_LOCAL_WRITE
                    | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
                    | ibv_access_flags::IBV_ACCESS_RELAXED_ORDERING
            }
            Self::PeerReads => {
                ibv_access_flags::IBV_ACCESS_REMOTE_READ
                    | ibv_access_flags::IBV_ACCESS_RELAXED_ORDERING
            }
        };
        flags.0
    }
}

/// A protection domain: keys of one are of no use in another.
pub(in crate::rdma) struct ProtectionDomain {
    domain: *mut ibv_pd,
    device: Arc<Device>,
}

// SAFETY: law 7.
unsafe impl Send for ProtectionDomain {}
// SAFETY: law 7.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    /// A new domain on a device.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(in crate::rdma) fn new(device: &Arc<Device>) -> io::Result<Arc<Self>> {
        // SAFETY: the context is open.
        let domain = unsafe { (device.libraries.verbs.ibv_alloc_pd)(device.context()) };
        if domain.is_null() {
            return Err(io::Error::last_os_error());
        }
        Ok(Arc::new(Self {
            domain,
            device: Arc::clone(device),
        }))
    }

    pub(super) fn as_ptr(&self) -> *mut ibv_pd {
        self.domain
    }

    /// Its device.
    pub(in crate::rdma) fn device(&self) -> &Arc<Device> {
        &self.device
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: law 3: registrations and queue pairs in the domain held it and are gone.
        unsafe { (self.device.libraries.verbs.ibv_dealloc_pd)(self.domain) };
    }
}

/// Why memory was not registered.
#[derive(Debug)]
pub(in crate::rdma) enum RegisterError {
    /// The range is not inside one region of the map.
    Memory(MemoryError),
    /// The system's or the device's reason.
    System(io::Error),
}

/// A registration: a range of memory, pinned, that a device may reach under a key.
pub(in crate::rdma) struct MemoryRegion {
    region: *mut ibv_mr,
    address: u64,
    range: Run,
    domain: Arc<ProtectionDomain>,
    /// Whether it is deregistered: only for `end` to tell `Drop`.
    is_ended: bool,
    /// Keeps the range mapped: law 2.
    _memory: MemoryMap,
}

// SAFETY: law 7; the memory behind it is raw to everybody.
unsafe impl Send for MemoryRegion {}
// SAFETY: as for `Send`.
unsafe impl Sync for MemoryRegion {}

impl MemoryRegion {
    /// Registers `range` of `memory`. This pins its pages, and so makes those present that were
    /// not; it takes some 0.1 s for each GiB of small pages.
    ///
    /// # Errors
    ///
    /// When the range is not guest memory, or the system or the device refuses.
    pub(in crate::rdma) fn register(
        domain: &Arc<ProtectionDomain>,
        memory: &MemoryMap,
        range: Run,
        access: Access,
    ) -> Result<Self, RegisterError> {
        let base = memory.host_address(range).map_err(RegisterError::Memory)?;
        let length = usize::try_from(range.bytes())
            .map_err(|error| RegisterError::System(io::Error::other(error)))?;
        // Each registration has its own addresses, told apart by the key. The peer learns where in
        // a page of up to 1 GiB the range is, and nothing of where this process has it. But siw
        // knows no addresses than this process's own: it does not look at what it is asked for
        // (`rnic_va` in `siw_reg_user_mr`, Linux, siw_verbs.c), and other iWARP devices take them.
        let address = match domain.device.kind() {
            DeviceKind::InfiniBand => base as u64 % PAGE_BYTES_MAX,
            DeviceKind::Iwarp => base as u64,
        };
        // SAFETY: `host_address` checked that `length` bytes are mapped at `base`; the map, held
        // below for as long as the registration, keeps them so. They are raw memory: law 1.
        let region = unsafe {
            (domain.device.libraries.verbs.ibv_reg_mr_iova2)(
                domain.domain,
                base.cast(),
                length,
                address,
                access.flags(),
            )
        };
        if region.is_null() {
            return Err(RegisterError::System(io::Error::last_os_error()));
        }
        Ok(Self {
            region,
            address,
            range,
            domain: Arc::clone(domain),
            is_ended: false,
            _memory: memory.clone(),
        })
    }

    /// The range that is registered.
    pub(in crate::rdma) fn range(&self) -> Run {
        self.range
    }

    /// The address of the range's first byte, as requests name it.
    pub(in crate::rdma) fn address(&self) -> u64 {
        self.address
    }

    /// Part of the range, from `first` on, as this side's requests name it. Pages beside the range
    /// yield an address that the device refuses.
    pub(in crate::rdma) fn piece(&self, first: PageNumber, pages: u32) -> LocalPiece {
        let skipped = first.0.wrapping_sub(self.range.first.0);
        LocalPiece {
            address: self.address.wrapping_add(skipped.wrapping_mul(PAGE_BYTES)),
            bytes: pages.saturating_mul(PAGE_BYTES as u32),
            key: self.local_key(),
        }
    }

    /// The key for requests of this side.
    pub(in crate::rdma) fn local_key(&self) -> u32 {
        // SAFETY: the region lives until `self` is dropped, and the key does not change.
        unsafe { (*self.region).lkey }
    }

    /// The key for requests of the peer.
    pub(in crate::rdma) fn remote_key(&self) -> u32 {
        // SAFETY: as for `local_key`.
        unsafe { (*self.region).rkey }
    }

    /// Ends the registration: the device does not touch its memory once this has returned, which is
    /// no longer pinned (siw lets the packet that it is copying be, and its pages pinned until then). Dropping does the same, and tells nobody when it fails.
    ///
    /// # Errors
    ///
    /// The system's or the device's reason, with the registration: it is still there, and its pages
    /// are still pinned.
    pub(in crate::rdma) fn end(mut self) -> Result<(), (Self, io::Error)> {
        match self.deregister() {
            Ok(()) => {
                self.is_ended = true;
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }

    /// Only for `end` and `Drop`: once it has succeeded the value may only be dropped.
    fn deregister(&self) -> io::Result<()> {
        // SAFETY: the region came from `ibv_reg_mr_iova2` and belongs to this value. Where this
        // succeeds the value goes, and `is_ended` keeps `Drop` from doing it again; where it fails
        // the library keeps the region as it was. The mapping goes after.
        check_returned(unsafe { (self.domain.device.libraries.verbs.ibv_dereg_mr)(self.region) })
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        if !self.is_ended {
            // If this is refused the pages stay pinned, and so nobody else's.
            let _ = self.deregister();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_peer_reaches_has_remote_access_and_that_is_pinned() {
        let has = |access: Access, flag: ibv_access_flags| access.flags() & flag.0 != 0;
        for (access, peer_writes, peer_reads, is_paged, is_relaxed) in [
            (Access::Send, false, false, false, true),
            (Access::SendOnDemand, false, false, true, false),
            (Access::Receive, false, false, false, false),
            (Access::PeerWrites, true, false, false, true),
            (Access::PeerReads, false, true, false, true),
        ] {
            let found = (
                has(access, ibv_access_flags::IBV_ACCESS_REMOTE_WRITE),
                has(access, ibv_access_flags::IBV_ACCESS_REMOTE_READ),
                has(access, ibv_access_flags::IBV_ACCESS_ON_DEMAND),
                has(access, ibv_access_flags::IBV_ACCESS_RELAXED_ORDERING),
            );
            let expected = (peer_writes, peer_reads, is_paged, is_relaxed);
            assert_eq!(found, expected, "{access:?}");
        }
        // One of the optional flags, bits 20 to 29 (`IBV_ACCESS_OPTIONAL_RANGE`, verbs.h): without
        // support it is left out, and registering does not fail.
        let relaxed = ibv_access_flags::IBV_ACCESS_RELAXED_ORDERING.0;
        assert_eq!(relaxed & 0x3ff0_0000, relaxed);
    }
}
