//! `ib_write_bw` and `ib_read_lat`: one RDMA device of this host with itself, memory registered
//! before.

use std::process::{Command, Stdio};

use super::{Conditions, LISTEN_MAX, directory, free_port, listens};
use crate::bench::Stop;
use crate::bench::matrix::RdmaPlace;
use crate::bench::processes::{Process, output_of, wait_for};
use crate::bench::results::ReferenceRun;

/// The length of one write.
const WRITE_BYTES: u64 = 1 << 20;

/// The length of one read: a page.
const READ_BYTES: u64 = 4096;

/// How many reads are timed.
const READS: u64 = 1000;

/// The fewest writes that the program takes.
const WRITES_MIN: u64 = 5;

/// Writes as much as a guest has memory; each queue pair its share.
pub(super) fn write_bandwidth(
    conditions: &Conditions<'_>,
    pairs: u16,
) -> Result<ReferenceRun, Stop> {
    let writes = conditions.memory_bytes / WRITE_BYTES / u64::from(pairs);
    let pairs = pairs.to_string();
    let writes = writes.max(WRITES_MIN).to_string();
    let size = WRITE_BYTES.to_string();
    let said = run(
        conditions,
        "ib_write_bw",
        &["-s", &size, "-n", &writes, "-q", &pairs],
    )?;
    // Bytes, iterations, peak, average (MiB/s), messages.
    let average = numbers(&said, 5).and_then(|numbers| numbers.get(3).copied());
    average
        .filter(|average| *average > 0.0)
        .map(|average| ReferenceRun {
            goodput_bytes_per_s: Some((average * (1 << 20) as f64) as u64),
            ..ReferenceRun::default()
        })
        .ok_or_else(|| Stop::Failed("ib_write_bw tells no bandwidth".to_owned()))
}

/// Reads a page again and again.
pub(super) fn read_latency(conditions: &Conditions<'_>) -> Result<ReferenceRun, Stop> {
    let size = READ_BYTES.to_string();
    let reads = READS.to_string();
    let said = run(conditions, "ib_read_lat", &["-s", &size, "-n", &reads])?;
    // Bytes, iterations, least, most, typical (µs), and more.
    let typical = numbers(&said, 9).and_then(|numbers| numbers.get(4).copied());
    typical
        .filter(|typical| *typical > 0.0)
        .map(|typical| ReferenceRun {
            latency_ns: Some((typical * 1e3) as u64),
            ..ReferenceRun::default()
        })
        .ok_or_else(|| Stop::Failed("ib_read_lat tells no latency".to_owned()))
}

/// Runs a program of perftest against itself, and gives what its client printed.
fn run(conditions: &Conditions<'_>, program: &str, more: &[&str]) -> Result<String, Stop> {
    let place = conditions
        .means
        .rdma
        .as_ref()
        .map_err(|reason| Stop::Failed(format!("no RDMA: {reason}")))?;
    let directory = directory()?;
    let port = free_port()?;
    let command = || {
        let mut command = Command::new(program);
        command.args(["-F", "-d", &place.device, "-p", &port.to_string()]);
        if let Some(index) = address_index(place) {
            command.args(["-x", &index.to_string()]);
        }
        command.args(more);
        command
    };
    let mut server = command();
    server
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _server = Process::start(&mut server)?;
    wait_for(
        &format!("{program}'s server"),
        LISTEN_MAX,
        conditions.interrupted,
        || Ok(listens(port)),
    )?;
    let mut client = command();
    client.arg(place.address.to_string());
    output_of(
        &mut client,
        directory.path(),
        conditions.limit,
        conditions.interrupted,
    )
}

/// A line of nothing but numbers, as many as are wanted.
fn numbers(said: &str, wanted: usize) -> Option<Vec<f64>> {
    said.lines().find_map(|line| {
        let words = line.split_whitespace().map(str::parse);
        let numbers: Result<Vec<f64>, _> = words.collect();
        numbers.ok().filter(|numbers| numbers.len() == wanted)
    })
}

/// The place of the address in the table of the device's first port.
fn address_index(place: &RdmaPlace) -> Option<u32> {
    let directory = format!("/sys/class/infiniband/{}/ports/1/gids", place.device);
    let wanted = match place.address {
        std::net::IpAddr::V4(address) => address.to_ipv6_mapped(),
        std::net::IpAddr::V6(address) => address,
    };
    (0..=u8::MAX).map(u32::from).find(|index| {
        let text = std::fs::read_to_string(format!("{directory}/{index}")).unwrap_or_default();
        text.trim().parse() == Ok(wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_in_a_line_of_numbers() {
        let bandwidth = "\
 #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]
 1048576    128              56.44              55.40  \t\t   0.000056
";
        assert_eq!(numbers(bandwidth, 5).unwrap()[3], 55.40);
        let latency = "\
 #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]   99% percentile[usec]   99.9% percentile[usec]
 4096    1000          1.90           9.70         1.98     \t       2.01        \t0.20   \t\t2.30    \t\t9.70
";
        assert_eq!(numbers(latency, 9).unwrap()[4], 1.98);
        assert_eq!(numbers("Couldn't connect to 10.0.0.1:18515\n", 5), None);
    }
}
