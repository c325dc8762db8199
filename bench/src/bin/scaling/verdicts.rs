//! What was to be reached, and whether it was: by medians of the same interleaved passes.

use dunlin_bench::target::{Limit, Target};

use crate::cases::{DENSE, SPARSE};
use crate::results::Results;

/// How much more a guest may take than one that is as large as what it uses.
const FACTOR_MAX: f64 = 1.3;

/// What the engine may take: so much, and more for each GiB of guest and for each lane.
const ENGINE_BYTES: f64 = 4_194_304.0;
const ENGINE_BYTES_PER_GIB: f64 = 262_144.0;
const ENGINE_BYTES_PER_LANE: f64 = 8_388_608.0;

const GIBIBYTE: f64 = 1_073_741_824.0;

/// All targets.
pub(crate) fn all(results: &[Results]) -> Vec<Target> {
    let of = |name: &str| results.iter().find(|results| results.case.name == name);
    let ratio =
        |figure: fn(&Results) -> Option<f64>| Some(figure(of(SPARSE)?)? / figure(of(DENSE)?)?);
    let limit = Limit::AtMost(FACTOR_MAX);
    let resident = |results: &Results, side: usize| {
        let both = results.resident_bytes()?;
        both.get(side).copied()
    };
    let held = |side| Some(resident(of(SPARSE)?, side)? / resident(of(DENSE)?, side)?);
    let engine = |name: &str, side| {
        let shares = results
            .iter()
            .filter_map(|results| engine_share(results, side));
        Target::new(
            format!(
                "the {name}'s engine memory over 4 MiB + 256 KiB a GiB + 8 MiB a lane, the worst case"
            ),
            Limit::AtMost(1.0),
            shares.max_by(f64::total_cmp),
        )
    };
    vec![
        Target::new(
            format!("time of '{SPARSE}' over '{DENSE}'"),
            limit,
            ratio(|results| Some(results.total_s()?.median)),
        ),
        Target::new(
            format!("the source's resident memory, '{SPARSE}' over '{DENSE}'"),
            limit,
            held(0),
        ),
        Target::new(
            format!("the destination's resident memory, '{SPARSE}' over '{DENSE}'"),
            limit,
            held(1),
        ),
        engine("source", 0),
        engine("destination", 1),
    ]
}

fn engine_share(results: &Results, side: usize) -> Option<f64> {
    let lanes = results.moves.first()?.moved.lanes as f64;
    let allowed = ENGINE_BYTES
        + ENGINE_BYTES_PER_GIB * results.case.memory_bytes as f64 / GIBIBYTE
        + ENGINE_BYTES_PER_LANE * lanes;
    Some(results.engine_bytes()?.get(side)? / allowed)
}
