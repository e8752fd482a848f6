//! What of the source must have a bound, and how it is recognised.

use std::collections::BTreeSet;

/// What must have a row, by the word that stands for it there, and how it is recognised. A mark that begins
/// with a letter is the beginning of a name.
pub(crate) const KINDS: [(&str, &[&str]); 16] = [
    ("VecDeque", &["VecDeque"]),
    ("HashMap", &["HashMap", "HashSet", "AHashMap", "AHashSet"]),
    ("BTreeMap", &["BTreeMap", "BTreeSet"]),
    (
        "collection",
        &[
            "BinaryHeap",
            "LinkedList",
            "IndexMap",
            "DashMap",
            "LruCache",
            "Slab<",
        ],
    ),
    (
        "channel",
        &["mpsc::channel", "sync_channel", "broadcast::channel"],
    ),
    ("oneshot", &["oneshot::channel"]),
    ("watch", &["watch::channel"]),
    ("Semaphore", &["Semaphore"]),
    ("JoinSet", &["JoinSet"]),
    ("Mutex", &["Mutex<", "RwLock<"]),
    (
        "thread",
        &[
            "thread::Builder",
            "thread::spawn",
            "thread::scope",
            "spawn_blocking(",
            "non_blocking(",
        ],
    ),
    (
        "task",
        &["spawn_local(", "tokio::spawn(", "task::spawn(", "spawn_on("],
    ),
    (
        "timer",
        &["interval(", "interval_at(", "sleep(", "sleep_until("],
    ),
    (
        "timeout",
        &["timeout(", "timeout_at(", ".recv_timeout(", ".wait_until("],
    ),
    (
        "wait",
        &[
            ".recv()",
            ".recv().await",
            ".changed().await",
            ".changed(),",
            ".notified()",
            ".wait_for(",
            ".acquire_owned(",
            ".acquire(",
            ".accept()",
            ".join()",
            ".join_next()",
            ".blocking_send(",
            ".blocking_recv(",
            "lookup_host(",
            "future::pending",
            "Condvar",
        ],
    ),
    ("buffer", &[]),
];

/// Of these, what holds things: each place has a name, which must be in a row.
const HOLDING: [&str; 6] = [
    "VecDeque",
    "HashMap",
    "BTreeMap",
    "collection",
    "Semaphore",
    "JoinSet",
];

/// What holds a value that several may change, and what of it grows.
const HOLDERS: [&str; 4] = ["Cell<", "Mutex<", "RwLock<", "ArcSwap<"];
const GROWING: [&str; 3] = ["Vec<", "String", "BytesMut"];

/// Returns the code of a file without comments, imports and modules of tests.
pub(crate) fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let begins_tests = line == "#[cfg(test)]"
            && lines
                .peek()
                .is_some_and(|next| next.trim_start_matches("pub(crate) ").starts_with("mod "));
        let skipped_until = if begins_tests {
            let is_here = lines.next().is_some_and(|next| next.ends_with('{'));
            is_here.then_some("}")
        } else if line.trim_start().starts_with("use ") || line.starts_with("pub use ") {
            (!line.ends_with(';')).then_some("};")
        } else {
            if !line.trim_start().starts_with("//") {
                code.push_str(line);
                code.push('\n');
            }
            None
        };
        if let Some(end) = skipped_until {
            let indent = line.len() - line.trim_start().len();
            let _rest = lines
                .by_ref()
                .find(|next| next.trim_start() == end && next.len() == indent + end.len());
        }
    }
    code
}

/// Returns whether code has a mark; one that begins with a letter not in the middle of a name, nor as the
/// name of a method or of a function that is being defined.
pub(crate) fn has(code: &str, mark: &str) -> bool {
    let is_name = mark.starts_with(|first: char| first.is_alphabetic());
    code.match_indices(mark).any(|(at, _)| {
        let before = code.get(..at).unwrap_or_default();
        let follows_name =
            before.ends_with(|last: char| last.is_alphanumeric() || last == '_' || last == '.');
        !is_name || !(follows_name || before.ends_with("fn "))
    })
}

/// Returns whether a line declares something that several may let grow.
fn has_buffer(code: &str) -> bool {
    code.lines().any(|line| {
        HOLDERS.iter().any(|holder| {
            line.split_once(holder)
                .is_some_and(|(_, held)| GROWING.iter().any(|growing| held.contains(growing)))
        })
    })
}

pub(crate) fn kinds_in(code: &str) -> BTreeSet<&'static str> {
    let found = |marks: &[&str]| marks.iter().any(|mark| has(code, mark));
    KINDS
        .iter()
        .filter(|(kind, marks)| found(marks) || *kind == "buffer" && has_buffer(code))
        .map(|(kind, _)| *kind)
        .collect()
}

/// Returns the names of fields and statics that hold such a thing: what lives longer than a call.
pub(crate) fn holders_in(code: &str) -> BTreeSet<&str> {
    code.lines().filter_map(holder_in).collect()
}

fn holder_in(line: &str) -> Option<&str> {
    let mut line = line.trim_start();
    for word in ["pub(crate) ", "pub(super) ", "pub ", "static "] {
        line = line.strip_prefix(word).unwrap_or(line);
    }
    let (name, kind) = line.split_once(": ")?;
    let is_name = name
        .chars()
        .all(|letter| letter.is_alphanumeric() || letter == '_');
    // What is borrowed is somebody else's, and ends with the call.
    let is_field =
        is_name && !name.is_empty() && !kind.starts_with('&') && kind.ends_with([',', ';']);
    let holds = KINDS.iter().filter(|(kind, _)| HOLDING.contains(kind));
    let holds = holds
        .flat_map(|(_, marks)| *marks)
        .any(|mark| has(kind, mark));
    (is_field && (holds || has_buffer(kind))).then_some(name)
}
