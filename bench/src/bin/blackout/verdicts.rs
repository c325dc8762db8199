//! What was to be reached, and whether it was.

use dunlin_bench::spread::{Spread, median};
use dunlin_bench::target::{Limit, Target};

use crate::Results;
use crate::cases::{HOT, IDLE, IDLE_LARGE};

/// How much longer than copying what is dirty a pause may be, besides the constant.
const FACTOR_MAX: f64 = 1.3;
/// The constant, in seconds.
const CONSTANT_S: f64 = 0.002;

/// All targets.
pub(crate) fn all(results: &[Results]) -> Vec<Target> {
    let of = |name: &str| results.iter().find(|results| results.case.name == name);
    let pauses = |name: &str| of(name).and_then(Results::pauses_s);
    let (idle, large) = (pauses(IDLE), pauses(IDLE_LARGE));
    let over_copying = of(HOT).and_then(|hot| {
        median(hot.moves.iter().map(|made| {
            let allowed = FACTOR_MAX * made.final_copying().as_secs_f64() + CONSTANT_S;
            made.blackout.as_secs_f64() / allowed
        }))
    });
    let errors = results.iter().flat_map(|results| &results.moves);
    let error = median(errors.map(|made| 100.0 * made.prediction_error()));
    vec![
        Target::new(
            format!("'{IDLE}': median pause in ms"),
            Limit::AtMost(2.0),
            idle.map(|idle| idle.median * 1e3),
        ),
        Target::new(
            format!("'{IDLE}': longest pause in ms"),
            Limit::AtMost(10.0),
            idle.map(|idle| idle.most * 1e3),
        ),
        Target::new(
            format!("median pause of '{IDLE_LARGE}' over '{IDLE}'"),
            Limit::AtMost(1.2),
            large
                .zip(idle)
                .map(|(large, idle)| large.median / idle.median),
        ),
        Target::new(
            format!(
                "'{HOT}': pause over {FACTOR_MAX} x (final dirty bytes / goodput) + {} ms, median",
                CONSTANT_S * 1e3
            ),
            Limit::AtMost(1.0),
            over_copying,
        ),
        Target::new(
            "by how much the prediction was off, in per cent, median of all moves",
            Limit::AtMost(25.0),
            error,
        ),
    ]
}

impl Results {
    /// The pauses, in seconds.
    pub(crate) fn pauses_s(&self) -> Option<Spread> {
        self.figure(|made| Some(made.blackout.as_secs_f64()))
    }

    /// Any figure of the moves.
    pub(crate) fn figure(
        &self,
        figure: impl Fn(&dunlin_bench::moved::Move) -> Option<f64>,
    ) -> Option<Spread> {
        Spread::of(self.moves.iter().filter_map(figure))
    }
}
