//! The JSON schema (draft 2020-12) of what [`MoveTelemetry`](super::MoveTelemetry) becomes in a
//! report, and of the names that a report gives to parts of the pause: definitions in the report's
//! own schema, docs/report.schema.json. Every name in them is a declared one.

use serde_json::{Map, Value, json};

use super::completeness::{DROPPED_SPANS, MISPLACED};
use super::declaration::{Declaration, Kind};
use super::spans::SpanName;
use super::{Counter, Gauge, Operation};
use crate::report::REMAINDER;

/// The definitions, by their names in `$defs`.
pub fn definitions() -> Map<String, Value> {
    let counters = Counter::ALL.iter().map(|counter| counter.declaration());
    let gauges = Gauge::ALL.iter().map(|gauge| gauge.declaration());
    let operations = Operation::ALL.iter().map(|name| name.declaration());
    let spans = SpanName::ALL.iter().map(|name| name.declaration());
    let all = [
        ("part_name", part_name()),
        ("telemetry", telemetry()),
        ("measurements", measurements()),
        ("operation", operation(Some(buckets()))),
        ("lane_operation", operation(None)),
        ("operation_name", one_of(operations)),
        ("counters", amounts(counters)),
        ("gauges", amounts(gauges)),
        ("clock", clock()),
        ("timeline", timeline()),
        ("span_name", one_of(spans)),
    ];
    let named = all
        .into_iter()
        .map(|(name, schema)| (name.to_owned(), schema));
    named.collect()
}

/// The definition of that name.
fn defined(name: &str) -> Value {
    json!({"$ref": format!("#/$defs/{name}")})
}

/// What a part of the pause may be called: the declared ones, and what lies between them.
fn part_name() -> Value {
    let spans = SpanName::ALL.iter().map(|name| name.declaration());
    let parts = spans.filter(|declaration| declaration.kind == Kind::BlackoutPart);
    let names = parts.map(Declaration::json_name);
    json!({
        "enum": names.chain([REMAINDER.to_owned()]).collect::<Vec<_>>(),
        "description": "docs/report.md explains each",
    })
}

fn telemetry() -> Value {
    json!({
        "type": "object",
        "description": "What both ends measured: docs/metrics.md. The destination is absent where \
                        it told nothing, the clock where it was not measured.",
        "properties": {
            "source": defined("measurements"),
            "destination": defined("measurements"),
            "clock": defined("clock"),
            "timeline": defined("timeline"),
        },
        "required": ["source", "timeline"],
    })
}

fn measurements() -> Value {
    let lane = json!({
        "type": "object",
        "properties": {
            "lane": whole("Which lane."),
            "operations": {"type": "array", "items": defined("lane_operation")},
            "counters": defined("counters"),
        },
        "required": ["lane", "operations", "counters"],
    });
    json!({
        "type": "object",
        "description": "What one end measured.",
        "properties": {
            "operations": {
                "type": "array",
                "description": "Each operation that was done at all.",
                "items": defined("operation"),
            },
            "counters": defined("counters"),
            "gauges": defined("gauges"),
            "lanes": {
                "type": "array",
                "description": "Each lane by itself, in lane order.",
                "items": lane,
            },
            MISPLACED.json_name: whole(MISPLACED.meaning),
        },
        "required": ["operations", "counters", "gauges", "lanes", MISPLACED.json_name],
    })
}

fn buckets() -> Value {
    json!({
        "type": "array",
        "description": "The buckets that are not empty, in order.",
        "items": object(&[
            ("below_ns", "The bucket's end: its durations are shorter than this."),
            ("count", "How many durations fell into it."),
        ]),
    })
}

fn operation(buckets: Option<Value>) -> Value {
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
    require(&mut operation, "name", defined("operation_name"));
    if let Some(buckets) = buckets {
        require(&mut operation, "buckets", buckets);
    }
    operation
}

fn clock() -> Value {
    json!({
        "type": "object",
        "description": "How the two clocks stand to each other.",
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
    })
}

fn timeline() -> Value {
    let mut span = object(&[
        ("begin_ns", "From when, counted from the origin."),
        ("end_ns", "Until when."),
    ]);
    require(&mut span, "name", defined("span_name"));
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
        (DROPPED_SPANS.json_name, DROPPED_SPANS.meaning),
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
    })
}

/// An object of whole numbers, all of which it has.
fn object(fields: &[(&str, &str)]) -> Value {
    let mut object = json!({
        "type": "object",
        "properties": {},
        "required": [],
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
