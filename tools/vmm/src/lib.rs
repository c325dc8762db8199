//! The VMM: a small virtual machine monitor whose guests can be moved.
//!
//! | room | what is in it |
//! |---|---|
//! | [`spec`] | what a guest is made from |
//! | [`size`] | sizes and rates as people write them |
//! | [`memory`] | allocating guest memory: memfd, huge pages, anonymous |
//! | [`workload`] | what the built-in guest does: its plan, its pages, its self-check |
//! | [`dirty_trace`] | which pages a guest made dirty in a move, and when |
//! | [`kvm_guest`] | a KVM virtual machine that runs the workload |
//! | [`process_guest`] | threads of this process that run the workload |
//! | `serial_queue` | between a guest that prints and whoever reads it |
//! | [`machine`] | either of the two, behind the engine's traits |

pub mod dirty_trace;
pub mod kvm_guest;
pub mod machine;
pub mod memory;
pub mod process_guest;
mod serial_queue;
pub mod size;
pub mod spec;
pub mod workload;
