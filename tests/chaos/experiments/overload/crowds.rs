//! Many at once: one broken version of an SDK on thousands of devices, and everybody who reconnects.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::background;
use crate::clients::Load;
use crate::experiments::{kib, percent, until_well};
use crate::outcomes::{End, Outcomes};
use crate::proxy::Proxy;
use crate::settings::{Service, Setup};
use crate::stage::{Phase, Stage};
use crate::table::{Figure, Scale, Table};
use crate::upstream::{Capacity, Upstream};
use crate::wire::Connection;

/// How many addresses the broken SDK comes from.
const ADDRESSES: u64 = 50_000;
/// How many devices loop where nobody wrote a rule: of fewer requests each it would be a crowd, which
/// is never blocked.
const LOOPING: u64 = 500;
/// What the rule lets through of it, per second and at once.
const LIMIT_PER_SECOND: f64 = 50.0;
const LIMIT_RULES: &str = "limits:
  - name: broken-sdk
    key: [sdk, sdk_version, app]
    when: { sdk: chat-android, sdk_version: 3.2.1 }
    rate: 50/s
    burst: 50
";

/// Writes a request of a device of its own.
fn request(number: u64, sdk: &str, version: &str, app: &str) -> Vec<u8> {
    let device = number % ADDRESSES;
    let [.., high, middle, low] = (device as u32).to_be_bytes();
    format!(
        "GET /chat/session?n={number} HTTP/1.1\r\nhost: chaos.test\r\n\
         x-forwarded-for: 10.{high}.{middle}.{low}\r\nx-sdk: {sdk}\r\n\
         x-sdk-version: {version}\r\nx-app: {app}\r\nx-device: {sdk}-{device}\r\n\r\n"
    )
    .into_bytes()
}

/// Everybody else: some SDKs and versions in ten apps.
fn others(proxy: &Proxy, per_second: f64) -> Load {
    const KINDS: [(&str, &str); 4] = [
        ("chat-android", "3.2.0"),
        ("chat-android", "3.1.7"),
        ("chat-ios", "3.2.1"),
        ("web", "2.0.0"),
    ];
    Load::get(proxy.address, "", per_second).sending(|number| {
        // 300 devices, each of one kind and in one app, with a request a second each.
        let device = number % 300;
        let kind = KINDS.get(device as usize % KINDS.len());
        let (sdk, version) = kind.copied().unwrap_or(("web", "2.0.0"));
        let app = format!("app-{}", device / 4 % 10);
        request(1_000 + device, sdk, version, &app)
    })
}

/// One version of one SDK in one app, on so many devices.
fn broken_sdk(proxy: &Proxy, per_second: f64, devices: u64) -> Load {
    let mut load = Load::get(proxy.address, "", per_second)
        .sending(move |number| request(number % devices, "chat-android", "3.2.1", "app-3"));
    load.niceness = 5;
    load
}

fn start(chat: Service, rules: &'static str, detection: &'static str) -> Proxy {
    Proxy::start(Setup {
        rules,
        detection,
        trusted_proxies: "[127.0.0.0/8]",
        ..Setup::of(vec![chat])
    })
}

/// Lets the broken SDK loose for a while. Returns the stage, the others, and the broken.
fn loose(scale: Scale, proxy: &Proxy, stage: Stage, devices: u64) -> (Stage, Outcomes, Outcomes) {
    let (from, to) = stage.phase(0, Phase::During);
    let innocents = others(proxy, scale.pick(80.0, 300.0)).lasting(stage.ends());
    let innocents = innocents.start(stage.began);
    let broken = broken_sdk(proxy, scale.pick(400.0, 2500.0), devices).during(from, to);
    let broken = broken.start(stage.began);
    (stage, innocents.outcomes(), broken.outcomes())
}

/// M3: one version of one SDK on thousands of addresses ignores every refusal. A limit holds it to its rate
/// and nobody else notices; without one, the detector finds it.
pub(crate) fn m3(scale: Scale, table: &mut Table) {
    // More than the others and the limit need together, and less than the broken one sends.
    let capacity = Capacity {
        places: scale.pick(6, 20),
        service_time: Duration::from_millis(20),
    };
    // More than the limit lets through at once.
    let places = scale.pick(80, 200);
    let stage = || {
        scale.pick(
            Stage::short([0.4, 2.0, 0.4]),
            Stage::full(1, [1.0, 5.0, 1.0]),
        )
    };
    let run = |rules| {
        let upstream = Upstream::start(capacity);
        let chat = Service::new("chat", "/chat/", upstream.address);
        let proxy = start(chat.with_places(places), rules, "{ mode: off }");
        let (stage, innocents, broken) = loose(scale, &proxy, stage(), ADDRESSES);
        // What arrived and was not of the others.
        let passed = (upstream.arrived() as usize).saturating_sub(innocents.good());
        (stage, innocents, broken, passed)
    };
    let (stage_with, innocents, broken, passed) = run(LIMIT_RULES);
    let (control_stage, innocents_without, _, passed_without) = run("rules: []\n");

    let (from, to) = stage_with.phase(0, Phase::During);
    // The burst is there at the beginning, and the last requests come a little after the end.
    let seconds = to.saturating_sub(from).as_secs_f64() + 0.1;
    let bound = ((LIMIT_PER_SECOND * seconds + LIMIT_PER_SECOND) * 1.01).ceil();
    table.add(
        Figure::fact(
            "the upstream gets of it",
            format_args!("<= {bound:.0} (limit + 1 %)"),
        )
        .during(format_args!("{passed} of {}", broken.len()))
        .control(
            format_args!("no limit: {passed_without}"),
            passed_without as f64 > bound,
        )
        .held(passed > 0 && passed as f64 <= bound),
    );
    let [before, during, after] = stage_with.phases_of(&innocents);
    let without = control_stage.all(&innocents_without, Phase::During);
    table.add(
        Figure::fact("errors of the others", 0)
            .phases(before.ends(), during.ends(), after.ends())
            .control(
                format_args!("no limit: {}", without.ends()),
                without.errors() > 0,
            )
            .held(innocents.errors() == 0),
    );
    if scale == Scale::Full {
        detected(table);
    }
}

/// The same without a rule: the detector finds the source, and hits no other.
fn detected(table: &mut Table) {
    let upstream = Upstream::start(Capacity::PLENTY);
    let chat = Service::new("chat", "/chat/", upstream.address);
    let proxy = start(chat, "rules: []\n", "{ mode: auto, warmup: 5s }");
    let stage = Stage::full(1, [12.0, 8.0, 0.5]);
    let (begins, ends) = stage.phase(0, Phase::During);
    let mut blocked = None;
    let (innocents, broken) = std::thread::scope(|scope| {
        let clients = scope.spawn(|| loose(Scale::Full, &proxy, stage, LOOPING));
        stage.wait_until(begins);
        while stage.began.elapsed() < ends && blocked.is_none() {
            let rules = "tidegate_rules{action=\"block\",origin=\"detected\"}";
            if proxy.metric(rules) > 0.0 {
                blocked = Some(stage.began.elapsed().saturating_sub(begins));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let (_, innocents, broken) = clients.join().expect("clients do not panic");
        (innocents, broken)
    });
    table.add(
        Figure::time("the detector blocks it after", "<= 5 s")
            .during(until_well(blocked))
            .held(blocked.is_some_and(|time| time <= Duration::from_secs(5))),
    );
    let refused = innocents.count(End::is_refusal);
    table.add(
        Figure::time("others refused", "<= 0.01 %")
            .during(format_args!("{refused} of {}", innocents.len()))
            .control(
                format_args!("of it: {}", percent(1.0 - broken.success())),
                broken.errors() > 0,
            )
            .held(refused as f64 <= innocents.len() as f64 / 10_000.0),
    );
}

/// Opens so many connections at once, asks on each and keeps all. Returns what came of it and how
/// many bytes the proxy then holds for each.
fn reconnect(proxy: &Proxy, count: usize) -> (Outcomes, Duration, u64) {
    let (address, system) = (proxy.address, proxy.system());
    let before = system.resident_bytes();
    let work = async move || {
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for number in 0..count {
            tasks.spawn_local(async move {
                // So that the kernel's queue of connections (4,096) is not what is measured.
                tokio::time::sleep(Duration::from_micros(50 * number as u64)).await;
                ask_once(address, number, began).await
            });
        }
        let (mut outcomes, mut kept) = (Vec::new(), Vec::new());
        while let Some(ended) = tasks.join_next().await {
            let (outcome, connection) = ended.expect("clients do not panic");
            outcomes.push(outcome);
            kept.push(connection);
        }
        let took = began.elapsed();
        let bytes = system.resident_bytes().saturating_sub(before);
        (Outcomes::new(outcomes), took, bytes / count.max(1) as u64)
    };
    let thread = background::run("reconnect", work);
    thread.join().expect("clients do not panic")
}

async fn ask_once(
    address: std::net::SocketAddr,
    number: usize,
    began: Instant,
) -> (crate::outcomes::Outcome, Option<Connection>) {
    let text = format!("GET /chat/session?n={number} HTTP/1.1\r\nhost: chaos.test\r\n\r\n");
    let due = began.elapsed();
    let exchange = async {
        let mut connection = Connection::open(std::net::Ipv4Addr::LOCALHOST, address).await?;
        let end = connection.ask(text.as_bytes()).await;
        Ok::<_, std::io::Error>((end, connection))
    };
    let (end, connection) = match tokio::time::timeout(Duration::from_mins(1), exchange).await {
        Ok(Ok((end, connection))) => (end, Some(connection)),
        Ok(Err(_refused)) => (End::Broken, None),
        Err(_elapsed) => (End::Silence, None),
    };
    let outcome = crate::outcomes::Outcome {
        due,
        took: began.elapsed().saturating_sub(due),
        end,
        attempts: 1,
    };
    (outcome, connection)
}

/// M4: everybody reconnects at once after the proxy was killed and started again.
pub(crate) fn m4(scale: Scale, table: &mut Table) {
    const BYTES_MAX: u64 = 40 * 1024;
    let count = scale.pick(400, 4000);
    let upstream = Upstream::start(Capacity::PLENTY);
    let chat = Service::new("chat", "/chat/", upstream.address);
    let mut proxy = Proxy::start(Setup::of(vec![chat.clone()]));
    let (before, ..) = reconnect(&proxy, count);
    proxy.kill_and_start_again();
    let (outcomes, took, bytes) = reconnect(&proxy, count);
    drop(proxy);
    // Where only half of them may be there.
    let few = Proxy::start(Setup {
        connections_max: count / 2,
        ..Setup::of(vec![chat])
    });
    let (control, ..) = reconnect(&few, count);
    table.add(
        Figure::fact(
            "reconnecting clients are answered",
            format_args!("all of {count}"),
        )
        .phases(before.ends(), "killed", outcomes.ends())
        .control(
            format_args!("half may connect: {}", control.ends()),
            control.good() < count,
        )
        .held(outcomes.good() == count && before.good() == count),
    );
    table.add(
        Figure::time("all of them within", "<= 60 s")
            .after(until_well(Some(took)))
            .held(took <= Duration::from_mins(1)),
    );
    table.add(
        Figure::time("memory of an open connection", "<= 40 KiB")
            .after(kib(bytes))
            .held(bytes <= BYTES_MAX),
    );
}
