//! `iperf3`: bytes over TCP, out of one buffer into another.

use std::path::Path;

use dunlin_bench::iperf::Session;
use dunlin_bench::usage::Since;

use crate::results::Outcome;
use crate::runs::Run;

/// The port at which iperf3's server waits unless told otherwise.
const PORT: u16 = 5201;

/// Runs it.
pub(crate) fn run(run: &mut Run<'_>, streams: u32) -> anyhow::Result<Outcome> {
    let (ends, bytes) = (&run.bench.ends, run.bench.bytes);
    let program = Path::new("iperf3");
    let log = run.path("client.json");
    let session = Session::start(program, ends, PORT, streams, bytes, log)?;
    let watched = run.watch(session.client.id(), session.server.id(), Since::Birth)?;
    session.wait_until_ended()?;
    let usage = run.end(watched)?;
    let told = session.told()?;
    let goodput = told.bytes as f64 / told.seconds;
    Ok(Outcome::new(told.bytes, goodput, told.seconds, usage))
}
