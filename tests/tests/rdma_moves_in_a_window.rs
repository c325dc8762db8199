//! A KVM guest moves over RDMA while neither side ever pins more than a part of it. What is pinned
//! is what the kernel says (`VmPin` in proc(5), `/proc/pid/status`), not what the program reports.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use dunlin_tests::host::has_kvm;
use dunlin_tests::program::eventually;
use dunlin_tests::site::{Site, expect_moved};
use serde_json::Value;

/// How often it is looked at what is pinned.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// After so many looks it is looked again who is there.
const LOOKS_EACH: u32 = 20;

const MIB: u64 = 1 << 20;

/// The addresses of the source's and the destination's device.
fn ends() -> Option<[String; 2]> {
    let address = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    let ends = address("RDMA_IPV4_A").zip(address("RDMA_IPV4_B"));
    if ends.is_none() {
        println!("skipped: no RDMA device: RDMA_IPV4_A and RDMA_IPV4_B name no addresses");
    }
    ends.map(|(source, destination)| [source, destination])
}

/// What a process has pinned, in bytes.
fn pinned(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmPin:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// Looks at the sites' processes until `is_over`; the most that each of them had pinned.
fn watch(sites: [&Site; 2], is_over: &AtomicBool) -> [u64; 2] {
    let mut peaks = [BTreeMap::new(), BTreeMap::new()];
    let mut looks = 0_u32;
    while !is_over.load(Ordering::SeqCst) {
        for (site, peaks) in sites.iter().zip(&mut peaks) {
            if looks.is_multiple_of(LOOKS_EACH) {
                for pid in site.processes() {
                    peaks.entry(pid).or_insert(0);
                }
            }
            for (pid, peak) in peaks {
                *peak = pinned(*pid).unwrap_or(0).max(*peak);
            }
        }
        looks += 1;
        std::thread::sleep(LOOK_INTERVAL);
    }
    peaks.map(|peaks| peaks.into_values().max().unwrap_or(0))
}

/// Moves a guest; returns the report, and the most that a process of either side had pinned.
fn move_a_guest(
    memory: &str,
    send: &[&str],
    receive: &[&str],
) -> Result<Option<(Value, [u64; 2])>> {
    let Some([source, destination]) = ends().filter(|_| has_kvm()) else {
        return Ok(None);
    };
    let (here, there) = (Site::new()?, Site::new()?);
    let workload = "pattern=sequential,hot=8MiB,rate=1MiB/s";
    let guest = here.guest(
        "vm1",
        &["--memory", memory, "--guest", "kvm", "--workload", workload],
    )?;
    let mut receiver = there.receiver_at(&format!("rdma://{destination}:0"), receive)?;
    let to = format!("rdma://{destination}:{}", receiver.port()?);
    let mut flags = vec![
        "--bind",
        &source,
        "--max-blackout",
        "20s",
        "--peer-timeout",
        "30s",
    ];
    flags.extend(send);
    let is_over = AtomicBool::new(false);
    let (report, peaks) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch([&here, &there], &is_over));
        let report = here.send("vm1", &to, &flags, 0);
        is_over.store(true, Ordering::SeqCst);
        (report, watcher.join())
    });
    let report = report?;
    expect_moved(&report)?;
    there
        .expect_goes_on("vm1")
        .with_context(|| receiver.process.said_so_far("receive").join("\n"))?;
    eventually("nothing is pinned any more", || {
        Ok(there
            .processes()
            .into_iter()
            .all(|pid| pinned(pid).unwrap_or(0) == 0))
    })?;
    guest.wait()?.expect_code(0)?;
    let [source, destination] = peaks.ok().context("the watcher has failed")?;
    println!(
        "{memory}: pinned at most {} KiB here, {} KiB there; {:#}",
        source / 1024,
        destination / 1024,
        report["registration"]
    );
    println!("{:#}", report["blackout"]);
    Ok(Some((report, [source, destination])))
}

/// A guest moves while the destination, whose budget is the smaller one, pins no more than that.
fn moves_in_a_window(memory_mib: u64, budget_mib: u64) -> Result<()> {
    let moved = move_a_guest(
        &format!("{memory_mib}MiB"),
        &["--pin-budget", "unlimited"],
        &["--pin-budget", &format!("{budget_mib}MiB")],
    )?;
    let Some((report, peaks)) = moved else {
        return Ok(());
    };
    let (budget, window) = (budget_mib * MIB, (budget_mib - 1) * MIB);
    // Looked at the right thing, and often enough to have seen it full.
    let full = budget / 4 * 3;
    for peak in peaks {
        assert!(peak <= budget, "{peak} bytes were pinned");
        assert!(peak >= full, "only {peak} bytes were seen pinned");
    }
    let told = &report["registration"];
    assert_eq!(told["window_bytes"], window);
    for side in ["source", "destination"] {
        let told = told[side]["peak_bytes"].as_u64().context("no peak")?;
        assert!((full..=window).contains(&told), "{side}: {told}");
    }
    // All of it was registered at one time or another.
    let evictions = told["evictions"].as_u64().context("no evictions")?;
    assert!(evictions >= (memory_mib - budget_mib) / 8, "{evictions}");
    let pages = memory_mib * MIB / 4096;
    assert_eq!(report["verification"]["pages_checked"], pages);
    Ok(())
}

#[test]
fn a_guest_of_1_gib_moves_with_at_most_128_mib_pinned() -> Result<()> {
    moves_in_a_window(1024, 128)
}

#[test]
fn a_guest_of_256_mib_moves_with_at_most_32_mib_pinned() -> Result<()> {
    moves_in_a_window(256, 32)
}

#[test]
fn a_guest_that_fits_is_registered_once() -> Result<()> {
    let Some((report, peaks)) = move_a_guest("64MiB", &[], &["--pin-budget", "unlimited"])? else {
        return Ok(());
    };
    for peak in peaks {
        assert!((32 * MIB..=66 * MIB).contains(&peak), "{peak} bytes");
    }
    let told = &report["registration"];
    assert_eq!(told["evictions"], 0);
    assert_eq!(told["source"]["made"], told["destination"]["made"]);
    Ok(())
}
