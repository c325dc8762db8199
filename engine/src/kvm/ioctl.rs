//! The calls that `kvm-ioctls` does not wrap, or not without an allocation.
//!
//! # Laws of this room
//!
//! Every pointer handed to the kernel comes from a Rust slice or reference that is borrowed for the
//! call and is as long as the kernel may read or write; each function checks that length itself.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use kvm_bindings::{
    KVM_CAP_NESTED_STATE, KVM_CAP_VM_TSC_CONTROL, KVM_CAP_XSAVE2, KVMIO, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_device_attr, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1,
    kvm_nested_state, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

/// The numbers, as `include/uapi/linux/kvm.h` defines them.
mod number {
    use super::*;

    ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
    ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
    ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);
    ioctl_io_nr!(KVM_GET_TSC_KHZ, KVMIO, 0xa3);
    ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
    ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
    ioctl_ior_nr!(KVM_GET_XSAVE, KVMIO, 0xa4, kvm_xsave);
    ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, kvm_xsave);
    ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, kvm_xsave);
    ioctl_iowr_nr!(KVM_GET_NESTED_STATE, KVMIO, 0xbe, kvm_nested_state);
    ioctl_iow_nr!(KVM_SET_NESTED_STATE, KVMIO, 0xbf, kvm_nested_state);
}

/// The size of the fixed part of an XSAVE area in KVM's interface (`struct kvm_xsave`).
pub(super) const XSAVE_BYTES_MIN: usize = size_of::<kvm_xsave>();

/// Copies a slot's whole dirty log into `words`, one bit a page.
pub(super) fn get_dirty_log(vm: &VmFd, slot: u32, pages: u64, words: &mut [u64]) -> io::Result<()> {
    check_length(words.len() as u64, pages.div_ceil(64))?;
    let log = kvm_dirty_log {
        slot,
        padding1: 0,
        __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
            dirty_bitmap: words.as_mut_ptr().cast(),
        },
    };
    // SAFETY: the kernel writes one bit for each page of the slot, rounded up to 64 (its
    // documentation of KVM_GET_DIRTY_LOG), and `words` was checked to have room for that.
    let result = unsafe {
        libc::ioctl(
            vm.as_raw_fd(),
            number::KVM_GET_DIRTY_LOG() as libc::Ioctl,
            &log,
        )
    };
    outcome(result).map(|_| ())
}

/// Clears and re-arms the pages of a slot whose bits are set in `words`; the first bit is page
/// `first_page` of the slot.
pub(super) fn clear_dirty_log(
    vm: &VmFd,
    slot: u32,
    first_page: u64,
    pages: u32,
    words: &[u64],
) -> io::Result<()> {
    check_length(words.len() as u64, u64::from(pages).div_ceil(64))?;
    let log = kvm_clear_dirty_log {
        slot,
        num_pages: pages,
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: words.as_ptr().cast_mut().cast(),
        },
    };
    // SAFETY: the kernel only reads the bitmap, one bit for each of `pages` rounded up to 64, and
    // `words` was checked to be that long.
    let result = unsafe {
        libc::ioctl(
            vm.as_raw_fd(),
            number::KVM_CLEAR_DIRTY_LOG() as libc::Ioctl,
            &log,
        )
    };
    outcome(result).map(|_| ())
}

/// Takes back what was harvested from all rings of the VM, and re-arms those pages; says how many
/// entries that were. Not to be interrupted: see the room `uninterrupted`.
pub(super) fn reset_dirty_rings(vm: &VmFd) -> io::Result<u32> {
    // SAFETY: the call has no argument.
    let result = unsafe {
        libc::ioctl(
            vm.as_raw_fd(),
            number::KVM_RESET_DIRTY_RINGS() as libc::Ioctl,
            0,
        )
    };
    outcome(result).map(libc::c_int::unsigned_abs)
}

/// How many bytes a vCPU's XSAVE area takes in this VM, and whether `KVM_GET_XSAVE2` reads it.
pub(super) fn xsave_bytes(vm: &VmFd) -> (usize, bool) {
    let wide = vm.check_extension_raw(KVM_CAP_XSAVE2.into());
    match usize::try_from(wide) {
        Ok(bytes) if bytes >= XSAVE_BYTES_MIN => (bytes, true),
        _ => (XSAVE_BYTES_MIN, false),
    }
}

/// Reads a vCPU's XSAVE area into `area`, which has the size that [`xsave_bytes`] told.
pub(super) fn get_xsave(vm: &VmFd, vcpu: &impl AsRawFd, area: &mut [u8]) -> io::Result<()> {
    let (bytes, wide) = xsave_bytes(vm);
    check_length(area.len() as u64, bytes as u64)?;
    let request = if wide {
        number::KVM_GET_XSAVE2()
    } else {
        number::KVM_GET_XSAVE()
    };
    // SAFETY: the kernel writes as many bytes as KVM_CAP_XSAVE2 says (4096 for the older call),
    // and `area` was checked to have them.
    outcome(unsafe { libc::ioctl(vcpu.as_raw_fd(), request as libc::Ioctl, area.as_mut_ptr()) })
        .map(|_| ())
}

/// Sets a vCPU's XSAVE area from `area`, which has the size that [`xsave_bytes`] told.
pub(super) fn set_xsave(vm: &VmFd, vcpu: &impl AsRawFd, area: &[u8]) -> io::Result<()> {
    check_length(area.len() as u64, xsave_bytes(vm).0 as u64)?;
    // SAFETY: the kernel reads as many bytes as KVM_CAP_XSAVE2 says (4096 where it has not got
    // that), and `area` was checked to have them.
    outcome(unsafe {
        libc::ioctl(
            vcpu.as_raw_fd(),
            number::KVM_SET_XSAVE() as libc::Ioctl,
            area.as_ptr(),
        )
    })
    .map(|_| ())
}

/// The TSC frequency of the VM's vCPUs unless another was set for one, in kHz: the host's. `None`
/// where KVM can't tell, which is where it can't scale either.
pub(super) fn vm_tsc_khz(vm: &VmFd) -> Option<u32> {
    if vm.check_extension_raw(KVM_CAP_VM_TSC_CONTROL.into()) <= 0 {
        return None;
    }
    // SAFETY: the call has no argument.
    let khz = unsafe { libc::ioctl(vm.as_raw_fd(), number::KVM_GET_TSC_KHZ() as libc::Ioctl, 0) };
    u32::try_from(khz).ok().filter(|khz| *khz > 0)
}

/// The most bytes that a vCPU's nested state takes in this VM; 0 where KVM has none.
pub(super) fn nested_bytes_max(vm: &VmFd) -> usize {
    usize::try_from(vm.check_extension_raw(KVM_CAP_NESTED_STATE.into())).unwrap_or(0)
}

/// A vCPU's nested state as the kernel wrote it (a header of 128 bytes, then the rest), or `None`
/// where the back end announces it but does not implement it (EINVAL).
pub(super) fn get_nested_state(
    vcpu: &impl AsRawFd,
    bytes_max: usize,
) -> io::Result<Option<Vec<u8>>> {
    let mut state = vec![0_u8; bytes_max.max(NESTED_HEADER_BYTES)];
    let room = u32::try_from(state.len()).map_err(io::Error::other)?;
    if let Some(size) = state.get_mut(NESTED_SIZE_AT) {
        size.copy_from_slice(&room.to_le_bytes());
    }
    // SAFETY: the kernel writes no more than the header's `size` field says, which was set to the
    // buffer's length just above.
    let result = outcome(unsafe {
        libc::ioctl(
            vcpu.as_raw_fd(),
            number::KVM_GET_NESTED_STATE() as libc::Ioctl,
            state.as_mut_ptr(),
        )
    });
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Err(error) => Err(error),
        Ok(_) => {
            state.truncate(nested_size(&state).unwrap_or(0).max(NESTED_HEADER_BYTES));
            Ok(Some(state))
        }
    }
}

/// Sets a vCPU's nested state to what [`get_nested_state`] read.
pub(super) fn set_nested_state(vcpu: &impl AsRawFd, state: &[u8]) -> io::Result<()> {
    let size = nested_size(state).unwrap_or(usize::MAX);
    check_length(state.len() as u64, size as u64)?;
    // SAFETY: the kernel reads as many bytes as the header's `size` field says, and that is the
    // slice's length, which is at least the header's.
    outcome(unsafe {
        libc::ioctl(
            vcpu.as_raw_fd(),
            number::KVM_SET_NESTED_STATE() as libc::Ioctl,
            state.as_ptr(),
        )
    })
    .map(|_| ())
}

/// `struct kvm_nested_state` up to its data: flags, format and size (8 bytes), and 120 of header.
pub(super) const NESTED_HEADER_BYTES: usize = 128;

/// Where the size is in the header.
const NESTED_SIZE_AT: std::ops::Range<usize> = 4..8;

fn nested_size(state: &[u8]) -> Option<usize> {
    if state.len() < NESTED_HEADER_BYTES {
        return None;
    }
    let size = state.get(NESTED_SIZE_AT)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(size)).ok()
}

/// A vCPU's attribute that is one number, such as its TSC offset.
pub(super) fn get_vcpu_attribute(vcpu: &VcpuFd, group: u32, attribute: u64) -> io::Result<u64> {
    let mut value = 0_u64;
    let request = kvm_device_attr {
        group,
        attr: attribute,
        addr: std::ptr::from_mut(&mut value) as u64,
        ..Default::default()
    };
    // SAFETY: the kernel writes the attribute's value, 8 bytes for each that a vCPU of x86 has
    // (Documentation/virt/kvm/devices/vcpu.rst), to `value`, which lives until the call returns.
    let result = unsafe {
        libc::ioctl(
            vcpu.as_raw_fd(),
            number::KVM_GET_DEVICE_ATTR() as libc::Ioctl,
            &request,
        )
    };
    outcome(result).map(|_| value)
}

/// Sets a vCPU's attribute that is one number.
pub(super) fn set_vcpu_attribute(
    vcpu: &VcpuFd,
    group: u32,
    attribute: u64,
    value: u64,
) -> io::Result<()> {
    let request = kvm_device_attr {
        group,
        attr: attribute,
        addr: std::ptr::from_ref(&value) as u64,
        ..Default::default()
    };
    // SAFETY: the kernel reads the attribute's value, at most 8 bytes, from `value`, which lives
    // until the call returns.
    let result = unsafe {
        libc::ioctl(
            vcpu.as_raw_fd(),
            number::KVM_SET_DEVICE_ATTR() as libc::Ioctl,
            &request,
        )
    };
    outcome(result).map(|_| ())
}

/// Maps `bytes` of a vCPU's file at page `page_offset`.
pub(super) fn map_vcpu_pages(vcpu: RawFd, page_offset: u32, bytes: usize) -> io::Result<*mut u8> {
    let offset = i64::from(page_offset) * 4096;
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            vcpu,
            offset,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(base.cast())
}

fn check_length(have: u64, need: u64) -> io::Result<()> {
    if have == need {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("a buffer of {have} where KVM takes {need}"),
    ))
}

fn outcome(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
