//! The program as a user runs it: real processes, real sockets, guests of threads. Each test has a
//! runtime directory of its own.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that meets an impossible value should stop there and say so"
)]

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything may take here before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(60);

fn dunlin(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin"));
    command
        .args(arguments)
        .env("DUNLIN_RUNTIME_DIR", directory)
        .env("DUNLIN_STATE_DIR", directory.with_extension("state"))
        .env("TMPDIR", "/tmp")
        .stdin(Stdio::null());
    command
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    dunlin(directory, arguments).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// A process that is ended when the test is over.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A place for a test: directories, and the processes in them.
struct Place {
    root: tempfile::TempDir,
    running: Vec<Running>,
}

impl Place {
    fn new() -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
            running: Vec::new(),
        }
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A guest of threads that runs in `directory`.
    fn guest(&mut self, directory: &str, name: &str, memory: &str, workload: &str) {
        let path = self.directory(directory);
        let child = dunlin(&path, &["run", "--guest", "process"])
            .args(["--name", name, "--memory", memory, "--workload", workload])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.running.push(Running(child));
        wait_until(|| {
            let status = run(&path, &["status", name, "--json"]);
            code(&status) == 0 && json(&status)["state"] == "running"
        });
    }

    /// A destination whose files may not grow beyond some blocks of 512 bytes, as on a full disk;
    /// the signal for it is ignored, as a disk sends none.
    fn destination_with_files_up_to(&mut self, name: &str, blocks: u32) -> (String, Told) {
        let directory = self.directory(name);
        let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let mut child = Command::new("sh")
            .args(["-c", &limited])
            .arg(env!("CARGO_BIN_EXE_dunlin"))
            .args(["receive", "--json", "--listen", "tcp://127.0.0.1:0"])
            .args(["--memory-backing", "anon"])
            .env("DUNLIN_RUNTIME_DIR", &directory)
            .env("DUNLIN_STATE_DIR", directory.with_extension("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = Told(BufReader::new(child.stdout.take().unwrap()));
        self.running.push(Running(child));
        let listening = told.next("listening");
        (listening["endpoint"].as_str().unwrap().to_owned(), told)
    }

    /// A destination; says where it listens, and what it tells from then on.
    fn destination(&mut self, directory: &str, arguments: &[&str]) -> (String, Told) {
        let mut child = dunlin(&self.directory(directory), &["receive", "--json"])
            .args(["--listen", "tcp://127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = Told(BufReader::new(child.stdout.take().unwrap()));
        self.running.push(Running(child));
        let listening = told.next("listening");
        (listening["endpoint"].as_str().unwrap().to_owned(), told)
    }

    fn stop(&self, directory: &str, name: &str) {
        let stopped = run(&self.directory(directory), &["stop", name]);
        assert_eq!(code(&stopped), 0, "{}", said(&stopped));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Guests that arrived are nobody's children: a test that fails must not leave them behind.
        self.running.clear();
        for directory in ["a", "b", "c"] {
            let path = self.directory(directory);
            let status = run(&path, &["status", "--json"]);
            let Ok(Value::Object(status)) = serde_json::from_slice(&status.stdout) else {
                continue;
            };
            for guest in status["guests"].as_array().into_iter().flatten() {
                let name = guest["name"].as_str().unwrap_or_default();
                run(&path, &["stop", name, "--force"]);
            }
        }
    }
}

/// What a destination tells.
struct Told(BufReader<std::process::ChildStdout>);

impl Told {
    fn next(&mut self, event: &str) -> Value {
        loop {
            let mut line = String::new();
            assert!(
                self.0.read_line(&mut line).unwrap() > 0,
                "no '{event}' was told"
            );
            let told: Value = serde_json::from_str(&line).unwrap();
            if told["event"] == event {
                return told;
            }
        }
    }
}

fn wait_until(mut so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < end, "it does not come to pass");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_guest_goes_there_and_comes_back() {
    let mut place = Place::new();
    place.guest("a", "vm1", "32MiB", "hot=4MiB,rate=10MiB/s");
    let (there, mut told) = place.destination("b", &["--memory-backing", "anon"]);
    let (back, _) = place.destination("a", &[]);

    let sent = run(
        &place.directory("a"),
        &["send", "vm1", "--to", &there, "--json"],
    );
    assert_eq!(code(&sent), 0, "{}", said(&sent));
    assert_eq!(json(&sent)["verification"]["equal"], true);
    told.next("arrived");
    wait_until(|| code(&run(&place.directory("a"), &["status", "vm1"])) == 3);

    let sent = run(
        &place.directory("b"),
        &["send", "vm1", "--to", &back, "--json"],
    );
    assert_eq!(code(&sent), 0, "{}", said(&sent));
    wait_until(|| code(&run(&place.directory("b"), &["status", "vm1"])) == 3);
    // The source may learn of the arrival a moment before the guest's new process tells of it.
    let status = || json(&run(&place.directory("a"), &["status", "vm1", "--json"]));
    wait_until(|| status()["state"] == "running");
    let status = status();
    assert_eq!(status["epoch"], 3);
    assert_eq!(
        status["backing"], "anon",
        "as at the source that it came from"
    );
    place.stop("a", "vm1");
}

#[test]
fn refusals_name_both_numbers_and_the_guest_stays() {
    let mut place = Place::new();
    place.guest("a", "vm1", "32MiB", "hot=0");
    place.guest("b", "vm1", "32MiB", "hot=0");
    let (small, _) = place.destination("c", &["--memory-limit", "16MiB"]);
    let (taken, _) = place.destination("b", &[]);
    for (endpoint, named) in [
        (
            &small,
            "leaves 16 MiB for guests here, the guest needs 32 MiB",
        ),
        (&taken, "a guest named 'vm1' is already here"),
    ] {
        let sent = run(
            &place.directory("a"),
            &["send", "vm1", "--to", endpoint, "--json"],
        );
        assert_eq!(code(&sent), 4, "{}", said(&sent));
        let reason = json(&sent)["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains(named), "{reason}");
    }
    let status = json(&run(&place.directory("a"), &["status", "vm1", "--json"]));
    assert_eq!(status["state"], "running");
}

#[test]
fn a_move_can_be_cancelled_and_the_guest_sent_again() {
    let mut place = Place::new();
    place.guest("a", "vm1", "32MiB", "hot=0,zero=0");
    let (there, _) = place.destination("b", &[]);
    let a = place.directory("a");
    let slow = dunlin(&a, &["send", "vm1", "--to", &there, "--quiet"])
        .args(["--max-bandwidth", "1MiB/s"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until(|| {
        json(&run(&a, &["status", "vm1", "--json"]))["move_under_way"]["progress"]["phase"]
            == "copying"
    });
    // Another order meanwhile is in the way.
    assert_eq!(
        code(&run(&a, &["send", "vm1", "--to", &there, "--quiet"])),
        14
    );
    assert_eq!(
        code(&run(&a, &["set", "vm1", "--max-bandwidth", "2MiB/s"])),
        0
    );
    assert_eq!(code(&run(&a, &["cancel", "vm1"])), 0);
    assert_eq!(slow.wait_with_output().unwrap().status.code(), Some(9));
    assert_eq!(code(&run(&a, &["cancel", "vm1"])), 14);
    // Nothing of it stays behind.
    let b = place.directory("b");
    wait_until(|| std::fs::read_dir(&b).unwrap().count() == 0);

    let sent = run(&a, &["send", "vm1", "--to", &there, "--quiet"]);
    assert_eq!(code(&sent), 0, "{}", said(&sent));
    wait_until(|| code(&run(&place.directory("b"), &["status", "vm1"])) == 0);
    place.stop("b", "vm1");
}

#[test]
fn a_sender_that_is_killed_does_not_end_the_move() {
    let mut place = Place::new();
    place.guest("a", "vm1", "32MiB", "hot=0,zero=0");
    let (there, mut told) = place.destination("b", &[]);
    let a = place.directory("a");
    let mut sender = dunlin(&a, &["send", "vm1", "--to", &there, "--quiet"])
        .args(["--max-bandwidth", "4MiB/s"])
        .spawn()
        .unwrap();
    wait_until(|| json(&run(&a, &["status", "vm1", "--json"]))["state"] == "moving");
    sender.kill().unwrap();
    sender.wait().unwrap();
    run(&a, &["set", "vm1", "--max-bandwidth", "none"]);
    told.next("arrived");
    place.stop("b", "vm1");
}

#[test]
fn a_supervisor_that_ends_leaves_arrived_guests_and_ends_moves() {
    let mut place = Place::new();
    place.guest("a", "here", "16MiB", "hot=0");
    place.guest("a", "coming", "32MiB", "hot=0,zero=0");
    let (there, mut told) = place.destination("b", &[]);
    let a = place.directory("a");
    let sent = run(&a, &["send", "here", "--to", &there, "--quiet"]);
    assert_eq!(code(&sent), 0, "{}", said(&sent));
    told.next("arrived");
    let slow = dunlin(&a, &["send", "coming", "--to", &there, "--quiet"])
        .args(["--max-bandwidth", "1MiB/s"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let a_status = || json(&run(&a, &["status", "coming", "--json"]));
    wait_until(|| a_status()["move_under_way"]["progress"]["phase"] == "copying");
    drop(place.running.pop());
    assert_eq!(slow.wait_with_output().unwrap().status.code(), Some(5));
    assert_eq!(a_status()["state"], "running");
    let arrived = json(&run(&place.directory("b"), &["status", "here", "--json"]));
    assert_eq!(arrived["state"], "running");
    place.stop("b", "here");
}

#[test]
fn strangers_do_not_harm_the_supervisor() {
    let mut place = Place::new();
    let (endpoint, mut told) = place.destination("b", &[]);
    let address = endpoint.strip_prefix("tcp://").unwrap();
    let mut hello = b"DUNLIN\r\n".to_vec();
    hello.extend([1, 0, 1, 0]);
    hello.resize(64, 0);
    let mut long = hello.clone();
    // A frame of HELLO's kind that claims 4 GiB.
    long.extend([0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    let mut junk = hello.clone();
    junk.extend([16, 0, 0, 0, 1, 0, 0, 0]);
    junk.extend([0xa5; 16]);
    for bytes in [
        b"GET / HTTP/1.0\r\n\r\n".to_vec(),
        vec![0xff; 500],
        long,
        junk,
        hello,
    ] {
        let mut stranger = TcpStream::connect(address).unwrap();
        // It may be let go before all is written.
        let _ = stranger.write_all(&bytes);
        let _ = stranger.shutdown(Shutdown::Write);
        told.next("turned-away");
    }
    place.guest("a", "vm1", "16MiB", "hot=0");
    let sent = run(
        &place.directory("a"),
        &["send", "vm1", "--to", &endpoint, "--quiet"],
    );
    assert_eq!(code(&sent), 0, "{}", said(&sent));
    place.stop("b", "vm1");
}

#[test]
fn once_ends_with_the_first_guest_which_goes_on() {
    let mut place = Place::new();
    place.guest("a", "vm1", "16MiB", "hot=0");
    let (there, _) = place.destination("b", &["--once"]);
    let sent = run(
        &place.directory("a"),
        &["send", "vm1", "--to", &there, "--quiet"],
    );
    assert_eq!(code(&sent), 0, "{}", said(&sent));
    let mut supervisor = place.running.pop().unwrap();
    assert_eq!(supervisor.0.wait().unwrap().code(), Some(0));
    place.stop("b", "vm1");
}

#[test]
fn a_supervisor_counts_the_guests_that_were_here_before_it() {
    let mut place = Place::new();
    place.guest("a", "one", "32MiB", "hot=0");
    place.guest("a", "two", "32MiB", "hot=0");
    let a = place.directory("a");
    let limit = ["--memory-limit", "48MiB"];
    let (first, mut told) = place.destination("b", &limit);
    let sent = run(&a, &["send", "one", "--to", &first, "--quiet"]);
    assert_eq!(code(&sent), 0, "{}", said(&sent));
    told.next("arrived");
    drop(place.running.pop());

    let (second, _) = place.destination("b", &limit);
    let sent = run(&a, &["send", "two", "--to", &second, "--json"]);
    assert_eq!(code(&sent), 4, "{}", said(&sent));
    let reason = json(&sent)["reason"].as_str().unwrap().to_owned();
    let both = "leaves 16 MiB for guests here, the guest needs 32 MiB";
    assert!(reason.contains(both), "{reason}");

    place.stop("b", "one");
    let sent = run(&a, &["send", "two", "--to", &second, "--quiet"]);
    assert_eq!(code(&sent), 0, "{}", said(&sent));
    place.stop("b", "two");
}

#[test]
fn a_guest_that_is_too_large_for_this_host_is_refused() {
    let place = Place::new();
    let output = dunlin(&place.directory("a"), &["run", "--guest", "process"])
        .args(["--name", "vm1", "--memory", "8000TiB"])
        .output()
        .unwrap();
    assert_eq!(code(&output), 12, "{}", said(&output));
    let said = said(&output);
    assert!(
        said.contains("guest 'vm1' can't start: this host has"),
        "{said}"
    );
    assert!(said.contains("the guest needs"), "{said}");
}

#[test]
fn names_are_taken_once_and_the_dead_leave_none() {
    let mut place = Place::new();
    place.guest("a", "vm1", "16MiB", "hot=0");
    let a = place.directory("a");
    let again = [
        "run", "--guest", "process", "--name", "vm1", "--memory", "16MiB",
    ];
    assert_eq!(code(&run(&a, &again)), 14);
    // Killed, so that its socket stays behind.
    drop(place.running.pop());
    assert_eq!(code(&run(&a, &["status", "vm1"])), 3);
    assert!(said(&run(&a, &["status"])).starts_with("no guests in"));
    place.guest("a", "vm1", "16MiB", "hot=0");
    place.stop("a", "vm1");
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    let place = Place::new();
    let a = place.directory("a");
    for (arguments, exit, kind) in [
        (&["status", "nobody", "--json"][..], 3, "no-guest"),
        (&["send", "--json"], 2, "usage"),
        (&["send", "x", "--to", "rdma://h", "--json"], 2, "usage"),
        (
            &["receive", "--json", "--listen", "tcp://192.0.2.1:1"],
            12,
            "local",
        ),
    ] {
        let output = run(&a, arguments);
        assert_eq!(code(&output), exit, "{}", said(&output));
        let error = &json(&output)["error"];
        assert_eq!(error["kind"], kind);
        assert_eq!(error["exit_code"], exit);
    }
}

#[test]
fn the_demo_moves_a_guest_and_leaves_nothing_behind() {
    let place = Place::new();
    let report = place.directory("report.json");
    let output = dunlin(place.root.path(), &["demo", "--guest", "process"])
        .args([
            "--memory",
            "32MiB",
            "--workload",
            "hot=4MiB,rate=10MiB/s",
            "--json",
        ])
        .arg(&report)
        .env("TMPDIR", place.root.path())
        .output()
        .unwrap();
    assert_eq!(code(&output), 0, "{}", said(&output));
    assert!(said(&output).contains("verified equal"));
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert_eq!(report["outcome"], "moved");
    let left: Vec<_> = std::fs::read_dir(place.root.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["report.json"]);
}

#[test]
fn a_guest_outlives_the_reader_of_its_output() {
    let mut place = Place::new();
    let a = place.directory("a");
    let mut child = dunlin(&a, &["run", "--guest", "process", "--name", "vm1"])
        .args(["--memory", "32MiB", "--workload", "hot=0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    place.running.push(Running(child));
    wait_until(|| code(&run(&a, &["status", "vm1"])) == 0);
    // Nobody listens at the discard port of a test machine's loopback.
    for _ in 0..2 {
        let sent = run(&a, &["send", "vm1", "--to", "tcp://127.0.0.1:9", "--quiet"]);
        assert_eq!(code(&sent), 5, "{}", said(&sent));
    }
    let status = json(&run(&a, &["status", "vm1", "--json"]));
    assert_eq!(status["state"], "running");
    place.stop("a", "vm1");
}

/// A full disk, a read-only one, none: found before the first page.
#[test]
fn a_move_that_can_not_be_recorded_does_not_begin() {
    let mut place = Place::new();
    place.guest("a", "vm1", "16MiB", "hot=0");
    let a = place.directory("a");
    let (there, _told) = place.destination_with_files_up_to("b", 0);
    let sent = run(&a, &["send", "vm1", "--to", &there, "--json"]);
    assert_eq!(code(&sent), 4, "{}", said(&sent));
    let reason = json(&sent)["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("can't be recorded here"), "{reason}");

    let (there, _told) = place.destination("c", &[]);
    std::fs::remove_dir_all(a.with_extension("state")).unwrap();
    let sent = run(&a, &["send", "vm1", "--to", &there, "--json"]);
    assert_eq!(code(&sent), 12, "{}", said(&sent));
    let reason = json(&sent)["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("No such file or directory"), "{reason}");
    let status = json(&run(&a, &["status", "vm1", "--json"]));
    assert_eq!(status["state"], "running");
    place.stop("a", "vm1");
}

#[test]
fn a_guest_arrives_where_its_log_can_not_be_written() {
    let mut place = Place::new();
    place.guest("a", "vm1", "32MiB", "hot=0");
    let (a, b) = (place.directory("a"), place.directory("b"));
    // Room for a record, none for one more line of the log.
    std::fs::create_dir(&b).unwrap();
    std::fs::write(b.join("vm1.log"), [b'x'; 4096]).unwrap();
    let (there, _told) = place.destination_with_files_up_to("b", 8);
    let sent = run(&a, &["send", "vm1", "--to", &there, "--json"]);
    assert_eq!(code(&sent), 0, "{}", said(&sent));
    let log = std::fs::metadata(b.join("vm1.log")).unwrap().len();
    assert_eq!(log, 4096, "the log could be written");
    let refused = run(&b, &["send", "vm1", "--to", "tcp://127.0.0.1:9", "--quiet"]);
    assert_eq!(code(&refused), 5, "{}", said(&refused));
    let status = json(&run(&b, &["status", "vm1", "--json"]));
    assert_eq!(status["state"], "running");
    place.stop("b", "vm1");
}

#[test]
fn a_report_that_can_not_be_written_does_not_change_what_a_move_came_to() {
    let mut place = Place::new();
    place.guest("a", "vm1", "32MiB", "hot=0");
    let (there, _) = place.destination("b", &[]);
    let (a, b) = (place.directory("a"), place.directory("b"));
    let missing = place.directory("missing").join("report.json");
    let path = missing.to_str().unwrap();

    let sent = run(&a, &["send", "vm1", "--to", &there, "--report", path]);
    assert_eq!(code(&sent), 2, "{}", said(&sent));
    assert!(said(&sent).contains(path), "{}", said(&sent));
    let status = json(&run(&a, &["status", "vm1", "--json"]));
    assert_eq!(status["last_move"], Value::Null, "nothing was tried");

    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full");
    let Ok(output) = full() else {
        println!("skipped: no /dev/full");
        return;
    };
    let sent = dunlin(&a, &["send", "vm1", "--to", &there])
        .args(["--report", "/dev/full"])
        .stdout(output)
        .output()
        .unwrap();
    assert_eq!(code(&sent), 0, "{}", said(&sent));
    assert!(said(&sent).contains("the report /dev/full"), "{sent:?}");
    assert!(said(&sent).contains("standard output"), "{sent:?}");
    place.stop("b", "vm1");
    assert_eq!(code(&run(&b, &["status", "vm1"])), 3);
}

#[test]
fn a_uuid_is_taken_once() {
    let mut place = Place::new();
    place.guest("a", "vm1", "16MiB", "hot=0");
    let a = place.directory("a");
    let status = json(&run(&a, &["status", "vm1", "--json"]));
    let uuid = status["uuid"].as_str().unwrap();
    let twin = run(
        &a,
        &["run", "--name", "vm2", "--memory", "16MiB", "--uuid", uuid],
    );
    assert_eq!(code(&twin), 14, "{}", said(&twin));
    assert!(said(&twin).contains("'vm1'"), "{}", said(&twin));
    assert_eq!(code(&run(&a, &["status", "vm2"])), 3, "its name is free");
    place.stop("a", "vm1");
}

#[test]
fn a_demo_that_is_killed_takes_its_guests_along() {
    let place = Place::new();
    let mut demo = dunlin(place.root.path(), &["demo", "--guest", "process"])
        .args(["--memory", "32MiB", "--workload", "hot=0"])
        .env("TMPDIR", place.root.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut story = BufReader::new(demo.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("begins") {
        line.clear();
        assert!(story.read_line(&mut line).unwrap() > 0, "no move began");
    }
    let stage = std::fs::read_dir(place.root.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.join("destination").exists())
        .unwrap();
    let state = |side: &str| {
        let status = run(&stage.join(side), &["status", "demo", "--json"]);
        json(&status)["state"].as_str().map(str::to_owned)
    };
    // It stands still whenever it is looked whether the guest has come, and so can't end it before.
    let process = Pid::from_child(&demo);
    loop {
        kill_process(process, Signal::STOP).unwrap();
        if state("destination").as_deref() == Some("running") {
            break;
        }
        assert!(
            stage.exists(),
            "the demo is over, and was not looked at in time"
        );
        kill_process(process, Signal::CONT).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    demo.kill().unwrap();
    demo.wait().unwrap();
    wait_until(|| state("source").is_none() && state("destination").is_none());
}
