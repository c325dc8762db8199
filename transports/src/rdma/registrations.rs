//! Memory registered with the device, on either side: each range that is prepared, whole, and no
//! other. Registering makes pages present; memory that is never sent is not prepared.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::process::{Resource, getrlimit};

use super::error::RdmaError;
use super::verbs::{Access, MemoryRegion, ProtectionDomain, RegisterError};
use super::wire::MemoryKey;
use crate::lane::{LaneError, LaneNumber, RegistrationCounters};
use crate::memory::{MemoryMap, PageNumber, Run};
use crate::range_map::RangeMap;

/// The name of a lane where a registration concerns none.
const NO_LANE: LaneNumber = LaneNumber(0);

/// Registers memory, and counts.
pub(super) struct Registrar {
    domain: Arc<ProtectionDomain>,
    memory: MemoryMap,
    made: AtomicU64,
    ended: AtomicU64,
    bytes: AtomicU64,
    bytes_max: AtomicU64,
    /// Registrations that could not be ended: still counted, and tried again with `end_all`.
    refused: Mutex<Vec<MemoryRegion>>,
}

impl Registrar {
    pub(super) fn new(domain: Arc<ProtectionDomain>, memory: MemoryMap) -> Self {
        Self {
            domain,
            memory,
            made: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            bytes_max: AtomicU64::new(0),
            refused: Mutex::default(),
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
            bytes_max: self.bytes_max.load(Ordering::Relaxed),
        }
    }

    /// Registers a range. May be called from several threads.
    fn register(&self, range: Run, access: Access) -> Result<MemoryRegion, LaneError> {
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
                let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
                self.bytes_max.fetch_max(before + bytes, Ordering::Relaxed);
                Ok(region)
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
        // The kernel counts what the process pins, all of its sessions and devices together, so the
        // limit may be reached with less than it here. CAP_IPC_LOCK lifts it only where it is held
        // in the initial user namespace (`ib_umem_get` asks `capable`, not `ns_capable`), which a
        // container can't tell of itself: so the limit is named with the capability too.
        let is_memory = source.raw_os_error() == Some(libc::ENOMEM);
        match limit {
            Some(limit_bytes) if is_memory => RdmaError::LockedMemory {
                bytes,
                registered,
                limit_bytes,
                may_lock: has_lock_capability(),
            },
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

    fn refused(&self) -> MutexGuard<'_, Vec<MemoryRegion>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends registrations, each that can be: their memory is no longer pinned when this returns.
    ///
    /// # Errors
    ///
    /// Why the first could not be ended. Those stay pinned and counted, and the device takes their
    /// keys until the lanes end: so the session must.
    fn end(&self, regions: impl IntoIterator<Item = MemoryRegion>) -> Result<(), LaneError> {
        let mut first = Ok(());
        for region in regions {
            let bytes = region.range().bytes();
            match region.end() {
                Ok(()) => {
                    self.ended.fetch_add(1, Ordering::Relaxed);
                    self.bytes.fetch_sub(bytes, Ordering::Relaxed);
                }
                Err((region, source)) => {
                    self.refused().push(region);
                    let device = self.domain.device().name().to_owned();
                    let error = RdmaError::Deregistration {
                        bytes,
                        device,
                        source,
                    };
                    first = first.and(Err(error.on(NO_LANE, "retiring memory")));
                }
            }
        }
        first
    }

    /// Ends registrations, and tries those again that could not be ended before.
    fn end_all(&self, regions: impl IntoIterator<Item = MemoryRegion>) {
        let refused = std::mem::take(&mut *self.refused());
        // What is pinned still is what the counters say; the session has ended already.
        let _ = self.end(regions.into_iter().chain(refused));
    }
}

/// Whether this thread has CAP_IPC_LOCK, in whichever user namespace it is.
fn has_lock_capability() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK))
}

/// Ranges that are registered, each by itself.
///
/// Lanes look keys up here for every put, so that is a lock which readers share, taken once for some
/// hundreds of runs: with 16,384 ranges on each side a put of 256 single pages was cut in 9 µs, both
/// sides' locks and lookups included, and more threads did not make it slower but by sharing the
/// cores. It is held for writing only to note or to strike out a range: registering and
/// deregistering, which take their time, are done without it.
pub(super) struct OpenRanges {
    registrar: Arc<Registrar>,
    access: Access,
    state: RwLock<OpenState>,
}

#[derive(Default)]
struct OpenState {
    /// `None` while a range is being registered.
    ranges: RangeMap<Option<MemoryRegion>>,
    closed: bool,
}

/// The ranges as they are now: none comes or goes while this is held, so not for long.
pub(super) struct OpenView<'a>(RwLockReadGuard<'a, OpenState>);

impl OpenView<'_> {
    /// The range that a page was registered in, and the key for requests of this side.
    pub(super) fn at(&self, page: PageNumber) -> Option<(Run, MemoryKey)> {
        let region = self.region(page)?;
        let key = MemoryKey {
            key: region.local_key(),
            address: region.address(),
        };
        Some((region.range(), key))
    }

    /// The registration that a page is in.
    pub(super) fn region(&self, page: PageNumber) -> Option<&MemoryRegion> {
        self.0.ranges.at(page)?.1.as_ref()
    }
}

impl OpenRanges {
    pub(super) fn new(registrar: Arc<Registrar>, access: Access) -> Self {
        Self {
            registrar,
            access,
            state: RwLock::default(),
        }
    }

    pub(super) fn registrar(&self) -> &Registrar {
        &self.registrar
    }

    fn state(&self) -> RwLockWriteGuard<'_, OpenState> {
        // No code panics while it holds the lock, so a poisoned state is still a whole one.
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// To look ranges up.
    pub(super) fn view(&self) -> OpenView<'_> {
        OpenView(self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Registers a range, and returns the key for requests of the peer. Ranges that do not overlap
    /// may be opened side by side.
    pub(super) fn open(&self, range: Run) -> Result<MemoryKey, LaneError> {
        self.registrar
            .memory
            .check(range)
            .map_err(|source| LaneError::Memory {
                lane: NO_LANE,
                source,
            })?;
        {
            let mut state = self.state();
            if state.closed {
                return Err(LaneError::Stopped(NO_LANE));
            }
            state.ranges.insert(range, None).map_err(|other| {
                let source = std::io::Error::other(format!(
                    "{} pages at {} overlap {} pages at {}, which are prepared",
                    range.pages, range.first, other.pages, other.first
                ));
                LaneError::System {
                    lane: NO_LANE,
                    doing: "preparing memory",
                    source,
                }
            })?;
        }
        // Outside of the lock: it takes its time, and others may do the same meanwhile.
        let region = self.registrar.register(range, self.access);
        let mut state = self.state();
        let region = match region {
            Ok(region) => region,
            Err(error) => {
                state.ranges.remove(range);
                return Err(error);
            }
        };
        let key = MemoryKey {
            key: region.remote_key(),
            address: region.address(),
        };
        if !state.closed
            && let Some(place) = state.ranges.get_mut(range)
        {
            *place = Some(region);
            return Ok(key);
        }
        state.ranges.remove(range);
        drop(state);
        self.registrar
            .end([region])
            .and(Err(LaneError::Stopped(NO_LANE)))
    }

    /// Ends the registrations of a range: of all of it, and of nothing else.
    ///
    /// # Errors
    ///
    /// [`LaneError::NotPrepared`], and nothing is changed; any other when a registration could not be
    /// ended, and memory is still pinned.
    pub(super) fn close(&self, range: Run) -> Result<(), LaneError> {
        let ended = self.state().ranges.take(range, Option::is_some);
        let Some(ended) = ended else {
            return Err(LaneError::NotPrepared {
                lane: NO_LANE,
                run: range,
            });
        };
        self.registrar.end(ended.into_iter().flatten())
    }

    /// Ends all of them, and lets nothing more be opened.
    pub(super) fn close_all(&self) {
        let mut state = self.state();
        state.closed = true;
        let ended = state.ranges.take_all();
        drop(state);
        self.registrar.end_all(ended.flatten());
    }

    /// Lets nothing more be opened. What is registered stays so until the endpoint goes, which is
    /// the time for unpinning: not in the guest's pause.
    pub(super) fn refuse_more(&self) {
        self.state().closed = true;
    }
}
