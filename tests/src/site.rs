//! A site: a host as far as Dunlin can tell, with a runtime directory, guests and a receiver.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::measured::REPORT_SCHEMA;
use crate::program::{
    Output, Running, dunlin, eventually, eventually_within, is_alive, processes_with,
    signal_process,
};

/// How long a guest's memory may take to be filled: 1 GiB, on one emulated processor.
const FILLING_TIME: Duration = Duration::from_secs(240);

/// A site. What was started on it ends with it.
pub struct Site {
    root: TempDir,
    directory: PathBuf,
    /// What `dunlin` is started by, where it is not started itself.
    launcher: Vec<String>,
    environment: Vec<(OsString, OsString)>,
}

/// A receiver at a site.
pub struct Receiver {
    /// Its process.
    pub process: Running,
    /// Where it listens.
    pub endpoint: String,
}

impl Receiver {
    /// The port that it listens at.
    ///
    /// # Errors
    ///
    /// When the endpoint has none.
    pub fn port(&self) -> Result<u16> {
        let (_, port) = self.endpoint.rsplit_once(':').context("no port")?;
        Ok(port.parse()?)
    }
}

impl Site {
    /// A site on this machine.
    ///
    /// # Errors
    ///
    /// When its directory can't be made.
    pub fn new() -> Result<Self> {
        Self::at(std::env::temp_dir(), None)
    }

    /// A site with its directory inside another one.
    ///
    /// # Errors
    ///
    /// When its directory can't be made.
    pub fn inside(directory: &Path, namespace: Option<&str>) -> Result<Self> {
        Self::at(directory.to_owned(), namespace)
    }

    /// A site in a network namespace.
    ///
    /// # Errors
    ///
    /// When its directory can't be made.
    pub fn in_namespace(namespace: &str) -> Result<Self> {
        Self::at(std::env::temp_dir(), Some(namespace))
    }

    fn at(parent: PathBuf, namespace: Option<&str>) -> Result<Self> {
        let root = tempfile::Builder::new()
            .prefix("dunlin-site-")
            .tempdir_in(parent)?;
        let directory = root.path().join("run");
        std::fs::create_dir(&directory)?;
        let inside = |name| ["ip", "netns", "exec", name].map(str::to_owned).to_vec();
        Ok(Self {
            root,
            directory,
            launcher: namespace.map(inside).unwrap_or_default(),
            environment: Vec::new(),
        })
    }

    /// Sets an environment variable for what is started from here on; `None` takes it away.
    pub fn set_environment(&mut self, name: &str, value: Option<&str>) {
        self.environment.retain(|(known, _)| known != name);
        let entry = value.map(|value| (name.into(), value.into()));
        self.environment.extend(entry);
    }

    /// What is started from here on may lock so many bytes of memory (RLIMIT_MEMLOCK), root too;
    /// `None`: any, but root's right to ignore the limit is gone all the same.
    ///
    /// It needs the programs `setpriv` and `prlimit`, of util-linux.
    pub fn limit_locked_memory(&mut self, bytes: Option<u64>) {
        let limit = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
        let limit = format!("--memlock={limit}:unlimited");
        let words = ["prlimit", &limit, "setpriv", "--bounding-set=-ipc_lock"];
        let words = words.into_iter().chain(["--inh-caps=-ipc_lock"]);
        self.launcher = words.map(str::to_owned).collect();
    }

    /// Keeps its directory when this value goes.
    pub fn keep(&mut self) {
        self.root.disable_cleanup(true);
    }

    /// The processes of this site.
    pub fn processes(&self) -> Vec<u32> {
        processes_with(&format!(
            "DUNLIN_RUNTIME_DIR={}",
            self.directory().display()
        ))
    }

    /// Its runtime directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// How its guests and records are, in the words of 'status': for who looks into a scenario that
    /// failed.
    pub fn tell(&self, name: &str) -> Vec<String> {
        match self.run(&["status", "--json"]) {
            Ok(output) => {
                let said = format!("{}{}", output.stdout, output.stderr);
                said.lines().map(|line| format!("{name}: {line}")).collect()
            }
            Err(error) => vec![format!("{name}: 'status': {error:#}")],
        }
    }

    /// Where its records of handovers are.
    pub fn state_directory(&self) -> PathBuf {
        self.root.path().join("state")
    }

    /// `dunlin` with these arguments, at this site.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match self.launcher.split_first() {
            None => Command::new(dunlin()),
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words).arg(dunlin());
                command
            }
        };
        command
            .args(arguments)
            .env("DUNLIN_RUNTIME_DIR", self.directory())
            .env("DUNLIN_STATE_DIR", self.state_directory())
            .envs(self.environment.iter().cloned());
        command
    }

    /// Starts `dunlin` with these arguments.
    ///
    /// # Errors
    ///
    /// When it can't be started.
    pub fn start(&self, arguments: &[&str]) -> Result<Running> {
        Running::start(self.command(arguments))
    }

    /// Runs `dunlin` with these arguments to its end.
    ///
    /// # Errors
    ///
    /// When it can't be started or does not end.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        self.start(arguments)?.wait()
    }

    /// Starts a guest and waits until it runs.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn guest(&self, name: &str, arguments: &[&str]) -> Result<Running> {
        let mut all = vec!["run", "--name", name];
        all.extend(arguments);
        let mut process = self.start(&all)?;
        eventually_within(FILLING_TIME, "the guest runs", || {
            if let Some(status) = process.ended() {
                bail!("'dunlin run' ended: {status}");
            }
            Ok(self
                .status(name)
                .is_ok_and(|guest| guest["state"] == "running"))
        })
        .with_context(|| format!("{all:?}"))?;
        Ok(process)
    }

    /// Starts a receiver on a free port of the loopback address.
    ///
    /// # Errors
    ///
    /// When it does not listen.
    pub fn receiver(&self, arguments: &[&str]) -> Result<Receiver> {
        self.receiver_at("tcp://127.0.0.1:0", arguments)
    }

    /// Starts a receiver.
    ///
    /// # Errors
    ///
    /// When it does not listen.
    pub fn receiver_at(&self, listen: &str, arguments: &[&str]) -> Result<Receiver> {
        let mut all = vec!["receive", "--json", "--listen", listen];
        all.extend(arguments);
        let mut process = self.start(&all)?;
        let listening = process.event("listening")?;
        let endpoint = listening["endpoint"]
            .as_str()
            .context("no endpoint")?
            .to_owned();
        Ok(Receiver { process, endpoint })
    }

    /// Moves a guest away and returns the report, whatever came of it.
    ///
    /// # Errors
    ///
    /// When `send` ends with another exit code than `code`, or prints no report, or one with a mistake
    /// in it.
    pub fn send(&self, name: &str, to: &str, arguments: &[&str], code: i32) -> Result<Value> {
        let mut all = vec!["send", name, "--to", to, "--json", "--quiet"];
        // Machines that run tests are slow and busy: the default budget is none to rely on there.
        if !arguments.contains(&"--max-blackout") {
            all.extend(["--max-blackout", "2s"]);
        }
        all.extend(arguments);
        let report = self.run(&all)?.expect_code(code)?.json()?;
        ensure!(report["schema"] == REPORT_SCHEMA, "no report: {report:#}");
        Ok(report)
    }

    /// How a guest is.
    ///
    /// # Errors
    ///
    /// When there is none of that name.
    pub fn status(&self, name: &str) -> Result<Value> {
        self.run(&["status", name, "--json"])?
            .expect_code(0)?
            .json()
    }

    /// How a guest is, asked of its process itself: quick enough to be asked again and again.
    /// `None` when there is none, or it does not answer within `patience`.
    pub fn ask(&self, name: &str, patience: Duration) -> Option<Value> {
        let socket = self.directory().join(format!("{name}.sock"));
        let mut stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        stream
            .write_all(b"{\"v\":1,\"request\":\"status\"}\n")
            .ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        let answer: Value = serde_json::from_str(&line).ok()?;
        answer.get("guest").cloned()
    }

    /// Pages that a guest's workload has written so far.
    ///
    /// # Errors
    ///
    /// When there is no such guest.
    pub fn pages_written(&self, name: &str) -> Result<u64> {
        let status = self.status(name)?;
        status["workload"]["pages_written"]
            .as_u64()
            .with_context(|| format!("{status}"))
    }

    /// Sees that a guest goes on working here.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn expect_goes_on(&self, name: &str) -> Result<()> {
        // 'send' may end a moment before the guest's process here has put its affairs in order.
        eventually("the guest is here", || {
            Ok(self.status(name)?["state"] == "running")
        })?;
        let before = self.pages_written(name)?;
        eventually("the guest goes on", || {
            Ok(self.pages_written(name)? > before)
        })
    }

    /// Waits until a move of the guest is under way and in this phase.
    ///
    /// # Errors
    ///
    /// When it does not get there.
    pub fn await_phase(&self, name: &str, phase: &str) -> Result<()> {
        eventually(phase, || {
            let status = self.status(name)?;
            Ok(status["move_under_way"]["progress"]["phase"] == phase)
        })
    }

    /// The processes of the guests that are here.
    fn guest_pids(&self) -> Vec<u32> {
        let status = self
            .run(&["status", "--json"])
            .and_then(|output| output.json());
        let Ok(status) = status else {
            return Vec::new();
        };
        let guests = status["guests"].as_array().cloned().unwrap_or_default();
        let pids = guests.iter().filter_map(|guest| guest["pid"].as_u64());
        pids.filter_map(|pid| u32::try_from(pid).ok()).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // Guests that arrived are processes of their own; what does not end when asked, is ended.
        for pid in self.guest_pids() {
            signal_process(pid, libc::SIGTERM);
            for _ in 0..200 {
                if !is_alive(pid) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            if is_alive(pid) {
                signal_process(pid, libc::SIGKILL);
            }
        }
    }
}

/// Checks that a report tells of a move that went well and was verified.
///
/// # Errors
///
/// When it does not.
pub fn expect_moved(report: &Value) -> Result<()> {
    let moved = report["outcome"] == "moved" && report["verification"]["equal"] == true;
    let parts = report["blackout"]["parts"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let sum: u64 = parts
        .iter()
        .filter_map(|part| part["duration_ns"].as_u64())
        .sum();
    let adds_up = report["blackout"]["total_ns"].as_u64() == Some(sum) && !parts.is_empty();
    if !moved || !adds_up {
        bail!("not a good move: {report:#}");
    }
    Ok(())
}
