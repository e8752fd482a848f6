//! Shows on a terminal what somebody else wrote. A client that names itself with an escape sequence must
//! not move the cursor of whoever looks at its incident.

use std::fmt;

use serde_json::Value;

/// Text that a client or a file chose, for one line of a terminal: what steers a terminal or turns the
/// reading direction around is escaped.
pub(super) struct Plain<'a>(pub(super) &'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|letter| show(letter, f))
    }
}

/// The same of several lines.
pub(super) struct PlainLines<'a>(pub(super) &'a str);

impl fmt::Display for PlainLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|letter| match letter {
            '\n' => f.write_str("\n"),
            letter => show(letter, f),
        })
    }
}

fn show(letter: char, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if steers(letter) {
        write!(f, "{}", letter.escape_default())
    } else {
        write!(f, "{letter}")
    }
}

/// Control characters, line ends of Unicode, and what changes the direction of reading.
fn steers(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns JSON over several lines. Outside of texts it has no characters that steer a terminal but the
/// ends of lines, and in texts each can be written as an escape.
pub(super) fn json_text(value: &Value) -> String {
    let text = format!("{value:#}");
    let letters = text.chars().map(|letter| {
        if letter != '\n' && steers(letter) {
            format!("\\u{:04x}", u32::from(letter))
        } else {
            letter.to_string()
        }
    });
    letters.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NASTY: &str = "a\u{1b}]0;owned\u{7}\u{9b}2J\r\u{7f}\u{202e}b\nc";

    #[test]
    fn nothing_that_steers_a_terminal_is_shown() {
        let line = Plain(NASTY).to_string();
        let lines = PlainLines(NASTY).to_string();
        assert!(!line.chars().any(steers), "{line:?}");
        assert_eq!(line.replace("\\n", "\n"), lines);
        assert!(!lines.replace('\n', "").chars().any(steers), "{lines:?}");
        assert_eq!(Plain("é 日本 🎈").to_string(), "é 日本 🎈");
    }

    #[test]
    fn json_means_what_it_meant() {
        let value = json!({ NASTY: [NASTY, 1, null, "é"] });
        let text = json_text(&value);
        assert!(!text.replace('\n', "").chars().any(steers), "{text:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }
}
