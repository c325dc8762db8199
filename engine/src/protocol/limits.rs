//! How long each message may be, and why.

use dunlin_transports::lane::{GRANT_KEY_BYTES_MAX, IDENTITY_BYTES_MAX, LANES_MAX};

use super::message::MessageKind;
use crate::state::STATE_BYTES_MAX;
use crate::telemetry::wire::WIRE_BYTES_MAX;

/// The longest HELLO: a layout of 1,024 regions (some 40 bytes each) and the guest's configuration
/// (CPUID and the like, some 10 KiB) fit many times over. It is the one message that is read from a
/// peer that proved nothing yet, so it is short.
pub const HELLO_BYTES_MAX: u32 = 256 << 10;

/// The longest reason in words, in bytes.
pub const REASON_BYTES_MAX: usize = 1024;

/// The longest other text (a kernel's release, a processor's name), in bytes.
pub const TEXT_BYTES_MAX: usize = 256;

/// The most pages that one VERIFY_PAGES describes: 16 MiB of guest memory.
pub const VERIFY_PAGES_MAX: usize = 4096;

/// The most ranges that one OPEN, GRANTS, CLOSE, CLOSED or PREFAULT names: 2 GiB of guest memory in
/// ranges of 8 MiB.
pub const RANGES_IN_MESSAGE_MAX: usize = 256;

/// The most ranges of one session that are open, being opened or being closed at once. Ranges of
/// 8 MiB are that many in 128 GiB; beyond, they are larger. It bounds both sides' tables, and stays
/// well below the number of memory regions that a NIC has (131,072 and more).
pub const RANGES_MAX: usize = 16_384;

/// The longest range that PREFAULT names, in pages: 16 MiB, some milliseconds of the kernel's work.
/// What began to be backed is not broken off.
pub const PREFAULT_PAGES_MAX: u32 = 4096;

/// OPEN, CLOSE, CLOSED, PREFAULT: 9 bytes of first page and 5 of length for each range.
const RANGES_BYTES_MAX: u32 = RANGES_IN_MESSAGE_MAX as u32 * 14 + 16;

/// GRANTS: the same, and a key with its two bytes of heading.
const GRANTS_BYTES_MAX: u32 =
    RANGES_BYTES_MAX + RANGES_IN_MESSAGE_MAX as u32 * (GRANT_KEY_BYTES_MAX as u32 + 2);

/// WELCOME: 64 tokens and a grant of at most some 100 bytes for each of 1,024 regions.
const WELCOME_BYTES_MAX: u32 = 256 << 10;

/// PREPARE: the device state, and 8 bytes of digest for each 16 MiB of guest memory: 32 MiB for
/// the largest layout.
const PREPARE_BYTES_MAX: u32 = STATE_BYTES_MAX as u32 + (33 << 20);

/// VERIFY_PAGES: at most 24 bytes a page.
const VERIFY_BYTES_MAX: u32 = 24 * VERIFY_PAGES_MAX as u32 + 64;

/// LANES: an identity for each lane, with its two bytes of CBOR heading, and those of the list.
const LANES_BYTES_MAX: u32 = LANES_MAX as u32 * (IDENTITY_BYTES_MAX as u32 + 2) + 16;

/// READY, RUNNING: some timestamps, one for each vCPU among them.
const RECORD_BYTES_MAX: u32 = 64 << 10;

/// VERIFIED: some numbers and examples, and what the destination recorded.
const VERIFIED_BYTES_MAX: u32 = RECORD_BYTES_MAX + WIRE_BYTES_MAX as u32;

/// Everything else: a few numbers, or a reason.
const SMALL_BYTES_MAX: u32 = 2048;

/// The most payload bytes of a message of kind `kind`; `None` when there is no such kind.
pub fn frame_limit(kind: u16) -> Option<u32> {
    Some(match MessageKind::from_number(kind)? {
        MessageKind::Hello => HELLO_BYTES_MAX,
        MessageKind::Welcome => WELCOME_BYTES_MAX,
        MessageKind::Prepare => PREPARE_BYTES_MAX,
        MessageKind::VerifyPages => VERIFY_BYTES_MAX,
        MessageKind::Lanes => LANES_BYTES_MAX,
        MessageKind::Open | MessageKind::Close | MessageKind::Closed | MessageKind::Prefault => {
            RANGES_BYTES_MAX
        }
        MessageKind::Grants => GRANTS_BYTES_MAX,
        MessageKind::Ready | MessageKind::Running => RECORD_BYTES_MAX,
        MessageKind::Verified => VERIFIED_BYTES_MAX,
        MessageKind::Refused
        | MessageKind::Ping
        | MessageKind::Pong
        | MessageKind::Commit
        | MessageKind::Released
        | MessageKind::Abort
        | MessageKind::Aborted
        | MessageKind::VerifyEnd
        | MessageKind::LanesConfirmed
        | MessageKind::Ask
        | MessageKind::Answer
        | MessageKind::Settled => SMALL_BYTES_MAX,
    })
}
