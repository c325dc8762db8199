//! `dunlin demo`: a move between two processes of this machine, told as a story.

mod stage;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use dunlin_engine::report::Report;
use dunlin_vmm::machine::MachineKind;
use dunlin_vmm::size::{format_rate, format_size};
use dunlin_vmm::workload::{Pattern, Workload};

use self::stage::{GUEST, Stage};
use super::report_file::{Form, ReportFiles};
use super::run::kind;
use super::send::{Interrupts, Watched, traced_to, watch_move};
use crate::cli::guest::{Demo, TransportChoice};
use crate::exit::Exit;
use crate::fabric;
use crate::failure::Failure;
use crate::local::client::Connection;
use crate::local::protocol::{GuestState, GuestStatus, MoveOrder, nanoseconds};
use crate::local::runtime_dir::RuntimeDir;
use crate::metrics::watched::MoveSeen;
use crate::render::amounts::{bytes, counted};
use crate::render::palette::Palette;
use crate::render::progress::LiveLine;
use crate::render::receipt::receipt;

/// How long a doubt about the guest's owner may last: both ends are on this machine.
const DOUBT_WAIT: Duration = Duration::from_secs(10);

/// How long the guest runs before it is moved, so that there is something to tell of it.
const OVERTURE: Duration = Duration::from_millis(300);

/// How long the guest may take to show that it goes on.
const GOES_ON_MAX: Duration = Duration::from_secs(10);

/// How often it is looked whether something is so.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Moves a guest, and tells about it.
pub(crate) fn run(arguments: &Demo) -> Result<Exit, Failure> {
    let files = ReportFiles::open(&[
        (Form::Json, arguments.json.as_deref()),
        (Form::Html, arguments.html.as_deref()),
        (Form::Trace, arguments.trace.as_deref()),
    ])?;
    let interrupts = Interrupts::watch()?;
    let teller = Teller {
        quiet: arguments.quiet,
        palette: Palette::of(&io::stdout()),
    };
    let kind = kind(arguments.guest);
    let place = place(arguments.transport)?;
    teller.tell(&introduction(arguments, kind))?;

    let mut stage = Stage::build()?;
    let endpoint = stage.start_destination(arguments, place)?;
    teller.step("destination", &format!("waits at {endpoint}"))?;
    stage.start_source(arguments, kind, &interrupts)?;
    pause(OVERTURE, &interrupts)?;
    let before = status(&stage.source)?;
    teller.step(
        "source",
        &format!(
            "runs the guest '{GUEST}', process {}: {} written so far",
            before.pid,
            written(&before)
        ),
    )?;

    let mut order = MoveOrder::to(scheme(arguments.transport, &endpoint));
    order.max_blackout_ns = nanoseconds(arguments.max_blackout);
    order.lanes = arguments.lanes.0;
    order.rdma.pin_budget = Some(arguments.pin_budget);
    order.dirty_trace = traced_to(arguments.dirty_trace.as_deref())?;
    teller.step("move", "begins; the guest keeps running")?;
    let mut live = LiveLine::new(arguments.quiet);
    let watched = watch_move(
        &stage.source,
        GUEST,
        order,
        DOUBT_WAIT,
        &mut live,
        &MoveSeen::default(),
        &interrupts,
    )?;
    live.clear();
    drop(live);
    let report = match watched {
        Watched::Detached => return Err(interrupted()),
        watched => watched.into_report(GUEST)?,
    };
    let mut outcome = Exit::of(report.outcome);
    if report.outcome.moved() {
        teller.step("destination", &goes_on(&stage.destination, &interrupts)?)?;
        stage.see_source_end(&interrupts)?;
        teller.step("source", "its process has ended, and freed the memory")?;
        outcome = verdict(&report);
    }
    teller.tell(&format!("\n{}", receipt(&report, teller.palette)))?;
    let unwritten = files.write(&report);
    stage.clear()?;
    if let Some(failure) = unwritten.into_iter().next() {
        return Err(failure);
    }
    Ok(outcome)
}

/// Only a move whose memory was compared and found equal is a success here.
fn verdict(report: &Report) -> Exit {
    match report.verification.equal {
        Some(true) => Exit::of(report.outcome),
        _ => Exit::Unequal,
    }
}

fn introduction(arguments: &Demo, kind: MachineKind) -> String {
    let what = match kind {
        MachineKind::Kvm => "KVM guest",
        MachineKind::Process => "guest of threads (no KVM)",
    };
    format!(
        "A running {what}, {} of memory and {}, moves from one process to another.\n{}\n\n",
        bytes(arguments.memory),
        counted(u64::from(arguments.vcpus), "vCPU"),
        activity(&arguments.workload)
    )
}

fn activity(workload: &Workload) -> String {
    if workload.hot_bytes == 0 {
        return "It writes nothing.".to_owned();
    }
    let order = match workload.pattern {
        Pattern::Sequential => "in order",
        Pattern::Random => "at random",
        Pattern::Replay => "as a trace says",
    };
    let speed = workload.rate.map_or_else(
        || "as fast as it can".to_owned(),
        |rate| format!("at {}", format_rate(rate)),
    );
    format!(
        "It rewrites {} over and over, {order}, {speed}.",
        format_size(workload.hot_bytes)
    )
}

/// Where the destination listens: at an address of an RDMA device of this machine where lanes may
/// go over it, otherwise on the loopback interface. A device reaches itself.
fn place(transport: TransportChoice) -> Result<IpAddr, Failure> {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    if transport == TransportChoice::Tcp {
        return Ok(loopback);
    }
    let port = fabric::ports().map(|ports| ports.into_iter().next());
    let reason = match port {
        Ok(Some(port)) => return Ok(port.address),
        Ok(None) => "no device has a port that is up and an IP address".to_owned(),
        Err(reason) => reason,
    };
    match transport {
        // The move itself says why it goes over TCP.
        TransportChoice::Auto | TransportChoice::Tcp => Ok(loopback),
        TransportChoice::Rdma => Err(Failure::local(format!("no RDMA here: {reason}"))),
    }
}

fn scheme(transport: TransportChoice, endpoint: &str) -> String {
    match transport {
        TransportChoice::Tcp => endpoint.to_owned(),
        TransportChoice::Rdma => endpoint.replacen("tcp://", "rdma://", 1),
        TransportChoice::Auto => endpoint.replacen("tcp://", "auto://", 1),
    }
}

fn status(runtime: &RuntimeDir) -> Result<GuestStatus, Failure> {
    Connection::open(runtime, GUEST)?.status()
}

fn written(guest: &GuestStatus) -> String {
    let pages = guest.workload.map_or(0, |workload| workload.pages_written);
    counted(pages, "page")
}

/// Sees that the guest goes on at the destination: it runs, and its counters grow.
fn goes_on(destination: &RuntimeDir, interrupts: &Interrupts) -> Result<String, Failure> {
    let end = Instant::now() + GOES_ON_MAX;
    let mut first: Option<GuestStatus> = None;
    loop {
        let now = status(destination)?;
        let loops = |guest: &GuestStatus| guest.workload.map(|workload| workload.loops);
        if now.state == GuestState::Running {
            match &first {
                None => first = Some(now),
                Some(first) if loops(&now) > loops(first) => {
                    return Ok(format!(
                        "the guest goes on in process {}: {} written by now",
                        now.pid,
                        written(&now)
                    ));
                }
                Some(_) => {}
            }
        }
        if Instant::now() >= end {
            return Err(Failure::local(format!(
                "the guest was moved, but has not gone on within {} s",
                GOES_ON_MAX.as_secs()
            )));
        }
        pause(LOOK_INTERVAL, interrupts)?;
    }
}

/// Waits, unless the operator has had enough.
pub(super) fn pause(duration: Duration, interrupts: &Interrupts) -> Result<(), Failure> {
    let end = Instant::now() + duration;
    loop {
        if interrupts.count() > 0 {
            return Err(interrupted());
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(LOOK_INTERVAL));
    }
}

fn interrupted() -> Failure {
    Failure::new(
        Exit::Cancelled,
        "the demo was interrupted; all is cleaned up",
    )
}

/// Tells the story on standard output.
struct Teller {
    quiet: bool,
    palette: Palette,
}

impl Teller {
    fn tell(&self, text: &str) -> Result<(), Failure> {
        if self.quiet {
            return Ok(());
        }
        crate::commands::print(text)
    }

    fn step(&self, who: &str, what: &str) -> Result<(), Failure> {
        let who = self.palette.strong(&format!("{who:<12}"));
        self.tell(&format!("  {who} {what}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::example;

    #[test]
    fn a_move_that_was_not_verified_is_no_success() {
        let mut report = example::moved();
        assert_eq!(verdict(&report), Exit::Done);
        report.verification.equal = None;
        assert_eq!(verdict(&report), Exit::Unequal);
    }

    #[test]
    fn what_the_guest_does_in_words() {
        let workload = "pattern=random,hot=64MiB,rate=max".parse().unwrap();
        assert_eq!(
            activity(&workload),
            "It rewrites 64MiB over and over, at random, as fast as it can."
        );
    }
}
