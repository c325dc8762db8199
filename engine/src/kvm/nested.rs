//! State of guests inside the guest: whether there is any.

use super::ioctl::NESTED_HEADER_BYTES;

/// In EFER: the guest may run guests of its own by SVM (AMD APM volume 2, 3.1.7).
const EFER_SVME: u64 = 1 << 12;

/// Whether a nested state says no more than that there is none. `efer` is the vCPU's own.
///
/// VMX (format 0): outside of VMX operation the VMXON pointer is all ones. SVM (format 1): no guest
/// runs, and interrupts are enabled globally (GIF) or the vCPU has SVM off. With SVM off the guest
/// can neither clear GIF nor set it, and KVM takes no other state than the default (EINVAL,
/// `svm_set_nested_state`): one with GIF clear means nothing, and a destination would refuse the
/// guest for it. Anything behind the header is state.
pub(super) fn is_empty(state: &[u8], efer: u64) -> bool {
    const FORMAT_VMX: u16 = 0;
    const FORMAT_SVM: u16 = 1;
    const GUEST_MODE: u16 = 1 << 0;
    const GIF_SET: u16 = 1 << 8;
    let (Some((flags, rest)), true) = (
        state.split_first_chunk::<2>(),
        state.len() == NESTED_HEADER_BYTES,
    ) else {
        return false;
    };
    let flags = u16::from_le_bytes(*flags);
    let format = rest
        .first_chunk::<2>()
        .map(|bytes| u16::from_le_bytes(*bytes));
    match format {
        Some(FORMAT_VMX) => state.get(8..16).is_some_and(|vmxon| vmxon == [0xff; 8]),
        Some(FORMAT_SVM) => {
            let is_default = flags & GIF_SET != 0 || efer & EFER_SVME == 0;
            is_default && flags & GUEST_MODE == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nested_state_that_says_nothing_is_empty() {
        let mut vmx = vec![0; 128];
        vmx[8..16].fill(0xff);
        assert!(is_empty(&vmx, 0));
        vmx[8] = 0;
        assert!(!is_empty(&vmx, 0));
        let mut svm = vec![0; 128];
        svm[2] = 1;
        assert!(!is_empty(&svm, EFER_SVME));
        svm[1] = 1;
        assert!(is_empty(&svm, EFER_SVME));
        svm.push(0);
        assert!(!is_empty(&svm, EFER_SVME));
    }

    #[test]
    fn a_vcpu_with_svm_off_has_no_global_interrupt_flag_to_move() {
        let mut svm = vec![0; 128];
        svm[2] = 1;
        assert!(is_empty(&svm, 0));
        // A guest's guest that runs is state, whatever EFER says.
        svm[0] = 1;
        assert!(!is_empty(&svm, 0));
    }
}
