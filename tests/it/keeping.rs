//! What is kept under `state`, and what of it outlives a crash, a damaged file and a disk that takes
//! nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::changes::send;
use super::harness::{Process, Proxy, Setup, Upstream, eventually};

const RULE: &str = r#"{ "name": "r", "when": { "app": "acme" }, "action": "block" }"#;

/// Sends a change; `None` where the process ends before it has answered.
pub(super) fn try_send(
    admin: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> Option<(u16, Value)> {
    let mut stream = TcpStream::connect(admin).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(8))).ok()?;
    let length = body.len();
    let text = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\
         Content-Type: application/json\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, serde_json::from_str(body).ok()?))
}

/// `SplitMix64`, for moments that are not the same each time.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 3
}

/// A change of an operator's rule, and what the rule is after it: its mode, or gone.
struct Change {
    method: &'static str,
    path: String,
    body: String,
    after: Option<&'static str>,
}

impl Change {
    /// Draws a change of one of these rules, or a new rule. Its reason is `why`.
    fn draw(known: &Known, next: &mut u32, why: &str, dice: &mut u64) -> (String, Self) {
        let present: Vec<&String> = known
            .iter()
            .filter(|(_, mode)| mode.is_some())
            .map(|(name, _)| name)
            .collect();
        let which = random(dice) as usize % present.len().max(1);
        let (method, action, after) = match random(dice) % 5 {
            0 => ("DELETE", "", None),
            1 => ("POST", "/shadow", Some("shadow")),
            2 => ("POST", "/enforce", Some("enforce")),
            _ => ("POST", "", Some("enforce")),
        };
        let is_new = (method, action) == ("POST", "");
        if let Some(name) = present.get(which).filter(|_| !is_new) {
            let change = Self {
                method,
                path: format!("/api/v1/rules/{name}{action}?reason={why}"),
                body: String::new(),
                after,
            };
            return ((*name).clone(), change);
        }
        *next += 1;
        let name = format!("r{next:06}");
        let rule = json!({ "name": name, "when": { "app": name }, "action": "log" });
        let change = Self {
            method: "POST",
            path: format!("/api/v1/rules?reason={why}"),
            body: rule.to_string(),
            after: Some("enforce"),
        };
        (name, change)
    }
}

/// The modes of rules; `None` is a rule that is gone.
type Known = BTreeMap<String, Option<String>>;

/// Returns the modes of the rules in force.
fn modes(process: &Process) -> Known {
    let rules = try_send(process.admin, "GET", "/api/v1/rules", "").expect("it serves");
    let rules = rules.1.as_array().cloned().unwrap_or_default();
    let text = |rule: &Value, key: &str| rule.get(key)?.as_str().map(str::to_owned);
    rules
        .iter()
        .filter_map(|rule| Some((text(rule, "name")?, text(rule, "mode"))))
        .collect()
}

/// Returns the reasons in the audit trail, as the API shows it and as the files hold it.
fn reasons(process: &Process) -> (Vec<String>, String) {
    let trail = try_send(process.admin, "GET", "/api/v1/audit?top=1000", "").expect("it serves");
    let trail = trail.1.as_array().cloned().unwrap_or_default();
    let why = |line: &Value| line.get("why")?.as_str().map(str::to_owned);
    let shown = trail.iter().filter_map(why).collect();
    let state = process.folder.path().join("state");
    let files = ["audit.log.2", "audit.log.1", "audit.log"];
    let texts = files.map(|file| fs::read_to_string(state.join(file)).unwrap_or_default());
    (shown, texts.concat())
}

/// Kills the process again and again while rules come, change and go: what was answered as kept is so
/// after the restart and is in the audit trail, and no file is ever half a file.
#[expect(clippy::print_stdout, reason = "its figures are for people")]
fn killed(times: u32) {
    let upstream = Upstream::recording();
    let mut process = Process::start(&Setup::to(upstream.address));
    let mut dice = u64::from(std::process::id());
    let mut known = Known::new();
    let (mut next, mut asked) = (0, 0);
    let mut kept: Vec<String> = Vec::new();
    for round in 0..times {
        let delay = Duration::from_micros(random(&mut dice) % 40_000);
        let killer = process.kill_after(delay);
        let kept_before = kept.len();
        // How the rule is whose last change was not answered, nobody knows.
        let open = loop {
            asked += 1;
            let why = format!("change-{asked:06}");
            let (name, change) = Change::draw(&known, &mut next, &why, &mut dice);
            let answer = try_send(process.admin, change.method, &change.path, &change.body);
            let persisted = answer.and_then(|(_, body)| body.get("persisted")?.as_bool());
            if persisted != Some(true) {
                break name;
            }
            known.insert(name, change.after.map(str::to_owned));
            kept.push(why);
        };
        killer.join().expect("it only waits");
        process.start_again();
        let modes = modes(&process);
        for (name, mode) in known.iter().filter(|(name, _)| **name != open) {
            let found = modes.get(name).and_then(Option::as_ref);
            assert_eq!(found, mode.as_ref(), "round {round}: {name}");
        }
        known.insert(open.clone(), modes.get(&open).cloned().flatten());
        let (shown, files) = reasons(&process);
        for why in kept.iter().skip(kept_before) {
            assert!(shown.contains(why), "round {round}: {why} is not shown");
        }
        for why in &kept {
            assert_eq!(
                files.matches(why.as_str()).count(),
                1,
                "round {round}: {why}"
            );
        }
        let log = process.log();
        for word in ["cannot be used", "cannot be read", "damaged"] {
            assert!(!log.contains(word), "round {round}: {log}");
        }
    }
    // The process that lives may be writing just now.
    eventually("no draft and nothing unusable is left", || {
        let state = fs::read_dir(process.folder.path().join("state")).expect("a state folder");
        let mut names = state.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        !names.any(|name| name.contains("draft") || name.contains("unusable"))
    });
    let kept = kept.len();
    println!("{kept} of {asked} changes were answered as kept, in {times} lives");
    assert!(
        kept >= times as usize / 4,
        "{kept} changes in {times} lives"
    );
}

#[test]
fn no_kill_loses_what_was_answered_as_kept() {
    killed(10);
}

#[test]
#[ignore = "a minute: make soak"]
fn two_hundred_kills_lose_nothing_that_was_answered_as_kept() {
    killed(200);
}

#[test]
fn a_damaged_file_is_set_aside_and_the_rest_is_used() {
    let upstream = Upstream::recording();
    let mut process = Process::start(&Setup::to(upstream.address));
    let added = try_send(process.admin, "POST", "/api/v1/rules", RULE);
    assert_eq!(added.map(|(status, _)| status), Some(201));
    process.signal("TERM");
    process.ended();
    let state = process.folder.path().join("state");
    for file in ["operator-rules.json", "incidents.json", "detector.state"] {
        let path = state.join(file);
        let mut bytes = fs::read(&path).expect(file);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, bytes).expect(file);
    }
    process.start_again();
    for file in ["operator-rules.json", "incidents.json", "detector.state"] {
        assert!(state.join(format!("{file}.unusable")).exists(), "{file}");
        assert!(process.log().contains(file), "{file} is said");
    }
    let (_, trail) = try_send(process.admin, "GET", "/api/v1/audit", "").expect("it serves");
    assert_eq!(trail[0]["what"], "add", "the trail is not damaged");
    let again = try_send(process.admin, "POST", "/api/v1/rules", RULE);
    assert_eq!(again.map(|(status, _)| status), Some(201));
}

/// A folder in the way of the file stands for a disk that takes nothing.
#[test]
fn a_disk_that_takes_nothing_stops_no_change_and_is_caught_up_with() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    let file = proxy.folder.path().join("state/operator-rules.json");
    fs::create_dir_all(file.join("in-the-way")).expect("a folder of ours");
    let added = send(&proxy, "POST", "/api/v1/rules", RULE);
    assert_eq!(
        (added.status(), &added.json()["persisted"]),
        (201, &json!(false))
    );
    let ask = "GET /x HTTP/1.1\r\nHost: a\r\nX-App-Id: acme\r\n\r\n";
    assert_eq!(proxy.ask(ask).status(), 403, "in force all the same");
    assert_eq!(proxy.metric("tidegate_state_writable"), 0);
    assert!(proxy.metric("tidegate_state_write_failures_total") > 0);
    fs::remove_dir_all(&file).expect("a folder of ours");
    eventually("it is written when the disk takes it", || {
        proxy.metric("tidegate_state_writable") == 1
    });
    let kept = fs::read_to_string(&file).expect("it was written");
    assert!(kept.contains("acme"), "{kept}");
}

/// A pipe that nobody reads, where the draft of a file would be, stands for a disk that does not answer.
#[test]
fn a_disk_that_hangs_does_not_hold_up_the_end() {
    let upstream = Upstream::recording();
    let mut process = Process::start(&Setup::to(upstream.address));
    let state = process.folder.path().join("state");
    let pipe = state.join(format!("operator-rules.json.draft-{}", process.id()));
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.is_ok_and(|status| status.success()));
    let (status, added) = try_send(process.admin, "POST", "/api/v1/rules", RULE).expect("in time");
    assert_eq!((status, &added["persisted"]), (201, &json!(false)));
    assert_eq!(process.metric("tidegate_state_writable"), 0);
    process.signal("TERM");
    assert!(process.ended().success());
    let log = process.log();
    let lost = log.lines().find(|line| line.contains("\"lost\""));
    let lost = lost.unwrap_or_else(|| panic!("it is said: {log}"));
    assert!(lost.contains("operator-rules.json"), "{lost}");
    assert!(lost.contains("lines of the audit trail"), "{lost}");
}
