//! Control and lanes over TCP.
//!
//! | room | what is in it |
//! |---|---|
//! | [`preamble`] | the first bytes on every connection, and the answer to them |
//! | `socket` | socket options, connecting and listening, bounded reads and writes |
//! | [`control`] | the control channel |
//! | `wire` | what a lane's frames look like |
//! | `batch` | what a lane sends in one piece |
//! | `compression` | what may be compressed, and how |
//! | `framing` | a batch's frame without a lane, for benchmarks |
//! | `stream` | the byte stream that carries frames: whole lengths from and to guest memory |
//! | `uring` | a byte stream over io_uring |
//! | `plain` | a byte stream over `sendmsg`/`recvmsg` |
//! | `mechanism` | what lanes turned out to use, as reports name it |
//! | `sockets` | an endpoint's open sockets, and how it ends them |
//! | [`source`], `sending` | the endpoint and the lanes that send |
//! | [`destination`], `receiving` | the endpoint and the lanes that receive |
//!
//! Whoever accepts connections reads the preamble with [`read_preamble`] and decides by its kind:
//! a control connection becomes a channel by [`control_channel`], a lane goes to the session's
//! [`DestinationEndpoint`] as an [`IncomingLane`].

use std::net::IpAddr;
use std::time::Duration;

pub mod control;
pub mod destination;
pub mod preamble;
pub mod source;

mod batch;
mod compression;
#[cfg(feature = "testing")]
pub mod framing;
mod mechanism;
mod plain;
mod receiving;
mod sending;
mod socket;
mod sockets;
mod stream;
mod uring;
mod wire;

#[cfg(all(feature = "compression", feature = "testing"))]
pub use compression::rehearsal;
pub use compression::{Compression, CompressionError, ZstdLevel};
pub use control::{control_channel, dial_control, dial_settling};
pub use destination::{DestinationEndpoint, IncomingLane};
pub use preamble::{ConnectionKind, Preamble, PreambleError, Refusal, read_preamble, refuse};
pub use socket::listen;
pub use source::SourceEndpoint;

/// The port where a destination listens when none is named.
pub const DEFAULT_PORT: u16 = 7471;

/// How lanes move bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mechanism {
    /// io_uring where the system lets it be set up, else as `Plain`.
    #[default]
    Auto,
    /// io_uring, or an error.
    IoUring,
    /// `sendmsg` and `recvmsg`.
    Plain,
}

/// Whether lanes over io_uring send guest memory without a copy. Small batches, compressed ones, and
/// whatever the kernel refuses to send so are copied in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopy {
    /// A lane tries with its first batch, and goes on if the kernel says that it avoided the copy.
    #[default]
    Auto,
    /// No.
    Off,
    /// Also where the kernel says that it copies all the same, as it does on loopback: slower, for
    /// tests and benchmarks.
    Always,
}

/// What an operator may decide about connections.
///
/// `TCP_NODELAY` is always set: a fence must not wait for the answer to what went before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The local address that connections start from; `None`: the system's choice.
    pub bind: Option<IpAddr>,
    /// The traffic class: the whole byte of `IP_TOS` and `IPV6_TCLASS`, DSCP in its upper six bits.
    pub tos: Option<u8>,
    /// A connection that is idle this long is probed, and again at this interval, in whole seconds.
    pub keepalive: Duration,
    /// How long sent bytes may stay unacknowledged before the system ends the connection.
    pub user_timeout: Duration,
    /// How long a lane may move nothing in the middle of something, and a control frame may take
    /// to arrive once begun.
    pub stall_limit: Duration,
    /// How lanes move bytes.
    pub mechanism: Mechanism,
    /// Whether a source's lanes send guest memory without a copy.
    pub zero_copy: ZeroCopy,
    /// The size of each connection's socket buffers, held to the system's limits; `None`: what the
    /// kernel's autotuning makes of them, to which nothing was found superior. For measuring.
    pub socket_buffer_bytes: Option<u32>,
    /// About how many guest bytes a lane sends as one batch; held to what the protocol allows.
    pub batch_bytes: u32,
    /// Whether a destination's lane has the kernel back a batch's memory in one call before it
    /// receives the batch, up to the first fence: for fresh memory in small pages.
    pub prefault: bool,
    /// Whether and how what leaves is compressed. What comes is taken either way.
    pub compression: Compression,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bind: None,
            tos: None,
            // With 5 s and the three probes that `socket` asks for, a dead peer is found in 20 s
            // on a connection that sends nothing; the engine's heartbeats find it sooner.
            keepalive: Duration::from_secs(5),
            user_timeout: Duration::from_secs(20),
            // Longer than any pause that a working link shows (a switch that relearns its paths
            // takes seconds), shorter than an operator's patience.
            stall_limit: Duration::from_secs(10),
            mechanism: Mechanism::default(),
            zero_copy: ZeroCopy::default(),
            socket_buffer_bytes: None,
            batch_bytes: wire::BATCH_BYTES,
            prefault: false,
            compression: Compression::Off,
        }
    }
}
