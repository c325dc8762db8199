//! The engine's traits: the guest as it is sent, and as it arrives.

use std::sync::Arc;
use std::time::Duration;

use dunlin_engine::clock::Timestamp;
use dunlin_engine::dirty::DirtySource;
use dunlin_engine::guest::{
    Guest, GuestError, GuestOffer, HandoverCosts, IncomingGuest, PauseRecord, RunError, RunRecord,
    SelfCheck,
};
use dunlin_engine::kvm::{StateAccess, tell_paused};
use dunlin_engine::layout::GuestMemory;
use dunlin_engine::state::DeviceState;
use dunlin_transports::deadline::Deadline;

use super::{KIND, KvmGuest, KvmGuestError};
use crate::workload::check::WorkloadCheck;
use crate::workload::control_page::Word;

/// How long a vCPU may take to be entered. It takes microseconds; the bound is there because every
/// wait has one.
const ENTER_MAX: Duration = Duration::from_secs(5);

/// How many vCPUs' states one thread saves or loads. A vCPU takes some 50 µs, and so does starting
/// a thread: for so few, none is worth it.
const VCPUS_PER_THREAD: usize = 8;

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
        let begin = Timestamp::now();
        self.crew.order_run();
        let deadline = Deadline::after(ENTER_MAX);
        let running: Vec<Timestamp> = self
            .vcpus
            .iter()
            .map(|vcpu| vcpu.wait_in_guest(deadline))
            .collect::<Result<_, _>>()?;
        self.costs.resume = running.iter().max().map(|last| last.since(begin));
        Ok(RunRecord { running })
    }

    /// Parks every vCPU: all are kicked first, then awaited.
    fn park_all(&mut self, deadline: Deadline) -> Result<PauseRecord, KvmGuestError> {
        self.vcpus.iter().for_each(|vcpu| vcpu.order_rest());
        let parked: Vec<Timestamp> = self
            .vcpus
            .iter()
            .map(|vcpu| vcpu.wait_at_rest(deadline))
            .collect::<Result<_, _>>()?;
        // From the first that stands: until then the guest is not paused.
        self.costs.park = parked
            .iter()
            .min()
            .map(|first| Timestamp::now().since(*first));
        Ok(PauseRecord { parked })
    }

    /// Measures what saving and encoding the state of vCPUs and devices takes, before they run for
    /// the first time. It changes nothing. Once: in the pause it is no habit either, and repeated it
    /// takes a third of the time.
    pub(super) fn rehearse_saving(&mut self) -> Option<Vec<u8>> {
        let begin = Timestamp::now();
        let encoded = self.save().ok()?.encode().ok()?;
        self.costs.save = Some(Timestamp::now().since(begin));
        Some(encoded)
    }

    /// The same for loading it, with the state that fresh vCPUs have: what arrives is set over it.
    /// Where it fails, so will loading what arrives, and say why.
    pub(super) fn rehearse_loading(&mut self) {
        let Some(encoded) = self.rehearse_saving() else {
            return;
        };
        let begin = Timestamp::now();
        let state = DeviceState::decode(&encoded);
        let loaded = state.is_ok_and(|state| self.load(&state).is_ok());
        self.costs.load = loaded.then(|| Timestamp::now().since(begin));
    }

    /// From here on the longest gap that the guest measures is its pause, behind which it prints a
    /// beat first thing.
    fn forget_gaps(&self) {
        for (control, page) in self.control_pages().zip(&self.control_pages) {
            control.store(Word::GapMaxTicks, 0);
            control.store(Word::NextBeatTick, 0);
            self.marked.mark(*page);
        }
    }

    fn save(&self) -> Result<DeviceState, KvmGuestError> {
        let numbers: Vec<u32> = (0..).take(self.vcpus.len()).collect();
        let sections = each_vcpu(&self.vcpus, numbers, |vcpu, number| {
            Ok(self.hardware.state.save_vcpu(number, &*vcpu.at_rest()?)?)
        })?;
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
        let numbered = (0..).zip(sections).collect();
        let times = each_vcpu(&self.vcpus, numbered, |vcpu, (number, section)| {
            let vcpu = vcpu.at_rest()?;
            Ok(self.hardware.state.load_vcpu(number, &vcpu, section)?)
        })?;
        let advance = self.hardware.state.load_vm(vm)?;
        for (vcpu, time) in self.vcpus.iter().zip(times) {
            time.restore(&*vcpu.at_rest()?, &advance)?;
        }
        Ok(())
    }
}

/// Does something with each vCPU and its item; the results are in their order. In the blackout, so
/// not on a pool of threads that would have to be started first. The first few are this thread's
/// own.
fn each_vcpu<V: Sync, I: Send, T: Send>(
    vcpus: &[V],
    items: Vec<I>,
    work: impl Fn(&V, I) -> Result<T, KvmGuestError> + Sync,
) -> Result<Vec<T>, KvmGuestError> {
    let mut pieces: Vec<Vec<(&V, I)>> = Vec::new();
    for pair in vcpus.iter().zip(items) {
        match pieces.last_mut() {
            Some(piece) if piece.len() < VCPUS_PER_THREAD => piece.push(pair),
            _ => pieces.push(vec![pair]),
        }
    }
    let all = |piece: Vec<(&V, I)>| -> Result<Vec<T>, KvmGuestError> {
        piece
            .into_iter()
            .map(|(vcpu, item)| work(vcpu, item))
            .collect()
    };
    let results = std::thread::scope(|scope| {
        let all = &all;
        let mut pieces = pieces.into_iter();
        let own = pieces.next();
        let others: Vec<_> = pieces
            .map(|piece| std::thread::Builder::new().spawn_scoped(scope, move || all(piece)))
            .collect();
        let mut results: Vec<_> = own.map(all).into_iter().collect();
        for other in others {
            results.push(match other {
                // One that panicked has been told of on standard error.
                Ok(other) => other.join().unwrap_or(Err(KvmGuestError::StateThread)),
                Err(error) => Err(KvmGuestError::io("starting a thread for vCPU state")(error)),
            });
        }
        results
    });
    let results = results.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(results.into_iter().flatten().collect())
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

    fn handover_costs(&self) -> HandoverCosts {
        self.costs
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

    fn handover_costs(&self) -> HandoverCosts {
        self.costs
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vcpu_has_its_own_item_and_an_error_of_any_counts() {
        for count in [0, 1, 8, 9, 20, 64] {
            let vcpus: Vec<u32> = (0..count).collect();
            let items: Vec<u32> = (0..count).map(|vcpu| vcpu * 3).collect();
            let done = each_vcpu(&vcpus, items.clone(), |vcpu, item| {
                assert_eq!(item, vcpu * 3);
                Ok(item)
            });
            assert_eq!(done.unwrap(), items);
            let failed = each_vcpu(&vcpus, items, |vcpu, _| match *vcpu + 1 == count {
                true => Err(KvmGuestError::Running(*vcpu)),
                false => Ok(()),
            });
            assert_eq!(failed.is_err(), count > 0);
        }
    }
}
