//! What pages that became zero cost, where the destination holds them otherwise: written by RDMA
//! from a range of zeros, as `put_zero` does, or named in a bitmap over control and cleared by one
//! thread of the destination.
//!
//! Both ends are in this process. The first needs an RDMA device of this host, the second none. A
//! device that both ends share is no link: compare its figures with each other, and the second's
//! with the rate of a link.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::{
    DestinationEndpoint as _, DestinationLane, LaneNumber, LaneTicket, LaneToken, SessionId,
    SourceEndpoint as _, SourceLane,
};
use dunlin_transports::memory::{
    HostMapping, MemoryMap, OwnedMapping, PAGE_BYTES, PageNumber, Run,
};
use dunlin_transports::rdma::{self, DestinationEndpoint, Options, SourceEndpoint};

/// For everything that could wait here.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a lane puts at once, as in a move: 2 MiB.
const CHUNK_PAGES: u64 = 512;

const MIB: u64 = 1 << 20;

/// Written before a pass that clears, so that no cache holds what is cleared, as none would in a
/// move: more than the caches of most processors.
const EVICTING_BYTES: usize = 256 << 20;

/// Measures what pages of zeros cost.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// How much memory becomes zero in each pass, in MiB.
    #[arg(long, default_value_t = 64)]
    mebibytes: u64,
    /// How many passes; the median counts.
    #[arg(long, default_value_t = 9)]
    passes: usize,
    /// The address of the RDMA device at which both ends are; the first one found, without.
    #[arg(long)]
    address: Option<IpAddr>,
}

/// What became zero: all pages of a stretch, or every second one of a stretch twice as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Contiguous,
    Scattered,
}

impl Shape {
    /// How many pages lie between one that became zero and the next.
    fn step(self) -> u64 {
        match self {
            Self::Contiguous => 1,
            Self::Scattered => 2,
        }
    }

    /// For each chunk the runs that became zero.
    fn chunks(self, pages: u64) -> Vec<Vec<Run>> {
        let run = |first, pages| Run {
            first: PageNumber(first),
            pages,
        };
        let of_chunk = |first: u64| {
            let end = (first + CHUNK_PAGES).min(pages * self.step());
            match self {
                Self::Contiguous => vec![run(first, (end - first) as u32)],
                Self::Scattered => (first..end).step_by(2).map(|page| run(page, 1)).collect(),
            }
        };
        let firsts = (0..pages * self.step()).step_by(CHUNK_PAGES as usize);
        firsts.map(of_chunk).collect()
    }
}

/// What one way cost.
struct Cost {
    micros: Vec<f64>,
    mebibytes: u64,
}

impl Cost {
    /// Microseconds for each MiB: the median, the least and the most.
    fn per_mebibyte(&self) -> [f64; 3] {
        let mut each = self.micros.clone();
        each.sort_by(f64::total_cmp);
        let at = |index: usize| each.get(index).copied().unwrap_or_default();
        [at(each.len() / 2), at(0), at(each.len().saturating_sub(1))]
            .map(|micros| micros / self.mebibytes as f64)
    }

    fn say(&self, way: &str, shape: Shape, work: &str) {
        let [median, least, most] = self.per_mebibyte();
        let rate = MIB as f64 / median / 1e3;
        println!(
            "{way} · {shape:?} · {median:.1} µs per MiB ({least:.1} to {most:.1}) = {rate:.2} GB/s \
             · per MiB: {work}"
        );
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let pages = arguments.mebibytes * MIB / PAGE_BYTES;
    ensure!(pages > 0 && arguments.passes > 0, "nothing to measure");
    for shape in [Shape::Contiguous, Shape::Scattered] {
        clear(shape, pages, &arguments).context("clearing")?;
    }
    let found = rdma::addresses().map_err(|error| error.to_string());
    let found = found.map(|found| {
        let is_wanted =
            |address: &IpAddr| arguments.address.is_none_or(|wanted| wanted == *address);
        found.into_iter().map(|found| found.address).find(is_wanted)
    });
    match found {
        Ok(Some(address)) => {
            for shape in [Shape::Contiguous, Shape::Scattered] {
                write_zeros(shape, pages, address, &arguments).context("writing")?;
            }
        }
        Ok(None) => println!("skipped: no RDMA device with that address"),
        Err(error) => println!("skipped: {error}"),
    }
    Ok(())
}

/// A bitmap goes over control, one thread clears what it names and answers.
fn clear(shape: Shape, pages: u64, arguments: &Arguments) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut source = TcpStream::connect(listener.local_addr()?)?;
    let (mut destination, _) = listener.accept()?;
    source.set_nodelay(true)?;
    destination.set_nodelay(true)?;
    let span = pages * shape.step();
    let mut bitmap = vec![0_u8; span.div_ceil(8) as usize];
    for page in (0..span).step_by(shape.step() as usize) {
        if let Some(byte) = bitmap.get_mut((page / 8) as usize) {
            *byte |= 1 << (page % 8);
        }
    }
    let length = bitmap.len();
    let passes = arguments.passes;
    let clearing = std::thread::spawn(move || -> anyhow::Result<Duration> {
        let mut memory = vec![0x5a_u8; (span * PAGE_BYTES) as usize];
        let mut evicting = vec![0_u8; EVICTING_BYTES];
        let mut named = vec![0; length];
        let mut busy = Duration::ZERO;
        for pass in 0..passes {
            memory.fill(0x5a);
            evicting.fill(pass as u8);
            std::hint::black_box(&mut evicting);
            destination.write_all(&[1])?;
            destination.read_exact(&mut named)?;
            let begun = Instant::now();
            let zeros = clear_named(&mut memory, &named);
            busy += begun.elapsed();
            ensure!(zeros == pages, "{zeros} pages were named, not {pages}");
            destination.write_all(&[2])?;
        }
        Ok(busy)
    });
    let mut cost = Cost {
        micros: Vec::new(),
        mebibytes: arguments.mebibytes,
    };
    let mut word = [0];
    for _ in 0..passes {
        source.read_exact(&mut word)?;
        let begun = Instant::now();
        source.write_all(&bitmap)?;
        source.read_exact(&mut word)?;
        cost.micros.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    let Ok(busy) = clearing.join() else {
        bail!("the clearing thread died");
    };
    let busy = busy?.as_secs_f64() * 1e6 / (passes as u64 * arguments.mebibytes) as f64;
    let named = length as f64 / arguments.mebibytes as f64;
    let work = format!("{named:.0} bytes of bitmap, {busy:.1} µs of the destination's processor");
    cost.say("bitmap over control", shape, &work);
    Ok(())
}

/// Clears the pages that a bitmap names; returns how many there were.
fn clear_named(memory: &mut [u8], named: &[u8]) -> u64 {
    let mut cleared = 0;
    let pages = memory.chunks_exact_mut(PAGE_BYTES as usize);
    for (number, page) in pages.enumerate() {
        let byte = named.get(number / 8).copied().unwrap_or_default();
        if byte & (1 << (number % 8)) != 0 {
            page.fill(0);
            cleared += 1;
        }
    }
    std::hint::black_box(memory);
    cleared
}

fn filled_memory(pages: u64) -> anyhow::Result<MemoryMap> {
    let mapping: Arc<dyn HostMapping> = Arc::new(OwnedMapping::new(pages * PAGE_BYTES)?);
    let memory = MemoryMap::new(vec![mapping])?;
    fill(&memory)?;
    Ok(memory)
}

fn fill(memory: &MemoryMap) -> anyhow::Result<()> {
    let page = [0x5a; PAGE_BYTES as usize];
    for run in memory.whole() {
        for number in run.first.0..run.end().0 {
            let first = PageNumber(number);
            memory.copy_in(Run { first, pages: 1 }, &page)?;
        }
    }
    Ok(())
}

/// `put_zero` on one lane, up to the word for its fence.
fn write_zeros(
    shape: Shape,
    pages: u64,
    address: IpAddr,
    arguments: &Arguments,
) -> anyhow::Result<()> {
    let span = pages * shape.step();
    let (from, to) = (filled_memory(span)?, filled_memory(span)?);
    let control = SocketAddr::new(address, 0);
    let options = Options {
        bind: Some(address),
        ..Options::default()
    };
    let destination = DestinationEndpoint::new(control, to.clone(), options.clone())?;
    let source = SourceEndpoint::new(control, from.clone(), options)?;
    source.accept_contact(&destination.contact())?;
    let ticket = LaneTicket {
        session: SessionId([1; 16]),
        number: LaneNumber(0),
        token: LaneToken([2; 32]),
    };
    let (opened, accepted) = std::thread::scope(|scope| {
        let opening = scope.spawn(|| source.open_lane(&ticket, Deadline::after(PATIENCE)));
        let tickets = std::slice::from_ref(&ticket);
        let accepted = destination.accept_lane(tickets, Deadline::after(PATIENCE));
        (opening.join(), accepted)
    });
    let Ok(opened) = opened else {
        bail!("the opening thread died");
    };
    let mut lane: Box<dyn SourceLane> = opened?;
    let mut other: Box<dyn DestinationLane> = accepted?;
    destination.confirm(lane.number(), &lane.identity())?;
    for range in from.whole() {
        source.prepare(range)?;
        source.accept_grants(&[destination.prepare(range)?])?;
    }
    let serving = std::thread::spawn(
        move || {
            while other.next_fence(Deadline::after(PATIENCE)).is_ok() {}
        },
    );
    let chunks = shape.chunks(pages);
    let mut cost = Cost {
        micros: Vec::new(),
        mebibytes: arguments.mebibytes,
    };
    for _ in 0..arguments.passes {
        fill(&to)?;
        let begun = Instant::now();
        for chunk in &chunks {
            lane.put_zero(chunk)?;
        }
        let fence = lane.fence()?;
        lane.wait_fence(fence, PATIENCE)?;
        cost.micros.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    let device = lane.device_counters();
    let wire = lane.counters().wire_bytes;
    drop(lane);
    ensure!(serving.join().is_ok(), "the receiving thread died");
    let mut page = [1; PAGE_BYTES as usize];
    for run in chunks.iter().flatten() {
        to.copy_out(Run { pages: 1, ..*run }, &mut page)?;
        ensure!(
            page.iter().all(|byte| *byte == 0),
            "{} is not zero",
            run.first
        );
    }
    let each = |count: u64| count as f64 / (arguments.passes as u64 * arguments.mebibytes) as f64;
    let work = format!(
        "{:.2} requests, {:.2} doorbells, {:.2} completions, {:.3} MiB on the wire, none of the \
         destination's processor",
        each(device.work_requests),
        each(device.doorbells),
        each(device.completions),
        each(wire) / MIB as f64,
    );
    let way = format!("writes over {}", source.mechanism());
    cost.say(&way, shape, &work);
    Ok(())
}
