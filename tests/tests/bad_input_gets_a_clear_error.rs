//! Wrong flags, sizes, endpoints and names: exit code 2 (or the one documented), and a message that
//! names the value and the way out.

use anyhow::Result;
use dunlin_tests::site::Site;

fn complains(line: &str, code: i32, words: &[&str]) -> Result<()> {
    let site = Site::new()?;
    let arguments: Vec<&str> = line.split_whitespace().collect();
    let output = site.run(&arguments)?.expect_code(code)?;
    for word in words {
        assert!(
            output.stderr.contains(word),
            "'{word}' is not in the answer to '{line}': {output:#?}"
        );
    }
    assert!(!output.stderr.contains("panicked"), "{output:#?}");
    Ok(())
}

#[test]
fn flags() -> Result<()> {
    complains("fly", 2, &["fly"])?;
    complains("run --name vm1 --memory 1GiB --wings 2", 2, &["--wings"])?;
    complains("run --name vm1", 2, &["--memory"])?;
    complains("send vm1", 2, &["--to"])?;
    complains("set vm1", 2, &["--max-blackout"])?;
    complains(
        "run --name vm1 --memory 1GiB --vcpus 0",
        2,
        &["0", "--vcpus"],
    )?;
    complains(
        "run --name vm1 --memory 1GiB --memory-backing paper",
        2,
        &["paper", "memfd"],
    )?;
    complains("run --name ../x --memory 1GiB", 2, &["../x"])
}

#[test]
fn sizes_and_durations() -> Result<()> {
    complains("run --name vm1 --memory 1GB", 2, &["1GB", "GiB"])?;
    complains("run --name vm1 --memory 0", 2, &["0"])?;
    complains(
        "run --name vm1 --memory 99999999999TiB",
        2,
        &["99999999999TiB"],
    )?;
    complains("run --name vm1 --memory 5000", 12, &["5000", "4096"])?;
    complains("send vm1 --to tcp://h --max-blackout 50", 2, &["50", "ms"])?;
    complains(
        "send vm1 --to tcp://h --max-bandwidth 64",
        2,
        &["64", "MiB/s"],
    )
}

#[test]
fn endpoints() -> Result<()> {
    complains("send vm1 --to host:99999", 2, &["99999", "tcp://host"])?;
    complains("send vm1 --to tcp://", 2, &["tcp://"])?;
    complains("send vm1 --to tcp://h:99999", 2, &["99999"])?;
    complains(
        "send vm1 --to tcp://::1:7471",
        2,
        &["brackets", "[2001:db8::1]"],
    )?;
    complains("send vm1 --to ib://h", 2, &["'ib'", "rdma"])?;
    complains("send vm1 --to rdma://", 2, &["no host"])?;
    complains("send vm1 --to ftp://h", 2, &["ftp"])
}

#[test]
fn workloads() -> Result<()> {
    complains(
        "run --name vm1 --memory 1GiB --workload speed=3",
        2,
        &["speed"],
    )?;
    complains(
        "run --name vm1 --memory 1GiB --workload zero=101",
        2,
        &["101"],
    )?;
    complains(
        "run --name vm1 --memory 1GiB --workload pattern=zigzag",
        2,
        &["zigzag", "random"],
    )?;
    complains(
        "run --name vm1 --memory 64MiB --workload hot=1GiB --guest process",
        12,
        &["1GiB", "56MiB"],
    )
}

#[test]
fn guests_that_are_not_there() -> Result<()> {
    complains("send nobody --to tcp://127.0.0.1:1", 3, &["nobody"])?;
    complains("status nobody", 3, &["nobody"])?;
    complains("cancel nobody", 3, &["nobody"])?;
    complains("stop nobody", 3, &["nobody"])
}

#[test]
fn a_name_that_is_taken() -> Result<()> {
    let site = Site::new()?;
    let run = [
        "--memory",
        "64MiB",
        "--guest",
        "process",
        "--workload",
        "hot=1MiB",
    ];
    let _guest = site.guest("vm1", &run)?;
    let again = site.run(&[&["run", "--name", "vm1"], run.as_slice()].concat())?;
    let again = again.expect_code(14)?;
    assert!(again.stderr.contains("vm1"), "{again:?}");
    site.expect_goes_on("vm1")?;
    let idle = site.run(&["cancel", "vm1"])?.expect_code(14)?;
    assert!(idle.stderr.contains("vm1"), "{idle:?}");
    Ok(())
}

#[test]
fn errors_as_json() -> Result<()> {
    let site = Site::new()?;
    let output = site.run(&["status", "nobody", "--json"])?.expect_code(3)?;
    let text = if output.stdout.trim().is_empty() {
        &output.stderr
    } else {
        &output.stdout
    };
    let error: serde_json::Value = serde_json::from_str(text)?;
    assert!(error.to_string().contains("nobody"), "{error}");
    Ok(())
}
