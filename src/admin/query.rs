//! What the query of a change says.

use percent_encoding::percent_decode_str;

/// The longest reason, in characters.
pub(super) const WHY_CHARACTERS_MAX: usize = 500;

/// What the query of a change says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) force: bool,
    pub(super) dry_run: bool,
    pub(super) origin: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) name: Option<String>,
}

impl Query {
    /// Reads a query of which only `known` keys have a meaning. Another one is refused, not ignored: who
    /// asks for a dry run must not change something.
    pub(super) fn read(query: &str, known: &[&str]) -> Result<Self, String> {
        let mut read = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, "true"));
            let spaced = value.replace('+', " ");
            let value = percent_decode_str(&spaced)
                .decode_utf8()
                .map_err(|error| format!("`{pair}`: {error}"))?
                .into_owned();
            let flag = || match value.as_str() {
                "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(format!("`{key}` is `true` or `false`, and not `{value}`")),
            };
            match key {
                _ if !known.contains(&key) => {
                    return Err(format!("`{key}` means nothing here"));
                }
                "force" => read.force = flag()?,
                "dry_run" => read.dry_run = flag()?,
                "origin" => read.origin = Some(value),
                "reason" => read.reason = Some(shortened(&value, WHY_CHARACTERS_MAX)),
                "name" => read.name = Some(value),
                _ => return Err(format!("`{key}` is not known here")),
            }
        }
        Ok(read)
    }

    pub(super) fn why(&self) -> &str {
        self.reason.as_deref().unwrap_or_default()
    }
}

/// Cuts a text, and makes it one line.
pub(super) fn shortened(text: &str, characters: usize) -> String {
    let letters = text.chars().take(characters);
    letters
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_or_refused() {
        let known = ["force", "reason", "dry_run"];
        let read = |query| Query::read(query, &known);
        let query = read("force=true&reason=loop%2C+ticket%204711&dry_run=false").unwrap();
        assert!(query.force && !query.dry_run);
        assert_eq!(query.why(), "loop, ticket 4711");
        assert_eq!(read("").unwrap(), Query::default());
        for wrong in ["force=yes", "nothing=1", "reason=%ff", "origin=detected"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let long = format!("reason={}%0a", "x".repeat(1000));
        assert_eq!(
            Query::read(&long, &known).unwrap().why().len(),
            WHY_CHARACTERS_MAX
        );
    }
}
