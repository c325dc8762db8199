//! What is written is read back by the format's rules, and says what was measured.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::telemetry::completeness::GAPS;
use crate::telemetry::{Recording, example};

/// One line with a value.
#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// One metric family.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    help: String,
    samples: Vec<Sample>,
}

/// Reads an exposition; an error says which rule of the format a line breaks.
fn read(text: &str) -> Result<BTreeMap<String, Family>, String> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    if !text.ends_with('\n') {
        return Err("the last line has no end".into());
    }
    for line in text.lines() {
        let wrong = |what: &str| format!("{what}: {line}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').ok_or(wrong("no help"))?;
            if families.contains_key(name) {
                return Err(wrong("a family in two places"));
            }
            current = name.to_owned();
            let family = families.entry(current.clone()).or_default();
            family.help = help.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or(wrong("no type"))?;
            let family = families.get_mut(name).filter(|_| name == current);
            let family = family.ok_or(wrong("a type apart from its help"))?;
            if !["counter", "gauge", "histogram"].contains(&kind) || !family.samples.is_empty() {
                return Err(wrong("a type"));
            }
            family.kind = kind.to_owned();
        } else {
            let sample = read_sample(line).ok_or(wrong("no sample"))?;
            let family = families
                .get_mut(&current)
                .ok_or(wrong("before any family"))?;
            let names: &[&str] = match family.kind.as_str() {
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            if !names
                .iter()
                .any(|suffix| sample.name == format!("{current}{suffix}"))
            {
                return Err(wrong("not of its family"));
            }
            let same = |other: &Sample| other.name == sample.name && other.labels == sample.labels;
            if family.samples.iter().any(same) {
                return Err(wrong("a series twice"));
            }
            family.samples.push(sample);
        }
    }
    Ok(families)
}

fn read_sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let is_name = |name: &str| {
        let first = name.bytes().next();
        first.is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let Some((name, rest)) = series.split_once('{') else {
        let labels = BTreeMap::new();
        return is_name(series).then(|| Sample {
            name: series.to_owned(),
            labels,
            value,
        });
    };
    let mut rest = rest.strip_suffix('}')?;
    let mut labels = BTreeMap::new();
    while !rest.is_empty() {
        let (label, text) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut letters = text.char_indices();
        let end = loop {
            match letters.next()? {
                (end, '"') => break end,
                (_, '\\') => value.push(match letters.next()?.1 {
                    'n' => '\n',
                    escaped @ ('\\' | '"') => escaped,
                    _ => return None,
                }),
                (_, '\n') => return None,
                (_, letter) => value.push(letter),
            }
        };
        if !is_name(label) || labels.insert(label.to_owned(), value).is_some() {
            return None;
        }
        rest = &text[end + 1..];
        rest = match rest.strip_prefix(',') {
            Some(rest) if !rest.is_empty() => rest,
            None if rest.is_empty() => rest,
            _ => return None,
        };
    }
    is_name(name).then(|| Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

fn exposition(told: &MoveTelemetry, labels: &[(&str, &str)]) -> BTreeMap<String, Family> {
    let mut out = Vec::new();
    write(told, labels, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    read(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[test]
fn the_reader_finds_what_breaks_the_format() {
    for (text, what) in [
        ("# HELP a x\n# TYPE a gauge\na 1", "the last line"),
        ("# HELP a x\n# TYPE a gauge\na 1\na 1\n", "a series twice"),
        ("# HELP a x\n# TYPE a gauge\nb 1\n", "not of its family"),
        ("# HELP a x\n# TYPE a gauge\na{b=\"\"\"} 1\n", "no sample"),
        ("# HELP a x\n# TYPE a gauge\na{b=\"\\x\"} 1\n", "no sample"),
        ("# HELP a x\n# TYPE a gauge\na{b-c=\"\"} 1\n", "no sample"),
        ("# HELP a x\n# TYPE a sum\na 1\n", "a type"),
        (
            "# HELP a x\n# TYPE a gauge\n# HELP b x\n# TYPE b gauge\n# HELP a x\n",
            "in two places",
        ),
    ] {
        let error = read(text)
            .map(|_| String::new())
            .unwrap_or_else(|error| error);
        assert!(error.contains(what), "'{error}' for {text}");
    }
}

#[test]
fn everything_declared_is_told_in_its_family() {
    let families = exposition(&example::whole_move(), &[("guest", "vm1")]);
    for declared in crate::telemetry::declarations() {
        let family = &families[&declared.prometheus_name()];
        let kind = match declared.kind {
            Kind::Operation => "histogram",
            Kind::Counter => "counter",
            Kind::BlackoutPart | Kind::Phase | Kind::Gauge => "gauge",
        };
        assert_eq!(
            (family.kind.as_str(), &family.help),
            (kind, &declared.prometheus_help())
        );
        let labels = family.samples.iter().map(|sample| &sample.labels);
        let has = |label: &str, value: &str| {
            let mut labels = labels.clone();
            labels.any(|labels| labels.get(label).is_some_and(|found| found == value))
        };
        assert!(has("guest", "vm1"));
        match (declared.kind, declared.class) {
            (Kind::BlackoutPart, _) => assert!(has("part", declared.name)),
            (Kind::Phase, _) => assert!(has("phase", declared.name)),
            (_, Some(class)) => assert!(has("size", class.size)),
            _ => {}
        }
    }
}

#[test]
fn histograms_count_each_duration_once_and_up_to_its_bucket() {
    let families = exposition(&example::whole_move(), &[]);
    let mut checked = 0;
    for (name, family) in families
        .iter()
        .filter(|(_, family)| family.kind == "histogram")
    {
        let without_le = |sample: &Sample| {
            let labels = sample.labels.clone().into_iter();
            labels
                .filter(|(label, _)| label != "le")
                .collect::<Vec<_>>()
        };
        let of = |suffix: &str| {
            let name = format!("{name}{suffix}");
            family
                .samples
                .iter()
                .filter(move |sample| sample.name == name)
        };
        for count in of("_count") {
            let labels = without_le(count);
            let buckets = of("_bucket").filter(|sample| without_le(sample) == labels);
            let buckets: Vec<(f64, f64)> = buckets
                .map(|sample| (sample.labels["le"].parse().unwrap(), sample.value))
                .collect();
            assert!(buckets.is_sorted_by(|one, next| one.0 < next.0 && one.1 <= next.1));
            assert_eq!(buckets.last(), Some(&(f64::INFINITY, count.value)));
            for (le, passed) in buckets {
                let up_to = |duration_ns: &&u64| **duration_ns as f64 / 1e9 <= le;
                let expected = example::DURATIONS_NS.iter().filter(up_to).count();
                assert_eq!(passed, expected as f64, "{name} up to {le}");
            }
            let sum = of("_sum")
                .find(|sample| without_le(sample) == labels)
                .unwrap();
            let expected: u64 = example::DURATIONS_NS.iter().sum();
            assert_eq!(sum.value, expected as f64 / 1e9);
            checked += 1;
        }
    }
    assert!(checked > Operation::COUNT, "{checked} histograms");
}

#[test]
fn shares_of_a_counter_add_up_to_all_of_it() {
    let told = example::whole_move();
    let families = exposition(&told, &[]);
    for counter in Counter::ALL {
        let family = &families[&counter.declaration().prometheus_name()];
        for (end, measurements) in told.ends() {
            let of_end = family
                .samples
                .iter()
                .filter(|sample| sample.labels["side"] == end.name());
            let sum: f64 = of_end.map(|sample| sample.value).sum();
            let all = measurements.counters.get(counter).copied().unwrap_or(0);
            assert_eq!(sum, all as f64, "{counter:?}");
        }
    }
}

#[test]
fn labels_may_say_anything() {
    let name = "a\\b\"c\"\nd{e=\"f\"} ä";
    let nothing = MoveTelemetry::new(Recording::default(), None, None);
    let families = exposition(&nothing, &[("guest", name)]);
    assert_eq!(
        families[DROPPED_SPANS.prometheus_name].samples[0].labels["guest"],
        name
    );
    // Nothing was measured, and that nothing is missing is told all the same.
    let families: BTreeSet<_> = families.into_keys().collect();
    let gaps = GAPS.iter().map(|gap| gap.prometheus_name.to_owned());
    assert_eq!(families, gaps.collect());
}

#[test]
fn seconds_are_not_rounded() {
    for (nanoseconds, seconds) in [
        (0, "0"),
        (1, "0.000000001"),
        (255, "0.000000255"),
        (1_500_000_000, "1.5"),
        (u64::MAX, "18446744073.709551615"),
    ] {
        assert_eq!(Seconds(nanoseconds).to_string(), seconds);
    }
}
