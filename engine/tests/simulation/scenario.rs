//! One schedule: sets the stage, lets the seed's faults befall it, and judges what came of it.

use std::sync::Arc;
use std::time::Duration;

use dunlin_engine::records::verdict::{Answer, Verdict, verdict};
use dunlin_engine::report::Outcome;
use dunlin_engine::session::Decision;
use dunlin_engine::settings::MoveHandle;
use dunlin_transports::runtime::{self, simulation::World};

use super::faults::{Fault, Undo, Who};
use super::guest::EPOCH;
use super::hosts::{Hosts, Results, SESSION};
use super::ledger::{Ledger, Side};
use super::plan::Plan;
use super::stage::{Act, Call, Stage};

/// Once nothing more befalls it, a schedule is over within this: a session may last a minute up to
/// COMMIT and another one behind it, and a person is called within ten seconds.
const TIME_MAX: Duration = Duration::from_secs(150);

/// The same where a message was damaged: by PREPARE a source may ask for a pause of an hour.
const TIME_MAX_DAMAGED: Duration = Duration::from_secs(2 * 60 * 60);

/// How long a connection that is still on its way to a supervisor is waited for.
const STRAGGLING: Duration = Duration::from_secs(5);

/// Once nothing is wrong any more, a source in doubt has asked and was answered within this: it
/// asks every two seconds, and each attempt may take a peer's timeout, two seconds.
const SETTLING: Duration = Duration::from_secs(10);

/// How long the guest is watched once all is settled.
const AFTERWARDS: Duration = Duration::from_millis(500);

/// How often the scenario looks at what nobody tells it.
const LOOK: Duration = Duration::from_millis(100);

/// What came of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// The destination runs the guest.
    Moved,
    /// The source runs it.
    Stayed,
    /// A person decided that the source does not keep it.
    Discarded,
    /// It went with the process or the host that held it.
    Died,
}

impl Class {
    /// All of them, with their words in the closing line.
    pub(crate) const ALL: [(Self, &'static str); 4] = [
        (Self::Moved, "moved"),
        (Self::Stayed, "stayed"),
        (Self::Discarded, "discarded by hand"),
        (Self::Died, "died with their host"),
    ];
}

/// How a schedule in which the owner was not known for a while came to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Doubt {
    /// The destination's records told.
    Answered,
    /// They could not, and a person decided.
    Decided,
    /// The source's process died meanwhile.
    Died,
}

impl Doubt {
    /// All of them, with their words in the closing line.
    pub(crate) const ALL: [(Self, &'static str); 3] = [
        (Self::Answered, "settled by an answer"),
        (Self::Decided, "by a person"),
        (Self::Died, "died with the source"),
    ];
}

/// A schedule, judged.
pub(crate) struct Judged {
    /// What came of it.
    pub(crate) class: Class,
    /// Whether the owner was not known for a while, and what ended that.
    pub(crate) doubt: Option<Doubt>,
    /// What must not be, and was.
    pub(crate) violations: Vec<String>,
    /// The faults that befell it.
    pub(crate) faults: Vec<&'static str>,
    /// Virtual time that it took.
    pub(crate) took: Duration,
    /// How often the baton could change hands.
    pub(crate) steps: u64,
    /// The same for every run of the same seed.
    pub(crate) digest: u64,
    /// What happened, where it was asked for.
    pub(crate) trace: Vec<String>,
}

/// Plays a seed's schedule.
pub(crate) fn play(seed: u64, keeps_trace: bool) -> Judged {
    let played = World::run(seed, keeps_trace, |world| {
        let plan = Arc::new(Plan::draw(seed));
        world.note(|| format!("{:?}", plan.shape));
        world.note(|| format!("{:?}", plan.settings));
        for planned in &plan.planned {
            world.note(|| format!("planned: {planned:?}"));
        }
        let ledger = Ledger::new(world, plan.shape.page_span());
        ledger.limit_pause(Some(plan.blackout_cap()));
        let handle = Arc::new(MoveHandle::new(&plan.settings));
        let planned = plan.planned.clone();
        let stage = Stage::new(world, plan.wire(), &ledger, &handle, planned);
        let hosts = Hosts {
            stage,
            plan,
            results: Arc::default(),
            made: Arc::default(),
        };
        hosts.start_supervisor();
        hosts.start_source();
        let scenario = Scenario { hosts };
        scenario.run()
    });
    let ((class, doubt, mut violations, faults), ended) = played;
    violations.extend(ended.panics);
    Judged {
        class,
        doubt,
        violations,
        faults,
        took: ended.took,
        steps: ended.steps,
        digest: ended.digest,
        trace: ended.trace,
    }
}

struct Scenario {
    hosts: Hosts,
}

impl Scenario {
    fn run(self) -> (Class, Option<Doubt>, Vec<String>, Vec<&'static str>) {
        self.until_settled();
        runtime::sleep(AFTERWARDS);
        let class = self.judge();
        let doubt = self.doubt();
        let stage = &self.hosts.stage;
        let violations = stage.ledger().violations();
        let faults = stage.all_injected();
        self.clear();
        (class, doubt, violations, faults)
    }

    /// Performs what is on the agenda, until both sides have nothing more to do.
    fn until_settled(&self) {
        let stage = &self.hosts.stage;
        let mut quiet_since = None;
        let mut last_act = Duration::ZERO;
        let mut has_decided = false;
        loop {
            let now = stage.world().elapsed();
            let is_damaged = stage.all_injected().contains(&"corrupt");
            let time_max = if is_damaged {
                TIME_MAX_DAMAGED
            } else {
                TIME_MAX
            };
            if now - last_act > time_max {
                let done = stage.agenda().lock().is_done;
                let words = format!("not over within {time_max:?}: source, destination {done:?}");
                return stage.ledger().violation(words);
            }
            let mut agenda = stage.agenda().lock();
            let due = agenda.acts.iter().position(|(at, _)| *at <= now);
            if let Some(due) = due {
                let (_, act) = agenda.acts.remove(due);
                drop(agenda);
                self.perform(act);
                last_act = now;
                continue;
            }
            let [source, destination] = agenda.is_done;
            let is_begun = stage.alive(Who::Destination).is_some();
            if source && (destination || !is_begun) && agenda.acts.is_empty() {
                let since = *quiet_since.get_or_insert(now);
                if destination || now - since > STRAGGLING {
                    return;
                }
            } else {
                quiet_since = None;
            }
            let next = agenda.acts.iter().map(|(at, _)| *at - now).min();
            let wait = next.unwrap_or(LOOK).min(LOOK);
            let held = agenda.in_doubt_since.filter(|_| !source);
            let begin = held.map(|held| held.max(last_act));
            let is_long = begin.is_some_and(|begin| now - begin > SETTLING);
            if is_long && agenda.acts.is_empty() && !has_decided {
                drop(agenda);
                has_decided = self.decide();
                agenda = stage.agenda().lock();
            }
            drop(stage.agenda().wait_timeout(agenda, wait));
        }
    }

    fn perform(&self, act: Act) {
        let stage = &self.hosts.stage;
        let undo = match act {
            Act::Perform(fault) => return fault.perform(stage),
            Act::Undo(undo) => undo,
        };
        stage.world().note(|| format!("ends: {undo:?}"));
        match undo {
            Undo::Delay(place) => stage.wire().end_delay(place),
            Undo::Silence(place) => stage.wire().end_silence(place),
            Undo::Stall(lane) => {
                for faults in stage.wire().all() {
                    faults.release(lane);
                }
            }
            Undo::Stop(who) => {
                if let Some(process) = stage.alive(who) {
                    stage.world().go_on(process);
                }
            }
            Undo::SlowDisk(side) => {
                let slower = Duration::ZERO;
                stage.disk(side).change(|disk| disk.slower = slower);
            }
            Undo::FullDisk(side) => stage.disk(side).change(|disk| disk.is_full = false),
            Undo::FailingDisk(side) => stage.disk(side).change(|disk| disk.fails = false),
            Undo::Supervisor => self.hosts.start_supervisor(),
            Undo::Host(side) => {
                stage.world().reboot(stage.host(side));
                stage
                    .wire()
                    .reset(|process| !stage.world().is_alive(process));
                if side == Side::Destination {
                    self.hosts.start_supervisor();
                }
            }
        }
    }

    /// Nothing is wrong any more, and the source still does not know who owns the guest. That is
    /// justified only where the destination's records can't tell; then a person decides, who has
    /// looked at the destination. Whether it came to that.
    fn decide(&self) -> bool {
        let stage = &self.hosts.stage;
        let ledger = stage.ledger();
        let boot = stage.world().boot_id(stage.host(Side::Destination));
        let disk = stage.disk(Side::Destination);
        let evidence = disk.evidence(&boot, SESSION, EPOCH);
        match verdict(evidence) {
            // The destination's own limits end this.
            Verdict::Say(Answer::Undecided) => return false,
            Verdict::Say(Answer::MayHaveRun) => {}
            known => ledger.violation(format!(
                "the hold is not justified: {known:?}, {evidence:?}"
            )),
        }
        let runs_there = ledger.runs(Side::Destination);
        if runs_there {
            ledger.violation(format!(
                "the guest runs there, the records say {evidence:?}"
            ));
        }
        let source = self.hosts.results.lock().unwrap().source.clone();
        if !runs_there
            && stage.world().draw(2) == 0
            && let Some(source) = source
        {
            ledger.decide_for_source(&source.generations());
            stage.handle().decide(Decision::ResumeHere, "it is off");
        } else {
            stage.handle().decide(Decision::DiscardHere, "it is off");
        }
        true
    }

    // ---- what came of it ----

    fn doubt(&self) -> Option<Doubt> {
        self.hosts.stage.agenda().lock().in_doubt_since?;
        let results = self.hosts.results.lock().unwrap();
        let report = results.report.as_ref();
        let settled = report.and_then(|report| report.in_doubt.as_ref());
        Some(match settled.map(|settled| settled.settled_by.as_str()) {
            Some("person") => Doubt::Decided,
            Some(_) => Doubt::Answered,
            None => Doubt::Died,
        })
    }

    fn judge(&self) -> Class {
        let stage = &self.hosts.stage;
        let ledger = stage.ledger();
        let source_lives = stage.alive(Who::Source).is_some();
        let destination_lives = stage.alive(Who::Destination).is_some();
        let runs_here = ledger.runs(Side::Source);
        let runs_there = ledger.runs(Side::Destination);
        let results = self.hosts.results.lock().unwrap();
        let outcome = results.report.as_ref().map(|report| report.outcome);
        if source_lives {
            self.check_outcome(&results, outcome);
        }
        let arrived = results.arrived.as_ref();
        let arrived = arrived.map(|arrived| arrived.as_ref().err().map(ToString::to_string));
        drop(results);
        if destination_lives {
            if (arrived == Some(None)) != runs_there {
                ledger.violation(format!("the destination's word is wrong: {arrived:?}"));
            }
            let made = self.hosts.made.lock().unwrap().clone();
            if !runs_there && made.is_some_and(|machine| !machine.is_discarded()) {
                ledger.violation("the destination keeps the memory of a guest that did not come");
            }
        }
        for (side, runs) in [(Side::Source, runs_here), (Side::Destination, runs_there)] {
            if runs {
                self.check_memory(side);
            }
            let lives = match side {
                Side::Source => source_lives,
                Side::Destination => destination_lives,
            };
            if lives && ledger.holds(side) != runs {
                let side = side.name();
                ledger.violation(format!("what the {side} holds outside is not as it runs"));
            }
        }
        match (runs_here, runs_there) {
            (true, _) => Class::Stayed,
            (false, true) => Class::Moved,
            _ if outcome == Some(Outcome::DiscardedByHand) && source_lives => Class::Discarded,
            _ => {
                self.check_loss(source_lives);
                Class::Died
            }
        }
    }

    /// What the source tells is so.
    fn check_outcome(&self, results: &Results, outcome: Option<Outcome>) {
        let stage = &self.hosts.stage;
        let ledger = stage.ledger();
        let runs_here = ledger.runs(Side::Source);
        let is_right = match outcome {
            Some(Outcome::Moved | Outcome::MovedUnverified) => {
                !runs_here && ledger.was_entered(Side::Destination)
            }
            Some(Outcome::DiscardedByHand) => !runs_here,
            Some(Outcome::Unknown | Outcome::NotResumed) => false,
            _ => runs_here,
        };
        let is_by_settings = matches!(
            outcome,
            Some(
                Outcome::Moved | Outcome::NotConverging | Outcome::BlackoutCap | Outcome::TimedOut
            )
        );
        if stage.all_injected().is_empty() && !is_by_settings {
            let reason = results.report.as_ref().map(|report| &report.reason);
            ledger.violation(format!("{outcome:?} without a fault: {reason:?}"));
        }
        if !is_right {
            let reason = results
                .report
                .as_ref()
                .and_then(|report| report.reason.clone());
            ledger.violation(format!(
                "the source's word is wrong: {outcome:?}, {reason:?}"
            ));
        }
    }

    fn check_memory(&self, side: Side) {
        let machine = match side {
            Side::Source => {
                let results = self.hosts.results.lock().unwrap();
                let kept = results.kept.as_ref();
                kept.map(|guest| guest.machine().clone())
            }
            Side::Destination => self.hosts.made.lock().unwrap().clone(),
        };
        let wrong = machine.map(|machine| machine.wrong_pages());
        if wrong.as_ref().is_none_or(|wrong| !wrong.is_empty()) {
            let words = format!("pages {wrong:?} are wrong on the {}", side.name());
            self.hosts.stage.ledger().violation(words);
        }
    }

    /// A guest is gone only with the process that held it.
    fn check_loss(&self, source_lives: bool) {
        let stage = &self.hosts.stage;
        let was_there = stage.ledger().was_entered(Side::Destination);
        // A guest of which one vCPU could not be entered died there too.
        let broken = Fault::Fail(Side::Destination, Call::Entered).name();
        let broke = stage.all_injected().contains(&broken);
        let destination_died = stage.was_killed(Who::Destination) || broke;
        let holder_died = if was_there {
            destination_died
        } else {
            !source_lives
        };
        if !holder_died {
            let words = "the guest runs nowhere, and whoever held it lives";
            stage.ledger().violation(words);
        }
    }

    /// Ends the threads that are left.
    fn clear(self) {
        let results = std::mem::take(&mut *self.hosts.results.lock().unwrap());
        drop(results);
        let made = self.hosts.made.lock().unwrap().take();
        if let Some(machine) = made {
            machine.end();
        }
        runtime::sleep(LOOK);
    }
}
