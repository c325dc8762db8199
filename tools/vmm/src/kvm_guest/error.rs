//! Why a KVM guest can't be made, or fails.

use std::io;
use std::time::Duration;

use dunlin_engine::guest::GuestError;
use dunlin_engine::kvm::KvmError;
use dunlin_engine::state::StateError;
use dunlin_transports::memory::MemoryError;
use thiserror::Error;

use crate::memory::AllocateError;
use crate::spec::VCPUS_MAX;
use crate::workload::plan::PlanError;

/// Why a guest can't be made, or fails.
#[derive(Debug, Error)]
pub enum KvmGuestError {
    /// KVM refused something of the engine's.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The kernel refused a call of the VMM's own.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Its memory can't be had.
    #[error(transparent)]
    Allocate(#[from] AllocateError),
    /// The workload does not fit.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The state or the configuration of an incoming guest is not right.
    #[error(transparent)]
    State(#[from] StateError),
    /// Memory is not where it should be.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The offer is for something else.
    #[error("a guest of kind '{0}' can't be run by KVM")]
    Kind(String),
    /// Too few or too many vCPUs.
    #[error("{0} vCPUs: the built-in guest has 1 to {VCPUS_MAX}")]
    Vcpus(u32),
    /// A vCPU did not stop in time.
    #[error("vCPU {vcpu} was not parked within {} ms", waited.as_millis())]
    NotParked {
        /// Which vCPU.
        vcpu: u32,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A vCPU did not begin to run in time.
    #[error("vCPU {vcpu} was not entered within {} ms", waited.as_millis())]
    NotEntered {
        /// Which vCPU.
        vcpu: u32,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A vCPU can't run any more.
    #[error("vCPU {vcpu} has crashed: {reason}")]
    Crashed {
        /// Which vCPU.
        vcpu: u32,
        /// Why, with its registers.
        reason: String,
    },
    /// A thread that saved or loaded vCPUs panicked.
    #[error("a thread that saves or loads the state of vCPUs panicked")]
    StateThread,
    /// The guest's state is to be read or set while it runs.
    #[error("vCPU {0} is running; pause the guest first")]
    Running(u32),
}

impl KvmGuestError {
    /// For `map_err` behind a call of `kvm-ioctls`.
    pub(super) fn system(doing: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::System {
            doing,
            source: error.into(),
        }
    }

    /// For `map_err` behind a call of the standard library.
    pub(super) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { doing, source }
    }
}

impl From<KvmGuestError> for GuestError {
    fn from(error: KvmGuestError) -> Self {
        Self::message(error.to_string())
    }
}
