//! Either kind of guest, behind the engine's traits: what a program holds that leaves the choice to
//! its operator or to the source.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use dunlin_engine::dirty::DirtySource;
use dunlin_engine::guest::{
    Guest, GuestError, GuestFactory, GuestOffer, HandoverCosts, IncomingGuest, PauseRecord,
    RunError, RunRecord, SelfCheck,
};
use dunlin_engine::layout::{Backing, GuestMemory};
use dunlin_engine::state::DeviceState;
use dunlin_transports::deadline::Deadline;
use dunlin_transports::memory::PageNumber;

use crate::dirty_trace::DirtyTrace;
use crate::kvm_guest::{self, KvmGuest};
use crate::process_guest::{self, ProcessGuest};
use crate::spec::{DirtyTracking, GuestSpec, VCPUS_MAX};
use crate::workload::control_page::{ControlPage, Statistics};
use crate::workload::plan::CONTROL_PAGES_ADDRESS;

/// What runs a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineKind {
    /// KVM.
    Kvm,
    /// Threads of this process.
    Process,
}

impl MachineKind {
    /// The kind's name, in offers and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => kvm_guest::KIND,
            Self::Process => process_guest::KIND,
        }
    }

    /// The kind with a name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Kvm, Self::Process]
            .into_iter()
            .find(|kind| kind.name() == name)
    }

    /// Whether this process may use `/dev/kvm`.
    pub fn kvm_is_usable() -> bool {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
    }
}

impl fmt::Display for MachineKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Where a guest's serial port writes.
pub type SerialOutput = Box<dyn io::Write + Send>;

/// A guest of either kind. Dropping it ends the guest.
pub struct Machine(Kind);

enum Kind {
    Kvm(Box<KvmGuest>),
    Process(Box<ProcessGuest>),
}

impl Machine {
    /// Makes a guest and lets it run. What it prints goes to `serial`.
    ///
    /// # Errors
    ///
    /// When the specification is not possible or the host lacks what it needs.
    pub fn start(
        kind: MachineKind,
        spec: &GuestSpec,
        serial: SerialOutput,
    ) -> Result<Self, GuestError> {
        Ok(Self(match kind {
            MachineKind::Kvm => Kind::Kvm(Box::new(KvmGuest::start(spec, serial)?)),
            MachineKind::Process => {
                let guest = ProcessGuest::start(spec, serial)
                    .map_err(|error| GuestError::message(error.to_string()))?;
                Kind::Process(Box::new(guest))
            }
        }))
    }

    /// Makes a guest of threads that rewrites memory as a trace says: see [`ProcessGuest::replay`].
    ///
    /// # Errors
    ///
    /// When the trace is of a guest with other memory, or the host lacks what it needs.
    pub fn replay(
        spec: &GuestSpec,
        trace: DirtyTrace,
        serial: SerialOutput,
    ) -> Result<Self, GuestError> {
        let guest = ProcessGuest::replay(spec, trace, serial)
            .map_err(|error| GuestError::message(error.to_string()))?;
        Ok(Self(Kind::Process(Box::new(guest))))
    }

    /// Makes room for the guest that an offer describes.
    ///
    /// # Errors
    ///
    /// When the offer is of no kind that is known here, or the host can't run such a guest.
    pub fn incoming(
        offer: &GuestOffer,
        backing: Backing,
        tracking: DirtyTracking,
        serial: SerialOutput,
    ) -> Result<Self, GuestError> {
        match MachineKind::from_name(&offer.kind) {
            Some(MachineKind::Kvm) => {
                let guest = KvmGuest::incoming(offer, backing, tracking, serial)?;
                Ok(Self(Kind::Kvm(Box::new(guest))))
            }
            Some(MachineKind::Process) => {
                let guest = ProcessGuest::incoming(offer, backing, serial)
                    .map_err(|error| GuestError::message(error.to_string()))?;
                Ok(Self(Kind::Process(Box::new(guest))))
            }
            None => Err(GuestError::message(format!(
                "a guest of kind '{}' can't run here, only kinds '{}' and '{}' can",
                offer.kind,
                MachineKind::Kvm,
                MachineKind::Process
            ))),
        }
    }

    /// Its memory.
    pub fn guest_memory(&self) -> &GuestMemory {
        match &self.0 {
            Kind::Kvm(guest) => Guest::memory(guest.as_ref()),
            Kind::Process(guest) => guest.memory(),
        }
    }

    /// What each vCPU has done, in vCPU order.
    pub fn statistics(&self) -> Vec<Statistics> {
        match &self.0 {
            Kind::Kvm(guest) => guest.statistics(),
            Kind::Process(guest) => guest.statistics(),
        }
    }

    /// Whether every vCPU runs.
    pub fn running(&self) -> bool {
        match &self.0 {
            Kind::Kvm(guest) => guest.running(),
            Kind::Process(guest) => guest.running(),
        }
    }

    /// Why the guest can't run any more, once one of its vCPUs has crashed.
    pub fn crashed(&self) -> Option<String> {
        match &self.0 {
            Kind::Kvm(guest) => guest.crashed(),
            // A thread that panics is the process's own failure.
            Kind::Process(_) => None,
        }
    }

    /// What went wrong since the last call without keeping the guest from running.
    pub fn take_warning(&mut self) -> Option<String> {
        match &mut self.0 {
            Kind::Kvm(guest) => guest.take_warning(),
            Kind::Process(_) => None,
        }
    }

    /// A gauge of what the guest does.
    pub fn gauge(&self) -> Gauge {
        let vcpus = self.statistics().len() as u64;
        let memory = self.guest_memory().clone();
        let layout = memory.layout();
        let first = layout.page_of(CONTROL_PAGES_ADDRESS);
        let control_pages = first
            .into_iter()
            .flat_map(|first| (0..vcpus).map(move |vcpu| PageNumber(first.0 + vcpu)))
            .collect();
        Gauge {
            control_pages,
            memory,
        }
    }

    fn guest(&self) -> &dyn Guest {
        match &self.0 {
            Kind::Kvm(guest) => guest.as_ref(),
            Kind::Process(guest) => guest.as_ref(),
        }
    }

    fn guest_mut(&mut self) -> &mut dyn Guest {
        match &mut self.0 {
            Kind::Kvm(guest) => guest.as_mut(),
            Kind::Process(guest) => guest.as_mut(),
        }
    }

    fn incoming_mut(&mut self) -> &mut dyn IncomingGuest {
        match &mut self.0 {
            Kind::Kvm(guest) => guest.as_mut(),
            Kind::Process(guest) => guest.as_mut(),
        }
    }
}

impl Guest for Machine {
    fn offer(&self) -> Result<GuestOffer, GuestError> {
        self.guest().offer()
    }

    fn memory(&self) -> &GuestMemory {
        self.guest_memory()
    }

    fn dirty_sources(&self) -> Vec<Arc<dyn DirtySource>> {
        self.guest().dirty_sources()
    }

    fn pause(&mut self, deadline: Deadline) -> Result<PauseRecord, GuestError> {
        self.guest_mut().pause(deadline)
    }

    fn save_state(&mut self) -> Result<DeviceState, GuestError> {
        self.guest_mut().save_state()
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.guest_mut().resume()
    }

    fn handover_costs(&self) -> HandoverCosts {
        self.guest().handover_costs()
    }

    fn self_check(&self) -> Option<Arc<dyn SelfCheck>> {
        self.guest().self_check()
    }
}

impl IncomingGuest for Machine {
    fn memory(&self) -> &GuestMemory {
        self.guest_memory()
    }

    fn load_state(&mut self, state: &DeviceState) -> Result<(), GuestError> {
        self.incoming_mut().load_state(state)
    }

    fn run(&mut self, epoch: u64) -> Result<RunRecord, RunError> {
        self.incoming_mut().run(epoch)
    }

    fn guest_visible_pause(&mut self, deadline: Deadline) -> Option<Duration> {
        self.incoming_mut().guest_visible_pause(deadline)
    }

    fn handover_costs(&self) -> HandoverCosts {
        self.guest().handover_costs()
    }

    fn self_check(&self) -> Option<Arc<dyn SelfCheck>> {
        self.guest().self_check()
    }
}

/// Reads what a guest does while someone else holds the guest. It keeps the guest's memory.
#[derive(Clone, Debug)]
pub struct Gauge {
    memory: GuestMemory,
    control_pages: Vec<PageNumber>,
}

impl Gauge {
    /// All vCPUs' counts together, and the longest gap of any.
    pub fn read(&self) -> Statistics {
        self.control_pages
            .iter()
            .filter_map(|page| ControlPage::new(self.memory.lane_map(), *page).ok())
            .map(ControlPage::statistics)
            .fold(Statistics::default(), |sum, vcpu| Statistics {
                // The guest wrote these numbers, so they may be anything.
                pages_written: sum.pages_written.wrapping_add(vcpu.pages_written),
                beats: sum.beats.wrapping_add(vcpu.beats),
                loops: sum.loops.wrapping_add(vcpu.loops),
                longest_gap: sum.longest_gap.max(vcpu.longest_gap),
            })
    }
}

/// Makes the one guest that is let in.
pub struct MachineFactory {
    backing: Option<Backing>,
    tracking: DirtyTracking,
    serial: Option<SerialOutput>,
}

impl MachineFactory {
    /// A factory. `backing`: what backs the guest's memory here; `None`: what the source has.
    pub fn new(backing: Option<Backing>, tracking: DirtyTracking, serial: SerialOutput) -> Self {
        Self {
            backing,
            tracking,
            serial: Some(serial),
        }
    }
}

impl GuestFactory for MachineFactory {
    type Guest = Machine;

    fn create(&mut self, offer: &GuestOffer) -> Result<Machine, GuestError> {
        if offer.vcpus > VCPUS_MAX {
            return Err(GuestError::message(format!(
                "{} vCPUs are too many, a guest here has at most {VCPUS_MAX}",
                offer.vcpus
            )));
        }
        let offered = offer.layout.regions().first().map(|region| region.backing);
        let backing = self.backing.or(offered).unwrap_or(Backing::Memfd);
        let serial = self
            .serial
            .take()
            .ok_or_else(|| GuestError::message("the one guest of this process is made already"))?;
        Machine::incoming(offer, backing, self.tracking, serial)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn spec() -> GuestSpec {
        GuestSpec {
            name: "machine".to_owned(),
            uuid: Uuid::from_u128(7),
            memory_bytes: 16 << 20,
            vcpus: 2,
            backing: Backing::Memfd,
            workload: "hot=1MiB,rate=max".parse().unwrap(),
            tracking: DirtyTracking::Auto,
        }
    }

    #[test]
    fn a_gauge_reads_on_while_the_machine_runs() {
        let machine = Machine::start(MachineKind::Process, &spec(), Box::new(io::sink())).unwrap();
        let gauge = machine.gauge();
        let before = gauge.read().pages_written;
        let end = Deadline::after(Duration::from_secs(30));
        while gauge.read().pages_written == before {
            assert!(!end.passed(), "the guest writes nothing");
            std::thread::yield_now();
        }
        assert!(machine.running());
    }

    #[test]
    fn a_factory_makes_what_the_offer_says_and_only_once() {
        let machine = Machine::start(MachineKind::Process, &spec(), Box::new(io::sink())).unwrap();
        let offer = machine.offer().unwrap();
        let factory = || {
            MachineFactory::new(
                Some(Backing::Anonymous),
                DirtyTracking::Auto,
                Box::new(io::sink()),
            )
        };
        let mut one = factory();
        let made = one.create(&offer).unwrap();
        let region = made.guest_memory().layout().regions()[0];
        assert_eq!(region.backing, Backing::Anonymous);
        assert!(one.create(&offer).is_err());

        let mut odd = offer.clone();
        odd.kind = "toaster".to_owned();
        let reason = factory().create(&odd).err().unwrap().to_string();
        assert!(reason.contains("'toaster'"), "{reason}");
    }

    #[test]
    fn kinds_have_names() {
        for kind in [MachineKind::Kvm, MachineKind::Process] {
            assert_eq!(MachineKind::from_name(kind.name()), Some(kind));
        }
    }
}
