//! What of a vCPU and a VM can be saved and restored here.
//!
//! Asked once, before the pause: which MSRs this KVM reads, how large an XSAVE area is, whether
//! there is nested state. In the pause only the calls that carry state are made.

use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::{KvmError, Platform, ioctl, msrs, vcpu, vm};
use crate::state::{DeviceState, Section};

/// Access to the state of one VM's vCPUs, and of the VM.
pub struct StateAccess {
    pub(super) vm: Arc<VmFd>,
    /// The MSRs that are read, without those that [`super::VcpuTime`] carries.
    pub(super) msrs: Vec<u32>,
    pub(super) has_tsc_deadline: bool,
    pub(super) xsave_bytes: usize,
    pub(super) nested_bytes_max: usize,
    pub(super) platform: Platform,
    /// The host's TSC frequency in kHz, where KVM can scale.
    pub(super) host_tsc_khz: Option<u32>,
}

impl StateAccess {
    /// Asks KVM what it reads. `vcpu` is any vCPU of `vm`, not running, its CPUID set; `platform`
    /// says which interrupt controllers the VM has.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn new(
        kvm: &Kvm,
        vm: Arc<VmFd>,
        vcpu: &VcpuFd,
        platform: Platform,
    ) -> Result<Self, KvmError> {
        let named = kvm
            .get_msr_index_list()
            .map_err(KvmError::system("listing MSRs"))?;
        let readable = msrs::read(vcpu, named.as_slice())?;
        let has = |wanted: u32| readable.iter().any(|(index, _)| *index == wanted);
        Ok(Self {
            has_tsc_deadline: has(msrs::IA32_TSC_DEADLINE),
            msrs: readable
                .iter()
                .map(|(index, _)| *index)
                .filter(|index| ![msrs::IA32_TSC, msrs::IA32_TSC_DEADLINE].contains(index))
                .collect(),
            xsave_bytes: ioctl::xsave_bytes(&vm).0,
            nested_bytes_max: ioctl::nested_bytes_max(&vm),
            host_tsc_khz: ioctl::vm_tsc_khz(&vm),
            platform,
            vm,
        })
    }

    /// Takes the section of vCPU `number` out of a guest's state.
    ///
    /// # Errors
    ///
    /// When it is missing or newer than this build reads.
    pub fn take_vcpu(state: &mut DeviceState, number: u32) -> Result<Section, KvmError> {
        Ok(state.require(&vcpu::section_name(number), vcpu::VERSION)?)
    }

    /// Takes the VM's section out of a guest's state.
    ///
    /// # Errors
    ///
    /// When it is missing or newer than this build reads.
    pub fn take_vm(state: &mut DeviceState) -> Result<Section, KvmError> {
        Ok(state.require(vm::NAME, vm::VERSION)?)
    }
}
