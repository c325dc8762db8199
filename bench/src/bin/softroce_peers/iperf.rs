//! `iperf3`: bytes over TCP, out of one buffer into another.

use std::process::{Command, Stdio};

use anyhow::Context;
use dunlin_bench::host::listens;
use dunlin_bench::program::{Program, wait_for};
use serde_json::Value;

use crate::results::Outcome;
use crate::runs::{DESTINATION, Run, SOURCE};

/// The port at which iperf3's server waits unless told otherwise.
const PORT: u16 = 5201;

/// Runs it.
pub(crate) fn run(run: &mut Run<'_>, streams: u32) -> anyhow::Result<Outcome> {
    let log = run.path("client.json");
    let mut server = Command::new("iperf3");
    server.args(["-s", "-1", "-B", DESTINATION]);
    let server = Program::start(server.stdout(Stdio::null()))?;
    wait_for("iperf3's server", || Ok(listens(PORT)))?;
    let mut client = Command::new("iperf3");
    client.args(["-c", DESTINATION, "-B", SOURCE, "-J"]);
    client.args([
        "-n",
        &run.bench.bytes.to_string(),
        "-P",
        &streams.to_string(),
    ]);
    let mut client = Program::start(client.stdout(std::fs::File::create(&log)?))?;
    let watched = run.watch(client.id(), server.id(), true)?;
    client.wait_until_ended()?;
    server.wait_until_ended()?;
    let usage = run.end(watched)?;
    client.succeed()?;
    let said: Value = serde_json::from_str(&std::fs::read_to_string(&log)?)?;
    let sum = said
        .pointer("/end/sum_received")
        .with_context(|| format!("iperf3 says {}", said["error"]))?;
    let bytes = sum["bytes"].as_u64().context("no bytes")?;
    let seconds = sum["seconds"].as_f64().context("no seconds")?;
    Ok(Outcome::new(bytes, bytes as f64 / seconds, seconds, usage))
}
