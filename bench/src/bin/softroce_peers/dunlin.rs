//! Dunlin: a guest that runs in one process moves into another, as its user would do it.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::programs::{PATIENCE, Program, output_of, wait_for};
use crate::results::{ACK_TIMEOUT, DeviceWork, Outcome, PAUSE_BUDGET_MS};
use crate::runs::{DESTINATION, Run, SOURCE};

/// Memory of the built-in guest that is not random: its first 8 MiB, mostly untouched.
const SYSTEM_AREA_BYTES: u64 = 8 << 20;

/// The guest's name.
const GUEST: &str = "peer";

/// Moves a guest.
pub(crate) fn run(
    run: &mut Run<'_>,
    scheme: &str,
    lanes: u16,
    scattered: bool,
    window: Option<&str>,
) -> anyhow::Result<Outcome> {
    let random_bytes = run.bench.bytes;
    // All of it random, or every other page of twice as much.
    let (memory, workload) = if scattered {
        (2 * random_bytes, "hot=0,zero=50,block=1")
    } else {
        (random_bytes, "hot=0,zero=0")
    };
    let memory = (memory + SYSTEM_AREA_BYTES).to_string();
    let mut guest = host(run, "a", &["run", "--name", GUEST, "--guest", "kvm"]);
    guest.args(["--memory", &memory, "--workload", workload]);
    let log = fs::File::create(run.path("a.log"))?;
    guest.stdout(log.try_clone()?).stderr(log);
    let mut guest = Program::start(&mut guest)?;
    let listen = format!("auto://{DESTINATION}:0");
    let mut receiver = host(run, "b", &["receive", "--json", "--listen", &listen]);
    receiver.stdout(fs::File::create(run.path("b.out"))?);
    let mut receiver = Program::start(receiver.stderr(fs::File::create(run.path("b.log"))?))?;
    let mut port = String::new();
    wait_for("dunlin receive", || {
        if receiver.has_ended() {
            bail!("dunlin receive ended: {}", said(&run.path("b.log")));
        }
        port = listening_port(&run.path("b.out")).unwrap_or_default();
        Ok(!port.is_empty())
    })?;
    wait_for("the guest", || {
        if guest.has_ended() {
            bail!("dunlin run ended: {}", said(&run.path("a.log")));
        }
        Ok(said(&run.path("a.log")).contains(" runs: "))
    })?;
    give_way(guest.id())?;

    let report = run.path("report.json");
    let mut send = host(run, "a", &["send", GUEST, "--quiet", "--verify", "off"]);
    send.args([
        "--to",
        &format!("{scheme}://{DESTINATION}:{port}"),
        "--bind",
        SOURCE,
    ]);
    send.args(["--lanes", &lanes.to_string(), "--peer-timeout", "20s"]);
    send.args(["--timeout", &format!("{}s", PATIENCE.as_secs())]);
    send.args(["--max-blackout", &format!("{PAUSE_BUDGET_MS}ms")]);
    send.args([OsString::from("--report"), report.clone().into()]);
    if scheme == "rdma" {
        send.args(["--rdma-ack-timeout", &ACK_TIMEOUT.to_string()]);
    }
    if let Some(window) = window {
        send.args(["--rdma-window", window]);
    }
    let watched = run.watch(guest.id(), receiver.id(), false)?;
    let sent = output_of(&mut send);
    let usage = run.end(watched)?;
    sent?;
    let text = fs::read_to_string(&report).context("dunlin wrote no report")?;
    let report: Value = serde_json::from_str(&text)?;
    output_of(&mut host(run, "b", &["stop", GUEST]))?;
    guest.succeed()?;
    outcome(
        &report,
        random_bytes,
        lanes,
        Outcome::new(random_bytes, 0.0, 0.0, usage),
    )
}

/// What the report says.
fn outcome(
    report: &Value,
    random_bytes: u64,
    lanes: u16,
    mut outcome: Outcome,
) -> anyhow::Result<Outcome> {
    let number = |pointer: &str| {
        let value = report.pointer(pointer).and_then(Value::as_u64);
        value.with_context(|| format!("the report has no {pointer}"))
    };
    if number("/lanes")? != u64::from(lanes) {
        bail!(
            "the move had {} lanes instead of {lanes}",
            number("/lanes")?
        );
    }
    if number("/sent_bytes")? < random_bytes {
        bail!(
            "{} bytes were sent, of {random_bytes}",
            number("/sent_bytes")?
        );
    }
    outcome.goodput = number("/goodput_bytes_per_s")? as f64;
    outcome.seconds = number("/total_ns")? as f64 / 1e9;
    outcome.blackout_s = Some(number("/blackout/total_ns")? as f64 / 1e9);
    if report["transport"] == "rdma" {
        outcome.device = Some(DeviceWork {
            bytes: number("/sent_bytes")?,
            work_requests: number("/device/work_requests")?,
            doorbells: number("/device/doorbells")?,
            completions: number("/device/completions")?,
            registrations: number("/device/registrations")?,
        });
    }
    Ok(outcome)
}

/// Dunlin as on a host of its own.
fn host(run: &Run<'_>, name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(&run.bench.dunlin);
    command.args(arguments).stdout(Stdio::null());
    command.env("DUNLIN_RUNTIME_DIR", run.path(name));
    command.env("DUNLIN_STATE_DIR", run.path(&format!("{name}-state")));
    command
}

/// The built-in guest looks at its clock all the time, also when it has nothing to do, and would
/// take one of the machine's processors. So whatever else wants to run goes first.
fn give_way(process: u32) -> anyhow::Result<()> {
    let mut found = false;
    for thread in fs::read_dir(format!("/proc/{process}/task"))?.flatten() {
        let name = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
        if name.starts_with("vcpu-") {
            let id = thread.file_name();
            output_of(Command::new("chrt").args(["--idle", "--pid", "0"]).arg(&id))?;
            found = true;
        }
    }
    if !found {
        bail!("process {process} has no vCPU's thread");
    }
    Ok(())
}

fn listening_port(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let event: Value = serde_json::from_str(text.lines().next()?).ok()?;
    let (_, port) = event["endpoint"].as_str()?.rsplit_once(':')?;
    Some(port.to_owned())
}

fn said(path: &Path) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::usage::Usage;

    #[test]
    fn a_report_is_read_and_judged() {
        let report = json!({
            "lanes": 2, "transport": "rdma", "sent_bytes": 2048, "goodput_bytes_per_s": 77,
            "total_ns": 2_500_000_000_u64, "blackout": { "total_ns": 3_000_000 },
            "device": { "work_requests": 5, "doorbells": 4, "completions": 3, "registrations": 2 },
        });
        let read = |lanes, bytes| {
            outcome(
                &report,
                bytes,
                lanes,
                Outcome::new(bytes, 0.0, 0.0, Usage::default()),
            )
        };
        let good = read(2, 2048).unwrap();
        assert_eq!(
            (good.goodput, good.seconds, good.blackout_s),
            (77.0, 2.5, Some(0.003))
        );
        assert_eq!(good.device.unwrap().work_requests, 5);
        assert!(read(1, 2048).is_err());
        assert!(read(2, 4096).is_err());
    }
}
