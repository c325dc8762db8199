//! What was to be reached, and whether it was: by medians of the same interleaved passes.

use dunlin_bench::target::{Limit, Target};

use crate::results::{Results, RowResults};
use crate::rows::{Link, What};

/// All targets.
pub(crate) fn all(results: &Results) -> Vec<Target> {
    let mut targets = Vec::new();
    for link in Link::ALL {
        if results.rows.iter().any(|results| results.row.link == link) {
            targets.extend(over(results, link));
        }
    }
    targets
}

/// Whose rows are meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Raw,
    Dunlin,
    Qemu,
}

fn over(results: &Results, link: Link) -> Vec<Target> {
    let rows = |whose, touched| {
        results.rows.iter().filter(move |results| {
            results.row.link == link && belongs(results.row.what, whose, touched)
        })
    };
    let best = |whose, touched| {
        rows(whose, touched)
            .filter(|row| row.goodput().is_some())
            .max_by(|one, other| goodput(one).total_cmp(&goodput(other)))
    };
    let named = |row: Option<&RowResults>, whose: &str| {
        row.map_or(whose.to_owned(), |row| row.row.name.clone())
    };
    let mut targets = Vec::new();
    for (touched, over_qemu) in [(true, 1.0), (false, 1.1)] {
        let (dunlin, raw, qemu) = (
            best(Whose::Dunlin, touched),
            best(Whose::Raw, touched),
            best(Whose::Qemu, touched),
        );
        let ratio = |other: Option<&RowResults>| Some(goodput(dunlin?) / goodput(other?));
        let what = |other: String| {
            format!(
                "{link}: goodput of '{}' over '{other}'",
                named(dunlin, "dunlin")
            )
        };
        targets.push(Target::new(
            what(named(raw, "raw socket")),
            Limit::AtLeast(0.97),
            ratio(raw),
        ));
        targets.push(Target::new(
            what(named(qemu, "qemu")),
            Limit::AtLeast(over_qemu),
            ratio(qemu),
        ));
        let cpu = |row: Option<&RowResults>| Some(row?.cpu_s()?.iter().sum::<f64>());
        targets.push(Target::new(
            format!(
                "{link}: processor seconds for a GiB, both sides, '{}' over '{}'",
                named(dunlin, "dunlin"),
                named(qemu, "qemu")
            ),
            Limit::AtMost(0.9),
            cpu(dunlin).zip(cpu(qemu)).map(|(own, other)| own / other),
        ));
    }
    let pause = |row: Option<&RowResults>| Some(row?.blackout_s()?.median);
    let shortest = [true, false]
        .into_iter()
        .flat_map(|touched| rows(Whose::Qemu, touched))
        .filter_map(|row| pause(Some(row)))
        .min_by(f64::total_cmp);
    let dunlin = best(Whose::Dunlin, true).or(best(Whose::Dunlin, false));
    targets.push(Target::new(
        format!(
            "{link}: pause of '{}' over QEMU's shortest median",
            named(dunlin, "dunlin")
        ),
        Limit::AtMost(0.02),
        pause(dunlin).zip(shortest).map(|(own, other)| own / other),
    ));
    targets
}

/// Rows with a hot set are no part of these.
fn belongs(what: What, whose: Whose, wanted: bool) -> bool {
    match what {
        What::Raw { touched, .. } => whose == Whose::Raw && touched == wanted,
        What::Dunlin {
            touched,
            hot_mebibytes: None,
            ..
        } => whose == Whose::Dunlin && touched == wanted,
        What::Qemu {
            touched,
            hot_mebibytes: None,
            ..
        } => whose == Whose::Qemu && touched == wanted,
        _ => false,
    }
}

fn goodput(row: &RowResults) -> f64 {
    row.goodput().map_or(0.0, |goodput| goodput.median)
}
