//! Reads a tree ([`crate::yaml`]) field by field and collects everything that is wrong.
//!
//! Each method answers `None` where a value cannot be used and has then said why, so a caller goes
//! on to the next field and all problems of a file are reported at once.

use std::fmt::{self, Display};
use std::ops::RangeInclusive;

use crate::problem::{Problem, Problems};
use crate::yaml::{Entry, Mark, Node, Value};

/// The longest name of a rule, a limit, a service or an upstream.
pub const NAME_BYTES_MAX: usize = 64;

/// Collects what is wrong in one file.
#[derive(Debug)]
pub struct Reader<'p> {
    path: &'p str,
    subject: String,
    problems: Vec<Problem>,
}

impl<'p> Reader<'p> {
    /// Begins a file.
    pub fn new(path: &'p str) -> Self {
        Self {
            path,
            subject: String::new(),
            problems: Vec::new(),
        }
    }

    /// Names what the problems from here on are about: ``rule `login` ``. Empty: the file itself.
    pub fn about(&mut self, subject: impl Display) {
        self.subject = subject.to_string();
    }

    /// Adds a problem: what is wrong, and how to write it.
    pub fn problem(&mut self, at: Mark, text: impl Display) {
        let text = if self.subject.is_empty() {
            text.to_string()
        } else {
            format!("{}: {text}", self.subject)
        };
        self.problems
            .push(Problem::new(at.in_file(self.path), &text));
    }

    /// Ends the file.
    pub fn finish(self) -> Problems {
        Problems::new(self.problems)
    }

    /// Returns the file that is read.
    pub fn path(&self) -> &'p str {
        self.path
    }

    /// Opens a mapping whose keys are known. Unknown keys and keys given twice are problems.
    pub fn fields<'n>(
        &mut self,
        key: &str,
        node: &'n Node,
        known: &'static [&'static str],
    ) -> Option<Fields<'n>> {
        let entries = self.entries(key, node)?;
        for entry in entries {
            if known.contains(&entry.key.as_str()) {
                continue;
            }
            let way_out = match nearest(&entry.key, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", Listed(known)),
            };
            self.problem(
                entry.mark,
                format!("unknown key `{}`; {way_out}", entry.key),
            );
        }
        Some(Fields {
            mark: node.mark,
            entries,
        })
    }

    /// Opens a mapping whose keys the operator chooses. Keys given twice are problems.
    pub fn entries<'n>(&mut self, key: &str, node: &'n Node) -> Option<&'n [Entry]> {
        let Value::Map(entries) = &node.value else {
            self.wrong_type(key, node, "a mapping", "`key: value`");
            return None;
        };
        let mut seen = std::collections::HashMap::with_capacity(entries.len());
        for entry in entries {
            if let Some(line) = seen.insert(entry.key.as_str(), entry.mark.line) {
                self.problem(
                    entry.mark,
                    format!(
                        "key `{}` is given twice, first in line {line}; keep one",
                        entry.key
                    ),
                );
            }
        }
        Some(entries)
    }

    /// Opens a list that has at least one item. `like` shows one.
    pub fn items<'n>(&mut self, key: &str, node: &'n Node, like: &str) -> Option<&'n [Node]> {
        let items = self.items_or_none(key, node, like)?;
        if items.is_empty() {
            self.problem(node.mark, format!("`{key}` is empty; write it like {like}"));
            return None;
        }
        Some(items)
    }

    /// Opens a list that may be empty.
    pub fn items_or_none<'n>(
        &mut self,
        key: &str,
        node: &'n Node,
        like: &str,
    ) -> Option<&'n [Node]> {
        let Value::List(items) = &node.value else {
            self.wrong_type(key, node, "a list", like);
            return None;
        };
        Some(items)
    }

    /// Reads a scalar as it was written; not empty. `like` shows one.
    pub fn text<'n>(&mut self, key: &str, node: &'n Node, like: &str) -> Option<&'n str> {
        match &node.value {
            Value::Text(text) if !text.trim().is_empty() => Some(text),
            Value::Text(_) => {
                self.problem(node.mark, format!("`{key}` is empty; write it like {like}"));
                None
            }
            _ => {
                self.wrong_type(key, node, "a single value", like);
                None
            }
        }
    }

    /// Reads a scalar with a function whose error names the way out.
    pub fn parsed<T, E: Display>(
        &mut self,
        key: &str,
        node: &Node,
        like: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(key, node, like)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(node.mark, format!("`{key}`: {error}"));
                None
            }
        }
    }

    /// Reads one of a few words.
    pub fn word<T: Clone>(&mut self, key: &str, node: &Node, words: &[(&str, T)]) -> Option<T> {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let text = self.text(key, node, &format!("{}", Listed(&known)))?;
        let found = words.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let way_out = match nearest(text, &known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("write one of {}", Listed(&known)),
            };
            self.problem(
                node.mark,
                format!("`{key}`: unknown word `{text}`; {way_out}"),
            );
        }
        found.map(|(_, value)| value.clone())
    }

    /// Reads `true` or `false`.
    pub fn flag(&mut self, key: &str, node: &Node) -> Option<bool> {
        self.word(key, node, &[("true", true), ("false", false)])
    }

    /// Reads a whole number within a range.
    pub fn whole(&mut self, key: &str, node: &Node, range: RangeInclusive<u32>) -> Option<u32> {
        let (least, most) = (range.start(), range.end());
        let text = self.text(key, node, &format!("`{least}`"))?;
        let number = text
            .parse::<u32>()
            .ok()
            .filter(|number| range.contains(number) && !text.starts_with('+'));
        if number.is_none() {
            self.problem(
                node.mark,
                format!("`{key}`: `{text}` is not a whole number from {least} to {most}; write it like `{least}`"),
            );
        }
        number
    }

    /// Reads a name: it stands in metrics, logs and addresses, so its letters are few.
    pub fn name<'n>(&mut self, key: &str, node: &'n Node) -> Option<&'n str> {
        let text = self.text(key, node, "`login-attempts`")?;
        let fine = text.len() <= NAME_BYTES_MAX
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !fine {
            self.problem(
                node.mark,
                format!(
                    "`{key}`: `{}` is not a name; write at most {NAME_BYTES_MAX} letters, digits, \
                     `-`, `_` or `.`, a letter or digit first",
                    shortened(text)
                ),
            );
            return None;
        }
        Some(text)
    }

    fn wrong_type(&mut self, key: &str, node: &Node, wanted: &str, like: &str) {
        let text = match &node.value {
            Value::Blank => format!("`{key}` has no value; write {wanted}, like {like}"),
            Value::Text(text) => {
                let text = shortened(text);
                format!("`{key}` is not {wanted} but `{text}`; write it like {like}")
            }
            Value::List(_) => format!("`{key}` is a list, not {wanted}; write it like {like}"),
            Value::Map(_) => format!("`{key}` is a mapping, not {wanted}; write it like {like}"),
        };
        self.problem(node.mark, text);
    }
}

/// The entries of a mapping.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'n> {
    mark: Mark,
    entries: &'n [Entry],
}

impl<'n> Fields<'n> {
    /// Returns the value of a key, the first where it is given twice.
    pub fn get(&self, key: &str) -> Option<&'n Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// Returns the entry of a key, the first where it is given twice.
    pub fn entry(&self, key: &str) -> Option<&'n Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// Returns the value of a key that must be there. `like` shows one.
    pub fn required(&self, reader: &mut Reader<'_>, key: &str, like: &str) -> Option<&'n Node> {
        let node = self.get(key);
        if node.is_none() {
            reader.problem(
                self.mark,
                format!("`{key}` is missing; write it like `{key}: {like}`"),
            );
        }
        node
    }

    /// Returns where the mapping begins.
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Walks the entries in order.
    pub fn iter(&self) -> impl Iterator<Item = &'n Entry> {
        self.entries.iter()
    }
}

/// Words in a row: `` `a`, `b` or `c` ``.
#[derive(Debug)]
pub struct Listed<'w, W>(pub &'w [W]);

impl<W: AsRef<str>> Display for Listed<'_, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, word) in self.0.iter().enumerate() {
            let before = match at {
                0 => "",
                _ if at + 1 == self.0.len() => " or ",
                _ => ", ",
            };
            write!(f, "{before}`{}`", word.as_ref())?;
        }
        Ok(())
    }
}

/// Cuts what an operator wrote to what fits on a line.
pub fn shortened(text: &str) -> String {
    const LETTERS_MAX: usize = 80;
    let mut short: String = text.chars().take(LETTERS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Returns the word that was probably meant: at most two letters off, fewer in short words.
pub fn nearest<'w, W: AsRef<str>>(text: &str, words: &'w [W]) -> Option<&'w str> {
    if text.len() > NAME_BYTES_MAX {
        return None;
    }
    words
        .iter()
        .map(|word| (distance(text, word.as_ref()), word.as_ref()))
        .filter(|(distance, word)| *distance <= 2 && *distance * 3 <= word.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Damerau-Levenshtein distance with adjacent transpositions only ("optimal string alignment"),
/// ignoring case, `-` and `_` alike.
fn distance(a: &str, b: &str) -> usize {
    let letters = |text: &str| -> Vec<char> {
        text.chars()
            .map(|c| {
                if c == '-' {
                    '_'
                } else {
                    c.to_ascii_lowercase()
                }
            })
            .collect()
    };
    let (a, b) = (letters(a), letters(b));
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let at = |row: &[usize], place: usize| row.get(place).copied().unwrap_or(usize::MAX / 2);
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut cost = (at(&last, j + 1) + 1)
                .min(at(&row, j) + 1)
                .min(at(&last, j) + usize::from(x != y));
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                cost = cost.min(at(&before_last, j - 1) + 1);
            }
            row.push(cost);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    at(&last, b.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    #[test]
    fn a_slip_of_the_hand_is_recognised() {
        let known = ["name", "rate", "burst", "keys_max"];
        assert_eq!(nearest("brust", &known), Some("burst"));
        assert_eq!(nearest("Rate", &known), Some("rate"));
        assert_eq!(nearest("keys-max", &known), Some("keys_max"));
        assert_eq!(nearest("colour", &known), None);
        assert_eq!(nearest("x", &known), None);
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let tree = yaml::parse("a.yaml", "brust: 1\nname: [x]\nname: y\nrate:\n").unwrap();
        let mut reader = Reader::new("a.yaml");
        let fields = reader
            .fields("rule", &tree, &["name", "rate", "burst"])
            .unwrap();
        assert!(reader.name("name", fields.get("name").unwrap()).is_none());
        let rate = fields.required(&mut reader, "rate", "20/s").unwrap();
        assert!(reader.text("rate", rate, "`20/s`").is_none());
        assert_eq!(
            reader.finish().to_string(),
            "a.yaml:1:1: unknown key `brust`; did you mean `burst`?\n\
             a.yaml:2:7: `name` is a list, not a single value; write it like `login-attempts`\n\
             a.yaml:3:1: key `name` is given twice, first in line 2; keep one\n\
             a.yaml:4:1: `rate` has no value; write a single value, like `20/s`"
        );
    }
}
