//! The simulated guest: memory, vCPUs that write it, a dirty tracker as KVM's manual protect. Every
//! step that could go wrong unseen is told to the ledger.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dunlin_engine::clock::Timestamp;
use dunlin_engine::dirty::{DirtyBitmap, DirtySource};
use dunlin_engine::guest::{
    Guest, GuestError, GuestFactory, GuestIdentity, GuestOffer, IncomingGuest, PageCheck,
    PageClaim, PauseRecord, RunError, RunRecord, SelfCheck,
};
use dunlin_engine::layout::{Backing, GuestAddress, GuestMemory, Layout, Region, RegionShape};
use dunlin_engine::milestone::Milestone;
use dunlin_engine::state::{DeviceState, Section};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::memory::{HostMapping, OwnedMapping, PAGE_BYTES, PageNumber, Run};
use dunlin_transports::runtime::{self, Monitor, simulation::World, spawn};

use super::ledger::{Generations, Ledger, Side, page_content};
use super::stage::{Call, Moment, Stage};

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
    loaded: Mutex<Option<Generations>>,
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
                .collect(),
            generations: zeros(layout.page_span() as usize).collect(),
            dirty: zeros(layout.page_span().div_ceil(64) as usize).collect(),
            memory,
            orders: Monitor::default(),
            discarded: AtomicBool::new(false),
            loaded: Mutex::default(),
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

    // ---- vCPUs ----

    fn vcpu(&self, number: u32) {
        let mut think = self.0.shape.think;
        let vcpus = u64::from(self.0.shape.vcpus);
        let is_own = |page: &u64| page % vcpus == u64::from(number);
        let own: Vec<_> = self.0.pages.iter().copied().filter(is_own).collect();
        let mut orders = self.0.orders.lock();
        loop {
            if !orders.run && !orders.end {
                orders.parked += 1;
                self.0.orders.notify_all();
                while !orders.run && !orders.end {
                    orders = self.0.orders.wait(orders);
                }
                orders.parked -= 1;
                self.0.orders.notify_all();
                think = self.0.shape.think;
            }
            if orders.end {
                return;
            }
            drop(orders);
            if !own.is_empty() {
                let drawn = self.world().draw(own.len() as u64) as usize;
                self.write(own[drawn]);
            }
            let until = Deadline::after(think);
            think = (think * 21 / 20).min(THINK_MAX);
            orders = self.0.orders.lock();
            while orders.run && !orders.end && !until.passed() {
                orders = self.0.orders.wait_timeout(orders, until.remaining());
            }
        }
    }

    /// A guest's write: torn for a moment, and marked behind it.
    fn write(&self, page: u64) {
        let known = &self.0.generations[page as usize];
        let before = known.load(Ordering::SeqCst);
        let old = page_content(page, before);
        if self.page(page) != old {
            let side = self.0.side.name();
            let words = format!("page {page} on the {side} is not of generation {before}");
            self.0.ledger.violation(words);
        }
        let new = page_content(page, before + 1);
        let half = new.len() / 2;
        let torn = [&new[..half], &old[half..]].concat();
        let map = self.0.memory.guest_map();
        map.copy_in(one(page), &torn).unwrap();
        runtime::step();
        map.copy_in(one(page), &new).unwrap();
        known.store(before + 1, Ordering::SeqCst);
        self.0.ledger.write(self.0.side, page, before);
        runtime::step();
        self.mark(page);
    }

    fn mark(&self, page: u64) {
        self.0.dirty[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::SeqCst);
    }

    /// Lets every vCPU run; returns once each was entered.
    fn go_on(&self) {
        let runs_already = self.0.ledger.runs(self.0.side);
        self.0.ledger.enter(self.0.side, &self.generations());
        let wrong = self.0.pages.iter().filter(|page| self.is_wrong(**page));
        let wrong: Vec<_> = wrong.take(8).collect();
        if !runs_already && !wrong.is_empty() {
            let side = self.0.side.name();
            let words =
                format!("pages {wrong:?} are wrong when the guest is entered on the {side}");
            self.0.ledger.violation(words);
        }
        let mut orders = self.0.orders.lock();
        orders.run = true;
        self.0.orders.notify_all();
        while orders.parked > 0 && !orders.end {
            orders = self.0.orders.wait(orders);
        }
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

/// KVM's manual protect: `collect` copies the bits and clears none, `rearm` clears those given.
struct Tracker(Machine);

impl DirtySource for Tracker {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn start(&self) -> Result<(), GuestError> {
        Ok(())
    }

    fn collect(&self, into: &mut DirtyBitmap) -> Result<(), GuestError> {
        runtime::step();
        for (word, collected) in self.0.0.dirty.iter().zip(into.words_mut()) {
            *collected |= word.load(Ordering::SeqCst);
        }
        Ok(())
    }

    fn rearms_on_collect(&self) -> bool {
        false
    }

    fn rearm(&self, first: PageNumber, words: &[u64]) -> Result<(), GuestError> {
        runtime::step();
        let words_from = (first.0 / 64) as usize;
        for (word, forget) in self.0.0.dirty[words_from..].iter().zip(words) {
            word.fetch_and(!forget, Ordering::SeqCst);
        }
        runtime::step();
        Ok(())
    }

    fn stop(&self) -> Result<(), GuestError> {
        Ok(())
    }
}

/// The guest's own checks: it knows the generation of each of its pages.
struct OwnPages(Machine);

impl SelfCheck for OwnPages {
    fn claims(&self, first: PageNumber, pages: u32) -> Vec<PageClaim> {
        let claim = |page: u64| PageClaim {
            digest: xxhash_rust::xxh3::xxh3_64(&self.0.page(page)),
            generation: Some(self.0.0.generations[page as usize].load(Ordering::SeqCst)),
            settled: true,
        };
        (first.0..first.0 + u64::from(pages)).map(claim).collect()
    }

    fn check(&self, first: PageNumber, claims: &[PageClaim], deadline: Deadline) -> PageCheck {
        let mut found = PageCheck {
            checked: claims.len() as u64,
            ..PageCheck::default()
        };
        for (page, claim) in (first.0..).zip(claims) {
            loop {
                let known = self.0.0.generations[page as usize].load(Ordering::SeqCst);
                let bytes = self.0.page(page);
                let claimed = claim.generation.unwrap_or(0);
                if bytes == page_content(page, known) && known >= claimed {
                    let same = xxhash_rust::xxh3::xxh3_64(&bytes) == claim.digest;
                    match known == claimed {
                        true if same => found.same += 1,
                        true => {
                            found.different += 1;
                            found
                                .examples
                                .push((PageNumber(page), "another digest".to_owned()));
                        }
                        false => found.later += 1,
                    }
                    break;
                }
                // It may just be being written.
                if deadline.passed() {
                    found.different += 1;
                    let words = format!("generation {known}, {claimed} is claimed");
                    found.examples.push((PageNumber(page), words));
                    break;
                }
                runtime::sleep(Duration::from_micros(100));
            }
        }
        found
    }
}

/// The engine's view of a machine: a guest to send, or one that comes. Dropping it discards it.
pub(crate) struct SimulatedGuest(Machine);

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
        let mut orders = machine.0.orders.lock();
        orders.run = false;
        machine.0.orders.notify_all();
        while orders.parked < machine.0.shape.vcpus {
            if deadline.passed() {
                return Err(GuestError::message("a vCPU could not be parked"));
            }
            orders = machine.0.orders.wait_timeout(orders, deadline.remaining());
        }
        drop(orders);
        machine.0.ledger.park(machine.0.side);
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
        *machine.0.loaded.lock().unwrap() = Some(machine.generations());
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
