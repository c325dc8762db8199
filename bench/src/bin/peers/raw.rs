//! The row that does nothing but send, and the search for its best settings.

use std::path::Path;
use std::{fmt, fs};

use anyhow::{Context, bail};
use dunlin_bench::ends::Ends;
use dunlin_bench::program::{Program, output_of, wait_for};
use dunlin_bench::usage::{Cpu, Usage};
use serde::Serialize;
use serde_json::Value;

use crate::results::Outcome;

/// What goes through one call, and sockets' buffers, that are tried; 0: as the kernel likes.
const BUFFERS: [usize; 3] = [128 << 10, 1 << 20, 4 << 20];
const SOCKET_BUFFERS: [usize; 2] = [0, 4 << 20];

/// How fresh memory is had, that are tried: private, or in a file as guests have theirs.
const FRESH: [&str; 3] = ["small", "huge", "populated"];
const FRESH_OF_GUESTS: [&str; 3] = ["guest-small", "guest-huge", "guest-populated"];

/// What the memory is that bytes arrive in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Each page was written before.
    Touched,
    /// None was: the best of private ones.
    Fresh,
    /// None was: the best of those that are had as a guest has its memory.
    FreshOfGuests,
}

impl fmt::Display for Memory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Touched => "touched",
            Self::Fresh => "fresh",
            Self::FreshOfGuests => "fresh as a guest's",
        })
    }
}

/// How much is sent in a trial into touched memory, and how often it is tried: the best of them
/// counts, as what disturbs a trial only makes it slower. Into fresh memory all is sent, once: a host
/// may have some of it at hand, so that less would say nothing of all.
const TRIAL_BYTES: u64 = 512 << 20;
const TRIALS: u32 = 2;

/// How the program is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Settings {
    pub(crate) streams: u32,
    pub(crate) memory: &'static str,
    pub(crate) buffer_bytes: usize,
    pub(crate) socket_buffer_bytes: usize,
}

/// What was tried, and how fast it was, in bytes a second.
pub(crate) type Trial = (Settings, f64);

/// The best settings for so many streams to send `bytes` into such memory. `touched`: those that
/// were the best for touched memory; what sockets' buffers gain is the same for both.
pub(crate) fn search(
    program: &Path,
    ends: &Ends,
    directory: &Path,
    (streams, memory): (u32, Memory),
    touched: Option<&Settings>,
    bytes: u64,
) -> anyhow::Result<Trial> {
    let memories: &[&'static str] = match memory {
        Memory::Touched => &["touched"],
        Memory::Fresh => &FRESH,
        Memory::FreshOfGuests => &FRESH_OF_GUESTS,
    };
    let (socket_buffers, bytes, trials) = match (memory, touched) {
        (Memory::Touched, _) => (SOCKET_BUFFERS.to_vec(), TRIAL_BYTES, TRIALS),
        (_, Some(touched)) => (vec![touched.socket_buffer_bytes], bytes, 1),
        (_, None) => (vec![0], bytes, 1),
    };
    let mut candidates = Vec::new();
    for memory in memories {
        for buffer_bytes in BUFFERS {
            for socket_buffer_bytes in socket_buffers.iter().copied() {
                candidates.push(Settings {
                    streams,
                    memory,
                    buffer_bytes,
                    socket_buffer_bytes,
                });
            }
        }
    }
    let mut best: Option<Trial> = None;
    for _ in 0..trials {
        for settings in &candidates {
            let outcome = run(program, ends, directory, settings, bytes)?;
            if best
                .as_ref()
                .is_none_or(|(_, most)| outcome.goodput > *most)
            {
                best = Some((settings.clone(), outcome.goodput));
            }
        }
    }
    best.context("nothing was tried")
}

/// Sends so many bytes.
pub(crate) fn run(
    program: &Path,
    ends: &Ends,
    directory: &Path,
    settings: &Settings,
    bytes: u64,
) -> anyhow::Result<Outcome> {
    let shared = [
        ("--bytes", bytes.to_string()),
        ("--streams", settings.streams.to_string()),
        ("--buffer", settings.buffer_bytes.to_string()),
        ("--socket-buffer", settings.socket_buffer_bytes.to_string()),
    ];
    let shared = shared
        .iter()
        .flat_map(|(name, value)| [*name, value.as_str()]);
    let log = directory.join("receive.out");
    let mut receiver = ends.destination.command(program);
    receiver.args(["receive", "--memory", settings.memory]);
    receiver.args(["--listen", &format!("{}:0", ends.destination.address)]);
    receiver
        .args(shared.clone())
        .stdout(fs::File::create(&log)?);
    let mut receiver = Program::start(&mut receiver)?;
    let mut address = None;
    wait_for("raw_socket receive", || {
        if receiver.has_ended() {
            bail!("it ended");
        }
        address = event(&log, "listening").and_then(|value| Some(value.as_str()?.to_owned()));
        Ok(address.is_some())
    })?;
    let mut sender = ends.source.command(program);
    sender.args(["send", "--to", &address.context("no address")?]);
    let said = output_of(sender.args(shared))?;
    receiver.succeed()?;
    let said: Value = serde_json::from_str(&said)?;
    let seconds = said["seconds"].as_f64().context("no time")?;
    let cpu = |value: Option<f64>| Cpu {
        user_s: 0.0,
        system_s: value.unwrap_or(0.0),
    };
    let usage = Usage {
        source: cpu(said["cpu_s"].as_f64()),
        destination: cpu(event(&log, "cpu_s").and_then(|value| value.as_f64())),
        ..Usage::default()
    };
    Ok(Outcome::new(bytes, bytes as f64 / seconds, seconds, usage))
}

/// What a line of JSON in a file says under this name.
fn event(log: &Path, name: &str) -> Option<Value> {
    let text = fs::read_to_string(log).ok()?;
    let lines = text.lines();
    let mut events = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.find_map(|event| event.get(name).cloned())
}
