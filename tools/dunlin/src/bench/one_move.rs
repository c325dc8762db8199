//! One run of a cell: a source and a destination are started, the guest is moved, everything ends.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use dunlin_engine::report::{BlackoutPart, Host, PredictedPart};
use dunlin_vmm::size::format_size;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;

use super::matrix::{Cell, Means};
use super::processes::{Process, create, last_words, pause, see_off, text_of, wait_for};
use super::processor_time::{Used, Watch};
use super::results::Run;
use super::{Interrupted, Stop};
use crate::cli::endpoint::{Endpoint, Scheme};
use crate::local::client::Connection;
use crate::local::protocol::GuestState;
use crate::local::runtime_dir::RuntimeDir;

/// How long a destination may take to listen.
const LISTEN_MAX: Duration = Duration::from_secs(10);

/// How long a source may take to fill the guest's memory and begin: large guests take minutes.
const START_MAX: Duration = Duration::from_secs(600);

/// How long the guest runs before it is moved, so that it has begun to rewrite memory.
const OVERTURE: Duration = Duration::from_millis(300);

/// How a bench's guests begin their names, by which 'dunlin receive --bench' knows them.
const GUEST_PREFIX: &str = "bench-";

/// Whether a guest is a bench's, by its name: nobody would give that to another by chance.
pub(crate) fn is_guest_of_a_bench(name: &str) -> bool {
    let number = name.strip_prefix(GUEST_PREFIX);
    number.is_some_and(|number| number.len() == 32 && uuid::Uuid::try_parse(number).is_ok())
}

/// How moves are done, whichever the cell.
pub(crate) struct Mover<'a> {
    /// What this host has.
    pub(crate) means: &'a Means,
    /// Another host, if so.
    pub(crate) to: Option<&'a Endpoint>,
    /// A trace that the guest replays, if so.
    pub(crate) replay: Option<&'a Path>,
    /// The pause's budget.
    pub(crate) max_blackout: Duration,
    /// The longest that one move may take.
    pub(crate) limit: Duration,
    /// Whether somebody has had enough.
    pub(crate) interrupted: Interrupted<'a>,
}

/// A run, and the machines that it ran on.
pub(crate) struct Moved {
    /// What it gave.
    pub(crate) run: Run,
    /// The source's machine and the destination's.
    pub(crate) hosts: Option<(Host, Host)>,
}

impl Mover<'_> {
    /// Moves a guest by a program's commands. A move that fails is a run too, which says why.
    ///
    /// # Errors
    ///
    /// When somebody has had enough.
    pub(crate) fn run(&self, program: &Path, cell: &Cell) -> Result<Moved, Stop> {
        match self.try_run(program, cell) {
            Err(Stop::Failed(reason)) => Ok(Moved {
                run: Run {
                    outcome: "error".to_owned(),
                    reason: Some(reason),
                    ..Run::default()
                },
                hosts: None,
            }),
            outcome => outcome,
        }
    }

    fn try_run(&self, program: &Path, cell: &Cell) -> Result<Moved, Stop> {
        let stage = Stage::new(program)?;
        let destination = match self.to {
            Some(_) => None,
            None => Some(stage.destination(self.place(cell), self.interrupted)?),
        };
        let endpoint = match (self.to, &destination) {
            (Some(endpoint), _) => endpoint.authority(),
            (None, Some(destination)) => destination.authority.clone(),
            (None, None) => String::new(),
        };
        let source = stage.source(cell, self.replay, self.interrupted)?;
        pause(OVERTURE, self.interrupted)?;
        let watch = Watch::start(
            source.id(),
            destination
                .as_ref()
                .map(|destination| destination.waiting.id()),
            destination
                .as_ref()
                .map(|destination| Arc::clone(&destination.arriving))
                .unwrap_or_default(),
        );
        let report = self.send(&stage, cell, &endpoint)?;
        let ended = Instant::now();
        // The comparison of memory comes after the move, and is no part of its cost.
        let comparing = number(&report, "/verification/duration_ns").unwrap_or(0);
        let used = ended
            .checked_sub(Duration::from_nanos(comparing))
            .and_then(|end| watch.used_until(end));
        let host = |which: &str| parsed::<Host>(&report, &format!("/hosts/{which}"));
        let hosts = host("source").zip(host("destination"));
        let mut run = run_of(&report, used);
        if destination.is_none() {
            run.destination_cpu_ns = None;
        }
        Ok(Moved { run, hosts })
    }

    /// Where the destination of a cell listens on this host.
    fn place(&self, cell: &Cell) -> IpAddr {
        match &self.means.rdma {
            Ok(place) if cell.transport == "rdma" => place.address,
            _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
    }

    /// Has the guest moved, and gives the report.
    fn send(&self, stage: &Stage, cell: &Cell, authority: &str) -> Result<Value, Stop> {
        let scheme = match cell.transport.as_str() {
            "rdma" => "rdma",
            _ => "tcp",
        };
        let mut command = stage.command("source", &["send", &stage.guest, "--json", "--quiet"]);
        command.args(["--to", &format!("{scheme}://{authority}")]);
        command.args(["--on-stall", "switchover"]);
        command.args([
            "--max-blackout",
            &format!("{}us", self.max_blackout.as_micros()),
        ]);
        command.args(["--timeout", &format!("{}ms", self.limit.as_millis())]);
        let lanes = cell
            .lanes
            .map_or_else(|| "auto".to_owned(), |lanes| lanes.to_string());
        command.args(["--lanes", &lanes]);
        match cell.transport.as_str() {
            "tcp-writev" => command.args(["--io", "writev"]),
            "tcp-lz4" => command.args(["--compress", "lz4"]),
            "tcp-zstd" => command.args(["--compress", "zstd"]),
            _ => &mut command,
        };
        let printed = stage.path("report");
        let complained = stage.path("send.log");
        command
            .stdin(Stdio::null())
            .stdout(create(&printed)?)
            .stderr(create(&complained)?);
        let mut process = Process::start(&mut command)?;
        // Beyond the move's own limit, which does not hold behind the give-up.
        process.wait(self.limit + START_MAX, self.interrupted)?;
        serde_json::from_str(&text_of(&printed)?).map_err(|_| {
            let words = format!("{} {}", last_words(&printed), last_words(&complained));
            Stop::failed("the move gave no report", words.trim())
        })
    }
}

/// What a report says, as a run. Reports of other builds are read as well: what is missing is left
/// out.
fn run_of(report: &Value, used: Option<Used>) -> Run {
    let count = |path: &str| number(report, path).unwrap_or(0);
    let text = |path: &str| {
        let text = report.pointer(path).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let rounds = report.pointer("/rounds").and_then(Value::as_array);
    Run {
        pass: 0,
        began_ns: 0,
        outcome: text("/outcome"),
        reason: parsed(report, "/reason"),
        mechanism: text("/mechanism"),
        lanes: count("/lanes"),
        rounds: rounds.map_or(0, |rounds| rounds.len() as u64),
        goodput_bytes_per_s: count("/goodput_bytes_per_s"),
        sent_bytes: count("/sent_bytes"),
        wire_bytes: count("/wire_bytes"),
        total_ns: count("/total_ns"),
        blackout_ns: number(report, "/blackout/total_ns"),
        predicted_ns: number(report, "/blackout/predicted_ns"),
        predicted_parts: parsed::<Vec<PredictedPart>>(report, "/blackout/predicted_parts")
            .unwrap_or_default(),
        guest_visible_ns: number(report, "/blackout/guest_visible_ns"),
        parts: parsed::<Vec<BlackoutPart>>(report, "/blackout/parts").unwrap_or_default(),
        clock_error_ns: number(report, "/blackout/clock_error_ns"),
        source_cpu_ns: used.map(|used| used.source_ns),
        destination_cpu_ns: used.map(|used| used.destination_ns),
        is_equal: parsed(report, "/verification/equal"),
    }
}

fn number(report: &Value, path: &str) -> Option<u64> {
    report.pointer(path).and_then(Value::as_u64)
}

fn parsed<T: DeserializeOwned>(report: &Value, path: &str) -> Option<T> {
    T::deserialize(report.pointer(path)?).ok()
}

/// A private directory, and a program that is run in it.
struct Stage {
    program: PathBuf,
    guest: String,
    directory: TempDir,
}

/// What ends when the run does. The fields are dropped in this order: the guest ends when nobody
/// holds its leash, and then whoever let it in.
struct Destination {
    authority: String,
    arriving: Arc<AtomicU32>,
    mark: PathBuf,
    leash: Option<ChildStdin>,
    waiting: Process,
}

impl Drop for Destination {
    fn drop(&mut self) {
        self.leash = None;
        match self.arriving.load(Ordering::Acquire) {
            0 => {}
            process => see_off(process, &self.mark),
        }
    }
}

impl Stage {
    fn new(program: &Path) -> Result<Self, Stop> {
        let directory = tempfile::Builder::new()
            .prefix("dunlin-bench-")
            .tempdir()
            .map_err(|error| Stop::failed("a temporary directory", error))?;
        // Unlike all others, so that two benches may move to one host.
        let guest = format!("{GUEST_PREFIX}{}", uuid::Uuid::new_v4().simple());
        Ok(Self {
            program: program.to_owned(),
            guest,
            directory,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command on one side.
    fn command(&self, side: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .arg("--runtime-dir")
            .arg(self.path(side));
        command
    }

    /// Starts a destination on this host, and waits until it listens.
    fn destination(
        &self,
        place: IpAddr,
        interrupted: Interrupted<'_>,
    ) -> Result<Destination, Stop> {
        let side = "destination";
        let listen = Endpoint {
            scheme: Scheme::Tcp,
            ..Endpoint::tcp(SocketAddr::new(place, 0))
        };
        let mut command = self.command(side, &["receive", "--once", "--json", "--with-parent"]);
        command
            .args(["--listen", &listen.to_string()])
            .arg("--state-dir")
            .arg(self.path("destination-state"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(create(&self.path("destination.log"))?);
        let mut waiting = Process::start(&mut command)?;
        let leash = waiting.take_input();
        let output = waiting
            .take_output()
            .ok_or_else(|| Stop::Failed("the destination has no output".to_owned()))?;
        let (told, heard) = channel();
        let arriving = Arc::new(AtomicU32::new(0));
        let number = Arc::clone(&arriving);
        thread::Builder::new()
            .name("destination".to_owned())
            .spawn(move || listen_to(output, &told, &number))
            .map_err(|error| Stop::failed("a thread", error))?;
        let mut authority = None;
        wait_for("the destination to listen", LISTEN_MAX, interrupted, || {
            authority = heard.try_recv().ok();
            if authority.is_none() && waiting.ended().is_some() {
                let words = last_words(&self.path("destination.log"));
                return Err(Stop::failed("the destination ended", words));
            }
            Ok(authority.is_some())
        })?;
        Ok(Destination {
            authority: authority.unwrap_or_default(),
            arriving,
            mark: self.path(side),
            leash,
            waiting,
        })
    }

    /// Starts a source, and waits until the guest runs.
    fn source(
        &self,
        cell: &Cell,
        replay: Option<&Path>,
        interrupted: Interrupted<'_>,
    ) -> Result<Process, Stop> {
        let side = "source";
        let log = self.path("source.log");
        let output = create(&log)?;
        let errors = output
            .try_clone()
            .map_err(|error| Stop::failed("a temporary file", error))?;
        let mut command = self.command(side, &["run", "--with-parent", "--name", &self.guest]);
        command
            .args(["--memory", &format_size(cell.memory_bytes)])
            .args(["--vcpus", &cell.vcpus.to_string()])
            .args(["--guest", &cell.guest]);
        match replay {
            Some(trace) => command.arg("--replay").arg(trace),
            None => command.args(["--workload", &cell.workload()]),
        };
        command
            .arg("--state-dir")
            .arg(self.path("source-state"))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let mut process = Process::start(&mut command)?;
        let runtime = RuntimeDir::chosen(Some(&self.path(side)));
        wait_for(
            "the source to run the guest",
            START_MAX,
            interrupted,
            || {
                if process.ended().is_some() {
                    return Err(Stop::failed("the source ended", last_words(&log)));
                }
                let status =
                    Connection::open(&runtime, &self.guest).and_then(|mut guest| guest.status());
                Ok(status.is_ok_and(|status| status.state == GuestState::Running))
            },
        )?;
        Ok(process)
    }
}

/// Reads what the destination says: where it listens, and the process of the guest.
fn listen_to(output: ChildStdout, told: &Sender<String>, arriving: &AtomicU32) {
    for line in BufReader::new(output).lines() {
        let Ok(line) = line else {
            return;
        };
        let Ok(event) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        let endpoint = event.get("endpoint").and_then(Value::as_str);
        if let Some((_, authority)) = endpoint.and_then(|endpoint| endpoint.split_once("://")) {
            // Asked for once; nobody waits later.
            let _ = told.send(authority.to_owned());
        }
        let process = event.get("pid").and_then(Value::as_u64);
        if let Some(process) = process.and_then(|process| u32::try_from(process).ok()) {
            arriving.store(process, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::example;

    #[test]
    fn a_benchs_guests_are_known_by_their_names() {
        let stage = Stage::new(Path::new("dunlin")).unwrap();
        assert!(is_guest_of_a_bench(&stage.guest));
        for other in [
            "bench-",
            "bench-1",
            "vm1",
            "bench-zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz",
        ] {
            assert!(!is_guest_of_a_bench(other), "{other}");
        }
    }

    #[test]
    fn a_report_becomes_a_run() {
        let report = example::moved();
        let value = serde_json::to_value(&report).unwrap();
        let used = Used {
            source_ns: 5,
            destination_ns: 7,
        };
        let run = run_of(&value, Some(used));
        assert!(run.is_good());
        assert_eq!(run.goodput_bytes_per_s, report.goodput_bytes_per_s);
        let blackout = report.blackout.unwrap();
        assert_eq!(run.blackout_ns, Some(blackout.total_ns));
        assert_eq!(run.parts, blackout.parts);
        assert_eq!(run.predicted_parts, blackout.predicted_parts);
        assert_eq!(run.cpu_ns(), Some(12));
        assert_eq!(run.is_equal, report.verification.equal);
    }

    #[test]
    fn a_report_of_another_build_is_read_as_far_as_it_goes() {
        let run = run_of(
            &serde_json::json!({"outcome": "moved", "total_ns": 5, "blackout": 3}),
            None,
        );
        assert_eq!(
            (run.outcome.as_str(), run.total_ns, run.blackout_ns),
            ("moved", 5, None)
        );
    }
}
