//! Writes a detected rule as a rule file, with its evidence as a comment, ready to be committed.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use tidegate_engine::detect::Incident;
use tidegate_engine::rules::{Action, Rule};
use tidegate_engine::source::Source;
use tidegate_engine::verdict::Name;

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

/// Returns the rule file.
pub(super) fn rule_file(rule: &Rule, name: &Name, provenance: Provenance<'_>) -> String {
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
    text.push_str("rules:\n");
    entry(&mut text, "  - name", name.as_str());
    push(
        &mut text,
        format_args!("    when: {}\n", conditions(&rule.when_text)),
    );
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
    // A throttle lets the first one through: only a block can be tested with one request.
    if matches!(rule.action, Action::Block { .. }) && rule.when_text.absent().next().is_none() {
        text.push_str("tests:\n");
        push(
            &mut text,
            format_args!("  - given: {}\n", conditions(&rule.when_text)),
        );
        push(
            &mut text,
            format_args!(
                "    expect: {{ verdict: block, rule: {} }}\n",
                quoted(name.as_str())
            ),
        );
    }
    text
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

/// Writes the source as a condition.
fn conditions(source: &Source) -> String {
    let values = source
        .iter()
        .map(|(attribute, value)| format!("{}: {}", quoted(attribute), quoted(value)));
    let absent = source
        .absent()
        .map(|attribute| format!("{}: {{ present: false }}", quoted(attribute)));
    let all: Vec<String> = values.chain(absent).collect();
    format!("{{ {} }}", all.join(", "))
}

/// Quotes text as YAML does where it must: a JSON string is a YAML string.
fn quoted(text: &str) -> String {
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

/// Writes a new file into the rules folder, whole or not at all.
///
/// # Errors
///
/// There is a file of this name, or the folder cannot be written.
pub(super) fn write(folder: &Path, name: &str, text: &str) -> io::Result<PathBuf> {
    let path = folder.join(format!("{name}.yaml"));
    if path.exists() {
        let text = format!("{} is there already; choose another name", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    // Hidden: until it has its name it is no rule file.
    let draft = folder.join(format!(".{name}.yaml.draft"));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&draft)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&draft, &path));
    if let Err(error) = written {
        drop(fs::remove_file(&draft));
        return Err(error);
    }
    fs::File::open(folder)?.sync_all()?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tidegate_engine::attribute::{AttributeKind, AttributeSpec, Schema, Side};
    use tidegate_engine::rules::{Condition, Mode, Origin, Rules, When};

    use super::*;

    fn schema() -> Schema {
        let mut schema = Schema::built_in();
        for name in ["sdk", "app"] {
            let spec = AttributeSpec {
                name: name.into(),
                kind: AttributeKind::Text,
                side: Side::Who,
                secret: false,
            };
            schema.add(spec).unwrap();
        }
        schema
    }

    fn promoted(value: &str) -> (Rule, String) {
        let source = Source::everybody()
            .with("app", value)
            .with("ip", "2001:db8::/64")
            .lacking("sdk");
        let rule = Rule {
            name: Name::new("detected-3"),
            when: When::default(),
            when_text: source,
            action: Action::Block { status: 403 },
            mode: Mode::Enforce,
            percent: 100,
            until: None,
            reason: Some("incident 3: \"more\"".into()),
            origin: Origin::Detected,
            sparing: None,
        };
        let provenance = Provenance {
            incident: None,
            by: "me\nrules: [x]",
            at: "2026-11-25T00:00:00Z",
        };
        let text = rule_file(&rule, &Name::new("loop-3"), provenance);
        (rule, text)
    }

    /// Whatever a client calls itself, the file says exactly that, and nothing else.
    #[test]
    fn a_promoted_rule_reads_as_what_it_was() {
        for value in [
            "acme",
            "3.10",
            "null",
            "yes",
            "a: b",
            "# x",
            "{ x }",
            "\"",
            "\\",
            "é",
            "日本",
            "🎈",
            " x ",
            "a\u{2028}b",
            "- x",
            "*a",
            "&a",
            "!!str",
            "0x10",
            "1e3",
            "~",
            "a\u{7f}b",
        ] {
            let (_, text) = promoted(value);
            let rules = Rules::parse("p.yaml", &text, &schema(), SystemTime::now())
                .unwrap_or_else(|problems| panic!("{value:?}: {problems}\n{text}"));
            let rule = &rules.rules[0];
            assert_eq!(rule.name.as_str(), "loop-3");
            let app = schema().id("app").unwrap();
            let condition = rule.when.conditions.iter().find(|(id, _)| *id == app);
            let Some((_, Condition::Is(read))) = condition else {
                panic!("{value:?}: {condition:?}");
            };
            assert_eq!(&**read, value);
        }
    }

    #[test]
    fn a_file_that_is_there_is_not_overwritten() {
        let folder = crate::state::tests::folder("promote");
        let path = write(&folder, "loop-3", "rules: []\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "rules: []\n");
        assert!(write(&folder, "loop-3", "x").is_err());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "no draft");
        fs::remove_dir_all(&folder).unwrap();
    }
}
