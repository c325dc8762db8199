//! The guest's time: TSC and kvmclock, restored so that the guest sees its own pause (law 8).
//!
//! The way is the kernel's own (Documentation/virt/kvm/devices/vcpu.rst, KVM_VCPU_TSC_OFFSET). The
//! source reads kvmclock together with the host's TSC and real time (`KVM_GET_CLOCK`), and each
//! vCPU's TSC offset. The destination sets kvmclock, advanced by the real time that has passed; reads
//! kvmclock and its own TSC again; and sets each offset to
//!
//! ```text
//! offset_destination = offset_source − (kvmclock_source − kvmclock_destination) × frequency
//!                    + (tsc_source − tsc_destination)
//! ```
//!
//! so that the guest's TSC stands in the same relation to kvmclock as before. The hosts' real times
//! have to agree (NTP); where the source's is ahead of the destination's, nothing is added.
//!
//! Where one side has no offset, no such clock reading, or scales the TSC (the formula assumes that
//! guest and host count alike), IA32_TSC is set instead, advanced by the real time that passed. KVM
//! takes a value that is within a second of what another vCPU's TSC says by then for an attempt to
//! make them equal, and gives both one offset: so vCPUs that are set one after the other agree with
//! vCPU 0, the first. Its own value is looked at afterwards, and set once more where KVM took it for
//! such an attempt too.
//!
//! On a host whose TSC Linux does not trust, KVM stops the guest's TSC while its vCPU is not in the
//! guest, and lets it catch up when it is entered again: what is read there is what it was when the
//! vCPU left, and the guest misses the time between.

use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_clock_data,
};
use kvm_ioctls::{VcpuFd, VmFd};

use super::{KvmError, ioctl, msrs, realtime};

/// How far two TSC frequencies may be apart, in parts per million: what KVM itself lets pass
/// without scaling (`tsc_tolerance_ppm`, arch/x86/kvm/x86.c).
const TSC_TOLERANCE_PPM: u64 = 250;

/// How far a guest's TSC may be from where it should be, in nanoseconds: no less than reading both
/// tells them apart.
const TSC_OFF_NS_MAX: u64 = 50_000;

/// How far ahead a TSC is set for KVM not to take the next value for one that it knows: it does so
/// where they are less than a second apart (`kvm_synchronize_tsc`, arch/x86/kvm/x86.c).
const AWAY_NS: u64 = 10_000_000_000;

/// Whether two TSC frequencies count as one.
pub(super) fn same_frequency(one_khz: u32, other_khz: u32) -> bool {
    let apart = u64::from(one_khz.abs_diff(other_khz));
    apart * 1_000_000 <= u64::from(one_khz) * TSC_TOLERANCE_PPM
}

/// kvmclock, read at one moment together with what the host's clocks said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ClockReading {
    /// kvmclock, in nanoseconds.
    pub(super) kvmclock_ns: u64,
    /// The host's CLOCK_REALTIME, in nanoseconds.
    pub(super) realtime_ns: u64,
    /// The host's TSC; `None` where KVM does not read it together with kvmclock.
    pub(super) host_tsc: Option<u64>,
}

impl ClockReading {
    pub(super) fn now(vm: &VmFd) -> Result<Self, KvmError> {
        let (clock, read_at_ns) =
            realtime::read_at(|| vm.get_clock().map_err(KvmError::system("reading kvmclock")))?;
        let has = |flag: u32| clock.flags & flag != 0;
        Ok(Self {
            kvmclock_ns: clock.clock,
            realtime_ns: if has(KVM_CLOCK_REALTIME) {
                clock.realtime
            } else {
                read_at_ns
            },
            host_tsc: has(KVM_CLOCK_HOST_TSC).then_some(clock.host_tsc),
        })
    }

    /// Sets kvmclock to this reading, advanced by the real time that has passed since.
    ///
    /// KVM would add that by itself (`KVM_CLOCK_REALTIME`), but not before Linux 5.16.
    pub(super) fn restore(self, vm: &VmFd) -> Result<ClockAdvance, KvmError> {
        realtime::set_at(|now_ns| {
            let passed = now_ns.saturating_sub(self.realtime_ns);
            let clock = kvm_clock_data {
                clock: self.kvmclock_ns.saturating_add(passed),
                ..Default::default()
            };
            vm.set_clock(&clock)
                .map_err(KvmError::system("setting kvmclock"))
        })?;
        Ok(ClockAdvance {
            source: self,
            destination: Self::now(vm)?,
        })
    }
}

/// From the moment when the source read kvmclock to the moment when the destination had set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockAdvance {
    source: ClockReading,
    destination: ClockReading,
}

impl ClockAdvance {
    /// The formula at the top of this room; `None` where a side did not read its TSC.
    fn tsc_offset(&self, source_offset: u64, tsc_khz: u32) -> Option<u64> {
        let passed_ns = self
            .destination
            .kvmclock_ns
            .saturating_sub(self.source.kvmclock_ns);
        let tsc_difference = self
            .source
            .host_tsc?
            .wrapping_sub(self.destination.host_tsc?);
        Some(
            source_offset
                .wrapping_add(ticks(passed_ns, tsc_khz))
                .wrapping_add(tsc_difference),
        )
    }
}

/// A vCPU's time, as it was on the source; restored after all other state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuTime {
    /// The frequency of the guest's TSC, in kHz.
    pub(super) tsc_khz: u32,
    /// What the guest's TSC said …
    pub(super) tsc: u64,
    /// … at this CLOCK_REALTIME of the host, in nanoseconds.
    pub(super) realtime_ns: u64,
    /// The guest's TSC less the host's; `None` where KVM does not tell, or scales.
    pub(super) tsc_offset: Option<u64>,
    /// When the APIC's timer fires, on the TSC's scale.
    pub(super) tsc_deadline: Option<u64>,
    /// The vCPU that this is of.
    pub(super) vcpu: u32,
}

impl VcpuTime {
    /// Reads it. `host_tsc_khz` is the host's frequency where KVM can scale.
    pub(super) fn read(
        number: u32,
        vcpu: &VcpuFd,
        host_tsc_khz: Option<u32>,
        has_deadline: bool,
    ) -> Result<Self, KvmError> {
        let tsc_khz = vcpu
            .get_tsc_khz()
            .map_err(KvmError::system("reading the TSC's frequency"))?;
        let scaled = host_tsc_khz.is_some_and(|host| host != tsc_khz);
        let tsc_deadline = has_deadline
            .then(|| read_msr(vcpu, msrs::IA32_TSC_DEADLINE))
            .transpose()?;
        let (tsc, realtime_ns) = realtime::read_at(|| read_msr(vcpu, msrs::IA32_TSC))?;
        Ok(Self {
            tsc_khz,
            tsc,
            realtime_ns,
            tsc_offset: if scaled { None } else { read_offset(vcpu) },
            tsc_deadline: tsc_deadline.filter(|deadline| *deadline != 0),
            vcpu: number,
        })
    }

    /// Sets the vCPU's TSC, and the timer that counts on it. After all of [`super::StateAccess`]'s
    /// loads, before the vCPU runs; vCPU 0 first.
    ///
    /// # Errors
    ///
    /// When KVM refuses.
    pub fn restore(&self, vcpu: &VcpuFd, advance: &ClockAdvance) -> Result<(), KvmError> {
        let offset = self
            .tsc_offset
            .and_then(|offset| advance.tsc_offset(offset, self.tsc_khz));
        let restored = match offset {
            Some(offset) => write_offset(vcpu, offset)?,
            None => false,
        };
        if !restored {
            self.restore_by_realtime(vcpu)?;
        }
        // KVM turns the deadline into a time when it is set: so the TSC has to be right by then.
        match self.tsc_deadline {
            Some(deadline) => msrs::write(vcpu, self.vcpu, &[(msrs::IA32_TSC_DEADLINE, deadline)]),
            None => Ok(()),
        }
    }

    fn restore_by_realtime(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let tsc = self.tsc_at(realtime::now_ns());
        msrs::write(vcpu, self.vcpu, &[(msrs::IA32_TSC, tsc)])?;
        if self.vcpu != 0 {
            return Ok(());
        }
        let (tsc, now_ns) = realtime::read_at(|| read_msr(vcpu, msrs::IA32_TSC))?;
        let off = self.tsc_at(now_ns).wrapping_sub(tsc);
        if off.min(off.wrapping_neg()) <= ticks(TSC_OFF_NS_MAX, self.tsc_khz) {
            return Ok(());
        }
        // A thread lost its processor, or the value was near that of a vCPU just made. Far from what
        // was set last, each counts as it is.
        realtime::set_at(|now_ns| {
            let tsc = self.tsc_at(now_ns);
            let away = tsc.wrapping_add(ticks(AWAY_NS, self.tsc_khz));
            let values = [away, tsc].map(|tsc| (msrs::IA32_TSC, tsc));
            msrs::write(vcpu, self.vcpu, &values)
        })
    }

    /// What the guest's TSC should say at a CLOCK_REALTIME.
    fn tsc_at(&self, realtime_ns: u64) -> u64 {
        let passed = realtime_ns.saturating_sub(self.realtime_ns);
        self.tsc.wrapping_add(ticks(passed, self.tsc_khz))
    }
}

/// Tells the guest's kvmclock that the vCPU was stopped by its host, so that the guest's watchdogs
/// forgive the pause (`KVM_KVMCLOCK_CTRL`). Before it is entered again.
///
/// # Errors
///
/// When KVM refuses; a guest that has set up no kvmclock (EINVAL) is in order.
pub fn tell_paused(vcpu: &VcpuFd) -> Result<(), KvmError> {
    match vcpu.kvmclock_ctrl() {
        Err(error) if error.errno() != libc::EINVAL => {
            Err(KvmError::system("telling kvmclock of the pause")(error))
        }
        _ => Ok(()),
    }
}

fn read_msr(vcpu: &VcpuFd, index: u32) -> Result<u64, KvmError> {
    let read = msrs::read(vcpu, &[index])?;
    Ok(read.first().map_or(0, |(_, value)| *value))
}

/// The TSC's offset from the host's; `None` where this KVM does not tell it.
fn read_offset(vcpu: &VcpuFd) -> Option<u64> {
    ioctl::get_vcpu_attribute(vcpu, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET.into()).ok()
}

/// Sets the offset; `false` where this KVM has none.
fn write_offset(vcpu: &VcpuFd, offset: u64) -> Result<bool, KvmError> {
    if read_offset(vcpu).is_none() {
        return Ok(false);
    }
    ioctl::set_vcpu_attribute(vcpu, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET.into(), offset)
        .map_err(KvmError::io("setting the TSC's offset"))?;
    Ok(true)
}

fn ticks(nanoseconds: u64, khz: u32) -> u64 {
    // A kHz is a tick in a million nanoseconds. 64 × 32 bits fit; the quotient is taken modulo
    // 2^64, as the counter itself is.
    (u128::from(nanoseconds) * u128::from(khz) / 1_000_000) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(kvmclock_ns: u64, host_tsc: Option<u64>) -> ClockReading {
        ClockReading {
            kvmclock_ns,
            realtime_ns: 0,
            host_tsc,
        }
    }

    #[test]
    fn the_guest_sees_its_pause_whatever_the_hosts_counters_say() {
        let advance = ClockAdvance {
            source: reading(5_000_000, Some(1_000_000_000)),
            destination: reading(8_000_000, Some(77)),
        };
        let source_offset = 12_345_u64.wrapping_neg();
        let offset = advance.tsc_offset(source_offset, 2_000_000).unwrap();
        let before = 1_000_000_000_u64.wrapping_add(source_offset);
        // 3 ms at 2 GHz are 6 million ticks.
        assert_eq!(77_u64.wrapping_add(offset), before + 6_000_000);
    }

    #[test]
    fn a_clock_that_runs_behind_adds_nothing_and_a_missing_counter_is_told() {
        let behind = ClockAdvance {
            source: reading(9, Some(4)),
            destination: reading(8, Some(4)),
        };
        assert_eq!(behind.tsc_offset(1, 1_000_000), Some(1));
        let blind = ClockAdvance {
            source: reading(9, None),
            ..behind
        };
        assert_eq!(blind.tsc_offset(1, 1_000_000), None);
    }

    /// Before Linux 6.7 KVM takes the first value too for one that should equal another's, where the
    /// vCPU is about as old as it says. Where KVM ignores offsets, as a software back end does, the
    /// guest reads the host's TSC whatever one sets, and it is told so.
    #[test]
    fn tscs_set_by_the_time_are_right_and_equal_whatever_kvm_makes_of_them() {
        let kvm = match kvm_ioctls::Kvm::new() {
            Ok(kvm) => kvm,
            Err(error) => {
                println!("skipped: no KVM here: {error}");
                return;
            }
        };
        let vm = kvm.create_vm().unwrap();
        let vcpus = [0, 1].map(|number| vm.create_vcpu(number).unwrap());
        let read = |number: u32, vcpu| VcpuTime::read(number, vcpu, None, false).unwrap();
        let here = read(0, &vcpus[0]);
        let second = u64::from(here.tsc_khz) * 1000;
        let advance = ClockAdvance {
            source: reading(0, None),
            destination: reading(0, None),
        };
        // From here on KVM knows a value that was set.
        msrs::write(&vcpus[0], 0, &[(msrs::IA32_TSC, here.tsc)]).unwrap();
        // The source's readings may differ by what a thread lost between them.
        let arrived = [0, 1].map(|number| VcpuTime {
            tsc: here
                .tsc
                .wrapping_add(second / 2 + u64::from(number) * second / 500),
            tsc_offset: None,
            vcpu: number,
            ..here
        });
        for (vcpu, time) in vcpus.iter().zip(&arrived) {
            time.restore(vcpu, &advance).unwrap();
        }
        let offsets = vcpus.each_ref().map(read_offset);
        let is_trusted = ClockReading::now(&vm).unwrap().host_tsc.is_some();
        let restored = read(0, &vcpus[0]);
        let expected = match restored.tsc_offset == Some(0) {
            false => arrived[0].tsc_at(restored.realtime_ns),
            true => here.tsc_at(restored.realtime_ns),
        };
        let off = restored.tsc.abs_diff(expected);
        assert!(off < second / 8, "{off} ticks; {here:?} {restored:?}");
        // Where it trusts no TSC, KVM changes offsets whenever a vCPU is looked at.
        assert!(offsets[0] == offsets[1] || !is_trusted, "{offsets:?}");
    }

    #[test]
    fn frequencies_within_250_ppm_count_as_one() {
        assert!(same_frequency(2_000_000, 2_000_500));
        assert!(!same_frequency(2_000_000, 2_000_501));
        assert!(!same_frequency(0, 1));
    }
}
