//! `iperf3`: bytes over TCP, out of one buffer into another, both ends on this host.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Conditions, LISTEN_MAX, directory, free_port, listens};
use crate::bench::Stop;
use crate::bench::processes::{Process, output_of, wait_for};
use crate::bench::results::ReferenceRun;

const HOST: &str = "127.0.0.1";

/// Runs it.
pub(super) fn run(conditions: &Conditions<'_>, streams: u16) -> Result<ReferenceRun, Stop> {
    let directory = directory()?;
    let port = free_port()?;
    let mut server = Command::new("iperf3");
    server
        .args(["-s", "-1", "-B", HOST, "-p", &port.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _server = Process::start(&mut server)?;
    wait_for(
        "iperf3's server",
        LISTEN_MAX,
        conditions.interrupted,
        || Ok(listens(port)),
    )?;
    let mut client = Command::new("iperf3");
    client.args(["-c", HOST, "-p", &port.to_string(), "-J"]);
    // `-n` is for each stream.
    let each = conditions.memory_bytes / u64::from(streams);
    client.args(["-n", &each.to_string(), "-P", &streams.to_string()]);
    let said = output_of(
        &mut client,
        directory.path(),
        conditions.limit,
        conditions.interrupted,
    )?;
    goodput(&said)
        .map(|goodput| ReferenceRun {
            goodput_bytes_per_s: Some(goodput),
            ..ReferenceRun::default()
        })
        .ok_or_else(|| Stop::Failed("iperf3 tells no bytes and seconds".to_owned()))
}

/// What arrived, in bytes a second.
fn goodput(said: &str) -> Option<u64> {
    let said: Value = serde_json::from_str(said).ok()?;
    let sum = said.pointer("/end/sum_received")?;
    let bytes = sum.get("bytes")?.as_f64()?;
    let seconds = sum.get("seconds")?.as_f64()?;
    (seconds > 0.0).then(|| (bytes / seconds) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrived_counts() {
        let said = r#"{"end":{"sum_sent":{"bytes":9,"seconds":1},"sum_received":{"bytes":8000,"seconds":2.0}}}"#;
        assert_eq!(goodput(said), Some(4000));
        for bad in [
            "",
            "{}",
            r#"{"end":{"sum_received":{"bytes":1,"seconds":0}}}"#,
        ] {
            assert_eq!(goodput(bad), None, "{bad}");
        }
    }
}
