//! How long each message may be, and why.

use super::message::MessageKind;
use crate::state::STATE_BYTES_MAX;

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

/// WELCOME: 64 tokens and a grant of at most some 100 bytes for each of 1,024 regions.
const WELCOME_BYTES_MAX: u32 = 256 << 10;

/// PREPARE: the device state, and 8 bytes of digest for each 16 MiB of guest memory: 32 MiB for
/// the largest layout.
const PREPARE_BYTES_MAX: u32 = STATE_BYTES_MAX as u32 + (33 << 20);

/// VERIFY_PAGES: at most 24 bytes a page.
const VERIFY_BYTES_MAX: u32 = 24 * VERIFY_PAGES_MAX as u32 + 64;

/// READY, RUNNING, VERIFIED: some timestamps, one for each vCPU among them.
const RECORD_BYTES_MAX: u32 = 64 << 10;

/// Everything else: a few numbers, or a reason.
const SMALL_BYTES_MAX: u32 = 2048;

/// The most payload bytes of a message of kind `kind`; `None` when there is no such kind.
pub fn frame_limit(kind: u16) -> Option<u32> {
    Some(match MessageKind::from_number(kind)? {
        MessageKind::Hello => HELLO_BYTES_MAX,
        MessageKind::Welcome => WELCOME_BYTES_MAX,
        MessageKind::Prepare => PREPARE_BYTES_MAX,
        MessageKind::VerifyPages => VERIFY_BYTES_MAX,
        MessageKind::Ready | MessageKind::Running | MessageKind::Verified => RECORD_BYTES_MAX,
        MessageKind::Refused
        | MessageKind::Ping
        | MessageKind::Pong
        | MessageKind::Commit
        | MessageKind::Released
        | MessageKind::Abort
        | MessageKind::Aborted
        | MessageKind::VerifyEnd
        | MessageKind::Ask
        | MessageKind::Answer
        | MessageKind::Settled => SMALL_BYTES_MAX,
    })
}
