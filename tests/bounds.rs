//! Nothing waits or grows for ever, read from the source: every queue, channel, map, buffer, task and timer
//! has a row in `docs/BOUNDS.md` that says how far it goes, and every row there is still true of a place.
//!
//! The test sees to it that nothing is left out. Whether a bound is right, people see who read the row.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const DOCUMENT: &str = "docs/BOUNDS.md";

/// Commands that end, and what they are made of. `run` does not end.
const LEFT_OUT: [&str; 4] = [
    "src/cli",
    "src/demo",
    "engine/src/simulate",
    "engine/src/diagnose",
];
const NOT_LEFT_OUT: &str = "src/cli/run.rs";

/// What must have a row, by the word that stands for it there, and how it is recognised. A mark that begins
/// with a letter is the beginning of a name.
const KINDS: [(&str, &[&str]); 16] = [
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

/// What holds a value that several may change, and what of it grows.
const HOLDERS: [&str; 4] = ["Cell<", "Mutex<", "RwLock<", "ArcSwap<"];
const GROWING: [&str; 3] = ["Vec<", "String", "BytesMut"];

/// What has no bound by its nature, and what to take instead.
const FORBIDDEN: [(&str, &str); 5] = [
    ("unbounded_channel", "`mpsc::channel` with a number"),
    ("unbounded(", "a channel with a number"),
    ("thread::park()", "`park_timeout`"),
    (".wait(&mut", "`wait_until` or `wait_for` with a limit"),
    ("Duration::MAX", "a time after which somebody is told"),
];

/// Returns the code of a file without comments, imports and modules of tests.
fn code_of(text: &str) -> String {
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
fn has(code: &str, mark: &str) -> bool {
    let is_name = mark.starts_with(|first: char| first.is_alphabetic());
    code.match_indices(mark).any(|(at, _)| {
        let before = code.get(..at).unwrap_or_default();
        let follows_name =
            before.ends_with(|last: char| last.is_alphanumeric() || last == '_' || last == '.');
        !is_name || !(follows_name || before.ends_with("fn "))
    })
}

/// Returns whether code makes the standard library's channel, which takes no number.
fn has_endless_channel(code: &str) -> bool {
    code.match_indices("channel").any(|(at, word)| {
        let before = code.get(..at).unwrap_or_default();
        let after = code.get(at + word.len()..).unwrap_or_default();
        let after = match after.strip_prefix("::<") {
            Some(kind) => kind.split_once(">(").map_or("", |(_, rest)| rest),
            None => after.strip_prefix('(').unwrap_or_default(),
        };
        let is_another = before.ends_with("oneshot::")
            || before.ends_with(|last: char| last.is_alphanumeric() || last == '_');
        after.starts_with(')') && !is_another
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

fn kinds_in(code: &str) -> BTreeSet<&'static str> {
    let found = |marks: &[&str]| marks.iter().any(|mark| has(code, mark));
    KINDS
        .iter()
        .filter(|(kind, marks)| found(marks) || *kind == "buffer" && has_buffer(code))
        .map(|(kind, _)| *kind)
        .collect()
}

/// Returns the code of every file that counts, by its path.
fn sources() -> BTreeMap<String, String> {
    fn walk(path: &Path, files: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(path).expect("a folder of this repository") {
            let path = entry.expect("an entry of it").path();
            let name = path.to_string_lossy().into_owned();
            let is_left_out = LEFT_OUT.iter().any(|part| name.starts_with(part));
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !name.ends_with("/tests.rs")
                && (!is_left_out || name == NOT_LEFT_OUT)
            {
                let text = fs::read_to_string(&path).expect("a file of this repository");
                files.insert(name, code_of(&text));
            }
        }
    }
    let mut files = BTreeMap::new();
    walk(Path::new("src"), &mut files);
    walk(Path::new("engine/src"), &mut files);
    assert!(files.len() > 100, "the source is not where it was");
    files
}

/// A row of the document: file, what, and bound.
struct Row<'d> {
    line: usize,
    file: &'d str,
    what: &'d str,
    bound: &'d str,
}

fn rows(document: &str) -> Vec<Row<'_>> {
    let numbered = document.lines().enumerate();
    let cells = numbered.filter_map(|(at, line)| {
        let mut cells = line.strip_prefix('|')?.strip_suffix('|')?.split('|');
        let (file, what, bound) = (cells.next()?, cells.next()?, cells.next()?);
        let file = file.trim().strip_prefix('`')?.strip_suffix('`')?;
        Some(Row {
            line: at + 1,
            file,
            what: what.trim(),
            bound: bound.trim(),
        })
    });
    cells.collect()
}

/// Walks what stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Says what a source does that the document does not say, and the other way round.
fn differences(sources: &BTreeMap<String, String>, document: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let rows = rows(document);
    for (file, code) in sources {
        let of_file = || rows.iter().filter(|row| row.file == file);
        for kind in kinds_in(code) {
            if !of_file().any(|row| quoted(row.what).any(|word| word == kind)) {
                wrong.push(format!(
                    "{file} has a `{kind}` without a bound: add `| \u{60}{file}\u{60} | \u{60}{kind}\u{60} what it is for | its \
                     bound, and what happens there |` to {DOCUMENT}"
                ));
            }
        }
        for (mark, instead) in FORBIDDEN {
            if has(code, mark) {
                wrong.push(format!(
                    "{file} has `{mark}`, which has no bound: take {instead}"
                ));
            }
        }
    }
    let endless = sources.iter().filter(|(_, code)| has_endless_channel(code));
    wrong.extend(endless.map(|(file, _)| {
        format!("{file} has `channel()`, which has no bound: take `sync_channel` with a number")
    }));
    let is_constant = |word: &str| {
        word.contains('_')
            && word.chars().all(|letter| {
                letter.is_ascii_uppercase() || letter.is_ascii_digit() || letter == '_'
            })
    };
    for row in &rows {
        let at = format!("{DOCUMENT}:{}", row.line);
        let Some(code) = sources.get(row.file) else {
            wrong.push(format!(
                "{at}: there is no {} any more: take the row out",
                row.file
            ));
            continue;
        };
        let kinds = kinds_in(code);
        for word in quoted(row.what) {
            let is_kind = KINDS.iter().any(|(kind, _)| *kind == word);
            if is_kind && !kinds.contains(word) || !is_kind && !code.contains(word) {
                wrong.push(format!(
                    "{at}: {} has no `{word}` any more: mend the row or take it out",
                    row.file
                ));
            }
        }
        if row.bound.is_empty() {
            wrong.push(format!("{at}: the bound is missing: say how far it goes"));
        }
        for word in quoted(row.bound).filter(|word| is_constant(word)) {
            if !sources.values().any(|code| has(code, &format!("{word}:"))) {
                wrong.push(format!(
                    "{at}: there is no constant `{word}` any more: name the one that bounds it now"
                ));
            }
        }
    }
    wrong
}

#[test]
fn everything_that_waits_or_grows_has_its_bound_in_the_document() {
    let document = fs::read_to_string(DOCUMENT).expect("the document of bounds");
    let wrong = differences(&sources(), &document);
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[track_caller]
fn check(code: &str, document: &str, wanted: &[&str]) {
    let sources = BTreeMap::from([("src/a.rs".to_owned(), code_of(code))]);
    let found = differences(&sources, document);
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
    for (found, wanted) in found.iter().zip(wanted) {
        assert!(found.contains(wanted), "{found} does not say {wanted}");
    }
}

#[test]
fn what_has_no_row_is_found_and_what_has_no_source_too() {
    let code =
        "use std::collections::VecDeque;\nstruct A { a: VecDeque<u8> }\nconst A_MAX: usize = 1;";
    check(
        code,
        "",
        &["src/a.rs has a `VecDeque` without a bound: add `| `src/a.rs` |"],
    );
    check(code, "| `src/a.rs` | `VecDeque` lines | `A_MAX` 1 |", &[]);
    check(
        code,
        "| `src/a.rs` | `VecDeque` lines | `B_MAX` 1 |",
        &["no constant `B_MAX`"],
    );
    check(
        "",
        "| `src/a.rs` | `VecDeque` lines | 1 |",
        &["docs/BOUNDS.md:1: src/a.rs has no `VecDeque` any more"],
    );
    check(
        "struct A { lines: Vec<u8> }",
        "| `src/a.rs` | `lines` | 1 |\n| `src/a.rs` | `words` | 1 |",
        &["docs/BOUNDS.md:2: src/a.rs has no `words` any more"],
    );
    check(
        "",
        "| `src/b.rs` | `Mutex` | 1 |",
        &["no src/b.rs any more"],
    );
    check("", "| `src/a.rs` | words | |", &["the bound is missing"]);
}

#[test]
fn each_kind_is_recognised_and_what_only_looks_like_it_is_not() {
    for (code, kind) in [
        ("let (a, b) = mpsc::channel(1);", "channel"),
        ("let (a, b) = sync_channel::<()>(0);", "channel"),
        ("x: Arc<Mutex<u8>>,", "Mutex"),
        ("x: RefCell<Vec<u8>>,", "buffer"),
        ("x: ArcSwap<Vec<u8>>,", "buffer"),
        ("x: AHashSet<u8>,", "HashMap"),
        ("tokio::time::sleep(a).await;", "timer"),
        ("b.recv_timeout(a);", "timeout"),
        ("while b.changed().await.is_ok() {}", "wait"),
        ("std::thread::Builder::new()", "thread"),
        ("a.blocking_send(b);", "wait"),
    ] {
        assert!(kinds_in(&code_of(code)).contains(kind), "{code}");
    }
    for code in [
        "use std::collections::HashMap;",
        "use std::{\n    collections::HashMap,\n};",
        "// a HashMap",
        "#[cfg(test)]\nmod tests {\n    fn f(a: HashMap<u8, u8>) {\n    }\n}",
        "rate.interval();",
        "pub fn interval(self) {}",
        "x.set_write_timeout(a);",
        "words.join(\", \");",
        "x: RefCell<u8>,",
    ] {
        assert_eq!(kinds_in(&code_of(code)), BTreeSet::new(), "{code}");
    }
    let after = "#[cfg(test)]\nmod tests {\n}\nfn f(a: HashMap<u8, u8>) {}";
    assert!(kinds_in(&code_of(after)).contains("HashMap"));
}

#[test]
fn what_has_no_bound_by_its_nature_is_refused_with_or_without_a_row() {
    let row = "| `src/a.rs` | `channel`, `wait`, `timer` | 1 |";
    for (code, mark) in [
        ("std::sync::mpsc::channel();", "channel()"),
        ("mpsc::channel::<Vec<u8>>();", "channel()"),
        ("let (a, b) = channel();", "channel()"),
        ("mpsc::unbounded_channel();", "unbounded_channel"),
        ("a.wait(&mut b);", ".wait(&mut"),
        ("sleep(Duration::MAX);", "Duration::MAX"),
    ] {
        let sources = BTreeMap::from([("src/a.rs".to_owned(), code.to_owned())]);
        let found = differences(&sources, row).join("\n");
        assert!(found.contains(&format!("src/a.rs has `{mark}`")), "{found}");
    }
    for code in [
        "oneshot::channel();",
        "mpsc::channel(1);",
        "mpsc::channel::<()>(1);",
        "sync_channel(0);",
    ] {
        assert!(!has_endless_channel(code), "{code}");
    }
}
