//! `ib_write_bw`: RDMA writes out of one buffer into another, registered before.

use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use dunlin_bench::host::listens;
use dunlin_bench::program::{Program, wait_for};
use dunlin_bench::usage::Since;

use crate::results::{ACK_TIMEOUT, MEBIBYTE, Outcome};
use crate::runs::{DESTINATION, Run};

/// The port at which perftest's server waits unless told otherwise.
const PORT: u16 = 18515;

/// Runs it; each queue pair sends its share.
pub(crate) fn run(run: &mut Run<'_>, message_bytes: u64, pairs: u32) -> anyhow::Result<Outcome> {
    let iterations = (run.bench.bytes / message_bytes / u64::from(pairs)).max(5);
    let log = run.path("client.out");
    let command = |device: &str| {
        let mut command = Command::new("ib_write_bw");
        command.args(["-F", "-d", device, "-s", &message_bytes.to_string()]);
        command.args(["-n", &iterations.to_string(), "-q", &pairs.to_string()]);
        command.args(["-u", &ACK_TIMEOUT.to_string()]);
        let index = gid_index(device).map(|index| index.to_string());
        index.map(|index| {
            command.args(["-x", &index]).stderr(Stdio::null());
            command
        })
    };
    let mut server = command("rxe1")?;
    let mut server = Program::start(server.stdout(Stdio::null()))?;
    wait_for("ib_write_bw's server", || Ok(listens(PORT)))?;
    let mut client = command("rxe0")?;
    client.arg(DESTINATION).stdout(std::fs::File::create(&log)?);
    let mut client = Program::start(&mut client)?;
    let watched = run.watch(client.id(), server.id(), Since::Birth)?;
    client.wait_until_ended()?;
    server.wait_until_ended()?;
    let usage = run.end(watched)?;
    client.succeed()?;
    server.succeed()?;
    let said = std::fs::read_to_string(&log)?;
    let goodput = average(&said).with_context(|| format!("no bandwidth in: {said}"))? * MEBIBYTE;
    ensure!(goodput > 0.0, "no bandwidth at all in: {said}");
    let bytes = iterations * message_bytes * u64::from(pairs);
    Ok(Outcome::new(bytes, goodput, bytes as f64 / goodput, usage))
}

/// The average bandwidth in MiB/s: the fourth of five numbers in a line of its own.
fn average(said: &str) -> Option<f64> {
    said.lines().find_map(|line| {
        let numbers: Option<Vec<f64>> = line
            .split_whitespace()
            .map(|word| word.parse().ok())
            .collect();
        numbers
            .filter(|numbers| numbers.len() == 5)
            .map(|numbers| numbers[3])
    })
}

/// The place of a device's IPv4 address in its table.
fn gid_index(device: &str) -> anyhow::Result<u32> {
    let directory = format!("/sys/class/infiniband/{device}/ports/1/gids");
    (0..16)
        .find(|index| {
            let id = std::fs::read_to_string(format!("{directory}/{index}")).unwrap_or_default();
            id.starts_with("0000:0000:0000:0000:0000:ffff:")
        })
        .with_context(|| format!("{device} has no IPv4 address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_is_found() {
        let said = "\
 #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]
 1048576    128              56.44              55.40  \t\t   0.000056
";
        assert_eq!(average(said), Some(55.40));
        assert_eq!(average("Couldn't connect to 10.77.0.2:18515\n"), None);
    }
}
