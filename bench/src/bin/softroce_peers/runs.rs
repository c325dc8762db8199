//! One run of a row: where it has its files, who watches it, and who counts its system calls.

use std::cell::OnceCell;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use dunlin_bench::ends::Ends;
use dunlin_bench::program::output_of;
use dunlin_bench::qemu as qemu_pair;
use dunlin_bench::random_memory::RandomMemory;
use dunlin_bench::usage::{Since, Usage, Watch};
use tempfile::TempDir;

use crate::calls::{Counter, SideCalls, SystemCalls};
use crate::results::Outcome;
use crate::rows::{QemuWay, Row, What};
use crate::{counts, dunlin, iperf, qemu, writebw};

/// The source's address on the wire, and the destination's.
pub(crate) const SOURCE: &str = "10.77.0.1";
pub(crate) const DESTINATION: &str = "10.77.0.2";

/// What is known of a run while it goes on.
pub(crate) struct Watched {
    watch: Watch,
    counter: Option<Counter>,
}

/// What all runs share.
pub(crate) struct Bench {
    pub(crate) dunlin: PathBuf,
    pub(crate) qemu: Option<PathBuf>,
    /// What QEMU says of itself.
    pub(crate) qemu_version: Option<String>,
    qemu_has_rdma: bool,
    /// How much random memory each moves.
    pub(crate) bytes: u64,
    pub(crate) ends: Ends,
    random_memory: OnceCell<RandomMemory>,
    site: TempDir,
}

/// One run while it goes on.
pub(crate) struct Run<'a> {
    pub(crate) bench: &'a Bench,
    directory: PathBuf,
    counts_calls: bool,
    calls: Option<SystemCalls>,
}

impl Bench {
    /// Sees to it that what every row needs is there.
    pub(crate) fn new(dunlin: PathBuf, qemu: Option<PathBuf>, bytes: u64) -> anyhow::Result<Self> {
        output_of(Command::new(&dunlin).arg("--version")).context("this is not dunlin")?;
        let site = TempDir::with_prefix("peers")?;
        let qemu_version = qemu.as_deref().and_then(qemu_pair::version);
        Ok(Self {
            qemu_has_rdma: match &qemu {
                Some(program) if qemu_version.is_some() => {
                    qemu_pair::has_rdma(program, site.path())?
                }
                _ => false,
            },
            qemu_version,
            dunlin,
            qemu,
            bytes,
            ends: Ends::existing(SOURCE.parse()?, DESTINATION.parse()?),
            random_memory: OnceCell::new(),
            site,
        })
    }

    /// What is missing for a row, if anything is.
    pub(crate) fn lacks(&self, row: &Row) -> Option<String> {
        let What::Qemu(way) = row.what else {
            return None;
        };
        let needs_rdma = matches!(way, QemuWay::Rdma { .. });
        qemu_pair::lacks(self.qemu_version.as_deref()).or_else(|| {
            let is_without = needs_rdma && !self.qemu_has_rdma;
            is_without.then(|| "QEMU was built without rdma:".to_owned())
        })
    }

    /// Runs a row.
    pub(crate) fn run(&self, row: &Row) -> anyhow::Result<Outcome> {
        let mut run = self.begin(false)?;
        let retries = counts::retries();
        let mut outcome = run.perform(row)?;
        outcome.retries = counts::retries() - retries;
        Ok(outcome)
    }

    /// Runs a row and counts its system calls.
    pub(crate) fn count_system_calls(&self, row: &Row) -> anyhow::Result<SystemCalls> {
        let mut run = self.begin(true)?;
        run.perform(row)?;
        run.calls.context("nothing was counted")
    }

    fn begin(&self, counts_calls: bool) -> anyhow::Result<Run<'_>> {
        let directory = self.site.path().join("run");
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir(&directory)?;
        Ok(Run {
            bench: self,
            directory,
            counts_calls,
            calls: None,
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

    /// Watches the two sides' processes from here on.
    pub(crate) fn watch(
        &self,
        source: u32,
        destination: u32,
        since: Since,
    ) -> anyhow::Result<Watched> {
        Ok(Watched {
            counter: self.counts_calls.then(Counter::start).transpose()?,
            watch: Watch::start(source, destination, since, counts::arrived_bytes),
        })
    }

    /// It is over.
    pub(crate) fn end(&mut self, watched: Watched) -> anyhow::Result<Usage> {
        let calls = watched.counter.map(Counter::end).transpose()?;
        let (usage, threads) = watched.watch.end()?;
        self.calls = calls.map(|calls| SystemCalls {
            source: SideCalls::of(&calls, &threads.source),
            destination: SideCalls::of(&calls, &threads.destination),
        });
        Ok(usage)
    }

    /// Random bytes for a guest of another program, made once.
    pub(crate) fn random_memory(&self) -> anyhow::Result<PathBuf> {
        let made = match self.bench.random_memory.get() {
            Some(made) => made,
            None => {
                let made = RandomMemory::make(self.bench.bytes)?;
                self.bench.random_memory.get_or_init(|| made)
            }
        };
        Ok(made.path().to_owned())
    }
}
