//! Reads versions as clients send them and ranges as operators write them.

use std::sync::Arc;

use semver::{BuildMetadata, Prerelease, Version, VersionReq};

use crate::rules::VersionCondition;

/// Why a text is no version condition. The text names the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// A range that cannot be read.
    #[error("`{text}` is not a version range ({why}); write it like `\">=3.2.0, <3.2.4\"`")]
    Range {
        /// What was written.
        text: String,
        /// What the library says.
        why: String,
    },
    /// A range with a part that has no operator.
    #[error("`{part}` in a range has no operator; write `={part}`, or a list of versions")]
    NoOperator {
        /// The part.
        part: String,
    },
    /// Alternatives in one text.
    #[error("`||` does not join ranges; write a list: `[\"<2\", \">=3.1\"]`")]
    Alternatives,
    /// Digits and points, but no version.
    #[error("`{text}` is not a version; write 1 to 4 numbers, like `3.2.1`")]
    Version {
        /// What was written.
        text: String,
    },
}

/// Reads a version leniently: an optional `release-v` or `v` before it, 1 to 4 numbers of which
/// missing ones are 0, then optionally `-prerelease` and `+build`.
///
/// `release-v3.2` reads as 3.2.0. A fourth number becomes the build number, which tells versions
/// apart but stands in no range. What is no version (a commit hash, say) gives `None`.
pub fn parse_version(text: &str) -> Option<Version> {
    let text = text.strip_prefix("release-").unwrap_or(text);
    let text = text.strip_prefix(['v', 'V']).unwrap_or(text);
    let (text, build) = match text.split_once('+') {
        Some((text, build)) => (text, Some(build)),
        None => (text, None),
    };
    let (numbers, prerelease) = match text.split_once('-') {
        Some((numbers, prerelease)) => (numbers, Prerelease::new(prerelease).ok()?),
        None => (text, Prerelease::EMPTY),
    };
    let mut parts = [None; 4];
    let mut rest = numbers.split('.');
    for (slot, part) in parts.iter_mut().zip(&mut rest) {
        // `u64::from_str` takes a sign; a version has none.
        if !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *slot = Some(part.parse::<u64>().ok()?);
    }
    if rest.next().is_some() {
        return None;
    }
    let [major, minor, patch, fourth] = parts;
    let build = match (fourth, build) {
        (Some(fourth), None) => BuildMetadata::new(&fourth.to_string()).ok()?,
        (Some(_), Some(_)) => return None,
        (None, Some(build)) => BuildMetadata::new(build).ok()?,
        (None, None) => BuildMetadata::EMPTY,
    };
    Some(Version {
        major: major?,
        minor: minor.unwrap_or(0),
        patch: patch.unwrap_or(0),
        pre: prerelease,
        build,
    })
}

/// Returns whether a text begins like a range: `>=3.2`, `~3.2`, or `3.*`.
pub fn is_range(text: &str) -> bool {
    text.starts_with(['<', '>', '=', '^', '~'])
        || text.contains(',')
        || (looks_like_a_version(text) && text.ends_with(['*', 'x', 'X']))
}

/// Reads what an operator wrote about a `version` attribute: a range, exactly a version, or a text
/// that is no version (a commit hash) and is then compared as text.
pub fn parse_condition(text: &str) -> Result<VersionCondition, VersionError> {
    if text.contains("||") {
        return Err(VersionError::Alternatives);
    }
    if is_range(text) {
        return parse_range(text).map(VersionCondition::Range);
    }
    let version = parse_version(text);
    if version.is_none() && looks_like_a_version(text) {
        return Err(VersionError::Version {
            text: text.to_owned(),
        });
    }
    Ok(VersionCondition::Exactly(Arc::from(text), version))
}

fn parse_range(text: &str) -> Result<VersionReq, VersionError> {
    // The library reads a bare `3.2.1` as `^3.2.1`, that is up to 4.0.0. Nobody means that here.
    for part in text.split(',').map(str::trim) {
        if part.starts_with(|c: char| c.is_ascii_digit()) && !part.ends_with(['*', 'x', 'X']) {
            return Err(VersionError::NoOperator {
                part: part.to_owned(),
            });
        }
    }
    VersionReq::parse(text).map_err(|error| VersionError::Range {
        text: text.to_owned(),
        why: error.to_string(),
    })
}

/// Digits and points, with at least one of each; wildcards count as digits.
fn looks_like_a_version(text: &str) -> bool {
    let text = text.strip_prefix("release-").unwrap_or(text);
    let text = text.strip_prefix('v').unwrap_or(text);
    text.contains('.')
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, '.' | '*' | 'x' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_leniently() {
        for (text, read) in [
            ("3.2.1", "3.2.1"),
            ("release-v3.2", "3.2.0"),
            ("v3", "3.0.0"),
            ("3.10", "3.10.0"),
            ("3.2.1.4", "3.2.1+4"),
            ("1.0.0-beta.1+abc", "1.0.0-beta.1+abc"),
            ("03.2", "3.2.0"),
        ] {
            assert_eq!(parse_version(text).unwrap().to_string(), read, "{text}");
        }
        for text in [
            "",
            "v",
            "3.",
            "3..2",
            "+3",
            "3.2.1.4.5",
            "3fa94bcd0e0d4bfb9f0c7b3f0c7b3f0c7b3f0c7b",
            "1234567890123456789012345678901234567890",
            "latest",
        ] {
            assert_eq!(parse_version(text), None, "{text}");
        }
    }

    #[test]
    fn a_bare_version_is_exactly_that_and_an_operator_makes_a_range() {
        let exactly = parse_condition("3.2").unwrap();
        assert_eq!(
            exactly,
            VersionCondition::Exactly(Arc::from("3.2"), Some(Version::new(3, 2, 0)))
        );
        let VersionCondition::Range(range) = parse_condition(">=3.2.0, <3.2.4").unwrap() else {
            panic!("no range")
        };
        assert!(range.matches(&Version::new(3, 2, 3)) && !range.matches(&Version::new(3, 2, 4)));
        let sha = "3fa94bcd0e0d4bfb9f0c7b3f0c7b3f0c7b3f0c7b";
        assert_eq!(
            parse_condition(sha).unwrap(),
            VersionCondition::Exactly(Arc::from(sha), None)
        );
        for wrong in [
            ">=",
            ">=x.y",
            "3.2.0, 3.2.4",
            "<2 || >3",
            "3..2",
            "3.2.1.4.5",
            "=>3",
        ] {
            assert!(parse_condition(wrong).is_err(), "{wrong}");
        }
    }
}
