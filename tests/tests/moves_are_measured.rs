//! `dunlin bench`: a small matrix is measured, and all that comes out of it agrees.

use std::path::Path;

use anyhow::{Context, Result};
use dunlin_tests::program::{Running, eventually};
use dunlin_tests::schema::Schema;
use dunlin_tests::site::Site;
use serde_json::Value;

/// Two cells that run everywhere.
const MATRIX: [&str; 17] = [
    "bench",
    "--transports",
    "tcp",
    "--lanes",
    "1,2",
    "--memory",
    "128MiB",
    "--dirty-rate",
    "10MiB/s",
    "--guest",
    "process",
    "--repeat",
    "2",
    "--warm-up",
    "0",
    "--references",
    "memcpy",
];

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

#[test]
fn a_small_matrix_is_measured() -> Result<()> {
    let site = Site::new()?;
    let at = |name: &str| site.directory().join(name);
    let [json, csv, html] = ["result.json", "result.csv", "result.html"].map(at);
    let [json_text, csv_text, html_text] =
        [&json, &csv, &html].map(|path| path.to_string_lossy().into_owned());
    let mut arguments = MATRIX.to_vec();
    arguments.extend([
        "--json", &json_text, "--csv", &csv_text, "--html", &html_text,
    ]);
    let output = site.run(&arguments)?.expect_code(0)?;
    for word in ["goodput", "tcp, 2 lanes", "memcpy", "too few passes to say"] {
        assert!(output.stdout.contains(word), "{word}: {}", output.stdout);
    }

    let result: Value = serde_json::from_str(&read(&json)?)?;
    Schema::Bench.check(&result)?;
    assert_eq!(
        (&result["passes"], &result["is_interrupted"]),
        (&2.into(), &false.into())
    );
    let cells = result["cells"].as_array().context("no cells")?;
    assert_eq!(cells.len(), 2);
    for cell in cells {
        let runs = cell["runs"].as_array().context("no runs")?;
        assert_eq!(runs.len(), 2);
        for run in runs {
            assert_eq!(
                (&run["outcome"], &run["is_equal"]),
                (&"moved".into(), &true.into()),
                "{run:#}"
            );
            assert_eq!(run["lanes"], cell["cell"]["lanes"]);
            let parts = run["parts"].as_array().context("no parts")?;
            let sum: u64 = parts
                .iter()
                .filter_map(|part| part["duration_ns"].as_u64())
                .sum();
            assert_eq!(run["blackout_ns"].as_u64(), Some(sum));
            for figure in [
                "goodput_bytes_per_s",
                "total_ns",
                "guest_visible_ns",
                "predicted_ns",
                "source_cpu_ns",
                "destination_cpu_ns",
            ] {
                assert!(run[figure].as_u64() > Some(0), "{figure}: {run:#}");
            }
        }
    }
    let copy = &result["references"][0];
    assert_eq!(copy["runs"].as_array().map(Vec::len), Some(2), "{copy:#}");

    // The heads, two cells and a reference, twice each.
    let csv = read(&csv)?;
    assert_eq!(csv.lines().count(), 7, "{csv}");
    let goodput = cells[0]["runs"][0]["goodput_bytes_per_s"].to_string();
    assert!(csv.contains(&goodput), "{goodput}: {csv}");

    let page = read(&html)?;
    assert!(page.starts_with("<!DOCTYPE html>"), "{page}");
    // The data in the page is the result.
    let (_, data) = page.split_once("id=\"results\">").context("no data")?;
    let (data, _) = data.split_once("</script>").context("no end of the data")?;
    assert_eq!(serde_json::from_str::<Value>(data)?, result);

    // Two passes are no verdict: neither a regression nor its absence.
    let compare = ["bench", "compare", &json_text, &json_text, "--json"];
    let comparison = site.run(&compare)?.expect_code(19)?.json()?;
    assert_eq!(comparison["outcome"], "not-comparable");

    let bundle = at("bundle.json");
    let bundle_text = bundle.to_string_lossy().into_owned();
    site.run(&["bench", "report", &json_text, "--output", &bundle_text])?
        .expect_code(0)?;
    let bundle: Value = serde_json::from_str(&read(&bundle)?)?;
    assert_eq!(bundle["schema"], "dunlin.bench-report/1");
    assert_eq!(bundle["results"][0]["cells"], result["cells"]);
    assert!(
        bundle["host"].as_array().map(Vec::len) > Some(5),
        "{bundle:#}"
    );
    Ok(())
}

#[test]
fn ctrl_c_keeps_what_was_measured_and_leaves_nothing() -> Result<()> {
    let site = Site::new()?;
    let temporary = tempfile::tempdir()?;
    let json = site.directory().join("result.json");
    let mut arguments = MATRIX.to_vec();
    let path = json.to_string_lossy().into_owned();
    arguments.extend(["--json", &path]);
    let place = arguments
        .iter()
        .position(|word| *word == "2")
        .context("no repeat")?;
    arguments[place] = "1000";
    let mut command = site.command(&arguments);
    command.env("TMPDIR", temporary.path());
    let bench = Running::start(command)?;
    eventually("a run is under way", || {
        Ok(std::fs::read_dir(temporary.path())?.count() > 0)
    })?;
    bench.signal(libc::SIGINT);
    let output = bench.wait()?;
    assert_eq!(output.code, 9, "{output:?}");
    assert_eq!(std::fs::read_dir(temporary.path())?.count(), 0);
    let result: Value = serde_json::from_str(&read(&json)?)?;
    assert_eq!(result["is_interrupted"], true);
    Ok(())
}

#[test]
fn another_host_takes_a_benchs_guests_and_ends_them() -> Result<()> {
    let [here, there] = [Site::new()?, Site::new()?];
    let json = here.directory().join("result.json");
    let path = json.to_string_lossy().into_owned();
    let mut arguments = MATRIX.to_vec();
    arguments.extend(["--json", &path, "--quiet"]);
    let receiver = there.receiver(&["--bench"])?;
    let mut remote = arguments.clone();
    remote.extend(["--to", &receiver.endpoint]);
    here.run(&remote)?.expect_code(0)?;
    let result: Value = serde_json::from_str(&read(&json)?)?;
    assert_eq!(result["is_one_host"], false);
    assert_eq!(result["cells"][1]["runs"][1]["outcome"], "moved");
    assert!(result["cells"][1]["runs"][1]["destination_cpu_ns"].is_null());
    eventually("the guests are gone there", || {
        let status = there.run(&["status", "--json"])?.json()?;
        Ok(status["guests"].as_array().map(Vec::len) == Some(0))
    })?;

    // Nobody else's guests are taken there, as they would be ended.
    let guest = [
        "--memory",
        "64MiB",
        "--guest",
        "process",
        "--workload",
        "hot=4MiB",
    ];
    let _guest = here.guest("vm1", &guest)?;
    let report = here.send("vm1", &receiver.endpoint, &[], 4)?;
    assert_eq!(report["outcome"], "refused");
    here.expect_goes_on("vm1")?;

    // And a bench's are not taken where they would stay.
    let other = Site::new()?;
    let keeper = other.receiver(&[])?;
    arguments.extend(["--to", &keeper.endpoint]);
    here.run(&arguments)?.expect_code(12)?;
    let result: Value = serde_json::from_str(&read(&json)?)?;
    let reason = result["cells"][0]["runs"][0]["reason"]
        .as_str()
        .unwrap_or_default();
    assert!(reason.contains("receive --bench"), "{reason}");
    Ok(())
}

#[test]
fn files_name_nobody_and_the_screen_says_all() -> Result<()> {
    let site = Site::new()?;
    let at = |name: &str| site.directory().join(name).to_string_lossy().into_owned();
    let files = ["result.json", "result.csv", "result.html"].map(at);
    let [json, csv, html] = &files;
    let bench = [
        "bench",
        "--transports",
        "tcp",
        "--lanes",
        "1",
        "--memory",
        "64MiB",
        "--guest",
        "process",
        "--repeat",
        "1",
        "--warm-up",
        "0",
        "--references",
        "none",
        // Nobody listens there.
        "--to",
        "tcp://localhost:1",
        "--json",
        json,
        "--csv",
        csv,
        "--html",
        html,
    ];
    let output = site.run(&bench)?.expect_code(12)?;
    assert!(output.stdout.contains("localhost:1"), "{output:?}");
    for file in &files {
        let text = read(Path::new(file))?;
        assert!(text.contains("can't reach [private]"), "{file}: {text}");
        assert!(!text.contains("localhost"), "{file}: {text}");
    }
    let result: Value = serde_json::from_str(&read(Path::new(json))?)?;
    Schema::Bench.check(&result)?;
    let bundle = at("bundle.json");
    site.run(&["bench", "report", json, "--output", &bundle])?
        .expect_code(0)?;
    let bundle = read(Path::new(&bundle))?;
    assert!(!bundle.contains("localhost"), "{bundle}");
    for schema in ["dunlin.bench-report/1", "dunlin.bench/1"] {
        assert!(bundle.contains(schema), "{schema}: {bundle}");
    }
    Ok(())
}

#[test]
fn what_can_not_run_says_why() -> Result<()> {
    let site = Site::new()?;
    let elsewhere = [
        "bench",
        "--to",
        "tcp://127.0.0.1:1",
        "--against",
        "/bin/true",
    ];
    site.run(&elsewhere)?.expect_code(2)?;
    let nowhere = ["bench", "--json", "/nowhere/result.json"];
    let output = site.run(&nowhere)?.expect_code(2)?;
    assert!(output.stderr.contains("nothing was done"), "{output:?}");
    let file = site.directory().join("report.json");
    std::fs::write(&file, r#"{"schema":"dunlin.report/1"}"#)?;
    let path = file.to_string_lossy().into_owned();
    let output = site
        .run(&["bench", "compare", &path, &path])?
        .expect_code(2)?;
    assert!(output.stderr.contains("'dunlin.report/1'"), "{output:?}");
    if Path::new("/sys/class/infiniband").exists() {
        println!("skipped: a matrix that can't run: this host may have RDMA");
        return Ok(());
    }
    let output = site
        .run(&["bench", "--transports", "rdma"])?
        .expect_code(12)?;
    assert!(
        output.stderr.contains("no cell can run here: no RDMA"),
        "{output:?}"
    );
    Ok(())
}
