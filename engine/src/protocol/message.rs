//! Each message, its fields, and its bytes.

use dunlin_transports::control::Frame;
use dunlin_transports::lane::{
    GRANT_KEY_BYTES_MAX, Grant, LANES_MAX, LaneNumber, LaneTicket, LaneToken, SessionId,
};
use dunlin_transports::memory::{PAGE_BYTES, PageNumber, Run};
use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};
use thiserror::Error;
use uuid::Uuid;

use super::limits::{REASON_BYTES_MAX, TEXT_BYTES_MAX, VERIFY_PAGES_MAX};
use crate::clock::Timestamp;
use crate::guest::{GuestIdentity, GuestOffer, PageClaim, valid_guest_name};
use crate::layout::{Backing, GuestAddress, Layout, LayoutError, REGIONS_MAX, RegionShape};
use crate::report::Host;
use crate::state::{DeviceState, StateError};

/// What is wrong with a message.
#[derive(Debug, Error)]
pub enum MessageError {
    /// There is no message of this number.
    #[error("there is no message number {0}")]
    UnknownKind(u16),
    /// Its bytes are not the message's.
    #[error("message {kind:?} can't be read: {reason}")]
    Malformed {
        /// Which message.
        kind: MessageKind,
        /// What is wrong.
        reason: String,
    },
    /// A value in it is out of bounds.
    #[error("message {kind:?}: {reason}")]
    OutOfBounds {
        /// Which message.
        kind: MessageKind,
        /// Which value, and its bound.
        reason: String,
    },
    /// The layout that it describes is not one.
    #[error("the peer's layout: {0}")]
    Layout(#[from] LayoutError),
    /// The state that it carries is not one.
    #[error("the peer's state: {0}")]
    State(#[from] StateError),
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $number:literal,)*) => {
        /// The messages' numbers on the wire. 20 to 39 are kept for records and settling, for
        /// registration of ranges while the move runs, and for opaque byte streams.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum MessageKind {
            $($(#[$doc])* $kind,)*
        }

        impl MessageKind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// The number on the wire.
            pub fn number(self) -> u16 {
                match self { $(Self::$kind => $number,)* }
            }

            /// The kind of a number; `None` when there is none.
            pub fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$kind),)* _ => None }
            }
        }
    };
}

kinds! {
    /// Source: who wants to come, and what it needs.
    Hello = 1,
    /// Destination: come in, this way.
    Welcome = 2,
    /// Destination: no, and why.
    Refused = 3,
    /// Either: are you there?
    Ping = 4,
    /// Either: yes.
    Pong = 5,
    /// Source: all is sent; check and load it.
    Prepare = 6,
    /// Destination: it is loaded, and nothing of yours can reach it any more.
    Ready = 7,
    /// Source: it is yours.
    Commit = 8,
    /// Destination: it runs.
    Running = 9,
    /// Source: freed here.
    Released = 10,
    /// Source: forget it.
    Abort = 11,
    /// Destination: discarded here, and a COMMIT would be refused.
    Aborted = 12,
    /// Source: what some of my pages look like.
    VerifyPages = 13,
    /// Source: those were all.
    VerifyEnd = 14,
    /// Destination: how they compared.
    Verified = 15,
}

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// See [`MessageKind::Hello`].
    Hello(Box<Hello>),
    /// See [`MessageKind::Welcome`].
    Welcome(Welcome),
    /// See [`MessageKind::Refused`].
    Refused(Refused),
    /// See [`MessageKind::Ping`].
    Ping(Ping),
    /// See [`MessageKind::Pong`].
    Pong(Pong),
    /// See [`MessageKind::Prepare`].
    Prepare(Prepare),
    /// See [`MessageKind::Ready`].
    Ready(Ready),
    /// See [`MessageKind::Commit`].
    Commit,
    /// See [`MessageKind::Running`].
    Running(Running),
    /// See [`MessageKind::Released`].
    Released,
    /// See [`MessageKind::Abort`].
    Abort(Abort),
    /// See [`MessageKind::Aborted`].
    Aborted(Abort),
    /// See [`MessageKind::VerifyPages`].
    VerifyPages(VerifyPages),
    /// See [`MessageKind::VerifyEnd`].
    VerifyEnd,
    /// See [`MessageKind::Verified`].
    Verified(Verified),
}

/// A region on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WireRegion {
    /// Guest-physical address, in bytes.
    #[n(0)]
    pub address: u64,
    /// Length, in bytes.
    #[n(1)]
    pub bytes: u64,
    /// 0 memfd, 1 hugetlb, 2 anonymous.
    #[n(2)]
    pub backing: u8,
    /// The source backing's page size, in bytes.
    #[n(3)]
    pub backing_page_bytes: u64,
}

/// A layout on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WireLayout {
    /// The layout's generation.
    #[n(0)]
    pub generation: u64,
    /// Its regions, at most [`REGIONS_MAX`].
    #[n(1)]
    pub regions: Vec<WireRegion>,
}

/// A host in a few words, on the wire; each text at most [`TEXT_BYTES_MAX`] bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WireHost {
    /// Kernel release.
    #[n(0)]
    pub kernel: String,
    /// Processor model.
    #[n(1)]
    pub cpu: String,
    /// Logical CPUs.
    #[n(2)]
    pub cpus: u32,
    /// Program version.
    #[n(3)]
    pub dunlin: String,
    /// Boot id; empty when unknown.
    #[n(4)]
    pub boot_id: String,
}

/// HELLO.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// Oldest version that the source speaks.
    #[n(0)]
    pub version_min: u16,
    /// Newest version that the source speaks.
    #[n(1)]
    pub version_max: u16,
    /// What the source can do; see [`super::capability`].
    #[n(2)]
    pub capabilities: u64,
    /// The session.
    #[n(3)]
    pub session: ByteArray<16>,
    /// The guest's UUID.
    #[n(4)]
    pub uuid: ByteArray<16>,
    /// The guest's name.
    #[n(5)]
    pub name: String,
    /// The guest's epoch before the move.
    #[n(6)]
    pub epoch: u64,
    /// What runs the guest.
    #[n(7)]
    pub kind: String,
    /// Its vCPUs.
    #[n(8)]
    pub vcpus: u32,
    /// Its memory's shape.
    #[n(9)]
    pub layout: WireLayout,
    /// Its configuration, encoded device state.
    #[n(10)]
    pub configuration: ByteVec,
    /// How many lanes the source wants.
    #[n(11)]
    pub lanes: u16,
    /// Over which transport the lanes go.
    #[n(12)]
    pub transport: String,
    /// The source's host.
    #[n(13)]
    pub host: WireHost,
    /// How long the source bears silence, in milliseconds.
    #[n(14)]
    pub peer_timeout_ms: u64,
}

/// What ranges the source may write, on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Grants {
    /// First page of each range.
    #[n(0)]
    pub first: Vec<u64>,
    /// Pages of each range.
    #[n(1)]
    pub pages: Vec<u32>,
    /// The transport's key of each range, at most [`GRANT_KEY_BYTES_MAX`] bytes.
    #[n(2)]
    pub keys: Vec<ByteVec>,
}

/// WELCOME.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Welcome {
    /// The version that is spoken from here on.
    #[n(0)]
    pub version: u16,
    /// What both sides can do.
    #[n(1)]
    pub capabilities: u64,
    /// A token for each lane that is granted, in lane order; at most as many as were asked for.
    #[n(2)]
    pub tokens: Vec<ByteArray<32>>,
    /// Ranges that are ready to be written.
    #[n(3)]
    pub grants: Grants,
    /// The destination's host.
    #[n(4)]
    pub host: WireHost,
    /// How the transport works there.
    #[n(5)]
    pub mechanism: String,
}

/// REFUSED.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Refused {
    /// Why, in words, at most [`REASON_BYTES_MAX`] bytes.
    #[n(0)]
    pub reason: String,
}

/// PING.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ping {
    /// When it was sent, on the sender's clock.
    #[n(0)]
    pub sent_ns: u64,
}

/// PONG.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pong {
    /// The PING's `sent_ns`.
    #[n(0)]
    pub ping_sent_ns: u64,
    /// When the PING was answered, on the answering side's clock.
    #[n(1)]
    pub answered_ns: u64,
}

/// What the lanes carried, for the destination to compare with what it received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Counts {
    /// Guest bytes put.
    #[n(0)]
    pub payload_bytes: u64,
    /// Pages put as zero.
    #[n(1)]
    pub zero_pages: u64,
}

/// PREPARE.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Prepare {
    /// The last fence of each lane, in lane order: all of them must have been seen.
    #[n(0)]
    pub fences: Vec<u64>,
    /// What all lanes carried in the whole move.
    #[n(1)]
    pub counts: Counts,
    /// Digests of all memory, one for each digest block; empty unless asked for. On the wire they
    /// are 8 bytes each, in one byte string: a peer's bytes become no more memory than they are.
    #[cbor(n(2), with = "packed")]
    pub digests: Vec<u64>,
    /// The device state, encoded.
    #[n(3)]
    pub state: ByteVec,
    /// The most that the pause may last before the source takes the guest back, in nanoseconds.
    #[n(4)]
    pub blackout_cap_ns: u64,
}

/// Numbers as one byte string, 8 bytes each, little-endian.
mod packed {
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error as EncodeError, Write};
    use minicbor::{Decoder, Encoder};

    pub(super) fn encode<C, W: Write>(
        numbers: &[u64],
        encoder: &mut Encoder<W>,
        _context: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        let bytes: Vec<u8> = numbers
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        encoder.bytes(&bytes)?;
        Ok(())
    }

    pub(super) fn decode<C>(
        decoder: &mut Decoder<'_>,
        _context: &mut C,
    ) -> Result<Vec<u64>, DecodeError> {
        let (numbers, rest) = decoder.bytes()?.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(DecodeError::message(
                "numbers of 8 bytes, and a part of one",
            ));
        }
        Ok(numbers.iter().copied().map(u64::from_le_bytes).collect())
    }
}

/// READY. Times are on the destination's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ready {
    /// PREPARE was there, whole.
    #[n(0)]
    pub prepare_received_ns: u64,
    /// All fences were seen.
    #[n(1)]
    pub fences_seen_ns: u64,
    /// Digests were compared.
    #[n(2)]
    pub digests_compared_ns: u64,
    /// The state was loaded.
    #[n(3)]
    pub state_loaded_ns: u64,
    /// Remote access was revoked; READY is sent.
    #[n(4)]
    pub revoked_ns: u64,
}

/// RUNNING. Times are on the destination's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Running {
    /// COMMIT was there.
    #[n(0)]
    pub commit_received_ns: u64,
    /// When each vCPU was entered, in vCPU order.
    #[n(1)]
    pub running_ns: Vec<u64>,
}

/// ABORT and ABORTED.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Abort {
    /// Why, in words, at most [`REASON_BYTES_MAX`] bytes.
    #[n(0)]
    pub reason: String,
}

/// A page's claim on the wire: digest, generation (0 when it never changes) and flags (bit 0: the
/// page never changes; bit 1: it is settled).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireClaim(pub PageClaim);

impl WireClaim {
    const BYTES: usize = 17;

    fn write(self, bytes: &mut Vec<u8>) {
        let Self(claim) = self;
        bytes.extend(claim.digest.to_le_bytes());
        bytes.extend(claim.generation.unwrap_or(0).to_le_bytes());
        bytes.push(u8::from(claim.generation.is_none()) | u8::from(claim.settled) << 1);
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (digest, rest) = bytes.split_first_chunk::<8>()?;
        let (generation, rest) = rest.split_first_chunk::<8>()?;
        let flags = *rest.first()?;
        let fixed = flags & 1 == 1;
        Some(Self(PageClaim {
            digest: u64::from_le_bytes(*digest),
            generation: (!fixed).then(|| u64::from_le_bytes(*generation)),
            settled: flags & 2 == 2,
        }))
    }
}

/// VERIFY_PAGES.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VerifyPages {
    /// The first page.
    #[n(0)]
    pub first: u64,
    /// A claim for each page from there on, [`WireClaim`] packed; at most [`VERIFY_PAGES_MAX`].
    #[n(1)]
    pub claims: ByteVec,
}

impl VerifyPages {
    /// The message for some claims.
    pub fn new(first: PageNumber, claims: &[PageClaim]) -> Self {
        let mut bytes = Vec::with_capacity(claims.len() * WireClaim::BYTES);
        claims
            .iter()
            .for_each(|claim| WireClaim(*claim).write(&mut bytes));
        Self {
            first: first.0,
            claims: bytes.into(),
        }
    }

    /// The claims.
    ///
    /// # Errors
    ///
    /// When the bytes are not whole claims or there are too many.
    pub fn claims(&self) -> Result<Vec<PageClaim>, MessageError> {
        let count = self.claims.len() / WireClaim::BYTES;
        if !self.claims.len().is_multiple_of(WireClaim::BYTES) || count > VERIFY_PAGES_MAX {
            return Err(MessageError::OutOfBounds {
                kind: MessageKind::VerifyPages,
                reason: format!("{} bytes of claims", self.claims.len()),
            });
        }
        Ok(self
            .claims
            .chunks_exact(WireClaim::BYTES)
            .filter_map(WireClaim::read)
            .map(|claim| claim.0)
            .collect())
    }
}

/// VERIFIED.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Verified {
    /// Pages compared.
    #[n(0)]
    pub checked: u64,
    /// Pages with the same bytes.
    #[n(1)]
    pub same: u64,
    /// Pages rewritten since, consistent and no older.
    #[n(2)]
    pub later: u64,
    /// Pages that are wrong.
    #[n(3)]
    pub different: u64,
    /// The first few wrong pages, in words.
    #[n(4)]
    pub examples: Vec<String>,
    /// The longest gap that the guest measured; absent when it does not measure.
    #[n(5)]
    pub guest_visible_ns: Option<u64>,
}

impl Message {
    /// Its kind.
    pub fn kind(&self) -> MessageKind {
        match self {
            Self::Hello(_) => MessageKind::Hello,
            Self::Welcome(_) => MessageKind::Welcome,
            Self::Refused(_) => MessageKind::Refused,
            Self::Ping(_) => MessageKind::Ping,
            Self::Pong(_) => MessageKind::Pong,
            Self::Prepare(_) => MessageKind::Prepare,
            Self::Ready(_) => MessageKind::Ready,
            Self::Commit => MessageKind::Commit,
            Self::Running(_) => MessageKind::Running,
            Self::Released => MessageKind::Released,
            Self::Abort(_) => MessageKind::Abort,
            Self::Aborted(_) => MessageKind::Aborted,
            Self::VerifyPages(_) => MessageKind::VerifyPages,
            Self::VerifyEnd => MessageKind::VerifyEnd,
            Self::Verified(_) => MessageKind::Verified,
        }
    }

    /// Its frame.
    pub fn to_frame(&self) -> Frame {
        let payload = match self {
            Self::Hello(body) => encoded(body.as_ref()),
            Self::Welcome(body) => encoded(body),
            Self::Refused(body) => encoded(body),
            Self::Ping(body) => encoded(body),
            Self::Pong(body) => encoded(body),
            Self::Prepare(body) => encoded(body),
            Self::Ready(body) => encoded(body),
            Self::Running(body) => encoded(body),
            Self::Abort(body) | Self::Aborted(body) => encoded(body),
            Self::VerifyPages(body) => encoded(body),
            Self::Verified(body) => encoded(body),
            Self::Commit | Self::Released | Self::VerifyEnd => Vec::new(),
        };
        Frame {
            kind: self.kind().number(),
            payload,
        }
    }

    /// The message in a frame.
    ///
    /// # Errors
    ///
    /// When the frame's bytes are not the message that its kind names. Values are checked where
    /// they are used, against what they are used for.
    pub fn from_frame(frame: &Frame) -> Result<Self, MessageError> {
        let kind =
            MessageKind::from_number(frame.kind).ok_or(MessageError::UnknownKind(frame.kind))?;
        let bytes = frame.payload.as_slice();
        Ok(match kind {
            MessageKind::Hello => Self::Hello(Box::new(decoded(kind, bytes)?)),
            MessageKind::Welcome => Self::Welcome(decoded(kind, bytes)?),
            MessageKind::Refused => Self::Refused(decoded(kind, bytes)?),
            MessageKind::Ping => Self::Ping(decoded(kind, bytes)?),
            MessageKind::Pong => Self::Pong(decoded(kind, bytes)?),
            MessageKind::Prepare => Self::Prepare(decoded(kind, bytes)?),
            MessageKind::Ready => Self::Ready(decoded(kind, bytes)?),
            MessageKind::Commit => Self::Commit,
            MessageKind::Running => Self::Running(decoded(kind, bytes)?),
            MessageKind::Released => Self::Released,
            MessageKind::Abort => Self::Abort(decoded(kind, bytes)?),
            MessageKind::Aborted => Self::Aborted(decoded(kind, bytes)?),
            MessageKind::VerifyPages => Self::VerifyPages(decoded(kind, bytes)?),
            MessageKind::VerifyEnd => Self::VerifyEnd,
            MessageKind::Verified => Self::Verified(decoded(kind, bytes)?),
        })
    }
}

fn encoded<T: Encode<()>>(body: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    match minicbor::encode(body, &mut bytes) {
        Ok(()) => bytes,
        // Writing into a `Vec` can't fail, and no field's encoder has an error of its own.
        Err(_) => Vec::new(),
    }
}

fn decoded<'b, T: Decode<'b, ()>>(kind: MessageKind, bytes: &'b [u8]) -> Result<T, MessageError> {
    minicbor::decode(bytes).map_err(|error| MessageError::Malformed {
        kind,
        reason: error.to_string(),
    })
}

impl Hello {
    /// What the guest is and needs, checked against every bound of this side's own.
    ///
    /// # Errors
    ///
    /// When a value is out of its bounds.
    pub fn offer(&self) -> Result<GuestOffer, MessageError> {
        let bad = |reason: String| MessageError::OutOfBounds {
            kind: MessageKind::Hello,
            reason,
        };
        if !valid_guest_name(&self.name) {
            return Err(bad(format!(
                "'{}' can't be a guest's name",
                shortened(&self.name, 60)
            )));
        }
        if self.kind.is_empty() || self.kind.len() > TEXT_BYTES_MAX {
            return Err(bad(format!("a guest kind of {} bytes", self.kind.len())));
        }
        if self.lanes == 0 || self.lanes > LANES_MAX {
            return Err(bad(format!(
                "{} lanes; 1 to {LANES_MAX} are possible",
                self.lanes
            )));
        }
        if self.epoch == u64::MAX {
            return Err(bad("the epoch can't grow any more".to_owned()));
        }
        Ok(GuestOffer {
            identity: GuestIdentity {
                uuid: Uuid::from_bytes(*self.uuid),
                name: self.name.clone(),
                epoch: self.epoch,
            },
            kind: self.kind.clone(),
            vcpus: self.vcpus,
            layout: self.layout.to_layout()?,
            configuration: DeviceState::decode(&self.configuration)?,
        })
    }

    /// The session's id.
    pub fn session_id(&self) -> SessionId {
        SessionId(*self.session)
    }
}

impl WireLayout {
    /// A layout's form on the wire.
    pub fn new(layout: &Layout) -> Self {
        let region = |shape: &RegionShape| WireRegion {
            address: shape.address.0,
            bytes: shape.bytes,
            backing: match shape.backing {
                Backing::Memfd => 0,
                Backing::Hugetlb => 1,
                Backing::Anonymous => 2,
            },
            backing_page_bytes: shape.backing_page_bytes,
        };
        Self {
            generation: layout.generation(),
            regions: layout.regions().iter().map(region).collect(),
        }
    }

    /// The layout, checked.
    ///
    /// # Errors
    ///
    /// When it is not a valid layout.
    pub fn to_layout(&self) -> Result<Layout, MessageError> {
        let bad = |reason: String| MessageError::OutOfBounds {
            kind: MessageKind::Hello,
            reason,
        };
        if self.regions.len() > REGIONS_MAX {
            return Err(LayoutError::RegionCount(self.regions.len()).into());
        }
        let mut regions = Vec::with_capacity(self.regions.len());
        for region in &self.regions {
            let page = region.backing_page_bytes;
            if !page.is_power_of_two() || page < PAGE_BYTES {
                return Err(bad(format!("a backing's page size of {page} bytes")));
            }
            regions.push(RegionShape {
                address: GuestAddress(region.address),
                bytes: region.bytes,
                backing: match region.backing {
                    0 => Backing::Memfd,
                    1 => Backing::Hugetlb,
                    2 => Backing::Anonymous,
                    other => return Err(bad(format!("a backing of number {other}"))),
                },
                backing_page_bytes: page,
            });
        }
        Ok(Layout::new(self.generation, regions)?)
    }
}

impl Grants {
    /// The grants' form on the wire.
    pub fn new(grants: &[Grant]) -> Self {
        Self {
            first: grants.iter().map(|grant| grant.range.first.0).collect(),
            pages: grants.iter().map(|grant| grant.range.pages).collect(),
            keys: grants
                .iter()
                .map(|grant| grant.key.clone().into())
                .collect(),
        }
    }

    /// The grants.
    ///
    /// # Errors
    ///
    /// When the three lists differ in length or a key is too long.
    pub fn to_grants(&self) -> Result<Vec<Grant>, MessageError> {
        let bad = |reason: String| MessageError::OutOfBounds {
            kind: MessageKind::Welcome,
            reason,
        };
        if self.first.len() != self.pages.len() || self.first.len() != self.keys.len() {
            return Err(bad("grants of uneven length".to_owned()));
        }
        if let Some(key) = self.keys.iter().find(|key| key.len() > GRANT_KEY_BYTES_MAX) {
            return Err(bad(format!("a grant's key of {} bytes", key.len())));
        }
        let ranges = self.first.iter().zip(&self.pages);
        Ok(ranges
            .zip(&self.keys)
            .map(|((first, pages), key)| Grant {
                range: Run {
                    first: PageNumber(*first),
                    pages: *pages,
                },
                key: key.to_vec(),
            })
            .collect())
    }
}

impl Welcome {
    /// The ticket of each lane that was granted.
    ///
    /// # Errors
    ///
    /// When there is none, or more than were asked for.
    pub fn tickets(&self, session: SessionId, asked: u16) -> Result<Vec<LaneTicket>, MessageError> {
        if self.tokens.is_empty() || self.tokens.len() > usize::from(asked) {
            return Err(MessageError::OutOfBounds {
                kind: MessageKind::Welcome,
                reason: format!("{} lanes granted, {asked} asked for", self.tokens.len()),
            });
        }
        let ticket = |(number, token): (u16, &ByteArray<32>)| LaneTicket {
            session,
            number: LaneNumber(number),
            token: LaneToken(**token),
        };
        Ok((0..).zip(&self.tokens).map(ticket).collect())
    }
}

impl WireHost {
    /// This host.
    pub fn new(host: &Host, boot_id: &str) -> Self {
        let text = |text: &str| shortened(text, TEXT_BYTES_MAX);
        Self {
            kernel: text(&host.kernel),
            cpu: text(&host.cpu),
            cpus: host.cpus,
            dunlin: text(&host.dunlin),
            boot_id: text(boot_id),
        }
    }

    /// The host as the report tells it; texts cut to their bound and freed of control characters.
    pub fn to_host(&self) -> Host {
        let text = |text: &str| shortened(text, TEXT_BYTES_MAX);
        Host {
            kernel: text(&self.kernel),
            cpu: text(&self.cpu),
            cpus: self.cpus,
            dunlin: text(&self.dunlin),
        }
    }
}

impl Abort {
    /// An ABORT or ABORTED with this reason.
    pub fn new(reason: &str) -> Self {
        Self {
            reason: shortened(reason, REASON_BYTES_MAX),
        }
    }

    /// The reason, fit to be shown.
    pub fn reason(&self) -> String {
        shortened(&self.reason, REASON_BYTES_MAX)
    }
}

impl Refused {
    /// A refusal with this reason.
    pub fn new(reason: &str) -> Self {
        Self {
            reason: shortened(reason, REASON_BYTES_MAX),
        }
    }

    /// The reason, fit to be shown.
    pub fn reason(&self) -> String {
        shortened(&self.reason, REASON_BYTES_MAX)
    }
}

impl Ready {
    /// The moments in order: PREPARE received, fences seen, digests compared, state loaded,
    /// access revoked.
    pub fn moments(&self) -> [Timestamp; 5] {
        [
            self.prepare_received_ns,
            self.fences_seen_ns,
            self.digests_compared_ns,
            self.state_loaded_ns,
            self.revoked_ns,
        ]
        .map(Timestamp)
    }
}

/// A peer's text, cut to `bytes_max` bytes and freed of control characters, fit to be shown on a
/// terminal.
pub(crate) fn shortened(text: &str, bytes_max: usize) -> String {
    let mut kept = String::new();
    for character in text.chars() {
        let character = if character.is_control() {
            ' '
        } else {
            character
        };
        if kept.len() + character.len_utf8() > bytes_max {
            break;
        }
        kept.push(character);
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::frame_limit;

    fn hello() -> Hello {
        Hello {
            version_min: 1,
            version_max: 1,
            capabilities: 3,
            session: [1; 16].into(),
            uuid: [2; 16].into(),
            name: "vm1".to_owned(),
            epoch: 4,
            kind: "kvm".to_owned(),
            vcpus: 2,
            layout: WireLayout {
                generation: 1,
                regions: vec![WireRegion {
                    address: 0,
                    bytes: 1 << 20,
                    backing: 0,
                    backing_page_bytes: 4096,
                }],
            },
            configuration: DeviceState::new().encode().unwrap().into(),
            lanes: 2,
            transport: "tcp".to_owned(),
            host: WireHost::default(),
            peer_timeout_ms: 5000,
        }
    }

    fn messages() -> Vec<Message> {
        let claim = |generation| PageClaim {
            digest: 9,
            generation,
            settled: generation.is_none(),
        };
        vec![
            Message::Hello(Box::new(hello())),
            Message::Welcome(Welcome {
                version: 1,
                capabilities: 1,
                tokens: vec![[7; 32].into()],
                grants: Grants {
                    first: vec![0],
                    pages: vec![256],
                    keys: vec![vec![].into()],
                },
                host: WireHost::default(),
                mechanism: "io_uring".to_owned(),
            }),
            Message::Refused(Refused::new("no room")),
            Message::Ping(Ping { sent_ns: 1 }),
            Message::Pong(Pong {
                ping_sent_ns: 1,
                answered_ns: 2,
            }),
            Message::Prepare(Prepare {
                fences: vec![3, 4],
                counts: Counts {
                    payload_bytes: 8192,
                    zero_pages: 1,
                },
                digests: vec![5, u64::MAX],
                state: vec![0x80].into(),
                blackout_cap_ns: 500_000_000,
            }),
            Message::Ready(Ready::default()),
            Message::Commit,
            Message::Running(Running {
                commit_received_ns: 1,
                running_ns: vec![2, 3],
            }),
            Message::Released,
            Message::Abort(Abort::new("cancelled")),
            Message::Aborted(Abort::new("out of memory")),
            Message::VerifyPages(VerifyPages::new(
                PageNumber(64),
                &[claim(None), claim(Some(5))],
            )),
            Message::VerifyEnd,
            Message::Verified(Verified {
                checked: 2,
                same: 2,
                ..Verified::default()
            }),
        ]
    }

    #[test]
    fn every_message_survives_the_wire_within_its_limit() {
        let messages = messages();
        assert_eq!(
            messages.iter().map(Message::kind).collect::<Vec<_>>(),
            MessageKind::ALL.to_vec()
        );
        for message in messages {
            let frame = message.to_frame();
            assert!(frame.payload.len() <= frame_limit(frame.kind).unwrap() as usize);
            assert_eq!(Message::from_frame(&frame).unwrap(), message);
        }
        assert_eq!(frame_limit(0), None);
        assert_eq!(frame_limit(16), None);
    }

    /// Version 1's bytes of a HELLO stay readable for ever.
    #[test]
    fn golden_hello() {
        let golden: &[u8] = &[
            0xaf, 0, 1, 1, 1, 2, 3, 3, 0x50, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4,
            0x50, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 5, 0x63, b'v', b'm', b'1', 6, 4,
            7, 0x63, b'k', b'v', b'm', 8, 2, 9, 0xa2, 0, 1, 1, 0x81, 0xa4, 0, 0, 1, 0x1a, 0, 0x10,
            0, 0, 2, 0, 3, 0x19, 0x10, 0, 10, 0x41, 0x80, 11, 2, 12, 0x63, b't', b'c', b'p', 13,
            0xa5, 0, 0x60, 1, 0x60, 2, 0, 3, 0x60, 4, 0x60, 14, 0x19, 0x13, 0x88,
        ];
        assert_eq!(Message::Hello(Box::new(hello())).to_frame().payload, golden);
    }

    #[test]
    fn a_hello_out_of_bounds_is_refused() {
        assert!(hello().offer().is_ok());
        let bad: [fn(&mut Hello); 7] = [
            |hello| hello.name = "../etc".to_owned(),
            |hello| hello.kind = String::new(),
            |hello| hello.lanes = 0,
            |hello| hello.lanes = 65,
            |hello| hello.epoch = u64::MAX,
            |hello| hello.layout.regions.clear(),
            |hello| hello.configuration = vec![0xff].into(),
        ];
        for spoil in bad {
            let mut hello = hello();
            spoil(&mut hello);
            assert!(hello.offer().is_err(), "{hello:?}");
        }
    }

    #[test]
    fn a_peers_text_can_not_steer_the_terminal() {
        assert_eq!(
            Abort {
                reason: "a\x1b[2Jb\n".to_owned()
            }
            .reason(),
            "a [2Jb "
        );
        assert_eq!(shortened("ääää", 5), "ää");
    }

    proptest! {
        #[test]
        fn mutated_frames_never_panic(
            which in 0_usize..15,
            at in any::<prop::sample::Index>(),
            value in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut frame = messages()[which].to_frame();
            if !frame.payload.is_empty() {
                let at = at.index(frame.payload.len());
                frame.payload[at] = value;
                if value % 3 == 0 {
                    frame.payload.truncate(cut.index(frame.payload.len()));
                }
            }
            match Message::from_frame(&frame) {
                Ok(Message::Hello(hello)) => drop(hello.offer()),
                Ok(Message::Welcome(welcome)) => {
                    drop(welcome.grants.to_grants());
                    drop(welcome.tickets(SessionId([0; 16]), 2));
                }
                Ok(Message::VerifyPages(pages)) => drop(pages.claims()),
                Ok(_) | Err(_) => {}
            }
        }
    }
}
