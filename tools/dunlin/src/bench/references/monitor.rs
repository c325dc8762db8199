//! Speaking with QEMU: one JSON object a line, there and back (its QMP).

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bench::Stop;

/// How long QEMU may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// The longest line that is read.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// A connection to a QEMU's monitor.
pub(super) struct Monitor {
    to: UnixStream,
    from: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects, and gets the greeting out of the way.
    pub(super) fn connect(path: &Path) -> Result<Self, Stop> {
        let open = || {
            let to = UnixStream::connect(path)?;
            to.set_read_timeout(Some(SILENCE_MAX))?;
            let from = BufReader::new(to.try_clone()?);
            Ok(Self { to, from })
        };
        let mut monitor =
            open().map_err(|error: std::io::Error| Stop::failed("QEMU's monitor", error))?;
        monitor.next()?;
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Has a command carried out, and gives what it returned.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Stop> {
        let line = json!({ "execute": command, "arguments": arguments });
        self.to
            .write_all(format!("{line}\n").as_bytes())
            .map_err(|error| Stop::failed("QEMU", error))?;
        loop {
            let mut answer = self.next()?;
            if let Some(error) = answer.get("error") {
                let words = error
                    .get("desc")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                return Err(Stop::failed(format!("QEMU refuses {command}"), words));
            }
            if let Some(returned) = answer.get_mut("return") {
                return Ok(returned.take());
            }
            // An event.
        }
    }

    fn next(&mut self) -> Result<Value, Stop> {
        let mut line = String::new();
        let read = (&mut self.from).take(LINE_BYTES_MAX).read_line(&mut line);
        match read {
            Err(error) => Err(Stop::failed("QEMU says nothing", error)),
            Ok(0) => Err(Stop::Failed("QEMU has ended".to_owned())),
            Ok(_) => serde_json::from_str(&line).map_err(|error| Stop::failed("QEMU", error)),
        }
    }
}
