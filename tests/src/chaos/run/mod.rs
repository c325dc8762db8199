//! One run: a move, a fault, the end, the verdict.
//!
//! | room | what is in it |
//! |---|---|
//! | here | what is to be run, and the way to the fault and back |
//! | `verdict` | waiting for the end, and judging it |

mod verdict;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::arena::{Arena, Fabric, GuestKind, Stage, There};
use super::fault::{Deed, Fault, Phase, Side, Victim};
use super::rules::Ending;
use crate::wire::Numbers;

/// How many times as long the other side may be silent in all other moves: nobody has to wait for
/// it, and a busy machine does not reach it.
const PATIENCE: u32 = 10;

/// How long a destination bears silence, whatever the source was told. A frozen source outlasts it
/// where that decides about the guest: in the handover.
const DESTINATION_PATIENCE: Duration = Duration::from_secs(5);

/// How often a run is made again whose move ended before the fault's turn came, because the machine
/// kept a peer from speaking for so long.
const ATTEMPTS_MAX: u32 = 4;

/// How often everything is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(4);

/// How long a process may take to be known that has to be there.
const VICTIM_TIME_MAX: Duration = Duration::from_secs(2);

/// How long what may change by itself has to stay as it is, to count as the end. A source in doubt
/// has asked several times by then.
const REST: Duration = Duration::from_millis(700);

/// Random moments are within seven tenths of a peer timeout from the beginning of a move, which takes
/// about as long: 350 ms over TCP.
const RANDOM_MOMENT_TENTHS: u32 = 7;

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// What the move goes over.
    pub fabric: Fabric,
    /// The fault.
    pub fault: Fault,
    /// What runs the guest.
    pub guest: GuestKind,
    /// What random moments come from.
    pub seed: u64,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was run.
    pub order: Order,
    /// How the move ended.
    pub ending: Ending,
    /// What is wrong; empty for a run that passed.
    pub complaints: Vec<String>,
    /// From the fault to the moment at which the surviving side noticed.
    pub noticed_after: Option<Duration>,
    /// How long the run took.
    pub took: Duration,
    /// How often it was made again, since the machine was too busy.
    pub repeated: u32,
    /// What happened, step by step.
    pub story: Vec<String>,
    /// Where its files are kept, for a run that did not pass.
    pub kept_at: Option<PathBuf>,
}

impl Outcome {
    /// A run that could not be made.
    pub(super) fn not_made(order: Order, error: &anyhow::Error) -> Self {
        Self {
            order,
            ending: Ending::Unsettled,
            complaints: vec![format!("the run could not be made: {error:#}")],
            noticed_after: None,
            took: Duration::ZERO,
            repeated: 0,
            story: Vec::new(),
            kept_at: None,
        }
    }

    /// Whether nothing is wrong.
    pub fn has_passed(&self) -> bool {
        self.complaints.is_empty()
    }
}

/// Runs once. `number` tells runs apart that are under way at the same time.
///
/// # Errors
///
/// When the run could not be made, or `interrupted` became true: that says nothing of the program.
pub fn run(order: Order, number: usize, interrupted: &AtomicBool) -> Result<Outcome> {
    let began = Instant::now();
    let stage = Stage {
        fabric: order.fabric,
        kind: order.guest,
        phase: order.fault.phase,
        has_link: order.fault.deed.needs_link(),
    };
    for repeated in 0.. {
        let mut run = Run {
            arena: Arena::set_up(stage, &format!("x{number}"))?,
            order,
            numbers: Numbers::new(order.seed),
            interrupted,
            fault_at: None,
            noticed_at: None,
            loops_at_fault: None,
            complaints: Vec::new(),
        };
        let Some(ending) = run.perform()? else {
            let last = run.why_it_ended();
            if was_busy(&last) && repeated + 1 < ATTEMPTS_MAX {
                continue;
            }
            let phase = order.fault.phase.name();
            run.complain(format!("the phase '{phase}' did not come{last}"));
            return Ok(run.finish(Ending::Unsettled, began, repeated));
        };
        let ending = run.judge(ending);
        return Ok(run.finish(ending, began, repeated));
    }
    bail!("never made")
}

struct Run<'a> {
    arena: Arena,
    order: Order,
    numbers: Numbers,
    interrupted: &'a AtomicBool,
    fault_at: Option<Instant>,
    noticed_at: Option<Instant>,
    /// What the guest had counted at the source when it was first looked at behind the fault.
    loops_at_fault: Option<u64>,
    complaints: Vec<String>,
}

impl Run<'_> {
    /// All up to the end of the move; `None`: the moment of the fault did not come.
    fn perform(&mut self) -> Result<Option<Ending>> {
        let Fault { deed, phase } = self.order.fault;
        let needs_silence = deed.is_silence() || phase == Phase::InDoubt;
        self.arena.begin(match needs_silence {
            true => self.peer_timeout(),
            false => self.peer_timeout() * PATIENCE,
        })?;
        if !self.await_phase()? {
            return Ok(None);
        }
        self.do_it()?;
        self.let_go_on()?;
        self.undo_it()?;
        self.await_ending().map(Some)
    }

    fn peer_timeout(&self) -> Duration {
        self.order.fabric.peer_timeout()
    }

    fn finish(mut self, ending: Ending, began: Instant, repeated: u32) -> Outcome {
        let kept_at = (!self.complaints.is_empty()).then(|| {
            for what in self.arena.testimony() {
                self.arena.tell(&what);
            }
            let epilogue = format!("{}: {}", ending.name(), self.complaints.join("; "));
            self.arena.keep(&epilogue)
        });
        let noticed_after = self
            .noticed_at
            .zip(self.fault_at)
            .map(|(noticed, fault)| noticed.saturating_duration_since(fault));
        Outcome {
            order: self.order,
            ending,
            complaints: self.complaints,
            noticed_after,
            took: began.elapsed(),
            repeated,
            story: self.arena.story().to_vec(),
            kept_at,
        }
    }

    /// Why the move ended before the fault's turn came, as far as the source tells.
    fn why_it_ended(&mut self) -> String {
        let end = Instant::now() + VICTIM_TIME_MAX;
        loop {
            let here = self.arena.look_here();
            // A busy machine may keep it from answering at once.
            if here.has_moved_on() || Instant::now() >= end {
                return here.last_move();
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Waits for the moment of the fault. False: it does not come.
    fn await_phase(&mut self) -> Result<bool> {
        let phase = self.order.fault.phase;
        let Some(side) = phase.side() else {
            let most = self.peer_timeout() * RANDOM_MOMENT_TENTHS / 10;
            let most = most.as_micros() as usize;
            let wait = Duration::from_micros(self.numbers.below(most) as u64);
            self.pass(wait)?;
            return Ok(true);
        };
        let who = at_milestone(side);
        let end = Instant::now() + self.order.fabric.phase_time_max();
        let mut over_since = None;
        while !self.arena.is_stopped(who) {
            let now = Instant::now();
            if over_since.is_none() && self.arena.has_sent_ended() {
                over_since = Some(now);
            }
            // The last milestones are passed behind the end of 'send'.
            let is_over = over_since.is_some_and(|since| now.duration_since(since) > REST);
            if is_over || now >= end {
                return Ok(false);
            }
            // Finely: the other side runs on.
            self.pass(Duration::from_micros(500))?;
        }
        self.arena
            .tell(&format!("'{}' is at '{}'", who.name(), phase.name()));
        Ok(true)
    }

    fn do_it(&mut self) -> Result<()> {
        let Fault { deed, phase } = self.order.fault;
        if let (Some(victim), true) = (deed.victim(), phase != Phase::Random) {
            // The receiver may not have told yet whom it has started.
            let end = Instant::now() + VICTIM_TIME_MAX;
            while self.arena.pid(victim).is_none() && Instant::now() < end {
                self.pass(Duration::from_micros(500))?;
            }
        }
        self.fault_at = Some(Instant::now());
        let (victim, signal) = match deed {
            Deed::Nothing => return Ok(()),
            Deed::Cut | Deed::CutRestart => return self.arena.set_link(false),
            Deed::Kill(victim) => (victim, libc::SIGKILL),
            Deed::Blink(victim) | Deed::Freeze(victim) | Deed::FreezeKill(victim) => {
                (victim, libc::SIGSTOP)
            }
        };
        // At a random moment there may be none (yet): then it is not hit, and the move goes on.
        match self.arena.signal(victim, signal) {
            Err(_) if phase == Phase::Random => {
                self.arena
                    .tell(&format!("there is no '{}' yet", victim.name()));
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Lets those go on that stopped by themselves, unless they are to stand still.
    fn let_go_on(&mut self) -> Result<()> {
        let mut who: Vec<Victim> = self
            .order
            .fault
            .phase
            .side()
            .map(at_milestone)
            .into_iter()
            .collect();
        if self.order.fault.phase == Phase::InDoubt {
            who.push(Victim::Incoming);
        }
        let victim = self.order.fault.deed.victim();
        for who in who {
            if Some(who) != victim && self.arena.is_alive(who) {
                self.arena.signal(who, libc::SIGCONT)?;
            }
        }
        Ok(())
    }

    /// What follows upon the deed: everything that can be mended is.
    fn undo_it(&mut self) -> Result<()> {
        match self.order.fault.deed {
            Deed::Nothing | Deed::Kill(Victim::Send | Victim::Run | Victim::Incoming) => Ok(()),
            Deed::Kill(Victim::Receive) => {
                self.pass(self.peer_timeout() / 2)?;
                self.arena.restart_receiver()
            }
            Deed::Blink(victim) => {
                self.pass(self.peer_timeout() / 5)?;
                self.signal_if_there(victim, libc::SIGCONT)
            }
            Deed::Freeze(victim) => {
                let handover = Phase::Prepared..=Phase::Committed;
                let outlasts_destination =
                    victim == Victim::Run && handover.contains(&self.order.fault.phase);
                self.pass(match outlasts_destination {
                    true => DESTINATION_PATIENCE + self.peer_timeout() * 2,
                    false => self.peer_timeout() * 3,
                })?;
                self.signal_if_there(victim, libc::SIGCONT)
            }
            Deed::FreezeKill(victim) => {
                self.pass(self.peer_timeout() * 2)?;
                self.signal_if_there(victim, libc::SIGKILL)
            }
            Deed::Cut => {
                self.pass(self.peer_timeout() * 5 / 2)?;
                self.arena.set_link(true)
            }
            Deed::CutRestart => {
                self.pass(self.peer_timeout() / 2)?;
                self.arena.signal(Victim::Receive, libc::SIGKILL)?;
                self.pass(self.peer_timeout())?;
                self.arena.restart_receiver()?;
                self.pass(self.peer_timeout())?;
                self.arena.set_link(true)
            }
        }
    }

    fn signal_if_there(&mut self, victim: Victim, signal: i32) -> Result<()> {
        match self.arena.is_alive(victim) {
            true => self.arena.signal(victim, signal),
            false => Ok(()),
        }
    }

    fn complain(&mut self, what: String) {
        self.arena.tell(&what);
        self.complaints.push(what);
    }

    /// Lets time pass, and looks meanwhile whether the fault was noticed.
    fn pass(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            if self.interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            self.look_for_notice();
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(LOOK_INTERVAL));
        }
    }

    /// Whether the side that survives has noticed the fault; the destination has, when it has given
    /// the guest up, or has it.
    fn look_for_notice(&mut self) {
        let (Some(fault_at), None) = (self.fault_at, self.noticed_at) else {
            return;
        };
        self.noticed_at = match self.order.fault.deed {
            Deed::Kill(Victim::Run) => {
                let events = self.arena.events();
                let tells = |event: &str| event == "failed" || event == "arrived";
                let told = events.into_iter().find(|(at, event)| {
                    *at >= fault_at && event["event"].as_str().is_some_and(tells)
                });
                told.map(|(at, _)| at)
            }
            Deed::Kill(Victim::Incoming)
            | Deed::FreezeKill(Victim::Incoming)
            | Deed::Freeze(Victim::Incoming)
            | Deed::Cut
            | Deed::CutRestart => self.source_notices().then(Instant::now),
            _ => None,
        };
        if self.noticed_at.is_some() {
            self.arena.tell("the surviving side has noticed");
        }
    }
}

impl Run<'_> {
    /// Whether the source has noticed the fault: it no longer moves the guest, is in doubt, or runs
    /// the guest again that was paused.
    fn source_notices(&mut self) -> bool {
        let There::Says(guest) = self.arena.look_here() else {
            return false;
        };
        if guest["state"] == "unknown-owner" || guest["move_under_way"].is_null() {
            return true;
        }
        let is_paused = (Phase::Paused..=Phase::Committed).contains(&self.order.fault.phase);
        let loops = guest["workload"]["loops"].as_u64().unwrap_or_default();
        let before = *self.loops_at_fault.get_or_insert(loops);
        is_paused && loops > before
    }
}

/// Whether a move ended, by its own words, because a peer did nothing for too long: where no fault
/// was made yet, it was the machine that kept it from going on.
pub fn was_busy(why: &str) -> bool {
    ["silent", "nothing moved", "no range was opened or closed"]
        .iter()
        .any(|words| why.contains(words))
}

/// Whose process passes the milestones of a side.
fn at_milestone(side: Side) -> Victim {
    match side {
        Side::Source => Victim::Run,
        Side::Destination => Victim::Incoming,
    }
}
