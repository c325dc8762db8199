//! The stage of the demo: a private directory, a source process, a destination process. All of it
//! is gone when the stage is dropped, however the demo ends.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use dunlin_vmm::machine::MachineKind;
use dunlin_vmm::size::format_size;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{Interrupts, LOOK_INTERVAL, pause};
use crate::cli::endpoint::Endpoint;
use crate::cli::guest::Demo;
use crate::cli::values::pin_budget_text;
use crate::commands::steer::stop_guest;
use crate::failure::Failure;
use crate::local::client::Connection;
use crate::local::runtime_dir::RuntimeDir;
use crate::supervisor::admission::{own_program, value_name};

/// The guest's name.
pub(super) const GUEST: &str = "demo";

/// How long the destination may take to listen.
const LISTEN_MAX: Duration = Duration::from_secs(10);

/// How long the source may take to fill the guest's memory and begin: large guests take minutes.
const START_MAX: Duration = Duration::from_secs(600);

/// How long a process may take to end by itself.
const END_MAX: Duration = Duration::from_secs(10);

/// How much of a log is told when a process fails.
const LOG_LINES: usize = 5;

/// Everything that has to be cleared away.
pub(super) struct Stage {
    /// The source's runtime directory.
    pub(super) source: RuntimeDir,
    /// The destination's.
    pub(super) destination: RuntimeDir,
    source_process: Option<Child>,
    supervisor: Option<Child>,
    /// The destination's standard input. Nothing is written; that it ends, when this process does,
    /// ends the guest there.
    leash: Option<ChildStdin>,
    /// The process that the destination made for the guest; 0: none yet.
    arrival: Arc<AtomicU32>,
    directory: TempDir,
}

impl Stage {
    /// An empty stage.
    pub(super) fn build() -> Result<Self, Failure> {
        let directory = tempfile::Builder::new()
            .prefix("dunlin-demo-")
            .tempdir()
            .map_err(|error| Failure::system("a temporary directory", error))?;
        let runtime = |name| RuntimeDir::chosen(Some(&directory.path().join(name)));
        Ok(Self {
            source: runtime("source"),
            destination: runtime("destination"),
            source_process: None,
            supervisor: None,
            leash: None,
            arrival: Arc::default(),
            directory,
        })
    }

    /// Starts the destination, and says where it listens.
    pub(super) fn start_destination(
        &mut self,
        arguments: &Demo,
        place: IpAddr,
    ) -> Result<String, Failure> {
        let place = Endpoint::tcp(SocketAddr::new(place, 0));
        let mut child = Command::new(own_program())
            .args(["receive", "--once", "--json", "--with-parent"])
            .args(["--listen", &place.to_string()])
            .arg("--dirty-tracking")
            .arg(value_name(&arguments.dirty_tracking))
            .args(["--pin-budget", &pin_budget_text(arguments.pin_budget)])
            .args(["--prefault", &value_name(&arguments.prefault)])
            .args(["--reserve", &arguments.reserve.to_string()])
            .arg("--runtime-dir")
            .arg(self.destination.path())
            .arg("--state-dir")
            .arg(self.directory.path().join("destination-state"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(self.log("destination")?)
            .spawn()
            .map_err(|error| Failure::system("the destination can't start", error))?;
        let output = child.stdout.take();
        self.leash = child.stdin.take();
        self.supervisor = Some(child);
        let (told, endpoint) = mpsc::channel();
        let arrival = Arc::clone(&self.arrival);
        let output = output.ok_or_else(|| Failure::local("the destination has no output"))?;
        thread::Builder::new()
            .name("destination".to_owned())
            .spawn(move || listen_to(output, &told, &arrival))
            .map_err(|error| Failure::system("a thread", error))?;
        match endpoint.recv_timeout(LISTEN_MAX) {
            Ok(endpoint) => Ok(endpoint),
            Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {
                Err(self.failed("the destination does not listen", "destination"))
            }
        }
    }

    /// Starts the source, and waits until the guest runs.
    pub(super) fn start_source(
        &mut self,
        arguments: &Demo,
        kind: MachineKind,
        interrupts: &Interrupts,
    ) -> Result<(), Failure> {
        let log = self.log("source")?;
        let errors = log
            .try_clone()
            .map_err(|error| Failure::system("the source's log", error))?;
        let child = Command::new(own_program())
            .args(["run", "--with-parent", "--name", GUEST])
            .args(["--memory", &format_size(arguments.memory)])
            .args(["--vcpus", &arguments.vcpus.to_string()])
            .args(["--guest", kind.name()])
            .args(["--workload", &arguments.workload.to_string()])
            .arg("--memory-backing")
            .arg(value_name(&arguments.memory_backing))
            .arg("--dirty-tracking")
            .arg(value_name(&arguments.dirty_tracking))
            .arg("--runtime-dir")
            .arg(self.source.path())
            .arg("--state-dir")
            .arg(self.directory.path().join("source-state"))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|error| Failure::system("the source can't start", error))?;
        self.source_process = Some(child);
        let end = Instant::now() + START_MAX;
        loop {
            let status = Connection::open(&self.source, GUEST).and_then(|mut guest| guest.status());
            if status.is_ok_and(|status| status.workload.is_some()) {
                return Ok(());
            }
            if has_ended(&mut self.source_process) || Instant::now() >= end {
                return Err(self.failed("the source does not run", "source"));
            }
            pause(LOOK_INTERVAL, interrupts)?;
        }
    }

    /// Waits until the source's process has ended, as it does after a move.
    pub(super) fn see_source_end(&mut self, interrupts: &Interrupts) -> Result<(), Failure> {
        let end = Instant::now() + END_MAX;
        while !has_ended(&mut self.source_process) {
            if Instant::now() >= end {
                return Err(Failure::local(format!(
                    "the source's process has not ended within {} s of the move",
                    END_MAX.as_secs()
                )));
            }
            pause(LOOK_INTERVAL, interrupts)?;
        }
        Ok(())
    }

    /// Clears everything away, and says when that fails.
    pub(super) fn clear(mut self) -> Result<(), Failure> {
        self.strike()
    }

    fn strike(&mut self) -> Result<(), Failure> {
        let mut outcome = Ok(());
        // The destination's own guest is asked; who does not answer is ended.
        if self.destination.is_taken(GUEST) {
            outcome = stop_guest(&self.destination, GUEST, true);
        }
        if outcome.is_err() || self.destination.is_taken(GUEST) {
            let process = i32::try_from(self.arrival.load(Ordering::Acquire)).unwrap_or(0);
            // The name is held, so the process lives and the number is still its own.
            if let Some(process) = Pid::from_raw(process) {
                outcome = kill_process(process, Signal::KILL)
                    .map_err(|error| Failure::system("the destination's guest", error));
            }
        }
        for child in [&mut self.source_process, &mut self.supervisor] {
            if let Some(mut child) = child.take() {
                // It may have ended already.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        self.leash = None;
        outcome
    }

    fn log(&self, name: &str) -> Result<File, Failure> {
        let path = self.directory.path().join(format!("{name}.log"));
        File::create(&path).map_err(|error| Failure::system(path.display(), error))
    }

    fn failed(&self, what: &str, log: &str) -> Failure {
        let path = self.directory.path().join(format!("{log}.log"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(LOG_LINES).collect();
        let said: Vec<&str> = lines.into_iter().rev().collect();
        Failure::local(format!("{what}: {}", said.join("; ")))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Without anyone to tell: the demo has failed already, and says why.
        let _ = self.strike();
    }
}

fn has_ended(child: &mut Option<Child>) -> bool {
    match child {
        None => true,
        Some(process) => process.try_wait().is_ok_and(|status| status.is_some()),
    }
}

/// Reads what the destination says: where it listens, and the process of the guest.
fn listen_to(output: ChildStdout, endpoint: &Sender<String>, arrival: &AtomicU32) {
    for line in BufReader::new(output).lines() {
        let Ok(line) = line else {
            return;
        };
        let Ok(happening) = serde_json::from_str::<serde_json::Value>(&line) else {
            continue;
        };
        if let Some(place) = happening.get("endpoint").and_then(|value| value.as_str()) {
            // Asked for once; nobody waits later.
            let _ = endpoint.send(place.to_owned());
        }
        let process = happening.get("pid").and_then(serde_json::Value::as_u64);
        if let Some(process) = process.and_then(|number| u32::try_from(number).ok()) {
            arrival.store(process, Ordering::Release);
        }
    }
}
