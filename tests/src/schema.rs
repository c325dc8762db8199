//! What the program writes, against the schemas in docs/.
//!
//! The schemas let readers meet fields of later versions. Here nothing is later, so a field that no
//! schema has is a mistake.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    /// The report of a move.
    Report,
    /// The results of a bench.
    Bench,
}

impl Schema {
    fn text(self) -> &'static str {
        match self {
            Self::Report => include_str!("../../docs/report.schema.json"),
            Self::Bench => include_str!("../../docs/bench.schema.json"),
        }
    }

    /// Checks a document.
    ///
    /// # Errors
    ///
    /// When it is not what the schema says, or has fields beyond; each place is named.
    pub fn check(self, document: &Value) -> Result<()> {
        let schema: Value = serde_json::from_str(self.text())?;
        jsonschema::meta::validate(&schema).map_err(|error| anyhow::anyhow!("{error}"))?;
        let mut strict = schema;
        allow_nothing_else(&mut strict);
        let validator = jsonschema::validator_for(&strict)
            .ok()
            .context("the schema can't be used")?;
        let wrong: Vec<String> = validator
            .iter_errors(document)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        ensure!(wrong.is_empty(), "{self:?}: {}", wrong.join("; "));
        Ok(())
    }
}

/// Forbids, wherever there is an object, all fields that are not named.
fn allow_nothing_else(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("type").is_some_and(|kind| kind == "object") {
                fields.insert("additionalProperties".to_owned(), false.into());
            }
            fields.values_mut().for_each(allow_nothing_else);
        }
        Value::Array(values) => values.iter_mut().for_each(allow_nothing_else),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("{\"schema\": \"dunlin.report/2\"}", "/schema"),
            ("{\"schema\": \"dunlin.report/1\"}", "session"),
            ("{\"total_ns\": -1}", "/total_ns"),
            ("{\"more\": 1}", "more"),
            (
                "{\"telemetry\": {\"more\": 1}}",
                "/telemetry: Additional properties",
            ),
            (
                "{\"telemetry\": {\"source\": {\"gauges\": {\"more\": 1}}}}",
                "/telemetry/source/gauges",
            ),
        ] {
            let document = serde_json::from_str(text).unwrap();
            let error = Schema::Report.check(&document).unwrap_err().to_string();
            assert!(error.contains(named), "{named}: {error}");
        }
    }
}
