//! Which pages the guest wrote: the bitmap, and the trait of everything that fills one.

mod bitmap;
mod marked;

pub use bitmap::DirtyBitmap;
pub use marked::MarkedPages;

use dunlin_transports::memory::PageNumber;

use crate::guest::GuestError;

/// Something that knows which pages were written. A guest has a list of them; the engine takes the
/// union.
///
/// The contract behind law 1 (collect before reading):
///
/// - A write that happens after `start` returned is reported by some later `collect`, at least once
///   after the write.
/// - A page that `collect` reported is reported again if it is written after it was re-armed: after
///   `rearm` of it returned, or after `collect` returned where the source re-arms by itself
///   ([`DirtySource::rearms_on_collect`]).
/// - `rearm` forgets only writes to pages that are set in its argument.
///
/// Methods may be called from several threads; the engine calls `collect` from one at a time, and
/// `rearm` from all lanes at once, for pages that do not overlap.
pub trait DirtySource: Send + Sync {
    /// The source's name in reports: `kvm-bitmap`, `kvm-ring`, `vmm`, `process`.
    fn name(&self) -> &'static str;

    /// Starts tracking. Pages written before need not be reported: the first round takes them all.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    fn start(&self) -> Result<(), GuestError>;

    /// ORs into `into` every page written since it was last re-armed.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. Nothing that was written is forgotten then.
    fn collect(&self, into: &mut DirtyBitmap) -> Result<(), GuestError>;

    /// Whether `collect` re-arms what it reports, so that `rearm` has nothing to do.
    fn rearms_on_collect(&self) -> bool;

    /// Re-arms tracking for the pages whose bits are set in `words`: bit `b` of word `w` stands for
    /// page `first + 64 w + b`. `first` is a multiple of 64; set bits are pages that `collect`
    /// reported (or, in the first round, any page of the layout); the words stay inside the
    /// region's share of the bitmap.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    fn rearm(&self, first: PageNumber, words: &[u64]) -> Result<(), GuestError>;

    /// Stops tracking and frees what it took. May be called when not started.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    fn stop(&self) -> Result<(), GuestError>;
}
