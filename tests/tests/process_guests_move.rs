//! A guest of threads moves where there is no KVM, and where memory is dirtied faster than KVM's
//! tracking lets a guest do it.

use std::time::Instant;

use anyhow::Result;
use dunlin_tests::site::{Site, expect_moved};

#[test]
fn more_than_a_gigabyte_a_second_dirtied() -> Result<()> {
    let (here, there) = (Site::new()?, Site::new()?);
    let workload = "hot=32MiB,rate=max";
    let run = [
        "--guest",
        "process",
        "--memory",
        "512MiB",
        "--vcpus",
        "2",
        "--workload",
        workload,
    ];
    let _guest = here.guest("vm1", &run)?;

    // That the guest is one of this kind is what makes it this scenario.
    let (begin, before) = (Instant::now(), here.pages_written("vm1")?);
    std::thread::sleep(std::time::Duration::from_secs(1));
    let written = here.pages_written("vm1")? - before;
    let rate = (written * 4096) as f64 / begin.elapsed().as_secs_f64();
    println!("the guest dirties {:.2} GB/s", rate / 1e9);
    assert!(rate > 1e9, "the guest dirties only {:.2} GB/s", rate / 1e9);

    let receiver = there.receiver(&[])?;
    // All of the hot set is dirty whenever one looks: what the pause has to carry is 32 MiB.
    let send = ["--max-blackout", "400ms"];
    let report = here.send("vm1", &receiver.endpoint, &send, 0)?;
    expect_moved(&report)?;
    assert_eq!(report["guest"]["kind"], "process");
    there.expect_goes_on("vm1")
}

#[test]
fn on_each_kind_of_memory() -> Result<()> {
    for backing in ["memfd", "anon"] {
        let (here, there) = (Site::new()?, Site::new()?);
        let run = [
            "--guest",
            "process",
            "--memory",
            "128MiB",
            "--memory-backing",
            backing,
        ];
        let _guest = here.guest("vm1", &run)?;
        let receiver = there.receiver(&[])?;
        expect_moved(&here.send("vm1", &receiver.endpoint, &[], 0)?)?;
        there.expect_goes_on("vm1")?;
    }
    Ok(())
}

/// What the guest writes is numbers that count up, which compress; a running guest writes its pages
/// while they are packed.
#[test]
fn compressed() -> Result<()> {
    for (how, mechanism) in [
        ("lz4", "lz4"),
        ("zstd:3", "zstd:3"),
        ("auto", "lz4 where it pays"),
    ] {
        let (here, there) = (Site::new()?, Site::new()?);
        let run = ["--guest", "process", "--memory", "128MiB"];
        let _guest = here.guest("vm1", &run)?;
        let receiver = there.receiver(&[])?;
        let to = format!("tcp://127.0.0.1:{}", receiver.port()?);
        let report = here.send("vm1", &to, &["--compress", how], 0)?;
        expect_moved(&report)?;
        let used = report["mechanism"].as_str().unwrap_or_default();
        assert!(used.ends_with(mechanism), "{how}: {used}");
        if how != "auto" {
            let bytes = |name: &str| report[name].as_u64().unwrap_or_default();
            let (sent, wire) = (bytes("sent_bytes"), bytes("wire_bytes"));
            assert!(wire < sent, "{how}: {wire} bytes for {sent}");
        }
        there.expect_goes_on("vm1")?;
    }
    Ok(())
}
