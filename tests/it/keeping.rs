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
fn try_send(admin: SocketAddr, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
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

/// Kills the process again and again while rules come and go: what was answered as kept is there, what
/// was answered as gone is not, and no file is ever half a file.
fn killed(times: u32) {
    let upstream = Upstream::recording();
    let mut process = Process::start(&Setup::to(upstream.address));
    let mut dice = u64::from(std::process::id());
    let mut known: BTreeMap<String, bool> = BTreeMap::new();
    let (mut next, mut kept) = (0, 0);
    for round in 0..times {
        let delay = Duration::from_micros(random(&mut dice) % 40_000);
        let killer = process.kill_after(delay);
        // Which of the rules whose last change was not answered is in force, nobody knows.
        let mut open: Option<String> = None;
        while open.is_none() {
            let present = known.iter().filter(|(_, is_there)| **is_there);
            let oldest = present.map(|(name, _)| name.clone()).next();
            let goes = oldest.filter(|_| random(&mut dice).is_multiple_of(3));
            let is_there = goes.is_none();
            let name = goes.unwrap_or_else(|| {
                next += 1;
                format!("r{next:06}")
            });
            let answer = if is_there {
                let rule = json!({ "name": name, "when": { "app": name }, "action": "log" });
                try_send(process.admin, "POST", "/api/v1/rules", &rule.to_string())
            } else {
                try_send(
                    process.admin,
                    "DELETE",
                    &format!("/api/v1/rules/{name}"),
                    "",
                )
            };
            let persisted = answer.and_then(|(_, body)| body.get("persisted")?.as_bool());
            if persisted == Some(true) {
                known.insert(name, is_there);
                kept += 1;
            } else {
                open = Some(name);
            }
        }
        killer.join().expect("it only waits");
        process.start_again();
        let rules = try_send(process.admin, "GET", "/api/v1/rules", "")
            .expect("it serves")
            .1;
        let names: Vec<&str> = rules
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|rule| rule.get("name")?.as_str())
            .collect();
        for (name, is_there) in &known {
            if open.as_ref() != Some(name) {
                assert_eq!(
                    names.contains(&name.as_str()),
                    *is_there,
                    "round {round}: {name}"
                );
            }
        }
        if let Some(name) = open {
            let is_there = names.contains(&name.as_str());
            known.insert(name, is_there);
        }
        let log = process.log();
        assert!(!log.contains("cannot be used"), "round {round}: {log}");
        let trail = try_send(process.admin, "GET", "/api/v1/audit?top=1", "");
        assert_eq!(trail.expect("it serves").0, 200);
    }
    let left: Vec<_> = fs::read_dir(process.folder.path().join("state"))
        .expect("a state folder")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.contains("draft") || name.contains("unusable"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(kept >= times / 4, "{kept} changes in {times} lives");
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
