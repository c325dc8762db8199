//! `bench`: measuring moves over a matrix, and what is done with the results.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use dunlin_vmm::size::{parse_rate, parse_size};
use dunlin_vmm::spec::VCPUS_MAX;

use super::endpoint::Endpoint;
use super::values::{GuestKind, Lanes, some_duration};
use crate::exit::{Exit, help};

/// Measure moves, and compare transports, lanes and programs
#[derive(Clone, Debug, Args)]
#[command(
    long_about = "\
Moves guests again and again over a matrix of transports, lanes, memory sizes and dirty rates, and \
tells goodput, blackout and processor time of each cell, with what other programs reach on the same \
machine.

Each pass has one run of every cell and every reference, so that whatever slows the machine down for \
a while hits all alike; a warm-up pass is not counted. Verdicts come from ratios inside a pass, with \
a 95 % interval. A cell that can't run here is a line that says why. Ctrl-C ends the run under way, \
cleans up, and keeps what was measured.

Source and destination are two processes of this machine, which share its processors and its \
memory; with --to they are two hosts, and 'dunlin receive --bench' runs on the other.

docs/measuring.md says what each figure means, how sure a verdict is, and how to prepare real \
hardware.",
    args_conflicts_with_subcommands = true,
    after_long_help = bench_help()
)]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub(crate) command: Option<BenchCommand>,
    #[command(flatten)]
    pub(crate) matrix: Matrix,
}

/// What is done with results.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum BenchCommand {
    Compare(Compare),
    Report(Report),
}

/// The matrix, how it is run, and where results go.
#[derive(Clone, Debug, Args)]
pub(crate) struct Matrix {
    /// The transports
    #[arg(
        long,
        value_name = "LIST",
        value_enum,
        value_delimiter = ',',
        default_value = "rdma,tcp"
    )]
    pub(crate) transports: Vec<BenchTransport>,
    /// How many lanes: numbers, or auto
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "1,2"
    )]
    pub(crate) lanes: Vec<Lanes>,
    /// The guest's memory
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1GiB", value_parser = memory)]
    pub(crate) memory: Vec<u64>,
    /// How fast the guest rewrites memory: 0, rates, or max
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0,100MiB/s", value_parser = dirty_rate)]
    pub(crate) dirty_rate: Vec<DirtyRate>,
    /// In which order it does
    #[arg(
        long,
        value_name = "LIST",
        value_enum,
        value_delimiter = ',',
        default_value = "sequential"
    )]
    pub(crate) pattern: Vec<PatternChoice>,
    /// What runs the guest
    #[arg(
        long,
        value_name = "LIST",
        value_enum,
        value_delimiter = ',',
        default_value = "auto"
    )]
    pub(crate) guest: Vec<GuestKind>,
    /// Its vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(VCPUS_MAX)))]
    pub(crate) vcpus: u32,
    /// How much memory it rewrites over and over [default: a quarter of its memory]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) hot: Option<u64>,
    /// Instead: a guest of threads that rewrites memory as this trace says, which 'dunlin send
    /// --dirty-trace' recorded, over and over until it is moved
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["memory", "dirty_rate", "pattern", "guest", "hot"]
    )]
    pub(crate) replay: Option<PathBuf>,
    /// The budget for the pause
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = some_duration)]
    pub(crate) max_blackout: Duration,
    /// How often each cell is run and counted
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repeat: u32,
    /// How many passes come before, and are not counted
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=10))]
    pub(crate) warm_up: u32,
    /// The longest that one run may take
    #[arg(long, value_name = "TIME", default_value = "2min", value_parser = some_duration)]
    pub(crate) run_limit: Duration,
    /// What other programs are measured in the same passes; those that are not installed are named
    #[arg(
        long,
        visible_alias = "peers",
        value_name = "LIST",
        value_enum,
        value_delimiter = ',',
        default_value = "memcpy,iperf3,ib_write_bw,ib_read_lat,qemu"
    )]
    pub(crate) references: Vec<ReferenceChoice>,
    /// Move to another host, where 'dunlin receive --bench' listens, instead of to this one
    #[arg(long, value_name = "ENDPOINT")]
    pub(crate) to: Option<Endpoint>,
    /// Run every cell with another dunlin too, in turns, and judge this one against it
    #[arg(long, value_name = "PROGRAM", conflicts_with = "to")]
    pub(crate) against: Option<PathBuf>,
    /// Where the other one's results go
    #[arg(long, value_name = "FILE", requires = "against")]
    pub(crate) against_json: Option<PathBuf>,
    /// A slowdown beyond this, seen against the other program, is a failure
    #[arg(long, value_name = "PERCENT", default_value = "5%", value_parser = percent, requires = "against")]
    pub(crate) threshold: f64,
    /// Where the intervals' random resampling starts; the same results and seed give the same words
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Write all runs and figures as JSON to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write all runs as CSV to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// Write a page of HTML with plots to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Show no progress and no table
    #[arg(long)]
    pub(crate) quiet: bool,
}

/// Judge two results of 'dunlin bench', cell by cell
#[derive(Clone, Debug, Args)]
#[command(
    long_about = "\
Judges the second result against the first, cell by cell: goodput, the whole move, blackout and \
processor time, each as a ratio with a 95 % interval, pass by pass. It fails when an interval of goodput, \
the whole move or the blackout says that the second is slower by more than the threshold.

Two runs at different times differ by whatever else the machine did. On a machine that is not \
quiet, measure both programs in turns: 'dunlin bench --against PROGRAM'.",
    after_long_help = compare_help()
)]
pub(crate) struct Compare {
    /// The result that is the measure
    #[arg(value_name = "A.json")]
    pub(crate) base: PathBuf,
    /// The result that is judged
    #[arg(value_name = "B.json")]
    pub(crate) judged: PathBuf,
    /// A slowdown beyond this is a failure
    #[arg(long, value_name = "PERCENT", default_value = "5%", value_parser = percent)]
    pub(crate) threshold: f64,
    /// Where the intervals' random resampling starts
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Bundle results and facts of this host for an issue tracker
#[derive(Clone, Debug, Args)]
#[command(
    long_about = "\
Bundles results of 'dunlin bench --json' and what 'dunlin doctor' finds on this host into one JSON \
file that can be attached to an issue. Names of hosts and users, addresses, UUIDs and paths are \
taken out; read it before you give it away all the same.",
    after_long_help = report_help()
)]
pub(crate) struct Report {
    /// The results
    #[arg(value_name = "RESULT.json", required = true)]
    pub(crate) results: Vec<PathBuf>,
    /// Where the bundle goes
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
}

fn report_help() -> String {
    format!(
        "Examples:
  dunlin bench report result.json --output for-the-issue.json

{}",
        help(&[Exit::Done, Exit::Usage, Exit::Local])
    )
}

/// A transport, and how it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchTransport {
    /// RDMA
    Rdma,
    /// TCP, by io_uring where there is one
    Tcp,
    /// TCP by writev and readv
    TcpWritev,
    /// TCP, compressed with lz4
    TcpLz4,
    /// TCP, compressed with zstd
    TcpZstd,
}

/// In which order a guest rewrites memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PatternChoice {
    /// One page after the other
    Sequential,
    /// At random
    Random,
}

/// A program that is measured beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReferenceChoice {
    /// Nothing
    None,
    /// A copy from memory to memory on one thread
    Memcpy,
    /// iperf3: bytes over TCP
    Iperf3,
    /// ib_write_bw: RDMA writes
    #[value(name = "ib_write_bw")]
    IbWriteBw,
    /// ib_read_lat: the time of one RDMA read
    #[value(name = "ib_read_lat")]
    IbReadLat,
    /// QEMU moves a guest of its own
    Qemu,
}

/// How fast memory is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirtyRate(
    /// Bytes a second; `None`: as fast as the guest can.
    pub(crate) Option<u64>,
);

fn dirty_rate(text: &str) -> Result<DirtyRate, String> {
    match text {
        "0" => Ok(DirtyRate(Some(0))),
        "max" => Ok(DirtyRate(None)),
        _ => parse_rate(text)
            .map(|rate| DirtyRate(Some(rate)))
            .map_err(|error| format!("{error}; or 0, or max")),
    }
}

fn memory(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(0) => Err("a guest has more memory than that".to_owned()),
        size => size.map_err(|error| error.to_string()),
    }
}

/// A share, as in `5%`.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<f64>();
    match number {
        Ok(number) if (0.0..=1000.0).contains(&number) => Ok(number / 100.0),
        _ => Err("a share looks like 5%".to_owned()),
    }
}

fn bench_help() -> String {
    format!(
        "Examples:
  dunlin bench
  dunlin bench --transports tcp --lanes 1,2,4 --memory 4GiB --dirty-rate 0,100MiB/s,max
  dunlin bench --transports rdma,tcp --repeat 15 --json result.json
  dunlin bench --replay vm1.dirty --transports tcp,tcp-lz4 --lanes 1,4
  dunlin bench --to auto://host-b --lanes 4,8 --memory 16GiB
  dunlin bench --against ./dunlin-before --json new.json --against-json old.json
  dunlin bench compare old.json new.json --threshold 5%
  dunlin bench report result.json --output for-the-issue.json

{}",
        help(&[
            Exit::Done,
            Exit::Usage,
            Exit::Cancelled,
            Exit::Local,
            Exit::Slower,
        ])
    )
}

fn compare_help() -> String {
    format!(
        "Examples:
  dunlin bench compare before.json after.json
  dunlin bench compare before.json after.json --threshold 10% --json

{}",
        help(&[Exit::Done, Exit::Usage, Exit::Slower, Exit::NotComparable])
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_shares() {
        assert_eq!(dirty_rate("0"), Ok(DirtyRate(Some(0))));
        assert_eq!(dirty_rate("max"), Ok(DirtyRate(None)));
        assert_eq!(dirty_rate("1MiB/s"), Ok(DirtyRate(Some(1 << 20))));
        assert!(dirty_rate("1MiB").unwrap_err().contains("or 0, or max"));
        assert_eq!(percent("5%"), Ok(0.05));
        assert_eq!(percent("2.5"), Ok(0.025));
        for bad in ["", "%", "-1%", "a", "NaN", "2000%"] {
            assert!(percent(bad).is_err(), "{bad}");
        }
    }
}
