//! The engine's traits: the guest as it is sent, and as it arrives.

use std::sync::Arc;
use std::time::Duration;

use dunlin_engine::dirty::DirtySource;
use dunlin_engine::guest::{
    Guest, GuestError, GuestOffer, IncomingGuest, PauseRecord, RunError, RunRecord, SelfCheck,
};
use dunlin_engine::kvm::{StateAccess, tell_paused};
use dunlin_engine::layout::GuestMemory;
use dunlin_engine::state::{DeviceState, Section};
use dunlin_transports::deadline::Deadline;
use rayon::prelude::*;

use super::{KIND, KvmGuest, KvmGuestError};
use crate::workload::check::WorkloadCheck;
use crate::workload::control_page::Word;

/// How long a vCPU may take to be entered. It takes microseconds; the bound is there because every
/// wait has one.
const ENTER_MAX: Duration = Duration::from_secs(5);

/// How often the control pages are looked at for the guest's own word on its pause.
const LOOK_AGAIN: Duration = Duration::from_micros(50);

impl KvmGuest {
    /// Lets every vCPU go on and waits until the last was entered.
    pub(super) fn enter_all(&mut self) -> Result<RunRecord, KvmGuestError> {
        self.loops_at_run = self
            .control_pages()
            .map(|control| control.load(Word::Loops))
            .collect();
        for vcpu in &self.vcpus {
            // A vCPU that is not at rest was not paused. One that can't be told runs all the same:
            // a watchdog's complaint inside the guest is better than a guest that stands still.
            if let Ok(vcpu) = vcpu.at_rest()
                && let Err(error) = tell_paused(&vcpu)
            {
                self.warning = Some(format!("{error}; the guest's watchdogs may see the pause"));
            }
        }
        self.vcpus.iter().for_each(|vcpu| vcpu.order_run());
        let deadline = Deadline::after(ENTER_MAX);
        let running = self
            .vcpus
            .iter()
            .map(|vcpu| vcpu.wait_in_guest(deadline))
            .collect::<Result<_, _>>()?;
        Ok(RunRecord { running })
    }

    /// Parks every vCPU: all are kicked first, then awaited.
    fn park_all(&self, deadline: Deadline) -> Result<PauseRecord, KvmGuestError> {
        self.vcpus.iter().for_each(|vcpu| vcpu.order_rest());
        let parked = self
            .vcpus
            .iter()
            .map(|vcpu| vcpu.wait_at_rest(deadline))
            .collect::<Result<_, _>>()?;
        Ok(PauseRecord { parked })
    }

    /// From here on the longest gap that the guest measures is its pause.
    fn forget_gaps(&self) {
        for (control, page) in self.control_pages().zip(&self.control_pages) {
            control.store(Word::GapMaxTicks, 0);
            self.marked.mark(*page);
        }
    }

    fn save(&self) -> Result<DeviceState, KvmGuestError> {
        let save_vcpu = |(number, vcpu): (usize, &super::VcpuThread)| {
            let vcpu = vcpu.at_rest()?;
            Ok(self.hardware.state.save_vcpu(number as u32, &vcpu)?)
        };
        let sections: Vec<Section> = self
            .vcpus
            .par_iter()
            .enumerate()
            .map(save_vcpu)
            .collect::<Result<_, KvmGuestError>>()?;
        let mut state = DeviceState::new();
        sections.into_iter().for_each(|section| state.push(section));
        state.push(self.hardware.state.save_vm()?);
        state.push(self.serial.save());
        Ok(state)
    }

    fn load(&self, state: &DeviceState) -> Result<(), KvmGuestError> {
        let mut state = state.clone();
        let sections = (0..)
            .take(self.vcpus.len())
            .map(|number| StateAccess::take_vcpu(&mut state, number))
            .collect::<Result<Vec<_>, _>>()?;
        let vm = StateAccess::take_vm(&mut state)?;
        self.serial.load(&mut state)?;
        state.finish()?;
        let load_vcpu = |(number, (vcpu, section)): (usize, (&super::VcpuThread, Section))| {
            let vcpu = vcpu.at_rest()?;
            Ok(self
                .hardware
                .state
                .load_vcpu(number as u32, &vcpu, section)?)
        };
        let times = self
            .vcpus
            .par_iter()
            .zip(sections)
            .enumerate()
            .map(load_vcpu)
            .collect::<Result<Vec<_>, KvmGuestError>>()?;
        let advance = self.hardware.state.load_vm(vm)?;
        for (vcpu, time) in self.vcpus.iter().zip(times) {
            time.restore(&*vcpu.at_rest()?, &advance)?;
        }
        Ok(())
    }
}

impl Guest for KvmGuest {
    fn offer(&self) -> Result<GuestOffer, GuestError> {
        let mut configuration = DeviceState::new();
        configuration.push(self.hardware.cpuid.to_section());
        configuration.push(self.hardware.platform.to_section());
        configuration.push(self.workload.to_section());
        Ok(GuestOffer {
            identity: self.identity.clone(),
            kind: KIND.to_owned(),
            vcpus: self.plan.vcpus(),
            layout: self.memory.layout().clone(),
            configuration,
        })
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn dirty_sources(&self) -> Vec<Arc<dyn DirtySource>> {
        vec![
            self.hardware.dirty_source(),
            Arc::clone(&self.marked) as Arc<dyn DirtySource>,
        ]
    }

    fn pause(&mut self, deadline: Deadline) -> Result<PauseRecord, GuestError> {
        let record = self.park_all(deadline)?;
        self.forget_gaps();
        Ok(record)
    }

    fn save_state(&mut self) -> Result<DeviceState, GuestError> {
        Ok(self.save()?)
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.enter_all()?;
        Ok(())
    }

    fn self_check(&self) -> Option<Arc<dyn SelfCheck>> {
        Some(Arc::new(WorkloadCheck::new(
            self.memory.clone(),
            self.plan.clone(),
        )))
    }
}

impl IncomingGuest for KvmGuest {
    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn load_state(&mut self, state: &DeviceState) -> Result<(), GuestError> {
        Ok(self.load(state)?)
    }

    fn run(&mut self, epoch: u64) -> Result<RunRecord, RunError> {
        let record = self.enter_all().map_err(|error| {
            // Each of them, whatever the others say: none may be entered from here on.
            let entered = self
                .vcpus
                .iter()
                .fold(false, |entered, vcpu| vcpu.withdraw() | entered);
            if entered {
                RunError::MayHaveRun(error.into())
            } else {
                RunError::NeverEntered(error.into())
            }
        })?;
        self.identity.epoch = epoch;
        Ok(record)
    }

    fn guest_visible_pause(&mut self, deadline: Deadline) -> Option<Duration> {
        // The first loop may have read the clock before the pause; the second has read it after.
        let gone_on = || {
            self.control_pages()
                .zip(&self.loops_at_run)
                .all(|(control, before)| control.load(Word::Loops) >= before.saturating_add(2))
        };
        while !gone_on() {
            if deadline.passed() || self.crashed().is_some() {
                return None;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        self.statistics()
            .into_iter()
            .map(|vcpu| vcpu.longest_gap)
            .max()
    }

    fn self_check(&self) -> Option<Arc<dyn SelfCheck>> {
        Guest::self_check(self)
    }
}
