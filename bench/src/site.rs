//! Dunlin as on a host of its own: a guest, a receiver, a move. The program is used as its users
//! use it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::ends::End;
use crate::moved::Move;
use crate::program::{Program, output_of, wait_for, wait_until_ended};

/// Memory of the built-in guest that no workload fills: its first 8 MiB, mostly untouched.
pub const SYSTEM_AREA_BYTES: u64 = 8 << 20;

/// A host as far as Dunlin can tell.
#[derive(Debug)]
pub struct Site {
    dunlin: PathBuf,
    directory: PathBuf,
    /// The end of the link that it is at.
    pub end: End,
}

/// A receiver at a site. It ends with this value, and guests that it let in with it.
#[derive(Debug)]
pub struct Receiver {
    /// Its process.
    pub program: Program,
    /// Where it listens, without the scheme.
    pub address: String,
}

impl Site {
    /// A site that has its files in `directory`, which is made.
    ///
    /// # Errors
    ///
    /// When the directory can't be made.
    pub fn new(dunlin: &Path, directory: PathBuf, end: End) -> anyhow::Result<Self> {
        fs::create_dir_all(&directory)
            .with_context(|| format!("making {}", directory.display()))?;
        Ok(Self {
            dunlin: dunlin.to_owned(),
            directory,
            end,
        })
    }

    /// `dunlin` with these arguments, at this site.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.end.command(&self.dunlin);
        command
            .args(arguments)
            .env("DUNLIN_RUNTIME_DIR", self.directory.join("runtime"));
        command.env("DUNLIN_STATE_DIR", self.directory.join("state"));
        command
    }

    /// Starts a guest and waits until it runs.
    ///
    /// # Errors
    ///
    /// When it does not, with what it said.
    pub fn guest(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Program> {
        let log = self.directory.join(format!("{name}.run.log"));
        let mut command = self.command(&["run", "--with-parent", "--name", name]);
        let output = fs::File::create(&log)?;
        command.args(arguments).stdout(output.try_clone()?);
        let mut guest = Program::start(command.stderr(output))?;
        wait_for("the guest", || {
            if guest.has_ended() {
                bail!("dunlin run ended: {}", said(&log));
            }
            Ok(said(&log).contains(" runs: "))
        })?;
        Ok(guest)
    }

    /// Starts a receiver at a free port of this site's end.
    ///
    /// # Errors
    ///
    /// When it does not listen, with what it said.
    pub fn receiver(&self, arguments: &[&str]) -> anyhow::Result<Receiver> {
        let (output, log) = (
            self.directory.join("receive.out"),
            self.directory.join("receive.log"),
        );
        let listen = format!("auto://{}:0", self.end.address);
        // Guests that arrive end with its standard input, whatever becomes of this process.
        let mut command = self.command(&["receive", "--json", "--with-parent"]);
        command.args(["--listen", &listen]).args(arguments);
        command
            .stdout(fs::File::create(&output)?)
            .stderr(fs::File::create(&log)?);
        let mut program = Program::start_on_leash(&mut command)?;
        let mut address = None;
        wait_for("dunlin receive", || {
            if program.has_ended() {
                // With --json, what is wrong with the command line is told on standard output.
                bail!("dunlin receive ended: {} {}", said(&log), said(&output));
            }
            address = listening_address(&output);
            Ok(address.is_some())
        })?;
        let address = address.context("dunlin receive names no endpoint")?;
        Ok(Receiver { program, address })
    }

    /// Moves a guest away.
    ///
    /// # Errors
    ///
    /// When it did not move, with what was said.
    pub fn send(
        &self,
        name: &str,
        scheme: &str,
        to: &Receiver,
        arguments: &[&str],
    ) -> anyhow::Result<Move> {
        let to = format!("{scheme}://{}", to.address);
        let mut command = self.command(&["send", name, "--to", &to, "--json", "--quiet"]);
        let text = output_of(command.args(arguments))?;
        Move::read(&text)
    }

    /// The process of a guest that is here.
    ///
    /// # Errors
    ///
    /// When there is none of that name.
    pub fn process_of(&self, name: &str) -> anyhow::Result<u32> {
        let text = output_of(&mut self.command(&["status", name, "--json"]))?;
        let status: Value = serde_json::from_str(&text)?;
        let process = status["pid"].as_u64().context("a guest without process")?;
        Ok(u32::try_from(process)?)
    }

    /// Ends a guest that is here, and waits until its memory is free.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn stop(&self, name: &str) -> anyhow::Result<()> {
        let process = self.process_of(name)?;
        output_of(&mut self.command(&["stop", name]))?;
        wait_until_ended(process, "the guest's process")
    }
}

/// The built-in guest looks at its clock all the time, also when it has nothing to do, and would
/// take a processor from the move that no idle guest takes. So whatever else wants to run goes
/// before its vCPUs.
///
/// # Errors
///
/// When there is no such process, or it has no vCPUs.
pub fn give_way(process: u32) -> anyhow::Result<()> {
    let mut found = false;
    for thread in fs::read_dir(format!("/proc/{process}/task"))?.flatten() {
        let name = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
        if name.starts_with("vcpu-") {
            let id = thread.file_name();
            output_of(Command::new("chrt").args(["--idle", "--pid", "0"]).arg(&id))?;
            found = true;
        }
    }
    if !found {
        bail!("process {process} has no vCPU's thread");
    }
    Ok(())
}

fn listening_address(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let event: Value = serde_json::from_str(text.lines().next()?).ok()?;
    let (_, address) = event["endpoint"].as_str()?.split_once("://")?;
    Some(address.to_owned())
}

fn said(path: &Path) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}
