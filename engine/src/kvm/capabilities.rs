//! What this host's KVM can do, in plain numbers: for `dunlin doctor`, and for choosing how to
//! track writes.

use kvm_bindings::{
    KVM_CAP_ADJUST_CLOCK, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_CAP_NESTED_STATE, KVM_CAP_TSC_CONTROL, KVM_CAP_XSAVE2, KVM_CLOCK_HOST_TSC,
    KVM_CLOCK_REALTIME, KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
};
use kvm_ioctls::Kvm;

use super::KvmError;

/// How a guest's writes are tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// [`super::KvmBitmap`].
    Bitmap,
    /// [`super::KvmRing`].
    Ring,
}

/// What this host's KVM can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The version of its interface; 12 since 2007.
    pub api_version: i32,
    /// The most vCPUs that a VM may have.
    pub vcpus_max: usize,
    /// The most memory slots that a VM may have.
    pub memory_slots_max: usize,
    /// Whether dirty pages are re-protected by hand, in granules.
    pub manual_protect: bool,
    /// Whether a slot's log can start with all bits set, so that starting costs nothing.
    pub log_initially_set: bool,
    /// The largest dirty ring of a vCPU in bytes; 0 where there is none.
    pub ring_bytes_max: u32,
    /// Whether KVM can give a guest another TSC frequency than the host's.
    pub tsc_control: bool,
    /// Whether kvmclock is read and set together with the real time and the host's TSC.
    pub clock_with_realtime: bool,
    /// The size of a vCPU's XSAVE area in bytes.
    pub xsave_bytes: usize,
    /// The most bytes of a vCPU's nested state; 0 where there is none.
    pub nested_state_bytes_max: usize,
    /// How many MSRs KVM names as a vCPU's state.
    pub msrs: usize,
}

impl Capabilities {
    /// Which tracking to take where the operator leaves the choice: the bitmap where it is
    /// re-protected by hand; else the ring, because a bitmap would protect the whole guest at each
    /// collection; else the bitmap all the same.
    pub fn preferred_tracking(&self) -> Tracking {
        if self.manual_protect || self.ring_bytes_max == 0 {
            Tracking::Bitmap
        } else {
            Tracking::Ring
        }
    }
}

/// Asks this host's KVM what it can do.
///
/// # Errors
///
/// When `/dev/kvm` can't be opened or KVM refuses to list its MSRs.
pub fn capabilities() -> Result<Capabilities, KvmError> {
    let kvm = Kvm::new().map_err(|error| KvmError::Open(error.into()))?;
    let value =
        |capability: u32| u32::try_from(kvm.check_extension_raw(capability.into())).unwrap_or(0);
    let msrs = kvm
        .get_msr_index_list()
        .map_err(KvmError::system("listing MSRs"))?;
    let protect = value(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
    let manual_protect = protect & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE != 0;
    let clock = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
    Ok(Capabilities {
        api_version: kvm.get_api_version(),
        vcpus_max: kvm.get_max_vcpus(),
        memory_slots_max: kvm.get_nr_memslots(),
        manual_protect,
        log_initially_set: manual_protect && protect & KVM_DIRTY_LOG_INITIALLY_SET != 0,
        ring_bytes_max: value(KVM_CAP_DIRTY_LOG_RING_ACQ_REL),
        tsc_control: value(KVM_CAP_TSC_CONTROL) != 0,
        clock_with_realtime: value(KVM_CAP_ADJUST_CLOCK) & clock == clock,
        xsave_bytes: (value(KVM_CAP_XSAVE2) as usize).max(super::ioctl::XSAVE_BYTES_MIN),
        nested_state_bytes_max: value(KVM_CAP_NESTED_STATE) as usize,
        msrs: msrs.as_slice().len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(manual_protect: bool, ring_bytes_max: u32) -> Capabilities {
        Capabilities {
            api_version: 12,
            vcpus_max: 1,
            memory_slots_max: 1,
            manual_protect,
            log_initially_set: manual_protect,
            ring_bytes_max,
            tsc_control: false,
            clock_with_realtime: true,
            xsave_bytes: 4096,
            nested_state_bytes_max: 0,
            msrs: 0,
        }
    }

    #[test]
    fn the_ring_is_taken_only_where_the_bitmap_protects_all_at_once() {
        assert_eq!(host(true, 65536).preferred_tracking(), Tracking::Bitmap);
        assert_eq!(host(false, 65536).preferred_tracking(), Tracking::Ring);
        assert_eq!(host(false, 0).preferred_tracking(), Tracking::Bitmap);
    }

    #[test]
    fn this_host_tells_what_it_can_do() {
        match capabilities() {
            Ok(host) => {
                assert_eq!(host.api_version, 12);
                assert!(host.vcpus_max > 0 && host.msrs > 0);
            }
            Err(error) => println!("skipped: {error}"),
        }
    }
}
