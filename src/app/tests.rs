//! What a panic costs. Here and not end to end, because only tests of this crate can ask for one.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::{Running, Start};
use crate::faults::{Point, ask_for};
use crate::reload::ConfigFiles;

/// An upstream that answers everything, one request a connection.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 4096];
            drop(stream.read(&mut head));
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
            drop(stream.write_all(answer.as_bytes()));
        }
    });
    address
}

fn start(folder: &Path) -> Running {
    std::fs::create_dir_all(folder.join("rules")).unwrap();
    std::fs::write(folder.join("rules/r.yaml"), "rules: []\n").unwrap();
    let settings = format!(
        "listeners: [{{ address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
             workers: 1\nservices: [{{ name: a, match: [{{ path: / }}], upstream: a, \
             concurrency: {{ max: 1, queue: 0 }} }}]\n\
             upstreams: [{{ name: a, endpoints: [\"{}\"] }}]\nstate: state\naccess_log: off\n",
        upstream()
    );
    let path = folder.join("tidegate.yaml");
    std::fs::write(&path, settings).unwrap();
    let (settings, rules, files) = ConfigFiles::open(&path, SystemTime::now()).unwrap();
    let detection = settings.detection_spec();
    let start = Start {
        settings,
        files: Some(files),
        rules,
        detection,
        listeners: Vec::new(),
    };
    super::start(start).unwrap()
}

/// Returns the status of an answer; 0 where there is none.
fn ask(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    drop(stream.read_to_string(&mut answer));
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    (status.unwrap_or(0), answer)
}

fn eventually(holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Its place, its ticket and its connection are given back by whoever held them; nothing else
/// notices.
#[test]
fn a_panic_ends_what_it_happens_in_and_nothing_else() {
    let folder = std::env::temp_dir().join(format!("tidegate-faults-{}", std::process::id()));
    let running = start(&folder);
    let (address, admin) = (running.addresses[0], running.admin_address);
    let panics = || running.metrics.panics_total.get();
    for round in 1..=3 {
        ask_for(Point::Request);
        assert_eq!(ask(address, "/").0, 0, "this one request");
        assert_eq!(panics(), round);
        // The service has one place: it is free again.
        assert_eq!(ask(address, "/").0, 200);
    }
    let inflight = || {
        let (_, text) = ask(admin, "/metrics");
        text.contains("tidegate_inflight_requests{service=\"a\"} 0\n")
    };
    eventually(inflight);

    ask_for(Point::Housekeeping);
    eventually(|| panics() == 4);
    assert_eq!(ask(address, "/").0, 200, "the only worker goes on");
    ask_for(Point::Tick);
    eventually(|| panics() == 5);
    ask_for(Point::Admin);
    assert_eq!(ask(admin, "/healthz").0, 0);
    assert_eq!(ask(admin, "/healthz").0, 200);
    ask_for(Point::Reload);
    running.reload();
    eventually(|| panics() == 7);
    let rule = "rules: [{ name: r, when: { method: GET }, action: block, status: 402 }]\n";
    std::fs::write(folder.join("rules/r.yaml"), rule).unwrap();
    eventually(|| ask(address, "/").0 == 402);
    running.drain();
    running.join().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
}
