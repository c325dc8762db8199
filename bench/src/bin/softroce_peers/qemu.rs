//! QEMU: an idle guest moves, with the settings of somebody who wants it to be quick.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use dunlin_bench::program::{PATIENCE, Program, wait_for};
use dunlin_bench::qmp::Monitor;
use serde_json::{Value, json};

use crate::results::{Outcome, PAUSE_BUDGET_MS};
use crate::rows::QemuWay;
use crate::runs::{DESTINATION, Run};

/// Where the destination waits.
const PORT: u16 = 4444;

/// The firmware has given up looking for something to start when the guest uses less than this part
/// of a processor.
const IDLE_SHARE: f64 = 0.1;
/// Over so long.
const IDLE_TIME: Duration = Duration::from_millis(1000);

/// How often it is asked where the move stands.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// Whether a QEMU knows RDMA: one that does is linked with its library.
pub(crate) fn has_rdma(program: &Path, directory: &Path) -> anyhow::Result<bool> {
    let mut command = Command::new(program);
    command.args([
        "-machine",
        "none",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
    ]);
    let log = directory.join("qemu.log");
    let (process, _) = start_with_monitor(command, &directory.join("qemu"), &log)?;
    let maps = fs::read_to_string(format!("/proc/{}/maps", process.id()))?;
    Ok(maps.contains("/librdmacm.so"))
}

/// Moves a guest.
pub(crate) fn run(run: &mut Run<'_>, way: QemuWay) -> anyhow::Result<Outcome> {
    let bytes = run.bench.bytes;
    let memory = run.random_memory()?;
    let filled = format!(
        "memory-backend-file,id=memory,size={bytes},share=on,mem-path={}",
        memory.display()
    );
    let fresh = format!("memory-backend-memfd,id=memory,size={bytes},share=on");
    let (source, mut from) = start(run, "source", &filled, &[])?;
    let (destination, mut to) = start(run, "destination", &fresh, &["-incoming", "defer"])?;
    let (scheme, capability) = match way {
        QemuWay::Rdma { pin_all } => ("rdma", pin_all.then_some("rdma-pin-all")),
        QemuWay::Multifd { .. } => ("tcp", Some("multifd")),
    };
    let uri = format!("{scheme}:{DESTINATION}:{PORT}");
    for monitor in [&mut from, &mut to] {
        if let Some(capability) = capability {
            let capabilities = json!([{ "capability": capability, "state": true }]);
            monitor.execute(
                "migrate-set-capabilities",
                json!({ "capabilities": capabilities }),
            )?;
        }
        // A bandwidth of 0 is no limit.
        let mut parameters = json!({ "max-bandwidth": 0, "downtime-limit": PAUSE_BUDGET_MS });
        if let QemuWay::Multifd { channels } = way {
            parameters["multifd-channels"] = json!(channels);
        }
        monitor.execute("migrate-set-parameters", parameters)?;
    }
    to.execute("migrate-incoming", json!({ "uri": uri }))?;
    wait_until_idle(&mut from)?;

    let watched = run.watch(source.id(), destination.id(), false)?;
    from.execute("migrate", json!({ "uri": uri }))?;
    let told = completed(&mut from);
    let usage = run.end(watched)?;
    let told = told.with_context(|| last_words(run))?;
    wait_for("the guest to run at QEMU's destination", || {
        Ok(to.execute("query-status", json!({}))?["running"] == true)
    })?;
    let milliseconds = |name: &str| {
        let value = told[name].as_f64();
        value.with_context(|| format!("QEMU tells no {name}: {told}"))
    };
    let total_s = milliseconds("total-time")? / 1e3;
    let copying_s = total_s - milliseconds("setup-time")? / 1e3;
    let mut outcome = Outcome::new(bytes, bytes as f64 / copying_s, total_s, usage);
    outcome.blackout_s = Some(milliseconds("downtime")? / 1e3);
    Ok(outcome)
}

/// Starts one side.
fn start(
    run: &Run<'_>,
    side: &'static str,
    memory: &str,
    more: &[&str],
) -> anyhow::Result<(Program, Monitor)> {
    let program = run.bench.qemu.as_ref().context("no QEMU")?;
    let mut command = Command::new(program);
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    command.args([
        "-name",
        "peer,debug-threads=on",
        "-accel",
        "kvm",
        "-smp",
        "1",
    ]);
    command.args(["-machine", "pc,memory-backend=memory", "-object", memory]);
    command.args(["-m", &format!("{}M", run.bench.bytes >> 20)]);
    command.args(more);
    start_with_monitor(command, &run.path(side), &run.path(&format!("{side}.log")))
}

fn start_with_monitor(
    mut command: Command,
    socket: &Path,
    log: &Path,
) -> anyhow::Result<(Program, Monitor)> {
    command.args([
        "-qmp",
        &format!("unix:{},server=on,wait=off", socket.display()),
    ]);
    let output = fs::File::create(log)?;
    command.stdout(output.try_clone()?).stderr(output);
    let mut process = Program::start(&mut command)?;
    let mut monitor = None;
    wait_for("QEMU's monitor", || {
        if process.has_ended() {
            bail!(
                "QEMU ended: {}",
                fs::read_to_string(log).unwrap_or_default().trim()
            );
        }
        monitor = Monitor::connect(socket).ok();
        Ok(monitor.is_some())
    })?;
    Ok((process, monitor.context("QEMU has no monitor")?))
}

/// Waits until the guest's processor sleeps.
fn wait_until_idle(monitor: &mut Monitor) -> anyhow::Result<()> {
    let cpus = monitor.execute("query-cpus-fast", json!({}))?;
    let thread = cpus[0]["thread-id"]
        .as_u64()
        .context("QEMU names no thread")?;
    let run_s = || -> anyhow::Result<f64> {
        let text = fs::read_to_string(format!("/proc/{thread}/schedstat"))?;
        let ns: u64 = text.split_whitespace().next().unwrap_or_default().parse()?;
        Ok(ns as f64 / 1e9)
    };
    wait_for("QEMU's guest to be idle", || {
        let before = run_s()?;
        std::thread::sleep(IDLE_TIME);
        let share = (run_s()? - before) / IDLE_TIME.as_secs_f64();
        Ok(before > 0.0 && share < IDLE_SHARE)
    })
}

/// Waits for the move's end, and gives what QEMU tells of it.
fn completed(monitor: &mut Monitor) -> anyhow::Result<Value> {
    let begun = Instant::now();
    loop {
        let told = monitor.execute("query-migrate", json!({}))?;
        match told["status"].as_str() {
            Some("completed") => return Ok(told),
            Some("failed" | "cancelled") => bail!("QEMU's move failed: {}", told["error-desc"]),
            _ if begun.elapsed() > PATIENCE => bail!("QEMU's move takes too long: {told}"),
            _ => std::thread::sleep(ASK_INTERVAL),
        }
    }
}

/// What QEMU's processes printed.
fn last_words(run: &Run<'_>) -> String {
    let logs = ["source.log", "destination.log"].map(|name| fs::read_to_string(run.path(name)));
    logs.map(Result::unwrap_or_default)
        .join(" ")
        .trim()
        .to_owned()
}
