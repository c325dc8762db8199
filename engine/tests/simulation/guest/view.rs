//! What the engine sees of a guest: one to send, or one that comes.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dunlin_engine::dirty::DirtySource;
use dunlin_engine::guest::{
    Guest, GuestError, GuestFactory, GuestIdentity, GuestOffer, IncomingGuest, PauseRecord,
    RunError, RunRecord, SelfCheck,
};
use dunlin_engine::layout::GuestMemory;
use dunlin_engine::milestone::Milestone;
use dunlin_engine::state::{DeviceState, Section};
use dunlin_transports::deadline::Deadline;

use super::checks::{OwnPages, Tracker};
use super::{EPOCH, Machine, Shape, one};
use crate::ledger::{Ledger, Side, page_content};
use crate::stage::{Call, Moment, Stage};

/// The engine's view of a machine: a guest to send, or one that comes. Dropping it discards it.
pub(crate) struct SimulatedGuest(pub(super) Machine);

impl Drop for SimulatedGuest {
    fn drop(&mut self) {
        let machine = &self.0;
        machine.0.discarded.store(true, Ordering::SeqCst);
        machine.0.ledger.gone(machine.0.side);
        machine.end();
    }
}

impl SimulatedGuest {
    /// The machine.
    pub(crate) fn machine(&self) -> &Machine {
        &self.0
    }

    fn checks(&self) -> Option<Arc<dyn SelfCheck>> {
        let check = || -> Arc<dyn SelfCheck> { Arc::new(OwnPages(self.0.clone())) };
        self.0.0.shape.self_check.then(check)
    }
}

impl Guest for SimulatedGuest {
    fn offer(&self) -> Result<GuestOffer, GuestError> {
        let inner = &self.0.0;
        Ok(GuestOffer {
            identity: GuestIdentity {
                uuid: uuid::Uuid::from_bytes([3; 16]),
                name: "simulated".to_owned(),
                epoch: EPOCH,
            },
            kind: "simulated".to_owned(),
            vcpus: inner.shape.vcpus,
            layout: inner.memory.layout().clone(),
            configuration: DeviceState::new(),
        })
    }

    fn memory(&self) -> &GuestMemory {
        &self.0.0.memory
    }

    fn dirty_sources(&self) -> Vec<Arc<dyn DirtySource>> {
        vec![Arc::new(Tracker(self.0.clone()))]
    }

    fn pause(&mut self, deadline: Deadline) -> Result<PauseRecord, GuestError> {
        let machine = &self.0;
        let called = machine.called(Call::Pause);
        if !machine.stand_still(deadline) {
            return Err(GuestError::message("a vCPU could not be parked"));
        }
        called?;
        Ok(PauseRecord {
            parked: machine.moments(),
        })
    }

    fn save_state(&mut self) -> Result<DeviceState, GuestError> {
        let machine = &self.0;
        machine.called(Call::Save)?;
        if machine.0.shape.save_dirties
            && let Some(page) = machine.0.pages.first().copied()
        {
            let known = &machine.0.generations[page as usize];
            let before = known.fetch_add(1, Ordering::SeqCst);
            machine.0.ledger.write_paused(page, before);
            let map = machine.0.memory.guest_map();
            let new = page_content(page, before + 1);
            map.copy_in(one(page), &new).unwrap();
            machine.mark(page);
        }
        let generations = machine.generations();
        let bytes: Vec<u8> = generations
            .iter()
            .flat_map(|one| one.to_le_bytes())
            .collect();
        let mut section = Section::new("generations", 1);
        // A guest whose state was damaged on the way is not to be run: the control connection of a
        // real transport has checksums of its own.
        section.put_u64(2, xxhash_rust::xxh3::xxh3_64(&bytes));
        section.put(1, bytes);
        let mut state = DeviceState::new();
        state.push(section);
        Ok(state)
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.0.called(Call::Resume)?;
        self.0.go_on();
        Ok(())
    }

    fn self_check(&self) -> Option<Arc<dyn SelfCheck>> {
        self.checks()
    }
}

impl IncomingGuest for SimulatedGuest {
    fn memory(&self) -> &GuestMemory {
        &self.0.0.memory
    }

    fn load_state(&mut self, state: &DeviceState) -> Result<(), GuestError> {
        let machine = &self.0;
        machine.called(Call::Load)?;
        let bad = |error| GuestError::new("loading state", error);
        let mut state = state.clone();
        let mut section = state.require("generations", 1).map_err(bad)?;
        let bytes = section.require(1).map_err(bad)?;
        let digest = section.require_u64(2).map_err(bad)?;
        section.finish().map_err(bad)?;
        state.finish().map_err(bad)?;
        let known = &machine.0.generations;
        if digest != xxhash_rust::xxh3::xxh3_64(&bytes) || bytes.len() != known.len() * 8 {
            return Err(GuestError::message("the state was damaged on the way"));
        }
        for (known, bytes) in known.iter().zip(bytes.chunks_exact(8)) {
            let loaded = bytes
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            known.store(loaded, Ordering::SeqCst);
        }
        Ok(())
    }

    fn run(&mut self, _epoch: u64) -> Result<RunRecord, RunError> {
        let machine = &self.0;
        machine.called(Call::Run).map_err(RunError::NeverEntered)?;
        if let Some(words) = machine
            .0
            .stage
            .take_failure(Side::Destination, Call::Entered)
        {
            // One vCPU was entered, and wrote; the next one could not be.
            machine
                .0
                .ledger
                .enter(Side::Destination, &machine.generations());
            machine.write(machine.0.pages[0]);
            machine.0.ledger.park(Side::Destination);
            return Err(RunError::MayHaveRun(GuestError::message(words)));
        }
        machine.go_on();
        Ok(RunRecord {
            running: machine.moments(),
        })
    }

    fn guest_visible_pause(&mut self, _deadline: Deadline) -> Option<Duration> {
        None
    }

    fn self_check(&self) -> Option<Arc<dyn SelfCheck>> {
        self.checks()
    }
}

/// Makes one machine for the guest that comes, and shows it to the scenario.
pub(crate) struct Room {
    /// What the guest is known to be.
    pub(crate) shape: Shape,
    /// Where it happens.
    pub(crate) stage: Stage,
    /// The ledger.
    pub(crate) ledger: Ledger,
    /// Takes the machine, once it is made.
    pub(crate) made: Arc<Mutex<Option<Machine>>>,
}

impl GuestFactory for Room {
    type Guest = SimulatedGuest;

    fn create(&mut self, offer: &GuestOffer) -> Result<SimulatedGuest, GuestError> {
        self.stage.called(Side::Destination, Call::Create);
        if let Some(words) = self.stage.take_failure(Side::Destination, Call::Create) {
            return Err(GuestError::message(words));
        }
        if offer.layout != self.shape.layout() {
            return Err(GuestError::message("no room for a guest of another shape"));
        }
        let machine = Machine::new(Side::Destination, &self.shape, &self.stage, &self.ledger);
        *self.made.lock().unwrap() = Some(machine.clone());
        Ok(machine.guest())
    }

    fn reached(&mut self, milestone: Milestone) {
        self.stage.passes(Moment::Reaches(milestone));
    }
}
