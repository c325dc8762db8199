//! What a move becomes in a report is what the schema says, and the schema would notice if not.

use serde_json::Value;

use super::*;
use crate::telemetry::{MoveTelemetry, Recording, example};

/// Where `value` is not what `schema` says. Knows the keywords that the definitions use, and stops at
/// any other.
fn differences(value: &Value, schema: &Value, path: &str, found: &mut Vec<String>) {
    let rules = schema.as_object().unwrap();
    if let Some(name) = rules.get("$ref") {
        let name = name.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
        return differences(value, &definitions()[name], path, found);
    }
    for (rule, wanted) in rules {
        let is_right = match rule.as_str() {
            "title" | "description" | "required" | "properties" | "items" => true,
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
    differences(value, &definitions()["telemetry"], "$", &mut found);
    found
}

/// The schema in docs with the definitions as they are now, each a piece of its own in `$defs`. The
/// rest of the file stays as people wrote it.
fn written_into(kept: &str) -> String {
    let mut text = kept.to_owned();
    let all = text.find("\n  \"$defs\": {").unwrap();
    for (name, schema) in definitions() {
        let head = format!("\n    \"{name}\": {{");
        let piece = serde_json::to_string_pretty(&schema).unwrap();
        let piece = format!("\n    \"{name}\": {}", piece.replace('\n', "\n    "));
        match text[all..].find(&head) {
            Some(place) => {
                let begin = all + place;
                let length = text[begin..].find("\n    }").unwrap() + "\n    }".len();
                text.replace_range(begin..begin + length, &piece);
            }
            None => {
                let end = text.rfind("\n  }\n}").unwrap();
                text.insert_str(end, &format!(",{piece}"));
            }
        }
    }
    text
}

/// With `DUNLIN_WRITE_DOCS=1` in its environment the test writes them instead.
#[test]
fn the_reports_schema_has_the_definitions_of_the_declarations() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/report.schema.json");
    let kept = std::fs::read_to_string(path).unwrap();
    if std::env::var_os("DUNLIN_WRITE_DOCS").is_some() {
        std::fs::write(path, written_into(&kept)).unwrap();
    }
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for (name, schema) in definitions() {
        assert!(
            kept["$defs"][&name] == schema,
            "'{name}' in docs/report.schema.json is not what the declarations say\n\
             make it anew: DUNLIN_WRITE_DOCS=1 cargo test -p dunlin-engine --lib telemetry::schema"
        );
    }
    for (place, name) in [
        ("/properties/telemetry", "telemetry"),
        ("/$defs/part/properties/name", "part_name"),
    ] {
        assert_eq!(kept.pointer(place), Some(&defined(name)), "{place}");
    }
}

#[test]
fn parts_of_the_pause_have_their_names_and_no_others() {
    let names = &definitions()["part_name"];
    for (name, is_one) in [
        ("park", true),
        ("share-out", true),
        ("remainder", true),
        ("round", false),
        ("parking", false),
    ] {
        let mut found = Vec::new();
        differences(&name.into(), names, "$", &mut found);
        assert_eq!(found.is_empty(), is_one, "'{name}': {found:?}");
    }
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
