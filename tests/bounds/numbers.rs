//! Numbers as the document writes them (`16 KiB`, `5 s`, `1,000`) and as the source does
//! (`16 * 1024`, `Duration::from_secs(5)`, `1 << 13`).

use std::fmt;

/// How much something is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Amount {
    /// Of things, or bytes.
    Count(f64),
    /// In milliseconds.
    Time(f64),
    /// It has to be worked out, or is no number.
    Unknown,
}

impl fmt::Display for Amount {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(out, "{count}"),
            Self::Time(millis) => write!(out, "{millis} ms"),
            Self::Unknown => out.write_str("not a plain number"),
        }
    }
}

/// Reads the number that a text begins with, and its unit. `None`: it begins with something else.
pub(crate) fn amount_in_words(text: &str) -> Option<Amount> {
    let text = text.trim_start();
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != ',');
    let digits = text.get(..end.unwrap_or(text.len()))?.trim_end_matches(',');
    let number: f64 = digits.replace(',', "").parse().ok()?;
    let rest = text.get(digits.len()..)?;
    if rest.starts_with('/') {
        return None;
    }
    let unit = rest
        .trim_start()
        .split(|letter: char| !letter.is_alphabetic())
        .next();
    Some(match unit {
        Some("KiB") => Amount::Count(number * 1024.0),
        Some("MiB") => Amount::Count(number * 1024.0 * 1024.0),
        Some("ms") => Amount::Time(number),
        Some("s") => Amount::Time(number * 1000.0),
        Some("min") => Amount::Time(number * 60_000.0),
        _ => Amount::Count(number),
    })
}

/// Returns the value of a constant of some code. `None`: there is no such constant.
pub(crate) fn amount_in_code(name: &str, code: &str) -> Option<Amount> {
    let text = ["const", "static"].iter().find_map(|word| {
        let (_, rest) = code.split_once(&format!("{word} {name}: "))?;
        let (_, value) = rest.split_once('=')?;
        value.split(';').next()
    })?;
    let text = text.trim();
    let is_name = text
        .chars()
        .all(|letter| letter.is_ascii_uppercase() || letter == '_');
    let value = if is_name && text != name {
        amount_in_code(text, code)
    } else {
        evaluate(text)
    };
    Some(value.unwrap_or(Amount::Unknown))
}

fn evaluate(text: &str) -> Option<Amount> {
    for (call, millis) in [
        ("from_millis", 1.0),
        ("from_secs", 1000.0),
        ("from_mins", 60_000.0),
    ] {
        let argument = text.strip_prefix(&format!("Duration::{call}("));
        if let Some(argument) = argument.and_then(|rest| rest.strip_suffix(')')) {
            return Some(Amount::Time(number(argument)? * millis));
        }
    }
    if let Some((left, right)) = text.split_once("<<") {
        return Some(Amount::Count(number(left)? * number(right)?.exp2()));
    }
    let factors = text.split('*').map(number);
    factors.product::<Option<f64>>().map(Amount::Count)
}

fn number(text: &str) -> Option<f64> {
    text.trim().replace('_', "").parse().ok()
}

#[test]
fn numbers_are_read_as_they_are_written() {
    for (words, code) in [
        ("16 KiB a connection", "16 * 1024"),
        ("16 MiB", "16 << 20"),
        ("5 s, then", "Duration::from_secs(5)"),
        ("500 ms", "Duration::from_millis(500)"),
        ("10 min", "Duration::from_mins(10)"),
        ("1,000 a worker", "1_000"),
        ("240 B/s", "240.0"),
    ] {
        let written = amount_in_words(words);
        assert!(written.is_some(), "{words}");
        let code = format!("const A_MAX: f64 = {code};");
        assert_eq!(amount_in_code("A_MAX", &code), written);
    }
    assert_eq!(amount_in_words(": what came last"), None);
    assert_eq!(amount_in_words(" 1/20 of it"), None);
    assert_eq!(amount_in_code("A_MAX", "const B_MAX: u8 = 1;"), None);
    let named = "const A_MAX: u8 = B_MAX;\nconst B_MAX: u8 = 7;";
    assert_eq!(amount_in_code("A_MAX", named), Some(Amount::Count(7.0)));
    assert_eq!(
        amount_in_code("A_MAX", "const A_MAX: u8 = f(1);"),
        Some(Amount::Unknown)
    );
}
