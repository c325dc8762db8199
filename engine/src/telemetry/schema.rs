//! The JSON schema (draft 2020-12) of what [`MoveTelemetry`](super::MoveTelemetry) becomes in a
//! report: a fragment, for the report's own schema to refer to. Every name in it is a declared one.

use serde_json::{Map, Value, json};

use super::declaration::Declaration;
use super::spans::SpanName;
use super::{Counter, Gauge, Operation};

/// The fragment.
pub fn fragment() -> Value {
    json!({
        "title": "What a move measured",
        "type": "object",
        "properties": {
            "source": end("What the source measured."),
            "destination": end("What the destination measured; absent where it told nothing."),
            "clock": clock(),
            "timeline": timeline(),
        },
        "required": ["source", "timeline"],
        "additionalProperties": false,
    })
}

fn end(description: &str) -> Value {
    let buckets = json!({
        "type": "array",
        "description": "The buckets that are not empty, in order.",
        "items": object(&[
            ("below_ns", "The bucket's end: its durations are shorter than this."),
            ("count", "How many durations fell into it."),
        ]),
    });
    let lanes = json!({
        "type": "array",
        "description": "Each lane by itself, in lane order.",
        "items": {
            "type": "object",
            "properties": {
                "lane": whole("Which lane."),
                "operations": {"type": "array", "items": operation(None)},
                "counters": amounts(Counter::ALL.iter().map(|counter| counter.declaration())),
            },
            "required": ["lane", "operations", "counters"],
            "additionalProperties": false,
        },
    });
    json!({
        "type": "object",
        "description": description,
        "properties": {
            "operations": {
                "type": "array",
                "description": "Each operation that was done at all.",
                "items": operation(Some(buckets)),
            },
            "counters": amounts(Counter::ALL.iter().map(|counter| counter.declaration())),
            "gauges": amounts(Gauge::ALL.iter().map(|gauge| gauge.declaration())),
            "lanes": lanes,
            "misplaced": whole("How often something was recorded where it is not declared to be."),
        },
        "required": ["operations", "counters", "gauges", "lanes", "misplaced"],
        "additionalProperties": false,
    })
}

fn operation(buckets: Option<Value>) -> Value {
    let names = Operation::ALL.iter().map(|name| name.declaration());
    let mut operation = object(&[
        ("count", "How often it was done."),
        ("total_ns", "All times together."),
        ("mean_ns", "total_ns over count."),
        ("min_ns", "The shortest."),
        ("p50_ns", "Half of them took no longer."),
        ("p90_ns", "90 of 100 took no longer."),
        ("p99_ns", "99 of 100 took no longer."),
        ("p999_ns", "999 of 1,000 took no longer."),
        ("max_ns", "The longest."),
    ]);
    require(&mut operation, "name", one_of(names));
    if let Some(buckets) = buckets {
        require(&mut operation, "buckets", buckets);
    }
    operation
}

fn clock() -> Value {
    json!({
        "type": "object",
        "description": "How the two clocks stand to each other; absent where not measured.",
        "properties": {
            "offset_ns": {
                "type": "integer",
                "description": "The destination's clock minus the source's.",
            },
            "error_ns": whole("By how much offset_ns may be wrong, either way."),
            "is_same_clock": {
                "type": "boolean",
                "description": "Both ends ran in the same boot of one host.",
            },
        },
        "required": ["offset_ns", "error_ns", "is_same_clock"],
        "additionalProperties": false,
    })
}

fn timeline() -> Value {
    let names = SpanName::ALL.iter().map(|name| name.declaration());
    let mut span = object(&[
        ("begin_ns", "From when, counted from the origin."),
        ("end_ns", "Until when."),
    ]);
    require(&mut span, "name", one_of(names));
    require(
        &mut span,
        "side",
        json!({"enum": ["source", "destination", "link"]}),
    );
    let track = json!({
        "type": "string",
        "pattern": "^(control|link|(lane|vcpu|registrar) [0-9]+)$",
        "description": "Whose span it is.",
    });
    require(&mut span, "track", track);
    let mut timeline = object(&[
        (
            "origin_monotonic_ns",
            "From where times count, on the source's CLOCK_MONOTONIC.",
        ),
        ("dropped_spans", "How many spans there was no room for."),
        (
            "cut_spans",
            "How many spans were cut where the one around them ended.",
        ),
    ]);
    require(
        &mut timeline,
        "spans",
        json!({"type": "array", "items": span}),
    );
    timeline
}

/// Names of one of the tables, each with its meaning.
fn one_of(names: impl Iterator<Item = &'static Declaration>) -> Value {
    let named = |declaration: &Declaration| {
        let (name, meaning) = (declaration.json_name(), declaration.meaning);
        json!({"const": name, "description": meaning})
    };
    json!({"oneOf": names.map(named).collect::<Vec<_>>()})
}

/// Amounts by name; those that were never counted are absent.
fn amounts(names: impl Iterator<Item = &'static Declaration>) -> Value {
    let amount = |declaration: &Declaration| (declaration.json_name(), whole(declaration.meaning));
    json!({
        "type": "object",
        "properties": names.map(amount).collect::<Map<_, _>>(),
        "additionalProperties": false,
    })
}

/// An object of whole numbers, all of which it has.
fn object(fields: &[(&str, &str)]) -> Value {
    let mut object = json!({
        "type": "object",
        "properties": {},
        "required": [],
        "additionalProperties": false,
    });
    for (name, description) in fields {
        require(&mut object, name, whole(description));
    }
    object
}

fn require(object: &mut Value, name: &str, schema: Value) {
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert(name.to_owned(), schema);
    }
    if let Some(required) = object.get_mut("required").and_then(Value::as_array_mut) {
        required.push(json!(name));
    }
}

fn whole(description: &str) -> Value {
    json!({"type": "integer", "minimum": 0, "description": description})
}

#[cfg(test)]
mod tests;
