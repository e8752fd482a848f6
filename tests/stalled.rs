//! What bodies cost that stand still, counted by the allocator: a body is read no faster than it leaves.
//! Alone in its process: others' memory would count.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use peak_alloc::PeakAlloc;
use tidegate::app::{self, Running, Start};
use tidegate::reload::ConfigFiles;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// How many bodies stand still at a time.
const BODIES: usize = 40;
/// As long as no kernel holds by itself.
const BODY_BYTES: usize = 64 << 20;
/// What one may cost, down and up: the buffers of both connections, a piece in each, the request. Measured
/// are 59 and 100 KiB; where bodies are read on although their connection takes nothing, 74 and 195.
const DOWN_BYTES_MAX: usize = 66 << 10;
const UP_BYTES_MAX: usize = 128 << 10;

static PIECE: [u8; 64 << 10] = [b'a'; 64 << 10];

/// An upstream that sends without end where it is asked for `/down`, and reads no body elsewhere.
/// Its threads take little from the heap, and all of it when they begin.
fn upstream(arrived: &'static AtomicUsize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut head = [0; 512];
                drop(stream.read(&mut head));
                arrived.fetch_add(1, Ordering::Relaxed);
                if head.starts_with(b"GET /down") {
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY_BYTES}\r\n\r\n");
                    let mut sent = stream.write_all(head.as_bytes());
                    while sent.is_ok() {
                        sent = stream.write_all(&PIECE);
                    }
                } else {
                    std::thread::sleep(Duration::from_mins(1));
                }
            });
        }
    });
    address
}

fn start(folder: &std::path::Path, upstream: SocketAddr) -> Running {
    std::fs::create_dir_all(folder.join("rules")).expect("a folder of our own");
    std::fs::write(folder.join("rules/r.yaml"), "rules: []\n").expect("a folder of our own");
    let text = format!(
        "listeners: [{{ address: \"127.0.0.1:0\" }}]
admin: {{ address: \"127.0.0.1:0\" }}
workers: 1
services: [{{ name: a, match: [{{ path: / }}], upstream: a, body_max: 1GiB, large_bodies_max: 64 }}]
upstreams: [{{ name: a, endpoints: [\"{upstream}\"] }}]
detection: {{ mode: off }}
state: state
access_log: off
"
    );
    let path = folder.join("tidegate.yaml");
    std::fs::write(&path, text).expect("a folder of our own");
    let (settings, rules, files) =
        ConfigFiles::open(&path, SystemTime::now()).unwrap_or_else(|problems| panic!("{problems}"));
    let detection = settings.detection_spec();
    let start = Start {
        settings,
        files: Some(files),
        rules,
        detection,
        listeners: Vec::new(),
    };
    app::start(start).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Waits until the heap has neither grown nor shrunk for half a second, and returns how large it is.
fn settled() -> usize {
    let (mut before, mut since) = (HEAP.current_usage(), Instant::now());
    while since.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(10));
        let now = HEAP.current_usage();
        if now.abs_diff(before) > 4096 {
            (before, since) = (now, Instant::now());
        }
    }
    HEAP.current_usage()
}

#[test]
fn a_body_whose_connection_takes_nothing_costs_a_few_pieces() {
    static ARRIVED: AtomicUsize = AtomicUsize::new(0);
    let folder = std::env::temp_dir().join(format!("tidegate-stalled-{}", std::process::id()));
    let running = start(&folder, upstream(&ARRIVED));
    let address = running.addresses[0];
    let upload = format!("POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: {BODY_BYTES}\r\n\r\n");
    let download = "GET /down HTTP/1.1\r\nhost: a\r\n\r\n";
    for (what, head, most) in [
        ("a download that nobody reads", download, DOWN_BYTES_MAX),
        ("an upload that nobody reads", &*upload, UP_BYTES_MAX),
    ] {
        let before = settled();
        let begun = ARRIVED.load(Ordering::Relaxed);
        let open = |_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            if head.starts_with("POST") {
                // As much as is taken, for as long as it is.
                stream
                    .set_write_timeout(Some(Duration::from_millis(50)))
                    .unwrap();
                while stream.write_all(&PIECE).is_ok() {}
            }
            stream
        };
        let held: Vec<TcpStream> = (0..BODIES).map(open).collect();
        let deadline = Instant::now() + Duration::from_secs(10);
        while ARRIVED.load(Ordering::Relaxed) - begun < BODIES && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(ARRIVED.load(Ordering::Relaxed) - begun, BODIES, "{what}");
        let each = settled().saturating_sub(before) / BODIES;
        println!("{what} costs {} KiB", each >> 10);
        assert!(each <= most, "{what} costs {each} bytes");
        drop(held);
    }
    // The end of the drain is not waited for: uploads that nobody reads have ten seconds.
    running.drain();
    let removed = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        std::fs::remove_dir_all(&folder).is_ok()
    });
    assert!(removed, "{folder:?} is still written to");
}
