//! QEMU: an idle guest moves between two of its processes, with the settings of somebody who wants it
//! to be quick.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::boot_sector;
use crate::ends::{End, Ends};
use crate::program::{PATIENCE, Program, output_of, wait_for};
use crate::qmp::Monitor;

/// The firmware has given up looking for something to start when the guest uses less than this part
/// of a processor.
const IDLE_SHARE: f64 = 0.1;
/// Over so long.
const IDLE_TIME: Duration = Duration::from_millis(1000);

/// How often it is asked where the move stands.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// How a guest is moved.
#[derive(Clone, Debug)]
pub struct Way {
    /// `tcp` or `rdma`.
    pub scheme: &'static str,
    /// What is switched on.
    pub capabilities: Vec<&'static str>,
    /// How many channels multifd has, where it is on.
    pub channels: Option<u8>,
    /// How long QEMU may plan the pause to be.
    pub downtime_limit_ms: u64,
}

/// The guest.
#[derive(Clone, Debug)]
pub struct Guest<'a> {
    /// Its size, in bytes.
    pub bytes: u64,
    /// A file that holds its memory at the source.
    pub memory: &'a Path,
    /// Whether the destination touches all of its memory before the move (`prealloc=on`).
    pub touched: bool,
    /// How much memory it rewrites, in bytes; `None`: it idles in its firmware.
    pub hot_bytes: Option<u32>,
}

/// What QEMU says of a move.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// The whole.
    pub total_s: f64,
    /// Without setting up.
    pub copying_s: f64,
    /// The pause.
    pub downtime_s: f64,
    /// The longest time in which the guest saw the processor's counter stand still, from the move's
    /// beginning to its end; `None` for a guest that idles.
    pub guest_gap_s: Option<f64>,
}

/// One process.
#[derive(Debug)]
pub struct Machine {
    /// It.
    pub process: Program,
    monitor: Monitor,
}

/// Both.
#[derive(Debug)]
pub struct Pair {
    /// Where the guest is.
    pub source: Machine,
    /// Where it goes.
    pub destination: Machine,
    uri: String,
    logs: [PathBuf; 2],
    /// The source's memory, of a guest that looks at the counter.
    gaps_at: Option<PathBuf>,
}

/// How long a guest that runs again is given to see for how long it did not.
const GAP_TIME: Duration = Duration::from_millis(100);

/// What a QEMU says of itself; `None` when it is none.
pub fn version(program: &Path) -> Option<String> {
    let text = output_of(std::process::Command::new(program).arg("--version")).ok()?;
    Some(text.lines().next()?.to_owned())
}

/// The oldest QEMU that is compared with: what older ones do says little of today's.
const OLDEST: u32 = 10;

/// What keeps a QEMU that says this of itself from being compared with, if anything does.
pub fn lacks(version: Option<&str>) -> Option<String> {
    let Some(version) = version else {
        return Some("there is no QEMU (bookworm-backports has one)".to_owned());
    };
    let number = version.split(|letter: char| !letter.is_ascii_digit());
    let major = number
        .filter_map(|digits| digits.parse::<u32>().ok())
        .next();
    let is_known = major.is_some_and(|major| major >= OLDEST);
    (!is_known).then(|| format!("{version} is not QEMU {OLDEST} or newer"))
}

/// Whether a QEMU knows RDMA: one that does is linked with its library.
///
/// # Errors
///
/// When it does not start.
pub fn has_rdma(program: &Path, directory: &Path) -> anyhow::Result<bool> {
    let here = Ends::loopback().source.clone();
    let arguments = ["-machine", "none"];
    let machine = Machine::start(program, &here, directory, "probe", &arguments)?;
    let maps = fs::read_to_string(format!("/proc/{}/maps", machine.process.id()))?;
    Ok(maps.contains("/librdmacm.so"))
}

impl Machine {
    /// Starts one, with files of this name.
    fn start(
        program: &Path,
        end: &End,
        directory: &Path,
        name: &str,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let (socket, log) = (directory.join(name), directory.join(format!("{name}.log")));
        let mut command = end.command(program);
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(arguments);
        let monitor = format!("unix:{},server=on,wait=off", socket.display());
        command.args(["-qmp", &monitor]);
        let output = fs::File::create(&log)?;
        command.stdout(output.try_clone()?).stderr(output);
        let mut process = Program::start(&mut command)?;
        let mut monitor = None;
        wait_for("QEMU's monitor", || {
            if process.has_ended() {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("QEMU ended: {}", said.trim());
            }
            monitor = Monitor::connect(&socket).ok();
            Ok(monitor.is_some())
        })?;
        let monitor = monitor.context("QEMU has no monitor")?;
        Ok(Self { process, monitor })
    }

    fn configure(&mut self, way: &Way) -> anyhow::Result<()> {
        let on = |capability| json!({ "capability": capability, "state": true });
        let capabilities: Vec<Value> = way.capabilities.iter().map(on).collect();
        if !capabilities.is_empty() {
            let arguments = json!({ "capabilities": capabilities });
            self.monitor
                .execute("migrate-set-capabilities", arguments)?;
        }
        // A bandwidth of 0 is no limit.
        let mut parameters = json!({ "max-bandwidth": 0, "downtime-limit": way.downtime_limit_ms });
        if let Some(channels) = way.channels {
            parameters["multifd-channels"] = json!(channels);
        }
        self.monitor.execute("migrate-set-parameters", parameters)?;
        Ok(())
    }

    /// Waits until the guest's processor sleeps.
    fn wait_until_idle(&mut self) -> anyhow::Result<()> {
        let cpus = self.monitor.execute("query-cpus-fast", json!({}))?;
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

    /// A word of the guest's memory.
    fn word(&mut self, address: u32) -> anyhow::Result<u32> {
        let command = json!({ "command-line": format!("xp /1wx {address:#x}") });
        let said = self.monitor.execute("human-monitor-command", command)?;
        let said = said.as_str().unwrap_or_default();
        let word = said.trim().rsplit("0x").next().unwrap_or_default();
        u32::from_str_radix(word, 16).with_context(|| format!("QEMU says '{said}'"))
    }

    /// Waits for the move's end, and gives what QEMU tells of it.
    fn completed(&mut self) -> anyhow::Result<Value> {
        let begun = Instant::now();
        loop {
            let told = self.monitor.execute("query-migrate", json!({}))?;
            match told["status"].as_str() {
                Some("completed") => return Ok(told),
                Some("failed" | "cancelled") => {
                    bail!("QEMU's move failed: {}", told["error-desc"])
                }
                _ if begun.elapsed() > PATIENCE => bail!("QEMU's move takes too long: {told}"),
                _ => std::thread::sleep(ASK_INTERVAL),
            }
        }
    }
}

impl Pair {
    /// Starts both, ready for the move; the guest idles in its firmware. `port` is where the
    /// destination waits.
    ///
    /// # Errors
    ///
    /// When one does not start, or knows no such way.
    pub fn start(
        program: &Path,
        ends: &Ends,
        directory: &Path,
        guest: &Guest<'_>,
        way: &Way,
        port: u16,
    ) -> anyhow::Result<Self> {
        let bytes = guest.bytes;
        let filled = format!(
            "memory-backend-file,id=memory,size={bytes},share=on,mem-path={}",
            guest.memory.display()
        );
        let prealloc = if guest.touched { "on" } else { "off" };
        let fresh =
            format!("memory-backend-memfd,id=memory,size={bytes},share=on,prealloc={prealloc}");
        let size = format!("{}M", bytes >> 20);
        let boot = directory.join("boot");
        let mut drive = Vec::new();
        if let Some(hot_bytes) = guest.hot_bytes {
            fs::write(&boot, boot_sector::rewriting(hot_bytes))?;
            // Both processes have it open, and none writes to it.
            let file = format!(
                "if=ide,format=raw,file.locking=off,file.filename={}",
                boot.display()
            );
            drive = vec!["-drive".to_owned(), file];
        }
        let start = |end, name, memory: &str, more: &[&str]| {
            let mut arguments = vec!["-name", "peer,debug-threads=on", "-accel", "kvm"];
            arguments.extend(["-smp", "1", "-machine", "pc,memory-backend=memory"]);
            arguments.extend(["-object", memory, "-m", &size]);
            arguments.extend(drive.iter().map(String::as_str));
            arguments.extend(more);
            Machine::start(program, end, directory, name, &arguments)
        };
        let source = start(&ends.source, "source", &filled, &[])?;
        let incoming = ["-incoming", "defer"];
        let destination = start(&ends.destination, "destination", &fresh, &incoming)?;
        let mut pair = Self {
            source,
            destination,
            uri: format!("{}:{}:{port}", way.scheme, ends.destination.address),
            logs: ["source", "destination"].map(|name| directory.join(format!("{name}.log"))),
            gaps_at: guest.hot_bytes.map(|_| guest.memory.to_owned()),
        };
        pair.source.configure(way)?;
        pair.destination.configure(way)?;
        let arguments = json!({ "uri": pair.uri });
        pair.destination
            .monitor
            .execute("migrate-incoming", arguments)?;
        match guest.hot_bytes {
            None => pair.source.wait_until_idle()?,
            Some(hot_bytes) => wait_until_rewriting(guest.memory, hot_bytes)?,
        }
        Ok(pair)
    }

    /// Moves the guest, and sees that it runs where it is now.
    ///
    /// # Errors
    ///
    /// When it does not arrive, with what was said.
    pub fn migrate(&mut self) -> anyhow::Result<Told> {
        if let Some(memory) = &self.gaps_at {
            let memory = fs::OpenOptions::new().write(true).open(memory)?;
            memory.write_all_at(&[0; 4], boot_sector::LONGEST_GAP.into())?;
        }
        let (begun, ticks) = (Instant::now(), counter());
        let arguments = json!({ "uri": self.uri });
        self.source.monitor.execute("migrate", arguments)?;
        let told = self.source.completed().with_context(|| self.last_words())?;
        self.see_it_run()?;
        let guest_gap_s = self.gaps_at.is_some().then(|| {
            std::thread::sleep(GAP_TIME);
            let per_second = (counter() - ticks) as f64 / begun.elapsed().as_secs_f64();
            let units = self.destination.word(boot_sector::LONGEST_GAP)?;
            anyhow::Ok(f64::from(units) * f64::from(boot_sector::GAP_TICKS) / per_second)
        });
        let seconds = |name: &str| {
            let value = told[name].as_f64().map(|milliseconds| milliseconds / 1e3);
            value.with_context(|| format!("QEMU tells no {name}: {told}"))
        };
        let total_s = seconds("total-time")?;
        Ok(Told {
            total_s,
            copying_s: total_s - seconds("setup-time")?,
            downtime_s: seconds("downtime")?,
            guest_gap_s: guest_gap_s.transpose()?,
        })
    }

    /// Sees that the guest runs where it is now.
    fn see_it_run(&mut self) -> anyhow::Result<()> {
        let monitor = &mut self.destination.monitor;
        wait_for("the guest to run at QEMU's destination", || {
            Ok(monitor.execute("query-status", json!({}))?["running"] == true)
        })
    }

    /// What QEMU's processes printed.
    fn last_words(&self) -> String {
        let logs = self.logs.each_ref().map(fs::read_to_string);
        let said = logs.map(Result::unwrap_or_default).join(" ");
        said.trim().to_owned()
    }
}

/// The processor's counter, which a guest sees too.
fn counter() -> u64 {
    // SAFETY: every processor that runs 64-bit code has it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Waits until the last page of the hot set changes.
fn wait_until_rewriting(memory: &Path, hot_bytes: u32) -> anyhow::Result<()> {
    let memory = fs::File::open(memory)?;
    let at = u64::from(boot_sector::last_page(hot_bytes));
    let look = || -> anyhow::Result<[u8; 4]> {
        let mut word = [0; 4];
        memory.read_exact_at(&mut word, at)?;
        Ok(word)
    };
    let before = look()?;
    wait_for("QEMU's guest to rewrite memory", || Ok(look()? != before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_enough_is_compared_with() {
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)";
        assert_eq!(lacks(Some(debian)), None);
        assert_eq!(lacks(Some("QEMU emulator version 11.0.50")), None);
        for old in ["QEMU emulator version 7.2.22", "QEMU emulator version", ""] {
            assert!(lacks(Some(old)).unwrap().contains(old));
        }
        assert!(lacks(None).is_some());
    }
}
