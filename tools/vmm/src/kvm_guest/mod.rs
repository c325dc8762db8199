//! A KVM virtual machine that runs the workload.
//!
//! | room | what is in it |
//! |---|---|
//! | here | [`KvmGuest`]: making one, on either side of a move |
//! | `error` | why one can't be made, or fails |
//! | `moving` | the engine's traits for it |
//! | `hardware` | the VM: memory slots, vCPUs, dirty tracking, access to state |
//! | `program` | what the vCPUs execute |
//! | `long_mode` | the state in which a vCPU begins: 64-bit code at CPL 3 |
//! | `vcpu_thread` | a vCPU's thread: enter, handle exits, park |
//! | `kick` | getting a vCPU out of the guest |
//! | `serial_port` | the serial port, and where its output goes |

mod error;
mod hardware;
mod kick;
mod long_mode;
mod moving;
mod program;
mod serial_port;
#[cfg(test)]
mod tests;
mod vcpu_thread;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use dunlin_engine::dirty::MarkedPages;
use dunlin_engine::guest::{GuestIdentity, GuestOffer, HandoverCosts};
use dunlin_engine::layout::{Backing, GuestMemory};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::memory::PageNumber;

pub use self::error::KvmGuestError;
use self::hardware::{CpuidSource, Hardware};
use self::serial_port::{Ports, SerialPort};
use self::vcpu_thread::{Crew, VcpuThread};
use crate::memory::{allocate, allocate_for_arrival, pc_layout, rebacked};
use crate::spec::{DirtyTracking, GuestSpec, VCPUS_MAX};
use crate::workload::Workload;
use crate::workload::control_page::{ControlPage, GuestClock, Statistics};
use crate::workload::fill::fill;
use crate::workload::plan::Plan;

/// What runs the guest, as offers tell it.
pub const KIND: &str = "kvm";

/// The epoch of a guest that was never moved.
const FIRST_EPOCH: u64 = 1;

/// How long the vCPUs and the serial output may take to end when a guest is dropped; what has not
/// ended by then is left behind. A vCPU leaves the guest within microseconds of its kick.
const SHUTDOWN_MAX: Duration = Duration::from_secs(2);

/// A virtual machine that runs the workload, and can be moved.
pub struct KvmGuest {
    identity: GuestIdentity,
    workload: Workload,
    plan: Plan,
    memory: GuestMemory,
    control_pages: Vec<PageNumber>,
    hardware: Hardware,
    crew: Arc<Crew>,
    vcpus: Vec<VcpuThread>,
    serial: Arc<SerialPort>,
    marked: Arc<MarkedPages>,
    /// The vCPUs' loop counters when they last began to run.
    loops_at_run: Vec<u64>,
    /// What its share of a handover takes, as far as it was measured.
    costs: HandoverCosts,
    /// What went wrong without keeping the guest from running, until somebody takes it.
    warning: Option<String>,
}

/// What differs between a guest of the product and one of a test.
struct Options {
    /// The size of each vCPU's dirty ring, where rings are used.
    ring_bytes: u32,
    program: &'static [u8],
    /// Whether fixed pages get their contents; without, only control pages and hot pages do.
    fill_fixed_pages: bool,
    /// What is at the ports besides the serial port.
    other_ports: Option<Arc<dyn Ports>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ring_bytes: hardware::RING_BYTES,
            program: program::workload(),
            fill_fixed_pages: true,
            other_ports: None,
        }
    }
}

impl KvmGuest {
    /// Makes a guest and lets it run. What it prints goes to `serial`.
    ///
    /// # Errors
    ///
    /// When there is no KVM, not enough memory, or no room for the workload.
    pub fn start(
        spec: &GuestSpec,
        serial: Box<dyn io::Write + Send>,
    ) -> Result<Self, KvmGuestError> {
        Self::start_with(spec, serial, &Options::default())
    }

    /// Makes room for a guest that is being sent here: all but its state. Its vCPUs wait.
    ///
    /// # Errors
    ///
    /// When this host can't run it; the error is for the source's operator to read.
    pub fn incoming(
        offer: &GuestOffer,
        backing: Backing,
        tracking: DirtyTracking,
        serial: Box<dyn io::Write + Send>,
    ) -> Result<Self, KvmGuestError> {
        Self::incoming_with(offer, backing, tracking, serial, &Options::default())
    }

    fn start_with(
        spec: &GuestSpec,
        serial: Box<dyn io::Write + Send>,
        options: &Options,
    ) -> Result<Self, KvmGuestError> {
        let layout = pc_layout(spec.memory_bytes, spec.backing)?;
        let plan = Plan::new(&layout, spec.vcpus, &spec.workload)?;
        let memory = allocate(layout)?;
        let cpuid = CpuidSource::Host { vcpus: spec.vcpus };
        let hardware = Hardware::new(&memory, cpuid, spec.tracking, options.ring_bytes)?;
        let ticks_per_second = u64::from(hardware.platform.tsc_khz) * 1000;
        let clock = GuestClock {
            ticks_per_second,
            heartbeat_ticks: spec.workload.beat.ticks(ticks_per_second),
        };
        if options.fill_fixed_pages {
            let seed = spec.uuid.as_u64_pair().0;
            fill(&memory, &plan, &spec.workload, clock, seed)?;
        } else {
            program::prepare_workload_pages(&memory, &plan, &spec.workload, clock)?;
        }
        program::load(&memory, options.program)?;
        long_mode::write_page_tables(&memory)?;
        long_mode::write_tss(&memory)?;
        for number in 0..spec.vcpus {
            if let (Some(vcpu), Some(control)) = (hardware.vcpu(number), plan.control_page(number))
            {
                long_mode::enter_at_program(vcpu, control)?;
            }
        }
        let identity = GuestIdentity {
            uuid: spec.uuid,
            name: spec.name.clone(),
            epoch: FIRST_EPOCH,
        };
        let workload = spec.workload.clone();
        let mut guest =
            Self::assemble(identity, workload, plan, memory, hardware, serial, options)?;
        guest.rehearse_saving();
        guest.enter_all()?;
        Ok(guest)
    }

    fn incoming_with(
        offer: &GuestOffer,
        backing: Backing,
        tracking: DirtyTracking,
        serial: Box<dyn io::Write + Send>,
        options: &Options,
    ) -> Result<Self, KvmGuestError> {
        if offer.kind != KIND {
            return Err(KvmGuestError::Kind(offer.kind.clone()));
        }
        if offer.vcpus == 0 || offer.vcpus > VCPUS_MAX {
            return Err(KvmGuestError::Vcpus(offer.vcpus));
        }
        let mut configuration = offer.configuration.clone();
        let workload = Workload::from_section(
            configuration.require(Workload::SECTION, Workload::SECTION_VERSION)?,
        )?;
        let cpuid = CpuidSource::take_from(&mut configuration, offer.vcpus)?;
        configuration.finish()?;
        let layout = rebacked(&offer.layout, backing)?;
        let plan = Plan::new(&layout, offer.vcpus, &workload)?;
        let memory = allocate_for_arrival(layout)?;
        let hardware = Hardware::new(&memory, cpuid, tracking, options.ring_bytes)?;
        let identity = offer.identity.clone();
        let mut guest =
            Self::assemble(identity, workload, plan, memory, hardware, serial, options)?;
        guest.rehearse_loading();
        Ok(guest)
    }

    fn assemble(
        identity: GuestIdentity,
        workload: Workload,
        plan: Plan,
        memory: GuestMemory,
        mut hardware: Hardware,
        output: Box<dyn io::Write + Send>,
        options: &Options,
    ) -> Result<Self, KvmGuestError> {
        let serial = SerialPort::new(output, options.other_ports.clone())
            .map_err(KvmGuestError::io("starting the serial port's thread"))?;
        let serial = Arc::new(serial);
        let marked = Arc::new(MarkedPages::new(plan.layout().page_span()));
        let (crew, vcpus) = hardware.start_threads(&serial)?;
        Ok(Self {
            identity,
            workload,
            control_pages: plan.control_page_numbers(),
            plan,
            memory,
            hardware,
            loops_at_run: vec![0; vcpus.len()],
            costs: HandoverCosts::default(),
            warning: None,
            crew,
            vcpus,
            serial,
            marked,
        })
    }

    /// What each vCPU has done, in vCPU order.
    pub fn statistics(&self) -> Vec<Statistics> {
        self.control_pages()
            .map(|control| control.statistics())
            .collect()
    }

    /// Whether every vCPU runs.
    pub fn running(&self) -> bool {
        self.vcpus.iter().all(VcpuThread::running)
    }

    /// Why the guest can't run any more, once a vCPU has crashed.
    pub fn crashed(&self) -> Option<String> {
        self.vcpus
            .iter()
            .find_map(|vcpu| vcpu.crashed().map(|error| error.to_string()))
    }

    /// What went wrong since the last call without keeping the guest from running.
    pub fn take_warning(&mut self) -> Option<String> {
        self.warning.take()
    }

    fn control_pages(&self) -> impl Iterator<Item = ControlPage<'_>> {
        let map = self.memory.guest_map();
        self.control_pages
            .iter()
            .filter_map(|page| ControlPage::new(map, *page).ok())
    }
}

impl Drop for KvmGuest {
    fn drop(&mut self) {
        let deadline = Deadline::after(SHUTDOWN_MAX);
        self.vcpus.iter().for_each(VcpuThread::order_end);
        for vcpu in &mut self.vcpus {
            vcpu.join(deadline);
        }
        self.serial.close(deadline);
    }
}
