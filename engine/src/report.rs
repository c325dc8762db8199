//! What is told of a move: while it runs ([`Progress`]) and afterwards ([`Report`]).
//!
//! The report is the product's face to programs: schema `dunlin.report/1`, every field explained
//! in docs/report.md. Durations end in `_ns`, sizes in `_bytes`.

use serde::{Deserialize, Serialize};

use crate::telemetry::MoveTelemetry;

pub mod reckoning;

/// The schema's name and version.
pub const REPORT_SCHEMA: &str = "dunlin.report/1";

/// How a move ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The destination runs the guest.
    Moved,
    /// The destination runs the guest, but memory did not compare equal.
    MovedUnverified,
    /// Cancelled; the guest runs on the source.
    Cancelled,
    /// Rounds did not bring the blackout under the budget; the guest runs on the source.
    NotConverging,
    /// The blackout's cap was reached; the guest runs on the source.
    BlackoutCap,
    /// The move's time limit was reached; the guest runs on the source.
    TimedOut,
    /// The destination refused the guest; it runs on the source.
    Refused,
    /// The destination can't be reached, or it or the link failed; the guest runs on the source.
    PeerFailed,
    /// Something on this side failed; the guest runs on the source.
    Failed,
    /// The guest stayed on the source, but could not be resumed there; it is paused.
    NotResumed,
    /// Who owns the guest is not known (yet): the connection was lost behind the give-up. The
    /// source keeps it paused and asks the destination.
    Unknown,
    /// The owner was not known, and a person decided that the guest goes on on the source.
    ResumedByHand,
    /// The owner was not known, and a person decided that the source does not keep the guest.
    DiscardedByHand,
}

impl Outcome {
    /// Whether the guest runs on the destination.
    pub fn moved(self) -> bool {
        matches!(self, Self::Moved | Self::MovedUnverified)
    }
}

/// Which end of the move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The end that the guest leaves.
    Source,
    /// The end that it goes to.
    Destination,
    /// Neither: on the way between them.
    Link,
}

/// All that is told of a move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_SCHEMA`].
    pub schema: String,
    /// The session's id, in hexadecimal.
    pub session: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, where it did not end well: one sentence.
    pub reason: Option<String>,
    /// `tcp`, `rdma`.
    pub transport: String,
    /// How the transport worked: `io_uring`, `io_uring, zero-copy`, `writev`.
    pub mechanism: String,
    /// How many lanes.
    pub lanes: u16,
    /// The guest.
    pub guest: GuestReport,
    /// Each pre-copy round, then the final one.
    pub rounds: Vec<RoundReport>,
    /// From the start of the move to its end.
    pub total_ns: u64,
    /// Guest bytes sent, without framing.
    pub sent_bytes: u64,
    /// All bytes on the lanes, framing included.
    pub wire_bytes: u64,
    /// What the source's lanes asked of their device.
    #[serde(default)]
    pub device: DeviceReport,
    /// `sent_bytes` over the time that rounds took.
    pub goodput_bytes_per_s: u64,
    /// The pause; `None` when the guest was never paused.
    pub blackout: Option<BlackoutReport>,
    /// The time in which it was not known who owns the guest; `None` when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_doubt: Option<InDoubtReport>,
    /// Memory that was registered with a device while the move ran; `None` for a transport that
    /// registers nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration: Option<RegistrationReport>,
    /// How the two memories compared.
    pub verification: VerificationReport,
    /// The machine on which each side ran.
    pub hosts: Hosts,
    /// What both ends measured: how long each operation took, what was done when. `None` where
    /// recording was left out of the build, or no destination was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<MoveTelemetry>,
    /// Whether it may have been the transport that failed, before the first page was sent: another
    /// one may do. For whoever ordered the move; not part of the schema.
    #[serde(skip)]
    pub another_transport_may_do: bool,
}

/// The guest that was moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestReport {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// The epoch after the move (before it, when the guest stayed).
    pub epoch: u64,
    /// `kvm`, `process`.
    pub kind: String,
    /// Its memory.
    pub memory_bytes: u64,
    /// Its vCPUs.
    pub vcpus: u32,
    /// How its writes were tracked: the names of its dirty sources.
    pub dirty_tracking: Vec<String>,
}

/// What the source asked of its RDMA device; all 0 for a transport without one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Requests: writes, and a message for each fence.
    pub work_requests: u64,
    /// Times that the device was told of new ones.
    pub doorbells: u64,
    /// Completions taken, the words for fences among them.
    pub completions: u64,
    /// Registrations made.
    pub registrations: u64,
}

/// One round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundReport {
    /// Counted from 1.
    pub number: u32,
    /// Whether the guest was paused in it.
    pub is_final: bool,
    /// From its begin until the last lane's fence was confirmed (for the final: was sent).
    pub duration_ns: u64,
    /// Pages that were dirty when it began.
    pub dirty_pages: u64,
    /// Of these, pages found to be zero.
    pub zero_pages: u64,
    /// Of the zero pages, those that needed no word to the destination.
    pub skipped_pages: u64,
    /// Guest bytes sent.
    pub sent_bytes: u64,
    /// The blackout predicted at its end; 0 for the final round.
    pub predicted_blackout_ns: u64,
    /// How long the lane that waited longest for memory to be registered did so.
    #[serde(default)]
    pub registration_wait_ns: u64,
    /// Pages of memory that was touched too late to be registered, put off to the next round.
    #[serde(default)]
    pub postponed_pages: u64,
}

/// Memory that was registered with a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrationReport {
    /// The most guest memory that could be registered at once on each side; `None`: all of it.
    pub window_bytes: Option<u64>,
    /// The source's registrations.
    pub source: RegisteredReport,
    /// The destination's, as it says; `None` where it was not heard to the end.
    pub destination: Option<RegisteredReport>,
    /// Ranges that were closed to make room for others.
    pub evictions: u64,
    /// How long lanes waited for memory to be registered: in each round the one that waited longest.
    pub wait_ns: u64,
    /// Pages of memory that was touched too late to be registered, put off to the next round.
    pub postponed_pages: u64,
}

/// One side's registrations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredReport {
    /// How many were made.
    pub made: u64,
    /// How many of them were ended before the move was over.
    pub ended: u64,
    /// The most that was registered at once.
    pub peak_bytes: u64,
}

/// The last line of a pause's parts: what lies between the others.
pub const REMAINDER: &str = "remainder";

/// The pause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlackoutReport {
    /// From the first source vCPU parked to the last destination vCPU running (or, when the guest
    /// stayed, to the last source vCPU running again).
    pub total_ns: u64,
    /// What was predicted when it began.
    pub predicted_ns: u64,
    /// The prediction, term by term.
    pub predicted_parts: Vec<PredictedPart>,
    /// The longest gap that the guest itself measured; `None` when it does not measure.
    pub guest_visible_ns: Option<u64>,
    /// Its parts, in order, without overlap, and last the [`REMAINDER`]; all of them add up to
    /// `total_ns`.
    pub parts: Vec<BlackoutPart>,
    /// Each vCPU's own pause, from parked to running, in vCPU order.
    pub vcpus_ns: Vec<u64>,
    /// The budget in force.
    pub budget_ns: u64,
    /// The cap in force.
    pub cap_ns: u64,
    /// How far the two sides' clocks may be apart from what was assumed; 0 on one host. `None`
    /// where it is not known: then the destination's parts are in those on the link.
    #[serde(default)]
    pub clock_error_ns: Option<u64>,
    /// From the order to pause until the first vCPU was parked, which is before the pause: at some
    /// moment in it the guest stood still.
    #[serde(default)]
    pub leaving_ns: u64,
}

/// A time in which it was not known who owns the guest. Where it ended with the guest moved, the
/// guest ran on the destination at some point in it: the blackout's `total_ns` is an upper bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InDoubtReport {
    /// From the loss of the connection until it was settled.
    pub held_ns: u64,
    /// How often the destination was asked.
    pub asked: u32,
    /// What settled it: `answer` or `person`.
    pub settled_by: String,
    /// The destination's last answer, or how the person says that it is fenced off.
    pub words: String,
}

/// One part of the pause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlackoutPart {
    /// Its name; docs/report.md explains each.
    pub name: String,
    /// Where the time was spent.
    pub side: Side,
    /// When it began, counted from the pause's begin; `None` for the remainder, which is in several
    /// places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin_ns: Option<u64>,
    /// How long it took.
    pub duration_ns: u64,
}

/// One term of the prediction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PredictedPart {
    /// Its name.
    pub name: String,
    /// How long it was expected to take.
    pub duration_ns: u64,
    /// Whether that was assumed; otherwise it rests on what was measured before, in this move or of
    /// this guest.
    #[serde(default)]
    pub is_assumed: bool,
}

/// How the two memories compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerificationReport {
    /// `off`, `pages` (afterwards, page by page) or `digests` (inside the handover); `none` when
    /// the guest can't check itself or the move did not get that far.
    pub method: String,
    /// Pages compared.
    pub pages_checked: u64,
    /// Pages that were the same, byte for byte.
    pub pages_same: u64,
    /// Pages that the guest had rewritten since, consistent and no older.
    pub pages_later: u64,
    /// Pages that were wrong.
    pub pages_different: u64,
    /// Whether all was as it should be; `None` when nothing was compared.
    pub equal: Option<bool>,
    /// How long it took.
    pub duration_ns: u64,
    /// How much of that was inside the blackout.
    pub blackout_ns: u64,
    /// The first few wrong pages, in words.
    pub examples: Vec<String>,
}

/// The two machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hosts {
    /// The source's.
    pub source: Host,
    /// The destination's, as it says.
    pub destination: Host,
}

/// A machine, in a few words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its kernel's release.
    pub kernel: String,
    /// Its processor's model.
    pub cpu: String,
    /// How many logical CPUs this process may use.
    pub cpus: u32,
    /// This program's version.
    pub dunlin: String,
}

/// Where a move stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Reaching and asking the destination.
    Connecting,
    /// Opening lanes, starting to track writes.
    Preparing,
    /// A pre-copy round.
    Copying,
    /// The guest is paused.
    Switchover,
    /// The destination runs it; memory is being compared.
    Verifying,
    /// The guest is paused, and it is not known who owns it.
    InDoubt,
    /// Over.
    Done,
}

/// A snapshot of a move under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Where it stands.
    pub phase: Phase,
    /// The round, from 1; 0 before the first.
    pub round: u32,
    /// Pages that were dirty when the round began.
    pub dirty_pages: u64,
    /// Of these, pages not yet dealt with.
    pub remaining_pages: u64,
    /// Guest bytes sent since the move began.
    pub sent_bytes: u64,
    /// Guest bytes a second, smoothed.
    pub rate_bytes_per_s: u64,
    /// The time to the end as far as can be told; `None` when it can't.
    pub eta_ns: Option<u64>,
    /// The predicted blackout, once one round is over.
    pub predicted_blackout_ns: Option<u64>,
    /// Time since the move began.
    pub elapsed_ns: u64,
    /// Each lane, in lane order; empty until the lanes are open.
    #[serde(default)]
    pub lanes: Vec<LaneProgress>,
}

/// Where one lane stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneProgress {
    /// Which lane.
    pub lane: u16,
    /// Guest bytes that it sent since the move began.
    pub sent_bytes: u64,
    /// Guest bytes a second, since it was told the last time.
    pub rate_bytes_per_s: u64,
}
