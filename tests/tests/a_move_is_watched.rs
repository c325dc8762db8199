//! What people see of a move beside its receipt: the trace, metrics while it runs and afterwards,
//! `dunlin top`, and logs of both ends.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result, ensure};
use dunlin_tests::program::eventually;
use dunlin_tests::site::{Site, expect_moved};
use serde_json::Value;

const RUN: [&str; 6] = [
    "--memory",
    "256MiB",
    "--workload",
    "hot=8MiB,rate=20MiB/s",
    "--guest",
    "process",
];

#[test]
fn in_a_trace() -> Result<()> {
    let site = Site::new()?;
    let path = |name: &str| site.directory().join(name).to_string_lossy().into_owned();
    let (trace, json) = (path("move.trace.json"), path("move.json"));
    let demo = [
        "demo",
        "--memory",
        "256MiB",
        "--workload",
        "hot=16MiB",
        "--lanes",
        "2",
        "--quiet",
        "--trace",
        &trace,
        "--json",
        &json,
    ];
    site.run(&demo)?.expect_code(0)?;
    let trace: Value = serde_json::from_slice(&std::fs::read(trace)?)?;
    let report: Value = serde_json::from_slice(&std::fs::read(json)?)?;
    let events = trace["traceEvents"].as_array().context("no events")?;
    let (tracks, spans) = tracks(events)?;
    // Both ends, and each lane on each of them.
    let names: BTreeSet<_> = tracks.values().map(String::as_str).collect();
    for end in ["source", "destination"] {
        for track in ["control", "lane 0", "lane 1"] {
            let is_it = |name: &&&str| name.starts_with(end) && name.ends_with(track);
            ensure!(
                names.iter().any(|name| is_it(&name)),
                "no {track} of the {end}: {names:?}"
            );
        }
    }
    for ((process, thread), mut spans) in spans {
        let track = (process, thread);
        ensure!(
            tracks.contains_key(&track),
            "a track without a name: {track:?}"
        );
        spans.sort_by(|one, other| one.0.total_cmp(&other.0).then(other.1.total_cmp(&one.1)));
        let mut around: Vec<f64> = Vec::new();
        for (begin, end) in spans {
            around.retain(|outer| *outer > begin + 1e-4);
            let nests = around.iter().all(|outer| end <= outer + 1e-4);
            ensure!(nests, "spans of {track:?} overlap at {begin} µs");
            around.push(end);
        }
    }
    let told = report["telemetry"]["timeline"]["spans"].as_array();
    let drawn = events.iter().filter(|event| event["ph"] == "X").count();
    ensure!(
        told.map(Vec::len) == Some(drawn),
        "{drawn} spans in the trace"
    );
    Ok(())
}

type Tracks = BTreeMap<(u64, u64), String>;
type Spans = BTreeMap<(u64, u64), Vec<(f64, f64)>>;

/// Each track's name with its process's, and its spans.
fn tracks(events: &[Value]) -> Result<(Tracks, Spans)> {
    let number = |event: &Value, what: &str| event[what].as_u64().context("no number");
    let mut processes = BTreeMap::new();
    for event in events
        .iter()
        .filter(|event| event["name"] == "process_name")
    {
        let name = event["args"]["name"].as_str().unwrap_or_default();
        processes.insert(number(event, "pid")?, name.to_owned());
    }
    let (mut tracks, mut spans) = (Tracks::new(), Spans::new());
    for event in events {
        let process = number(event, "pid")?;
        let track = (process, number(event, "tid")?);
        if event["name"] == "thread_name" {
            let name = event["args"]["name"].as_str().unwrap_or_default();
            let process = processes
                .get(&process)
                .context("a process without a name")?;
            tracks.insert(track, format!("{process}: {name}"));
        } else if event["ph"] == "X" {
            let begin = event["ts"].as_f64().context("no begin")?;
            let took = event["dur"].as_f64().context("no duration")?;
            spans.entry(track).or_default().push((begin, begin + took));
        }
    }
    Ok((tracks, spans))
}

#[test]
fn by_metrics_and_top_while_it_runs_and_afterwards() -> Result<()> {
    let (here, there) = (Site::new()?, Site::new()?);
    let (source, destination, watcher) = (free_port()?, free_port()?, free_port()?);
    let run = [&RUN[..], &["--metrics", &source]].concat();
    let _guest = here.guest("vm1", &run)?;
    let receiver = there.receiver(&["--metrics", &destination])?;
    let to = receiver.endpoint.clone();

    let text = scrape(&source)?;
    ensure!(
        value(&text, "dunlin_guest_info{guest=\"vm1\"").is_some(),
        "{text}"
    );
    ensure!(!text.contains("dunlin_move_"), "{text}");

    let slow = [
        "send",
        "vm1",
        "--to",
        &to,
        "--json",
        "--quiet",
        "--max-bandwidth",
        "20MiB/s",
        "--metrics",
        &watcher,
    ];
    let send = here.start(&slow)?;
    here.await_phase("vm1", "copying")?;
    for port in [&source, &watcher] {
        eventually("the move's progress is told", || {
            let Ok(text) = scrape(port) else {
                return Ok(false);
            };
            let sent = value(&text, "dunlin_move_sent_bytes{guest=\"vm1\"}");
            let rate = value(
                &text,
                "dunlin_move_lane_rate_bytes_per_second{guest=\"vm1\",lane=\"0\"}",
            );
            Ok(sent > Some(0.0) && rate.is_some())
        })?;
    }
    let top = here.run(&["top", "--once"])?.expect_code(0)?.stdout;
    for words in ["vm1", "moving", "round 1", "vm1 lane 0:"] {
        ensure!(top.contains(words), "no '{words}' in\n{top}");
    }
    let screen = here.run(&["top"])?.expect_code(2)?;
    ensure!(screen.stderr.contains("--once"), "{screen:?}");

    here.run(&["cancel", "vm1"])?.expect_code(0)?;
    let report = send.wait()?.expect_code(9)?.json()?;
    let text = scrape(&source)?;
    ensure!(
        value(
            &text,
            "dunlin_moves_total{guest=\"vm1\",outcome=\"cancelled\"}"
        ) == Some(1.0),
        "{text}"
    );
    ensure!(!text.contains("dunlin_move_sent_bytes"), "{text}");
    let session = report["session"].as_str().context("no session")?;
    ensure!(text.contains(&format!("session=\"{session}\"")), "{text}");
    ensure!(
        text.contains("dunlin_zero_scan_seconds_bucket{guest=\"vm1\""),
        "{text}"
    );
    check_exposition(&text)?;

    expect_moved(&here.send("vm1", &to, &[], 0)?)?;
    eventually("the arrival is counted", || {
        let text = scrape(&destination)?;
        check_exposition(&text)?;
        let arrived = value(&text, "dunlin_arrivals_total{outcome=\"arrived\"}");
        let is_here = value(&text, "dunlin_guest_state{guest=\"vm1\",state=\"running\"}");
        Ok(arrived == Some(1.0) && is_here == Some(1.0))
    })
}

#[test]
fn by_metrics_in_a_file_when_nobody_is_left_to_be_asked() -> Result<()> {
    let (here, there) = (Site::new()?, Site::new()?);
    let folder = here.directory().join("collected");
    std::fs::create_dir(&folder)?;
    let file = folder.join("vm1.prom").to_string_lossy().into_owned();
    let guest = here.guest("vm1", &RUN)?;
    let nobody = free_port()?;
    let to_nobody = format!("tcp://{nobody}");
    let failed = here.send("vm1", &to_nobody, &["--metrics-file", &file], 5)?;
    let text = std::fs::read_to_string(&file)?;
    check_exposition(&text)?;
    let outcome = failed["outcome"].as_str().context("no outcome")?;
    let moves =
        |outcome: &str| format!("dunlin_moves_total{{guest=\"vm1\",outcome=\"{outcome}\"}}");
    ensure!(value(&text, &moves(outcome)) == Some(1.0), "{text}");

    let receiver = there.receiver(&[])?;
    let report = here.send("vm1", &receiver.endpoint, &["--metrics-file", &file], 0)?;
    expect_moved(&report)?;
    guest.wait()?.expect_code(0)?;
    let text = std::fs::read_to_string(&file)?;
    check_exposition(&text)?;
    ensure!(value(&text, &moves(outcome)) == Some(1.0), "{text}");
    ensure!(value(&text, &moves("moved")) == Some(1.0), "{text}");
    let of = |name: &str, field: &str| {
        let told = value(&text, &format!("{name}{{guest=\"vm1\"}}"));
        let measured = report.pointer(field).and_then(Value::as_f64);
        let is_same = told
            .zip(measured)
            .is_some_and(|(told, measured)| (told * 1e9 - measured).abs() < 1.0);
        ensure!(is_same, "{name}: {told:?}, {field}: {measured:?}");
        Ok(())
    };
    of("dunlin_last_move_blackout_seconds", "/blackout/total_ns")?;
    of("dunlin_last_move_seconds", "/total_ns")?;
    of(
        "dunlin_last_move_guest_visible_blackout_seconds",
        "/blackout/guest_visible_ns",
    )?;
    // The parts of the pause, and histograms of both ends.
    for begin in [
        "dunlin_blackout_part_seconds{guest=\"vm1\",side=\"source\",part=\"park\"}",
        "dunlin_blackout_part_seconds{guest=\"vm1\",side=\"destination\",part=\"load-state\"}",
        "dunlin_blackout_part_seconds{guest=\"vm1\",side=\"link\",part=\"ready-on-link\"}",
        "dunlin_fence_seconds_bucket{guest=\"vm1\",side=\"source\",le=\"+Inf\"}",
        "dunlin_receive_seconds_count{guest=\"vm1\",side=\"destination\"}",
    ] {
        ensure!(value(&text, begin) > Some(0.0), "no {begin} in\n{text}");
    }
    // Nothing is left beside it.
    ensure!(std::fs::read_dir(&folder)?.count() == 1);

    let refused = [
        "send",
        "vm1",
        "--to",
        &to_nobody,
        "--metrics-file",
        "/nowhere/vm1.prom",
    ];
    let refused = here.run(&refused)?.expect_code(2)?;
    ensure!(refused.stderr.contains("nothing was done"), "{refused:?}");
    Ok(())
}

#[test]
fn in_logs_that_name_the_session_on_both_ends() -> Result<()> {
    let (mut here, mut there) = (Site::new()?, Site::new()?);
    here.set_environment("RUST_LOG", Some("debug"));
    there.set_environment("RUST_LOG", Some("info"));
    let guest = here.guest("vm1", &RUN)?;
    let receiver = there.receiver(&[])?;
    let report = here.send("vm1", &receiver.endpoint, &[], 0)?;
    expect_moved(&report)?;
    let session = report["session"].as_str().context("no session")?;
    let source = guest.wait()?.stderr;
    let destination = std::fs::read_to_string(there.directory().join("vm1.log"))?;
    for (log, side, last) in [
        (source, "source", "the move is over"),
        (destination, "destination", "the guest runs here"),
    ] {
        let of_session = |line: &&str| line.contains(session) && line.contains(side);
        let lines: Vec<_> = log.lines().filter(of_session).collect();
        for words in ["the move begins", last] {
            let has = lines.iter().any(|line| line.contains(words));
            ensure!(has, "no '{words}' of the {side} in\n{log}");
        }
    }
    Ok(())
}

/// An address of the loopback interface that was free a moment ago.
fn free_port() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn scrape(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: dunlin\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    Ok(body.to_owned())
}

/// The value of the first sample that begins so.
fn value(text: &str, begin: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(begin))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Checks the form: each family has one head, and its samples stand behind it, together.
fn check_exposition(text: &str) -> Result<()> {
    let mut family = String::new();
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            family = head.split(' ').next().unwrap_or_default().to_owned();
            ensure!(seen.insert(family.clone()), "{family} comes twice");
        } else if !line.starts_with('#') {
            ensure!(line.starts_with(&family), "{line} is not of {family}");
            let value = line.rsplit(' ').next().context("no value")?;
            value.parse::<f64>().with_context(|| line.to_owned())?;
        }
    }
    ensure!(seen.len() > 3, "{text}");
    Ok(())
}
