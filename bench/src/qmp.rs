//! Speaking with QEMU: one JSON object a line, there and back.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::program::PATIENCE;

/// A connection to a QEMU's monitor.
#[derive(Debug)]
pub struct Monitor {
    to: UnixStream,
    from: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects, and gets the greeting out of the way.
    pub fn connect(path: &Path) -> anyhow::Result<Self> {
        let to = UnixStream::connect(path)?;
        to.set_read_timeout(Some(PATIENCE))?;
        let from = BufReader::new(to.try_clone()?);
        let mut monitor = Self { to, from };
        monitor.next()?;
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Has a command carried out, and gives what it returned.
    pub fn execute(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        self.to.write_all(format!("{line}\n").as_bytes())?;
        loop {
            let mut answer = self.next()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {}", error["desc"]);
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
            // An event.
        }
    }

    fn next(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        let read = self
            .from
            .read_line(&mut line)
            .context("QEMU says nothing")?;
        if read == 0 {
            bail!("QEMU has ended");
        }
        Ok(serde_json::from_str(&line)?)
    }
}
