//! What was to be reached, and whether it was.

use dunlin_bench::target::{Limit, Target};

use crate::results::{Results, RowResults};
use crate::rows::{NIC_WINDOW, PIN_ALL, WRITES_1_MIB, WRITES_4_KIB};

/// The destination's processor time in programs that counts as nearly none: this part of one
/// processor while bytes flow.
const NEARLY_NONE_S_PER_GIB: f64 = 0.1;

/// All targets.
pub(crate) fn all(results: &Results) -> Vec<Target> {
    let goodput = |row: &RowResults| row.goodput().map_or(0.0, |goodput| goodput.median);
    let best = |is_scattered: bool| {
        let rows = results.rows.iter();
        rows.filter(|row| row.row.is_dunlin_rdma(is_scattered) && !row.runs.is_empty())
            .max_by(|one, other| goodput(one).total_cmp(&goodput(other)))
    };
    let (large, small) = (best(false), best(true));
    let over = |row: Option<&RowResults>, name: &str| {
        let other = results
            .row(name)
            .map(goodput)
            .filter(|other| *other > 0.0)?;
        Some(goodput(row?) / other)
    };
    let named =
        |row: Option<&RowResults>| row.map_or("dunlin rdma".to_owned(), |row| row.row.name.clone());
    let work = results.row(NIC_WINDOW).and_then(RowResults::work);
    vec![
        Target::new(
            format!("goodput of '{}' over '{WRITES_1_MIB}'", named(large)),
            Limit::AtLeast(0.95),
            over(large, WRITES_1_MIB),
        ),
        Target::new(
            format!("goodput of '{}' over '{PIN_ALL}'", named(large)),
            Limit::AtLeast(1.3),
            over(large, PIN_ALL),
        ),
        Target::new(
            format!("goodput of '{}' over '{WRITES_4_KIB}'", named(small)),
            Limit::AtLeast(0.8),
            over(small, WRITES_4_KIB),
        ),
        Target::new(
            format!("work requests for a MiB, '{NIC_WINDOW}'"),
            Limit::AtMost(1.05),
            work.map(|work| work[0]),
        ),
        Target::new(
            format!("completions for a MiB, '{NIC_WINDOW}'"),
            Limit::AtMost(0.1),
            work.map(|work| work[2]),
        ),
        Target::new(
            format!(
                "the destination's user seconds for a GiB while bytes flow, '{}'",
                named(large)
            ),
            Limit::AtMost(NEARLY_NONE_S_PER_GIB),
            large.and_then(RowResults::bulk).map(|(user_s, _)| user_s),
        ),
    ]
}
