//! The declarations by themselves: names and numbers are unique, follow the rules of those who read
//! them, and cover what reports tell already.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::*;
use crate::report::REMAINDER;

fn table<K: Copy>(
    all: &[K],
    declaration: fn(K) -> &'static Declaration,
) -> Vec<&'static Declaration> {
    all.iter().map(|name| declaration(*name)).collect()
}

fn tables() -> [Vec<&'static Declaration>; 4] {
    [
        table(SpanName::ALL, SpanName::declaration),
        table(Operation::ALL, Operation::declaration),
        table(Counter::ALL, Counter::declaration),
        table(Gauge::ALL, Gauge::declaration),
    ]
}

#[test]
fn numbers_and_names_are_unique_in_their_table() {
    for table in tables() {
        let numbers: BTreeSet<_> = table.iter().map(|declared| declared.number).collect();
        let names: BTreeSet<_> = table.iter().map(|declared| declared.name).collect();
        assert_eq!((numbers.len(), names.len()), (table.len(), table.len()));
    }
    let found = |number| Operation::from_number(number).map(Operation::name);
    assert_eq!((found(4), found(0)), (Some("zero-scan"), None));
}

#[test]
fn places_in_a_table_follow_its_order() {
    // Recorders keep arrays by place.
    assert!(
        Operation::ALL
            .iter()
            .enumerate()
            .all(|(place, name)| *name as usize == place)
    );
    assert!(
        Counter::ALL
            .iter()
            .enumerate()
            .all(|(place, name)| *name as usize == place)
    );
    assert!(
        Gauge::ALL
            .iter()
            .enumerate()
            .all(|(place, name)| *name as usize == place)
    );
}

#[test]
fn names_and_meanings_have_their_form() {
    for declared in declarations() {
        let name = declared.name;
        let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        assert!(name.bytes().all(letters), "'{name}'");
        assert!(
            declared.meaning.ends_with('.') && !declared.meaning.contains("  "),
            "'{name}'"
        );
        assert!(
            !declared.meaning.contains(['|', '\n']),
            "'{name}' would break its table"
        );
        assert!(!declared.tracks.is_empty(), "nobody measures '{name}'");
        let is_span = matches!(declared.kind, Kind::BlackoutPart | Kind::Phase);
        assert!(
            !is_span || declared.unit == Unit::Nanoseconds,
            "'{name}' has no duration"
        );
        let is_on_link = declared.sides == Sides::Link;
        assert_eq!(is_on_link, declared.tracks == [TrackKind::Link], "'{name}'");
    }
}

/// One family has one help text, one kind and one unit, and no two things share a series.
#[test]
fn families_for_prometheus_are_consistent() {
    let mut families: BTreeMap<String, &Declaration> = BTreeMap::new();
    let mut series = BTreeSet::new();
    for declared in declarations() {
        let family = declared.prometheus_name();
        let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        assert!(
            family.starts_with("dunlin_") && family.bytes().all(letters),
            "{family}"
        );
        let is_span = matches!(declared.kind, Kind::BlackoutPart | Kind::Phase);
        let label = declared
            .class
            .map(|class| class.size)
            .or(is_span.then_some(declared.name));
        assert!(series.insert((family.clone(), label)), "{family} twice");
        let first = families.entry(family.clone()).or_insert(declared);
        assert_eq!(
            (first.kind, first.unit, first.prometheus_help()),
            (declared.kind, declared.unit, declared.prometheus_help()),
            "{family}"
        );
    }
    // What a histogram adds to its name is nobody else's.
    for (family, declared) in &families {
        if declared.kind == Kind::Operation {
            for suffix in ["_bucket", "_sum", "_count"] {
                assert!(!families.contains_key(&format!("{family}{suffix}")));
            }
        }
    }
}

fn part(name: &str) -> Option<&'static Declaration> {
    let mut spans = SpanName::ALL.iter().map(|span| span.declaration());
    spans.find(|declared| declared.name == name && declared.kind == Kind::BlackoutPart)
}

/// The page that explains the report's parts, and the code that marks them, know no other parts.
#[test]
fn every_part_of_the_blackout_is_declared_with_its_side() {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(engine.join("../docs/report.md")).unwrap();
    let (_, parts) = page.split_once("## Parts of the pause").unwrap();
    let (parts, _) = parts.split_once("\n## ").unwrap();
    let mut explained = BTreeSet::new();
    for row in parts.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let side = match cells[2] {
            "source, destination" => "both",
            side => side,
        };
        for name in cells[1]
            .split(',')
            .map(|name| name.trim().trim_matches('`'))
            // What lies between parts is no span.
            .filter(|name| *name != REMAINDER)
        {
            let declared = part(name).unwrap_or_else(|| panic!("part '{name}' is not declared"));
            // Resuming on the source is a part too, when the guest stayed.
            let is_right = declared.sides.name() == side || name == "resume";
            assert!(is_right, "'{name}' is declared for {:?}", declared.sides);
            explained.insert(name.to_owned());
        }
    }
    let declared = SpanName::ALL.iter().map(|span| span.declaration());
    let declared = declared.filter(|declared| declared.kind == Kind::BlackoutPart);
    for declared in declared {
        let name = declared.name;
        // `fence` and a second `final-round` stand in one row with `collect-again`.
        let is_explained = explained.contains(name) || parts.contains(&format!("`{name}`"));
        assert!(is_explained, "docs/report.md does not explain '{name}'");
    }

    let mut marked = 0;
    for file in rust_files(&engine.join("src/source")) {
        let code = std::fs::read_to_string(&file).unwrap();
        // The room of the timeline itself has names of its own, in its tests.
        let code = code.split("#[cfg(test)]").next().unwrap_or_default();
        for call in [".mark(", ".mark_now(", ".mark_sent("] {
            for (place, _) in code.match_indices(call) {
                let behind = code[place + call.len()..].trim_start();
                if let Some(name) = behind
                    .strip_prefix('"')
                    .and_then(|rest| rest.split('"').next())
                {
                    assert!(part(name).is_some(), "'{name}' in {file:?} is not declared");
                    marked += 1;
                }
            }
        }
    }
    assert!(
        marked >= 15,
        "only {marked} marks were found: do they look different now?"
    );
}

fn rust_files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn a_summary_that_nothing_can_have_is_told_from_one_that_something_can() {
    let possible = measurements::Summary {
        count: 2,
        total_ns: 30,
        mean_ns: 15,
        min_ns: 10,
        p50_ns: 10,
        p90_ns: 20,
        p99_ns: 20,
        p999_ns: 20,
        max_ns: 20,
    };
    assert!(possible.is_possible());
    for impossible in [
        measurements::Summary {
            count: 0,
            ..possible
        },
        measurements::Summary {
            p50_ns: 21,
            ..possible
        },
        measurements::Summary {
            min_ns: 11,
            ..possible
        },
        measurements::Summary {
            total_ns: 41,
            mean_ns: 20,
            ..possible
        },
        measurements::Summary {
            total_ns: 19,
            mean_ns: 9,
            ..possible
        },
        measurements::Summary {
            mean_ns: 16,
            ..possible
        },
    ] {
        assert!(!impossible.is_possible(), "{impossible:?}");
    }
}
