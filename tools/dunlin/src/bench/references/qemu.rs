//! QEMU: an idle guest moves, with the settings of somebody who wants it to be quick. Its memory is
//! filled with bytes that are not zero, as QEMU skips zero pages.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::monitor::Monitor;
use super::{Conditions, LISTEN_MAX, directory, free_port};
use crate::bench::processes::{Process, create, last_words, pause, wait_for};
use crate::bench::results::ReferenceRun;
use crate::bench::{Interrupted, Stop};

/// The program.
pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// The firmware has given up looking for something to start when the guest uses less than this part
/// of a processor.
const IDLE_SHARE: f64 = 0.1;
/// Over so long.
const IDLE_TIME: Duration = Duration::from_millis(500);

/// How long the firmware may take to give up.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// How often it is asked where the move stands.
const ASK_INTERVAL: Duration = Duration::from_millis(20);

/// Moves a guest: over TCP with so many channels, or over RDMA.
pub(super) fn run(
    conditions: &Conditions<'_>,
    channels: Option<u16>,
) -> Result<ReferenceRun, Stop> {
    let directory = directory()?;
    let memory = filled(directory.path(), conditions)?;
    let bytes = conditions.memory_bytes;
    let backing = format!(
        "memory-backend-file,id=memory,size={bytes},share=on,mem-path={}",
        memory.0.display()
    );
    let fresh = format!("memory-backend-memfd,id=memory,size={bytes},share=on");
    let start = |side: &str, memory: &str, more: &[&str]| {
        start(
            directory.path(),
            side,
            memory,
            bytes,
            more,
            conditions.interrupted,
        )
    };
    let (_source, mut from) = start("source", &backing, &[])?;
    let (_destination, mut to) = start("destination", &fresh, &["-incoming", "defer"])?;
    let place = match (channels, &conditions.means.rdma) {
        (None, Ok(place)) => format!("rdma:{}", place.address),
        _ => "tcp:127.0.0.1".to_owned(),
    };
    let uri = format!("{place}:{}", free_port()?);
    for monitor in [&mut from, &mut to] {
        let budget_ms = u64::try_from(conditions.max_blackout.as_millis()).unwrap_or(u64::MAX);
        // A bandwidth of 0 is no limit.
        let mut parameters = json!({ "max-bandwidth": 0, "downtime-limit": budget_ms });
        if let Some(channels) = channels {
            let capabilities = json!([{ "capability": "multifd", "state": true }]);
            monitor.execute(
                "migrate-set-capabilities",
                json!({ "capabilities": capabilities }),
            )?;
            if let Some(object) = parameters.as_object_mut() {
                object.insert("multifd-channels".to_owned(), channels.into());
            }
        }
        monitor.execute("migrate-set-parameters", parameters)?;
    }
    to.execute("migrate-incoming", json!({ "uri": uri }))?;
    wait_until_idle(&mut from, conditions.interrupted)?;
    from.execute("migrate", json!({ "uri": uri }))?;
    let told = completed(&mut from, conditions)?;
    outcome(&told, bytes)
}

/// What QEMU tells of a move, as a run. It tells milliseconds.
fn outcome(told: &Value, bytes: u64) -> Result<ReferenceRun, Stop> {
    let milliseconds = |name: &str| {
        let value = told.get(name).and_then(Value::as_u64);
        value.ok_or_else(|| Stop::Failed(format!("QEMU tells no {name}")))
    };
    let total_ms = milliseconds("total-time")?;
    let copying_ms = total_ms.saturating_sub(milliseconds("setup-time")?).max(1);
    Ok(ReferenceRun {
        goodput_bytes_per_s: Some((bytes as f64 / (copying_ms as f64 / 1e3)) as u64),
        total_ns: Some(total_ms * 1_000_000),
        blackout_ns: Some(milliseconds("downtime")? * 1_000_000),
        ..ReferenceRun::default()
    })
}

/// A file in memory, full of bytes that do not repeat from page to page.
fn filled(directory: &Path, conditions: &Conditions<'_>) -> Result<MemoryFile, Stop> {
    // Where /dev/shm is too small, QEMU says so.
    let shared = Path::new("/dev/shm");
    let path = match shared.is_dir() {
        true => shared.join(directory.file_name().unwrap_or_default()),
        false => directory.join("memory"),
    };
    let file = MemoryFile(path.clone());
    let mut output = create(&path)?;
    const PIECE_BYTES: usize = 1 << 20;
    let mut piece = vec![0_u8; PIECE_BYTES];
    let mut number = 1_u64;
    let mut left = conditions.memory_bytes;
    while left > 0 {
        for word in piece.chunks_exact_mut(8) {
            number = number
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            word.copy_from_slice(&number.to_le_bytes());
        }
        let length = left.min(PIECE_BYTES as u64);
        output
            .write_all(piece.get(..length as usize).unwrap_or(&piece))
            .map_err(|error| Stop::failed("QEMU's memory", error))?;
        left -= length;
        if (conditions.interrupted)() {
            return Err(Stop::Interrupted);
        }
    }
    Ok(file)
}

/// A file that is gone with this value.
struct MemoryFile(PathBuf);

impl Drop for MemoryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Starts one side.
fn start(
    directory: &Path,
    side: &str,
    memory: &str,
    bytes: u64,
    more: &[&str],
    interrupted: Interrupted<'_>,
) -> Result<(Process, Monitor), Stop> {
    let socket = directory.join(side);
    let log = directory.join(format!("{side}.log"));
    let output = create(&log)?;
    let errors = output
        .try_clone()
        .map_err(|error| Stop::failed("a temporary file", error))?;
    let mut command = Command::new(PROGRAM);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-accel", "kvm", "-smp", "1", "-object", memory])
        .args(["-machine", "pc,memory-backend=memory"])
        .args(["-m", &format!("{}M", bytes >> 20)])
        .args([
            "-qmp",
            &format!("unix:{},server=on,wait=off", socket.display()),
        ])
        .args(more)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors);
    let mut process = Process::start(&mut command)?;
    let mut monitor = None;
    wait_for("QEMU's monitor", LISTEN_MAX, interrupted, || {
        if process.ended().is_some() {
            return Err(Stop::failed("QEMU ended", last_words(&log)));
        }
        monitor = Monitor::connect(&socket).ok();
        Ok(monitor.is_some())
    })?;
    let monitor = monitor.ok_or_else(|| Stop::Failed("QEMU has no monitor".to_owned()))?;
    Ok((process, monitor))
}

/// Waits until the guest's processor sleeps.
fn wait_until_idle(monitor: &mut Monitor, interrupted: Interrupted<'_>) -> Result<(), Stop> {
    let cpus = monitor.execute("query-cpus-fast", json!({}))?;
    let thread = cpus
        .pointer("/0/thread-id")
        .and_then(Value::as_u64)
        .ok_or_else(|| Stop::Failed("QEMU names no thread".to_owned()))?;
    let run_ns = || {
        let text = std::fs::read_to_string(format!("/proc/{thread}/schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    wait_for("QEMU's guest to be idle", IDLE_MAX, interrupted, || {
        let before = run_ns();
        pause(IDLE_TIME, interrupted)?;
        let (Some(before), Some(after)) = (before, run_ns()) else {
            return Err(Stop::Failed("QEMU's guest has ended".to_owned()));
        };
        let share = after.saturating_sub(before) as f64 / IDLE_TIME.as_nanos() as f64;
        Ok(before > 0 && share < IDLE_SHARE)
    })
}

/// Waits for the move's end, and gives what QEMU tells of it.
fn completed(monitor: &mut Monitor, conditions: &Conditions<'_>) -> Result<Value, Stop> {
    let mut told = Value::Null;
    wait_for(
        "QEMU's move",
        conditions.limit,
        conditions.interrupted,
        || {
            told = monitor.execute("query-migrate", json!({}))?;
            match told.get("status").and_then(Value::as_str) {
                Some("completed") => Ok(true),
                Some(status @ ("failed" | "cancelled")) => {
                    let words = told.get("error-desc").and_then(Value::as_str);
                    Err(Stop::failed(
                        format!("QEMU's move {status}"),
                        words.unwrap_or_default(),
                    ))
                }
                _ => {
                    pause(ASK_INTERVAL, conditions.interrupted)?;
                    Ok(false)
                }
            }
        },
    )?;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_qemu_tells_becomes_a_run() {
        let told =
            json!({"status": "completed", "total-time": 1100, "setup-time": 100, "downtime": 300});
        let run = outcome(&told, 1 << 30).unwrap();
        assert_eq!(run.goodput_bytes_per_s, Some(1 << 30));
        assert_eq!(
            (run.total_ns, run.blackout_ns),
            (Some(1_100_000_000), Some(300_000_000))
        );
        assert!(outcome(&json!({"total-time": 1}), 1).is_err());
    }
}
