//! Two sites with a receiver, a guest, a move, and the hands that disturb it.
//!
//! | room | what is in it |
//! |---|---|
//! | here | [`Arena`]: setting it up, disturbing it, looking at it |
//! | `stage` | what it is made for: the guest, the transport, what can be cut |
//! | `aftermath` | settling, ending it all, and what is left then |

mod aftermath;
mod stage;

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use super::fault::{Phase, Side, Victim};
use super::ledger::Account;
use crate::program::{Line, Running, give_way, is_alive, is_stopped, signal_process};
use crate::rdma::held::{Things, expect_nothing_held};
use crate::site::{Receiver, Site};

use self::stage::Link;
pub use self::stage::{Fabric, GuestKind, Stage};

/// The guest's name, at both sites.
pub const GUEST: &str = "vm1";

/// Small, so that a run takes a second or two: 24 MiB of which 16 are written.
const MEMORY: &str = "24MiB";

/// So that the first round takes some 150 ms, and random moments hit it too.
const BANDWIDTH: &str = "128MiB/s";

/// How long an answer of a guest's process is waited for.
const ANSWER_MAX: Duration = Duration::from_millis(200);

/// How a guest is at one site, as far as its process tells.
#[derive(Clone, Debug, PartialEq)]
pub enum There {
    /// No process has it.
    Nothing,
    /// A process has it and does not say how it is: it is stopped, or busy.
    Silent,
    /// What the process says.
    Says(Value),
}

impl There {
    /// The state in a word; empty where there is none.
    pub fn state(&self) -> &str {
        match self {
            Self::Says(guest) => guest["state"].as_str().unwrap_or_default(),
            _ => "",
        }
    }

    /// Whether a move of the guest has ended here.
    pub fn has_moved_on(&self) -> bool {
        matches!(self, Self::Says(guest) if !guest["last_move"].is_null())
    }

    /// How the last move ended, in words; empty where there was none.
    pub fn last_move(&self) -> String {
        match self {
            Self::Says(guest) if self.has_moved_on() => format!(
                ", {}: {}",
                guest["last_move"]["outcome"].as_str().unwrap_or_default(),
                guest["last_move"]["reason"].as_str().unwrap_or_default()
            ),
            _ => String::new(),
        }
    }

    /// Whether the guest is here, runs, and nothing is under way.
    pub fn runs_alone(&self) -> bool {
        match self {
            Self::Says(guest) => guest["state"] == "running" && guest["move_under_way"].is_null(),
            _ => false,
        }
    }
}

/// Two sites with all that is on them. What was started ends with this value.
pub struct Arena {
    /// The source's site.
    pub here: Site,
    /// The destination's site.
    pub there: Site,
    fabric: Fabric,
    link: Option<Link>,
    /// What devices kept for programs when all began.
    before: Things,
    receiver: Option<Receiver>,
    /// What earlier receivers said.
    heard: Vec<Line>,
    endpoint: String,
    guest: Running,
    send: Option<Running>,
    story: Vec<String>,
    began: Instant,
    /// Whether all was ended, and nobody needs to know more.
    is_over: bool,
    /// Where everything of the run is. The last to go.
    directory: TempDir,
}

impl Arena {
    /// Sets up: a receiver that listens, a guest that runs.
    ///
    /// # Errors
    ///
    /// When one of them does not come up.
    pub fn set_up(stage: Stage, link_name: &str) -> Result<Self> {
        let began = Instant::now();
        let directory = tempfile::Builder::new().prefix("dunlin-chaos-").tempdir()?;
        let link = stage.link(link_name)?;
        let namespaces = match &link {
            Some(Link::Namespaces(link)) => Some(link),
            _ => None,
        };
        let namespace = |side: usize| namespaces.map(|link| link.namespaces[side].as_str());
        let mut here = Site::inside(directory.path(), namespace(0))?;
        let mut there = Site::inside(directory.path(), namespace(1))?;
        // A file that is there before the guest comes is nobody's to remove: it is evidence.
        fs::write(serial(&there), "")?;
        let (at_source, at_destination) = match (stage.phase, stage.phase.side()) {
            (Phase::InDoubt, _) => (Some(Phase::InDoubt), Some(Phase::Commit)),
            (phase, Some(Side::Source)) => (Some(phase), None),
            (phase, Some(Side::Destination)) => (None, Some(phase)),
            (_, None) => (None, None),
        };
        here.set_environment("DUNLIN_STOP_AT", at_source.map(Phase::name));
        there.set_environment("DUNLIN_STOP_AT", at_destination.map(Phase::name));
        let listen = stage.listen(link.as_ref());
        let (_, scheme) = stage.fabric.schemes();
        let before = stage.fabric.things()?;
        let receiver = start_receiver(&there, &listen)?;
        let output = format!("file:{}", serial(&here).display());
        let arguments = [
            "--memory",
            MEMORY,
            "--guest",
            stage.kind.name(),
            "--workload",
            stage.fabric.workload(),
            "--serial",
            &output,
        ];
        let guest = here.guest(GUEST, &arguments)?;
        if let Fabric::Rdma(_) = stage.fabric {
            // Emulated processors have none to spare.
            give_way(guest.pid());
        }
        Ok(Self {
            fabric: stage.fabric,
            before,
            endpoint: by(scheme, &receiver.endpoint)?,
            directory,
            here,
            there,
            link,
            receiver: Some(receiver),
            heard: Vec::new(),
            guest,
            send: None,
            story: Vec::new(),
            began,
            is_over: false,
        })
    }

    /// Begins the move.
    ///
    /// # Errors
    ///
    /// When 'send' can't be started.
    pub fn begin(&mut self, peer_timeout: Duration) -> Result<()> {
        let timeout = format!("{}ms", peer_timeout.as_millis());
        // Room for guests that are stopped in the middle of their pause.
        let budget = format!("{}ms", self.fabric.peer_timeout().as_millis());
        let mut arguments = vec![
            "send",
            GUEST,
            "--to",
            &self.endpoint,
            "--json",
            "--quiet",
            "--max-bandwidth",
            BANDWIDTH,
            "--peer-timeout",
            &timeout,
            "--max-blackout",
            &budget,
            "--blackout-cap",
            "20s",
            "--lanes",
            "2",
        ];
        let bind = self.fabric.bind();
        if let Some(address) = &bind {
            arguments.extend(["--bind", address]);
        }
        self.send = Some(self.here.start(&arguments)?);
        self.tell("the move begins");
        Ok(())
    }

    /// Moves go over this transport from here on: `tcp`, `rdma` or `auto`.
    ///
    /// # Errors
    ///
    /// When the endpoint is none.
    pub fn go_over(&mut self, transport: &str) -> Result<()> {
        self.endpoint = by(transport, &self.endpoint)?;
        Ok(())
    }

    /// Whether the receiver can be connected to: a link that comes up takes a moment until packets
    /// pass.
    pub fn is_receiver_reached(&self) -> bool {
        let authority = self.endpoint.rsplit('/').next().unwrap_or_default();
        TcpStream::connect(authority).is_ok()
    }

    /// The process of the guest at the destination, if the receiver has made one.
    pub fn incoming(&mut self) -> Option<u32> {
        let line = self
            .events()
            .into_iter()
            .rfind(|(_, event)| event["event"] == "incoming")?;
        u32::try_from(line.1["pid"].as_u64()?).ok()
    }

    /// What receivers said so far, with when.
    pub fn events(&mut self) -> Vec<(Instant, Value)> {
        let mut lines = self.heard.clone();
        if let Some(receiver) = &mut self.receiver {
            lines.extend_from_slice(receiver.process.lines_so_far());
        }
        let parsed = lines
            .iter()
            .map(|line| (line.at, serde_json::from_str(&line.text)));
        parsed
            .filter_map(|(at, value)| Some((at, value.ok()?)))
            .collect()
    }

    /// A victim's process; `None` while there is none.
    pub fn pid(&mut self, victim: Victim) -> Option<u32> {
        match victim {
            Victim::Send => self.send.as_ref().map(Running::pid),
            Victim::Run => Some(self.guest.pid()),
            Victim::Incoming => self.incoming(),
            Victim::Receive => self
                .receiver
                .as_ref()
                .map(|receiver| receiver.process.pid()),
        }
    }

    /// Sends a victim a signal.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn signal(&mut self, victim: Victim, signal: i32) -> Result<()> {
        let pid = self
            .pid(victim)
            .with_context(|| format!("'{}' is not there", victim.name()))?;
        signal_process(pid, signal);
        let name = match signal {
            libc::SIGKILL => "killed",
            libc::SIGSTOP => "stopped",
            libc::SIGCONT => "let go on",
            _ => "signalled",
        };
        self.tell(&format!("'{}' ({pid}) is {name}", victim.name()));
        Ok(())
    }

    /// Whether a victim's process is there.
    pub fn is_alive(&mut self, victim: Victim) -> bool {
        self.pid(victim).is_some_and(is_alive)
    }

    /// Whether a victim's process stands still.
    pub fn is_stopped(&mut self, victim: Victim) -> bool {
        self.pid(victim).is_some_and(is_stopped)
    }

    /// Kills the receiver, if it lives, and starts another one at the same endpoint.
    ///
    /// # Errors
    ///
    /// When that does not listen.
    pub fn restart_receiver(&mut self) -> Result<()> {
        if let Some(mut receiver) = self.receiver.take() {
            receiver.process.kill();
            self.heard
                .extend_from_slice(receiver.process.lines_so_far());
        }
        self.there.set_environment("DUNLIN_STOP_AT", None);
        let listen = by(self.fabric.schemes().0, &self.endpoint)?;
        self.receiver = Some(start_receiver(&self.there, &listen)?);
        self.tell("'receive' is started again");
        Ok(())
    }

    /// Cuts the link or mends it.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn set_link(&mut self, is_up: bool) -> Result<()> {
        let link = self.link.as_ref().context("there is no link")?;
        link.set_up(is_up)?;
        self.tell(if is_up {
            "the link is mended"
        } else {
            "the link is cut"
        });
        Ok(())
    }

    /// How the guest is at the source.
    pub fn look_here(&mut self) -> There {
        let pid = self.guest.pid();
        look(&self.here, self.guest.ended().is_none().then_some(pid))
    }

    /// How the guest is at the destination.
    pub fn look_there(&mut self) -> There {
        let pid = self.incoming();
        look(&self.there, pid.filter(|pid| is_alive(*pid)))
    }

    /// Sees that a move over RDMA has left nothing: what lives holds no memory, the device keeps
    /// nothing for it or for who died.
    ///
    /// # Errors
    ///
    /// What is still held.
    pub fn expect_nothing_held(&self) -> Result<()> {
        match self.fabric {
            Fabric::Tcp => Ok(()),
            Fabric::Rdma(_) => expect_nothing_held(&[&self.here, &self.there], &self.before),
        }
    }

    /// 'send' itself, for who wants to hear it out.
    pub fn take_send(&mut self) -> Option<Running> {
        self.send.take()
    }

    /// Whether 'send' has ended.
    pub fn has_sent_ended(&mut self) -> bool {
        let send = self.send.as_mut();
        send.is_some_and(|send| send.ended().is_some())
    }

    /// What the guest printed at the source and at the destination.
    pub fn accounts(&self) -> [Account; 2] {
        [&self.here, &self.there].map(|site| {
            // Nothing printed is nothing to say.
            let bytes = fs::read(serial(site)).unwrap_or_default();
            Account::read(&String::from_utf8_lossy(&bytes))
        })
    }

    /// Writes down what happened, for whoever looks into a run that failed.
    pub fn tell(&mut self, what: &str) {
        let at = self.began.elapsed().as_millis();
        self.story.push(format!("{at:>6} ms  {what}"));
    }

    /// What was written down.
    pub fn story(&self) -> &[String] {
        &self.story
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if !self.is_over {
            println!("{}\n{}", self.story.join("\n"), self.testimony().join("\n"));
        }
        // Frozen or running, wanted or not.
        for pid in [self.here.processes(), self.there.processes()].concat() {
            signal_process(pid, libc::SIGKILL);
        }
    }
}

/// An endpoint with another scheme.
fn by(scheme: &str, endpoint: &str) -> Result<String> {
    let (_, rest) = endpoint.split_once("://").context("no scheme")?;
    Ok(format!("{scheme}://{rest}"))
}

fn start_receiver(site: &Site, listen: &str) -> Result<Receiver> {
    let directory = site.directory().to_str().context("a path is no text")?;
    let mut last = None;
    // The port of a receiver that was killed may take a moment to be free.
    for _ in 0..50 {
        match site.receiver_at(listen, &["--serial-dir", directory]) {
            Ok(receiver) => return Ok(receiver),
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    match last {
        Some(error) => Err(error.context("the receiver does not listen")),
        None => bail!("the receiver was not started"),
    }
}

/// Where a site's guest prints.
fn serial(site: &Site) -> PathBuf {
    site.directory().join(format!("{GUEST}.serial"))
}

fn look(site: &Site, pid: Option<u32>) -> There {
    let stopped = pid.is_some_and(is_stopped);
    // Asking a process that stands still fills its queue.
    let answer = (!stopped).then(|| site.ask(GUEST, ANSWER_MAX)).flatten();
    match answer {
        Some(guest) => There::Says(guest),
        None if pid.is_some_and(is_alive) => There::Silent,
        None => There::Nothing,
    }
}
