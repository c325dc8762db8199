//! State of guests inside the guest: whether there is any.

use super::ioctl::NESTED_HEADER_BYTES;

/// Whether a nested state says no more than that there is none.
///
/// VMX (format 0): outside of VMX operation the VMXON pointer is all ones. SVM (format 1): no guest
/// runs and interrupts are enabled globally (GIF). Anything behind the header is state.
pub(super) fn is_empty(state: &[u8]) -> bool {
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
        Some(FORMAT_SVM) => flags & (GUEST_MODE | GIF_SET) == GIF_SET,
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
        assert!(is_empty(&vmx));
        vmx[8] = 0;
        assert!(!is_empty(&vmx));
        let mut svm = vec![0; 128];
        svm[2] = 1;
        assert!(!is_empty(&svm));
        svm[1] = 1;
        assert!(is_empty(&svm));
        svm.push(0);
        assert!(!is_empty(&svm));
    }
}
