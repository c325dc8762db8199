//! One run of a row.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use dunlin_bench::ends::Ends;
use dunlin_bench::program::{PATIENCE, output_of};
use dunlin_bench::random_memory::RandomMemory;
use dunlin_bench::site::{SYSTEM_AREA_BYTES, Site, give_way};
use dunlin_bench::usage::{Since, Watch};
use dunlin_bench::{host, iperf, qemu};
use tempfile::TempDir;

use crate::results::{Outcome, PAUSE_BUDGET_MS};
use crate::rows::{DunlinWay, Link, QemuWay, Row, What};
use crate::{Arguments, raw};

/// Where QEMU's destination and iperf3's server wait.
const QEMU_PORT: u16 = 24_444;
const IPERF_PORT: u16 = 25_201;

/// The guest's name at Dunlin.
const GUEST: &str = "peer";

/// What processes take besides guests' memory.
const OVERHEAD_BYTES: u64 = 1 << 30;

/// What all runs share.
pub(crate) struct Bench {
    programs: Arguments,
    pub(crate) qemu_version: Option<String>,
    pub(crate) iperf_version: Option<String>,
    pub(crate) bytes: u64,
    loopback: Ends,
    veth: Result<Ends, String>,
    /// QEMU's guest's memory at the source.
    memory: Option<RandomMemory>,
    /// The best settings of plain send and recv.
    raw: Vec<(Link, raw::Memory, raw::Trial)>,
    site: TempDir,
}

impl Bench {
    /// Sees to it that what the rows need is there, as far as it can be had.
    pub(crate) fn new(arguments: &Arguments, rows: &[Row]) -> anyhow::Result<Self> {
        output_of(Command::new(&arguments.dunlin).arg("--version"))
            .context("this is not dunlin")?;
        let bytes = arguments.mebibytes << 20;
        // The guest at both sides, and the file that QEMU's is made of.
        let needed = 3 * bytes + OVERHEAD_BYTES;
        ensure!(
            host::available_bytes() >= needed,
            "this takes {} GiB of free memory; --mebibytes takes less",
            needed.div_ceil(1 << 30)
        );
        let qemu_version = qemu::version(&arguments.qemu);
        let needs = |matches: fn(&Row) -> bool| rows.iter().any(matches);
        let wants_memory = needs(|row| matches!(row.what, What::Qemu { .. }));
        let veth = if needs(|row| row.link == Link::Veth) {
            let name = format!("peers{}", std::process::id());
            Ends::veth(&name).map_err(|error| format!("{error:#}"))
        } else {
            Err("not asked for".to_owned())
        };
        Ok(Self {
            programs: arguments.clone(),
            memory: (wants_memory && qemu_version.is_some())
                .then(|| RandomMemory::make(bytes))
                .transpose()?,
            qemu_version,
            iperf_version: iperf::version(&arguments.iperf3),
            bytes,
            loopback: Ends::loopback(),
            veth,
            raw: Vec::new(),
            site: TempDir::with_prefix("dunlin-peers-")?,
        })
    }

    /// What is missing for a row, if anything is.
    pub(crate) fn lacks(&self, row: &Row) -> Option<String> {
        if let (Link::Veth, Err(reason)) = (row.link, &self.veth) {
            return Some(reason.clone());
        }
        match row.what {
            What::Qemu { .. } => qemu::lacks(self.qemu_version.as_deref()),
            What::Iperf { .. } if self.iperf_version.is_none() => {
                Some(format!("there is no {}", self.programs.iperf3.display()))
            }
            _ => None,
        }
    }

    /// Finds the best settings of plain send and recv for the rows that need them.
    pub(crate) fn search(&mut self, rows: &[Row]) -> anyhow::Result<Vec<(Link, raw::Trial)>> {
        for row in rows {
            if let What::Raw { streams, memory } = row.what {
                let program = &self.programs.raw_socket;
                let directory = self.site.path();
                let ends = self.ends(row.link)?;
                let mut known = self.raw.iter();
                let touched = known.find(|(on, of, (settings, _))| {
                    (*on, *of, settings.streams) == (row.link, raw::Memory::Touched, streams)
                });
                let touched = touched.map(|(_, _, (settings, _))| settings);
                let what = (streams, memory);
                let found = raw::search(program, ends, directory, what, touched, self.bytes)?;
                eprintln!(
                    "{}, {}: best with {} KiB a call, sockets' buffers {} KiB (0: the kernel's own), {} memory",
                    row.link,
                    row.name,
                    found.0.buffer_bytes >> 10,
                    found.0.socket_buffer_bytes >> 10,
                    found.0.memory
                );
                self.raw.push((row.link, memory, found));
            }
        }
        let found = self.raw.iter();
        Ok(found
            .map(|(link, _, trial)| (*link, trial.clone()))
            .collect())
    }

    /// Runs a row.
    pub(crate) fn run(&self, row: &Row) -> anyhow::Result<Outcome> {
        let directory = self.site.path().join("run");
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir(&directory)?;
        let run = Run {
            bench: self,
            ends: self.ends(row.link)?,
            directory,
        };
        match row.what {
            What::Raw { streams, memory } => run.raw(row.link, streams, memory),
            What::Iperf { streams } => run.iperf(streams),
            What::Dunlin { way, hot_mebibytes } => run.dunlin(way, hot_mebibytes),
            What::Qemu {
                way,
                touched,
                hot_mebibytes,
            } => run.qemu(way, touched, hot_mebibytes),
        }
    }

    fn ends(&self, link: Link) -> anyhow::Result<&Ends> {
        match link {
            Link::Loopback => Ok(&self.loopback),
            Link::Veth => self.veth.as_ref().ok().context("no veth pair"),
        }
    }
}

/// One run while it goes on.
struct Run<'a> {
    bench: &'a Bench,
    ends: &'a Ends,
    directory: PathBuf,
}

impl Run<'_> {
    fn raw(&self, link: Link, streams: u32, memory: raw::Memory) -> anyhow::Result<Outcome> {
        let mut known = self.bench.raw.iter();
        let found = known
            .find(|(on, of, (settings, _))| (*on, *of, settings.streams) == (link, memory, streams))
            .context("no settings")?;
        let (_, _, (settings, _)) = found;
        let program = &self.bench.programs.raw_socket;
        raw::run(
            program,
            self.ends,
            &self.directory,
            settings,
            self.bench.bytes,
        )
    }

    fn iperf(&self, streams: u32) -> anyhow::Result<Outcome> {
        let (program, bytes) = (&self.bench.programs.iperf3, self.bench.bytes);
        let log = self.directory.join("client.json");
        let session = iperf::Session::start(program, self.ends, IPERF_PORT, streams, bytes, log)?;
        let (client, server) = (session.client.id(), session.server.id());
        let watch = Watch::start(client, server, Since::Birth, || 0);
        session.wait_until_ended()?;
        let (usage, _) = watch.end()?;
        let told = session.told()?;
        let goodput = told.bytes as f64 / told.seconds;
        Ok(Outcome::new(told.bytes, goodput, told.seconds, usage))
    }

    fn dunlin(&self, way: DunlinWay, hot: Option<u32>) -> anyhow::Result<Outcome> {
        let program = &self.bench.programs.dunlin;
        let site = |name, end: &dunlin_bench::ends::End| {
            Site::new(program, self.directory.join(name), end.clone())
        };
        let (source, destination) = (
            site("a", &self.ends.source)?,
            site("b", &self.ends.destination)?,
        );
        let prefault = if way.touched { "on" } else { "auto" };
        let mut receive = vec!["--prefault", prefault];
        if way.private {
            receive.extend(["--memory-backing", "anon"]);
        }
        let receiver = destination.receiver(&receive)?;
        let memory = (self.bench.bytes + SYSTEM_AREA_BYTES).to_string();
        let workload = match hot {
            None => "hot=0,zero=0".to_owned(),
            Some(hot) => format!("hot={hot}MiB,rate=max,zero=0"),
        };
        let mut guest = source.guest(
            GUEST,
            &[
                "--guest",
                "kvm",
                "--memory",
                &memory,
                "--workload",
                &workload,
            ],
        )?;
        if hot.is_none() {
            give_way(guest.id())?;
        }
        let (lanes, bind) = (way.lanes.to_string(), self.ends.source.address.to_string());
        let timeout = format!("{}s", PATIENCE.as_secs());
        let budget = format!("{PAUSE_BUDGET_MS}ms");
        let mut arguments = vec!["--verify", "off", "--bind", &bind, "--lanes", &lanes];
        arguments.extend(["--timeout", &timeout, "--max-blackout", &budget]);
        let watch = Watch::start(
            guest.id(),
            receiver.program.id(),
            Since::DestinationBirth,
            || 0,
        );
        let made = source.send(GUEST, "tcp", &receiver, &arguments);
        let (mut usage, _) = watch.end()?;
        if way.private {
            // The guest's own, which is not told from its process's otherwise.
            let beyond = &mut usage.destination_memory.peak_bytes;
            *beyond = beyond.saturating_sub(self.bench.bytes);
        }
        let made = made?;
        destination.stop(GUEST)?;
        guest.succeed()?;
        ensure!(
            made.lanes.to_string() == lanes,
            "the move had {} lanes",
            made.lanes
        );
        let mut outcome = Outcome::new(
            self.bench.bytes,
            made.goodput,
            made.total.as_secs_f64(),
            usage,
        );
        outcome.blackout_s = Some(made.blackout.as_secs_f64());
        outcome.guest_gap_s = made.guest_gap.map(|gap| gap.as_secs_f64());
        Ok(outcome)
    }

    fn qemu(&self, way: QemuWay, touched: bool, hot: Option<u32>) -> anyhow::Result<Outcome> {
        let memory = self.bench.memory.as_ref().context("no memory")?;
        let guest = qemu::Guest {
            bytes: memory.bytes(),
            memory: memory.path(),
            touched,
            hot_bytes: hot.map(|mebibytes| mebibytes << 20),
        };
        let (capabilities, channels) = match way {
            QemuWay::Single => (vec![], None),
            QemuWay::Multifd(channels) => (vec!["multifd"], Some(channels)),
            QemuWay::ZeroCopy(channels) => (vec!["multifd", "zero-copy-send"], Some(channels)),
        };
        let way = qemu::Way {
            scheme: "tcp",
            capabilities,
            channels,
            downtime_limit_ms: PAUSE_BUDGET_MS,
        };
        let program = &self.bench.programs.qemu;
        let mut pair =
            qemu::Pair::start(program, self.ends, &self.directory, &guest, &way, QEMU_PORT)?;
        let (source, destination) = (pair.source.process.id(), pair.destination.process.id());
        let watch = Watch::start(source, destination, Since::DestinationBirth, || 0);
        let told = pair.migrate();
        let (usage, _) = watch.end()?;
        let told = told?;
        let bytes = memory.bytes();
        let mut outcome = Outcome::new(bytes, bytes as f64 / told.copying_s, told.total_s, usage);
        outcome.blackout_s = Some(told.downtime_s);
        outcome.guest_gap_s = told.guest_gap_s;
        Ok(outcome)
    }
}
