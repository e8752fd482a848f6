//! Finds the words of a rule file that mean exactly what the detector means. Its rules compare texts byte
//! by byte, and clients choose the texts; in a file, `>=0.0.0` of a version is a range, and `3.2` any way
//! to write that version. A rule that became wider on its way into a file would hit others.

use std::sync::Arc;
use std::time::SystemTime;

use tidegate_engine::attribute::{AttributeId, Schema};
use tidegate_engine::policy::{Policy, PolicyParts};
use tidegate_engine::rules::{Condition, Mode, Origin, Rule, Rules, VersionCondition};
use tidegate_engine::rules_file::{RulesFile, Vocabulary, parse_rule};
use tidegate_engine::time::Instant;
use tidegate_engine::verdict::Name;

use super::text::quoted;
use crate::control::changes::Refused;

/// One condition as a file says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// The attribute.
    pub(super) attribute: String,
    /// The condition.
    pub(super) condition: String,
    /// What a request has that meets it, and as which attribute a test gives it; `None`: nothing.
    pub(super) given: Option<(String, String)>,
    /// Whether the plain text would mean something else.
    pub(super) is_pattern: bool,
}

/// Writes the conditions of a detected rule, each so that it is read as what it is.
///
/// # Errors
///
/// There are no words for one of them.
pub(super) fn conditions(
    rule: &Rule,
    vocabulary: &mut Vocabulary,
) -> Result<Vec<Written>, Refused> {
    let all = rule.when.conditions.iter();
    all.map(|(id, condition)| {
        let attribute = vocabulary.schema().name(*id).to_owned();
        written(*id, &attribute, condition, vocabulary)
            .ok_or_else(|| Refused::NotExact(attribute.clone(), rule.when_text.to_string()))
    })
    .collect()
}

fn written(
    id: AttributeId,
    attribute: &str,
    condition: &Condition,
    vocabulary: &mut Vocabulary,
) -> Option<Written> {
    let (forms, given) = match condition {
        Condition::Present(false) => (vec!["{ present: false }".to_owned()], None),
        Condition::Network(network) => {
            let is_one = network.prefix_len() == network.max_prefix_len();
            let text = if is_one {
                network.addr().to_string()
            } else {
                network.to_string()
            };
            // What is given is one client, and the network of a client follows from its address.
            let client = network.hosts().next().unwrap_or_else(|| network.addr());
            let given = if id.is_address() { "ip" } else { attribute };
            let given = (given.to_owned(), client.to_string());
            (vec![quoted(&text)], Some(given))
        }
        _ => {
            let text = text_of(condition)?;
            let pattern = format!("{{ regex: {} }}", quoted(&pattern_of(text)));
            let given = (attribute.to_owned(), text.to_string());
            (vec![quoted(text), pattern], Some(given))
        }
    };
    let mut forms = forms.into_iter().enumerate();
    let (at, form) = forms.find(|(_, form)| {
        let rule = format!("{{ name: x, when: {{ {}: {form} }}, action: log }}", quoted(attribute));
        let now = SystemTime::UNIX_EPOCH;
        let read = parse_rule("-", &rule, vocabulary, now, Origin::File);
        read.is_ok_and(|read| {
            matches!(&*read.when.conditions, [(read, as_read)] if *read == id && means(as_read, condition))
        })
    })?;
    Some(Written {
        attribute: attribute.to_owned(),
        condition: form,
        given,
        is_pattern: at > 0,
    })
}

/// Returns the text that a condition compares with, and nothing else does.
fn text_of(condition: &Condition) -> Option<&Arc<str>> {
    match condition {
        Condition::Is(text) | Condition::Version(VersionCondition::Exactly(text, None)) => {
            Some(text)
        }
        _ => None,
    }
}

/// The pattern of exactly this text: without flags, `^` and `$` are the two ends.
fn pattern_of(text: &str) -> String {
    format!("^{}$", regex::escape(text))
}

/// Returns whether a condition as it was read means what the detector's does, no more and no less.
fn means(read: &Condition, detected: &Condition) -> bool {
    match (read, detected) {
        (Condition::Present(read), Condition::Present(detected)) => read == detected,
        (Condition::Network(read), Condition::Network(detected)) => read == detected,
        // A regex sees the whole of a long value, and a text its hash.
        (Condition::Regex(read), detected) => text_of(detected)
            .is_some_and(|text| !text.starts_with("hash:") && read.as_str() == pattern_of(text)),
        (read, detected) => {
            let texts = text_of(read).zip(text_of(detected));
            texts.is_some_and(|(read, detected)| read == detected)
        }
    }
}

/// Reads the file as it will be read, holds its rule against the detector's and runs its tests.
///
/// # Errors
///
/// The file would not be read, or says something else.
pub(super) fn check(
    text: &str,
    rule: &Rule,
    name: &Name,
    vocabulary: &mut Vocabulary,
    now: SystemTime,
) -> Result<(), Refused> {
    let path = format!("{name}.yaml");
    let file = RulesFile::parse(&path, text, vocabulary, now)
        .and_then(|file| RulesFile::join(vec![file]))
        .map_err(Refused::Wrong)?;
    let not_exact = |what: String| Refused::NotExact(what, rule.when_text.to_string());
    let is_it = |read: &Rule| {
        let (read_all, detected_all) = (&read.when.conditions, &rule.when.conditions);
        let same = |(read, detected): (&(AttributeId, Condition), &(AttributeId, Condition))| {
            read.0 == detected.0 && means(&read.1, &detected.1)
        };
        read.name == *name
            && read.mode == rule.mode
            && read.action == rule.action
            && read.percent == 100
            && read_all.len() == detected_all.len()
            && read_all.iter().zip(detected_all).all(same)
    };
    if !matches!(&*file.rules, [read] if is_it(read)) {
        return Err(not_exact("when".to_owned()));
    }
    if rule.mode == Mode::Enforce {
        run_tests(&file, vocabulary.schema()).map_err(not_exact)?;
    }
    Ok(())
}

fn run_tests(file: &Rules, schema: &Schema) -> Result<(), String> {
    for test in &file.tests {
        let parts = PolicyParts {
            schema: Arc::new(schema.clone()),
            services: [].into(),
            rules: file.rules.clone(),
            limits: Vec::new(),
            generation: 0,
        };
        let now = Instant::from_secs_f64(3600.0);
        let policy = Policy::compile(parts, None, now, SystemTime::UNIX_EPOCH);
        policy.run_test(test, now)?;
    }
    Ok(())
}
