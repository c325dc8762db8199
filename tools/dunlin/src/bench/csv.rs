//! All runs as CSV (RFC 4180), a line each, for spreadsheets and plotting programs.

use super::results::{CellResult, ReferenceResult, Results};

/// The columns. A field that does not apply is empty.
const HEADS: [&str; 25] = [
    "kind",
    "name",
    "transport",
    "lanes",
    "memory_bytes",
    "dirty_bytes_per_s",
    "pattern",
    "hot_bytes",
    "guest",
    "vcpus",
    "pass",
    "began_ns",
    "outcome",
    "goodput_bytes_per_s",
    "sent_bytes",
    "wire_bytes",
    "total_ns",
    "blackout_ns",
    "predicted_ns",
    "guest_visible_ns",
    "source_cpu_ns",
    "destination_cpu_ns",
    "latency_ns",
    "is_equal",
    "reason",
];

/// Everything that was measured; cells and references that were not run have a line that says why.
pub(crate) fn all(results: &Results) -> String {
    let mut text = line(HEADS.map(str::to_owned));
    for cell in &results.cells {
        text.push_str(&cell_lines(cell));
    }
    for reference in &results.references {
        text.push_str(&reference_lines(reference));
    }
    text
}

fn cell_lines(result: &CellResult) -> String {
    let cell = &result.cell;
    let begin = |pass: String| {
        [
            "move".to_owned(),
            cell.words(),
            cell.transport.clone(),
            cell.lanes
                .map_or_else(|| "auto".to_owned(), |lanes| lanes.to_string()),
            cell.memory_bytes.to_string(),
            cell.dirty_bytes_per_s
                .map_or_else(|| "max".to_owned(), |rate| rate.to_string()),
            cell.pattern.clone(),
            cell.hot_bytes.to_string(),
            cell.guest.clone(),
            cell.vcpus.to_string(),
            pass,
        ]
    };
    if let Some(reason) = &result.left_out {
        let rest = std::iter::repeat_n(String::new(), HEADS.len() - 11 - 1);
        return line(
            begin(String::new())
                .into_iter()
                .chain(rest)
                .chain([reason.clone()]),
        );
    }
    let mut text = String::new();
    for run in &result.runs {
        let rest = [
            run.began_ns.to_string(),
            run.outcome.clone(),
            run.goodput_bytes_per_s.to_string(),
            run.sent_bytes.to_string(),
            run.wire_bytes.to_string(),
            run.total_ns.to_string(),
            field(run.blackout_ns),
            field(run.predicted_ns),
            field(run.guest_visible_ns),
            field(run.source_cpu_ns),
            field(run.destination_cpu_ns),
            String::new(),
            field(run.is_equal),
            run.reason.clone().unwrap_or_default(),
        ];
        text.push_str(&line(begin(run.pass.to_string()).into_iter().chain(rest)));
    }
    text
}

fn reference_lines(result: &ReferenceResult) -> String {
    let fields = |known: &[(&str, String)]| {
        let value = |head: &&str| {
            let known = known.iter().find(|(name, _)| name == head);
            known.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        line(HEADS.iter().map(value))
    };
    let kind = ("kind", "reference".to_owned());
    let name = ("name", result.name.clone());
    if let Some(reason) = &result.left_out {
        return fields(&[kind, name, ("reason", reason.clone())]);
    }
    let lines = result.runs.iter().map(|run| {
        fields(&[
            kind.clone(),
            name.clone(),
            ("pass", run.pass.to_string()),
            ("goodput_bytes_per_s", field(run.goodput_bytes_per_s)),
            ("total_ns", field(run.total_ns)),
            ("blackout_ns", field(run.blackout_ns)),
            ("latency_ns", field(run.latency_ns)),
            ("reason", run.reason.clone().unwrap_or_default()),
        ])
    });
    lines.collect()
}

fn field(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn line(fields: impl IntoIterator<Item = String>) -> String {
    let fields: Vec<String> = fields.into_iter().map(|field| quoted(&field)).collect();
    format!("{}\r\n", fields.join(","))
}

fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::example;

    /// The fields of a line without line breaks in its fields.
    fn fields(line: &str) -> Vec<String> {
        let mut fields = vec![String::new()];
        let mut is_quoted = false;
        for letter in line.chars() {
            match letter {
                '"' => is_quoted = !is_quoted,
                ',' if !is_quoted => fields.push(String::new()),
                _ => fields.last_mut().unwrap().push(letter),
            }
        }
        fields
    }

    #[test]
    fn every_run_is_a_line_of_as_many_fields() {
        let mut results = example::results(3);
        results.cells[1].left_out = Some("no RDMA: none, \"really\"".to_owned());
        let text = all(&results);
        let lines: Vec<Vec<String>> = text.split_terminator("\r\n").map(fields).collect();
        // The heads, three runs, the reason, three runs of a reference, and the other's reason.
        assert_eq!(lines.len(), 9);
        assert!(
            lines.iter().all(|line| line.len() == HEADS.len()),
            "{lines:?}"
        );
        assert_eq!(
            lines[1][13],
            results.cells[0].runs[0].goodput_bytes_per_s.to_string()
        );
        assert_eq!(lines[4][24], "no RDMA: none, really");
        assert_eq!(quoted("a\"b,c"), "\"a\"\"b,c\"");
    }
}
