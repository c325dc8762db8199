//! One run of a row: where it has its files, who watches it, who counts its system calls.

use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use dunlin_bench::SplitMix;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::programs::{Program, output_of, wait_for};
use crate::results::Outcome;
use crate::rows::{QemuWay, Row, What};
use crate::{counts, dunlin, iperf, qemu, writebw};

/// The source's address on the wire, and the destination's.
pub(crate) const SOURCE: &str = "10.77.0.1";
pub(crate) const DESTINATION: &str = "10.77.0.2";

/// Where memory is that has a name.
const MEMORY_DIRECTORY: &str = "/dev/shm";

/// What all runs share.
pub(crate) struct Bench {
    pub(crate) dunlin: PathBuf,
    pub(crate) qemu: Option<PathBuf>,
    /// What QEMU says of itself.
    pub(crate) qemu_version: Option<String>,
    qemu_has_rdma: bool,
    /// How much random memory each moves.
    pub(crate) bytes: u64,
    site: TempDir,
}

/// How a run is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Timed,
    Traced,
}

/// One run while it goes on.
pub(crate) struct Run<'a> {
    pub(crate) bench: &'a Bench,
    mode: Mode,
    directory: PathBuf,
    tracers: Vec<(&'static str, Program)>,
}

impl Bench {
    /// Sees to it that what every row needs is there.
    pub(crate) fn new(dunlin: PathBuf, qemu: Option<PathBuf>, bytes: u64) -> anyhow::Result<Self> {
        output_of(Command::new(&dunlin).arg("--version")).context("this is not dunlin")?;
        let version = |program: &PathBuf| {
            let text = output_of(Command::new(program).arg("--version")).ok()?;
            Some(text.lines().next()?.to_owned())
        };
        let site = TempDir::with_prefix("peers")?;
        let qemu_version = qemu.as_ref().and_then(version);
        Ok(Self {
            qemu_has_rdma: match &qemu {
                Some(program) if qemu_version.is_some() => qemu::has_rdma(program, site.path())?,
                _ => false,
            },
            qemu_version,
            dunlin,
            qemu,
            bytes,
            site,
        })
    }

    /// What is missing for a row, if anything is.
    pub(crate) fn lacks(&self, row: &Row) -> Option<String> {
        let What::Qemu(way) = row.what else {
            return None;
        };
        let Some(version) = &self.qemu_version else {
            return Some("there is no QEMU (bookworm-backports has one)".to_owned());
        };
        let needs_rdma = matches!(way, QemuWay::Rdma { .. });
        (needs_rdma && !self.qemu_has_rdma).then(|| format!("{version} was built without rdma:"))
    }

    /// Runs a row.
    pub(crate) fn run(&self, row: &Row) -> anyhow::Result<Outcome> {
        let mut run = self.begin(Mode::Timed)?;
        let retries = counts::retries();
        let mut outcome = run.perform(row)?;
        outcome.retries = counts::retries() - retries;
        Ok(outcome)
    }

    /// Runs a row and counts its system calls.
    pub(crate) fn count_system_calls(&self, row: &Row) -> anyhow::Result<SystemCalls> {
        let mut run = self.begin(Mode::Traced)?;
        run.perform(row)?;
        for (_, tracer) in &mut run.tracers {
            tracer.signal(Signal::INT);
            tracer.wait()?;
        }
        Ok(SystemCalls {
            source: run.counted("source")?,
            destination: run.counted("destination")?,
        })
    }

    fn begin(&self, mode: Mode) -> anyhow::Result<Run<'_>> {
        let directory = self.site.path().join("run");
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir(&directory)?;
        Ok(Run {
            bench: self,
            mode,
            directory,
            tracers: Vec::new(),
        })
    }
}

impl Run<'_> {
    fn perform(&mut self, row: &Row) -> anyhow::Result<Outcome> {
        match &row.what {
            What::WriteBandwidth {
                message_bytes,
                pairs,
            } => writebw::run(self, *message_bytes, *pairs),
            What::Dunlin {
                scheme,
                lanes,
                scattered,
                window,
            } => dunlin::run(self, scheme, *lanes, *scattered, *window),
            What::Qemu(way) => qemu::run(self, *way),
            What::Iperf { streams } => iperf::run(self, *streams),
        }
    }

    /// A place for a file of this run.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A command of one side that is counted from its start, if this run counts.
    pub(crate) fn command(&self, side: &str, program: &str) -> Command {
        match self.mode {
            Mode::Timed => Command::new(program),
            Mode::Traced => {
                let mut command = Command::new("strace");
                command.args(["-f", "-c", "-o"]);
                command
                    .arg(self.path(&format!("{side}.calls")))
                    .arg(program);
                command
            }
        }
    }

    /// From here on the system calls of a process are counted, if this run counts.
    pub(crate) fn trace(&mut self, side: &'static str, process: u32) -> anyhow::Result<()> {
        if self.mode == Mode::Timed {
            return Ok(());
        }
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-o"]);
        command.arg(self.path(&format!("{side}.calls")));
        command.args(["-p", &process.to_string()]);
        command.stderr(fs::File::create(self.path(&format!("{side}.strace")))?);
        let mut tracer = Program::start(&mut command)?;
        wait_for("strace", || {
            if tracer.has_ended() {
                bail!("strace can't look at process {process}");
            }
            Ok(tasks_traced(process))
        })?;
        self.tracers.push((side, tracer));
        Ok(())
    }

    fn counted(&self, side: &str) -> anyhow::Result<SideCalls> {
        let path = self.path(&format!("{side}.calls"));
        let text = fs::read_to_string(&path)
            .with_context(|| format!("strace left nothing at {}", path.display()))?;
        SideCalls::read(&text).with_context(|| format!("strace's table has no total: {text}"))
    }

    /// A file in memory with random bytes, made once.
    pub(crate) fn random_memory(&self) -> anyhow::Result<PathBuf> {
        let bytes = self.bench.bytes;
        let path = Path::new(MEMORY_DIRECTORY).join("softroce-peers");
        if path.metadata().is_ok_and(|file| file.len() == bytes) {
            return Ok(path);
        }
        let mut file = std::io::BufWriter::with_capacity(1 << 20, fs::File::create(&path)?);
        let mut random = SplitMix(7);
        for _ in 0..bytes / 8 {
            file.write_all(&random.next_u64().to_le_bytes())?;
        }
        file.flush()?;
        Ok(path)
    }
}

/// Whether each of a process's threads has a tracer.
fn tasks_traced(process: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else {
        return false;
    };
    tasks.flatten().all(|task| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let tracer = status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"));
        tracer.is_some_and(|id| id.trim() != "0")
    })
}

/// How many system calls both sides made.
#[derive(Clone, Debug)]
pub(crate) struct SystemCalls {
    pub(crate) source: SideCalls,
    pub(crate) destination: SideCalls,
}

/// How many system calls one side made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SideCalls {
    pub(crate) calls: u64,
    /// The most frequent ones.
    pub(crate) most: Vec<(String, u64)>,
}

impl SideCalls {
    /// Reads the table of `strace -c`: percentage, seconds, microseconds a call, calls, errors
    /// where there are any, and the name.
    fn read(text: &str) -> Option<Self> {
        let mut most = Vec::new();
        let mut total = None;
        for line in text.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(calls), Some(name)) = (
                fields.get(3).and_then(|field| field.parse().ok()),
                fields.last(),
            ) else {
                continue;
            };
            if *name == "total" {
                total = Some(calls);
            } else {
                most.push(((*name).to_owned(), calls));
            }
        }
        most.sort_by_key(|(_, calls)| std::cmp::Reverse(*calls));
        most.truncate(4);
        Some(Self {
            calls: total?,
            most,
        })
    }
}

impl fmt::Display for SystemCalls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "source {}, destination {}",
            self.source, self.destination
        )
    }
}

impl fmt::Display for SideCalls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = self
            .most
            .iter()
            .map(|(name, calls)| format!("{name} {calls}"));
        let most: Vec<String> = most.collect();
        write!(formatter, "{} ({})", self.calls, most.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_strace_is_read() {
        let text = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 80.00    0.800000          80     10000           write
 20.00    0.200000          20      1000        30 poll
------ ----------- ----------- --------- --------- ----------------
100.00    1.000000          90     11000        30 total
";
        let expected = SideCalls {
            calls: 11000,
            most: vec![("write".to_owned(), 10000), ("poll".to_owned(), 1000)],
        };
        assert_eq!(SideCalls::read(text), Some(expected));
        assert_eq!(SideCalls::read(""), None);
    }
}
