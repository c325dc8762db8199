//! A KVM guest moves from one process to another and goes on there: with one and two vCPUs, with
//! each way of tracking writes, on each kind of memory.

use anyhow::Result;
use dunlin_tests::host::{HugePages, has_kvm};
use dunlin_tests::measured::expect_operations_of_tcp;
use dunlin_tests::site::{Site, expect_moved};
use serde_json::Value;

/// Starts a guest, moves it, sees that it goes on. Returns the report.
fn move_a_guest(run: &[&str], receive: &[&str], send: &[&str]) -> Result<Value> {
    let (here, there) = (Site::new()?, Site::new()?);
    let guest = here.guest("vm1", run)?;
    let receiver = there.receiver(receive)?;
    let report = here.send("vm1", &receiver.endpoint, send, 0)?;
    expect_moved(&report)?;
    expect_operations_of_tcp(&report)?;
    there.expect_goes_on("vm1")?;
    // Its process here ends by itself, and well.
    guest.wait()?.expect_code(0)?;
    assert_eq!(
        report["blackout"]["guest_visible_ns"]
            .as_u64()
            .map(|ns| ns > 0),
        Some(true)
    );
    Ok(report)
}

fn tracked_by(report: &Value, name: &str) -> bool {
    report["guest"]["dirty_tracking"]
        .as_array()
        .is_some_and(|names| names.iter().any(|n| n == name))
}

fn move_tracked(vcpus: &str, tracking: &str, backing: &str) -> Result<()> {
    if !has_kvm() {
        return Ok(());
    }
    let report = move_a_guest(
        &[
            "--memory",
            "256MiB",
            "--guest",
            "kvm",
            "--vcpus",
            vcpus,
            "--dirty-tracking",
            tracking,
            "--memory-backing",
            backing,
            "--workload",
            "hot=16MiB,rate=50MiB/s",
        ],
        &[],
        &[],
    )?;
    assert!(
        tracked_by(&report, &format!("kvm-{tracking}")),
        "{report:#}"
    );
    Ok(())
}

#[test]
fn one_vcpu_bitmap_memfd() -> Result<()> {
    move_tracked("1", "bitmap", "memfd")
}

#[test]
fn two_vcpus_ring_memfd() -> Result<()> {
    move_tracked("2", "ring", "memfd")
}

#[test]
fn two_vcpus_bitmap_anonymous() -> Result<()> {
    move_tracked("2", "bitmap", "anon")
}

#[test]
fn one_vcpu_ring_anonymous() -> Result<()> {
    move_tracked("1", "ring", "anon")
}

#[test]
fn one_vcpu_bitmap_and_two_vcpus_ring_on_huge_pages() -> Result<()> {
    // Source and destination each hold the guest: twice 256 MiB.
    let Some(_reserved) = HugePages::reserve(2 * 128) else {
        return Ok(());
    };
    move_tracked("1", "bitmap", "hugetlb")?;
    move_tracked("2", "ring", "hugetlb")
}

#[test]
fn six_gib_reach_past_the_32_bit_hole() -> Result<()> {
    if !has_kvm() {
        return Ok(());
    }
    let run = [
        "--memory",
        "6GiB",
        "--vcpus",
        "2",
        "--workload",
        "hot=32MiB,zero=60",
    ];
    let report = move_a_guest(&run, &[], &[])?;
    assert_eq!(report["guest"]["memory_bytes"], 6_u64 << 30);
    assert_eq!(
        report["verification"]["pages_checked"],
        (6_u64 << 30) / 4096
    );
    Ok(())
}

#[test]
fn a_guest_may_change_its_memorys_backing_on_the_way() -> Result<()> {
    if !has_kvm() {
        return Ok(());
    }
    let run = ["--memory", "128MiB", "--memory-backing", "memfd"];
    move_a_guest(
        &run,
        &["--memory-backing", "anon"],
        &["--io", "writev", "--lanes", "1"],
    )?;
    Ok(())
}

#[test]
fn digests_of_all_memory_inside_the_handover() -> Result<()> {
    if !has_kvm() {
        return Ok(());
    }
    let run = ["--memory", "128MiB"];
    let send = ["--verify", "full", "--max-blackout", "500ms"];
    let report = move_a_guest(&run, &[], &send)?;
    assert_eq!(report["verification"]["method"], "digests");
    assert!(report["verification"]["blackout_ns"].as_u64() > Some(0));
    Ok(())
}

/// Law 7: an `out` that is under way when its vCPU is parked is neither lost nor done twice.
#[test]
fn the_serial_ports_beats_are_neither_lost_nor_doubled() -> Result<()> {
    if !has_kvm() {
        return Ok(());
    }
    let (here, there) = (Site::new()?, Site::new()?);
    let serial = here.directory().join("serial");
    let to_file = format!("file:{}", serial.display());
    let run = [
        "--memory",
        "64MiB",
        "--serial",
        &to_file,
        "--workload",
        "hot=4MiB",
    ];
    let _guest = here.guest("vm1", &run)?;
    let receiver = there.receiver(&[])?;
    dunlin_tests::program::eventually("it beats here", || {
        Ok(std::fs::read_to_string(&serial)?.lines().count() > 3)
    })?;
    expect_moved(&here.send("vm1", &receiver.endpoint, &[], 0)?)?;
    let arrived = there.directory().join("vm1.serial");
    dunlin_tests::program::eventually("it beats there", || {
        Ok(std::fs::read_to_string(&arrived)?.lines().count() > 3)
    })?;
    let text = std::fs::read_to_string(&serial)? + &std::fs::read_to_string(&arrived)?;
    let (whole, _begun) = text.rsplit_once('\n').unwrap_or((&text, ""));
    let mut last = None;
    for line in whole.lines() {
        let beat = line
            .strip_prefix("vcpu 0 beat ")
            .unwrap_or_else(|| panic!("{line:?} in {text}"));
        let (beat, _loops_and_time) = beat.split_once(' ').unwrap_or((beat, ""));
        let beat = u64::from_str_radix(beat, 16)?;
        assert!(
            last.is_none_or(|last| beat == last + 1),
            "{last:?}, then {beat} in {text}"
        );
        last = Some(beat);
    }
    Ok(())
}
