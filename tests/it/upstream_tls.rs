//! TLS to an upstream: spoken with whom the operator's authority vouches for, and with nobody else.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::harness::{Folder, OK, Proxy, Setup, Upstream, eventually};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";

/// An authority, with its certificate in a file.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: Folder,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("randomness");
        let certificate = params.self_signed(&key).expect("a key of its own");
        let folder = Folder::new();
        folder.write("ca.pem", &certificate.pem());
        Self {
            issuer: Issuer::new(params, key),
            folder,
        }
    }

    /// Returns the settings that believe this authority.
    fn believed(&self, more: &str) -> String {
        let path = self.folder.path().join("ca.pem");
        format!("tls: {{ ca: {}{more} }}", path.display())
    }

    /// Starts an upstream with a certificate for this name.
    fn upstream(&self, name: &str) -> Secured {
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let key = KeyPair::generate().expect("randomness");
        let certificate = params.signed_by(&key, &self.issuer).expect("an authority");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("its key");
        Secured::start(Arc::new(config))
    }
}

/// For each request the name that was asked for, and the request.
type Seen = Arc<Mutex<Vec<(Option<String>, String)>>>;

/// An upstream that speaks TLS, answers everything with 200, and remembers the names it was asked for
/// and what it read.
struct Secured {
    address: SocketAddr,
    seen: Seen,
}

impl Secured {
    fn start(config: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let connection = ServerConnection::new(Arc::clone(&config)).expect("a good config");
                let kept = Arc::clone(&kept);
                thread::spawn(move || serve(StreamOwned::new(connection, stream), &kept));
            }
        });
        Self { address, seen }
    }

    fn requests(&self) -> Vec<(Option<String>, String)> {
        std::mem::take(&mut *self.seen.lock().expect("no panics here"))
    }
}

fn serve(mut stream: StreamOwned<ServerConnection, TcpStream>, seen: &Seen) {
    let (mut read, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        read.extend_from_slice(piece.get(..count).unwrap_or_default());
        let text = String::from_utf8_lossy(&read).into_owned();
        let is_whole = if text.starts_with("POST") {
            text.ends_with("abc")
        } else {
            text.ends_with("\r\n\r\n")
        };
        if is_whole {
            read.clear();
            let name = stream.conn.server_name().map(str::to_owned);
            seen.lock().expect("no panics here").push((name, text));
            drop(stream.write_all(OK.as_bytes()));
        }
    }
}

fn proxy(address: SocketAddr, upstream: &str) -> Proxy {
    Setup {
        upstream,
        ..Setup::to(address)
    }
    .start()
}

#[test]
fn requests_go_over_tls_to_whom_the_authority_vouches_for() {
    let authority = Authority::new();
    let upstream = authority.upstream("chat.internal");
    let settings = authority.believed(", server_name: chat.internal");
    let proxy = proxy(upstream.address, &settings);
    let mut client = proxy.client();
    for request in [GET, POST, GET, POST] {
        let answer = client.exchange(request);
        assert_eq!((answer.status(), answer.text()), (200, "ok".to_owned()));
    }
    let requests = upstream.requests();
    assert_eq!(requests.len(), 4);
    for (name, text) in requests {
        assert_eq!(name.as_deref(), Some("chat.internal"));
        assert!(text.contains(" / HTTP/1.1\r\n"), "{text}");
    }
    let open = proxy.metric("tidegate_upstream_connections{upstream=\"chat\"}");
    assert_eq!(open, 1, "connections are kept");
}

#[test]
fn without_a_server_name_the_endpoints_host_must_stand_in_the_certificate() {
    let authority = Authority::new();
    let upstream = authority.upstream("127.0.0.1");
    let address = proxy(upstream.address, &authority.believed(""));
    assert_eq!(address.ask(GET).status(), 200);
    let upstream = authority.upstream("localhost");
    let name = Setup {
        endpoints: vec![format!("localhost:{}", upstream.address.port())],
        upstream: &authority.believed(""),
        ..Setup::to(upstream.address)
    }
    .start();
    assert_eq!(name.ask(GET).status(), 200);
    assert_eq!(upstream.requests()[0].0.as_deref(), Some("localhost"));
}

#[test]
fn whoever_shows_the_wrong_certificate_gets_no_request() {
    let (authority, other) = (Authority::new(), Authority::new());
    let named = ", server_name: chat.internal";
    let impostor = other.upstream("chat.internal");
    let misnamed = authority.upstream("kb.internal");
    for upstream in [&impostor, &misnamed] {
        let proxy = proxy(upstream.address, &authority.believed(named));
        let answer = proxy.ask(POST);
        answer.expect_problem(502, "tls_certificate_error");
        assert!(upstream.requests().is_empty());
    }
    // The same ones are asked by who believes them.
    for (upstream, settings) in [
        (&impostor, other.believed(named)),
        (&misnamed, authority.believed(", server_name: kb.internal")),
    ] {
        assert_eq!(proxy(upstream.address, &settings).ask(POST).status(), 200);
    }
    // The system's authorities know nothing of ours.
    let proxy = proxy(impostor.address, "tls: on");
    proxy.ask(GET).expect_problem(502, "tls_certificate_error");
}

#[test]
fn whoever_the_authorities_file_vouches_for_by_now_is_believed() {
    let (authority, next) = (Authority::new(), Authority::new());
    let text = |of: &Authority| {
        let file = of.folder.path().join("ca.pem");
        std::fs::read_to_string(file).expect("its certificate")
    };
    let (first, second) = (text(&authority), text(&next));
    let upstream = authority.upstream("127.0.0.1");
    let settings = format!("{}\n    max_age: 1s", authority.believed(""));
    let proxy = proxy(upstream.address, &settings);
    assert_eq!(proxy.ask(GET).status(), 200);
    // A file that is no certificate is refused, and who was believed still is, on new connections, too.
    authority.folder.write("ca.pem", "not a certificate\n");
    eventually("the refusal is counted", || {
        proxy.metric("tidegate_reload_failures_total") > 0
    });
    thread::sleep(Duration::from_millis(1300));
    assert_eq!(proxy.ask(GET).status(), 200);
    // Rules do not wait for it.
    let rule = "rules: [{ name: r, when: { method: PUT }, action: block, status: 402 }]\n";
    proxy.folder.write("rules/r.yaml", rule);
    eventually("the rule is in force", || {
        proxy.ask("PUT / HTTP/1.1\r\nHost: a\r\n\r\n").status() == 402
    });
    let is_well = || proxy.metric("tidegate_reload_last_successful");
    eventually("but the reload still counts as failed", || is_well() == 0);
    proxy.running.reload();
    thread::sleep(Duration::from_millis(600));
    assert_eq!(is_well(), 0, "however often it is asked for");
    assert_eq!(proxy.ask(GET).status(), 200);
    authority.folder.write("ca.pem", &second);
    eventually("the next authority is believed, and it alone", || {
        proxy.ask(GET).status() == 502
    });
    authority.folder.write("ca.pem", &first);
    eventually("and the first again", || proxy.ask(GET).status() == 200);
    assert_eq!(is_well(), 1);
}

#[test]
fn who_does_not_speak_tls_is_502_and_hears_nothing_of_the_request() {
    let authority = Authority::new();
    let plain = Upstream::new();
    let proxy = proxy(plain.address, &authority.believed(""));
    let mut client = proxy.client();
    client.send(GET);
    let mut wire = plain.accept();
    wire.send("HTTP/1.1 400 Bad Request\r\n\r\n");
    client.response().expect_problem(502, "tls_protocol_error");
    let heard = String::from_utf8_lossy(&wire.rest()).into_owned();
    assert!(!heard.contains("GET"), "{heard}");
}

#[test]
fn health_checks_go_the_way_of_the_requests() {
    let authority = Authority::new();
    let upstream = authority.upstream("chat.internal");
    let settings = format!(
        "{}
    health: {{ path: /healthz, interval: 100ms }}",
        authority.believed(", server_name: chat.internal")
    );
    let proxy = proxy(upstream.address, &settings);
    eventually("a check", || {
        let checks = upstream.requests();
        checks
            .iter()
            .any(|(_, text)| text.starts_with("GET /healthz "))
    });
    assert_eq!(proxy.ask(GET).status(), 200);
}
