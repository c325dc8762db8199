//! What each message carries: its fields and their numbers.

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};

use crate::guest::PageClaim;

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
    /// Its regions, at most [`REGIONS_MAX`](crate::layout::REGIONS_MAX).
    #[n(1)]
    pub regions: Vec<WireRegion>,
}

/// A host in a few words, on the wire; each text at most [`TEXT_BYTES_MAX`](super::TEXT_BYTES_MAX) bytes.
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
    /// The transport's key of each range, at most [`GRANT_KEY_BYTES_MAX`](dunlin_transports::lane::GRANT_KEY_BYTES_MAX) bytes.
    #[n(2)]
    pub keys: Vec<ByteVec>,
}

/// OPEN, CLOSE and CLOSED: ranges of pages, at most
/// [`RANGES_IN_MESSAGE_MAX`](super::RANGES_IN_MESSAGE_MAX).
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ranges {
    /// First page of each range.
    #[n(0)]
    pub first: Vec<u64>,
    /// Pages of each range.
    #[n(1)]
    pub pages: Vec<u32>,
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
    /// Where the destination's lanes listen, in the transport's own words; absent where they go to
    /// the control connection's address.
    #[n(6)]
    pub contact: Option<ByteVec>,
    /// The most bytes of guest memory that the destination keeps registered at once; absent where
    /// nothing is registered, or all of it is already. Where it is there, the source has to ask for
    /// each range (OPEN).
    #[n(7)]
    pub pin_budget_bytes: Option<u64>,
    /// What the destination's share of the handover takes, as it has measured; for the prediction.
    #[n(8)]
    pub costs: Option<Box<WireCosts>>,
}

/// What a side's share of the handover takes, in nanoseconds. What was not measured is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WireCosts {
    /// Loading the state of vCPUs and devices.
    #[n(0)]
    pub load_ns: Option<u64>,
    /// Entering all vCPUs.
    #[n(1)]
    pub resume_ns: Option<u64>,
    /// Handing an entry to the record's writer.
    #[n(2)]
    pub record_ns: Option<u64>,
}

/// REFUSED.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Refused {
    /// Why, in words, at most [`REASON_BYTES_MAX`](super::REASON_BYTES_MAX) bytes.
    #[n(0)]
    pub reason: String,
    /// What is in the way: 1 is the transport, so that another one may help. Absent, or another
    /// number: nothing that this field tells of.
    #[n(1)]
    pub obstacle: Option<u8>,
}

/// LANES.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Lanes {
    /// Which connection each lane is, in lane order, in the transport's own words.
    #[n(0)]
    pub identities: Vec<ByteVec>,
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
    /// What the guest holds outside was acquired, before access was revoked; absent where the
    /// destination does not tell.
    #[n(5)]
    pub acquired_ns: Option<u64>,
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
    /// The ownership was recorded; absent where the destination does not tell.
    #[n(2)]
    pub owned_ns: Option<u64>,
}

/// ABORT and ABORTED.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Abort {
    /// Why, in words, at most [`REASON_BYTES_MAX`](super::REASON_BYTES_MAX) bytes.
    #[n(0)]
    pub reason: String,
}

/// A page's claim on the wire: digest, generation (0 when it never changes) and flags (bit 0: the
/// page never changes; bit 1: it is settled).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireClaim(pub PageClaim);

/// VERIFY_PAGES.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VerifyPages {
    /// The first page.
    #[n(0)]
    pub first: u64,
    /// A claim for each page from there on, [`WireClaim`] packed; at most [`VERIFY_PAGES_MAX`](super::VERIFY_PAGES_MAX).
    #[n(1)]
    pub claims: ByteVec,
}

/// A side's registrations in the whole move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WireRegistrations {
    /// How many were made.
    #[n(0)]
    pub made: u64,
    /// How many were ended while the move ran.
    #[n(1)]
    pub ended: u64,
    /// The most bytes that were registered at once.
    #[n(2)]
    pub bytes_max: u64,
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
    /// The destination's registrations; absent where it registers nothing.
    #[n(6)]
    pub registrations: Option<WireRegistrations>,
    /// What the destination recorded ([`wire`](crate::telemetry::wire)); only for a source with
    /// [`capability::RECORDING`](super::capability::RECORDING).
    #[n(7)]
    pub recording: Option<ByteVec>,
}

/// ASK.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ask {
    /// The session that is in doubt.
    #[n(0)]
    pub session: ByteArray<16>,
    /// The guest's UUID.
    #[n(1)]
    pub uuid: ByteArray<16>,
    /// The guest's epoch before the move.
    #[n(2)]
    pub epoch: u64,
}

/// ANSWER.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WireAnswer {
    /// 0 running, 1 ended, 2 aborted, 3 undecided, 4 may have run, 5 no record.
    #[n(0)]
    pub answer: u8,
    /// Why, in words, at most [`REASON_BYTES_MAX`](super::REASON_BYTES_MAX) bytes.
    #[n(1)]
    pub reason: String,
}
