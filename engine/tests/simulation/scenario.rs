//! One schedule: sets the stage, lets the seed's faults befall it, and has it judged.

use std::sync::Arc;
use std::time::Duration;

use dunlin_engine::records::verdict::{Answer, Verdict, verdict};
use dunlin_engine::session::Decision;
use dunlin_engine::settings::MoveHandle;
use dunlin_transports::runtime::{self, simulation::World};

use super::faults::{Undo, Who, slow_device};
use super::hosts::Hosts;
use super::judgement::{Class, Judged, judge};
use super::ledger::{Ledger, Side};
use super::plan::{Plan, blackout_cap};
use super::stage::{Act, Stage};

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
        ledger.limit_pause(Some(blackout_cap(&plan.settings)));
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
    let (mut judged, ended) = played;
    judged.violations.extend(ended.panics);
    Judged {
        took: ended.took,
        steps: ended.steps,
        digest: ended.digest,
        trace: ended.trace,
        ..judged
    }
}

struct Scenario {
    hosts: Hosts,
}

impl Scenario {
    fn run(self) -> Judged {
        self.until_settled();
        runtime::sleep(AFTERWARDS);
        let (class, doubt) = judge(&self.hosts);
        let again = (class == Class::Stayed).then(|| self.once_more()).flatten();
        let stage = &self.hosts.stage;
        let violations = stage.ledger().violations();
        let faults = stage.all_injected();
        self.clear();
        Judged {
            class,
            doubt,
            again,
            violations,
            faults,
            ..Judged::default()
        }
    }

    /// A guest that stayed is unharmed, and so are both sides: with nothing wrong it can be moved.
    fn once_more(&self) -> Option<Class> {
        self.restart_supervisor();
        if !self.hosts.start_again() {
            return None;
        }
        self.until_settled();
        runtime::sleep(AFTERWARDS);
        let class = judge(&self.hosts).0;
        if class != Class::Moved {
            let words = format!("with nothing wrong, a guest that stayed then {class:?}");
            self.hosts.stage.ledger().violation(words);
        }
        Some(class)
    }

    /// Performs what is on the agenda, until both sides have nothing more to do.
    fn until_settled(&self) {
        let stage = &self.hosts.stage;
        let mut quiet_since = None;
        let mut last_act = stage.world().elapsed();
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

    fn restart_supervisor(&self) {
        if self.hosts.stage.lacks_supervisor() {
            self.hosts.start_supervisor();
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
            Undo::SlowDevice(side) => slow_device(stage, side, Duration::ZERO),
            Undo::SlowDisk(side) => {
                let slower = Duration::ZERO;
                stage.disk(side).change(|disk| disk.slower = slower);
            }
            Undo::FullDisk(side) => stage.disk(side).change(|disk| disk.is_full = false),
            Undo::FailingDisk(side) => stage.disk(side).change(|disk| disk.fails = false),
            Undo::Supervisor => self.restart_supervisor(),
            Undo::Host(side) => {
                stage.world().reboot(stage.host(side));
                stage
                    .wire()
                    .reset(|process| !stage.world().is_alive(process));
                stage.set_down(side, false);
                self.restart_supervisor();
            }
        }
    }

    /// Nothing is wrong any more, and the source still does not know who owns the guest. That is
    /// justified only where the destination's records can't tell; then a person decides, who has
    /// looked at the destination. Whether it came to that.
    fn decide(&self) -> bool {
        let stage = &self.hosts.stage;
        let ledger = stage.ledger();
        let evidence = stage.evidence();
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
        let resumes = !runs_there && stage.world().draw(2) == 0;
        stage.decide(if resumes {
            Decision::ResumeHere
        } else {
            Decision::DiscardHere
        });
        true
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
