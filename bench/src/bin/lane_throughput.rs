//! Measures how fast TCP lanes move memory between two endpoints of this process, over loopback:
//! no guest, no zero scan, no dirty tracking. Memory on both sides is touched before. Several ways to
//! send take turns, pass by pass.

use std::num::NonZeroU16;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Parser, ValueEnum};
use dunlin_bench::Contents;
use dunlin_engine::chunk::CHUNK_PAGES;
use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::{
    DestinationEndpoint as _, LaneCounters, LaneNumber, LaneTicket, LaneToken, SessionId,
    SourceEndpoint as _, SourceLane,
};
use dunlin_transports::memory::{
    HostMapping, MemoryMap, OwnedMapping, PAGE_BYTES, PageNumber, Run,
};
use dunlin_transports::tcp::{
    Compression, DestinationEndpoint, IncomingLane, Mechanism, Options, SourceEndpoint, ZeroCopy,
    listen, read_preamble,
};

/// For everything that could wait here.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a lane may wait for its turn.
const IDLENESS_MAX: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MechanismName {
    Auto,
    IoUring,
    Plain,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ZeroCopyName {
    Auto,
    Off,
    Always,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ContentsName {
    Sparse,
    Text,
    Random,
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
    /// How many passes of each way; the median counts.
    #[arg(long, default_value_t = 5)]
    passes: usize,
    /// How lanes move bytes.
    #[arg(long, value_enum, default_value = "auto")]
    mechanism: MechanismName,
    /// Whether lanes send without a copy of the kernel's; several to compare, as in off,always. On
    /// loopback the kernel copies all the same, so there this shows what it costs and not its gain.
    #[arg(long, value_enum, default_value = "auto", value_delimiter = ',')]
    zero_copy: Vec<ZeroCopyName>,
    /// Bytes in each socket buffer, 0 for what the kernel makes of it; several to compare, as in
    /// 0,1048576,4194304.
    #[arg(long, default_value = "0", value_delimiter = ',')]
    socket_buffer: Vec<u32>,
    /// Bytes in one batch; the transport's own choice when not given.
    #[arg(long)]
    batch: Option<u32>,
    /// Whether and how to compress: off, lz4, zstd, zstd:LEVEL or auto.
    #[arg(long, default_value = "off")]
    compress: Compression,
    /// What the memory holds.
    #[arg(long, value_enum, default_value = "random")]
    contents: ContentsName,
    /// Put every second page only, as runs of one page.
    #[arg(long)]
    scattered: bool,
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
}

/// One way to send, of those that are compared.
struct Way {
    words: String,
    options: Options,
}

/// Both ends of the lanes that go one way.
struct Lanes {
    words: String,
    source: SourceEndpoint,
    lanes: Vec<Box<dyn SourceLane>>,
    servers: Vec<JoinHandle<Option<LaneCounters>>>,
    /// Gigabytes a second, pass by pass.
    rates: Vec<f64>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let contents = match arguments.contents {
        ContentsName::Sparse => Contents::Sparse,
        ContentsName::Text => Contents::Text,
        ContentsName::Random => Contents::Random,
    };
    let source_memory = touched_memory(arguments.bytes, contents)?;
    let destination_memory = touched_memory(arguments.bytes, contents)?;
    let runs = runs(&source_memory, arguments.scattered);
    let bytes: u64 = runs.iter().flatten().map(|run| run.bytes()).sum();
    let ways = ways(&arguments);
    let mut all = Vec::new();
    for way in ways {
        let memories = (source_memory.clone(), destination_memory.clone());
        all.push(Lanes::open(way, &arguments, memories)?);
    }
    // In turns, beginning with another each time, so that what else this machine does meets all.
    for number in 0..arguments.passes {
        let begin = number % all.len().max(1);
        let (last, first) = all.split_at_mut(begin);
        for lanes in first.iter_mut().chain(last) {
            let begun = Instant::now();
            pass(&mut lanes.lanes, &runs)?;
            let rate = bytes as f64 / begun.elapsed().as_secs_f64() / 1e9;
            lanes.rates.push(rate);
        }
    }
    for lanes in all {
        lanes.report(&arguments, bytes * arguments.passes as u64)?;
    }
    Ok(())
}

/// Each choice with each other.
fn ways(arguments: &Arguments) -> Vec<Way> {
    let mut ways = Vec::new();
    for zero_copy in &arguments.zero_copy {
        for socket_buffer in &arguments.socket_buffer {
            let mut options = Options {
                mechanism: match arguments.mechanism {
                    MechanismName::Auto => Mechanism::Auto,
                    MechanismName::IoUring => Mechanism::IoUring,
                    MechanismName::Plain => Mechanism::Plain,
                },
                zero_copy: match zero_copy {
                    ZeroCopyName::Auto => ZeroCopy::Auto,
                    ZeroCopyName::Off => ZeroCopy::Off,
                    ZeroCopyName::Always => ZeroCopy::Always,
                },
                compression: arguments.compress,
                socket_buffer_bytes: (*socket_buffer > 0).then_some(*socket_buffer),
                ..Options::default()
            };
            if let Some(batch) = arguments.batch {
                options.batch_bytes = batch;
            }
            let buffers = match options.socket_buffer_bytes {
                None => "by the kernel".to_owned(),
                Some(bytes) => format!("{} KiB", bytes >> 10),
            };
            ways.push(Way {
                words: format!("zero-copy {zero_copy:?}, socket buffers {buffers}"),
                options,
            });
        }
    }
    ways
}

impl Lanes {
    /// Connects over memory of both sides.
    fn open(
        way: Way,
        arguments: &Arguments,
        (source_memory, destination_memory): (MemoryMap, MemoryMap),
    ) -> anyhow::Result<Self> {
        let Way { words, options } = way;
        let listener = listen(&arguments.listen, &options).context("listening")?;
        let (lanes_in, incoming) = mpsc::channel();
        let peer = listener.local_addr()?;
        let count = arguments.lanes.get();
        let accepting = std::thread::spawn(move || -> anyhow::Result<()> {
            for _ in 0..count {
                let (stream, _) = listener.accept()?;
                let preamble = read_preamble(&stream, Deadline::after(PATIENCE))?;
                lanes_in.send(IncomingLane { stream, preamble })?;
            }
            Ok(())
        });
        let source = SourceEndpoint::new(peer, source_memory.clone(), options.clone());
        let destination = DestinationEndpoint::new(destination_memory, incoming, options);
        for range in source_memory.whole() {
            source.prepare(range)?;
            source.accept_grants(&[destination.prepare(range)?])?;
        }
        let tickets: Vec<_> = (0..count).map(ticket).collect();
        let mut lanes = Vec::new();
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
            lanes.push(opened?);
            let mut lane = accepted?;
            servers.push(std::thread::spawn(move || {
                // Idle while others have their turn.
                while lane.next_fence(Deadline::after(IDLENESS_MAX)).is_ok() {}
                lane.counters()
            }));
        }
        let Ok(accepted) = accepting.join() else {
            bail!("the accepting thread died");
        };
        accepted?;
        Ok(Self {
            words,
            source,
            lanes,
            servers,
            rates: Vec::new(),
        })
    }

    /// Ends the lanes, and prints how they did with so many bytes of memory in all passes.
    fn report(mut self, arguments: &Arguments, payload: u64) -> anyhow::Result<()> {
        self.rates.sort_by(f64::total_cmp);
        let median = self.rates.get(self.rates.len() / 2);
        let counters = self.lanes.iter().map(|lane| lane.counters());
        let sent: u64 = counters.clone().map(|lane| lane.submissions).sum();
        let wire: u64 = counters.clone().map(|lane| lane.wire_bytes).sum();
        let uncopied: u64 = counters.clone().map(|lane| lane.zero_copy_bytes).sum();
        let compressed: u64 = counters.clone().map(|lane| lane.compressed_bytes).sum();
        let compressing: Duration = counters.map(|lane| lane.compressing).sum();
        drop(self.lanes);
        let mut received = 0;
        let mut decompressing = Duration::ZERO;
        for server in self.servers {
            let Ok(counters) = server.join() else {
                bail!("a receiving thread died");
            };
            if let Some(counters) = counters {
                received += counters.submissions;
                decompressing += counters.compressing;
            }
        }
        let batch = arguments.batch.unwrap_or(Options::default().batch_bytes);
        let gibibytes = payload as f64 / f64::from(1 << 30);
        println!(
            "{} · {} · {} lanes · batch {} KiB · {:.2} GB/s median of {} ({:.2} to {:.2}) · system \
             calls per GiB: {:.0} sending, {:.0} receiving · {:.1} % sent by zero-copy calls",
            self.words,
            self.source.mechanism(),
            arguments.lanes,
            batch >> 10,
            median.copied().unwrap_or_default(),
            arguments.passes,
            self.rates.first().copied().unwrap_or_default(),
            self.rates.last().copied().unwrap_or_default(),
            sent as f64 / gibibytes,
            received as f64 / gibibytes,
            uncopied as f64 * 100.0 / wire.max(1) as f64,
        );
        if arguments.compress != Compression::Off {
            println!(
                "{:.1} % of the pages' bytes on the wire · {:.1} % of the pages compressed · {:.0} \
                 ms a GiB compressing, {:.0} ms decompressing",
                wire as f64 * 100.0 / payload as f64,
                compressed as f64 * 100.0 / payload as f64,
                compressing.as_secs_f64() * 1e3 / gibibytes,
                decompressing.as_secs_f64() * 1e3 / gibibytes,
            );
        }
        Ok(())
    }
}

/// Memory filled with pieces of 1 MiB, of which there are 16 different ones.
fn touched_memory(bytes: u64, contents: Contents) -> anyhow::Result<MemoryMap> {
    const PIECE_PAGES: u32 = (1 << 20) / PAGE_BYTES as u32;
    let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(bytes)?);
    let memory = MemoryMap::new(vec![mapping])?;
    let pieces: Vec<_> = (0..16).map(|seed| contents.bytes(1 << 20, seed)).collect();
    let mut pieces = pieces.iter().cycle();
    for run in memory.whole() {
        for skipped in (0..run.pages).step_by(PIECE_PAGES as usize) {
            let piece = Run {
                first: PageNumber(run.first.0 + u64::from(skipped)),
                pages: PIECE_PAGES.min(run.pages - skipped),
            };
            let bytes = pieces
                .next()
                .and_then(|bytes| bytes.get(..piece.bytes() as usize));
            memory.copy_in(piece, bytes.unwrap_or_default())?;
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
