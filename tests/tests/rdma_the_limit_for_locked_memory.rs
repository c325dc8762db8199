//! The limit for locked memory is lower than the guest: what demands RDMA fails with one line that
//! names the limit and the command that raises it, and the guest goes on at the source; what leaves
//! the choice goes over TCP and says why. Either way nothing stays pinned.
//!
//! Root may ignore that limit (CAP_IPC_LOCK), so the scenarios take that right away from the
//! programs. Who registers first fails half way: part of the guest is registered by then.

use std::process::Command;

use anyhow::{Context, Result};
use dunlin_tests::host::{has_kvm, is_root, kernel_messages};
use dunlin_tests::program::{Output, Running, eventually, give_way, is_stopped, signal_process};
use dunlin_tests::rdma::Ends;
use dunlin_tests::rdma::held::{Pinned, Things, expect_nothing_held};
use dunlin_tests::site::{Receiver, Site, expect_moved};
use serde_json::Value;

/// Above what a pin budget takes by itself for too little (64 MiB), so that it has to refuse.
const RUN: [&str; 6] = [
    "--memory",
    "96MiB",
    "--guest",
    "kvm",
    "--workload",
    "hot=4MiB,rate=1MiB/s",
];

/// What an emulated machine needs, too.
const SEND: [&str; 4] = ["--max-blackout", "5s", "--peer-timeout", "20s"];

const LIMIT_BYTES: u64 = 16 << 20;

/// Two sites with a guest and a receiver; the limits hold from the beginning.
struct Scene {
    here: Site,
    there: Site,
    ends: Ends,
    before: Things,
    guest: Running,
    receiver: Receiver,
    /// Whether all went as it should, and nobody needs to know more.
    is_over: bool,
}

impl Scene {
    /// `None`, and says so, where there is no RDMA.
    fn with(
        here_limit: Option<u64>,
        there_limit: Option<u64>,
        stop: Option<&str>,
    ) -> Result<Option<Self>> {
        let Some(ends) = Ends::here() else {
            return Ok(None);
        };
        if !has_kvm() {
            return Ok(None);
        }
        if !is_root() {
            println!("skipped: another user than root can't raise the limit again");
            return Ok(None);
        }
        let (mut here, mut there) = (Site::new()?, Site::new()?);
        here.limit_locked_memory(here_limit);
        there.limit_locked_memory(there_limit);
        here.set_environment("DUNLIN_STOP_AT", stop);
        let before = Things::now()?;
        let guest = here.guest("vm1", &RUN)?;
        // Emulated processors have none to spare.
        give_way(guest.pid());
        Ok(Some(Self {
            guest,
            is_over: false,
            receiver: there.receiver_at(&ends.listen("auto"), &[])?,
            here,
            there,
            ends,
            before,
        }))
    }

    fn send(&self, scheme: &str, more: &[&str]) -> Result<(Output, Value)> {
        let file = self.here.directory().join("report.json");
        let path = file.to_string_lossy().into_owned();
        let to = self.ends.to(scheme, self.receiver.port()?);
        let words = ["send", "vm1", "--to", &to, "--report", &path];
        let output = self.here.run(&[&words[..], &SEND[..], more].concat())?;
        let report = std::fs::read_to_string(&file).with_context(|| format!("{output:?}"))?;
        Ok((output, serde_json::from_str(&report)?))
    }

    fn expect_nothing_held(&self) -> Result<()> {
        expect_nothing_held(&[&self.here, &self.there], &self.before)
    }

    fn end(mut self) -> Result<()> {
        self.expect_nothing_held()?;
        self.is_over = true;
        Ok(())
    }

    /// A demand for RDMA failed: with a line that helps, and without harm.
    fn expect_refused(&self, code: i32, output: &Output, report: &Value) -> Result<()> {
        let reason = report["reason"].as_str().unwrap_or_default();
        println!("exit code {}: {reason}", output.code);
        assert_eq!(output.code, code);
        expect_names_limit(reason);
        assert_eq!(output.stderr.trim().lines().count(), 1, "{}", output.stderr);
        expect_names_limit(&output.stderr);
        self.here.expect_goes_on("vm1")?;
        eventually("the destination has no guest", || {
            Ok(self.there.status("vm1").is_err())
        })?;
        self.expect_nothing_held()
    }

    /// A free choice fell on TCP, and that was said.
    fn expect_over_tcp(&self, output: &Output, report: &Value) -> Result<()> {
        let note = "auto: using tcp, as ";
        let told = output.stderr.lines().find(|line| line.contains(note));
        let told = told.with_context(|| format!("'{note}' is not in {}", output.stderr))?;
        println!("{told}");
        expect_names_limit(told);
        expect_moved(report)?;
        assert_eq!(report["transport"], "tcp");
        self.there.expect_goes_on("vm1")
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut all = self.here.tell("status at the source");
        all.extend(self.there.tell("status at the destination"));
        all.extend(self.guest.said_so_far("run"));
        all.extend(self.receiver.process.said_so_far("receive"));
        all.extend(kernel_messages());
        println!("{}", all.join("\n"));
    }
}

fn expect_names_limit(text: &str) {
    for word in [
        "16777216 bytes (RLIMIT_MEMLOCK)",
        "ulimit -l",
        "LimitMEMLOCK=",
    ] {
        assert!(text.contains(word), "'{word}' is not in: {text}");
    }
}

#[test]
fn the_destinations() -> Result<()> {
    let Some(scene) = Scene::with(None, Some(LIMIT_BYTES), None)? else {
        return Ok(());
    };
    let (output, report) = scene.send("rdma", &["--quiet"])?;
    assert_eq!(report["outcome"], "refused", "{report:#}");
    scene.expect_refused(4, &output, &report)?;
    let (output, report) = scene.send("auto", &[])?;
    scene.expect_over_tcp(&output, &report)?;
    scene.end()
}

#[test]
fn the_sources() -> Result<()> {
    let Some(scene) = Scene::with(Some(LIMIT_BYTES), None, None)? else {
        return Ok(());
    };
    let (output, report) = scene.send("rdma", &["--quiet"])?;
    // Something on this machine failed.
    scene.expect_refused(12, &output, &report)?;
    let (output, report) = scene.send("auto", &[])?;
    scene.expect_over_tcp(&output, &report)?;
    scene.end()
}

/// The limit is lowered once the move is under way and nobody looks at it any more: registering
/// fails half way. `pid` is the process whose limit it is, which stands still.
fn lowered_half_way(
    mut scene: Scene,
    code: i32,
    pid: impl FnOnce(&mut Scene) -> Result<u32>,
) -> Result<()> {
    let to = scene.ends.to("rdma", scene.receiver.port()?);
    let words = ["send", "vm1", "--to", &to, "--json", "--quiet"];
    let send = scene.here.start(&[&words[..], &SEND[..]].concat())?;
    let pid = pid(&mut scene)?;
    eventually("it stands still", || Ok(is_stopped(pid)))?;
    set_limit(pid, &LIMIT_BYTES.to_string())?;
    signal_process(pid, libc::SIGCONT);
    let output = send.wait()?;
    let report = output.json()?;
    let reason = report["reason"].as_str().unwrap_or_default();
    println!("exit code {}: {reason}", output.code);
    assert_eq!(output.code, code);
    expect_names_limit(reason);
    let (_, registered) = reason.split_once("of memory, ").context("no figure")?;
    assert!(!registered.starts_with("0 "), "not half way: {reason}");
    scene.here.expect_goes_on("vm1")?;
    scene.receiver.process.event("failed")?;
    scene.expect_nothing_held()?;
    // It is the limit that was in the way, and nothing else is by now.
    set_limit(scene.guest.pid(), "unlimited")?;
    scene.there.set_environment("DUNLIN_STOP_AT", None);
    scene.receiver = scene.there.receiver_at(&scene.ends.listen("auto"), &[])?;
    let (output, report) = scene.send("rdma", &["--quiet"])?;
    assert_eq!(output.code, 0, "{output:?}");
    expect_moved(&report)?;
    assert_eq!(report["transport"], "rdma");
    scene.there.expect_goes_on("vm1")?;
    scene.end()
}

fn set_limit(pid: u32, limit: &str) -> Result<()> {
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--pid", &pid.to_string(), &format!("--memlock={limit}:")]);
    anyhow::ensure!(prlimit.status()?.success(), "prlimit failed");
    Ok(())
}

#[test]
fn the_sources_in_the_middle_of_the_move() -> Result<()> {
    let Some(scene) = Scene::with(None, None, Some("opened"))? else {
        return Ok(());
    };
    lowered_half_way(scene, 12, |scene| Ok(scene.guest.pid()))
}

#[test]
fn the_destinations_in_the_middle_of_the_move() -> Result<()> {
    let Some(mut scene) = Scene::with(None, None, None)? else {
        return Ok(());
    };
    scene
        .there
        .set_environment("DUNLIN_STOP_AT", Some("welcomed"));
    scene.receiver = scene.there.receiver_at(&scene.ends.listen("auto"), &[])?;
    lowered_half_way(scene, 5, |scene| {
        let incoming = scene.receiver.process.event("incoming")?;
        let pid = incoming["pid"].as_u64().context("no pid")?;
        Ok(u32::try_from(pid)?)
    })
}

/// Such a limit is seen while a move pins: the scenarios above would see nothing held where nothing
/// can be seen.
#[test]
fn what_is_pinned_in_a_move_can_be_seen() -> Result<()> {
    let Some(scene) = Scene::with(None, None, Some("pausing"))? else {
        return Ok(());
    };
    let pid = scene.guest.pid();
    let to = scene.ends.to("rdma", scene.receiver.port()?);
    let words = ["send", "vm1", "--to", &to, "--json", "--quiet"];
    let send = scene.here.start(&[&words[..], &SEND[..]].concat())?;
    eventually("the source stands still", || Ok(is_stopped(pid)))?;
    let pinned = Pinned::of(pid)?;
    println!("{pinned:?}");
    assert!(pinned.pinned_kib > 4 << 10, "{pinned:?}");
    let held = dunlin_tests::rdma::held::still_held(&[&scene.here, &scene.there], &scene.before)?;
    for kind in ["qp ", "mr ", "cm_id "] {
        assert!(held.iter().any(|what| what.starts_with(kind)), "{held:#?}");
    }
    signal_process(pid, libc::SIGCONT);
    send.wait()?.expect_code(0)?;
    scene.end()
}
