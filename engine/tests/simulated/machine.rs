//! The simulated guest: memory, a dirty tracker, hooks at every call, and a record of the calls.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use dunlin_engine::clock::Timestamp;
use dunlin_engine::dirty::{DirtyBitmap, DirtySource};
use dunlin_engine::guest::{
    Guest, GuestError, GuestFactory, GuestIdentity, GuestOffer, IncomingGuest, PageCheck,
    PageClaim, PauseRecord, RunError, RunRecord, SelfCheck,
};
use dunlin_engine::layout::{Backing, GuestAddress, GuestMemory, Layout, Region, RegionShape};
use dunlin_engine::state::{DeviceState, Section};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::memory::{HostMapping, OwnedMapping, PAGE_BYTES, PageNumber, Run};

use super::Seeded;

/// How many vCPUs the guest says that it has.
pub(crate) const VCPUS: u32 = 2;

/// What this simulated host has room for: a peer's layout may ask for far more.
const MEMORY_BYTES_MAX: u64 = 1 << 30;

/// Which side a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The guest's home.
    Source,
    /// Where it goes.
    Destination,
}

/// Who runs the guest, seen from outside of both sides.
#[derive(Default)]
pub(crate) struct Ownership {
    runs: Mutex<[bool; 2]>,
    both_ran: AtomicBool,
}

impl Ownership {
    fn set(&self, side: Side, running: bool) {
        let mut runs = self.runs.lock().unwrap();
        runs[side as usize] = running;
        if *runs == [true, true] {
            self.both_ran.store(true, Ordering::SeqCst);
        }
    }

    /// Whether a side runs the guest now.
    pub(crate) fn runs(&self, side: Side) -> bool {
        self.runs.lock().unwrap()[side as usize]
    }

    /// Whether there ever was a moment in which both did.
    pub(crate) fn both_ran(&self) -> bool {
        self.both_ran.load(Ordering::SeqCst)
    }
}

/// What the engine called, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Start,
    Collect,
    Rearm,
    Pause,
    Save,
    Resume,
    Stop,
    Load,
    Run,
}

type Hook<T> = Option<Box<dyn Fn(&Machine) -> T + Send + Sync>>;
type RearmHook = Option<Box<dyn Fn(&Machine, PageNumber, &[u64]) + Send + Sync>>;

/// What a test does at the engine's calls.
#[derive(Default)]
pub(crate) struct Hooks {
    /// Before a collection looks at the bits.
    pub(crate) collect: Hook<()>,
    /// At the start of a re-arming: the bits are still set, so a mark that is made now is forgotten.
    pub(crate) rearm_begin: RearmHook,
    /// Right behind a re-arming: the bits are clear, so a mark that is made now stays.
    pub(crate) rearm_end: RearmHook,
    /// While the guest is being paused, before its writers stand still.
    pub(crate) pause: Hook<Result<(), GuestError>>,
    /// While state is being saved.
    pub(crate) save: Hook<Result<(), GuestError>>,
    /// When the guest goes on on the source.
    pub(crate) resume: Hook<()>,
    /// While state is being loaded.
    pub(crate) load: Hook<Result<(), GuestError>>,
    /// Before the guest is entered on the destination.
    pub(crate) run: Hook<Result<(), RunError>>,
    /// When a page's claims are checked.
    pub(crate) check: Hook<()>,
    /// An additional section in the saved state.
    pub(crate) section: Option<&'static str>,
    /// Whether the guest can check its own pages.
    pub(crate) self_check: bool,
}

struct Inner {
    side: Side,
    ownership: Arc<Ownership>,
    memory: GuestMemory,
    epoch: AtomicU64,
    /// The tracker's bits, set behind each write.
    dirty: Vec<AtomicU64>,
    hooks: Hooks,
    /// Whether hooks act.
    armed: AtomicBool,
    /// Held for reading by a writer while it writes; `true` while the guest may write.
    may_write: RwLock<bool>,
    writers_end: AtomicBool,
    writers: Mutex<Vec<JoinHandle<()>>>,
    calls: Mutex<Vec<Call>>,
    writes: AtomicU64,
    discarded: AtomicBool,
    loaded_writes: AtomicU64,
}

/// A simulated guest, as the test sees it. Clones are the same machine.
#[derive(Clone)]
pub(crate) struct Machine(Arc<Inner>);

/// A page's bytes: its number and a value, or zeros for value 0.
fn page_bytes(page: PageNumber, value: u64) -> Vec<u8> {
    let mut seeded = Seeded(page.0 ^ value.rotate_left(32));
    let word = |_| if value == 0 { 0 } else { seeded.next() };
    (0..PAGE_BYTES / 8)
        .map(word)
        .flat_map(u64::to_le_bytes)
        .collect()
}

fn one(page: PageNumber) -> Run {
    Run {
        first: page,
        pages: 1,
    }
}

impl Machine {
    /// A machine with regions of so many pages each.
    pub(crate) fn new(
        side: Side,
        ownership: &Arc<Ownership>,
        region_pages: &[u64],
        hooks: Hooks,
    ) -> Self {
        let shapes = region_pages
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
        Self::of_layout(side, ownership, &Layout::new(1, shapes).unwrap(), hooks)
    }

    fn of_layout(side: Side, ownership: &Arc<Ownership>, layout: &Layout, hooks: Hooks) -> Self {
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
        let words = layout.page_span().div_ceil(64) as usize;
        let machine = Self(Arc::new(Inner {
            side,
            ownership: Arc::clone(ownership),
            memory,
            epoch: AtomicU64::new(7),
            dirty: std::iter::repeat_with(|| AtomicU64::new(0))
                .take(words)
                .collect(),
            hooks,
            armed: AtomicBool::new(true),
            may_write: RwLock::new(side == Side::Source),
            writers_end: AtomicBool::new(false),
            writers: Mutex::default(),
            calls: Mutex::default(),
            writes: AtomicU64::new(0),
            discarded: AtomicBool::new(false),
            loaded_writes: AtomicU64::new(0),
        }));
        if side == Side::Source {
            ownership.set(side, true);
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

    /// The pages, in order.
    pub(crate) fn pages(&self) -> Vec<PageNumber> {
        let regions = self.0.memory.lane_map().whole();
        let pages = regions.iter().flat_map(|run| run.first.0..run.end().0);
        pages.map(PageNumber).collect()
    }

    /// Writes a page, value 0 as zeros, and marks it: bytes first, mark behind them, as a tracker
    /// that misses nothing has it.
    pub(crate) fn write(&self, page: u64, value: u64) {
        self.flip_unmarked(page, value);
        if let Some(word) = self.0.dirty.get((page / 64) as usize) {
            word.fetch_or(1 << (page % 64), Ordering::SeqCst);
        }
        self.0.writes.fetch_add(1, Ordering::SeqCst);
    }

    /// Writes a page behind the tracker's back: damage, not a guest's write.
    pub(crate) fn flip_unmarked(&self, page: u64, value: u64) {
        let page = PageNumber(page);
        let bytes = page_bytes(page, value);
        let map = self.0.memory.guest_map();
        map.copy_in(one(page), &bytes).unwrap();
    }

    /// Writes every page of a range.
    pub(crate) fn write_all(&self, pages: std::ops::Range<u64>, value: u64) {
        pages.for_each(|page| self.write(page, value));
    }

    /// A page's bytes.
    pub(crate) fn page(&self, page: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES as usize];
        let map = self.0.memory.guest_map();
        map.copy_out(one(PageNumber(page)), &mut bytes).unwrap();
        bytes
    }

    /// Whether a page holds what `write(page, value)` puts there.
    pub(crate) fn holds(&self, page: u64, value: u64) -> bool {
        self.page(page) == page_bytes(PageNumber(page), value)
    }

    /// The pages that another machine holds differently.
    pub(crate) fn differences(&self, other: &Self) -> Vec<u64> {
        let pages = self.pages().into_iter().map(|page| page.0);
        pages
            .filter(|page| self.page(*page) != other.page(*page))
            .collect()
    }

    /// Starts threads that write random pages for as long as the guest runs here.
    pub(crate) fn start_writers(&self, count: u64) {
        for number in 0..count {
            let machine = self.clone();
            let pages = self.pages();
            let writer = move || {
                let mut seeded = Seeded(number);
                while !machine.0.writers_end.load(Ordering::SeqCst) {
                    let page = pages[seeded.below(pages.len() as u64) as usize].0;
                    // One write in four is of zeros.
                    let value = seeded.next() * u64::from(seeded.below(4) > 0);
                    let may_write = machine.0.may_write.read().unwrap();
                    if *may_write {
                        machine.write(page, value);
                    }
                    drop(may_write);
                    std::thread::sleep(Duration::from_micros(50));
                }
            };
            self.0
                .writers
                .lock()
                .unwrap()
                .push(std::thread::spawn(writer));
        }
    }

    /// Ends the writers.
    pub(crate) fn end_writers(&self) {
        self.0.writers_end.store(true, Ordering::SeqCst);
        for writer in self.0.writers.lock().unwrap().drain(..) {
            writer.join().unwrap();
        }
    }

    /// The calls so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.0.calls.lock().unwrap().clone()
    }

    /// How often a call was made.
    pub(crate) fn count(&self, call: Call) -> usize {
        self.calls().iter().filter(|made| **made == call).count()
    }

    /// Whether the guest runs on this machine.
    pub(crate) fn runs(&self) -> bool {
        self.0.ownership.runs(self.0.side)
    }

    /// Who runs the guest.
    pub(crate) fn ownership(&self) -> &Arc<Ownership> {
        &self.0.ownership
    }

    /// The guest's epoch.
    pub(crate) fn epoch(&self) -> u64 {
        self.0.epoch.load(Ordering::SeqCst)
    }

    /// Whether the engine dropped the guest.
    pub(crate) fn is_discarded(&self) -> bool {
        self.0.discarded.load(Ordering::SeqCst)
    }

    /// How many writes the loaded state told of.
    pub(crate) fn loaded_writes(&self) -> u64 {
        self.0.loaded_writes.load(Ordering::SeqCst)
    }

    /// How many writes were made.
    pub(crate) fn writes(&self) -> u64 {
        self.0.writes.load(Ordering::SeqCst)
    }

    /// What this guest offers.
    pub(crate) fn offer(&self) -> GuestOffer {
        GuestOffer {
            identity: GuestIdentity {
                uuid: uuid::Uuid::from_bytes([3; 16]),
                name: "simulated".to_owned(),
                epoch: self.epoch(),
            },
            kind: "simulated".to_owned(),
            vcpus: VCPUS,
            layout: self.0.memory.layout().clone(),
            configuration: DeviceState::new(),
        }
    }

    /// Lets no hook act any more.
    pub(crate) fn disarm(&self) {
        self.0.armed.store(false, Ordering::SeqCst);
    }

    fn is_armed(&self) -> bool {
        self.0.armed.load(Ordering::SeqCst)
    }

    fn called(&self, call: Call) {
        self.0.calls.lock().unwrap().push(call);
    }

    /// Stops every writer.
    pub(crate) fn stand_still(&self) {
        *self.0.may_write.write().unwrap() = false;
        self.0.ownership.set(self.0.side, false);
    }

    fn go_on(&self) {
        self.0.ownership.set(self.0.side, true);
        *self.0.may_write.write().unwrap() = true;
    }

    fn moments(&self) -> Vec<Timestamp> {
        vec![Timestamp::now(); VCPUS as usize]
    }
}

fn hooked<T>(hook: &Hook<T>, machine: &Machine) -> Option<T> {
    let hook = hook.as_ref().filter(|_| machine.is_armed());
    hook.map(|hook| hook(machine))
}

/// KVM's manual protect: `collect` copies the bits and clears none, `rearm` clears those given.
struct Tracker(Machine);

impl DirtySource for Tracker {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn start(&self) -> Result<(), GuestError> {
        self.0.called(Call::Start);
        Ok(())
    }

    fn collect(&self, into: &mut DirtyBitmap) -> Result<(), GuestError> {
        self.0.called(Call::Collect);
        hooked(&self.0.0.hooks.collect, &self.0);
        for (word, collected) in self.0.0.dirty.iter().zip(into.words_mut()) {
            *collected |= word.load(Ordering::SeqCst);
        }
        Ok(())
    }

    fn rearms_on_collect(&self) -> bool {
        false
    }

    fn rearm(&self, first: PageNumber, words: &[u64]) -> Result<(), GuestError> {
        self.0.called(Call::Rearm);
        let hooks = &self.0.0.hooks;
        if let Some(hook) = hooks.rearm_begin.as_ref().filter(|_| self.0.is_armed()) {
            hook(&self.0, first, words);
        }
        let words_from = (first.0 / 64) as usize;
        for (word, forget) in self.0.0.dirty[words_from..].iter().zip(words) {
            word.fetch_and(!forget, Ordering::SeqCst);
        }
        if let Some(hook) = hooks.rearm_end.as_ref().filter(|_| self.0.is_armed()) {
            hook(&self.0, first, words);
        }
        Ok(())
    }

    fn stop(&self) -> Result<(), GuestError> {
        self.0.called(Call::Stop);
        Ok(())
    }
}

/// Claims about pages that never change while they are compared.
struct OwnPages(Machine);

impl OwnPages {
    fn digest(&self, page: PageNumber) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&self.0.page(page.0))
    }
}

impl SelfCheck for OwnPages {
    fn claims(&self, first: PageNumber, pages: u32) -> Vec<PageClaim> {
        let claim = |page| PageClaim {
            digest: self.digest(PageNumber(page)),
            generation: None,
            settled: true,
        };
        (first.0..first.0 + u64::from(pages)).map(claim).collect()
    }

    fn check(&self, first: PageNumber, claims: &[PageClaim], _deadline: Deadline) -> PageCheck {
        hooked(&self.0.0.hooks.check, &self.0);
        let mut found = PageCheck {
            checked: claims.len() as u64,
            ..PageCheck::default()
        };
        for (page, claim) in (first.0..).map(PageNumber).zip(claims) {
            if self.digest(page) == claim.digest {
                found.same += 1;
            } else {
                found.different += 1;
                found.examples.push((page, "another digest".to_owned()));
            }
        }
        found
    }
}

/// The engine's view of a machine: a guest to send, or one that comes. Dropping it is noted.
pub(crate) struct SimulatedGuest(Machine);

impl Drop for SimulatedGuest {
    fn drop(&mut self) {
        self.0.0.discarded.store(true, Ordering::SeqCst);
    }
}

impl SimulatedGuest {
    fn checks(&self) -> Option<Arc<dyn SelfCheck>> {
        let check = || -> Arc<dyn SelfCheck> { Arc::new(OwnPages(self.0.clone())) };
        self.0.0.hooks.self_check.then(check)
    }
}

impl Guest for SimulatedGuest {
    fn offer(&self) -> Result<GuestOffer, GuestError> {
        Ok(self.0.offer())
    }

    fn memory(&self) -> &GuestMemory {
        &self.0.0.memory
    }

    fn dirty_sources(&self) -> Vec<Arc<dyn DirtySource>> {
        vec![Arc::new(Tracker(self.0.clone()))]
    }

    fn pause(&mut self, _deadline: Deadline) -> Result<PauseRecord, GuestError> {
        let machine = &self.0;
        machine.called(Call::Pause);
        let parked = machine.moments();
        machine.stand_still();
        hooked(&machine.0.hooks.pause, machine).unwrap_or(Ok(()))?;
        Ok(PauseRecord { parked })
    }

    fn save_state(&mut self) -> Result<DeviceState, GuestError> {
        let machine = &self.0;
        machine.called(Call::Save);
        hooked(&machine.0.hooks.save, machine).unwrap_or(Ok(()))?;
        let mut state = DeviceState::new();
        let mut section = Section::new("writer", 1);
        section.put_u64(1, machine.writes());
        state.push(section);
        if let Some(name) = machine.0.hooks.section.filter(|_| machine.is_armed()) {
            state.push(Section::new(name, 1));
        }
        Ok(state)
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        let machine = &self.0;
        machine.called(Call::Resume);
        hooked(&machine.0.hooks.resume, machine);
        machine.go_on();
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
        machine.called(Call::Load);
        hooked(&machine.0.hooks.load, machine).unwrap_or(Ok(()))?;
        let bad = |error| GuestError::new("loading state", error);
        let mut state = state.clone();
        let mut section = state.require("writer", 1).map_err(bad)?;
        let writes = section.require_u64(1).map_err(bad)?;
        section.finish().map_err(bad)?;
        state.finish().map_err(bad)?;
        machine.0.loaded_writes.store(writes, Ordering::SeqCst);
        Ok(())
    }

    fn run(&mut self, epoch: u64) -> Result<RunRecord, RunError> {
        let machine = &self.0;
        machine.called(Call::Run);
        hooked(&machine.0.hooks.run, machine).unwrap_or(Ok(()))?;
        machine.0.epoch.store(epoch, Ordering::SeqCst);
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

/// Makes one machine for the guest that comes, and shows it to the test.
pub(crate) struct Room {
    /// Who runs the guest.
    pub(crate) ownership: Arc<Ownership>,
    /// What happens on the machine that is made.
    pub(crate) hooks: Option<Hooks>,
    /// Called first; an error refuses the guest.
    pub(crate) create: Option<Box<dyn FnOnce() -> Result<(), GuestError> + Send>>,
    /// The machine, once it is made.
    pub(crate) made: Arc<Mutex<Option<Machine>>>,
}

impl GuestFactory for Room {
    type Guest = SimulatedGuest;

    fn create(&mut self, offer: &GuestOffer) -> Result<SimulatedGuest, GuestError> {
        self.create.take().map_or(Ok(()), |create| create())?;
        let hooks = self.hooks.take().unwrap_or_default();
        if offer.layout.bytes() > MEMORY_BYTES_MAX {
            let bytes = offer.layout.bytes();
            return Err(GuestError::message(format!("no room for {bytes} bytes")));
        }
        let machine = Machine::of_layout(Side::Destination, &self.ownership, &offer.layout, hooks);
        *self.made.lock().unwrap() = Some(machine.clone());
        Ok(machine.guest())
    }
}
