//! Progress: from any state, if nothing fails any more, it comes to an end, and to a good one.
//!
//! From each state a fixed continuation is run: always the first step that no fault and no loss is.
//! Where it comes to rest, either the session is settled, both sides agree, and the guest is where
//! they say; or the source holds the guest in doubt, for a reason that nothing but a person can
//! take away. A continuation that reaches a state from which it was followed before stops there.

use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::{Mutex, PoisonError};

use dunlin_engine::records::Entry;
use dunlin_engine::records::verdict::{Answer, Verdict};
use dunlin_engine::session::source::State;

use crate::step::{SourceStep, Step};
use crate::world::{Life, World};

/// More steps than any way to an end has: the longest has some 50.
const STEPS_MAX: usize = 200;

/// Threads that check do not wait for each other here.
const SHARDS: usize = 64;

/// States whose continuation is known to end well.
#[derive(Debug)]
pub(crate) struct Known(Vec<Mutex<HashSet<u64>>>);

impl Known {
    pub(crate) fn new() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }

    fn shard(&self, key: u64) -> &Mutex<HashSet<u64>> {
        &self.0[key as usize % SHARDS]
    }

    fn has(&self, key: u64) -> bool {
        let shard = self.shard(key).lock();
        shard.unwrap_or_else(PoisonError::into_inner).contains(&key)
    }

    fn learn(&self, key: u64) {
        let shard = self.shard(key).lock();
        shard.unwrap_or_else(PoisonError::into_inner).insert(key);
    }
}

/// Whether the continuation from here ends well.
pub(crate) fn makes_progress(known: &Known, world: &World) -> bool {
    let mut world = world.clone();
    let mut keys = Vec::new();
    for _ in 0..STEPS_MAX {
        let key = BuildHasherDefault::<DefaultHasher>::default().hash_one(&world);
        let is_known = known.has(key);
        keys.push(key);
        let next = (!is_known).then(|| world.calm_step()).flatten();
        match next {
            Some(step) => world.take(step),
            None => {
                let is_well = is_known || world.rest().is_ok();
                if is_well {
                    keys.into_iter().for_each(|key| known.learn(key));
                }
                return is_well;
            }
        }
    }
    false
}

/// The continuation, told: its steps, and why it does not end well.
pub(crate) fn continuation(world: &World) -> (Vec<Step>, Result<(), String>) {
    let mut world = world.clone();
    let mut steps = Vec::new();
    while let Some(step) = world.calm_step() {
        world.take(step);
        steps.push(step);
        if steps.len() >= STEPS_MAX {
            return (steps, Err("it goes on for ever".to_owned()));
        }
    }
    let rest = world.rest();
    (steps, rest)
}

impl World {
    fn calm_step(&self) -> Option<Step> {
        let mut steps = Vec::new();
        self.steps(&mut steps);
        let first = steps.into_iter().find(|step| step.is_calm())?;
        // Asking again and again is no progress where nothing else moves and nothing is settled.
        let settles = !matches!(
            self.verdict(self.is_locked()),
            Verdict::Say(Answer::Undecided | Answer::MayHaveRun | Answer::NoRecord)
        );
        (first != Step::Source(SourceStep::Ask) || settles).then_some(first)
    }

    /// Whether a world in which nothing moves any more is as it should be.
    fn rest(&self) -> Result<(), String> {
        let destination = &self.destination;
        if destination.life == Life::InSession {
            return Err("the destination waits for ever".to_owned());
        }
        match self.source.life {
            Life::InSession if self.is_in_doubt() => self.rest_in_doubt(),
            Life::InSession | Life::None => Err("the source waits for ever".to_owned()),
            Life::Crashed => self.rest_of_record(),
            Life::Settled if self.is_resumed_by_hand() => Ok(()),
            Life::Settled => match (self.source.runs, destination.life.is_alive()) {
                (true, false) => Ok(()),
                (false, _) => Err("the guest stayed, and does not run".to_owned()),
                (true, true) => Err("the guest stayed, and the other side holds it".to_owned()),
            },
            Life::Exited if self.source.session.state() == State::Discarded => Ok(()),
            Life::Exited if destination.life == Life::Settled && !destination.runs => {
                Err("the guest moved, and does not run".to_owned())
            }
            Life::Exited if destination.has_entered => Ok(()),
            Life::Exited => Err("the source let go of a guest that never ran".to_owned()),
        }
    }

    /// A source that died behind the give-up leaves a record: whoever asks in its place must find
    /// one on the other side, as long as its own disk took what it had to record.
    fn rest_of_record(&self) -> Result<(), String> {
        let is_open = self.source.record.last() == Some(Entry::GivenUp);
        let is_excused = self.is_record_lost || self.is_fenced || self.source.is_end_unrecorded;
        let finds_none = self.destination.record.last().is_none();
        match is_open && finds_none && !is_excused {
            true => Err("a dead source's record is open, and nothing is known of it".to_owned()),
            false => Ok(()),
        }
    }

    /// In doubt for ever: only where no machine can know.
    fn rest_in_doubt(&self) -> Result<(), String> {
        if self.is_fenced {
            return Ok(());
        }
        let destination = &self.destination;
        let entry = destination.record.last();
        let reason = match self.verdict(self.is_locked()) {
            Verdict::Say(Answer::MayHaveRun) => {
                // A vCPU ran and does not; or the host lost what it had not synced; or a process
                // went away between recording the ownership and entering a vCPU (or recording that
                // it did not enter one), which looks the same afterwards.
                let is_honest = destination.may_have_entered
                    || !destination.record.is_same_boot
                    || entry == Some(Entry::Owned);
                if is_honest {
                    return Ok(());
                }
                "the answer is 'may have run', and it did not"
            }
            // It runs there, and its disk did not take that word: known once it ends there.
            Verdict::Say(Answer::Undecided) if destination.runs && entry == Some(Entry::Owned) => {
                return Ok(());
            }
            Verdict::Say(Answer::NoRecord) if self.is_record_lost => return Ok(()),
            Verdict::Say(Answer::Undecided) => "the answer is 'undecided' for ever",
            Verdict::Say(Answer::NoRecord) => "there is no record",
            _ => "the answer settles it, and nobody asks",
        };
        Err(format!("in doubt for ever: {reason}"))
    }
}
