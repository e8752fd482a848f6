//! Shows rules, previews and tables on a terminal.

use serde_json::Value;

use crate::cli::plain::{Plain, PlainLines};

pub(super) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// Returns a value as people read it, in one line: text without quotes, and nothing that steers a terminal.
pub(in crate::cli) fn word(value: &Value) -> String {
    match value {
        Value::String(text) => Plain(text).to_string(),
        Value::Null => "-".to_owned(),
        other => Plain(&other.to_string()).to_string(),
    }
}

/// Returns a text of several lines.
pub(super) fn lines_of(value: &Value) -> String {
    let text = value.as_str().unwrap_or_default().trim_end();
    PlainLines(text).to_string()
}

/// Returns a source or a condition in one line.
pub(in crate::cli) fn source_text(source: &Value) -> String {
    let Some(values) = source.as_object().filter(|values| !values.is_empty()) else {
        return "everybody".to_owned();
    };
    let parts: Vec<String> = values
        .iter()
        .map(|(attribute, value)| {
            if value.get("present") == Some(&Value::Bool(false)) {
                format!("no {}", Plain(attribute))
            } else {
                format!("{}={}", Plain(attribute), word(value))
            }
        })
        .collect();
    parts.join(", ")
}

pub(super) fn preview_text(tried: &Value) -> String {
    let preview = &tried["preview"];
    let share = |value: &Value| 100.0 * value.as_f64().unwrap_or_default();
    let real = |value: &Value| value.as_f64().unwrap_or_default();
    if number(&preview["sampled"]) == 0 {
        return format!(
            "`{}`: there were no requests lately to try it on",
            word(&tried["name"])
        );
    }
    let mut lines = vec![format!(
        "`{}` would meet {:.1} requests a second: {:.2} % of all, {:.2} % of the normal traffic (the last {:.0} s, a \
         sample of {})",
        word(&tried["name"]),
        real(&preview["matched_per_second"]),
        share(&preview["share"]),
        share(&preview["share_of_normal"]),
        real(&preview["seconds"]),
        preview["sampled"],
    )];
    if preview["judged"] == false {
        let text = "these are too few requests to judge by: whether it would meet too much of the normal traffic is not \
                    known";
        lines.push(text.to_owned());
    }
    for (list, what) in [("sources", "sources"), ("tenants", "tenants")] {
        let met = preview[list].as_array().cloned().unwrap_or_default();
        if met.is_empty() {
            continue;
        }
        lines.push(format!("{what} that it would meet:"));
        lines.extend(met.iter().map(|met| {
            format!(
                "  {:>9.1}/s  {:>5.1} %  {}",
                real(&met["requests_per_second"]),
                share(&met["share"]),
                source_text(&met["source"])
            )
        }));
    }
    lines.join("\n")
}

pub(super) fn rule_text(rule: &Value) -> String {
    let mut lines = Vec::new();
    for (key, value) in rule.as_object().into_iter().flatten() {
        match key.as_str() {
            "evidence" => {
                for (key, value) in value.as_object().into_iter().flatten() {
                    if key != "rejected_candidates" {
                        lines.push(format!("{key:<24}{}", word(value)));
                    }
                }
                for rejected in value["rejected_candidates"]
                    .as_array()
                    .into_iter()
                    .flatten()
                {
                    let (when, why) = (source_text(&rejected["when"]), word(&rejected["why"]));
                    lines.push(format!("{:<24}{when}: {why}", "not"));
                }
            }
            "when" => lines.push(format!("{key:<24}{}", source_text(value))),
            _ => lines.push(format!("{key:<24}{}", word(value))),
        }
    }
    lines.join("\n")
}

/// Sets columns side by side, the last one as long as it is.
pub(in crate::cli) fn table<const N: usize>(
    head: &[&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let mut all = vec![head.map(str::to_owned)];
    all.extend(rows);
    let mut widths = [0; N];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let lines: Vec<String> = all
        .iter()
        .map(|row| {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                line.push_str(cell);
                let padding = width - cell.chars().count() + 2;
                line.extend(std::iter::repeat_n(' ', padding));
            }
            line.trim_end().to_owned()
        })
        .collect();
    lines.join("\n")
}
