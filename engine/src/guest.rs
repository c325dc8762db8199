//! What the engine asks of a guest: on the source, and on the destination.
//!
//! A VMM implements [`Guest`] for what it runs and [`IncomingGuest`] for what it is being sent; one
//! type may be both. Nothing here is specific to KVM.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dunlin_transports::deadline::Deadline;
use dunlin_transports::memory::PageNumber;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::dirty::DirtySource;
use crate::layout::{GuestMemory, Layout};
use crate::milestone::Milestone;
use crate::state::DeviceState;

/// Something that the guest's side could not do.
#[derive(Debug)]
pub struct GuestError {
    doing: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl GuestError {
    /// `doing` failed because of `source`.
    pub fn new(doing: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            doing: doing.into(),
            source: Some(source.into()),
        }
    }

    /// A failure that has no further cause.
    pub fn message(message: impl Into<String>) -> Self {
        Self {
            doing: message.into(),
            source: None,
        }
    }
}

impl fmt::Display for GuestError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(formatter, "{}: {source}", self.doing),
            None => formatter.write_str(&self.doing),
        }
    }
}

impl Error for GuestError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

/// Why a guest that was sent here could not be run. The difference decides who owns it.
#[derive(Debug)]
pub enum RunError {
    /// No vCPU was entered, and none will be: the source may let the guest go on.
    NeverEntered(GuestError),
    /// A vCPU was entered, or it can't be told: the guest may have written, sent and printed.
    MayHaveRun(GuestError),
}

impl fmt::Display for RunError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverEntered(error) => write!(formatter, "no vCPU was entered: {error}"),
            Self::MayHaveRun(error) => write!(formatter, "a vCPU may have run: {error}"),
        }
    }
}

impl Error for RunError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::NeverEntered(error) | Self::MayHaveRun(error) => Some(error),
        }
    }
}

/// Who a guest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestIdentity {
    /// Its UUID, the same wherever it runs.
    pub uuid: Uuid,
    /// Its name, as the operator gave it; see [`valid_guest_name`].
    pub name: String,
    /// The ownership epoch: grows by one with each move.
    pub epoch: u64,
}

/// The longest name of a guest, in bytes: it names sockets and files, and `sun_path` has 108.
pub const GUEST_NAME_BYTES_MAX: usize = 40;

/// Whether a name may be a guest's: 1 to [`GUEST_NAME_BYTES_MAX`] of `A–Z a–z 0–9 . _ -`, not
/// starting with a dot or a dash. (It becomes part of file names on both hosts.)
pub fn valid_guest_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !name.is_empty()
        && name.len() <= GUEST_NAME_BYTES_MAX
        && name.bytes().all(allowed)
        && !name.starts_with(['.', '-'])
}

/// What the destination needs to know before the first page, in order to make room for a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestOffer {
    /// Who it is. The epoch is the source's, before the move.
    pub identity: GuestIdentity,
    /// What runs it: `kvm` or `process`, or an embedder's own name.
    pub kind: String,
    /// How many vCPUs (or writing threads) it has.
    pub vcpus: u32,
    /// The shape of its memory.
    pub layout: Layout,
    /// What else is needed to create it before the pause: CPUID, TSC frequency, device list.
    pub configuration: DeviceState,
}

/// When a pause took hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PauseRecord {
    /// When each vCPU came to rest, in vCPU order; empty where there are none.
    pub parked: Vec<Timestamp>,
}

/// When a guest's vCPUs began to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunRecord {
    /// When each vCPU was entered, in vCPU order.
    pub running: Vec<Timestamp>,
}

/// What a guest's own share of a handover takes on this host, as far as it was measured: before the
/// pause, of this guest or of one like it. The prediction assumes what is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandoverCosts {
    /// Parking all vCPUs.
    pub park: Option<Duration>,
    /// Saving the state of vCPUs and devices, and encoding it.
    pub save: Option<Duration>,
    /// Decoding and loading it.
    pub load: Option<Duration>,
    /// Entering all vCPUs.
    pub resume: Option<Duration>,
}

/// A guest that runs here and can be sent away.
pub trait Guest: Send {
    /// What the destination has to know in order to make room.
    ///
    /// # Errors
    ///
    /// When the guest's configuration can't be read.
    fn offer(&self) -> Result<GuestOffer, GuestError>;

    /// Its memory.
    fn memory(&self) -> &GuestMemory;

    /// Everything that knows which pages were written. Asked once, before the first round.
    fn dirty_sources(&self) -> Vec<Arc<dyn DirtySource>>;

    /// Stops every writer: parks the vCPUs (each after completing its pending exit), then quiesces
    /// devices and threads. When it returns, nothing writes guest memory but `save_state`.
    ///
    /// # Errors
    ///
    /// When a vCPU could not be parked by the deadline. Some may be parked then: `resume` follows.
    fn pause(&mut self, deadline: Deadline) -> Result<PauseRecord, GuestError>;

    /// Reads the state of vCPUs and devices. The guest is paused. May dirty guest memory, which the
    /// dirty sources must then report.
    ///
    /// # Errors
    ///
    /// When the kernel refuses or a device is not quiet.
    fn save_state(&mut self) -> Result<DeviceState, GuestError>;

    /// Lets the guest go on here, after a `pause` that led nowhere. May be called when not paused.
    ///
    /// # Errors
    ///
    /// When a vCPU can't run any more.
    fn resume(&mut self) -> Result<(), GuestError>;

    /// What parking the guest and saving its state took before, where that was measured.
    fn handover_costs(&self) -> HandoverCosts {
        HandoverCosts::default()
    }

    /// The guest's own checks, where it has such.
    fn self_check(&self) -> Option<Arc<dyn SelfCheck>> {
        None
    }
}

/// A guest that is being sent here. Dropping it before `run` discards it.
pub trait IncomingGuest: Send {
    /// Its memory: fresh, never written, so that every page reads as zero.
    fn memory(&self) -> &GuestMemory;

    /// Takes the state of vCPUs and devices. All memory is in place.
    ///
    /// # Errors
    ///
    /// When a section or field is unknown (its name is in the error) or the kernel refuses.
    fn load_state(&mut self, state: &DeviceState) -> Result<(), GuestError>;

    /// Enters every vCPU and returns once the last one was entered. The guest's epoch is `epoch`
    /// from now on.
    ///
    /// # Errors
    ///
    /// When a vCPU can't be entered. It says whether any was; after
    /// [`RunError::NeverEntered`] none may be entered any more.
    fn run(&mut self, epoch: u64) -> Result<RunRecord, RunError>;

    /// The pause as the guest itself saw it, where the guest measures it; waits for the guest to
    /// have done so, up to the deadline. Called after `run`.
    fn guest_visible_pause(&mut self, deadline: Deadline) -> Option<Duration>;

    /// What loading state and entering take here, where that was measured. Asked before the pause.
    fn handover_costs(&self) -> HandoverCosts {
        HandoverCosts::default()
    }

    /// The guest's own checks, where it has such.
    fn self_check(&self) -> Option<Arc<dyn SelfCheck>> {
        None
    }
}

/// Makes the guest that an offer describes.
pub trait GuestFactory {
    /// What is made.
    type Guest: IncomingGuest;

    /// Creates memory, vCPUs, devices and threads, all that can be done before the pause.
    ///
    /// # Errors
    ///
    /// When this host can't run such a guest; the reason is told to the source.
    fn create(&mut self, offer: &GuestOffer) -> Result<Self::Guest, GuestError>;

    /// The guest that was made runs here, as `epoch`: told at once, while the source still compares
    /// memory. Must not take long.
    fn entered(&mut self, epoch: u64) {
        let _ = epoch;
    }

    /// What the guest would have held outside was released: it did not come.
    fn released(&mut self) {}

    /// A point on the way was reached. Some are inside the pause.
    fn reached(&mut self, milestone: Milestone) {
        let _ = milestone;
    }
}

/// What the source says of one page of its frozen memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageClaim {
    /// XXH3-64 of the page's bytes.
    pub digest: u64,
    /// For a page that the guest rewrites: how often it was written. `None`: it never changes.
    pub generation: Option<u64>,
    /// Whether the page was whole when it was frozen; a vCPU can be parked in the middle of
    /// writing it. Always true for a page that never changes.
    pub settled: bool,
}

/// The outcome of checking claims against a guest's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageCheck {
    /// Pages compared.
    pub checked: u64,
    /// Pages with the same bytes.
    pub same: u64,
    /// Pages that the guest has rewritten since: consistent in themselves, and no older.
    pub later: u64,
    /// Pages that are wrong.
    pub different: u64,
    /// The first few wrong ones, each with what is wrong.
    pub examples: Vec<(PageNumber, String)>,
}

/// A guest that can tell whether a page of its memory is as it should be, while it runs.
pub trait SelfCheck: Send + Sync {
    /// Describes `pages` pages from `first` on, on the frozen source. Pages that are in no region
    /// are described as `PageClaim { digest: 0, generation: None, settled: true }`.
    fn claims(&self, first: PageNumber, pages: u32) -> Vec<PageClaim>;

    /// Compares the running guest's pages with the source's claims about them. Waits for a page
    /// that is just being written, up to the deadline; past it, the page counts as different.
    fn check(&self, first: PageNumber, claims: &[PageClaim], deadline: Deadline) -> PageCheck;
}
