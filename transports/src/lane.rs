//! The lane verbs, and the endpoints that open lanes.
//!
//! A **lane** is one path from source to destination, used by one thread. A fence is seen behind all
//! that was put on its lane before it; between lanes there is no order but a fence on each.
//! Everything above these traits is blind to the transport.
//!
//! Both ends describe memory by the same [`Run`]s of the same layout, so a put names no address:
//! it goes from the run's place on this side to the same place on the other.
//!
//! Rules that every transport keeps (the conformance suite checks them):
//!
//! - After `fence(n)` and the peer's word for it, all that was put before on that lane is in the
//!   destination's memory. The word is the destination's own, sent once it *saw* the fence behind
//!   the data; completion on the source is never taken for it.
//! - What is put twice, whether bytes or zeros, ends as it was put last if the word for a fence
//!   between the two had come. Without that it may end as either of them, or as a mixture: a device
//!   may let writes pass each other on the way into memory.
//! - A put may read the source's memory until `wait_fence` has returned for a fence behind it. A
//!   guest that writes the page meanwhile makes the copy torn; its dirty tracking sees to it that
//!   the page is sent again.
//! - The destination writes only inside ranges that it prepared and did not retire or revoke.
//! - After `revoke_all` returns, no byte from the peer can reach this side's memory.
//! - After `stop`, every call on every lane of the endpoint ends soon, with [`LaneError::Stopped`]
//!   or the error that came first; no call waits without bound.
//! - Nothing that the peer sends makes this side panic, allocate beyond a stated cap, or touch
//!   memory outside of the prepared ranges.
//!
//! # What travels over control for a transport
//!
//! A transport may need more from the control connection than tickets and grants. Three opaque byte
//! strings have their place there, each bounded and each empty for a transport that has no use for
//! it (TCP, in-memory):
//!
//! ```text
//!   source                                        destination
//!                                                 contact()              once the endpoint is made
//!     accept_contact(contact)   ◀── WELCOME ──    with tickets and grants
//!     open_lane(ticket) …       ══ the fabric ══▶ accept_lane(tickets) …
//!     identity() of each lane   ── control ─────▶ confirm(lane, identity)
//!     puts may begin            ◀── control ──    every lane is confirmed
//! ```
//!
//! 1. **Contact**: where the destination's lanes listen. [`DestinationEndpoint::contact`] goes into
//!    WELCOME; the source gives it to [`SourceEndpoint::accept_contact`] before it opens a lane.
//! 2. **Identity**: which connection a lane is, as both of its ends see it. A fabric's connection
//!    requests, with the ticket in them, can be read and repeated by others on it; so the source
//!    sends each lane's number and [`SourceLane::identity`] over control, once all lanes are open,
//!    and the destination gives them to [`DestinationEndpoint::confirm`]. Until a lane is confirmed
//!    its puts are refused by the destination's device, or have nowhere to go
//!    ([`DestinationEndpoint::confirms_before_opening`]), so a source puts nothing before it knows
//!    that all are. Where every identity is empty the exchange can be left out. A failed
//!    confirmation ends the session.
//! 3. **Offers**: for post-copy, the way back. What the source's [`SourceEndpoint::offer`] returns
//!    goes to [`DestinationEndpoint::accept_offers`]; then [`DestinationLane::get`] can fetch.

use std::fmt;
use std::time::Duration;

use crate::deadline::Deadline;
use crate::memory::{MemoryMap, Run};

mod counters;
mod error;
mod observing;

pub use counters::{DeviceCounters, LaneCounters, RegistrationCounters};
pub use error::LaneError;
use error::{unexpected, unsupported};
#[cfg(any(test, feature = "rdma", feature = "tcp", feature = "testing"))]
pub(crate) use observing::Observer;
pub use observing::{LaneObserver, LaneWork};

/// The most lanes that one session may have. Each is a thread and a connection on both sides; more
/// than this helps on no known NIC, and it bounds what a peer can ask for.
pub const LANES_MAX: u16 = 64;

/// The most bytes that a [`Grant`]'s key may have. An RDMA key and address take 12.
pub const GRANT_KEY_BYTES_MAX: usize = 64;

/// The most bytes that [`DestinationEndpoint::contact`] may have: an IP address and a port take 24.
pub const CONTACT_BYTES_MAX: usize = 64;

/// The most bytes that [`SourceLane::identity`] may have: two queue pair numbers and two 16-byte
/// addresses take 40.
pub const IDENTITY_BYTES_MAX: usize = 64;

/// A lane's place among the session's lanes, counted from zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneNumber(pub u16);

impl fmt::Display for LaneNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "lane {}", self.0)
    }
}

/// A fence's number: it counts up on each lane, from 1, without gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FenceNumber(pub u64);

impl fmt::Display for FenceNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "fence {}", self.0)
    }
}

/// Names a session on both sides: random, chosen by the source.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 16]);

impl fmt::Display for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// The single-use secret with which a lane proves that it belongs to the session. Made by the
/// destination, told over control. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct LaneToken(pub [u8; 32]);

impl LaneToken {
    /// Whether two tokens are the same, in a time that does not tell how much of them is.
    pub fn matches(&self, other: &Self) -> bool {
        let difference = self
            .0
            .iter()
            .zip(&other.0)
            .fold(0, |sum, (a, b)| sum | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

impl fmt::Debug for LaneToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("LaneToken(…)")
    }
}

/// What a lane needs in order to be let in.
#[derive(Clone, Debug)]
pub struct LaneTicket {
    /// The session.
    pub session: SessionId,
    /// Which of the session's lanes this one is.
    pub number: LaneNumber,
    /// The secret for this lane.
    pub token: LaneToken,
}

/// What the destination's `prepare` yields and the source's transport needs before it may put into
/// the range: opaque to all but the transport. TCP's is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The range that was prepared.
    pub range: Run,
    /// The transport's own words about it, at most [`GRANT_KEY_BYTES_MAX`] bytes.
    pub key: Vec<u8>,
}

/// The source's end of a lane. Used by one thread; it may go on to another once all that was put is
/// fenced.
pub trait SourceLane: Send {
    /// Which lane this is.
    fn number(&self) -> LaneNumber;

    /// Sends the runs' bytes to the same place in the destination's memory. Every page has to be
    /// prepared on this side and granted by the other.
    ///
    /// May return before the bytes have left; `fence` settles it. Blocks while the peer takes
    /// nothing, up to the lane's stall limit.
    ///
    /// # Errors
    ///
    /// [`LaneError::NotPrepared`] for a page that is not; any other [`LaneError`]. The lane is of no
    /// use afterwards.
    fn put(&mut self, runs: &[Run]) -> Result<(), LaneError>;

    /// Makes the runs read as zero in the destination's memory: a put whose bytes are zero.
    ///
    /// # Errors
    ///
    /// As for `put`.
    fn put_zero(&mut self, runs: &[Run]) -> Result<(), LaneError>;

    /// Sends a fence behind all that was put, and sees to it that all of it leaves without
    /// waiting for more. Returns its number.
    ///
    /// # Errors
    ///
    /// As for `put`.
    fn fence(&mut self) -> Result<FenceNumber, LaneError>;

    /// Waits until the destination has said that it saw the fence (or a later one), and this side's
    /// device will not read again what was put before it; for as long as what is ahead of the fence
    /// still moves: buffers may be deep, and the link slow. What may be on its way is bounded, so
    /// this ends; `stop` ends it at once.
    ///
    /// # Errors
    ///
    /// [`LaneError::Stalled`] when nothing moved for `stall_limit`, as far as this side can tell:
    /// the lane is still good, and the call may be made again. Otherwise as for `put`.
    fn wait_fence(&mut self, number: FenceNumber, stall_limit: Duration) -> Result<(), LaneError>;

    /// Whether the lane is still of use, as far as can be told without sending: for a lane that waits
    /// for something else than its peer, and would not hear of a link that went down meanwhile.
    /// Never waits.
    ///
    /// # Errors
    ///
    /// What has ended the lane.
    fn look(&mut self) -> Result<(), LaneError> {
        Ok(())
    }

    /// What passed over the lane so far.
    fn counters(&self) -> LaneCounters;

    /// Which connection this is, at most [`IDENTITY_BYTES_MAX`] bytes, for the destination's
    /// [`DestinationEndpoint::confirm`]; empty where the ticket alone binds a lane to its session.
    fn identity(&self) -> Vec<u8> {
        Vec::new()
    }

    /// What the lane asked of its device so far.
    fn device_counters(&self) -> DeviceCounters {
        DeviceCounters::default()
    }

    /// Tells `observer` from now on how long the lane's work takes. It goes with the lane.
    fn observe(&mut self, observer: Box<dyn LaneObserver>) {
        drop(observer);
    }
}

/// The destination's end of a lane. Used by one thread, which does nothing else.
pub trait DestinationLane: Send {
    /// Which lane this is.
    fn number(&self) -> LaneNumber;

    /// Takes what arrives into memory until a fence is seen; tells the source so, and returns its
    /// number.
    ///
    /// # Errors
    ///
    /// [`LaneError::Stalled`] when the deadline passed first, [`LaneError::Closed`] when the source
    /// hung up; any other [`LaneError`]. The lane is of no use afterwards.
    fn next_fence(&mut self, deadline: Deadline) -> Result<FenceNumber, LaneError>;

    /// What passed over the lane so far; `None` where the bytes don't pass through this side's
    /// hands (one-sided writes), so that nobody here can count them.
    fn counters(&self) -> Option<LaneCounters>;

    /// Fetches the runs' bytes from the same place of the source's memory, and returns when they
    /// are here. The runs have to be prepared on this side and offered by the other.
    ///
    /// For post-copy, where the guest runs here already and waits for the page; so it is the
    /// destination's verb, and it takes no part of the source's processor. A transport whose bytes
    /// pass through the source's hands has no such verb: the source would have to be asked, which
    /// is a message of the engine's protocol and a `put`.
    ///
    /// # Errors
    ///
    /// [`LaneError::System`] of kind `Unsupported` for a transport that can't, which may be told
    /// from the endpoint's `accept_offers` too. [`LaneError::Stalled`] at the deadline; any other
    /// [`LaneError`]. The lane is of no use afterwards.
    fn get(&mut self, runs: &[Run], deadline: Deadline) -> Result<(), LaneError> {
        let _ = (runs, deadline);
        Err(unsupported(self.number(), "fetching pages"))
    }

    /// What the lane asked of its device so far.
    fn device_counters(&self) -> DeviceCounters {
        DeviceCounters::default()
    }

    /// As [`SourceLane::observe`].
    fn observe(&mut self, observer: Box<dyn LaneObserver>) {
        drop(observer);
    }
}

/// The source's side of a session's lanes: opens them and holds what they share (a device, its
/// registrations).
pub trait SourceEndpoint: Send + Sync {
    /// The transport's name as users see it: `tcp`, `rdma`.
    fn transport(&self) -> &'static str;

    /// How it works here, for the report: for TCP `io_uring` or `writev`.
    fn mechanism(&self) -> String;

    /// Makes just this range ready to be sent from. Where memory is registered, that is done when
    /// this returns: all of its pages are present and pinned, also those that were untouched. May
    /// be called from several threads for ranges that do not overlap, while lanes put elsewhere.
    ///
    /// # Errors
    ///
    /// When the range is not guest memory, overlaps a registered one, or the device refuses it.
    fn prepare(&self, range: Run) -> Result<(), LaneError>;

    /// Undoes `prepare`, and forgets the destination's grants for the range: it takes both again
    /// before anything can be put there. Only for ranges that no lane uses any more: fenced since,
    /// and each such fence's `wait_fence` has returned, which says that this side's device is
    /// through with them too; the destination's word by another way does not. Where memory is
    /// registered, the range consists of ranges as they were prepared, and is no longer pinned when
    /// this returns. May be called from several threads, as `prepare`.
    ///
    /// # Errors
    ///
    /// [`LaneError::NotPrepared`] when the range was not prepared. Any other when the system did not
    /// end a registration: its pages are still pinned, and the session must end.
    fn retire(&self, range: Run) -> Result<(), LaneError>;

    /// Takes the destination's grants; a put needs one for its range.
    ///
    /// # Errors
    ///
    /// When a grant is malformed or its range is not guest memory.
    fn accept_grants(&self, grants: &[Grant]) -> Result<(), LaneError>;

    /// Takes the destination's [`DestinationEndpoint::contact`], before the first lane is opened.
    ///
    /// # Errors
    ///
    /// When it is malformed, or of another transport.
    fn accept_contact(&self, contact: &[u8]) -> Result<(), LaneError> {
        if contact.is_empty() {
            return Ok(());
        }
        Err(unexpected(LaneNumber(0), "a contact", contact))
    }

    /// Makes a range ready to be fetched by the destination: for [`DestinationLane::get`]. Ends
    /// with the endpoint, or with `retire`.
    ///
    /// # Errors
    ///
    /// [`LaneError::System`] of kind `Unsupported` for a transport that has no `get`; else as for
    /// `prepare`.
    fn offer(&self, range: Run) -> Result<Grant, LaneError> {
        let _ = range;
        Err(unsupported(LaneNumber(0), "offering memory"))
    }

    /// Whether `prepare` registers memory with a device: whether it takes time, and pins.
    fn has_registrations(&self) -> bool {
        false
    }

    /// Registrations so far.
    fn registrations(&self) -> RegistrationCounters {
        RegistrationCounters::default()
    }

    /// The processors that are near the device through which lanes go, sorted, as Linux numbers
    /// them: a lane that runs there waits less for it. Empty where that is not known, or no device
    /// is nearer to some than to others.
    fn near_cpus(&self) -> Vec<usize> {
        Vec::new()
    }

    /// Opens a lane.
    ///
    /// # Errors
    ///
    /// When the destination can't be reached by the deadline or refuses.
    fn open_lane(
        &self,
        ticket: &LaneTicket,
        deadline: Deadline,
    ) -> Result<Box<dyn SourceLane>, LaneError>;

    /// What the device below said that ends every lane, if it did: a port that is down. A lane that
    /// works tells it by itself; this is for a session that ends while none does.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Ends every lane from outside, at once. May be called from any thread, more than once.
    fn stop(&self);

    /// Ends every lane, and undoes all that was prepared and offered: for a guest that is kept
    /// paused for who knows how long, of which nothing need stay pinned. No lane can be opened
    /// afterwards. Nothing is registered any more once its last lane is dropped.
    fn retire_all(&self) {
        self.stop();
    }
}

/// The destination's side of a session's lanes.
pub trait DestinationEndpoint: Send + Sync {
    /// The transport's name as users see it: `tcp`, `rdma`.
    fn transport(&self) -> &'static str;

    /// How it works here, for the report.
    fn mechanism(&self) -> String;

    /// Makes just this range ready to be written by the peer. Where memory is registered, all of
    /// its pages are present and pinned when this returns. May be called from several threads for
    /// ranges that do not overlap, while lanes write elsewhere.
    ///
    /// # Errors
    ///
    /// When the range is not guest memory, overlaps a registered one, or the device refuses it.
    fn prepare(&self, range: Run) -> Result<Grant, LaneError>;

    /// Undoes `prepare`: whatever the peer puts there afterwards does not arrive. Where memory is
    /// registered, the range consists of ranges as they were prepared, and is no longer pinned when
    /// this returns. May be called from several threads, as `prepare`.
    ///
    /// # Errors
    ///
    /// As for [`SourceEndpoint::retire`].
    fn retire(&self, range: Run) -> Result<(), LaneError>;

    /// Where the source's lanes reach this endpoint, at most [`CONTACT_BYTES_MAX`] bytes; empty
    /// where they go to the address and port of the control connection.
    fn contact(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Compares what the source says over control about one of its lanes with what is connected
    /// here, and opens the prepared ranges to that lane. Each lane is confirmed once, after
    /// [`DestinationEndpoint::accept_lane`] has returned it; its puts fail before.
    ///
    /// # Errors
    ///
    /// [`LaneError::Protocol`] when they differ, or there is no such lane: the session must end.
    fn confirm(&self, lane: LaneNumber, identity: &[u8]) -> Result<(), LaneError> {
        if identity.is_empty() {
            return Ok(());
        }
        Err(unexpected(lane, "an identity", identity))
    }

    /// Whether nothing may be prepared before every lane is here and confirmed, because the device
    /// can't keep a lane out that is not: then `prepare` fails while there is such a lane, and no
    /// lane is let in once something was prepared.
    fn confirms_before_opening(&self) -> bool {
        false
    }

    /// Takes the source's offers; a [`DestinationLane::get`] needs one for its range.
    ///
    /// # Errors
    ///
    /// [`LaneError::System`] of kind `Unsupported` for a transport that has no `get`; otherwise
    /// when an offer is malformed or its range is not guest memory.
    fn accept_offers(&self, offers: &[Grant]) -> Result<(), LaneError> {
        if offers.is_empty() {
            return Ok(());
        }
        Err(unsupported(LaneNumber(0), "taking offers of memory"))
    }

    /// What the device below said that ends every lane, if it did: a port that is down. A lane that
    /// works tells it by itself; this is for a session that ends while none does.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Whether `prepare` registers memory with a device: it takes its time then, several threads do
    /// it faster than one, and each range gets a key of its own.
    fn has_registrations(&self) -> bool {
        false
    }

    /// Registrations so far.
    fn registrations(&self) -> RegistrationCounters {
        RegistrationCounters::default()
    }

    /// The processors that are near the device, as [`SourceEndpoint::near_cpus`] says.
    fn near_cpus(&self) -> Vec<usize> {
        Vec::new()
    }

    /// Waits for the next lane that shows one of `tickets`; each ticket lets in one lane, once.
    /// A connection that shows none is turned away and the wait goes on.
    ///
    /// # Errors
    ///
    /// [`LaneError::Stalled`] at the deadline, [`LaneError::Stopped`] after `stop`.
    fn accept_lane(
        &self,
        tickets: &[LaneTicket],
        deadline: Deadline,
    ) -> Result<Box<dyn DestinationLane>, LaneError>;

    /// Takes the peer's write access away: after this returns nothing of the peer's reaches this
    /// side's memory. Every lane of the endpoint ends.
    ///
    /// # Errors
    ///
    /// When the access may not be gone: the device said no, or is not known to be through with what
    /// it had taken. The guest must not run here then.
    fn revoke_all(&self) -> Result<(), LaneError>;

    /// Ends every lane and every wait from outside, at once. May be called from any thread.
    fn stop(&self);
}

/// Makes the destination's endpoint once the guest's memory is there.
pub type DestinationEndpointFactory =
    Box<dyn FnOnce(MemoryMap) -> Result<Box<dyn DestinationEndpoint>, LaneError> + Send>;
