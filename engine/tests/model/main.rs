//! The handover, checked: the two session machines and the verdict that the engine runs, in a world
//! whose connections lose and delay words, and whose processes, hosts and disks fail at any step.
//!
//! Every order of steps is walked through, with any number of faults at any steps, within the bounds
//! of [`SMALL`]; with `DUNLIN_MODEL=large` within those of [`LARGE`]. What follows from it, and what
//! the model leaves out, is in `docs/handover.md`.
//!
//! | room | what is in it |
//! |---|---|
//! | here | the model, the run, the report |
//! | `world` | processes, records, connections |
//! | `source`, `destination` | a session's actions, performed as the engine performs them |
//! | `settling` | questions, and the supervisor's answers by `verdict` |
//! | `faults` | what fails from outside |
//! | `step`, `words` | all that may happen next, and how it is told |
//! | `properties` | what must hold, and what must be seen |
//! | `progress` | that it comes to an end when nothing fails any more |

mod destination;
mod faults;
mod progress;
mod properties;
mod settling;
mod source;
mod step;
mod words;
mod world;

use std::time::Instant;

use stateright::{Checker, Expectation, HasDiscoveries, Model, Path, Property};

use self::progress::{Known, continuation};
use self::step::Step;
use self::words::sketch;
use self::world::{Bounds, World};

/// What every `cargo test` can wait for.
const SMALL: Bounds = Bounds {
    rounds: 1,
    stale_asks: 1,
    is_fine: false,
};

/// Every action a step of its own, and more of what may repeat.
const LARGE: Bounds = Bounds {
    rounds: 3,
    stale_asks: 3,
    is_fine: true,
};

/// The handover of one guest.
#[derive(Debug)]
pub(crate) struct Handover {
    bounds: Bounds,
    known: Known,
}

impl World {
    /// All that may happen next, in a fixed order: what is under way first, asking last.
    pub(crate) fn steps(&self, steps: &mut Vec<Step>) {
        self.disk_steps(steps);
        self.source_steps(steps);
        self.destination_steps(steps);
        self.settling_steps(steps);
        self.asking_steps(steps);
        self.fault_steps(steps);
    }

    pub(crate) fn take(&mut self, step: Step) {
        match step {
            Step::Source(step) => self.source_does(step),
            Step::Destination(step) => self.destination_does(step),
            Step::Settling(step) => self.settling_does(step),
            Step::Disk(step) => self.disk_goes_on(step),
            Step::Fault(fault) => self.fails(fault),
        }
    }
}

impl Model for Handover {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.bounds)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        world.steps(steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        next.take(step);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::properties()
    }
}

/// A way to a state, in words.
fn tell(path: Path<World, Step>) -> String {
    let mut told = String::new();
    let mut last = None;
    for (number, (world, step)) in path.into_vec().into_iter().enumerate() {
        if let Some(step) = step {
            let (who, what) = step.words(&world);
            told.push_str(&format!("{:>4}  {who:<12} {what}\n", number + 1));
        }
        last = Some(world);
    }
    if let Some(world) = last {
        told.push_str(&format!("      there:       {}\n", sketch(&world)));
        let (steps, rest) = continuation(&world);
        if let Err(reason) = rest {
            let count = steps.len();
            told.push_str(&format!(
                "      and {count} steps on, if nothing fails: {reason}\n"
            ));
        }
    }
    told
}

impl Bounds {
    /// Those that the environment asks for.
    fn asked() -> Result<Self, String> {
        match std::env::var("DUNLIN_MODEL").as_deref() {
            Ok("large") => Ok(LARGE),
            Err(_) | Ok("" | "small") => Ok(SMALL),
            Ok(other) => Err(format!("DUNLIN_MODEL is 'small' or 'large', not '{other}'")),
        }
    }
}

/// Walks through all states, or until what ends the walk is found; tells what was seen; returns
/// what went wrong, by property.
fn check(bounds: Bounds, ends_with: HasDiscoveries) -> Vec<(&'static str, String)> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let began = Instant::now();
    let model = Handover {
        bounds,
        known: Known::new(),
    };
    let properties = model.properties();
    let checker = model
        .checker()
        .threads(threads)
        .finish_when(ends_with)
        .spawn_bfs()
        .join();
    println!(
        "handover model: any number of faults, {} rounds of pre-copy, {} questions at once, {}",
        1 + bounds.rounds,
        1 + bounds.stale_asks,
        match bounds.is_fine {
            true => "every action a step",
            false => "what only its process sees passed over",
        },
    );
    println!(
        "  {} unique states of {} generated, depth {}, {} properties, {:.1} s on {threads} threads",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        properties.len(),
        began.elapsed().as_secs_f64(),
    );
    let mut discoveries = checker.discoveries();
    // What goes wrong ends the walk: what was not seen by then says nothing.
    let is_whole = !properties.iter().any(|property| {
        property.expectation.discovery_is_failure() && discoveries.contains_key(property.name)
    });
    let mut wrong = Vec::new();
    for property in properties {
        let found = discoveries.remove(property.name);
        match (property.expectation, found) {
            (Expectation::Sometimes, None) if !is_whole => {}
            (Expectation::Sometimes, None) => {
                wrong.push((property.name, "this was never seen\n".to_owned()));
            }
            (Expectation::Sometimes, Some(_)) => println!("  seen    {}", property.name),
            (_, None) if is_whole => println!("  always  {}", property.name),
            (_, None) => {}
            (_, Some(way)) => wrong.push((property.name, tell(way))),
        }
    }
    wrong
}

#[cfg(not(feature = "planted-split-brain"))]
#[test]
fn there_is_one_owner_whatever_fails() {
    let bounds = Bounds::asked().unwrap();
    let wrong = check(bounds, HasDiscoveries::AnyFailures);
    let told: Vec<_> = wrong
        .iter()
        .map(|(property, way)| format!("not so: {property}\n{way}"))
        .collect();
    assert!(told.is_empty(), "\n{}", told.join("\n"));
}

/// A checker that finds nothing is seen to find something.
#[cfg(feature = "planted-split-brain")]
#[test]
fn the_planted_bug_is_found() {
    let bounds = Bounds::asked().unwrap();
    let two_owners = HasDiscoveries::AllOf([properties::TWO_OWNERS].into());
    let wrong = check(bounds, two_owners);
    let found = wrong
        .iter()
        .find(|(property, _)| *property == properties::TWO_OWNERS);
    let (property, way) = found.expect("the planted bug was not found");
    println!("the planted bug is found: it is not so that {property}\n{way}");
}
