//! Running `dunlin`: every wait has a limit, every process ends with the scenario.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::measured::{REPORT_SCHEMA, check_report};

/// The longest that one command of a scenario may take.
pub const COMMAND_TIME_MAX: Duration = Duration::from_secs(180);

/// The program: `$DUNLIN`, else the release build in the workspace's target directory.
pub fn dunlin() -> PathBuf {
    if let Some(path) = std::env::var_os("DUNLIN") {
        return path.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    target.join("release/dunlin")
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Output {
    /// Its exit code; 128 and the signal's number when a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Output {
    /// Its standard output as JSON. The report of a move is checked, whatever came of it.
    ///
    /// # Errors
    ///
    /// When it is none, or a report with a mistake in it.
    pub fn json(&self) -> Result<Value> {
        let document: Value =
            serde_json::from_str(&self.stdout).with_context(|| format!("not JSON: {self:?}"))?;
        if document["schema"] == REPORT_SCHEMA {
            check_report(&document)?;
        }
        Ok(document)
    }

    /// Checks the exit code.
    ///
    /// # Errors
    ///
    /// When it is another one; the error carries all that was printed.
    pub fn expect_code(self, code: i32) -> Result<Self> {
        if self.code != code {
            bail!("exit code {} instead of {code}: {self:#?}", self.code);
        }
        Ok(self)
    }
}

/// A line that a process printed.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it came.
    pub at: Instant,
    /// What it says.
    pub text: String,
}

/// A running process that ends when this value does. Its lines can be waited for.
pub struct Running {
    child: Child,
    lines: Receiver<Line>,
    seen: Vec<Line>,
    /// What it complained about so far.
    complained: Arc<Mutex<String>>,
    complaining: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    /// Starts a command.
    ///
    /// # Errors
    ///
    /// When it can't be started.
    pub fn start(mut command: Command) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {command:?}: is it built?"))?;
        let (sender, lines) = channel();
        let stdout = child.stdout.take().context("no standard output")?;
        std::thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                let at = Instant::now();
                if sender.send(Line { at, text }).is_err() {
                    return;
                }
            }
        });
        let stderr = child.stderr.take().context("no standard error")?;
        let complained = Arc::new(Mutex::new(String::new()));
        let complaints = Arc::clone(&complained);
        let complaining = std::thread::spawn(move || {
            // Read to its end whatever it is: nobody's complaint may stop at a closed pipe.
            for bytes in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                let Ok(mut all) = complaints.lock() else {
                    return;
                };
                all.push_str(&String::from_utf8_lossy(&bytes));
                all.push('\n');
            }
        });
        Ok(Self {
            child,
            lines,
            seen: Vec::new(),
            complained,
            complaining: Some(complaining),
        })
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line that `wanted` likes, and returns it.
    ///
    /// # Errors
    ///
    /// When none comes.
    pub fn line(&mut self, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + COMMAND_TIME_MAX;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                self.kill();
                bail!(
                    "the awaited line did not come; seen:\n{}{}",
                    self.printed(),
                    self.complaints()
                );
            };
            let text = line.text.clone();
            self.seen.push(line);
            if wanted(&text) {
                return Ok(text);
            }
        }
    }

    /// Waits for a JSON line whose `event` is this.
    ///
    /// # Errors
    ///
    /// When none comes.
    pub fn event(&mut self, event: &str) -> Result<Value> {
        let is = |line: &str| {
            serde_json::from_str::<Value>(line).is_ok_and(|value| value["event"] == event)
        };
        Ok(serde_json::from_str(&self.line(is)?)?)
    }

    /// What it has printed so far.
    pub fn lines_so_far(&mut self) -> &[Line] {
        self.seen.extend(self.lines.try_iter());
        &self.seen
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        signal_process(self.pid(), signal);
    }

    /// Ends it by `kill -9`.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until it ends.
    ///
    /// # Errors
    ///
    /// When it does not, within [`COMMAND_TIME_MAX`].
    pub fn wait(mut self) -> Result<Output> {
        let deadline = Instant::now() + COMMAND_TIME_MAX;
        loop {
            if let Some(status) = self.ended() {
                self.seen.extend(self.lines.iter());
                return Ok(Output {
                    code: code(status),
                    stdout: self.printed(),
                    stderr: self.complaints(),
                });
            }
            if Instant::now() >= deadline {
                self.kill();
                bail!("did not end: {}{}", self.printed(), self.complaints());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn printed(&self) -> String {
        let lines = self.seen.iter();
        lines.map(|line| format!("{}\n", line.text)).collect()
    }

    /// All that it complained about; whoever else writes there has ended by then.
    fn complaints(&mut self) -> String {
        if let Some(thread) = self.complaining.take() {
            // Whatever it has read is there.
            let _ = thread.join();
        }
        self.complained_so_far()
    }

    fn complained_so_far(&self) -> String {
        match self.complained.lock() {
            Ok(text) => text.clone(),
            Err(_) => String::new(),
        }
    }

    /// What it printed and complained about so far, each line under `name`: for who looks into a
    /// scenario that failed.
    pub fn said_so_far(&mut self, name: &str) -> Vec<String> {
        self.lines_so_far();
        let printed = self
            .seen
            .iter()
            .map(|line| format!("{name}: {}", line.text));
        let mut said: Vec<String> = printed.collect();
        let complained = self.complained_so_far();
        said.extend(
            complained
                .lines()
                .map(|line| format!("{name} (stderr): {line}")),
        );
        said
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal to a process that the scenario started. One that is gone is left alone.
pub fn signal_process(pid: u32, signal: i32) {
    let Ok(pid) = i32::try_from(pid) else { return };
    // SAFETY: kill(2) takes two integers and touches no memory.
    unsafe { libc::kill(pid, signal) };
}

/// Lets all else that wants to run go before the vCPUs of a guest's process: the built-in guest looks
/// at its clock all the time, and would take a processor from the move that no idle guest takes.
pub fn give_way(pid: u32) {
    const NICE: i32 = 10;
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    for task in tasks.into_iter().flatten().flatten() {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let id = task.file_name().to_str().and_then(|id| id.parse().ok());
        if let (true, Some(id)) = (name.starts_with("vcpu-"), id) {
            // SAFETY: setpriority(2) takes three integers and touches no memory.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, id, NICE) };
        }
    }
}

/// Whether a process is there (and not merely a zombie).
pub fn is_alive(pid: u32) -> bool {
    !matches!(process_state(pid), None | Some('Z' | 'X'))
}

/// Whether a process is stopped by a signal.
pub fn is_stopped(pid: u32) -> bool {
    process_state(pid) == Some('T')
}

/// All memory that a process holds, in KiB.
///
/// # Errors
///
/// When there is no such process.
pub fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let line = line.context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// The letter for what a process does, as in proc(5); `None` when there is none.
fn process_state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.trim_start().chars().next()
}

/// The processes whose environment has this entry, as in `NAME=value`.
pub fn processes_with(environment: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has_entry = |pid: &u32| {
        let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        bytes
            .split(|byte| *byte == 0)
            .any(|entry| entry == environment.as_bytes())
    };
    pids.filter(has_entry)
        .filter(|pid| is_alive(*pid))
        .collect()
}

/// Waits until `done` says yes.
///
/// # Errors
///
/// When it does not, within a minute.
pub fn eventually(what: &str, done: impl FnMut() -> Result<bool>) -> Result<()> {
    eventually_within(Duration::from_secs(60), what, done)
}

/// Waits until `done` says yes, for so long at most. What takes long is asked less and less often:
/// asking may be work too.
///
/// # Errors
///
/// When it does not.
pub fn eventually_within(
    limit: Duration,
    what: &str,
    mut done: impl FnMut() -> Result<bool>,
) -> Result<()> {
    const INTERVALS: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];
    let begun = Instant::now();
    while !done()? {
        let waited = begun.elapsed();
        if waited >= limit {
            bail!("waited {} s in vain: {what}", limit.as_secs());
        }
        std::thread::sleep((waited / 16).clamp(INTERVALS[0], INTERVALS[1]));
    }
    Ok(())
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
