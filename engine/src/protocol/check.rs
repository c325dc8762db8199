//! Between a body and what the engine works with: every value is checked here against its bound.

use dunlin_transports::lane::{
    CONTACT_BYTES_MAX, GRANT_KEY_BYTES_MAX, Grant, IDENTITY_BYTES_MAX, LANES_MAX, LaneNumber,
    LaneTicket, LaneToken, SessionId,
};
use dunlin_transports::memory::{PAGE_BYTES, PageNumber, Run};
use minicbor::bytes::ByteArray;
use uuid::Uuid;

use super::body::{
    Abort, Ask, Grants, Hello, Lanes, Ranges, Ready, Refused, VerifyPages, Welcome, WireAnswer,
    WireClaim, WireHost, WireLayout, WireRegion,
};
use super::limits::{RANGES_IN_MESSAGE_MAX, REASON_BYTES_MAX, TEXT_BYTES_MAX, VERIFY_PAGES_MAX};
use super::message::{MessageError, MessageKind};
use crate::clock::Timestamp;
use crate::guest::{GuestIdentity, GuestOffer, PageClaim, valid_guest_name};
use crate::layout::{Backing, GuestAddress, Layout, LayoutError, REGIONS_MAX, RegionShape};
use crate::records::verdict::Answer;
use crate::report::Host;
use crate::state::DeviceState;

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
        self.checked(MessageKind::Welcome)
    }

    /// The grants of a GRANTS.
    ///
    /// # Errors
    ///
    /// As for `to_grants`; or when there is none, or more than [`RANGES_IN_MESSAGE_MAX`].
    pub fn to_batch(&self) -> Result<Vec<Grant>, MessageError> {
        check_batch(MessageKind::Grants, self.first.len())?;
        self.checked(MessageKind::Grants)
    }

    fn checked(&self, kind: MessageKind) -> Result<Vec<Grant>, MessageError> {
        let bad = |reason: String| MessageError::OutOfBounds { kind, reason };
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

impl Ranges {
    /// The message's body for these ranges, at most [`RANGES_IN_MESSAGE_MAX`].
    pub fn new(ranges: &[Run]) -> Self {
        Self {
            first: ranges.iter().map(|range| range.first.0).collect(),
            pages: ranges.iter().map(|range| range.pages).collect(),
        }
    }

    /// The ranges of a message of kind `kind`. Whether they are guest memory is not looked at.
    ///
    /// # Errors
    ///
    /// When the two lists differ in length, or there is no range, or too many, or an empty one, or
    /// one that passes the last page number.
    pub fn to_runs(&self, kind: MessageKind) -> Result<Vec<Run>, MessageError> {
        let bad = |reason: String| MessageError::OutOfBounds { kind, reason };
        check_batch(kind, self.first.len())?;
        if self.first.len() != self.pages.len() {
            return Err(bad("ranges of uneven length".to_owned()));
        }
        let range = |(first, pages): (&u64, &u32)| {
            if *pages == 0 || first.checked_add(u64::from(*pages)).is_none() {
                return Err(bad(format!("a range of {pages} pages at page {first}")));
            }
            Ok(Run {
                first: PageNumber(*first),
                pages: *pages,
            })
        };
        self.first.iter().zip(&self.pages).map(range).collect()
    }
}

/// Whether a message may name so many ranges.
fn check_batch(kind: MessageKind, ranges: usize) -> Result<(), MessageError> {
    if ranges == 0 || ranges > RANGES_IN_MESSAGE_MAX {
        return Err(MessageError::OutOfBounds {
            kind,
            reason: format!("{ranges} ranges; 1 to {RANGES_IN_MESSAGE_MAX} are possible"),
        });
    }
    Ok(())
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

    /// Where the destination's lanes listen; empty where it does not say.
    ///
    /// # Errors
    ///
    /// When it is too long.
    pub fn contact(&self) -> Result<&[u8], MessageError> {
        let contact = self.contact.as_ref().map_or(&[][..], |bytes| bytes);
        if contact.len() > CONTACT_BYTES_MAX {
            return Err(MessageError::OutOfBounds {
                kind: MessageKind::Welcome,
                reason: format!("a contact of {} bytes", contact.len()),
            });
        }
        Ok(contact)
    }
}

impl Lanes {
    /// The message for lanes of these identities, in lane order.
    pub fn new(identities: Vec<Vec<u8>>) -> Self {
        Self {
            identities: identities.into_iter().map(Into::into).collect(),
        }
    }

    /// Each lane's identity, for a session of `lanes` lanes.
    ///
    /// # Errors
    ///
    /// When there are more or fewer than lanes, or one is too long.
    pub fn identities(&self, lanes: usize) -> Result<Vec<(LaneNumber, &[u8])>, MessageError> {
        let bad = |reason: String| MessageError::OutOfBounds {
            kind: MessageKind::Lanes,
            reason,
        };
        if self.identities.len() != lanes {
            let named = self.identities.len();
            return Err(bad(format!("{named} lanes named, {lanes} granted")));
        }
        if let Some(long) = (self.identities.iter()).find(|bytes| bytes.len() > IDENTITY_BYTES_MAX)
        {
            return Err(bad(format!("an identity of {} bytes", long.len())));
        }
        let identities = self.identities.iter().map(|bytes| bytes.as_slice());
        Ok((0..).map(LaneNumber).zip(identities).collect())
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
    /// The obstacle that another transport may avoid.
    const TRANSPORT: u8 = 1;

    /// A refusal with this reason.
    pub fn new(reason: &str) -> Self {
        Self {
            reason: shortened(reason, REASON_BYTES_MAX),
            obstacle: None,
        }
    }

    /// A refusal of the transport, for this reason.
    pub fn transport(reason: &str) -> Self {
        Self {
            obstacle: Some(Self::TRANSPORT),
            ..Self::new(reason)
        }
    }

    /// Whether it is the transport that was refused: another one may do.
    pub fn is_of_transport(&self) -> bool {
        self.obstacle == Some(Self::TRANSPORT)
    }

    /// The reason, fit to be shown.
    pub fn reason(&self) -> String {
        shortened(&self.reason, REASON_BYTES_MAX)
    }
}

impl Ready {
    /// The moments in order: PREPARE received, fences seen, digests compared, state loaded, what is
    /// outside acquired, access revoked.
    pub fn moments(&self) -> [Timestamp; 6] {
        [
            self.prepare_received_ns,
            self.fences_seen_ns,
            self.digests_compared_ns,
            self.state_loaded_ns,
            self.acquired_ns.unwrap_or(self.state_loaded_ns),
            self.revoked_ns,
        ]
        .map(Timestamp)
    }
}

impl Ask {
    /// A question about a session.
    pub fn new(session: SessionId, uuid: Uuid, epoch: u64) -> Self {
        Self {
            session: session.0.into(),
            uuid: uuid.into_bytes().into(),
            epoch,
        }
    }

    /// The session, the guest, and its epoch before the move.
    pub fn subject(&self) -> (SessionId, Uuid, u64) {
        let uuid = Uuid::from_bytes(*self.uuid);
        (SessionId(*self.session), uuid, self.epoch)
    }
}

impl WireAnswer {
    /// An answer, with a reason cut to what the wire takes.
    pub fn new(answer: Answer, reason: &str) -> Self {
        Self {
            answer: answer_code(answer),
            reason: shortened(reason, REASON_BYTES_MAX),
        }
    }

    /// The answer.
    ///
    /// # Errors
    ///
    /// When there is no answer of this number.
    pub fn answer(&self) -> Result<Answer, MessageError> {
        Answer::ALL
            .into_iter()
            .find(|answer| answer_code(*answer) == self.answer)
            .ok_or_else(|| MessageError::OutOfBounds {
                kind: MessageKind::Answer,
                reason: format!("there is no answer number {}", self.answer),
            })
    }

    /// Why, fit to be shown.
    pub fn reason(&self) -> String {
        shortened(&self.reason, REASON_BYTES_MAX)
    }
}

fn answer_code(answer: Answer) -> u8 {
    match answer {
        Answer::Running => 0,
        Answer::Ended => 1,
        Answer::Aborted => 2,
        Answer::Undecided => 3,
        Answer::MayHaveRun => 4,
        Answer::NoRecord => 5,
    }
}

/// A peer's text, cut to `bytes_max` bytes and freed of control characters, fit to be shown on a
/// terminal.
pub(super) fn shortened(text: &str, bytes_max: usize) -> String {
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
