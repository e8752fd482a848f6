//! Turns YAML text into a tree with positions. Knows nothing of what the tree means; the one place
//! that knows the YAML library.
//!
//! Scalars are taken as written: `3.10` is the text `3.10`, `yes` is `yes`, `0x10` is `0x10`.
//! Deserializing into the wanted types directly would stop at the first mistake; a tree lets its
//! reader report all of them.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::problem::{Place, Problem};

/// The largest file: 10,000 rules of 300 B are 3 MB.
pub const FILE_BYTES_MAX: usize = 8 << 20;
/// The most values in a file: 10,000 rules have 15 to 30 each.
const NODES_MAX: usize = 400_000;
/// The deepest nesting: `rules`, a rule, `when`, a condition, `not`, a list are 6.
const DEPTH_MAX: usize = 16;
/// The most anchors and the most aliases.
const ALIASES_MAX: usize = 64;
/// The most values that all aliases together stand for; this is what stops a "billion laughs".
const ALIASED_NODES_MAX: usize = 10_000;

/// Line and column, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The line.
    pub line: u32,
    /// The column, in characters.
    pub column: u32,
}

impl Mark {
    /// The beginning of a file.
    pub const START: Self = Self { line: 1, column: 1 };

    /// Returns the place in a file.
    pub fn in_file(self, path: &str) -> Place {
        Place::new(path, self.line, self.column)
    }
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where it stands; a blank value stands where its key does.
    pub mark: Mark,
    /// What it is.
    pub value: Value,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing, `null` or `~`, without quotes.
    Blank,
    /// A scalar as it was written, without its quotes.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping in the order of the file, duplicates included.
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where the key stands.
    pub mark: Mark,
    /// The key.
    pub key: String,
    /// The value.
    pub value: Node,
}

impl fmt::Display for Value {
    /// On one line, as YAML in flow style.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => f.write_str("null"),
            Self::Text(text) => f.write_str(text),
            Self::List(items) => {
                f.write_str("[")?;
                for (at, item) in items.iter().enumerate() {
                    write!(f, "{}{}", if at == 0 { "" } else { ", " }, item.value)?;
                }
                f.write_str("]")
            }
            Self::Map(entries) => {
                f.write_str("{ ")?;
                for (at, entry) in entries.iter().enumerate() {
                    let comma = if at == 0 { "" } else { ", " };
                    write!(f, "{comma}{}: {}", entry.key, entry.value.value)?;
                }
                f.write_str(" }")
            }
        }
    }
}

/// Reads bytes as text: UTF-8, with or without a byte order mark.
pub fn decode(path: &str, bytes: &[u8]) -> Result<String, Problem> {
    let start = |text: &str| Problem::new(Mark::START.in_file(path), text);
    if bytes.len() > FILE_BYTES_MAX {
        return Err(too_large(path));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(start("the file is UTF-16; save it as UTF-8"));
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let good = String::from_utf8_lossy(good);
            return Err(Problem::new(
                end_of(&good).in_file(path),
                "the file is not UTF-8 from here on; save it as UTF-8",
            ));
        }
    };
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text).to_owned())
}

/// Returns the problem of a file of more than [`FILE_BYTES_MAX`].
pub fn too_large(path: &str) -> Problem {
    let text = "the file is larger than 8 MiB; split it into several files";
    Problem::new(Mark::START.in_file(path), text)
}

/// Returns the place after the last character.
fn end_of(text: &str) -> Mark {
    let line = 1 + text.matches('\n').count();
    let last = text.rsplit('\n').next().unwrap_or_default();
    Mark {
        line: line as u32,
        column: 1 + last.chars().count() as u32,
    }
}

/// Reads YAML: one document, in bounded memory whatever the text holds.
///
/// An empty text is [`Value::Blank`]. Keys may stand twice; the reader of the tree says so.
pub fn parse(path: &str, text: &str) -> Result<Node, Problem> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > FILE_BYTES_MAX {
        return Err(too_large(path));
    }
    if let Some((before, _)) = text.split_once('\0') {
        return Err(Problem::new(
            end_of(before).in_file(path),
            "here is a NUL byte; remove it",
        ));
    }
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options()) {
        Ok(raw) => node(path, text, raw),
        Err(error) => Err(syntax_problem(path, text, &error)),
    }
}

fn options() -> serde_saphyr::Options {
    use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            flow_nesting_limit: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_events: 2 * NODES_MAX,
            max_aliases: ALIASES_MAX,
            max_anchors: ALIASES_MAX,
            max_recorded_anchor_events: ALIASED_NODES_MAX,
            max_total_scalar_bytes: FILE_BYTES_MAX,
            max_documents: 1,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: ALIASED_NODES_MAX,
            max_replay_stack_depth: DEPTH_MAX,
        },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Error,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
    }
}

/// Says in our words what the library says about syntax.
fn syntax_problem(path: &str, text: &str, error: &serde_saphyr::Error) -> Problem {
    use serde_saphyr::Error;
    let mark = error
        .location()
        .map_or_else(|| end_of(text), |location| mark(&location));
    let what = match error.without_snippet() {
        error if is_beyond_budget(error) => format!(
            "the file is nested or repeated beyond reason; write at most {DEPTH_MAX} levels, \
             {ALIASES_MAX} anchors or aliases and {NODES_MAX} values"
        ),
        Error::MergeKeyNotAllowed { .. } => {
            "`<<` does not merge here; write the keys out".to_owned()
        }
        Error::MultipleDocuments { .. } => {
            "a second document begins here; write one per file, without `---`".to_owned()
        }
        Error::NullIntoString { .. } => "a key is missing here; write `key: value`".to_owned(),
        other => {
            let mut said = other.to_string();
            if let Some(end) = said.find(" at line ") {
                said.truncate(end);
            }
            format!(
                "this is not YAML ({said}); indent with spaces, write `key: value` and `- item`"
            )
        }
    };
    Problem::new(mark.in_file(path), &what)
}

/// Returns whether the file is too much, rather than wrong.
fn is_beyond_budget(error: &serde_saphyr::Error) -> bool {
    use serde_saphyr::Error;
    match error {
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. } => true,
        // The library wraps what happens inside an alias, and gives some limits as text only.
        other => {
            let said = other.to_string();
            said.contains("budget breached")
                || said.contains("nesting")
                || said.contains("recursion")
        }
    }
}

fn mark(location: &serde_saphyr::Location) -> Mark {
    Mark {
        line: u32::try_from(location.line()).unwrap_or(u32::MAX).max(1),
        column: u32::try_from(location.column()).unwrap_or(u32::MAX).max(1),
    }
}

/// What the library gives: scalars that look like a number or a boolean without their text.
enum Raw {
    Blank,
    /// A number or a boolean; its text stands in the file.
    Inferred,
    Text(String),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<String>, Spanned<Self>)>),
}

fn node(path: &str, text: &str, raw: Spanned<Raw>) -> Result<Node, Problem> {
    let here = mark(&raw.referenced);
    let value = match raw.value {
        Raw::Blank => Value::Blank,
        Raw::Text(text) => Value::Text(text),
        Raw::Inferred => match written(text, &raw.defined) {
            Some(written) => Value::Text(written.to_owned()),
            None => {
                return Err(Problem::new(
                    here.in_file(path),
                    "a tag (`!!`) has no meaning here; remove it",
                ));
            }
        },
        Raw::List(items) => Value::List(
            items
                .into_iter()
                .map(|item| node(path, text, item))
                .collect::<Result<_, _>>()?,
        ),
        Raw::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| {
                    let mut value = node(path, text, value)?;
                    let mark = mark(&key.referenced);
                    if value.value == Value::Blank {
                        value.mark = mark;
                    }
                    Ok(Entry {
                        mark,
                        key: key.value,
                        value,
                    })
                })
                .collect::<Result<_, Problem>>()?,
        ),
    };
    Ok(Node { mark: here, value })
}

/// Returns a plain scalar as it stands in the file; `None` for a tagged one.
fn written<'t>(text: &'t str, location: &serde_saphyr::Location) -> Option<&'t str> {
    let span = location.span();
    let from = usize::try_from(span.byte_offset()?).ok()?;
    let len = usize::try_from(span.byte_len()?).ok()?;
    let written = text.get(from..from.checked_add(len)?)?.trim();
    (!written.starts_with(['!', '&', '"', '\'', '|', '>'])).then_some(written)
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Blank)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::Inferred)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Inferred)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Raw, E> {
        Ok(Raw::Inferred)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Inferred)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Raw, E> {
        Ok(Raw::Inferred)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Inferred)
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Raw, E> {
        Ok(Raw::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Value {
        parse("a.yaml", text).unwrap().value
    }

    fn text_of(yaml: &str) -> String {
        let Value::Map(entries) = read(yaml) else {
            panic!("no mapping: {yaml}")
        };
        entries[0].value.value.to_string()
    }

    #[test]
    fn scalars_are_taken_as_written() {
        for written in [
            "3.10",
            "yes",
            "0x10",
            "1e999",
            ".inf",
            ".nan",
            "1_000",
            "007",
            "-0",
            "0o17",
            "1.0",
            "+5",
            "12:30:45",
            "True",
            "off",
            "2026-12-01T00:00:00Z",
            "20/s",
            "1%",
            "0b1",
            "340282366920938463463374607431768211455",
            "99999999999999999999999999999999999999999",
        ] {
            assert_eq!(text_of(&format!("a: {written}")), written);
            assert_eq!(text_of(&format!("é: {written}  # comment")), written);
            assert_eq!(text_of(&format!("a: [{written}]")), format!("[{written}]"));
            assert_eq!(text_of(&format!("{{ a: {written} }}")), written);
            assert_eq!(text_of(&format!("a: \"{written}\"")), written);
            assert_eq!(text_of(&format!("{{ b: &x {written}, a: *x }}")), written);
        }
    }

    #[test]
    fn blank_is_blank_and_an_empty_text_is_a_text() {
        assert_eq!(text_of("a:"), "null");
        let Value::Map(entries) = read("a: ''\nb: 'null'\nc: ~\nd: null") else {
            panic!()
        };
        let values: Vec<_> = entries.into_iter().map(|entry| entry.value.value).collect();
        assert_eq!(values[0], Value::Text(String::new()));
        assert_eq!(values[1], Value::Text("null".to_owned()));
        assert_eq!(values[2], Value::Blank);
        assert_eq!(values[3], Value::Blank);
        assert_eq!(read(""), Value::Blank);
        assert_eq!(read("# only a comment\n"), Value::Blank);
    }

    #[test]
    fn keys_and_values_know_their_place() {
        let node = parse("a.yaml", "a:\n  - b: 1\n    c:\n    d: [x, {y: z}]\n").unwrap();
        let Value::Map(top) = &node.value else {
            panic!()
        };
        let Value::List(items) = &top[0].value.value else {
            panic!()
        };
        let Value::Map(item) = &items[0].value else {
            panic!()
        };
        let mark = |line, column| Mark { line, column };
        assert_eq!(item[0].mark, mark(2, 5));
        assert_eq!(item[0].value.mark, mark(2, 8));
        assert_eq!(item[1].value.mark, mark(3, 5), "a blank stands at its key");
        let Value::List(flow) = &item[2].value.value else {
            panic!()
        };
        assert_eq!(flow[1].mark, mark(4, 12));
    }

    #[test]
    fn a_byte_order_mark_and_windows_line_ends_are_fine() {
        let text = decode("a.yaml", b"\xef\xbb\xbfa: 1\r\nb: 3.10\r\nc: |\r\n  x\r\n").unwrap();
        let Value::Map(entries) = read(&text) else {
            panic!()
        };
        let said: Vec<_> = entries.iter().map(|e| e.value.value.to_string()).collect();
        assert_eq!(said, ["1", "3.10", "x\n"]);
    }

    #[test]
    fn duplicate_keys_are_kept_for_the_reader() {
        let Value::Map(entries) = read("a: 1\na: 2\n") else {
            panic!()
        };
        assert_eq!(entries.len(), 2);
    }

    #[test]
    fn bombs_are_refused() {
        use std::fmt::Write;
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..12 {
            let before = format!("*a{}", n - 1);
            writeln!(laughs, "a{n}: &a{n} [{}]", vec![before; 5].join(", ")).unwrap();
        }
        let deep = "[".repeat(100_000);
        let deep_block = (0..200).fold(String::new(), |text, n| {
            format!("{text}{}a:\n", "  ".repeat(n))
        });
        let wide = format!("[{}]", "x,".repeat(NODES_MAX + 1));
        for bomb in [laughs, deep, deep_block, wide] {
            let problem = parse("a.yaml", &bomb).unwrap_err();
            assert!(problem.text.contains("beyond reason"), "{problem}");
        }
    }
}
