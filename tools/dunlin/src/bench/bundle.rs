//! Results and what is known of this host in one file for an issue tracker, with nothing private in
//! it. Only fields that are known are taken; all text in them loses what is private.

use serde::Serialize;
use serde_json::Value;

use super::private::{Names, clean};
use super::results::Results;
use crate::commands::doctor::Fact;

/// The schema's name and version.
const SCHEMA: &str = "dunlin.bench-report/1";

/// The field whose value is a constant of this program's, whatever its words look like.
const SCHEMA_FIELD: &str = "schema";

/// The file.
#[derive(Serialize)]
struct Bundle<'a> {
    schema: &'static str,
    dunlin: &'static str,
    /// What `dunlin doctor` finds on this host, without advice.
    host: &'a [Fact],
    results: &'a [Results],
}

/// The bundle as JSON.
///
/// # Errors
///
/// When there is no JSON form.
pub(crate) fn bundle(
    host: &[Fact],
    results: &[Results],
    names: &Names,
) -> serde_json::Result<String> {
    let mut value = serde_json::to_value(Bundle {
        schema: SCHEMA,
        dunlin: env!("CARGO_PKG_VERSION"),
        host,
        results,
    })?;
    clean_all(&mut value, names);
    let mut text = serde_json::to_string_pretty(&value)?;
    text.push('\n');
    Ok(text)
}

fn clean_all(value: &mut Value, names: &Names) {
    match value {
        Value::String(text) => *text = clean(text, names),
        Value::Array(values) => values.iter_mut().for_each(|value| clean_all(value, names)),
        Value::Object(fields) => {
            let fields = fields.iter_mut();
            let fields = fields.filter(|(name, _)| *name != SCHEMA_FIELD);
            fields.for_each(|(_, value)| clean_all(value, names));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::example;

    #[test]
    fn planted_strings_do_not_get_through() {
        let planted = [
            "secrethost",
            "alice",
            "10.9.8.7",
            "/srv/customers/acme.img",
            "b9ae0371-e9fb-4730-8758-82915c1f9c7c",
            "de:ad:be:ef:00:01",
            "customer.example:7471",
            "customers/acme.img",
        ];
        let mut results = example::results(2);
        let all = planted.join(" ");
        results.cells[0].runs[0].reason = Some(all.clone());
        results.cells[0].left_out = Some(all.clone());
        results.cells[1].runs[0].mechanism = all.clone();
        results.references[0].what = all.clone();
        results.host.cpu = format!("A Processor of {all}");
        results.verdicts[0].words = all.clone();
        let host = [Fact {
            name: "rdma",
            state: "ok".to_owned(),
            found: format!("rxe0 port 1, RoCE: {all}"),
        }];
        let names = Names::new(["secrethost", "alice"]);
        let text = bundle(&host, &[results.clone()], &names).unwrap();
        for secret in planted {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        assert!(text.contains("rxe0 port 1, RoCE"));
        for kept in [SCHEMA, super::super::results::SCHEMA] {
            assert!(text.contains(kept), "{kept}: {text}");
        }
        // Fields that are not known are not taken at all.
        let mut value = serde_json::to_value(&results).unwrap();
        value["host"]["hostname"] = "a-secret-in-a-new-field".into();
        value["extra"] = "another-secret".into();
        let read = Results::parse(&value.to_string()).unwrap();
        let text = bundle(&[], &[read], &names).unwrap();
        assert!(!text.contains("secret"), "{text}");
    }
}
