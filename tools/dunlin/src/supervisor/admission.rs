//! Whether a guest may come, and the process that it gets. `care` has what follows.

mod care;

use std::fs::OpenOptions;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use dunlin_engine::destination::{Hello, read_hello, refuse};
use dunlin_engine::guest::{GuestIdentity, GuestOffer};
use dunlin_engine::layout::Backing;
use dunlin_engine::records::directory::StateDirectory;
use dunlin_transports::control::Frame;
use dunlin_transports::deadline::Deadline;
use dunlin_transports::lane::SessionId;
use dunlin_transports::tcp::{Options, control_channel};
use tracing::{info, warn};
use uuid::Uuid;

use super::Ending;
use super::handoff::Parcel;
use super::ledger::{self, Ledger, Neighbour};
use super::leftovers::Leftovers;
use super::registry::{self, Registry, Route};
use super::teller::{Happening, Teller};
use crate::bench::one_move::is_guest_of_a_bench;
use crate::cli::guest::Receive;
use crate::failure::Failure;
use crate::local::client::Connection;
use crate::local::protocol::{GuestState, GuestStatus};
use crate::local::runtime_dir::RuntimeDir;

/// How long another guest of this host may take to say its UUID.
const NEIGHBOUR_MAX: Duration = Duration::from_secs(1);

/// How long a process may take to end whose move has failed, or whose guest was moved away: whoever
/// sends a guest again at once waits for it, and is not refused.
const LEAVING_MAX: Duration = Duration::from_secs(3);

/// How often it is looked whether it has ended.
const LEAVING_INTERVAL: Duration = Duration::from_millis(20);

/// Decides who may come.
pub(crate) struct Admission {
    /// What the operator said.
    pub(crate) arguments: Receive,
    /// Where the guests' control sockets are.
    pub(crate) runtime: RuntimeDir,
    /// The memory that guests were promised.
    pub(crate) ledger: Ledger,
    /// The guests that are here or on their way.
    pub(crate) registry: Registry,
    /// The records of handovers to here.
    pub(crate) records: StateDirectory,
    /// Tells the operator.
    pub(crate) teller: Teller,
    /// Ends the supervisor. Under a lock, so that a guest's thread may use it.
    pub(crate) endings: Mutex<Sender<Ending>>,
}

/// A guest that was let in: its places, given back when dropped.
struct Admitted {
    name: String,
    identity: GuestIdentity,
    session: SessionId,
    promise: ledger::Entry,
    entry: registry::Entry,
}

/// Whether a guest's process is about to end.
fn is_leaving(status: &GuestStatus) -> bool {
    matches!(
        status.state,
        GuestState::Moved | GuestState::Ending | GuestState::Discarded
    )
}

impl Admission {
    /// Takes a control connection whose preamble was read: hears its HELLO, and lets the guest in
    /// or refuses it.
    pub(crate) fn control(
        self: &Arc<Self>,
        stream: TcpStream,
        session: SessionId,
        peer: SocketAddr,
        options: &Options,
        deadline: Deadline,
    ) {
        let turned_away = |reason: String| {
            self.teller.tell(&Happening::TurnedAway { peer, reason });
        };
        // The channel borrows the connection for the HELLO; this handle is what is given on.
        let kept = match stream.try_clone() {
            Ok(kept) => kept,
            Err(error) => return turned_away(error.to_string()),
        };
        let mut control = match control_channel(stream, options) {
            Ok(control) => control,
            Err(error) => return turned_away(error.to_string()),
        };
        let (hello, frame) = match read_hello(&mut control, deadline) {
            Ok(heard) => heard,
            Err(error) => return turned_away(error.to_string()),
        };
        let let_in = self.admit(&hello, session).and_then(|admitted| {
            let guest = self.spawn(&admitted, hello.offer(), peer)?;
            Ok((admitted, guest))
        });
        match let_in {
            Ok((admitted, guest)) => {
                drop(control);
                let (guest_name, pid) = (&admitted.name, guest.child.id());
                info!(%session, guest = guest_name, %peer, pid, "a guest is let in");
                self.hand_over(admitted, guest, kept, frame);
            }
            Err(reason) => {
                refuse(&mut control, &reason);
                warn!(%session, %peer, reason, "a guest is refused");
                self.teller.tell(&Happening::Refused {
                    name: hello.offer().identity.name.clone(),
                    peer,
                    reason,
                });
            }
        }
    }

    fn admit(&self, hello: &Hello, session: SessionId) -> Result<Admitted, String> {
        if hello.session() != session {
            return Err("the session is another than the connection began with".to_owned());
        }
        let offer = hello.offer();
        let name = &offer.identity.name;
        self.see_whose(name)?;
        let entry = self.place(session, &offer.identity)?;
        self.await_name(name)?;
        let neighbours = self.neighbours(offer.identity.uuid)?;
        let promise = self
            .ledger
            .promise(
                offer.layout.bytes(),
                self.uses_huge_pages(offer),
                &neighbours,
            )
            .map_err(|shortage| shortage.to_string())?;
        Ok(Admitted {
            name: name.clone(),
            identity: offer.identity.clone(),
            session,
            promise,
            entry,
        })
    }

    /// Sees that guests of a bench, which nobody needs afterwards, come only where they are ended,
    /// and that no other guest is.
    fn see_whose(&self, name: &str) -> Result<(), String> {
        match (self.arguments.bench, is_guest_of_a_bench(name)) {
            (true, false) => Err(
                "only guests of 'dunlin bench' are taken here, and ended after their move"
                    .to_owned(),
            ),
            (false, true) if !self.arguments.once => Err(
                "a guest of 'dunlin bench' is taken only by 'dunlin receive --bench'".to_owned(),
            ),
            _ => Ok(()),
        }
    }

    /// A place for the guest. One that is taken by a move that just failed, or by a guest that was
    /// just moved away, is waited for.
    fn place(&self, session: SessionId, guest: &GuestIdentity) -> Result<registry::Entry, String> {
        let end = Deadline::after(LEAVING_MAX);
        loop {
            let alone = self.arguments.once;
            match self.registry.enter(session, &guest.name, guest.uuid, alone) {
                Err(taken) if !end.passed() && (taken.may_pass || self.is_going(&guest.name)) => {
                    thread::sleep(LEAVING_INTERVAL);
                }
                entry => return entry.map_err(|taken| taken.reason),
            }
        }
    }

    /// Sees that no guest here has the name. One that was moved away and whose process is about to
    /// end is waited for: it may be this very guest, on its way back.
    fn await_name(&self, name: &str) -> Result<(), String> {
        let end = Deadline::after(LEAVING_MAX);
        while self.runtime.is_taken(name) {
            if end.passed() || !self.is_going(name) {
                return Err(format!("a guest named '{name}' is already here"));
            }
            thread::sleep(LEAVING_INTERVAL);
        }
        Ok(())
    }

    /// Whether the guest's process is about to end, or has ended: it says so, or says nothing.
    fn is_going(&self, name: &str) -> bool {
        self.status_of(name)
            .map_or(true, |status| is_leaving(&status))
    }

    fn status_of(&self, name: &str) -> Result<GuestStatus, Failure> {
        let mut neighbour = Connection::open(&self.runtime, name)?;
        neighbour.answer_within(Some(NEIGHBOUR_MAX))?;
        neighbour.status()
    }

    fn uses_huge_pages(&self, offer: &GuestOffer) -> bool {
        match self.arguments.memory_backing.backing() {
            Some(backing) => backing == Backing::Hugetlb,
            None => offer
                .layout
                .regions()
                .iter()
                .any(|region| region.backing == Backing::Hugetlb),
        }
    }

    /// Asks the other guests of the runtime directory who they are and what memory they have: they
    /// may have come to a supervisor before this one. One that does not answer holds its name, and
    /// that is known. One that is about to end gives its memory back.
    fn neighbours(&self, uuid: Uuid) -> Result<Vec<Neighbour>, String> {
        let uuid = uuid.to_string();
        let mut neighbours = Vec::new();
        for name in self.runtime.names().map_err(|failure| failure.message)? {
            let Ok(status) = self.status_of(&name) else {
                continue;
            };
            if is_leaving(&status) {
                continue;
            }
            if status.uuid == uuid {
                return Err(format!(
                    "a guest with UUID {uuid} is already here, named '{name}'"
                ));
            }
            neighbours.push(Neighbour {
                process: status.pid,
                bytes: status.memory_bytes,
                huge: status.backing == Backing::Hugetlb.name(),
                allocated: status.state != GuestState::Incoming,
            });
        }
        Ok(neighbours)
    }

    fn spawn(
        &self,
        admitted: &Admitted,
        offer: &GuestOffer,
        peer: SocketAddr,
    ) -> Result<GuestProcess, String> {
        let failed = |error: std::io::Error| format!("no process for the guest: {error}");
        let name = &admitted.name;
        let (near, far) = UnixStream::pair().map_err(failed)?;
        let log_path = self.runtime.log(name);
        let serial_path = self.serial(name);
        let leftovers = Leftovers::of([&log_path, &serial_path]);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&log_path)
            .map_err(|error| format!("the log {}: {error}", log_path.display()))?;
        let errors = log.try_clone().map_err(failed)?;
        let mut command = Command::new(own_program());
        command
            .arg0("dunlin")
            .arg("incoming")
            .args(["--name", name])
            .arg("--memory-backing")
            .arg(value_name(&self.arguments.memory_backing))
            .arg("--prefault")
            .arg(value_name(&self.arguments.effective_prefault()))
            .arg("--dirty-tracking")
            .arg(value_name(&self.arguments.dirty_tracking))
            .arg("--serial")
            .arg(serial_path)
            .arg("--runtime-dir")
            .arg(self.runtime.path())
            .arg("--state-dir")
            .arg(self.records.path())
            .args(["--peer", &peer.to_string()])
            .args(self.arguments.hooks.as_arguments())
            .args(self.arguments.rdma.as_arguments())
            .stdin(Stdio::from(OwnedFd::from(far)))
            .stdout(log)
            .stderr(errors);
        // A copy that is left open for the program that follows.
        let leash = match self.arguments.with_parent {
            true => Some(rustix::io::dup(std::io::stdin()).map_err(|error| failed(error.into()))?),
            false => None,
        };
        if let Some(leash) = &leash {
            command.args(["--leash", &leash.as_raw_fd().to_string()]);
        }
        let child = command.spawn().map_err(failed)?;
        let pid = child.id();
        admitted.promise.belongs_to(pid);
        self.teller.tell(&Happening::Incoming {
            name: name.clone(),
            uuid: offer.identity.uuid.to_string(),
            peer,
            memory_bytes: offer.layout.bytes(),
            pid,
        });
        Ok(GuestProcess {
            child,
            socket: near,
            leftovers,
        })
    }

    fn serial(&self, name: &str) -> PathBuf {
        let directory = self.arguments.serial_dir.as_deref();
        directory
            .unwrap_or_else(|| self.runtime.path())
            .join(format!("{name}.serial"))
    }

    /// Gives the control connection to the guest's process, and looks after the process on a
    /// thread of its own.
    fn hand_over(
        self: &Arc<Self>,
        admitted: Admitted,
        mut guest: GuestProcess,
        stream: TcpStream,
        hello: Frame,
    ) {
        let given = guest
            .socket
            .try_clone()
            .and_then(Route::new)
            .and_then(|route| {
                // Lanes may come as soon as the source has its welcome.
                admitted.entry.opens(route.clone());
                route.give(&Parcel::Control { stream, hello })
            });
        if let Err(error) = given {
            self.teller.tell(&Happening::Failed {
                name: admitted.name,
                reason: format!("its process takes nothing: {error}"),
            });
            guest.discard();
            return;
        }
        let admission = Arc::clone(self);
        let pid = guest.child.id();
        let spawned = thread::Builder::new()
            .name("guest".to_owned())
            .spawn(move || admission.look_after(admitted, guest));
        if let Err(error) = spawned {
            // The closure is gone, and with it the socket: the process ends the move by itself.
            self.teller.tell(&Happening::Failed {
                name: format!("process {pid}"),
                reason: format!("no thread to look after it: {error}"),
            });
        }
    }
}

/// A guest's process, and the socket to it.
struct GuestProcess {
    child: Child,
    socket: UnixStream,
    leftovers: Leftovers,
}

impl GuestProcess {
    /// Ends a process that has no guest yet.
    fn discard(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.leftovers.remove();
    }
}

/// This very program, even when its file was replaced since (proc(5), `/proc/pid/exe`).
pub(crate) fn own_program() -> &'static Path {
    Path::new("/proc/self/exe")
}

/// How a value is written on the command line.
pub(crate) fn value_name(value: &impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}
