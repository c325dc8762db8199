//! The simulated guest: memory, and vCPUs that write it. Every step that could go wrong unseen is told
//! to the ledger.
//!
//! | room | what is in it |
//! |---|---|
//! | here | what a guest is like, and its machine on one side |
//! | `vcpu` | the vCPUs: running, writing, standing still |
//! | `checks` | its dirty tracker, and what it says of its own pages |
//! | `view` | what the engine sees of it, on both sides |

mod checks;
mod vcpu;
mod view;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dunlin_engine::clock::Timestamp;
use dunlin_engine::guest::GuestError;
use dunlin_engine::layout::{Backing, GuestAddress, GuestMemory, Layout, Region, RegionShape};
use dunlin_transports::memory::{HostMapping, OwnedMapping, PAGE_BYTES, PageNumber, Run};
use dunlin_transports::runtime::{self, Monitor, simulation::World, spawn};

pub(crate) use self::view::{Room, SimulatedGuest};
use super::ledger::{Generations, Ledger, Side, page_content};
use super::stage::{Call, Stage};

/// The guest's epoch before the move.
pub(crate) const EPOCH: u64 = 7;

/// A guest that has run for a while thinks longer and longer between writes, up to this, so that
/// long waits cost few steps.
const THINK_MAX: Duration = Duration::from_millis(400);

/// How often a page is looked at before it counts as wrong.
const LOOKS: u32 = 10;

/// How long between the looks: a vCPU may lose its processor in the middle of a page.
const LOOK_INTERVAL: Duration = Duration::from_millis(4);

/// What a seed says of a guest.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// The pages of each region.
    pub(crate) regions: Vec<u64>,
    /// It uses one page in so many.
    pub(crate) stride: u64,
    /// How many vCPUs it has.
    pub(crate) vcpus: u32,
    /// How long a vCPU thinks between two writes, at first.
    pub(crate) think: Duration,
    /// Whether saving its state writes a page.
    pub(crate) save_dirties: bool,
    /// Whether it can check its own pages.
    pub(crate) self_check: bool,
}

impl Shape {
    fn layout(&self) -> Layout {
        let shapes = self
            .regions
            .iter()
            .scan(0, |address, pages| {
                let shape = RegionShape {
                    address: GuestAddress(*address),
                    bytes: pages * PAGE_BYTES,
                    backing: Backing::Anonymous,
                    backing_page_bytes: PAGE_BYTES,
                };
                // A gap between regions, as real machines have.
                *address += (pages + 16) * PAGE_BYTES;
                Some(shape)
            })
            .collect();
        Layout::new(1, shapes).unwrap()
    }

    /// How many page numbers there are, gaps included.
    pub(crate) fn page_span(&self) -> usize {
        self.layout().page_span() as usize
    }
}

/// What a machine's vCPUs are to do.
#[derive(Default)]
struct Orders {
    run: bool,
    end: bool,
    parked: u32,
}

struct Inner {
    side: Side,
    shape: Shape,
    stage: Stage,
    ledger: Ledger,
    memory: GuestMemory,
    pages: Vec<u64>,
    /// The generation of each page, as the guest itself knows it: part of its state.
    generations: Vec<AtomicU64>,
    /// The tracker's bits, set behind each write.
    dirty: Vec<AtomicU64>,
    orders: Monitor<Orders>,
    discarded: AtomicBool,
}

/// A guest on one side, as the scenario sees it. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Machine(Arc<Inner>);

fn one(page: u64) -> Run {
    Run {
        first: PageNumber(page),
        pages: 1,
    }
}

impl Machine {
    /// A machine with fresh memory and its vCPUs parked. The threads of the vCPUs belong to the
    /// calling thread's process.
    pub(crate) fn new(side: Side, shape: &Shape, stage: &Stage, ledger: &Ledger) -> Self {
        let layout = shape.layout();
        let region = |shape: &RegionShape| {
            let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(shape.bytes).unwrap());
            Region {
                file: None,
                file_offset: 0,
                guest_mapping: Arc::clone(&mapping),
                lane_mapping: mapping,
            }
        };
        let regions = layout.regions().iter().map(region).collect();
        let memory = GuestMemory::new(layout.clone(), regions).unwrap();
        let whole = memory.lane_map().whole();
        let zeros = |count: usize| std::iter::repeat_with(|| AtomicU64::new(0)).take(count);
        let machine = Self(Arc::new(Inner {
            side,
            shape: shape.clone(),
            stage: stage.clone(),
            ledger: ledger.clone(),
            pages: whole
                .iter()
                .flat_map(|run| run.first.0..run.end().0)
                .step_by(shape.stride as usize)
                .collect(),
            generations: zeros(layout.page_span() as usize).collect(),
            dirty: zeros(layout.page_span().div_ceil(64) as usize).collect(),
            memory,
            orders: Monitor::default(),
            discarded: AtomicBool::new(false),
        }));
        for number in 0..shape.vcpus {
            let vcpu = machine.clone();
            spawn(format!("vcpu-{number}"), move || vcpu.vcpu(number)).unwrap();
        }
        machine
    }

    /// The engine's view of it.
    pub(crate) fn guest(&self) -> SimulatedGuest {
        SimulatedGuest(self.clone())
    }

    /// The memory.
    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.0.memory
    }

    /// Whether the engine dropped the guest.
    pub(crate) fn is_discarded(&self) -> bool {
        self.0.discarded.load(Ordering::SeqCst)
    }

    /// The generations that the guest knows of.
    pub(crate) fn generations(&self) -> Generations {
        let known = self.0.generations.iter();
        known.map(|known| known.load(Ordering::SeqCst)).collect()
    }

    /// The pages whose bytes are not those of the generation that the ledger knows. A page that is
    /// just being written is looked at again.
    pub(crate) fn wrong_pages(&self) -> Vec<u64> {
        let mut wrong = self.0.pages.clone();
        for _ in 0..LOOKS {
            wrong.retain(|page| self.is_wrong(*page));
            if wrong.is_empty() {
                break;
            }
            runtime::sleep(LOOK_INTERVAL);
        }
        wrong
    }

    fn is_wrong(&self, page: u64) -> bool {
        let generation = self.0.ledger.generation(page);
        self.page(page) != page_content(page, generation)
    }

    /// Ends the threads of the vCPUs.
    pub(crate) fn end(&self) {
        self.0.orders.lock().end = true;
        self.0.orders.notify_all();
    }

    fn world(&self) -> &World {
        self.0.stage.world()
    }

    fn page(&self, page: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES as usize];
        let map = self.0.memory.guest_map();
        map.copy_out(one(page), &mut bytes).unwrap();
        bytes
    }

    /// Runs the guest from the start.
    pub(crate) fn start(&self) {
        self.go_on();
    }

    fn moments(&self) -> Vec<Timestamp> {
        vec![Timestamp::now(); self.0.shape.vcpus as usize]
    }

    fn called(&self, call: Call) -> Result<(), GuestError> {
        let side = self.0.side;
        self.world().note(|| format!("{}: {call:?}", side.name()));
        self.0.stage.called(side, call);
        let failing = self.0.stage.take_failure(side, call);
        failing.map_or(Ok(()), |words| Err(GuestError::message(words)))
    }
}
