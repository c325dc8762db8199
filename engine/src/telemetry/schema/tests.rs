//! What a move becomes in a report is what the schema says, and the schema would notice if not.

use serde_json::Value;

use super::*;
use crate::telemetry::{MoveTelemetry, Recording, example};

/// Where `value` is not what `schema` says. Knows the keywords that the fragment uses, and stops at
/// any other.
fn differences(value: &Value, schema: &Value, path: &str, found: &mut Vec<String>) {
    let rules = schema.as_object().unwrap();
    for (rule, wanted) in rules {
        let is_right = match rule.as_str() {
            "title"
            | "description"
            | "required"
            | "properties"
            | "additionalProperties"
            | "items" => true,
            "type" => match wanted.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "integer" => value.is_u64() || value.is_i64(),
                other => panic!("type '{other}' is not known to this test"),
            },
            "minimum" => value.as_u64() >= wanted.as_u64(),
            "const" => value == wanted,
            "enum" => wanted.as_array().unwrap().contains(value),
            "oneOf" => {
                let fits = |one: &&Value| {
                    let mut differing = Vec::new();
                    differences(value, one, path, &mut differing);
                    differing.is_empty()
                };
                wanted.as_array().unwrap().iter().filter(fits).count() == 1
            }
            // There is one, that of tracks.
            "pattern" => value
                .as_str()
                .unwrap()
                .parse::<crate::telemetry::Track>()
                .is_ok(),
            other => panic!("rule '{other}' is not known to this test"),
        };
        if !is_right {
            found.push(format!("{path}: {value} is not '{rule}': {wanted}"));
        }
    }
    if let (Some(items), Some(elements)) = (rules.get("items"), value.as_array()) {
        for (place, element) in elements.iter().enumerate() {
            differences(element, items, &format!("{path}[{place}]"), found);
        }
    }
    let Some(fields) = value.as_object() else {
        return;
    };
    for name in rules
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        if !fields.contains_key(name.as_str().unwrap()) {
            found.push(format!("{path}: no {name}"));
        }
    }
    for (name, field) in fields {
        match rules
            .get("properties")
            .and_then(|properties| properties.get(name))
        {
            Some(schema) => differences(field, schema, &format!("{path}.{name}"), found),
            None => found.push(format!("{path}: '{name}' is not in the schema")),
        }
    }
}

fn told(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    differences(value, &fragment(), "$", &mut found);
    found
}

#[test]
fn a_report_is_what_the_schema_says() {
    let whole = serde_json::to_value(example::whole_move()).unwrap();
    assert_eq!(told(&whole), Vec::<String>::new());
    let least = MoveTelemetry::new(Recording::default(), None, None);
    let least = serde_json::to_value(least).unwrap();
    assert_eq!(told(&least), Vec::<String>::new());
    assert!(least.get("destination").is_none() && least.get("clock").is_none());
}

#[test]
fn every_amount_and_name_that_is_declared_is_told() {
    let whole = serde_json::to_value(example::whole_move()).unwrap();
    let text = whole.to_string();
    for declaration in crate::telemetry::declarations() {
        let name = declaration.json_name();
        assert!(text.contains(&format!("\"{name}\"")), "'{name}' is nowhere");
    }
    assert_eq!(whole["source"]["counters"]["payload_bytes"], 1_000_001);
    assert_eq!(whole["source"]["gauges"]["clock_error_ns"], 25_000);
    assert_eq!(whole["source"]["operations"][0]["name"], "harvest");
    assert_eq!(whole["source"]["operations"][0]["max_ns"], 2_500_000);
}

#[test]
fn what_is_told_is_understood_again() {
    let whole = example::whole_move();
    let text = serde_json::to_string(&whole).unwrap();
    assert_eq!(serde_json::from_str::<MoveTelemetry>(&text).unwrap(), whole);
    let stranger = text.replace("\"harvest\"", "\"harvesting\"");
    let error = serde_json::from_str::<MoveTelemetry>(&stranger).unwrap_err();
    assert!(
        error.to_string().contains("'harvesting' is not declared"),
        "{error}"
    );
}

/// A name for what is spoilt, and the spoiling.
type Spoiling = (&'static str, fn(&mut Value));

#[test]
fn the_schema_notices_what_it_should() {
    let whole = serde_json::to_value(example::whole_move()).unwrap();
    let spoilt: [Spoiling; 5] = [
        ("a field more", |value| value["source"]["more"] = 1.into()),
        ("a field less", |value| {
            value["timeline"].as_object_mut().unwrap().remove("spans");
        }),
        ("another name", |value| {
            value["source"]["operations"][0]["name"] = "x".into()
        }),
        ("a negative time", |value| {
            value["timeline"]["spans"][0]["begin_ns"] = (-1).into()
        }),
        ("another track", |value| {
            value["timeline"]["spans"][0]["track"] = "lane".into()
        }),
    ];
    for (what, spoil) in spoilt {
        let mut value = whole.clone();
        spoil(&mut value);
        assert_eq!(told(&value).len(), 1, "{what}: {:?}", told(&value));
    }
}
