//! Dirty tracking and vCPU/VM state of KVM guests, for any VMM on `kvm-ioctls`.
//!
//! | room | what is in it |
//! |---|---|
//! | `capabilities` | what this host's KVM can do, and which dirty tracking suits it |
//! | `slots` | guest memory as KVM's memory slots |
//! | `bitmap` | the dirty log as a bitmap, a [`DirtySource`](crate::dirty::DirtySource) |
//! | `ring` | the dirty log as a ring for each vCPU, a `DirtySource` |
//! | `ring_entries` | one vCPU's ring: its mapping, and reading it as KVM demands |
//! | `state` | what of a vCPU can be saved here, and in which order |
//! | `vcpu` | section `kvm.vcpu.N` |
//! | `msrs` | model-specific registers |
//! | `nested` | state of guests inside the guest |
//! | `time` | the TSC and kvmclock: the guest sees its own pause |
//! | `vm` | section `kvm.vm` |
//! | `platform` | sections `kvm.cpuid` and `kvm.platform`: told before the move |
//! | `abi` | kernel structs as bytes |
//! | `ioctl` | the calls that `kvm-ioctls` does not wrap |
//! | `uninterrupted` | a call into the kernel that no signal cuts short |
//!
//! The order of a move, for a VMM:
//!
//! 1. Before it: [`Platform::check`] and [`CpuidTables::check`] on the destination, then the VM,
//!    its vCPUs and their CPUID; [`StateAccess::new`] on both sides.
//! 2. Source, paused: [`StateAccess::save_vcpu`] of each vCPU, [`StateAccess::save_vm`].
//! 3. Destination: [`StateAccess::load_vcpu`] of each, then [`StateAccess::load_vm`], then
//!    [`VcpuTime::restore`] of each, vCPU 0 first, before any vCPU runs.
//! 4. Either side, before vCPUs go on after a pause: [`tell_paused`] for each.

mod abi;
mod bitmap;
mod capabilities;
mod error;
mod ioctl;
mod msrs;
mod nested;
mod platform;
mod realtime;
mod ring;
mod ring_entries;
mod slots;
mod state;
mod time;
mod uninterrupted;
mod vcpu;
mod vm;

pub use bitmap::KvmBitmap;
pub use capabilities::{Capabilities, Tracking, capabilities};
pub use error::KvmError;
pub use platform::{CpuidTables, Platform};
pub use ring::KvmRing;
pub use slots::KvmSlots;
pub use state::StateAccess;
pub use time::{ClockAdvance, VcpuTime, tell_paused};
