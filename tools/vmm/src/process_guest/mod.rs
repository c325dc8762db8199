//! Threads of this process that run the workload: a guest without KVM, for hosts that have none and
//! for tests of everything else.
//!
//! | room | what is in it |
//! |---|---|
//! | here | [`ProcessGuest`], behind the engine's traits |
//! | `program` | what one thread does, as a vCPU's program says |
//! | `writers` | the threads: running, parking, ending |
//! | `replay` | rewriting memory as a trace says |
//! | `state` | what is moved besides memory |

mod program;
mod replay;
mod state;
#[cfg(test)]
mod tests;
mod writers;

pub use self::writers::WriterError;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use dunlin_engine::dirty::{DirtySource, MarkedPages};
use dunlin_engine::guest::{
    Guest, GuestError, GuestIdentity, GuestOffer, IncomingGuest, PauseRecord, RunError, RunRecord,
    SelfCheck, valid_guest_name,
};
use dunlin_engine::layout::{Backing, GuestMemory, Layout};
use dunlin_engine::process::ProcessMemoryTracker;
use dunlin_engine::state::{DeviceState, StateError};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::memory::MemoryError;
use thiserror::Error;
use uuid::Uuid;

use self::program::Program;
use self::replay::{BeginsReplay, Replay};
use self::state::ClockState;
use self::writers::Writers;
use crate::dirty_trace::DirtyTrace;
use crate::memory::{AllocateError, allocate, allocate_for_arrival, pc_layout, rebacked};
use crate::serial_queue::SerialQueue;
use crate::size::format_size;
use crate::spec::GuestSpec;
use crate::workload::Workload;
use crate::workload::check::WorkloadCheck;
use crate::workload::control_page::{ControlPage, ControlSettings, GuestClock, Statistics, Word};
use crate::workload::fill::fill;
use crate::workload::plan::{Plan, PlanError};

/// The kind in a guest's offer.
pub const KIND: &str = "process";

/// A tick is a nanosecond of `CLOCK_MONOTONIC`.
const TICKS_PER_SECOND: u64 = 1_000_000_000;

/// How long threads may take to begin to run. They need no more than to be scheduled.
const START_TIME_MAX: Duration = Duration::from_secs(10);

/// How long output may take to be written when a guest is dropped.
const SHUTDOWN_MAX: Duration = Duration::from_secs(2);

/// How often the guest's own measure is looked at while it is waited for.
const LOOK_INTERVAL: Duration = Duration::from_micros(200);

/// The ownership epoch of a guest that was started and never moved.
const FIRST_EPOCH: u64 = 1;

/// Why a guest can't be made or run.
#[derive(Debug, Error)]
pub enum ProcessGuestError {
    /// Its name is not allowed.
    #[error("'{0}' is not a guest's name: 1 to 40 of A-Z a-z 0-9 . _ -, not starting with . or -")]
    Name(String),
    /// The offer is of a guest that something else runs.
    #[error("a guest of kind '{0}' can't run as threads of a process, only '{KIND}' can")]
    Kind(String),
    /// Its memory can't be had.
    #[error(transparent)]
    Allocate(#[from] AllocateError),
    /// Its workload can't be laid out.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Memory and plan don't fit together.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Its threads can't be made, parked or run.
    #[error(transparent)]
    Writers(#[from] WriterError),
    /// Its configuration or state can't be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// A control page says something else than the configuration.
    #[error("the control page of vCPU {0} does not fit the guest's configuration")]
    ControlPage(u32),
    /// The thread that writes out what it prints can't be made.
    #[error("the thread of the guest's serial port can't be made: {0}")]
    Serial(#[source] io::Error),
    /// The trace is of another guest.
    #[error(
        "the trace is of a guest with {} of memory, laid out otherwise than this one",
        format_size(*.0)
    )]
    Trace(u64),
    /// Something was asked for that a running guest can't do.
    #[error("the guest runs; it has to be paused first")]
    NotPaused,
}

/// A guest whose vCPUs are threads of this process. Dropping it ends them.
///
/// All that a thread knows is in its control page, so what is moved besides memory is the clock.
pub struct ProcessGuest {
    identity: GuestIdentity,
    memory: GuestMemory,
    plan: Plan,
    workload: Workload,
    writers: Writers,
    serial: SerialQueue,
    tracker: Arc<ProcessMemoryTracker>,
    /// The control pages that `pause` wrote, which it does through the lanes' mapping.
    marked: Arc<MarkedPages>,
    /// What is rewritten here: a guest that was moved writes nothing where it arrives.
    replay: Option<Arc<Replay>>,
    /// Each vCPU's loops before the guest was last let run.
    loops_before: Vec<u64>,
}

impl ProcessGuest {
    /// Makes a guest and lets it run. What it prints goes to `serial`.
    ///
    /// # Errors
    ///
    /// When the specification is not possible or the host lacks what it needs.
    pub fn start(
        spec: &GuestSpec,
        serial: Box<dyn io::Write + Send>,
    ) -> Result<Self, ProcessGuestError> {
        Self::begin(spec, None, serial)
    }

    /// Makes a guest that will rewrite memory as a trace says, from the moment on in which tracking
    /// begins. Its workload should have the pattern [`Pattern::Replay`]: pages that are none that the
    /// guest rewrites are left alone.
    ///
    /// [`Pattern::Replay`]: crate::workload::Pattern::Replay
    ///
    /// # Errors
    ///
    /// Also when the trace is of a guest with other memory.
    pub fn replay(
        spec: &GuestSpec,
        trace: DirtyTrace,
        serial: Box<dyn io::Write + Send>,
    ) -> Result<Self, ProcessGuestError> {
        Self::begin(spec, Some(trace), serial)
    }

    fn begin(
        spec: &GuestSpec,
        trace: Option<DirtyTrace>,
        serial: Box<dyn io::Write + Send>,
    ) -> Result<Self, ProcessGuestError> {
        if !valid_guest_name(&spec.name) {
            return Err(ProcessGuestError::Name(spec.name.clone()));
        }
        let identity = GuestIdentity {
            uuid: spec.uuid,
            name: spec.name.clone(),
            epoch: FIRST_EPOCH,
        };
        let layout = pc_layout(spec.memory_bytes, spec.backing)?;
        if let Some(trace) = trace.as_ref().filter(|trace| !trace.fits(&layout)) {
            return Err(ProcessGuestError::Trace(trace.memory_bytes()));
        }
        let replay = trace.map(|trace| Arc::new(Replay::new(trace)));
        let workload = spec.workload.clone();
        let memory = allocate(layout)?;
        let mut guest = Self::new(identity, memory, spec.vcpus, workload, replay, serial)?;
        fill(
            &guest.memory,
            &guest.plan,
            &guest.workload,
            clock(&guest.workload),
            seed(spec.uuid),
        )?;
        guest.let_run()?;
        Ok(guest)
    }

    /// Makes room for the guest that an offer describes, on this side's own backing: fresh memory,
    /// and threads that wait.
    ///
    /// # Errors
    ///
    /// When the offer is not one of such a guest, or the host lacks what it needs.
    pub fn incoming(
        offer: &GuestOffer,
        backing: Backing,
        serial: Box<dyn io::Write + Send>,
    ) -> Result<Self, ProcessGuestError> {
        if offer.kind != KIND {
            return Err(ProcessGuestError::Kind(offer.kind.clone()));
        }
        if !valid_guest_name(&offer.identity.name) {
            return Err(ProcessGuestError::Name(offer.identity.name.clone()));
        }
        let mut configuration = offer.configuration.clone();
        let section = configuration.require(Workload::SECTION, Workload::SECTION_VERSION)?;
        let workload = Workload::from_section(section)?;
        configuration.finish()?;
        let layout = rebacked(&offer.layout, backing)?;
        Self::new(
            offer.identity.clone(),
            allocate_for_arrival(layout)?,
            offer.vcpus,
            workload,
            None,
            serial,
        )
    }

    /// A guest with fresh memory, whose threads wait.
    fn new(
        identity: GuestIdentity,
        memory: GuestMemory,
        vcpus: u32,
        workload: Workload,
        replay: Option<Arc<Replay>>,
        serial: Box<dyn io::Write + Send>,
    ) -> Result<Self, ProcessGuestError> {
        let plan = Plan::new(memory.layout(), vcpus, &workload)?;
        let serial = SerialQueue::start(serial).map_err(ProcessGuestError::Serial)?;
        let mut programs = Vec::new();
        for (settings, control_page) in settings(&plan, &workload).zip(plan.control_page_numbers())
        {
            let mut program = Program::new(
                memory.guest_map(),
                control_page,
                &plan,
                settings,
                &serial.input(),
            )?;
            if let Some(replay) = &replay {
                program.replays(replay);
            }
            programs.push(program);
        }
        Ok(Self {
            identity,
            tracker: Arc::new(ProcessMemoryTracker::new(memory.clone())),
            marked: Arc::new(MarkedPages::new(plan.layout().page_span())),
            writers: Writers::spawn(programs)?,
            serial,
            memory,
            plan,
            workload,
            replay,
            loops_before: Vec::new(),
        })
    }

    /// Who it is.
    pub fn identity(&self) -> &GuestIdentity {
        &self.identity
    }

    /// Its memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// What it does.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// Whether its threads run.
    pub fn running(&self) -> bool {
        self.writers.running()
    }

    /// What each vCPU has done, in vCPU order.
    pub fn statistics(&self) -> Vec<Statistics> {
        self.control_pages().map(ControlPage::statistics).collect()
    }

    /// The control pages, in vCPU order, through the lanes' mapping.
    fn control_pages(&self) -> impl Iterator<Item = ControlPage<'_>> {
        // `new` made a program of each, so each is there.
        self.plan
            .control_page_numbers()
            .into_iter()
            .filter_map(|page| ControlPage::new(self.memory.lane_map(), page).ok())
    }

    fn let_run(&mut self) -> Result<RunRecord, ProcessGuestError> {
        self.loops_before = self
            .control_pages()
            .map(|control| control.load(Word::Loops))
            .collect();
        let running = self.writers.run(Deadline::after(START_TIME_MAX))?;
        Ok(RunRecord { running })
    }

    fn park(&mut self, deadline: Deadline) -> Result<PauseRecord, ProcessGuestError> {
        let parked = self.writers.park(deadline)?;
        // From here on, the longest gap will be the pause, and behind it a beat is due.
        for control in self.control_pages() {
            control.store(Word::GapMaxTicks, 0);
            control.store(Word::NextBeatTick, 0);
        }
        for page in self.plan.control_page_numbers() {
            self.marked.mark(page);
        }
        Ok(PauseRecord { parked })
    }

    fn load(&mut self, state: &DeviceState) -> Result<(), ProcessGuestError> {
        let mut state = state.clone();
        let clock = ClockState::take(&mut state)?;
        state.finish()?;
        // The peer wrote these pages. The threads go by the plan alone, so nothing here can lead
        // them astray, but a guest that does not fit its configuration must not run.
        for (settings, control) in settings(&self.plan, &self.workload).zip(self.control_pages()) {
            if !control.has_settings(&settings) {
                return Err(ProcessGuestError::ControlPage(settings.vcpu));
            }
        }
        let shift = clock.ticks_ahead(&ClockState::now());
        for control in self.control_pages() {
            for word in [Word::LastTick, Word::NextWriteTick, Word::NextBeatTick] {
                let tick = control.load(word);
                // 0 is not a time.
                if tick != 0 {
                    control.store(word, tick.saturating_add_signed(shift));
                }
            }
        }
        Ok(())
    }

    fn checks(&self) -> Arc<dyn SelfCheck> {
        Arc::new(WorkloadCheck::new(self.memory.clone(), self.plan.clone()))
    }
}

impl Drop for ProcessGuest {
    fn drop(&mut self) {
        self.serial.close(Deadline::after(SHUTDOWN_MAX));
    }
}

/// What each vCPU is told, in vCPU order.
fn settings(plan: &Plan, workload: &Workload) -> impl Iterator<Item = ControlSettings> {
    (0..plan.vcpus())
        .filter_map(move |vcpu| ControlSettings::new(plan, vcpu, workload, clock(workload)))
}

/// What the guest's ticks are, and how many of them lie between two beats.
fn clock(workload: &Workload) -> GuestClock {
    GuestClock {
        ticks_per_second: TICKS_PER_SECOND,
        heartbeat_ticks: workload.beat.ticks(TICKS_PER_SECOND),
    }
}

/// The seed of a guest's fixed pages: guests differ, and one guest is always the same.
fn seed(uuid: Uuid) -> u64 {
    let (high, low) = uuid.as_u64_pair();
    high ^ low
}

impl Guest for ProcessGuest {
    fn offer(&self) -> Result<GuestOffer, GuestError> {
        let mut configuration = DeviceState::new();
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
        let tracker = Arc::clone(&self.tracker) as Arc<dyn DirtySource>;
        let tracker = match &self.replay {
            None => tracker,
            Some(replay) => Arc::new(BeginsReplay {
                source: tracker,
                replay: Arc::clone(replay),
            }),
        };
        vec![tracker, Arc::clone(&self.marked) as Arc<dyn DirtySource>]
    }

    fn pause(&mut self, deadline: Deadline) -> Result<PauseRecord, GuestError> {
        self.park(deadline)
            .map_err(|error| GuestError::new("pausing the guest's threads", error))
    }

    fn save_state(&mut self) -> Result<DeviceState, GuestError> {
        if !self.writers.parked() {
            return Err(GuestError::new(
                "saving the guest's state",
                ProcessGuestError::NotPaused,
            ));
        }
        let mut state = DeviceState::new();
        state.push(ClockState::now().to_section());
        Ok(state)
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.let_run()
            .map(|_| ())
            .map_err(|error| GuestError::new("resuming the guest's threads", error))
    }

    fn self_check(&self) -> Option<Arc<dyn SelfCheck>> {
        Some(self.checks())
    }
}

impl IncomingGuest for ProcessGuest {
    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn load_state(&mut self, state: &DeviceState) -> Result<(), GuestError> {
        self.load(state)
            .map_err(|error| GuestError::new("loading the guest's state", error))
    }

    fn run(&mut self, epoch: u64) -> Result<RunRecord, RunError> {
        let record = self.let_run().map_err(|error| {
            let error = GuestError::new("running the guest's threads", error);
            if self.writers.withdraw() {
                RunError::MayHaveRun(error)
            } else {
                RunError::NeverEntered(error)
            }
        })?;
        self.identity.epoch = epoch;
        Ok(record)
    }

    fn guest_visible_pause(&mut self, deadline: Deadline) -> Option<Duration> {
        loop {
            let statistics = self.statistics();
            // The first loop measured the pause.
            let all_looped = statistics.len() == self.loops_before.len()
                && statistics
                    .iter()
                    .zip(&self.loops_before)
                    .all(|(now, before)| now.loops != *before);
            if all_looped {
                return statistics.iter().map(|vcpu| vcpu.longest_gap).max();
            }
            if deadline.passed() {
                return None;
            }
            std::thread::sleep(LOOK_INTERVAL.min(deadline.remaining()));
        }
    }

    fn self_check(&self) -> Option<Arc<dyn SelfCheck>> {
        Some(self.checks())
    }
}
