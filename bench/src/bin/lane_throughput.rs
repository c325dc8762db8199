//! Measures how fast TCP lanes move memory between two endpoints of this process, over loopback:
//! no guest, no zero scan, no dirty tracking. Memory on both sides is touched before.

use std::num::NonZeroU16;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Parser, ValueEnum};
use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::{
    DestinationEndpoint as _, LaneNumber, LaneTicket, LaneToken, SessionId, SourceEndpoint as _,
    SourceLane,
};
use dunlin_transports::memory::{
    HostMapping, MemoryMap, OwnedMapping, PAGE_BYTES, PageNumber, Run,
};
use dunlin_transports::tcp::{
    DestinationEndpoint, IncomingLane, Mechanism, Options, SourceEndpoint, listen, read_preamble,
};

/// For everything that could wait here.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a lane claims at once, as in a move: 4 MiB.
const CHUNK_PAGES: u32 = 1024;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MechanismName {
    Auto,
    IoUring,
    Plain,
}

/// Measures the throughput of TCP lanes over loopback.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// How many lanes, each with a thread on both sides.
    #[arg(long, default_value = "1")]
    lanes: NonZeroU16,
    /// How many bytes to move in each pass.
    #[arg(long, default_value_t = 1 << 30)]
    bytes: u64,
    /// How many passes; the median counts.
    #[arg(long, default_value_t = 5)]
    passes: usize,
    /// How lanes move bytes.
    #[arg(long, value_enum, default_value = "auto")]
    mechanism: MechanismName,
    /// Bytes in one batch; the transport's own choice when not given.
    #[arg(long)]
    batch: Option<u32>,
    /// Put every second page only, as runs of one page.
    #[arg(long)]
    scattered: bool,
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut options = Options {
        mechanism: match arguments.mechanism {
            MechanismName::Auto => Mechanism::Auto,
            MechanismName::IoUring => Mechanism::IoUring,
            MechanismName::Plain => Mechanism::Plain,
        },
        ..Options::default()
    };
    if let Some(batch) = arguments.batch {
        options.batch_bytes = batch;
    }
    let listener = listen(&arguments.listen, &options).context("listening")?;
    let (lanes_in, incoming) = mpsc::channel();
    let peer = listener.local_addr()?;
    let lanes = arguments.lanes.get();
    let accepting = std::thread::spawn(move || -> anyhow::Result<()> {
        for _ in 0..lanes {
            let (stream, _) = listener.accept()?;
            let preamble = read_preamble(&stream, Deadline::after(PATIENCE))?;
            lanes_in.send(IncomingLane { stream, preamble })?;
        }
        Ok(())
    });

    let source_memory = touched_memory(arguments.bytes)?;
    let destination_memory = touched_memory(arguments.bytes)?;
    let source = SourceEndpoint::new(peer, source_memory.clone(), options.clone());
    let destination = DestinationEndpoint::new(destination_memory, incoming, options.clone());
    for range in source_memory.whole() {
        source.prepare(range)?;
        source.accept_grants(&[destination.prepare(range)?])?;
    }
    let tickets: Vec<_> = (0..lanes).map(ticket).collect();
    let mut source_lanes = Vec::new();
    let mut servers = Vec::new();
    for ticket in &tickets {
        let (opened, accepted) = std::thread::scope(|scope| {
            let opening = scope.spawn(|| source.open_lane(ticket, Deadline::after(PATIENCE)));
            let accepted = destination.accept_lane(&tickets, Deadline::after(PATIENCE));
            (opening.join(), accepted)
        });
        let Ok(opened) = opened else {
            bail!("the opening thread died");
        };
        source_lanes.push(opened?);
        let mut lane = accepted?;
        servers.push(std::thread::spawn(move || {
            while lane.next_fence(Deadline::after(PATIENCE)).is_ok() {}
            lane.counters()
        }));
    }

    let runs = runs(&source_memory, arguments.scattered);
    let bytes: u64 = runs.iter().flatten().map(|run| run.bytes()).sum();
    let mut rates = Vec::new();
    for _ in 0..arguments.passes {
        let begun = Instant::now();
        pass(&mut source_lanes, &runs)?;
        rates.push(bytes as f64 / begun.elapsed().as_secs_f64() / 1e9);
    }
    rates.sort_by(f64::total_cmp);
    let median = rates.get(rates.len() / 2).copied().unwrap_or_default();
    let sent: u64 = source_lanes
        .iter()
        .map(|lane| lane.counters().submissions)
        .sum();
    drop(source_lanes);
    let mut received = 0;
    for server in servers {
        let Ok(counters) = server.join() else {
            bail!("a receiving thread died");
        };
        received += counters.map_or(0, |counters| counters.submissions);
    }
    let Ok(accepted) = accepting.join() else {
        bail!("the accepting thread died");
    };
    accepted?;
    let gibibytes = (bytes * arguments.passes as u64) as f64 / f64::from(1 << 30);
    println!(
        "{} · {} lanes · batch {} KiB · {:.2} GB/s median of {} ({:.2} to {:.2}) · system calls \
         per GiB: {:.0} sending, {:.0} receiving",
        source.mechanism(),
        lanes,
        options.batch_bytes >> 10,
        median,
        arguments.passes,
        rates.first().copied().unwrap_or_default(),
        rates.last().copied().unwrap_or_default(),
        sent as f64 / gibibytes,
        received as f64 / gibibytes,
    );
    Ok(())
}

fn touched_memory(bytes: u64) -> anyhow::Result<MemoryMap> {
    let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(bytes)?);
    let memory = MemoryMap::new(vec![mapping])?;
    let page = [0x5a; PAGE_BYTES as usize];
    for run in memory.whole() {
        for number in run.first.0..run.end().0 {
            let first = PageNumber(number);
            memory.copy_in(Run { first, pages: 1 }, &page)?;
        }
    }
    Ok(memory)
}

fn ticket(number: u16) -> LaneTicket {
    LaneTicket {
        session: SessionId([1; 16]),
        number: LaneNumber(number),
        token: LaneToken([number as u8 + 1; 32]),
    }
}

/// What is put: for each chunk its runs.
fn runs(memory: &MemoryMap, scattered: bool) -> Vec<Vec<Run>> {
    let mut chunks = Vec::new();
    for region in memory.whole() {
        for skipped in (0..region.pages).step_by(CHUNK_PAGES as usize) {
            let first = region.first.0 + u64::from(skipped);
            let pages = CHUNK_PAGES.min(region.pages - skipped);
            chunks.push(if scattered {
                (first..first + u64::from(pages))
                    .step_by(2)
                    .map(|page| Run {
                        first: PageNumber(page),
                        pages: 1,
                    })
                    .collect()
            } else {
                vec![Run {
                    first: PageNumber(first),
                    pages,
                }]
            });
        }
    }
    chunks
}

/// Puts everything once, the chunks shared out among the lanes, and waits for all fences.
fn pass(lanes: &mut [Box<dyn SourceLane>], chunks: &[Vec<Run>]) -> anyhow::Result<()> {
    let count = lanes.len();
    std::thread::scope(|scope| {
        let senders: Vec<_> = lanes
            .iter_mut()
            .enumerate()
            .map(|(index, lane)| {
                scope.spawn(move || -> anyhow::Result<()> {
                    for chunk in chunks.iter().skip(index).step_by(count) {
                        lane.put(chunk)?;
                    }
                    let fence = lane.fence()?;
                    lane.wait_fence(fence, PATIENCE)?;
                    Ok(())
                })
            })
            .collect();
        for sender in senders {
            let sent = sender.join();
            ensure!(sent.is_ok(), "a sending thread died");
            if let Ok(sent) = sent {
                sent?;
            }
        }
        Ok(())
    })
}
