//! Dunlin's migration engine: moves a running guest from one host to another.
//!
//! The engine knows guests and lanes. It knows no socket, no verb and no flag.
//!
//! | room | what is in it |
//! |---|---|
//! | [`guest`] | what the engine asks of a VMM, on both sides |
//! | [`layout`] | the shape of guest memory, and what is behind it |
//! | [`dirty`] | which pages were written |
//! | [`state`] | device state: named, versioned sections with numbered fields |
//! | [`settings`] | what an operator decides, and the handle that steers a move |
//! | [`report`] | what is told of a move |
//! | [`protocol`] | the messages between the two sides, and their limits |
//! | [`session`] | who may say what when: pure state machines |
//! | [`source`] | the source's side of a move |
//! | [`destination`] | the destination's side |
//! | [`chunk`], [`runs`], [`zero`], [`untouched`], [`pacing`] | the way of a page, one step each |
//! | [`host`], [`affinity`] | the machine that this process runs on, and its CPUs |
//! | [`pin_budget`] | how much memory is registered with a device at once |
//! | [`clock`] | points in time that can be told to another process |
//! | [`telemetry`] | what a move measures of itself, and in what forms that is told |
//! | `kvm` | dirty tracking and vCPU/VM state of KVM guests |
//! | `process` | dirty tracking of a process's own memory |
//! | `vm_memory` | guest memory of VMMs that keep it in vm-memory's `GuestMemoryMmap` |

pub mod affinity;
pub mod chunk;
pub mod clock;
pub mod destination;
mod digest;
pub mod dirty;
pub mod guest;
pub mod host;
mod jobs;
#[cfg(feature = "kvm")]
pub mod kvm;
pub mod layout;
mod link;
pub mod milestone;
pub mod outside;
pub mod pacing;
pub mod pin_budget;
#[cfg(feature = "planted-delays")]
pub mod planted;
#[cfg(not(feature = "planted-delays"))]
mod planted;
#[cfg(feature = "process")]
pub mod process;
pub mod protocol;
pub mod records;
pub mod report;
pub mod runs;
pub mod session;
pub mod settings;
pub mod source;
pub mod state;
pub mod telemetry;
pub mod untouched;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;
pub mod zero;

// A guest with two owners is what this crate exists to prevent. The feature plants just that bug,
// for the model, the simulation and the chaos runs to find; it must reach nobody's machines.
#[cfg(all(feature = "planted-split-brain", not(debug_assertions)))]
compile_error!("planted-split-brain makes two owners of one guest: never in a release build");
