//! Nothing waits or grows for ever, read from the source: every queue, channel, map, buffer, task and timer
//! has a row in `docs/BOUNDS.md` that says how far it goes, and every row there is still true of a place.
//!
//! The test sees to it that nothing is left out. Whether a bound is right, people see who read the row.

mod numbers;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use numbers::{Amount, amount_in_code, amount_in_words};
use source::{KINDS, code_of, has, holders_in, kinds_in};

const DOCUMENT: &str = "docs/BOUNDS.md";

/// Commands that end, and what they are made of. `run` does not end.
const LEFT_OUT: [&str; 4] = [
    "src/cli",
    "src/demo",
    "engine/src/simulate",
    "engine/src/diagnose",
];
const NOT_LEFT_OUT: &str = "src/cli/run.rs";

/// What has no bound by its nature, and what to take instead.
const FORBIDDEN: [(&str, &str); 5] = [
    ("unbounded_channel", "`mpsc::channel` with a number"),
    ("unbounded(", "a channel with a number"),
    ("thread::park()", "`park_timeout`"),
    (".wait(&mut", "`wait_until` or `wait_for` with a limit"),
    ("Duration::MAX", "a time after which somebody is told"),
];

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

/// Returns the code of every file that counts, by its path.
fn sources() -> BTreeMap<String, String> {
    fn walk(path: &Path, files: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(path).expect("a folder of this repository") {
            let path = entry.expect("an entry of it").path();
            let name = path.to_string_lossy().into_owned();
            let is_left_out = LEFT_OUT.iter().any(|part| {
                let rest = name.strip_prefix(part);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '.']))
            });
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

/// Walks what stands between backticks, each with the text behind it.
fn quoted_with_rest(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let parts: Vec<&str> = text.split('`').skip(1).collect();
    let pairs: Vec<(&str, &str)> = parts
        .chunks(2)
        .map(|pair| {
            (
                pair.first().copied().unwrap_or_default(),
                pair.get(1).copied().unwrap_or_default(),
            )
        })
        .collect();
    pairs.into_iter()
}

/// Returns what a constant is: in this file, or else in every file that has one of that name.
fn amounts_of(name: &str, file: &str, sources: &BTreeMap<String, String>) -> Vec<Amount> {
    let here = sources
        .get(file)
        .and_then(|code| amount_in_code(name, code));
    if let Some(found) = here {
        return vec![found];
    }
    let all = sources.values();
    all.filter_map(|code| amount_in_code(name, code)).collect()
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
        for name in holders_in(code) {
            if !of_file().any(|row| quoted(row.what).any(|word| word == name)) {
                wrong.push(format!(
                    "{file} holds something in `{name}` that no row is about: name it in the row of its \
                     kind in {DOCUMENT}, with its bound"
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
        word.len() > 2
            && word.starts_with(|first: char| first.is_ascii_uppercase())
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
        for (word, words) in quoted_with_rest(row.bound).filter(|(word, _)| is_constant(word)) {
            let found = amounts_of(word, row.file, sources);
            if found.is_empty() {
                wrong.push(format!(
                    "{at}: there is no constant `{word}` any more: name the one that bounds it now"
                ));
            }
            let is = |written| {
                let mut found = found.iter();
                found.any(|amount| *amount == written || *amount == Amount::Unknown)
            };
            if let Some(written) = amount_in_words(words)
                && !found.is_empty()
                && !is(written)
            {
                let now: Vec<String> = found.iter().map(ToString::to_string).collect();
                wrong.push(format!(
                    "{at}: `{word}` is not {written} but {}: write what it is now",
                    now.join(" or ")
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
fn a_bound_that_was_changed_and_a_second_holder_of_a_kind_are_found() {
    let code = "struct A {\n    old: VecDeque<u8>,\n}\nconst A_MAX: usize = 16 * 1024;";
    let row = "| `src/a.rs` | `VecDeque` `old` | `A_MAX` 16 KiB, then nothing |";
    check(code, row, &[]);
    let larger = code.replace("16 *", "32 *");
    check(&larger, row, &["`A_MAX` is not 16384 but 32768"]);
    let second = code.replace('}', "    pub(crate) new: Mutex<Vec<VecDeque<u8>>>,\n}");
    let wanted = [
        "src/a.rs has a `Mutex`",
        "src/a.rs has a `buffer`",
        "in `new`",
    ];
    check(&second, row, &wanted);
    // Locals and what is borrowed end with the call.
    let locals =
        format!("{code}\nfn f(\n    a: &VecDeque<u8>,\n) {{\n    let b = VecDeque::new();\n}}");
    check(&locals, row, &[]);
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
