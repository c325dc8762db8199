//! A program that sends memory over TCP by plain `send` and `recv`, and does nothing else: what a link
//! and a memory can do at best. `make bench-peers` runs it beside Dunlin, as the row 'raw socket'.
//!
//! ```text
//! raw_socket receive --listen 127.0.0.1:0 --bytes N --streams 2 --memory touched
//! raw_socket send --to 127.0.0.1:PORT --bytes N --streams 2
//! ```
//!
//! The memory is shared out evenly: a thread and a connection for each share, which goes through
//! `send` and `recv` in pieces of `--buffer`. Every byte of it is read and written once, as in a
//! guest that moves. Both print a line of JSON when they are ready and one when they are done; the
//! time is the sender's, from all connections being there until the last share is acknowledged.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::slice::from_raw_parts_mut;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use dunlin_bench::usage::own_cpu;
use dunlin_engine::layout::{Backing, GuestAddress, GuestMemory, Layout, RegionShape};
use dunlin_vmm::memory::allocate_for_arrival;
use rustix::net::sockopt::{
    set_socket_recv_buffer_size, set_socket_recv_buffer_size_force, set_socket_send_buffer_size,
    set_socket_send_buffer_size_force,
};
use serde_json::json;

/// For everything that could hang.
const PATIENCE: Duration = Duration::from_secs(60);

const PAGE_BYTES: usize = 4096;

/// Sends memory by plain send and recv.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    side: Side,
}

#[derive(Debug, Subcommand)]
enum Side {
    /// Waits for connections and receives.
    Receive {
        /// Where to listen; port 0 takes a free one.
        #[arg(long)]
        listen: SocketAddr,
        /// What the memory is that bytes arrive in.
        #[arg(long, value_enum)]
        memory: Memory,
        #[command(flatten)]
        transfer: Transfer,
    },
    /// Connects and sends.
    Send {
        /// Where the receiver is.
        #[arg(long)]
        to: SocketAddr,
        #[command(flatten)]
        transfer: Transfer,
    },
}

#[derive(Debug, Args)]
struct Transfer {
    /// How much memory.
    #[arg(long)]
    bytes: usize,
    /// Over how many connections.
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// What goes through one call, in bytes.
    #[arg(long, default_value_t = 1 << 20)]
    buffer: usize,
    /// How large sockets' buffers are, in bytes; 0: as the kernel likes.
    #[arg(long, default_value_t = 0)]
    socket_buffer: usize,
}

/// What the memory is that bytes arrive in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Memory {
    /// Each page was written before.
    Touched,
    /// None was: the kernel gives small pages as bytes arrive.
    Small,
    /// The same, in huge pages.
    Huge,
    /// Small pages that are asked for a buffer at a time, right before it is received into.
    Populated,
    /// As `small`, in a file in memory as Dunlin's guests have theirs, mapped twice.
    GuestSmall,
    /// As `huge`, in such a file.
    GuestHuge,
    /// As `populated`, in such a file.
    GuestPopulated,
}

impl Memory {
    fn is_populated(self) -> bool {
        matches!(self, Self::Populated | Self::GuestPopulated)
    }

    fn is_guest(self) -> bool {
        matches!(
            self,
            Self::GuestSmall | Self::GuestHuge | Self::GuestPopulated
        )
    }
}

/// Memory fresh from the kernel: nothing of it is touched.
enum Allocated {
    /// Private: it is large, so that it is a mapping of its own.
    Private(Vec<u8>),
    /// As a guest's that is about to arrive.
    Guest(GuestMemory),
}

impl Allocated {
    fn new(bytes: usize, memory: Memory) -> anyhow::Result<Self> {
        if !memory.is_guest() {
            return Ok(Self::Private(vec![0_u8; bytes]));
        }
        let shape = RegionShape {
            address: GuestAddress(0),
            bytes: bytes as u64,
            backing: Backing::Memfd,
            backing_page_bytes: PAGE_BYTES as u64,
        };
        let memory = allocate_for_arrival(Layout::new(1, vec![shape])?)?;
        Ok(Self::Guest(memory))
    }

    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Private(bytes) => bytes,
            Self::Guest(memory) => match memory.regions().first() {
                None => &mut [],
                Some(region) => {
                    let mapping = &region.lane_mapping;
                    // SAFETY: the whole mapping, which lives as long as `self` and of which nobody
                    // else knows: there is no guest, and the other mapping is not touched.
                    unsafe { from_raw_parts_mut(mapping.base(), mapping.bytes() as usize) }
                }
            },
        }
    }
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().side {
        Side::Receive {
            listen,
            memory,
            transfer,
        } => receive(listen, memory, &transfer),
        Side::Send { to, transfer } => send(to, &transfer),
    }
}

fn receive(listen: SocketAddr, memory: Memory, transfer: &Transfer) -> anyhow::Result<()> {
    let mut allocated = Allocated::new(transfer.bytes, memory)?;
    let bytes = allocated.bytes();
    advise(bytes, memory);
    if memory == Memory::Touched {
        touch(bytes);
    }
    let listener = TcpListener::bind(listen)?;
    if transfer.socket_buffer > 0 {
        // Before a connection comes: what it offers to take is settled when it does.
        grow(transfer.socket_buffer, &listener);
    }
    tell(&json!({ "listening": listener.local_addr()?.to_string() }))?;
    let mut streams = Vec::new();
    for _ in 0..transfer.streams {
        let (stream, _) = listener.accept()?;
        streams.push(settle(stream, transfer)?);
    }
    let before = own_cpu().total_s();
    let begun = Instant::now();
    each_share(bytes, streams, |share, mut stream| {
        for piece in share.chunks_mut(transfer.buffer) {
            if memory.is_populated() {
                populate(piece);
            }
            let mut filled = 0;
            while filled < piece.len() {
                let came = stream.read(&mut piece[filled..])?;
                ensure!(came > 0, "the sender has gone");
                filled += came;
            }
        }
        Ok(stream.write_all(&[1])?)
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    tell(&json!({ "seconds": seconds, "cpu_s": own_cpu().total_s() - before }))
}

fn send(to: SocketAddr, transfer: &Transfer) -> anyhow::Result<()> {
    let mut bytes = vec![0_u8; transfer.bytes];
    advise(&mut bytes, Memory::Small);
    touch(&mut bytes);
    let mut streams = Vec::new();
    for _ in 0..transfer.streams {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        streams.push(settle(stream, transfer)?);
    }
    let before = own_cpu().total_s();
    let begun = Instant::now();
    each_share(&mut bytes, streams, |share, mut stream| {
        for piece in share.chunks(transfer.buffer) {
            stream.write_all(piece)?;
        }
        Ok(stream.read_exact(&mut [0])?)
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    tell(&json!({ "seconds": seconds, "cpu_s": own_cpu().total_s() - before }))
}

/// Has each connection carry its share of the memory, on a thread of its own.
fn each_share(
    bytes: &mut [u8],
    streams: Vec<TcpStream>,
    carry: impl Fn(&mut [u8], TcpStream) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    let share = bytes.len().div_ceil(streams.len().max(1));
    let share = share.next_multiple_of(PAGE_BYTES);
    let carry = &carry;
    std::thread::scope(|scope| {
        let threads: Vec<_> = bytes
            .chunks_mut(share)
            .zip(streams)
            .map(|(share, stream)| scope.spawn(move || carry(share, stream)))
            .collect();
        for thread in threads {
            match thread.join() {
                Ok(carried) => carried?,
                Err(_) => anyhow::bail!("a thread died"),
            }
        }
        Ok(())
    })
}

fn settle(stream: TcpStream, transfer: &Transfer) -> anyhow::Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    if transfer.socket_buffer > 0 {
        grow(transfer.socket_buffer, &stream);
    }
    Ok(stream)
}

/// Beyond the host's limit where this process may; else up to it.
fn grow(bytes: usize, socket: &impl std::os::fd::AsFd) {
    if set_socket_send_buffer_size_force(socket, bytes).is_err() {
        let _ = set_socket_send_buffer_size(socket, bytes);
    }
    if set_socket_recv_buffer_size_force(socket, bytes).is_err() {
        let _ = set_socket_recv_buffer_size(socket, bytes);
    }
}

/// Writes something else to each page, so that each is memory of its own.
fn touch(bytes: &mut [u8]) {
    for (number, page) in bytes.chunks_mut(PAGE_BYTES).enumerate() {
        page.fill(number as u8 | 1);
    }
}

fn advise(bytes: &mut [u8], memory: Memory) {
    use rustix::mm::{Advice, madvise};
    let advice = match memory {
        Memory::Huge | Memory::GuestHuge => Advice::LinuxHugepage,
        _ => Advice::LinuxNoHugepage,
    };
    let (start, length) = whole_pages(bytes);
    // SAFETY: advice about whole pages inside of a slice that is borrowed exclusively; neither
    // changes contents.
    let _ = unsafe { madvise(start.cast(), length, advice) };
}

fn populate(bytes: &mut [u8]) {
    use rustix::mm::{Advice, madvise};
    let (start, length) = whole_pages(bytes);
    // SAFETY: whole pages inside of a slice that is borrowed exclusively; populating them for
    // writing changes no contents. Where the kernel can't, they come one by one.
    let _ = unsafe { madvise(start.cast(), length, Advice::LinuxPopulateWrite) };
}

/// The whole pages inside of a slice.
fn whole_pages(bytes: &mut [u8]) -> (*mut u8, usize) {
    let skipped = bytes.as_ptr().align_offset(PAGE_BYTES).min(bytes.len());
    let inside = &mut bytes[skipped..];
    let length = inside.len() / PAGE_BYTES * PAGE_BYTES;
    (inside.as_mut_ptr(), length)
}

fn tell(event: &serde_json::Value) -> anyhow::Result<()> {
    let mut output = std::io::stdout();
    writeln!(output, "{event}").context("nobody listens")?;
    Ok(output.flush()?)
}
