//! What a guest is made from.

use dunlin_engine::layout::Backing;
use uuid::Uuid;

use crate::workload::Workload;

/// The most vCPUs that the built-in guest has room for (a control page each).
pub const VCPUS_MAX: u32 = 64;

/// What a guest is made from.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    /// Its name; see [`dunlin_engine::guest::valid_guest_name`].
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its memory in bytes, a multiple of the page size (of the huge page size with hugetlb).
    pub memory_bytes: u64,
    /// Its vCPUs (or writing threads).
    pub vcpus: u32,
    /// What backs its memory.
    pub backing: Backing,
    /// What it does.
    pub workload: Workload,
    /// How its writes are tracked.
    pub tracking: DirtyTracking,
}

/// How a KVM guest's writes are tracked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirtyTracking {
    /// KVM's bitmap, with manual protect.
    Bitmap,
    /// KVM's ring.
    Ring,
    /// The bitmap, where it can be protected by hand; else the ring.
    #[default]
    Auto,
}
