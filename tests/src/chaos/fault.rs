//! Faults: what is done to whom, and when. Each fault has a name, as in `kill-run/committed`.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};

/// Which side of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The side that the guest leaves.
    Source,
    /// The side that it goes to.
    Destination,
}

/// A process of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Victim {
    /// `dunlin send`, which only watches.
    Send,
    /// `dunlin run`: the guest's VMM on the source.
    Run,
    /// `dunlin incoming`: the guest's VMM on the destination.
    Incoming,
    /// `dunlin receive`: the destination's supervisor. It is started again after a while.
    Receive,
}

impl Victim {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Send, Self::Run, Self::Incoming, Self::Receive];

    /// Its name: the command's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Run => "run",
            Self::Incoming => "incoming",
            Self::Receive => "receive",
        }
    }
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Deed {
    /// Nothing at all.
    Nothing,
    /// kill -9.
    Kill(Victim),
    /// Stopped, and let go on well within the time that a peer may be silent.
    Blink(Victim),
    /// Stopped, and let go on long behind it.
    Freeze(Victim),
    /// Stopped, and killed behind that time.
    FreezeKill(Victim),
    /// The link is cut, and mended behind that time.
    Cut,
    /// The link is cut, the supervisor is killed and started again, and the link is mended.
    CutRestart,
}

impl Deed {
    /// Its name.
    pub fn name(self) -> String {
        match self {
            Self::Nothing => "nothing".to_owned(),
            Self::Kill(victim) => format!("kill-{}", victim.name()),
            Self::Blink(victim) => format!("blink-{}", victim.name()),
            Self::Freeze(victim) => format!("freeze-{}", victim.name()),
            Self::FreezeKill(victim) => format!("freezekill-{}", victim.name()),
            Self::Cut => "cut".to_owned(),
            Self::CutRestart => "cutrestart".to_owned(),
        }
    }

    /// Whom it hits; `None`: the link, or nobody.
    pub fn victim(self) -> Option<Victim> {
        match self {
            Self::Kill(victim)
            | Self::Blink(victim)
            | Self::Freeze(victim)
            | Self::FreezeKill(victim) => Some(victim),
            Self::Nothing | Self::Cut | Self::CutRestart => None,
        }
    }

    /// Whom it kills for good.
    pub fn killed(self) -> Option<Victim> {
        match self {
            Self::Kill(victim) | Self::FreezeKill(victim) => Some(victim),
            _ => None,
        }
    }

    /// Whether somebody is silent for longer than a peer may be.
    pub fn is_silence(self) -> bool {
        matches!(
            self,
            Self::Freeze(Victim::Run | Victim::Incoming)
                | Self::FreezeKill(_)
                | Self::Cut
                | Self::CutRestart
        )
    }

    /// Whether it needs a link that can be cut.
    pub fn needs_link(self) -> bool {
        matches!(self, Self::Cut | Self::CutRestart)
    }

    /// Whether it is the plain kill -9, whose table has every cell.
    pub fn is_kill(self) -> bool {
        matches!(self, Self::Kill(_))
    }

    fn all() -> Vec<Self> {
        let mut all = vec![Self::Nothing, Self::Cut, Self::CutRestart];
        for kind in [Self::Kill, Self::Blink, Self::Freeze, Self::FreezeKill] {
            all.extend(Victim::ALL.map(kind));
        }
        all
    }
}

/// When it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// At a random moment of the move.
    Random,
    /// Source: about to say HELLO.
    Hello,
    /// Destination: about to say WELCOME.
    Welcomed,
    /// Source: WELCOME came.
    Welcome,
    /// Source: the lanes are open.
    Opened,
    /// Source: a round begins.
    Round,
    /// Source: about to pause the guest.
    Pausing,
    /// Source: the guest is paused.
    Paused,
    /// Source: device state is saved.
    Saved,
    /// Source: PREPARE was sent.
    Prepared,
    /// Destination: PREPARE came.
    Prepare,
    /// Destination: the state is loaded.
    Loaded,
    /// Destination: what is outside is acquired.
    Acquired,
    /// Destination: READY was sent.
    ReadySent,
    /// Source: READY came.
    Ready,
    /// Source: the give-up is recorded, COMMIT is not sent.
    GivenUp,
    /// Source: COMMIT was sent.
    Committed,
    /// Destination: COMMIT came, nothing is recorded.
    Commit,
    /// Destination: the ownership is recorded, no vCPU is entered.
    Owned,
    /// Destination: every vCPU was entered.
    Entered,
    /// Destination: RUNNING was sent.
    RunningSent,
    /// Source: RUNNING came.
    Running,
    /// Source: memory was compared.
    Verified,
    /// Source: RELEASED was sent.
    Released,
    /// Destination: RELEASED came, or the source is gone.
    Ended,
    /// Source: the connection was lost behind the give-up. (To get there, the destination stands
    /// still at `commit` for longer than a peer may be silent.)
    InDoubt,
}

impl Phase {
    /// All of them, in the order of a move.
    pub const ALL: [Self; 26] = [
        Self::Random,
        Self::Hello,
        Self::Welcomed,
        Self::Welcome,
        Self::Opened,
        Self::Round,
        Self::Pausing,
        Self::Paused,
        Self::Saved,
        Self::Prepared,
        Self::Prepare,
        Self::Loaded,
        Self::Acquired,
        Self::ReadySent,
        Self::Ready,
        Self::GivenUp,
        Self::Committed,
        Self::Commit,
        Self::Owned,
        Self::Entered,
        Self::RunningSent,
        Self::Running,
        Self::Verified,
        Self::Released,
        Self::Ended,
        Self::InDoubt,
    ];

    /// Its name: the milestone's, as the program knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Hello => "hello",
            Self::Welcomed => "welcomed",
            Self::Welcome => "welcome",
            Self::Opened => "opened",
            Self::Round => "round",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Saved => "saved",
            Self::Prepared => "prepared",
            Self::Prepare => "prepare",
            Self::Loaded => "loaded",
            Self::Acquired => "acquired",
            Self::ReadySent => "ready-sent",
            Self::Ready => "ready",
            Self::GivenUp => "given-up",
            Self::Committed => "committed",
            Self::Commit => "commit",
            Self::Owned => "owned",
            Self::Entered => "entered",
            Self::RunningSent => "running-sent",
            Self::Running => "running",
            Self::Verified => "verified",
            Self::Released => "released",
            Self::Ended => "ended",
            Self::InDoubt => "in-doubt",
        }
    }

    /// Whose milestone it is; `None` for a random moment.
    pub fn side(self) -> Option<Side> {
        match self {
            Self::Random => None,
            Self::Welcomed
            | Self::Prepare
            | Self::Loaded
            | Self::Acquired
            | Self::ReadySent
            | Self::Commit
            | Self::Owned
            | Self::Entered
            | Self::RunningSent
            | Self::Ended => Some(Side::Destination),
            _ => Some(Side::Source),
        }
    }
}

/// What is done to whom, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fault {
    /// What.
    pub deed: Deed,
    /// When.
    pub phase: Phase,
}

impl Fault {
    /// Whether there is such a thing: whom it hits has to be there by then.
    fn is_possible(self) -> bool {
        match (self.deed, self.phase) {
            (Deed::Nothing, phase) => phase == Phase::Random,
            // The one process that nothing depends on: killed everywhere, stopped at random.
            (Deed::Blink(Victim::Send) | Deed::Freeze(Victim::Send), phase) => {
                phase == Phase::Random
            }
            (Deed::Blink(Victim::Receive), phase) => phase == Phase::Random,
            // Where the guest is not paused, nobody waits for anybody.
            (Deed::Blink(_), phase) => {
                phase == Phase::Random || (Phase::Pausing..=Phase::RunningSent).contains(&phase)
            }
            // Once the move began, stopping it is stopping nobody, until it is asked.
            (Deed::Freeze(Victim::Receive), phase) => {
                matches!(phase, Phase::Random | Phase::Hello | Phase::InDoubt)
            }
            // The supervisor has no part in a move whose guest is not paused yet.
            (Deed::CutRestart, phase) => phase == Phase::Random || phase >= Phase::Pausing,
            // Killed or stopped and then killed: nobody can tell.
            (Deed::FreezeKill(Victim::Send | Victim::Receive), _) => false,
            // The source has not asked for it yet.
            (deed, Phase::Hello) => deed.victim() != Some(Victim::Incoming),
            _ => true,
        }
    }

    /// Every fault that there is.
    pub fn all() -> Vec<Self> {
        let deeds = Deed::all();
        let faults = deeds.into_iter().flat_map(|deed| {
            Phase::ALL
                .into_iter()
                .map(move |phase| Self { deed, phase })
        });
        faults.filter(|fault| fault.is_possible()).collect()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.deed.name(), self.phase.name())
    }
}

/// Which faults are wanted: `DEED`, `DEED/PHASE` or `/PHASE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    deed: Option<String>,
    phase: Option<String>,
}

impl Wanted {
    /// Whether a fault is among them.
    pub fn has(&self, fault: Fault) -> bool {
        let deed = fault.deed.name();
        self.deed.as_ref().is_none_or(|wanted| *wanted == deed)
            && self
                .phase
                .as_ref()
                .is_none_or(|wanted| wanted == fault.phase.name())
    }
}

impl FromStr for Wanted {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (deed, phase) = text.split_once('/').unwrap_or((text, ""));
        let some = |part: &str| (!part.is_empty() && part != "*").then(|| part.to_owned());
        let wanted = Self {
            deed: some(deed),
            phase: some(phase),
        };
        if !Fault::all().into_iter().any(|fault| wanted.has(fault)) {
            let deeds: Vec<String> = Deed::all().into_iter().map(Deed::name).collect();
            let phases: Vec<&str> = Phase::ALL.into_iter().map(Phase::name).collect();
            bail!(
                "there is no fault '{text}'; a fault is DEED, DEED/PHASE or /PHASE; deeds: {}; \
                 phases: {}",
                deeds.join(", "),
                phases.join(", ")
            );
        }
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_found_by_their_names() {
        let all = Fault::all();
        for fault in &all {
            let wanted: Wanted = fault.to_string().parse().unwrap();
            let found: Vec<_> = all.iter().filter(|other| wanted.has(**other)).collect();
            assert_eq!(found, vec![fault]);
        }
        let count = |text: &str| {
            let wanted: Wanted = text.parse().unwrap();
            all.iter().filter(|fault| wanted.has(**fault)).count()
        };
        assert_eq!(count("kill-run"), Phase::ALL.len());
        assert!(count("/committed") > 8);
        for text in ["", "*/*"] {
            assert_eq!(count(text), all.len());
        }
        for text in ["kill", "kill-run/nowhere", "cut/random/"] {
            assert!(text.parse::<Wanted>().is_err(), "{text}");
        }
    }

    /// 300 runs have room for each.
    #[test]
    fn there_are_not_too_many() {
        let all = Fault::all();
        println!("{} faults", all.len());
        assert!(all.len() <= 300, "{}", all.len());
        assert!(all.iter().filter(|fault| fault.deed.is_kill()).count() > 100);
    }
}
