//! Processes: started, waited for within bounds, and ended with whoever started them.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often something is looked at again.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// For everything that could hang: an emulated machine is slow, and its host may be busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// For a process that was told to end.
const FAREWELL: Duration = Duration::from_secs(10);

/// A process that ends with this value.
#[derive(Debug)]
pub struct Program {
    child: Child,
    name: String,
}

impl Program {
    /// Starts it, with nothing to read.
    ///
    /// # Errors
    ///
    /// When there is no such program.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        Self::spawn(command.stdin(Stdio::null()))
    }

    /// Starts it with a standard input that ends when this value, or this process, does.
    ///
    /// # Errors
    ///
    /// When there is no such program.
    pub fn start_on_leash(command: &mut Command) -> anyhow::Result<Self> {
        Self::spawn(command.stdin(Stdio::piped()))
    }

    fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn();
        Ok(Self {
            child: child.with_context(|| format!("starting {name}"))?,
            name,
        })
    }

    /// The process's number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(id) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may be gone.
            let _ = kill_process(id, signal);
        }
    }

    /// Waits until it has ended, but leaves it to be asked for its processor time.
    pub fn wait_until_ended(&self) -> anyhow::Result<()> {
        wait_until_ended(self.id(), &self.name)
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        self.wait_until_ended()?;
        Ok(self.child.wait()?)
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end, which has to be a good one.
    pub fn succeed(&mut self) -> anyhow::Result<()> {
        let status = self.wait()?;
        if !status.success() {
            bail!("{} ended with {status}", self.name);
        }
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        let begun = Instant::now();
        while !self.has_ended() {
            if begun.elapsed() > FAREWELL {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

/// Waits until a process has ended and its memory is free, whoever started it.
///
/// # Errors
///
/// When it takes longer than [`PATIENCE`], with its `name`.
pub fn wait_until_ended(process: u32, name: &str) -> anyhow::Result<()> {
    let stat = format!("/proc/{process}/stat");
    wait_for(&format!("{name} to end"), || {
        let text = std::fs::read_to_string(&stat).unwrap_or_default();
        let state = text.rsplit_once(") ").map_or("Z", |(_, rest)| rest);
        Ok(state.starts_with(['Z', 'X']))
    })
}

/// Runs a command to its end and gives what it printed.
pub fn output_of(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("running {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} ended with {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Looks again and again until `is_so`.
///
/// # Errors
///
/// When it takes longer than [`PATIENCE`], naming what was waited for.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !is_so()? {
        if begun.elapsed() > PATIENCE {
            bail!("waited {} s for {what}", PATIENCE.as_secs());
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    Ok(())
}
