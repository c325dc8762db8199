//! `iperf3`: bytes over TCP, out of one buffer into another.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use serde_json::Value;

use crate::ends::Ends;
use crate::host::listens_beside;
use crate::program::{Program, wait_for};

/// Both of its processes while they work.
#[derive(Debug)]
pub struct Session {
    /// Where bytes come from.
    pub client: Program,
    /// Where they go to.
    pub server: Program,
    log: PathBuf,
}

/// What iperf3 says.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// What arrived, in bytes.
    pub bytes: u64,
    /// In what time.
    pub seconds: f64,
}

/// What an iperf3 says of itself; `None` when it is none.
pub fn version(program: &Path) -> Option<String> {
    let text = crate::program::output_of(Command::new(program).arg("--version")).ok()?;
    Some(text.lines().next()?.to_owned())
}

impl Session {
    /// Starts to send so many bytes over so many streams. The client's words go to `log`.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start(
        program: &Path,
        ends: &Ends,
        port: u16,
        streams: u32,
        bytes: u64,
        log: PathBuf,
    ) -> anyhow::Result<Self> {
        let (source, destination) = (ends.source.address, ends.destination.address);
        let port_text = port.to_string();
        let mut server = ends.destination.command(program);
        server.args(["-s", "-1", "-p", &port_text, "-B", &destination.to_string()]);
        let server = Program::start(server.stdout(Stdio::null()))?;
        wait_for("iperf3's server", || Ok(listens_beside(server.id(), port)))?;
        let mut client = ends.source.command(program);
        client.args(["-c", &destination.to_string(), "-p", &port_text]);
        client.args(["-B", &source.to_string(), "-J"]);
        client.args(["-n", &bytes.to_string(), "-P", &streams.to_string()]);
        let client = Program::start(client.stdout(fs::File::create(&log)?))?;
        Ok(Self {
            client,
            server,
            log,
        })
    }

    /// Waits for the end of both, but leaves them to be asked for their processor time.
    ///
    /// # Errors
    ///
    /// When it takes too long.
    pub fn wait_until_ended(&self) -> anyhow::Result<()> {
        self.client.wait_until_ended()?;
        self.server.wait_until_ended()
    }

    /// What came of it.
    ///
    /// # Errors
    ///
    /// When it went wrong, with what was said.
    pub fn told(mut self) -> anyhow::Result<Told> {
        self.client.succeed()?;
        let said: Value = serde_json::from_str(&fs::read_to_string(&self.log)?)?;
        let sum = said
            .pointer("/end/sum_received")
            .with_context(|| format!("iperf3 says {}", said["error"]))?;
        Ok(Told {
            bytes: sum["bytes"].as_u64().context("no bytes")?,
            seconds: sum["seconds"].as_f64().context("no seconds")?,
        })
    }
}
