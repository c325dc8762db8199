//! Kernel structs as bytes: what the fields of our sections hold.
//!
//! # Laws of this room
//!
//! A [`KernelStruct`] is plain data: no padding of the compiler's, no pointer, and every bit
//! pattern is a value. So its bytes may be read, and any bytes of its length may be made into one.
//! The kernel's ABI for x86-64 fixes order, width and little-endian byte order.

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_pit_state2,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};

use crate::state::{Section, StateError};

/// A struct of the kernel's interface that is plain data.
///
/// # Safety
///
/// The type is `repr(C)`, has no padding between or behind its fields, no pointers, and any bytes
/// are a valid value.
pub(super) unsafe trait KernelStruct: Copy {}

// SAFETY: one u32.
unsafe impl KernelStruct for kvm_mp_state {}
// SAFETY: eighteen u64.
unsafe impl KernelStruct for kvm_regs {}
// SAFETY: integers, with the padding spelled out as fields (segments of 24 bytes, tables of 16).
unsafe impl KernelStruct for kvm_sregs {}
// SAFETY: integers in their natural alignment, 392 bytes.
unsafe impl KernelStruct for kvm_xcrs {}
// SAFETY: sixteen u64.
unsafe impl KernelStruct for kvm_debugregs {}
// SAFETY: 1024 bytes.
unsafe impl KernelStruct for kvm_lapic_state {}
// SAFETY: integers, with the padding spelled out as fields, 64 bytes.
unsafe impl KernelStruct for kvm_vcpu_events {}
// SAFETY: two u32 and a union whose first member is an array over all of its 512 bytes.
unsafe impl KernelStruct for kvm_irqchip {}
// SAFETY: three channels of 24 bytes without gaps, then u32s.
unsafe impl KernelStruct for kvm_pit_state2 {}
// SAFETY: ten u32.
unsafe impl KernelStruct for kvm_cpuid_entry2 {}

/// The struct's bytes.
pub(super) fn bytes_of<T: KernelStruct>(value: &T) -> &[u8] {
    // SAFETY: the value is initialised and without padding (the trait), is borrowed for as long as
    // the slice, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The struct with these bytes; `None` when there are not exactly as many as it has.
pub(super) fn from_bytes<T: KernelStruct>(bytes: &[u8]) -> Option<T> {
    if bytes.len() != size_of::<T>() {
        return None;
    }
    // SAFETY: the slice has the struct's length, any bytes are a value of it (the trait), and
    // `read_unaligned` asks for no alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Takes a struct out of a section; `None` when the field is not there.
pub(super) fn take<T: KernelStruct>(
    section: &mut Section,
    field: u16,
) -> Result<Option<T>, StateError> {
    section
        .take(field)
        .map(|bytes| {
            from_bytes(&bytes).ok_or_else(|| {
                section.bad(
                    field,
                    format!("{} bytes instead of {}", bytes.len(), size_of::<T>()),
                )
            })
        })
        .transpose()
}

/// Takes out a struct that has to be there.
pub(super) fn require<T: KernelStruct>(section: &mut Section, field: u16) -> Result<T, StateError> {
    take(section, field)?.ok_or_else(|| StateError::MissingField {
        section: section.name().to_owned(),
        field,
    })
}

/// Takes out a number, if it is there.
pub(super) fn take_u64(section: &mut Section, field: u16) -> Result<Option<u64>, StateError> {
    let Some(bytes) = section.take(field) else {
        return Ok(None);
    };
    let number = <[u8; 8]>::try_from(bytes.as_slice())
        .map_err(|_| section.bad(field, format!("{} bytes instead of 8", bytes.len())))?;
    Ok(Some(u64::from_le_bytes(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_struct_comes_back_from_its_bytes_and_no_other_length_is_taken() {
        let regs = kvm_regs {
            rax: 0x1122_3344_5566_7788,
            rflags: 2,
            ..Default::default()
        };
        let bytes = bytes_of(&regs);
        assert_eq!(bytes.len(), 144);
        assert_eq!(bytes[..8], 0x1122_3344_5566_7788_u64.to_le_bytes());
        assert_eq!(from_bytes::<kvm_regs>(bytes), Some(regs));
        assert_eq!(from_bytes::<kvm_regs>(&bytes[1..]), None);

        let mut section = Section::new("kvm.vcpu.0", 1);
        section.put(2, bytes[..143].to_vec());
        assert_eq!(
            require::<kvm_regs>(&mut section, 2)
                .unwrap_err()
                .to_string(),
            "section 'kvm.vcpu.0', field 2: 143 bytes instead of 144"
        );
    }
}
