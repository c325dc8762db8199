//! Dirty tracking of a process's own memory, for guests that are threads of the VMM's process.
//!
//! Asynchronous userfaultfd write-protect marks what is written, `PAGEMAP_SCAN` reads the marks and
//! sets them back, both by the kernel alone: no signal, no handler thread, no message.
//!
//! | room | what is in it |
//! |---|---|
//! | `tracker` | [`ProcessMemoryTracker`], the source of dirty bits |
//! | `userfaultfd` | the kernel's calls, typed |

#[cfg(test)]
mod tests;
mod tracker;
mod userfaultfd;

pub use tracker::ProcessMemoryTracker;
pub use userfaultfd::TrackingError;
