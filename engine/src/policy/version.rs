//! Reads versions as clients write them. Knows nothing of conditions.

use semver::{BuildMetadata, Prerelease, Version};

/// Reads a version leniently: an optional `release-v` or `v` before it, missing parts are 0, leading
/// zeros are ignored. Returns `None` for what is no version.
///
/// Allocates nothing for up to three numbers; a pre-release of more than 8 bytes is allocated.
pub fn read_version(text: &str) -> Option<Version> {
    let text = text
        .strip_prefix("release-v")
        .or_else(|| text.strip_prefix('v'))
        .unwrap_or(text);
    let (text, build) = match text.split_once('+') {
        Some((text, build)) => (text, BuildMetadata::new(build).ok()?),
        None => (text, BuildMetadata::EMPTY),
    };
    let (numbers, pre) = match text.split_once('-') {
        Some((numbers, pre)) => (numbers, Prerelease::new(pre).ok()?),
        None => (text, Prerelease::EMPTY),
    };
    let mut parts = numbers.split('.');
    let major = number(parts.next()?)?;
    let minor = parts.next().map_or(Some(0), number)?;
    let patch = parts.next().map_or(Some(0), number)?;
    if parts.next().is_some() {
        return None;
    }
    Some(Version {
        major,
        minor,
        patch,
        pre,
        build,
    })
}

/// Digits only: `parse` alone would take `+3`.
fn number(digits: &str) -> Option<u64> {
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        digits.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_clients_write_them() {
        for (text, version) in [
            ("3.2.1", "3.2.1"),
            ("release-v3.2", "3.2.0"),
            ("v3", "3.0.0"),
            ("3.10", "3.10.0"),
            ("2020.04.01", "2020.4.1"),
            ("3.2-beta.1", "3.2.0-beta.1"),
            ("3.2.1+42", "3.2.1+42"),
        ] {
            assert_eq!(read_version(text), Version::parse(version).ok(), "{text}");
        }
    }

    #[test]
    fn what_is_no_version_is_none() {
        for text in [
            "",
            "v",
            "latest",
            "3.",
            ".3",
            "3.2.1.0",
            "3.x",
            "-1",
            "3 2",
            "99999999999999999999",
        ] {
            assert_eq!(read_version(text), None, "{text}");
        }
    }
}
