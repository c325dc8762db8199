//! What both ends say to each other in bytes: in connection requests, over control, and in the
//! messages on a lane. All integers are little-endian, all lengths fixed.
//!
//! | what | how it travels | bytes |
//! |---|---|---|
//! | introduction | a connection request's private data, in the clear | magic `DNRL` · u16 version · u16 lane · session 16 · token 32 |
//! | refusal | a rejection's private data | magic `DNRL` · u16 version · u16 code |
//! | contact | control | u8 4 or 6 · u8 zero · u16 port · u32 scope · address 4 or 16 |
//! | identity | control | u32 source's number · its address 16 · u32 destination's · its address 16 |
//! | key of a grant | control | u32 key · u64 address |
//! | fence, word | a message on the lane | magic `DNRM` · u16 kind · u16 zero · u64 number |
//!
//! An end's number and address are its queue pair's number and its GID; over iWARP, where a peer knows
//! neither, they are the port and the address of the TCP connection, IPv4 mapped into IPv6, as a
//! RoCE GID has it. Both ends are of one kind, since only such connect.
//!
//! Whoever reads the fabric can read the introduction, and could show its token first. The token is
//! there to keep out strangers and strays; what binds the lane is its identity, compared over
//! control before the lane may write.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use super::verbs::GlobalId;
use crate::lane::{
    CONTACT_BYTES_MAX, GRANT_KEY_BYTES_MAX, IDENTITY_BYTES_MAX, LaneNumber, LaneTicket, LaneToken,
    SessionId,
};

/// The version of all that is in this room.
const VERSION: u16 = 1;

const CONNECT_MAGIC: [u8; 4] = *b"DNRL";
const MESSAGE_MAGIC: [u8; 4] = *b"DNRM";

/// What a request for a connection may carry over RoCE and InfiniBand: 92 bytes, less 36 for
/// rdma_cm's own header (rdma_connect(3) names the 56 that are left).
pub(super) const INTRODUCTION_BYTES: usize = 56;

pub(super) const REFUSAL_BYTES: usize = 8;
pub(super) const IDENTITY_BYTES: usize = 40;
pub(super) const KEY_BYTES: usize = 12;
pub(super) const MESSAGE_BYTES: usize = 16;

const _: () = assert!(IDENTITY_BYTES <= IDENTITY_BYTES_MAX);
const _: () = assert!(KEY_BYTES <= GRANT_KEY_BYTES_MAX);
const _: () = assert!(24 <= CONTACT_BYTES_MAX);

/// Takes the first `N` bytes off.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*first)
}

fn take_u16(bytes: &mut &[u8]) -> Option<u16> {
    take(bytes).map(u16::from_le_bytes)
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    take(bytes).map(u32::from_le_bytes)
}

/// Takes the magic and the version off; `None` unless both are this room's.
fn take_heading(bytes: &mut &[u8]) -> Option<()> {
    (take(bytes)? == CONNECT_MAGIC && take_u16(bytes)? == VERSION).then_some(())
}

/// A ticket as a connection request shows it.
pub(super) fn introduction(ticket: &LaneTicket) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(INTRODUCTION_BYTES);
    bytes.extend(CONNECT_MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(ticket.number.0.to_le_bytes());
    bytes.extend(ticket.session.0);
    bytes.extend(ticket.token.0);
    bytes
}

/// The ticket that a connection request shows; `None` when it shows none.
pub(super) fn read_introduction(mut bytes: &[u8]) -> Option<LaneTicket> {
    let bytes = &mut bytes;
    take_heading(bytes)?;
    Some(LaneTicket {
        number: LaneNumber(take_u16(bytes)?),
        session: SessionId(take(bytes)?),
        token: LaneToken(take(bytes)?),
    })
}

/// Why a connection was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It showed no ticket of this version.
    Version,
    /// It is of another session.
    Session,
    /// No lane of its number is expected.
    Lane,
    /// Its token is not the lane's, or was used.
    Token,
    /// The destination could not set the connection up.
    Failed,
}

impl Refusal {
    const ALL: [(Self, u16, &'static str); 5] = [
        (Self::Version, 1, "it speaks another version"),
        (Self::Session, 3, "it is of another session"),
        (Self::Lane, 4, "no lane of this number is expected"),
        (Self::Token, 5, "its token is not this lane's, or was used"),
        (Self::Failed, 6, "the destination could not set it up"),
    ];

    pub(super) fn encode(self) -> [u8; REFUSAL_BYTES] {
        let code = Self::ALL.iter().find(|entry| entry.0 == self);
        let code = code.map_or(0, |entry| entry.1);
        let mut bytes = [0; REFUSAL_BYTES];
        let parts = CONNECT_MAGIC
            .into_iter()
            .chain(VERSION.to_le_bytes())
            .chain(code.to_le_bytes());
        bytes
            .iter_mut()
            .zip(parts)
            .for_each(|(to, from)| *to = from);
        bytes
    }

    /// The reason in words; `None` when nobody of this transport's has written the bytes.
    pub(super) fn read(mut bytes: &[u8]) -> Option<String> {
        let bytes = &mut bytes;
        take_heading(bytes)?;
        let code = take_u16(bytes)?;
        let known = Self::ALL.iter().find(|entry| entry.1 == code);
        Some(known.map_or_else(|| format!("reason {code}"), |entry| entry.2.to_owned()))
    }
}

/// Where a destination's lanes listen.
pub(super) fn contact(address: SocketAddr) -> Vec<u8> {
    let (kind, scope) = match address {
        SocketAddr::V4(_) => (4, 0),
        SocketAddr::V6(v6) => (6, v6.scope_id()),
    };
    let mut bytes = vec![kind, 0];
    bytes.extend(address.port().to_le_bytes());
    bytes.extend(scope.to_le_bytes());
    match address.ip() {
        IpAddr::V4(v4) => bytes.extend(v4.octets()),
        IpAddr::V6(v6) => bytes.extend(v6.octets()),
    }
    bytes
}

/// The address in a contact; `None` when it is malformed. The scope is the destination's name for a
/// link and of no use here: a link-local address takes the scope of `control`, the address of the
/// control connection.
pub(super) fn read_contact(mut bytes: &[u8], control: SocketAddr) -> Option<SocketAddr> {
    let bytes = &mut bytes;
    let [kind, 0] = take::<2>(bytes)? else {
        return None;
    };
    let port = take_u16(bytes).filter(|port| *port != 0)?;
    take_u32(bytes)?;
    let address = match kind {
        4 => SocketAddrV4::new(take::<4>(bytes)?.into(), port).into(),
        6 => {
            let address = Ipv6Addr::from(take::<16>(bytes)?);
            let scope = match control {
                SocketAddr::V6(control) if address.is_unicast_link_local() => control.scope_id(),
                _ => 0,
            };
            SocketAddr::V6(SocketAddrV6::new(address, port, 0, scope))
        }
        _ => return None,
    };
    let ip = address.ip();
    let is_usable = bytes.is_empty() && !ip.is_unspecified() && !ip.is_multicast();
    is_usable.then_some(address)
}

/// One end of a connected lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) number: u32,
    pub(super) address: GlobalId,
}

impl End {
    /// An end of a TCP connection.
    pub(super) fn of_tcp(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Self {
            number: address.port().into(),
            address: GlobalId(ip.octets()),
        }
    }
}

/// A lane's identity.
pub(super) fn identity(source: End, destination: End) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(IDENTITY_BYTES);
    for end in [source, destination] {
        bytes.extend(end.number.to_le_bytes());
        bytes.extend(end.address.0);
    }
    bytes
}

/// A registration as requests name it: its key, for this side's device or for the peer's, and the
/// address of its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemoryKey {
    pub(super) key: u32,
    pub(super) address: u64,
}

impl MemoryKey {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(KEY_BYTES);
        bytes.extend(self.key.to_le_bytes());
        bytes.extend(self.address.to_le_bytes());
        bytes
    }

    /// The key for a range of `range_bytes` bytes; `None` when it is malformed, or the range would
    /// go past the end of all addresses.
    pub(super) fn read(mut bytes: &[u8], range_bytes: u64) -> Option<Self> {
        let bytes = &mut bytes;
        let key = take_u32(bytes)?;
        let address = take(bytes).map(u64::from_le_bytes)?;
        let is_whole = bytes.is_empty() && address.checked_add(range_bytes).is_some();
        is_whole.then_some(Self { key, address })
    }
}

/// A message on a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// From the source: all that was put before is in memory when this is seen.
    Fence(u64),
    /// From the destination: it saw that fence.
    Word(u64),
}

impl Message {
    pub(super) fn encode(self) -> [u8; MESSAGE_BYTES] {
        let (kind, number) = match self {
            Self::Fence(number) => (1_u16, number),
            Self::Word(number) => (2, number),
        };
        let mut bytes = [0; MESSAGE_BYTES];
        let parts = MESSAGE_MAGIC
            .into_iter()
            .chain(kind.to_le_bytes())
            .chain([0, 0])
            .chain(number.to_le_bytes());
        bytes
            .iter_mut()
            .zip(parts)
            .for_each(|(to, from)| *to = from);
        bytes
    }

    /// The message in these bytes; `None` when there is none.
    pub(super) fn read(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        if take(bytes)? != MESSAGE_MAGIC {
            return None;
        }
        let kind = take_u16(bytes)?;
        let zero = take_u16(bytes)?;
        let number = take(bytes).map(u64::from_le_bytes)?;
        match (kind, zero, bytes.is_empty()) {
            (1, 0, true) => Some(Self::Fence(number)),
            (2, 0, true) => Some(Self::Word(number)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ticket() -> LaneTicket {
        LaneTicket {
            session: SessionId([1; 16]),
            number: LaneNumber(513),
            token: LaneToken(std::array::from_fn(|at| at as u8)),
        }
    }

    #[test]
    fn an_introduction_fits_into_a_request_and_is_read_back() {
        let mut bytes = introduction(&ticket());
        assert_eq!(bytes.len(), INTRODUCTION_BYTES);
        // rdma_cm pads.
        bytes.extend([0; 9]);
        let read = read_introduction(&bytes).unwrap();
        assert_eq!(read.number, ticket().number);
        assert_eq!(read.session, ticket().session);
        assert!(read.token == ticket().token);
        bytes[4] = 9;
        assert!(read_introduction(&bytes).is_none());
    }

    #[test]
    fn refusals_say_why() {
        for (refusal, _, text) in Refusal::ALL {
            let mut padded = refusal.encode().to_vec();
            padded.extend([0; 48]);
            assert_eq!(Refusal::read(&padded).unwrap(), text);
        }
        assert_eq!(Refusal::read(&[0; 56]), None);
    }

    #[test]
    fn a_contact_is_read_back_and_a_link_local_one_takes_the_scope_of_control() {
        let control: SocketAddr = "[fe80::2%9]:7471".parse().unwrap();
        for (sent, read) in [
            ("10.77.0.1:5000", Some("10.77.0.1:5000")),
            ("[fd77::1]:5000", Some("[fd77::1]:5000")),
            ("[fe80::1%3]:5000", Some("[fe80::1%9]:5000")),
            ("0.0.0.0:5000", None),
            ("[ff02::1]:5000", None),
            ("10.77.0.1:0", None),
        ] {
            let bytes = contact(sent.parse().unwrap());
            assert!(bytes.len() <= CONTACT_BYTES_MAX);
            let expected = read.map(|text| text.parse().unwrap());
            assert_eq!(read_contact(&bytes, control), expected, "{sent}");
        }
    }

    #[test]
    fn an_identity_names_both_ends_in_their_order() {
        let v4 = End::of_tcp("10.78.0.1:40000".parse().unwrap());
        // As a socket for both versions has it.
        let mapped = End::of_tcp("[::ffff:10.78.0.1]:40000".parse().unwrap());
        assert_eq!(v4, mapped);
        let v6 = End::of_tcp("[fd78::2%3]:7471".parse().unwrap());
        let bytes = identity(v4, v6);
        assert_eq!(bytes.len(), IDENTITY_BYTES);
        let expected = [
            [0x40, 0x9c, 0, 0].as_slice(),
            &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 78, 0, 1],
            &[0x2f, 0x1d, 0, 0],
            &[0xfd, 0x78, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
        ];
        assert_eq!(bytes, expected.concat());
        assert_ne!(bytes, identity(v6, v4));
    }

    #[test]
    fn a_key_whose_range_would_wrap_is_refused() {
        let key = MemoryKey {
            key: 7,
            address: u64::MAX - 4096,
        };
        assert_eq!(MemoryKey::read(&key.encode(), 4096), Some(key));
        assert_eq!(MemoryKey::read(&key.encode(), 4097), None);
        assert_eq!(MemoryKey::read(&[], 1), None);
        assert_eq!(MemoryKey::read(&[0; 13], 1), None);
    }

    #[test]
    fn messages_are_read_back() {
        for message in [Message::Fence(1), Message::Word(u64::MAX)] {
            assert_eq!(Message::read(&message.encode()), Some(message));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_peer_break_a_reader(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let control: SocketAddr = "10.0.0.1:1".parse().unwrap();
            let _ = read_introduction(&bytes);
            let _ = Refusal::read(&bytes);
            let _ = read_contact(&bytes, control);
            let _ = MemoryKey::read(&bytes, 1 << 40);
            let _ = Message::read(&bytes);
        }
    }
}
