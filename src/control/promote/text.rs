//! The text of a detected rule's file, with its evidence as a comment, ready to be committed.

use std::fmt::Write as _;

use tidegate_engine::detect::Incident;
use tidegate_engine::rules::{Action, Mode, Rule};
use tidegate_engine::verdict::Name;

use super::exact::Written;

/// What the file says of how the rule came about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Provenance<'a> {
    /// The incident of the detected rule.
    pub(super) incident: Option<&'a Incident>,
    /// Who promotes it, and when.
    pub(super) by: &'a str,
    /// When, as text.
    pub(super) at: &'a str,
}

/// Returns the rule file: the rule, its conditions as they are written, and a test.
pub(super) fn rule_file(
    rule: &Rule,
    name: &Name,
    conditions: &[Written],
    provenance: Provenance<'_>,
) -> String {
    let mut text = String::with_capacity(1024);
    let comment = &mut text;
    line(
        comment,
        &format!(
            "# Promoted from {} on {} by {}.",
            rule.name, provenance.at, provenance.by
        ),
    );
    if let Some(incident) = provenance.incident {
        let evidence = &incident.evidence;
        line(
            comment,
            &format!(
                "# Incident {}: {:.0} requests a second where {:.0} were expected, from {:.0} instances \
                 ({:.1} requests a second each).",
                incident.id.0,
                evidence.observed_rate,
                evidence.expected_rate,
                evidence.instances,
                evidence.requests_per_instance,
            ),
        );
        line(
            comment,
            &format!(
                "# It explained {:.1} % of the surge and would hit {:.2} % of normal traffic.",
                100.0 * evidence.coverage,
                100.0 * evidence.collateral,
            ),
        );
        for rejected in &evidence.rejected_candidates {
            line(
                comment,
                &format!("# Not {}: {}.", rejected.when, rejected.why),
            );
        }
    }
    line(
        comment,
        "# The detected rule kept serving known instances within their usual rate; a rule of a file does not.",
    );
    if conditions.iter().any(|written| written.is_pattern) {
        line(
            comment,
            "# A regex is exactly the text that was seen; written plain, it would mean others, too.",
        );
    }
    text.push_str("rules:\n");
    entry(&mut text, "  - name", name.as_str());
    let when = conditions
        .iter()
        .map(|written| (&*written.attribute, written.condition.clone()));
    push(&mut text, format_args!("    when: {}\n", mapping(when)));
    entry(&mut text, "    action", rule.action.word());
    match &rule.action {
        Action::Throttle { rate, burst, .. } => {
            entry(&mut text, "    rate", &rate.to_string());
            push(&mut text, format_args!("    burst: {burst}\n"));
        }
        Action::Block { status } => push(&mut text, format_args!("    status: {status}\n")),
        Action::Allow | Action::Drop | Action::Tarpit | Action::Log => {}
    }
    if let Some(reason) = &rule.reason {
        push(
            &mut text,
            format_args!(
                "    reason: {}\n",
                quoted(&format!("{} ({})", reason, rule.name))
            ),
        );
    }
    if rule.mode == Mode::Shadow {
        entry(&mut text, "    mode", "shadow");
    }
    test(&mut text, rule, name, conditions);
    text
}

/// Adds a test of the rule, where one request can be one.
fn test(text: &mut String, rule: &Rule, name: &Name, conditions: &[Written]) {
    // What an address says of the network is not given twice.
    let mut given: Vec<&(String, String)> = Vec::new();
    for one in conditions
        .iter()
        .filter_map(|written| written.given.as_ref())
    {
        if !given.iter().any(|(attribute, _)| *attribute == one.0) {
            given.push(one);
        }
    }
    // A throttle lets the first one through, and shadow all: only a block can be tested with one request. An
    // empty or blank value cannot be given.
    let blocks = matches!(rule.action, Action::Block { .. }) && rule.mode == Mode::Enforce;
    let can_be_given = given.iter().all(|(_, value)| !value.trim().is_empty());
    if blocks && can_be_given && !given.is_empty() {
        let given = given
            .into_iter()
            .map(|(attribute, value)| (&**attribute, quoted(value)));
        text.push_str("tests:\n");
        push(text, format_args!("  - given: {}\n", mapping(given)));
        push(
            text,
            format_args!(
                "    expect: {{ verdict: block, rule: {} }}\n",
                quoted(name.as_str())
            ),
        );
    }
}

fn push(text: &mut String, what: std::fmt::Arguments<'_>) {
    let written = text.write_fmt(what);
    debug_assert!(written.is_ok(), "a String takes everything");
}

fn line(text: &mut String, comment: &str) {
    // What clients chose stands in here: it must stay one comment.
    let safe: String = comment
        .chars()
        .map(|letter| {
            if letter.is_control() || matches!(letter, '\u{85}' | '\u{2028}' | '\u{2029}') {
                '?'
            } else {
                letter
            }
        })
        .collect();
    push(text, format_args!("{safe}\n"));
}

fn entry(text: &mut String, key: &str, value: &str) {
    push(text, format_args!("{key}: {}\n", quoted(value)));
}

/// Writes attributes and what is said of them.
fn mapping<'a>(entries: impl Iterator<Item = (&'a str, String)>) -> String {
    let all: Vec<String> = entries
        .map(|(attribute, what)| format!("{}: {what}", quoted(attribute)))
        .collect();
    format!("{{ {} }}", all.join(", "))
}

/// Quotes text as YAML does where it must: a JSON string is a YAML string.
pub(super) fn quoted(text: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
    let is_word = text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(is_plain)
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    if is_word {
        text.to_owned()
    } else {
        // Beyond ASCII, and what JSON may leave as it is and YAML not, as escapes.
        let mut quoted = String::with_capacity(text.len() + 2);
        quoted.push('"');
        for letter in text.chars() {
            match letter {
                '"' => quoted.push_str("\\\""),
                '\\' => quoted.push_str("\\\\"),
                ' '..='~' => quoted.push(letter),
                _ if u32::from(letter) <= 0xffff => {
                    push(&mut quoted, format_args!("\\u{:04x}", u32::from(letter)));
                }
                _ => push(&mut quoted, format_args!("\\U{:08x}", u32::from(letter))),
            }
        }
        quoted.push('"');
        quoted
    }
}
