//! Model-specific registers.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::KvmError;

/// The time stamp counter.
pub(super) const IA32_TSC: u32 = 0x10;

/// When the local APIC's timer fires, on the TSC's scale; 0 when it is not armed.
pub(super) const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// Bytes of one MSR in a section: its index and its value.
const ENTRY_BYTES: usize = 12;

/// The values of the MSRs that can be read; the others are left out. KVM names some that a back end
/// does not have.
pub(super) fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, KvmError> {
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let (piece, _) = rest.split_at(rest.len().min(KVM_MAX_MSR_ENTRIES));
        let mut entries = entries(piece.iter().map(|index| (*index, 0)))?;
        // KVM reads up to the first that it can't, and says how many.
        let read = vcpu
            .get_msrs(&mut entries)
            .map_err(KvmError::system("reading MSRs"))?;
        let read = read.min(piece.len());
        values.extend(
            entries
                .as_slice()
                .iter()
                .take(read)
                .map(|entry| (entry.index, entry.data)),
        );
        let skipped = usize::from(read < piece.len());
        rest = rest.get(read + skipped..).unwrap_or_default();
    }
    Ok(values)
}

/// Sets MSRs.
///
/// One that KVM refuses is in order when it holds the value already. That is so for 0x4b564d06
/// (`MSR_KVM_ASYNC_PF_INT`), which KVM names and reads, as 0, in VMs without an in-kernel APIC,
/// where it can't be set. Any other is an error, because the guest would go on without it.
pub(super) fn write(vcpu: &VcpuFd, number: u32, values: &[(u32, u64)]) -> Result<(), KvmError> {
    let mut rest = values;
    while !rest.is_empty() {
        let (piece, _) = rest.split_at(rest.len().min(KVM_MAX_MSR_ENTRIES));
        let entries = entries(piece.iter().copied())?;
        let written = vcpu
            .set_msrs(&entries)
            .map_err(KvmError::system("setting MSRs"))?;
        let Some((index, value)) = piece.get(written) else {
            rest = rest.get(piece.len()..).unwrap_or_default();
            continue;
        };
        if read(vcpu, &[*index])? != [(*index, *value)] {
            return Err(KvmError::Msr {
                vcpu: number,
                index: *index,
                value: *value,
            });
        }
        rest = rest.get(written + 1..).unwrap_or_default();
    }
    Ok(())
}

/// A section's field: index and value of each, little-endian, in ascending order as KVM names them.
pub(super) fn to_bytes(values: &[(u32, u64)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() * ENTRY_BYTES);
    for (index, value) in values {
        bytes.extend(index.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes
}

/// Reads what [`to_bytes`] wrote; `None` when the length is not a whole number of entries.
pub(super) fn from_bytes(bytes: &[u8]) -> Option<Vec<(u32, u64)>> {
    let (entries, rest) = bytes.as_chunks::<ENTRY_BYTES>();
    if !rest.is_empty() {
        return None;
    }
    let value = |entry: &[u8; ENTRY_BYTES]| {
        let (index, value) = entry.split_first_chunk::<4>()?;
        let value = value.first_chunk::<8>()?;
        Some((u32::from_le_bytes(*index), u64::from_le_bytes(*value)))
    };
    entries.iter().map(value).collect()
}

fn entries(values: impl Iterator<Item = (u32, u64)>) -> Result<Msrs, KvmError> {
    let entries: Vec<kvm_msr_entry> = values
        .map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).map_err(|_| KvmError::System {
        doing: "listing MSRs",
        source: std::io::Error::other(format!("{} at once are too many", entries.len())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_from_their_bytes() {
        let values = vec![(0x10, 7), (0xc000_0080, u64::MAX)];
        let bytes = to_bytes(&values);
        assert_eq!(bytes.len(), 24);
        assert_eq!(from_bytes(&bytes), Some(values));
        assert_eq!(from_bytes(&bytes[1..]), None);
    }
}
