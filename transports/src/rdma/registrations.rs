//! Memory registered with the device, on either side.
//!
//! The destination registers each range that it prepares, whole: the source needs the key before it
//! can put. The source registers pieces of [`PIECE_PAGES`] pages, each when the first put needs it
//! or when it is warmed: registering makes pages present, and memory that is never sent should stay
//! untouched.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::process::{Resource, getrlimit};

use super::error::RdmaError;
use super::verbs::{Access, MemoryRegion, ProtectionDomain, RegisterError};
use crate::lane::{LaneError, LaneNumber, RegistrationCounters};
use crate::memory::{MemoryMap, PageNumber, Run};

/// How many pages the source registers at a time: 8 MiB. Four of the engine's chunks, so that most
/// of them find their memory registered; 128 registrations for each GiB; and a touched page makes
/// at most so much around it present.
pub(super) const PIECE_PAGES: u64 = 2048;

/// The name of a lane where a registration concerns none.
const NO_LANE: LaneNumber = LaneNumber(0);

/// Registers memory, and counts.
pub(super) struct Registrar {
    domain: Arc<ProtectionDomain>,
    memory: MemoryMap,
    made: AtomicU64,
    ended: AtomicU64,
    bytes: AtomicU64,
}

impl Registrar {
    pub(super) fn new(domain: Arc<ProtectionDomain>, memory: MemoryMap) -> Self {
        Self {
            domain,
            memory,
            made: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn domain(&self) -> &Arc<ProtectionDomain> {
        &self.domain
    }

    pub(super) fn memory(&self) -> &MemoryMap {
        &self.memory
    }

    pub(super) fn counters(&self) -> RegistrationCounters {
        RegistrationCounters {
            made: self.made.load(Ordering::Relaxed),
            ended: self.ended.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    /// Registers a range. May be called from several threads.
    fn register(&self, range: Run, access: Access) -> Result<Arc<MemoryRegion>, LaneError> {
        let device = self.domain.device();
        let limits = device.limits();
        let bytes = range.bytes();
        if bytes > limits.registration_bytes_max {
            let error = RdmaError::RegistrationTooLong {
                bytes,
                device: device.name().to_owned(),
                bytes_max: limits.registration_bytes_max,
            };
            return Err(error.on(NO_LANE, "preparing memory"));
        }
        match MemoryRegion::register(&self.domain, &self.memory, range, access) {
            Ok(region) => {
                self.made.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
                Ok(Arc::new(region))
            }
            Err(RegisterError::Memory(source)) => Err(LaneError::Memory {
                lane: NO_LANE,
                source,
            }),
            Err(RegisterError::System(source)) => {
                Err(self.refusal(bytes, source).on(NO_LANE, "preparing memory"))
            }
        }
    }

    /// What a refused registration says to the operator.
    fn refusal(&self, bytes: u64, source: std::io::Error) -> RdmaError {
        let counters = self.counters();
        let registered = counters.bytes;
        let limit = getrlimit(Resource::Memlock).current;
        // The kernel counts what all of this user's sessions pin, so the limit may be reached with
        // less than it here; but where it holds the whole, it is not in the way.
        let is_memory = source.raw_os_error() == Some(libc::ENOMEM);
        match limit {
            Some(limit_bytes) if is_memory && !ignores_locked_memory_limit() => {
                RdmaError::LockedMemory {
                    bytes,
                    registered,
                    limit_bytes,
                }
            }
            _ => RdmaError::Registration {
                bytes,
                registered,
                registrations: counters.made.saturating_sub(counters.ended),
                registrations_max: self.domain.device().limits().registrations_max,
                device: self.domain.device().name().to_owned(),
                source,
            },
        }
    }

    /// Ends registrations: their memory is no longer pinned when this returns, unless a lane still
    /// looks one up.
    fn end(&self, regions: Vec<Arc<MemoryRegion>>) {
        for region in regions {
            self.ended.fetch_add(1, Ordering::Relaxed);
            self.bytes
                .fetch_sub(region.range().bytes(), Ordering::Relaxed);
            drop(region);
        }
    }
}

/// Whether this thread may pin beyond RLIMIT_MEMLOCK.
fn ignores_locked_memory_limit() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK))
}

/// Ranges registered for the peer, each with a key of its own.
pub(super) struct OpenRanges {
    registrar: Registrar,
    access: Access,
    state: Mutex<OpenState>,
}

#[derive(Default)]
struct OpenState {
    /// By first page. `None` while a range is being registered.
    ranges: BTreeMap<u64, (u32, Option<Arc<MemoryRegion>>)>,
    closed: bool,
}

impl OpenRanges {
    pub(super) fn new(registrar: Registrar, access: Access) -> Self {
        Self {
            registrar,
            access,
            state: Mutex::default(),
        }
    }

    pub(super) fn registrar(&self) -> &Registrar {
        &self.registrar
    }

    fn state(&self) -> MutexGuard<'_, OpenState> {
        // No code panics while it holds the lock, so a poisoned state is still a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a range. Ranges that do not overlap may be opened side by side.
    pub(super) fn open(&self, range: Run) -> Result<Arc<MemoryRegion>, LaneError> {
        self.registrar
            .memory
            .check(range)
            .map_err(|source| LaneError::Memory {
                lane: NO_LANE,
                source,
            })?;
        let first = range.first.0;
        {
            let mut state = self.state();
            if state.closed {
                return Err(LaneError::Stopped(NO_LANE));
            }
            let before = state.ranges.range(..range.end().0).next_back();
            if let Some((other, (pages, _))) = before
                && other + u64::from(*pages) > first
            {
                let source = std::io::Error::other(format!(
                    "{} pages at {} overlap {pages} pages at page {other}, which are prepared",
                    range.pages, range.first
                ));
                return Err(LaneError::System {
                    lane: NO_LANE,
                    doing: "preparing memory",
                    source,
                });
            }
            state.ranges.insert(first, (range.pages, None));
        }
        // Outside of the lock: it takes its time, and others may do the same meanwhile.
        let region = self.registrar.register(range, self.access);
        let mut state = self.state();
        match region {
            Ok(region) if !state.closed => {
                let kept = Some(Arc::clone(&region));
                state.ranges.insert(first, (range.pages, kept));
                Ok(region)
            }
            Ok(region) => {
                state.ranges.remove(&first);
                drop(state);
                self.registrar.end(vec![region]);
                Err(LaneError::Stopped(NO_LANE))
            }
            Err(error) => {
                state.ranges.remove(&first);
                Err(error)
            }
        }
    }

    /// Ends the registrations of a range: of all of it, and of nothing else.
    pub(super) fn close(&self, range: Run) -> Result<(), LaneError> {
        let refused = LaneError::NotPrepared {
            lane: NO_LANE,
            run: range,
        };
        let mut state = self.state();
        let mut next = range.first.0;
        while next < range.end().0 {
            match state.ranges.get(&next) {
                Some((pages, Some(_))) => next += u64::from(*pages),
                _ => return Err(refused),
            }
        }
        if next != range.end().0 || range.pages == 0 {
            return Err(refused);
        }
        let mut ended = Vec::new();
        let mut rest = state.ranges.split_off(&range.first.0);
        let mut behind = rest.split_off(&range.end().0);
        ended.extend(rest.into_values().filter_map(|entry| entry.1));
        state.ranges.append(&mut behind);
        drop(state);
        self.registrar.end(ended);
        Ok(())
    }

    /// Lets nothing more be opened. What is registered stays so until the endpoint goes, which is
    /// the time for unpinning: not in the guest's pause.
    pub(super) fn refuse_more(&self) {
        self.state().closed = true;
    }

    /// The registration that a page is in.
    pub(super) fn of(&self, page: PageNumber) -> Option<Arc<MemoryRegion>> {
        let state = self.state();
        let (first, (pages, region)) = state.ranges.range(..=page.0).next_back()?;
        let is_inside = page.0 - first < u64::from(*pages);
        region.as_ref().filter(|_| is_inside).map(Arc::clone)
    }
}

/// The source's memory, registered piece by piece for sending.
pub(super) struct SentPieces {
    registrar: Registrar,
    /// The regions of the map.
    whole: Vec<Run>,
    pieces: Mutex<BTreeMap<u64, Piece>>,
    settled: Condvar,
}

enum Piece {
    /// Some thread is registering it.
    Underway,
    Ready(Arc<MemoryRegion>),
}

impl SentPieces {
    pub(super) fn new(registrar: Registrar) -> Self {
        let whole = registrar.memory.whole();
        Self {
            registrar,
            whole,
            pieces: Mutex::default(),
            settled: Condvar::new(),
        }
    }

    pub(super) fn registrar(&self) -> &Registrar {
        &self.registrar
    }

    /// The piece that a page is in: the pages from one multiple of [`PIECE_PAGES`] to the next, as
    /// far as its region goes.
    fn piece_of(&self, page: PageNumber) -> Option<Run> {
        let index = self.whole.partition_point(|run| run.first <= page);
        let region = self.whole.get(index.checked_sub(1)?)?;
        if page >= region.end() {
            return None;
        }
        let start = page.0 / PIECE_PAGES * PIECE_PAGES;
        let first = start.max(region.first.0);
        let end = (start + PIECE_PAGES).min(region.end().0);
        let pages = u32::try_from(end.checked_sub(first)?).ok()?;
        Some(Run {
            first: PageNumber(first),
            pages,
        })
    }

    /// The registration of the piece that a page is in, made now if there is none.
    ///
    /// A wait for another thread that is making it has no limit of its own; it is one call of the
    /// kernel's, for 8 MiB.
    pub(super) fn of(&self, page: PageNumber) -> Result<Arc<MemoryRegion>, LaneError> {
        let outside = || LaneError::NotPrepared {
            lane: NO_LANE,
            run: Run {
                first: page,
                pages: 1,
            },
        };
        let piece = self.piece_of(page).ok_or_else(outside)?;
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match pieces.entry(piece.first.0) {
                Entry::Occupied(entry) => match entry.get() {
                    Piece::Ready(region) => return Ok(Arc::clone(region)),
                    Piece::Underway => {
                        pieces = self
                            .settled
                            .wait(pieces)
                            .unwrap_or_else(PoisonError::into_inner);
                    }
                },
                Entry::Vacant(entry) => {
                    entry.insert(Piece::Underway);
                    break;
                }
            }
        }
        drop(pieces);
        let region = self.registrar.register(piece, Access::Send);
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        match &region {
            Ok(region) => pieces.insert(piece.first.0, Piece::Ready(Arc::clone(region))),
            Err(_) => pieces.remove(&piece.first.0),
        };
        drop(pieces);
        self.settled.notify_all();
        region
    }

    /// Registers all pieces of a range.
    pub(super) fn warm(&self, range: Run) -> Result<(), LaneError> {
        let mut page = range.first;
        while page < range.end() {
            page = self.of(page)?.range().end();
        }
        Ok(())
    }

    /// Ends the registrations of pieces that lie in a range whole.
    pub(super) fn end(&self, range: Run) {
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ended = Vec::new();
        pieces.retain(|_, piece| match piece {
            Piece::Ready(region)
                if range.first <= region.range().first && region.range().end() <= range.end() =>
            {
                ended.push(Arc::clone(region));
                false
            }
            _ => true,
        });
        drop(pieces);
        self.registrar.end(ended);
    }
}
