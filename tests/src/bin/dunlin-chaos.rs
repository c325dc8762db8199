//! Moves with faults, by the hundred: real processes, real guests, real connections.

use std::io::{IsTerminal, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use dunlin_tests::chaos::arena::{Fabric, GuestKind};
use dunlin_tests::chaos::campaign::Campaign;
use dunlin_tests::chaos::fault::Wanted;
use dunlin_tests::chaos::rules::Ending;
use dunlin_tests::chaos::run::Outcome;
use dunlin_tests::chaos::table::Table;
use dunlin_tests::chaos::tally::Tally;
use dunlin_tests::host::{has_kvm, has_namespaces};
use dunlin_tests::program::dunlin;
use dunlin_tests::rdma::Ends;
use dunlin_tests::rdma::wire::Wire;

/// Move guests while processes are killed and frozen and links are cut
///
/// Each run starts a receiver and a guest, moves the guest, does something bad at a named phase or
/// at a random moment, mends what can be mended, waits until nothing changes any more, and judges:
/// by what the guest itself printed about when it ran, by where it is, by what is left over.
///
/// Runs the program that $DUNLIN names, else the release build in the target directory. Exit codes:
/// 0 all passed, 1 some did not, 3 a guest had two owners, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "dunlin-chaos")]
struct Arguments {
    /// How many runs; 300 have each fault at least once
    #[arg(long, value_name = "N", default_value_t = 20)]
    runs: usize,
    /// From which everything random follows [default: the clock]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// How many at a time [default: the number of processors]
    #[arg(long, value_name = "J")]
    jobs: Option<usize>,
    /// What moves go over
    #[arg(long, value_enum, default_value_t)]
    transport: Transport,
    /// For rdma: an address of an RDMA device of this host, where receivers listen
    #[arg(long, value_name = "ADDRESS", required_if_eq("transport", "rdma"))]
    address: Option<IpAddr>,
    /// For rdma: the address that lanes start from, of the same device or another one [default:
    /// --address]
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<IpAddr>,
    /// For rdma: cut links too, by taking the virtual interface down that has --address; one run at
    /// a time
    #[arg(long)]
    cut_the_wire: bool,
    /// What runs the guests
    #[arg(long, value_enum, default_value_t)]
    guest: Guests,
    /// Only these faults: DEED, DEED/PHASE or /PHASE, as in kill-run/committed; may be repeated
    #[arg(long, value_name = "FAULT")]
    only: Vec<Wanted>,
    /// Write what came of it to this file, as Markdown
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
    /// Print what came of it as JSON
    #[arg(long)]
    json: bool,
    /// Tell the story of each run, not only of those that did not pass
    #[arg(long, conflicts_with = "expect_two_owners")]
    verbose: bool,
    /// Succeed only if a guest had two owners: for a program with a bug planted in it
    #[arg(long)]
    expect_two_owners: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Transport {
    /// TCP, over the loopback address, or between network namespaces
    #[default]
    Tcp,
    /// RDMA
    Rdma,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Guests {
    /// Threads of the VMM's process
    Process,
    /// KVM
    Kvm,
    /// Both in turn, where there is KVM
    #[default]
    Both,
}

fn main() -> ExitCode {
    match chaos(&Arguments::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("dunlin-chaos: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn chaos(arguments: &Arguments) -> Result<u8> {
    let program = dunlin();
    anyhow::ensure!(
        program.is_file(),
        "there is no program at {}: 'make build' makes it, or DUNLIN=… names another",
        program.display()
    );
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .context("watching for signals")?;
    }
    let campaign = campaign(arguments)?;
    anyhow::ensure!(
        !campaign.orders().is_empty(),
        "nothing to run: this host has no KVM or no network namespaces for what was asked"
    );
    eprintln!(
        "seed {}, {} at a time, {}",
        campaign.seed,
        campaign.jobs,
        program.display()
    );
    let began = Instant::now();
    let mut progress = Progress::new(campaign.runs);
    let outcomes = campaign.run(&interrupted, |outcome| {
        if arguments.expect_two_owners {
            tell_shortly(outcome);
        } else {
            progress.tell(outcome, arguments.verbose);
        }
    });
    progress.end();
    let tally = Tally::new(&outcomes);
    if let Some(path) = &arguments.table {
        std::fs::write(path, Table::new(&outcomes).markdown())
            .with_context(|| format!("writing {}", path.display()))?;
    }
    if arguments.json {
        println!("{:#}", tally.json());
    }
    for notice in tally.notices() {
        let [p50, p90, p99, longest] = notice.within.map(|time| time.as_millis());
        eprintln!(
            "noticed, when {} ({} runs): p50 {p50} ms, p90 {p90} ms, p99 {p99} ms, longest \
             {longest} ms",
            notice.sort, notice.count
        );
    }
    if tally.repeated() > 0 {
        eprintln!(
            "{} runs were made again: the machine was too busy to get to the fault",
            tally.repeated()
        );
    }
    eprintln!("{}", tally.closing_line());
    eprintln!(
        "{} passed, {} failed, in {:.0} s",
        tally.passed(),
        tally.failed(),
        began.elapsed().as_secs_f64()
    );
    let two_owners = tally.ended(Ending::TwoOwners) > 0;
    Ok(if arguments.expect_two_owners {
        u8::from(!two_owners)
    } else if two_owners {
        3
    } else if tally.failed() > 0 {
        1
    } else if interrupted.load(Ordering::Relaxed) {
        130
    } else {
        0
    })
}

fn campaign(arguments: &Arguments) -> Result<Campaign> {
    let (fabric, has_links) = match (arguments.transport, arguments.address) {
        (Transport::Tcp, _) => (Fabric::Tcp, has_namespaces()),
        (Transport::Rdma, None) => bail!("--transport rdma needs --address"),
        (Transport::Rdma, Some(destination)) => {
            let source = arguments.bind.unwrap_or(destination);
            let ends = Ends {
                source,
                destination,
            };
            let has_wire = arguments.cut_the_wire && Wire::at(destination)?.is_some();
            (Fabric::Rdma(ends), has_wire)
        }
    };
    // There is one wire only.
    let alone = (fabric != Fabric::Tcp && has_links).then_some(1);
    let wants_kvm = !matches!(arguments.guest, Guests::Process);
    let guests = match arguments.guest {
        Guests::Process => vec![GuestKind::Process],
        Guests::Kvm => vec![GuestKind::Kvm],
        Guests::Both => vec![GuestKind::Process, GuestKind::Kvm],
    };
    let has_kvm = wants_kvm && has_kvm();
    let clock = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(1, |time| time.as_secs());
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    Ok(Campaign {
        runs: arguments.runs,
        seed: arguments.seed.unwrap_or(clock),
        jobs: alone.or(arguments.jobs).unwrap_or(processors).max(1),
        fabric,
        guests: guests
            .into_iter()
            .filter(|kind| has_kvm || *kind != GuestKind::Kvm)
            .collect(),
        wanted: arguments.only.clone(),
        has_links,
    })
}

/// What came of a run that is to find two owners: a line, and no files.
fn tell_shortly(outcome: &Outcome) {
    let first = outcome.complaints.first().map_or("", String::as_str);
    let fault = outcome.order.fault;
    eprintln!("{fault}: {}; {first}", outcome.ending.name());
    if let Some(path) = &outcome.kept_at {
        // Nobody looks into what was expected.
        let _ = std::fs::remove_dir_all(path);
    }
}

/// The line that tells how far it is, and the stories of runs that did not pass.
struct Progress {
    runs: usize,
    done: usize,
    failed: usize,
    is_terminal: bool,
}

impl Progress {
    fn new(runs: usize) -> Self {
        Self {
            runs,
            done: 0,
            failed: 0,
            is_terminal: std::io::stderr().is_terminal(),
        }
    }

    fn tell(&mut self, outcome: &Outcome, verbose: bool) {
        self.done += 1;
        let order = outcome.order;
        if !outcome.has_passed() {
            self.failed += 1;
            self.end();
            eprintln!(
                "FAILED {} ({} guest): {}",
                order.fault,
                order.guest.name(),
                outcome.complaints.first().map_or("", String::as_str)
            );
            if let Some(path) = &outcome.kept_at {
                eprintln!("  its files: {}", path.display());
            }
            eprintln!(
                "  again: {} RUNS=1 ARGS=\"--seed {} --guest {} --only {}\"",
                match order.fabric {
                    Fabric::Tcp => "make chaos",
                    Fabric::Rdma(_) => "make softroce-chaos",
                },
                order.seed,
                order.guest.name(),
                order.fault
            );
        }
        if verbose || !outcome.has_passed() {
            self.end();
            eprintln!("  {} ({} guest)", order.fault, order.guest.name());
            for line in &outcome.story {
                eprintln!("  {line}");
            }
        }
        let line = format!(
            "{}/{} runs, {} failed; last: {} {}",
            self.done,
            self.runs,
            self.failed,
            order.fault,
            outcome.ending.name()
        );
        if self.is_terminal {
            eprint!("\r\x1b[K{line}");
            // A progress line that does not show is no harm.
            let _ = std::io::stderr().flush();
        } else if self.done.is_multiple_of(20) {
            eprintln!("{line}");
        }
    }

    /// Leaves the progress line.
    fn end(&self) {
        if self.is_terminal {
            eprint!("\r\x1b[K");
        }
    }
}
