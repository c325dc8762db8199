//! Commands that make guests: `run`, `receive`, `demo`, and the hidden `incoming`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use dunlin_engine::pin_budget::PinBudget;
use dunlin_vmm::size::parse_size;
use dunlin_vmm::spec::VCPUS_MAX;
use dunlin_vmm::workload::Workload;
use uuid::Uuid;

use super::endpoint::Endpoint;
use super::rdma::RdmaChoices;
use super::values::{
    BackingChoice, GuestKind, GuestName, Lanes, Prefault, ReceiveBacking, TrackingChoice, percent,
    pin_budget, some_duration,
};
use super::{HookChoices, Runtime, State};
use crate::exit::{Exit, help};

const WORKLOAD_HELP: &str = "\
What the guest does: pattern=sequential|random,hot=SIZE,rate=SIZE/s|max,zero=PERCENT,block=PAGES,\
unused=PERCENT,beat=TIME. 'hot' is how much memory it rewrites over and over, 'rate' how fast, 'zero' \
how many in a hundred of its other pages are zero, 'block' how many in a row are alike in that, \
'unused' how much of its memory in a hundred parts nobody ever touches, 'beat' how often it prints a \
line on its serial port. What is left out keeps its default.";

/// Run a guest in the foreground, ready to be moved
#[derive(Clone, Debug, Args)]
#[command(
    long_about = "\
Runs a guest in the foreground, until it is stopped or was moved away. It can be moved at any time \
('dunlin send'), looked at ('dunlin status') and ended ('dunlin stop', Ctrl-C, SIGTERM).

The guest runs a built-in workload that rewrites memory and keeps checks on every page, so that a \
move can be proven right. Ctrl-C while it is being moved cancels the move first, if it is not past \
its give-up.",
    after_long_help = run_help()
)]
pub(crate) struct Run {
    /// The guest's name, which names its control socket too
    #[arg(long)]
    pub(crate) name: GuestName,
    /// Its memory
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    pub(crate) memory: u64,
    /// Its vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(VCPUS_MAX)))]
    pub(crate) vcpus: u32,
    /// What runs it
    #[arg(long, value_enum, default_value_t)]
    pub(crate) guest: GuestKind,
    /// What backs its memory
    #[arg(long, value_enum, default_value_t)]
    pub(crate) memory_backing: BackingChoice,
    /// How its writes are tracked (KVM guests)
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dirty_tracking: TrackingChoice,
    #[arg(long, value_name = "SPEC", default_value_t, help = WORKLOAD_HELP)]
    pub(crate) workload: Workload,
    /// Rewrite memory as this trace says ('dunlin send --dirty-trace' writes them), from the moment
    /// on in which a move begins, instead of what --workload says. The guest is one of threads, and
    /// has the memory of the one that was recorded
    #[arg(long, value_name = "FILE", conflicts_with = "workload")]
    pub(crate) replay: Option<PathBuf>,
    /// Where its serial port writes: stdout, null, or file:PATH
    #[arg(long, value_name = "TO", default_value = "null")]
    pub(crate) serial: Serial,
    /// Its UUID [default: a random one]
    #[arg(long)]
    pub(crate) uuid: Option<Uuid>,
    /// Answer Prometheus at this address, as in 127.0.0.1:9471 (GET /metrics). There is no
    /// authentication
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) runtime: Runtime,
    #[command(flatten)]
    pub(crate) state: State,
    #[command(flatten)]
    pub(crate) hooks: HookChoices,
    /// End with the process that started this one (for 'dunlin demo')
    #[arg(long, hide = true)]
    pub(crate) with_parent: bool,
}

fn run_help() -> String {
    format!(
        "Examples:
  dunlin run --name vm1 --memory 4GiB --vcpus 2
  dunlin run --name vm1 --memory 1GiB --workload pattern=random,hot=256MiB,rate=max
  dunlin run --name vm1 --memory 8GiB --memory-backing hugetlb --serial stdout
  dunlin run --name vm1 --memory 4GiB --metrics 127.0.0.1:9471

{}",
        help(&[Exit::Done, Exit::Usage, Exit::Local, Exit::Conflict])
    )
}

/// Wait for guests and run them
#[derive(Clone, Debug, Args)]
#[command(
    long_about = "\
Waits for guests and runs them. Each guest becomes a process of its own, with a control socket as \
under 'dunlin run': it can be looked at, sent on, and ended. Its output goes to NAME.log in the \
runtime directory, its serial port to NAME.serial.

Before a guest is let in, its memory is reserved: if there is too little, the source is told so \
before the move begins. A move that fails, or a peer that misbehaves, ends that move alone.

Ctrl-C or SIGTERM ends the waiting and the moves in flight. Guests that have arrived go on.

It also answers sources whose connection was lost in the handover, from the records in the state \
directory, for guests of earlier runs too: after a restart of this host, start it again with the \
same --state-dir.

There is no authentication yet: listen only where you trust the network.",
    after_long_help = receive_help()
)]
pub(crate) struct Receive {
    /// Where to listen for control connections, which are TCP; port 0 takes a free one, and says
    /// which. Lanes come as the source asks, over TCP or RDMA; rdma:// sees that there is a device,
    /// and warns where none has a port that is up
    #[arg(long, value_name = "ENDPOINT", default_value = "auto://0.0.0.0:7471")]
    pub(crate) listen: Endpoint,
    /// Exit with 0 once one guest has arrived; its process goes on
    #[arg(long)]
    pub(crate) once: bool,
    /// Take only the guests of 'dunlin bench --to', and end each once its move is over
    #[arg(long, conflicts_with = "once")]
    pub(crate) bench: bool,
    /// The most memory for all guests together [default: what the host has free]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) memory_limit: Option<u64>,
    /// How much of a guest's memory has to be free here, in percent; less than 100 counts on the
    /// rest staying untouched, and makes --prefault auto keep to small pages (huge pages of
    /// --memory-backing are always set aside whole)
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = percent)]
    pub(crate) reserve: u8,
    /// What backs a guest's memory here
    #[arg(long, value_enum, default_value_t)]
    pub(crate) memory_backing: ReceiveBacking,
    /// When it is backed
    #[arg(long, value_enum, default_value_t)]
    pub(crate) prefault: Prefault,
    /// How a guest's writes are tracked here, for its next move (KVM guests)
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dirty_tracking: TrackingChoice,
    /// Where guests' serial ports write, NAME.serial each [default: the runtime directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) serial_dir: Option<PathBuf>,
    /// Answer Prometheus at this address, as in 127.0.0.1:9471 (GET /metrics), for all
    /// guests of the runtime directory. There is no
    /// authentication
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) runtime: Runtime,
    #[command(flatten)]
    pub(crate) state: State,
    #[command(flatten)]
    pub(crate) hooks: HookChoices,
    #[command(flatten)]
    pub(crate) rdma: RdmaChoices,
    /// Tell what happens as JSON, one object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// End with the process that started this one, guests that have arrived when standard input
    /// ends (for 'dunlin demo')
    #[arg(long, hide = true)]
    pub(crate) with_parent: bool,
}

impl Receive {
    /// When guests' memory is backed. Where less is reserved than they have, it counts on what they
    /// never touched staying so: then nothing comes in huge pages unless all of it is asked for.
    pub(crate) fn effective_prefault(&self) -> Prefault {
        match self.prefault {
            Prefault::Auto if self.reserve < 100 => Prefault::Off,
            asked => asked,
        }
    }
}

fn receive_help() -> String {
    format!(
        "Examples:
  dunlin receive
  dunlin receive --listen tcp://10.0.0.2:7471 --memory-limit 64GiB
  dunlin receive --listen tcp://[::]:0 --once --json
  dunlin receive --bench
  dunlin receive --prefault on           (fastest moves; takes all of a guest's memory at once)
  dunlin receive --reserve 25            (for guests that use little of their memory)

Ended by Ctrl-C or SIGTERM, it exits with 0 (with 9 under --once, if no guest had arrived).

{}",
        help(&[
            Exit::Done,
            Exit::Usage,
            Exit::Cancelled,
            Exit::Local,
            Exit::Conflict
        ])
    )
}

/// The process of a guest that 'receive' lets in; speaks to it over standard input
#[derive(Clone, Debug, Args)]
pub(crate) struct Incoming {
    /// The guest's name
    #[arg(long)]
    pub(crate) name: GuestName,
    /// What backs its memory here
    #[arg(long, value_enum, default_value_t)]
    pub(crate) memory_backing: ReceiveBacking,
    /// When it is backed
    #[arg(long, value_enum, default_value_t)]
    pub(crate) prefault: Prefault,
    /// How its writes are tracked here
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dirty_tracking: TrackingChoice,
    /// Where its serial port writes
    #[arg(long)]
    pub(crate) serial: PathBuf,
    /// The descriptor of a pipe; the guest ends when nobody can write to it any more
    #[arg(long, value_name = "FD")]
    pub(crate) leash: Option<u32>,
    /// Where the guest comes from
    #[arg(long)]
    pub(crate) peer: String,
    #[command(flatten)]
    pub(crate) runtime: Runtime,
    #[command(flatten)]
    pub(crate) state: State,
    #[command(flatten)]
    pub(crate) hooks: HookChoices,
    #[command(flatten)]
    pub(crate) rdma: RdmaChoices,
}

/// Move a guest between two processes of this machine, and tell about it
#[derive(Clone, Debug, Args)]
#[command(
    long_about = "\
Moves a guest between two processes of this machine, over a real connection (of this machine's RDMA \
device with itself where there is one, else on the loopback interface), and tells about it: what ran, how the move went, and the receipt of the pause. Then it \
sees that the guest goes on counting where it is now, ends everything, and cleans up.

Both processes share this machine's cores and memory, so a move between two hosts is faster.",
    after_long_help = demo_help()
)]
pub(crate) struct Demo {
    /// The guest's memory
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = memory_size)]
    pub(crate) memory: u64,
    /// Its vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(VCPUS_MAX)))]
    pub(crate) vcpus: u32,
    #[arg(long, value_name = "SPEC", default_value_t, help = WORKLOAD_HELP)]
    pub(crate) workload: Workload,
    /// The transport
    #[arg(long, value_enum, default_value_t)]
    pub(crate) transport: TransportChoice,
    /// How many lanes: a number, or auto
    #[arg(long, value_name = "N", default_value = "auto")]
    pub(crate) lanes: Lanes,
    /// What runs the guest
    #[arg(long, value_enum, default_value_t)]
    pub(crate) guest: GuestKind,
    /// How its writes are tracked (KVM guests)
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dirty_tracking: TrackingChoice,
    /// What backs its memory
    #[arg(long, value_enum, default_value_t)]
    pub(crate) memory_backing: BackingChoice,
    /// When it is backed at the destination
    #[arg(long, value_enum, default_value_t)]
    pub(crate) prefault: Prefault,
    /// How much of the guest's memory has to be free for the destination, in percent; less than 100
    /// counts on the rest staying untouched
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = percent)]
    pub(crate) reserve: u8,
    /// The budget for the pause
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = some_duration)]
    pub(crate) max_blackout: std::time::Duration,
    /// The most guest memory that is registered for RDMA at once, on either side: a size of at least
    /// 8MiB, unlimited, or auto
    #[arg(long, value_name = "SIZE", default_value = "auto", value_parser = pin_budget)]
    pub(crate) pin_budget: PinBudget,
    /// Write the report as JSON to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write a page about the move to this file: the pause part by part, rounds, lanes and
    /// latencies, as one HTML file that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write the timeline of both ends to this file, for ui.perfetto.dev or Chrome
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Write which pages the guest makes dirty, and when, to this file, for 'dunlin bench --replay'
    #[arg(long, value_name = "FILE")]
    pub(crate) dirty_trace: Option<PathBuf>,
    /// Print nothing but errors
    #[arg(long)]
    pub(crate) quiet: bool,
}

fn demo_help() -> String {
    format!(
        "Examples:
  dunlin demo
  dunlin demo --memory 4GiB --vcpus 2 --workload pattern=random,hot=512MiB,rate=50MiB/s
  dunlin demo --guest process --lanes 4 --json report.json
  dunlin demo --html move.html --trace move.trace.json

It exits with 0 only if the guest was moved, runs on, and its memory was found equal.

{}",
        help(&[
            Exit::Done,
            Exit::Usage,
            Exit::Refused,
            Exit::PeerFailed,
            Exit::NotConverging,
            Exit::BlackoutCap,
            Exit::Cancelled,
            Exit::Unequal,
            Exit::UnknownOwner,
            Exit::Local,
        ])
    )
}

/// Which transport a demo uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum TransportChoice {
    /// The best that there is
    #[default]
    Auto,
    /// RDMA, over this machine's own device
    Rdma,
    /// TCP
    Tcp,
}

/// Where a serial port writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Serial {
    /// To standard output.
    Stdout,
    /// Nowhere.
    Null,
    /// To a file.
    File(PathBuf),
}

impl FromStr for Serial {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "stdout" => Ok(Self::Stdout),
            "null" => Ok(Self::Null),
            _ => match text.strip_prefix("file:") {
                Some(path) if !path.is_empty() => Ok(Self::File(path.into())),
                _ => Err("a serial port writes to stdout, null or file:PATH".to_owned()),
            },
        }
    }
}

/// A guest's memory: more than nothing.
fn memory_size(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(0) => Err("a guest has more memory than that".to_owned()),
        size => size.map_err(|error| error.to_string()),
    }
}
