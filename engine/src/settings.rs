//! What an operator decides about a move, and the handle with which it is steered while it runs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::pin_budget::PinBudget;
use crate::session::Decision;

/// Comparing memory afterwards may take this long, and one more second for each [`VERIFY_PACE`].
pub(crate) const VERIFY_TIME_BASE: Duration = Duration::from_secs(30);

/// A pace, in bytes a second, that comparing memory keeps on a slow and busy host: where one emulated
/// processor has both ends and the guest (docs/softroce.md) it is some 28 MiB.
pub(crate) const VERIFY_PACE: u64 = 16 << 20;

/// What happens when rounds no longer bring the predicted blackout down to the budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnStall {
    /// The move ends and the guest stays.
    #[default]
    Abort,
    /// Pause although the prediction is over the budget, unless it is over the cap.
    Switchover,
}

/// How the two sides' memory is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    /// Not at all.
    Off,
    /// After the handover, page by page, where the guest can check itself; costs no blackout.
    #[default]
    Auto,
    /// By digests of all memory inside the handover, for any guest; costs blackout.
    Full,
}

/// What an operator decides about a move. Every duration is a bound on something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveSettings {
    /// The budget: the guest is paused once the predicted blackout is at most this.
    pub max_blackout: Duration,
    /// Never exceeded before the give-up: past it, the guest resumes on the source. `None`: ten
    /// times the budget.
    pub blackout_cap: Option<Duration>,
    /// What happens when rounds don't help any more.
    pub on_stall: OnStall,
    /// The most guest bytes a second, all lanes together, while the guest runs; `None`: no limit.
    /// The final round is not limited.
    pub max_bandwidth: Option<u64>,
    /// The most pre-copy rounds.
    pub max_rounds: u32,
    /// The most time for the whole move, up to the give-up; `None`: no limit.
    pub timeout: Option<Duration>,
    /// How memory is compared.
    pub verify: Verify,
    /// How many lanes; `None`: chosen from the cores and the guest's size.
    pub lanes: Option<u16>,
    /// The CPUs that lane threads are pinned to, one after the other; empty: pinned only where
    /// there are more cores than lanes and vCPUs together.
    pub cpus: Vec<usize>,
    /// How long the peer may be silent before it counts as gone.
    pub peer_timeout: Duration,
    /// How much guest memory is registered at once on this side, for transports that register it.
    pub pin_budget: PinBudget,
}

impl Default for MoveSettings {
    fn default() -> Self {
        Self {
            max_blackout: Duration::from_millis(50),
            blackout_cap: None,
            on_stall: OnStall::default(),
            max_bandwidth: None,
            max_rounds: 30,
            timeout: None,
            verify: Verify::default(),
            lanes: None,
            cpus: Vec::new(),
            peer_timeout: Duration::from_secs(5),
            pin_budget: PinBudget::default(),
        }
    }
}

/// Steers a move while it runs; shared between the thread that moves and whoever watches.
#[derive(Debug)]
pub struct MoveHandle {
    cancelled: AtomicBool,
    max_blackout_ns: AtomicU64,
    max_bandwidth: AtomicU64,
    decision: Mutex<Option<(Decision, String)>>,
}

/// Stands for 'no limit' in the handle's bandwidth.
const UNLIMITED: u64 = u64::MAX;

impl MoveHandle {
    /// A handle for a move with these settings.
    pub fn new(settings: &MoveSettings) -> Self {
        let handle = Self {
            cancelled: AtomicBool::new(false),
            max_blackout_ns: AtomicU64::new(0),
            max_bandwidth: AtomicU64::new(0),
            decision: Mutex::new(None),
        };
        handle.set_max_blackout(settings.max_blackout);
        handle.set_max_bandwidth(settings.max_bandwidth);
        handle
    }

    /// Asks for the move to end with the guest staying. Heeded until the give-up.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// Whether the move was cancelled.
    pub fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Decides about a guest whose owner is not known; `how` says how the other side is fenced
    /// off. Heeded while the move is in doubt, and only then.
    pub fn decide(&self, decision: Decision, how: impl Into<String>) {
        let mut slot = self.decision.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert_with(|| (decision, how.into()));
    }

    /// What was decided, and how the other side is fenced off.
    pub(crate) fn decision(&self) -> Option<(Decision, String)> {
        let slot = self.decision.lock().unwrap_or_else(PoisonError::into_inner);
        slot.clone()
    }

    /// Changes the budget.
    pub fn set_max_blackout(&self, budget: Duration) {
        let nanoseconds = u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX);
        self.max_blackout_ns.store(nanoseconds, Ordering::Relaxed);
    }

    /// The budget.
    pub fn max_blackout(&self) -> Duration {
        Duration::from_nanos(self.max_blackout_ns.load(Ordering::Relaxed))
    }

    /// Changes the bandwidth, in bytes a second; `None`: no limit.
    pub fn set_max_bandwidth(&self, bytes_per_second: Option<u64>) {
        self.max_bandwidth
            .store(bytes_per_second.unwrap_or(UNLIMITED), Ordering::Relaxed);
    }

    /// The bandwidth, in bytes a second; `None`: no limit.
    pub fn max_bandwidth(&self) -> Option<u64> {
        let limit = self.max_bandwidth.load(Ordering::Relaxed);
        (limit != UNLIMITED).then_some(limit)
    }
}
