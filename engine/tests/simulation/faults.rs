//! The vocabulary of faults: what can befall a schedule, and how it ends again.
//!
//! To add a fault: a variant of [`Fault`], its name, its arm in [`Fault::perform`]; if it ends, a
//! variant of [`Undo`]; and a line in the plan's room, which draws it.

use std::time::Duration;

use dunlin_engine::session::Decision;
use dunlin_transports::inmemory::{self, Place};
use dunlin_transports::lane::LaneNumber;

use super::ledger::Side;
use super::stage::{Act, Call, Moment, Stage};

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// The VMM that the guest leaves.
    Source,
    /// The VMM that it goes to.
    Destination,
    /// Whoever listens on the destination.
    Supervisor,
    /// The client that asked for the move.
    Send,
}

impl Who {
    /// Every process.
    pub(crate) const ALL: [Self; 4] = [
        Self::Source,
        Self::Destination,
        Self::Supervisor,
        Self::Send,
    ];

    /// Its name in traces.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Supervisor => "supervisor",
            Self::Send => "send",
        }
    }

    /// Where it runs.
    pub(crate) fn side(self) -> Side {
        match self {
            Self::Source | Self::Send => Side::Source,
            Self::Destination | Self::Supervisor => Side::Destination,
        }
    }

    fn holds_guest(self) -> bool {
        matches!(self, Self::Source | Self::Destination)
    }
}

/// Something that befalls a schedule.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Messages take longer at a place, for a while.
    Delay(Place, Duration, Duration),
    /// The connection breaks at a place: what was sent arrives, then both ends see it closed.
    Cut(Place),
    /// The connection breaks, and what was on its way is lost.
    CutLosing(Place),
    /// Nothing gets through at a place, for a while, and nobody is told.
    Silence(Place, Duration),
    /// A lane holds back what it carries, for a while.
    Stall(LaneNumber, Duration),
    /// A byte of a payload is flipped.
    Corrupt(Place, u64),
    /// A process is killed. A supervisor is started again after a while.
    Kill(Who, Duration),
    /// A process is stopped for a while.
    Stop(Who, Duration),
    /// A host dies with all that runs there, and is back after a while.
    CrashHost(Side, Duration),
    /// A disk takes so much longer for everything, for a while.
    SlowDisk(Side, Duration, Duration),
    /// A disk has no room for another record, for a while.
    FullDisk(Side, Duration),
    /// A disk fails every write, for a while.
    FailingDisk(Side, Duration),
    /// A host's clock is put forward.
    ClockForward(Side, Duration),
    /// A device refuses the registration that follows after so many others.
    RefuseRegistration(Side, u64),
    /// A device takes so long for each registration, for a while.
    SlowDevice(Side, Duration, Duration),
    /// A call to a guest fails, when it is made.
    Fail(Side, Call),
    /// The operator cancels the move.
    Cancel,
    /// A person does not wait for the destination's answer: switches its host off, and decides
    /// that the guest goes on on the source.
    FenceAndResume,
}

/// How a fault ends.
#[derive(Clone, Debug)]
pub(crate) enum Undo {
    /// Messages take as long as ever.
    Delay(Place),
    /// What was silenced is heard.
    Silence(Place),
    /// A stalled lane's messages arrive.
    Stall(LaneNumber),
    /// A stopped process goes on.
    Stop(Who),
    /// The supervisor is started again.
    Supervisor,
    /// A host is back.
    Host(Side),
    /// A device is as fast as ever.
    SlowDevice(Side),
    /// A disk is as fast as ever.
    SlowDisk(Side),
    /// A disk has room.
    FullDisk(Side),
    /// A disk works.
    FailingDisk(Side),
}

/// A fault and the moment it is planned for.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    /// When.
    pub(crate) moment: Moment,
    /// How often the moment is passed before it counts.
    pub(crate) skips: u32,
    /// How long behind the moment; `None`: at once, on the thread that passes it.
    pub(crate) later: Option<Duration>,
    /// What.
    pub(crate) fault: Fault,
}

impl Fault {
    /// Its name, for counting.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Delay(..) => "delay",
            Self::Cut(_) => "cut",
            Self::CutLosing(_) => "cut-losing",
            Self::Silence(..) => "silence",
            Self::Stall(..) => "stall",
            Self::Corrupt(..) => "corrupt",
            Self::Kill(Who::Source, _) => "kill-source",
            Self::Kill(Who::Destination, _) => "kill-destination",
            Self::Kill(Who::Supervisor, _) => "kill-supervisor",
            Self::Kill(Who::Send, _) => "kill-send",
            Self::Stop(Who::Source, _) => "stop-source",
            Self::Stop(Who::Destination, _) => "stop-destination",
            Self::Stop(Who::Supervisor, _) => "stop-supervisor",
            Self::Stop(Who::Send, _) => "stop-send",
            Self::CrashHost(Side::Source, _) => "crash-source-host",
            Self::CrashHost(Side::Destination, _) => "crash-destination-host",
            Self::SlowDisk(..) => "slow-disk",
            Self::FullDisk(..) => "full-disk",
            Self::FailingDisk(..) => "failing-disk",
            Self::ClockForward(..) => "clock-forward",
            Self::RefuseRegistration(..) => "refuse-registration",
            Self::SlowDevice(..) => "slow-device",
            Self::Fail(_, Call::Entered) => "guest-breaks",
            Self::Fail(..) => "guest-fails",
            Self::Cancel => "cancel",
            Self::FenceAndResume => "fence-and-resume",
        }
    }

    /// It happens now. A thread that kills its own process does not return from this.
    pub(crate) fn perform(&self, stage: &Stage) {
        let is_there = match self {
            Self::Kill(who, _) | Self::Stop(who, _) => stage.alive(*who).is_some(),
            Self::FenceAndResume => stage.is_in_doubt(),
            _ => true,
        };
        if !is_there {
            return;
        }
        stage.injected(self.name());
        stage.world().note(|| format!("FAULT: {self:?}"));
        let now = stage.world().elapsed();
        let ends = |lasts: Duration, undo| stage.schedule(now + lasts, Act::Undo(undo));
        match *self {
            Self::Delay(place, by, lasts) => {
                stage.wire().delay(place, by);
                ends(lasts, Undo::Delay(place));
            }
            Self::Cut(place) => {
                for faults in stage.wire().all() {
                    faults.cut_after(place, 0);
                }
            }
            Self::CutLosing(place) => {
                for faults in stage.wire().all() {
                    faults.cut_after(place, 0);
                    faults.lose_in_flight(place);
                }
            }
            Self::Silence(place, lasts) => {
                stage.wire().silence(place);
                ends(lasts, Undo::Silence(place));
            }
            Self::Stall(lane, lasts) => {
                for faults in stage.wire().all() {
                    faults.stall(lane);
                }
                ends(lasts, Undo::Stall(lane));
            }
            Self::Corrupt(place, offset) => {
                for faults in stage.wire().all() {
                    faults.corrupt(place, 0, offset);
                }
            }
            Self::Kill(who, restarts) => {
                if who == Who::Supervisor {
                    ends(restarts, Undo::Supervisor);
                }
                stage.kill(&[who], false);
            }
            Self::Stop(who, lasts) => {
                if who == Who::Source {
                    // It can't look at the clock.
                    stage.ledger().limit_pause(None);
                }
                ends(lasts, Undo::Stop(who));
                if let Some(process) = stage.alive(who) {
                    stage.world().stop(process);
                }
            }
            Self::CrashHost(side, boots) => {
                ends(boots, Undo::Host(side));
                stage.set_down(side, true);
                stage.disk(side).crash();
                let on_host = Who::ALL.into_iter().filter(|who| who.side() == side);
                stage.kill(&on_host.collect::<Vec<_>>(), true);
            }
            Self::SlowDisk(side, by, lasts) => {
                stage.disk(side).change(|disk| disk.slower = by);
                ends(lasts, Undo::SlowDisk(side));
            }
            Self::FullDisk(side, lasts) => {
                stage.disk(side).change(|disk| disk.is_full = true);
                ends(lasts, Undo::FullDisk(side));
            }
            Self::FailingDisk(side, lasts) => {
                stage.disk(side).change(|disk| disk.fails = true);
                ends(lasts, Undo::FailingDisk(side));
            }
            Self::ClockForward(side, by) => {
                stage.world().put_clock_forward(stage.host(side), by);
            }
            Self::RefuseRegistration(side, skipped) => {
                for faults in stage.wire().all() {
                    faults.refuse_registration(device(side), skipped);
                }
            }
            Self::SlowDevice(side, by, lasts) => {
                slow_device(stage, side, by);
                ends(lasts, Undo::SlowDevice(side));
            }
            Self::Fail(..) => {}
            Self::Cancel => stage.handle().cancel(),
            Self::FenceAndResume => {
                // In this order, since it may happen on a thread of those that are switched off.
                // Nobody runs in between.
                stage.decide(Decision::ResumeHere);
                stage.kill(&[Who::Destination, Who::Supervisor], true);
            }
        }
    }
}

fn device(side: Side) -> inmemory::Side {
    match side {
        Side::Source => inmemory::Side::Source,
        Side::Destination => inmemory::Side::Destination,
    }
}

/// Each registration takes so long from now on.
pub(crate) fn slow_device(stage: &Stage, side: Side, by: Duration) {
    for faults in stage.wire().all() {
        faults.delay_registrations(device(side), by);
    }
}

impl Stage {
    /// Ends processes, and does what a kernel does: nothing, where it died too.
    fn kill(&self, whom: &[Who], with_host: bool) {
        let mut processes = Vec::new();
        for who in whom {
            let Some(process) = self.alive(*who) else {
                continue;
            };
            if who.holds_guest() {
                self.ledger().process_died(who.side());
                self.done(who.side());
            }
            if with_host {
                self.wire().fall_silent(process);
            } else {
                self.wire().hang_up(process);
            }
            processes.push(process);
        }
        self.world().kill(&processes);
    }
}
