//! The whole life of a detected rule, over real sockets: a loop is found, suggested, approved, seen by who
//! is refused, promoted into a file, revoked; and it outlives the process.

#![expect(
    clippy::indexing_slicing,
    reason = "of JSON: what is not there is null, and never a panic"
)]

use std::net::SocketAddr;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::changes::send;
use super::harness::{
    Description, Message, Process, Proxy, Setup, Upstream, Wire, eventually, tidegate,
};
use super::keeping::try_send;

/// A request of a device behind an address of its own.
fn request(app: &str, number: u32) -> String {
    format!(
        "GET /x HTTP/1.1\r\nHost: a\r\nX-App-Id: {app}\r\nX-Device: {app}-{number}\r\n\
         X-Forwarded-For: 198.51.100.{number}\r\n\r\n"
    )
}

/// Twenty clients that ask as usual, and loops as soon as they are let loose.
struct World {
    loops: AtomicBool,
    is_over: AtomicBool,
}

/// Ends the clients, also when a test fails.
struct End<'a>(&'a World);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

impl World {
    fn new() -> Self {
        Self {
            loops: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        }
    }

    fn calm(&self, address: SocketAddr) {
        let mut client = Wire::connect(address);
        while !self.is_over.load(Ordering::Relaxed) {
            for number in 1..=20 {
                client.exchange(request("calm", number));
                std::thread::sleep(Duration::from_millis(15));
            }
        }
    }

    fn looping(&self, address: SocketAddr) {
        while !self.loops.load(Ordering::Relaxed) && !self.is_over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut client = Wire::connect(address);
        while !self.is_over.load(Ordering::Relaxed) {
            for number in 101..=120 {
                client.exchange(request("loop", number));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn rule(proxy: &Proxy, name: &str) -> Value {
    proxy.admin(&format!("/api/v1/rules/{name}")).json()
}

/// Returns the incident of the loop; null while there is none.
fn incident(proxy: &Proxy) -> Value {
    let incidents = proxy.admin("/api/v1/incidents").json();
    let looping = Value::from("loop");
    let of_the_loop = |incident: &&Value| incident.pointer("/source/app") == Some(&looping);
    let found = incidents
        .as_array()
        .and_then(|all| all.iter().find(of_the_loop));
    found.cloned().unwrap_or_default()
}

fn timeline(proxy: &Proxy) -> Vec<String> {
    let incident = incident(proxy);
    let moments = incident.pointer("/timeline").and_then(Value::as_array);
    let word = |moment: &Value| moment.pointer("/what")?.as_str().map(str::to_owned);
    moments.into_iter().flatten().filter_map(word).collect()
}

const SUGGESTING: Modes = Modes {
    service: "services: [{ name: chat, match: [{ path: / }], upstream: chat, detection: { mode: suggest } }]",
    detection: "mode: suggest, warmup: 1s",
};

const OFF: Modes = Modes {
    service: "services: [{ name: chat, match: [{ path: / }], upstream: chat, detection: { mode: off } }]",
    detection: "mode: off, warmup: 1s",
};

/// What the detector may do.
struct Modes {
    service: &'static str,
    detection: &'static str,
}

impl Modes {
    fn setup(&self, upstream: SocketAddr) -> Setup<'static> {
        Setup {
            trusted_proxies: "[127.0.0.0/8]",
            services: self.service,
            detection: self.detection,
            ..Setup::to(upstream)
        }
    }
}

/// A detected rule, and the description of what is answered about it.
struct Described<'a> {
    proxy: &'a Proxy,
    name: &'a str,
    description: Description,
}

impl<'a> Described<'a> {
    fn new(proxy: &'a Proxy, name: &'a str) -> Self {
        let description = Description::of(proxy);
        Self {
            proxy,
            name,
            description,
        }
    }

    #[track_caller]
    fn holds(&self, method: &str, path: &str, answer: &Message) {
        let path = format!("/api/v1/{path}");
        self.description.holds(method, &path, answer);
    }

    fn post(&self, what: &str) -> Message {
        let path = format!("/api/v1/rules/{}/{what}", self.name);
        send(self.proxy, "POST", &path, "")
    }

    /// Rules and incidents are what is described while there are some.
    #[track_caller]
    fn shown(&self, incident: &Value) {
        for (path, at) in [
            ("rules", "rules".to_owned()),
            ("rules/{name}", format!("rules/{}", self.name)),
            ("incidents", "incidents".to_owned()),
            ("incidents/{id}", format!("incidents/{incident}")),
        ] {
            let answer = self.proxy.admin(&format!("/api/v1/{at}"));
            assert_eq!(answer.status(), 200, "{at}");
            self.holds("get", path, &answer);
        }
    }

    /// What is tried changes nothing, and what never acted is no file that acts.
    #[track_caller]
    fn tried(&self) {
        let would_be = self.post("promote?dry_run=true");
        self.holds("post", "rules/{name}/promote", &would_be);
        let yaml = would_be.json()["yaml"].to_string();
        assert!(yaml.contains("mode: shadow"), "{would_be:?}");
        assert_eq!(would_be.json()["needs_force"], false, "{would_be:?}");
        let tried = self.post("approve?dry_run=true");
        self.holds("post", "rules/{name}/approve", &tried);
        assert_eq!(tried.status(), 200, "{tried:?}");
        // The flood is most of what passes, and is not normal.
        assert_eq!(tried.json()["needs_force"], false, "{tried:?}");
        assert_eq!(rule(self.proxy, self.name)["mode"], "shadow");
    }

    /// Promotes it twice at once: one makes the file, the other is told why not. Returns what the one says.
    #[track_caller]
    fn promoted_twice_at_once(&self) -> Message {
        let promote = || self.post("promote?name=acme-loop");
        let mut answers = std::thread::scope(|scope| {
            let other = scope.spawn(promote);
            [promote(), other.join().expect("no panics here")]
        });
        answers.sort_by_key(Message::status);
        for answer in &answers {
            self.holds("post", "rules/{name}/promote", answer);
        }
        let statuses = answers.each_ref().map(Message::status);
        // 404: the file was in force, and the detected rule gone, before the other one came.
        assert!(matches!(statuses, [201, 409 | 404]), "{answers:?}");
        let [promoted, _] = answers;
        promoted
    }

    /// A folder in the way of the draft stands for one that cannot be written: the text is in the answer.
    #[track_caller]
    fn not_written(&self) {
        let rules = self.proxy.folder.path().join("rules");
        let draft = rules.join(".acme-loop.yaml.draft");
        std::fs::create_dir_all(draft.join("in-the-way")).expect("a folder of ours");
        let not_written = self.post("promote?name=acme-loop");
        self.holds("post", "rules/{name}/promote", &not_written);
        assert_eq!(not_written.status(), 507, "{not_written:?}");
        let yaml = not_written.json()["yaml"].to_string();
        assert!(yaml.contains("name: acme-loop"), "{not_written:?}");
        // The command prints the text, and what is wrong elsewhere.
        let admin = format!("http://{}", self.proxy.running.admin_address);
        let promote = ["rules", "--admin", &admin, "promote", self.name];
        let command = |more: &[&str]| {
            let Output {
                status,
                stdout,
                stderr,
            } = tidegate(&[&promote[..], &["--as", "acme-loop"], more].concat());
            let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
            (status.code(), text(stdout), text(stderr))
        };
        let (code, said, complained) = command(&[]);
        assert_eq!(code, Some(1), "{said}{complained}");
        assert!(
            complained.contains("the file was not written"),
            "{complained}"
        );
        let (code, printed, complained) = command(&["--print"]);
        assert_eq!((code, &*complained), (Some(0), ""));
        for text in [said, printed] {
            assert!(text.starts_with("# Promoted from detected-"), "{text}");
            assert!(text.contains("\nrules:\n  - name: acme-loop\n"), "{text}");
        }
        std::fs::remove_dir_all(&draft).expect("a folder of ours");
        assert!(!rules.join("acme-loop.yaml").exists());
    }
}

#[test]
fn a_suggested_rule_is_approved_promoted_and_the_honest_are_served_all_the_time() {
    let upstream = Upstream::recording();
    let proxy = SUGGESTING.setup(upstream.address).start();
    let world = World::new();
    std::thread::scope(|scope| {
        let _end = End(&world);
        scope.spawn(|| world.calm(proxy.address()));
        scope.spawn(|| world.looping(proxy.address()));
        eventually("what is normal is known", || {
            let status = proxy.admin("/api/v1/status").json();
            status["detection"]["trained_s"].as_f64() > Some(4.0)
        });
        let calm = |number| proxy.ask(request("calm", number)).status();
        let of_the_loop = || proxy.ask(request("loop", 110));
        world.loops.store(true, Ordering::Relaxed);

        eventually("a rule is suggested", || {
            timeline(&proxy).contains(&"suggested".to_owned())
        });
        let (id, name) = (
            incident(&proxy)["id"].clone(),
            incident(&proxy)["rule"].clone(),
        );
        let name = name.as_str().expect("its rule has a name");
        let post = |what: &str| send(&proxy, "POST", &format!("/api/v1/rules/{name}/{what}"), "");
        let suggested = rule(&proxy, name);
        assert_eq!(suggested["when"]["app"], "loop", "{suggested}");
        assert_eq!(suggested["mode"], "shadow");
        assert_eq!(
            (calm(1), of_the_loop().status()),
            (200, 200),
            "it only counts"
        );
        eventually("it counts", || {
            rule(&proxy, name)["shadow_matches"].as_u64() > Some(0)
        });

        let described = Described::new(&proxy, name);
        described.shown(&id);
        described.tried();
        let approved = post("approve");
        described.holds("post", "rules/{name}/approve", &approved);
        assert_eq!(approved.status(), 200, "{approved:?}");
        eventually("the loop is blocked", || {
            let is_whole = rule(&proxy, name)["action"] == "block";
            is_whole && of_the_loop().status() == 403
        });
        assert_eq!(calm(2), 200);

        let refused = of_the_loop();
        let request = refused.header("x-request-id").expect("each answer has one");
        let asked = format!("{{ \"request_id\": \"{request}\" }}");
        let explained = send(&proxy, "POST", "/api/v1/explain", &asked);
        described.holds("post", "explain", &explained);
        let explained = explained.json();
        assert_eq!(explained["rule"], name, "{explained}");
        assert_eq!(explained["incident"], id, "{explained}");

        described.not_written();
        let promoted = described.promoted_twice_at_once();
        assert_eq!(promoted.json()["persisted"], true);
        eventually("the file's rule is in force", || {
            rule(&proxy, "acme-loop")["origin"] == "file"
        });
        eventually("the detected one has given way", || {
            proxy.admin(&format!("/api/v1/rules/{name}")).status() == 404
        });
        assert_eq!((calm(3), of_the_loop().status()), (200, 403));
        let mine = send(&proxy, "DELETE", "/api/v1/rules/acme-loop", "");
        assert_eq!(mine.status(), 409, "it stands in a file: {mine:?}");
        let seen = timeline(&proxy);
        assert_eq!(seen.first().map(String::as_str), Some("surge"), "{seen:?}");
        assert!(seen.contains(&"approved".to_owned()), "{seen:?}");
    });
    let what = |line: &Value| line["what"].as_str().unwrap_or_default().to_owned();
    let trail = proxy.admin("/api/v1/audit");
    Description::of(&proxy).holds("get", "/api/v1/audit", &trail);
    let trail = trail.json();
    let steps: Vec<_> = trail.as_array().expect("a list").iter().map(what).collect();
    assert_eq!(steps, ["approve", "promote"]);
    let refused = "tidegate_requests_total{service=\"chat\",verdict=\"limit\"}";
    assert_eq!(proxy.metric(refused), 0);
}

/// The control of the above: with `mode: off` the same traffic meets no rule.
#[test]
fn without_detection_the_same_loop_meets_no_rule() {
    let upstream = Upstream::recording();
    let proxy = OFF.setup(upstream.address).start();
    let world = World::new();
    std::thread::scope(|scope| {
        let _end = End(&world);
        scope.spawn(|| world.calm(proxy.address()));
        scope.spawn(|| world.looping(proxy.address()));
        world.loops.store(true, Ordering::Relaxed);
        let forwarded = "tidegate_requests_total{service=\"chat\",verdict=\"forward\"}";
        proxy.metric_reaches(forwarded, 3_000);
        assert_eq!(proxy.ask(request("loop", 110)).status(), 200);
    });
    assert_eq!(proxy.admin("/api/v1/rules").json(), serde_json::json!([]));
    assert_eq!(timeline(&proxy), Vec::<String>::new());
}

/// The process, asked over its sockets.
impl Process {
    fn get(&self, path: &str) -> Value {
        let answer = try_send(self.admin, "GET", path, "");
        answer.map(|(_, body)| body).unwrap_or_default()
    }

    fn loop_rule(&self) -> Option<String> {
        let rules = self.get("/api/v1/rules");
        let is_of_the_loop = |rule: &&Value| rule.pointer("/when/app") == Some(&"loop".into());
        let rule = rules.as_array()?.iter().find(is_of_the_loop)?.clone();
        rule.get("name")?.as_str().map(str::to_owned)
    }

    fn status_of(&self, app: &str) -> u16 {
        self.client().exchange(request(app, 110)).status()
    }
}

/// Lets the clients ask until `until` is true.
fn while_asked(process: &Process, world: &World, until: impl FnOnce(&World)) {
    world.is_over.store(false, Ordering::Relaxed);
    std::thread::scope(|scope| {
        let _end = End(world);
        scope.spawn(|| world.calm(process.address));
        scope.spawn(|| world.looping(process.address));
        until(world);
    });
}

/// In the middle of an incident the process is killed: the first request after the restart is refused,
/// and what an operator was told is kept, is.
#[test]
fn a_kill_in_the_middle_of_an_incident_lets_nobody_go() {
    let upstream = Upstream::recording();
    let mut process = Process::start(&SUGGESTING.setup(upstream.address));
    let world = World::new();
    while_asked(&process, &world, |world| {
        eventually("what is normal is known", || {
            let trained = process.get("/api/v1/status");
            trained["detection"]["trained_s"].as_f64() > Some(4.0)
        });
        world.loops.store(true, Ordering::Relaxed);
        eventually("a rule is suggested", || process.loop_rule().is_some());
    });
    let name = process.loop_rule().expect("it is suggested");
    let path = format!("/api/v1/rules/{name}");
    assert_eq!(process.get(&path)["mode"], "shadow");
    let approved = try_send(process.admin, "POST", &format!("{path}/approve"), "");
    assert_eq!(approved.expect("it serves").1["persisted"], true);
    process.signal("KILL");
    process.start_again();
    let rule = process.get(&path);
    assert_eq!(
        (&rule["mode"], &rule["origin"]),
        (&"enforce".into(), &"detected".into())
    );
    let trail = process.get("/api/v1/audit");
    assert_eq!(trail[0]["what"], "approve", "{trail}");

    let kept = process.folder.path().join("state/incidents.json");
    while_asked(&process, &world, |_| {
        eventually("the loop is blocked, and that is kept", || {
            let text = std::fs::read_to_string(&kept).unwrap_or_default();
            text.contains("\"blocks\":true") && process.status_of("loop") == 403
        });
    });
    let incident = process.get("/api/v1/incidents")[0]["id"].clone();
    process.signal("KILL");
    process.start_again();
    assert_eq!(process.status_of("loop"), 403, "the first request of all");
    assert_eq!(process.status_of("calm"), 200);
    let again = process.get("/api/v1/incidents");
    assert_eq!(
        (&again[0]["id"], &again[0]["active"]),
        (&incident, &true.into())
    );
    assert_eq!(process.get(&path)["action"], "block");
}
