//! Commands that move and steer: `send`, `cancel`, `set`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use dunlin_engine::settings::MoveSettings;
use dunlin_transports::tcp::Compression;
use dunlin_vmm::size::parse_rate;

use super::Runtime;
use super::endpoint::Endpoint;
use super::rdma::RdmaChoices;
use super::values::{CpuList, GuestName, Lanes, StallChoice, VerifyChoice, some_duration};
use crate::exit::{Exit, help};
use crate::local::protocol::{IoChoice, MoveOrder, ZeroCopyChoice, nanoseconds};

/// Move a guest to another host
#[derive(Clone, Debug, Args)]
#[command(
    long_about = "\
Moves a guest of this host to another one, where 'dunlin receive' listens.

The guest's own process does the moving; this command asks it to, shows where the move stands, and \
prints the receipt. So killing this command only detaches it: the move goes on, 'dunlin status' \
shows it and 'dunlin cancel' ends it. Ctrl-C asks for the move to be cancelled and waits for the \
outcome; a second Ctrl-C detaches.

The guest runs on while its memory is copied in rounds. Once the predicted blackout is within \
--max-blackout, and another round would not halve it, it is paused, the rest is sent, and the \
destination takes over. Whatever fails before that, the guest runs on here.",
    after_long_help = send_help()
)]
pub(crate) struct Send {
    /// The guest
    #[arg(value_name = "GUEST")]
    pub(crate) name: GuestName,
    /// The destination: a host (RDMA where both sides have it, else TCP; auto://host says the same),
    /// or rdma://host or tcp://host:7471, which demand one; IPv6 in brackets
    #[arg(long, value_name = "ENDPOINT")]
    pub(crate) to: Endpoint,
    /// The budget: pause once the blackout is predicted to be at most this
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = some_duration)]
    pub(crate) max_blackout: Duration,
    /// A pause that reaches this before the give-up is called off, and the guest runs on here; a
    /// cap below the budget lowers the budget [default: ten times the budget]
    #[arg(long, value_name = "TIME", value_parser = some_duration)]
    pub(crate) blackout_cap: Option<Duration>,
    /// When rounds no longer bring the prediction down
    #[arg(long, value_enum, default_value_t)]
    pub(crate) on_stall: StallChoice,
    /// The most guest memory a second while the guest runs, as in 64MiB/s [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = some_rate)]
    pub(crate) max_bandwidth: Option<u64>,
    /// The most rounds
    #[arg(long, value_name = "N", default_value_t = MoveSettings::default().max_rounds, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) max_rounds: u32,
    /// The most time for the whole move [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = some_duration)]
    pub(crate) timeout: Option<Duration>,
    /// How the two memories are compared
    #[arg(long, value_enum, default_value_t)]
    pub(crate) verify: VerifyChoice,
    /// How many lanes: a number, or auto
    #[arg(long, value_name = "N", default_value = "auto")]
    pub(crate) lanes: Lanes,
    /// The CPUs that lanes are pinned to, as in 0,2-5
    #[arg(long, value_name = "LIST")]
    pub(crate) cpus: Option<CpuList>,
    /// The local address that connections start from
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) bind: Option<IpAddr>,
    /// The packets' DSCP mark
    #[arg(long, value_name = "DSCP", value_parser = clap::value_parser!(u8).range(0..64))]
    pub(crate) tos: Option<u8>,
    /// How lanes over TCP do their I/O
    #[arg(long, value_enum, default_value_t)]
    pub(crate) io: IoChoice,
    /// Whether lanes over io_uring have the network card read guest memory itself. The kernel copies
    /// all the same on paths that can't; a lane tries, and asks it
    #[arg(long, value_enum, default_value_t)]
    pub(crate) zero_copy: ZeroCopyChoice,
    /// Compress what lanes over TCP carry: off, lz4, zstd, zstd:LEVEL (1 to 12), or auto, which is
    /// lz4 while it makes the lane faster. It costs processor time on both hosts; over RDMA nothing is
    /// compressed
    #[arg(long, value_name = "HOW", default_value_t)]
    pub(crate) compress: Compression,
    /// How long the destination may be silent
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = some_duration)]
    pub(crate) peer_timeout: Duration,
    /// How long to watch a guest whose owner is not known; its process goes on asking
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = some_duration)]
    pub(crate) doubt_wait: Duration,
    /// Print the report as JSON instead of the receipt
    #[arg(long)]
    pub(crate) json: bool,
    /// Show no progress and no receipt
    #[arg(long)]
    pub(crate) quiet: bool,
    /// Write the report as JSON to this file too
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Write a page about the move to this file: the pause part by part, rounds, lanes and
    /// latencies, as one HTML file that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write the timeline of both ends to this file, for ui.perfetto.dev or Chrome
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Write which pages the guest makes dirty, and when, to this file, for 'dunlin bench --replay'.
    /// The guest's process writes it; it costs a little time in each round and in the pause
    #[arg(long, value_name = "FILE")]
    pub(crate) dirty_trace: Option<PathBuf>,
    /// Answer Prometheus at this address, as in 127.0.0.1:9471 (GET /metrics), for
    /// as long as this command watches. There is no
    /// authentication
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Write Prometheus' metrics of the move to this file once it is over, however it ended, in
    /// place of what was there: for the textfile collector of a node exporter, which wants a name
    /// that ends in .prom
    #[arg(long, value_name = "FILE")]
    pub(crate) metrics_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) rdma: RdmaChoices,
    #[command(flatten)]
    pub(crate) runtime: Runtime,
}

impl Send {
    /// The order for the guest's process.
    pub(crate) fn order(&self) -> MoveOrder {
        MoveOrder {
            to: self.to.to_string(),
            max_blackout_ns: nanoseconds(self.max_blackout),
            blackout_cap_ns: self.blackout_cap.map(nanoseconds),
            on_stall: self.on_stall.into(),
            max_bandwidth_bytes_per_s: self.max_bandwidth,
            max_rounds: self.max_rounds,
            timeout_ns: self.timeout.map(nanoseconds),
            verify: self.verify.into(),
            lanes: self.lanes.0,
            cpus: self.cpus.clone().unwrap_or_default().0,
            peer_timeout_ns: nanoseconds(self.peer_timeout),
            bind: self.bind,
            dscp: self.tos,
            io: self.io,
            zero_copy: self.zero_copy,
            compress: self.compress.to_string(),
            rdma: self.rdma.clone(),
            dirty_trace: None,
        }
    }
}

fn send_help() -> String {
    format!(
        "Examples:
  dunlin send vm1 --to tcp://host-b
  dunlin send vm1 --to rdma://host-b --max-blackout 10ms --rdma-device mlx5_0
  dunlin send vm1 --to rdma://host-b --pin-budget 4GiB
  dunlin send vm1 --to tcp://[2001:db8::2]:7471 --lanes 4
  dunlin send vm1 --to tcp://host-far-away --compress auto
  dunlin send vm1 --to auto://host-b --max-bandwidth 200MiB/s --on-stall switchover
  dunlin send vm1 --to tcp://host-b --json --quiet --timeout 5min
  dunlin send vm1 --to tcp://host-b --html move.html --trace move.trace.json
  dunlin send vm1 --to tcp://host-b --dirty-trace vm1.dirty

{}",
        help(&[
            Exit::Done,
            Exit::Usage,
            Exit::NoGuest,
            Exit::Refused,
            Exit::PeerFailed,
            Exit::NotConverging,
            Exit::BlackoutCap,
            Exit::TimedOut,
            Exit::Cancelled,
            Exit::Unequal,
            Exit::UnknownOwner,
            Exit::Local,
            Exit::Detached,
            Exit::Conflict,
            Exit::NotResumed,
        ])
    )
}

/// End a move; the guest stays
#[derive(Clone, Debug, Args)]
#[command(
    long_about = "\
Asks for the move of a guest to end; the guest stays and runs on. Returns at once: 'dunlin send', \
or 'dunlin status', tells how the move ended. Behind the give-up a move can't be cancelled any \
more.",
    after_long_help = cancel_help()
)]
pub(crate) struct Cancel {
    /// The guest
    #[arg(value_name = "GUEST")]
    pub(crate) name: GuestName,
    #[command(flatten)]
    pub(crate) runtime: Runtime,
    /// Tell errors as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn cancel_help() -> String {
    format!(
        "Examples:\n  dunlin cancel vm1\n\n{}",
        help(&[
            Exit::Done,
            Exit::Usage,
            Exit::NoGuest,
            Exit::Local,
            Exit::Conflict
        ])
    )
}

/// Change the budget or the bandwidth of a move under way
#[derive(Clone, Debug, Args)]
#[command(
    long_about = "Changes the budget or the bandwidth of a move while it runs. A cap that was not \
                  given with 'send' stays ten times the budget.",
    after_long_help = set_help()
)]
#[group(required = true, multiple = true, args = ["max_blackout", "max_bandwidth"])]
pub(crate) struct Set {
    /// The guest
    #[arg(value_name = "GUEST")]
    pub(crate) name: GuestName,
    /// The new budget for the pause
    #[arg(long, value_name = "TIME", value_parser = some_duration)]
    pub(crate) max_blackout: Option<Duration>,
    /// The new bandwidth, as in 64MiB/s; 'none' lifts the limit
    #[arg(long, value_name = "RATE", value_parser = rate_or_none)]
    pub(crate) max_bandwidth: Option<u64>,
    #[command(flatten)]
    pub(crate) runtime: Runtime,
    /// Tell errors as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn set_help() -> String {
    format!(
        "Examples:
  dunlin set vm1 --max-blackout 200ms
  dunlin set vm1 --max-bandwidth none

{}",
        help(&[
            Exit::Done,
            Exit::Usage,
            Exit::NoGuest,
            Exit::Local,
            Exit::Conflict
        ])
    )
}

fn some_rate(text: &str) -> Result<u64, String> {
    match parse_rate(text) {
        Ok(0) => Err("a rate of 0 moves nothing".to_owned()),
        rate => rate.map_err(|error| error.to_string()),
    }
}

/// A rate; 0 stands for no limit.
fn rate_or_none(text: &str) -> Result<u64, String> {
    if text == "none" {
        return Ok(0);
    }
    some_rate(text)
}
