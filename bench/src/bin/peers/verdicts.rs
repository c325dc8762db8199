//! What was to be reached, and whether it was: by medians of the same interleaved passes.

use dunlin_bench::target::{Limit, Target};

use crate::raw::Memory;
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
    /// Into memory that is had as guests have theirs.
    RawAsGuests,
    Dunlin,
    /// Into memory that is private.
    DunlinPrivate,
    Qemu,
}

impl Whose {
    /// What stands for a row where none was measured.
    fn name(self) -> &'static str {
        match self {
            Self::Raw | Self::RawAsGuests => "raw socket",
            Self::Dunlin | Self::DunlinPrivate => "dunlin",
            Self::Qemu => "qemu",
        }
    }
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
    // Like beside like: what fresh memory costs depends on its kind.
    for (touched, whose, over, least) in [
        (true, Whose::Dunlin, Whose::Raw, 0.97),
        (true, Whose::Dunlin, Whose::Qemu, 1.0),
        (false, Whose::Dunlin, Whose::RawAsGuests, 0.97),
        (false, Whose::DunlinPrivate, Whose::Raw, 0.97),
        (false, Whose::Dunlin, Whose::Qemu, 1.1),
    ] {
        let (own, other) = (best(whose, touched), best(over, touched));
        targets.push(Target::new(
            format!(
                "{link}: goodput of '{}' over '{}'",
                named(own, whose.name()),
                named(other, over.name())
            ),
            Limit::AtLeast(least),
            own.zip(other)
                .map(|(own, other)| goodput(own) / goodput(other)),
        ));
    }
    for touched in [true, false] {
        let (own, other) = (best(Whose::Dunlin, touched), best(Whose::Qemu, touched));
        let cpu = |row: Option<&RowResults>| Some(row?.cpu_s()?.iter().sum::<f64>());
        targets.push(Target::new(
            format!(
                "{link}: processor seconds for a GiB, both sides, '{}' over '{}'",
                named(own, Whose::Dunlin.name()),
                named(other, Whose::Qemu.name())
            ),
            Limit::AtMost(0.9),
            cpu(own).zip(cpu(other)).map(|(own, other)| own / other),
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
        What::Raw { memory, .. } => {
            let (of, touched) = match memory {
                Memory::Touched => (Whose::Raw, true),
                Memory::Fresh => (Whose::Raw, false),
                Memory::FreshOfGuests => (Whose::RawAsGuests, false),
            };
            whose == of && touched == wanted
        }
        What::Dunlin {
            way,
            hot_mebibytes: None,
        } => {
            let of = match way.private {
                true => Whose::DunlinPrivate,
                false => Whose::Dunlin,
            };
            whose == of && way.touched == wanted
        }
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
