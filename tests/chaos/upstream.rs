//! An upstream with a known capacity: places that each serve one request in a known time on average, so
//! that the knee is places ÷ time. What finds no free place waits, even after its client has given up, as in
//! most servers. An answer's body is the request's target, so that nobody's answer can be taken for
//! another's.
//!
//! What a request's query asks for (`?do=garbage`) is done to its answer; see [`misbehave`].

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;

use crate::background::Background;

/// The longest request head; the proxy sends about 500 bytes.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// How many interim answers there are in `?do=interim`.
const INTERIM_ANSWERS: usize = 100_000;
/// How large the head is in `?do=large-head`.
const LARGE_HEAD_BYTES: usize = 10 * 1024 * 1024;
/// How large the answer is in `?do=large`.
const LARGE_BODY_BYTES: usize = 4 * 1024 * 1024;
/// How many bytes come in `?do=drip`, one a second.
const DRIPPED_BYTES: usize = 60;

/// The golden ratio's fraction: its multiples' fractions are spread as evenly as can be.
const GOLDEN: f64 = 0.618_033_988_749_895;

/// How much an upstream can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capacity {
    /// Requests served at a time.
    pub(crate) places: usize,
    /// How long each takes on average. It takes from half to one and a half of this: places that all
    /// took the same would go in step, and whoever waits would wait for all of them.
    pub(crate) service_time: Duration,
}

impl Capacity {
    /// More than anybody asks for.
    pub(crate) const PLENTY: Self = Self {
        places: 4096,
        service_time: Duration::ZERO,
    };

    /// Returns the knee: requests per second beyond which a queue grows.
    pub(crate) fn per_second(self) -> f64 {
        self.places as f64 / self.service_time.as_secs_f64()
    }
}

/// An upstream that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    frozen: watch::Sender<Option<&'static str>>,
    arrived: Arc<AtomicU64>,
    _thread: Background,
}

/// What the connections share.
#[derive(Debug)]
struct Desk {
    places: Semaphore,
    service_time: Duration,
    /// Requests with this beginning of the target wait.
    frozen: watch::Receiver<Option<&'static str>>,
    /// After so many requests a connection is closed when the next one has come.
    requests_per_connection: usize,
    arrived: Arc<AtomicU64>,
    worked: AtomicU64,
}

impl Upstream {
    /// Starts one.
    pub(crate) fn start(capacity: Capacity) -> Self {
        Self::closing_after(capacity, usize::MAX)
    }

    /// Starts one at an address of its own, of those that are this machine.
    pub(crate) fn start_at(address: Ipv4Addr, capacity: Capacity) -> Self {
        Self::begin(address, capacity, usize::MAX)
    }

    /// Starts one that closes a connection just when it is used once more than so many times.
    pub(crate) fn closing_after(capacity: Capacity, requests_per_connection: usize) -> Self {
        Self::begin(Ipv4Addr::LOCALHOST, capacity, requests_per_connection)
    }

    fn begin(address: Ipv4Addr, capacity: Capacity, requests_per_connection: usize) -> Self {
        let listener = bind(address).expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let (frozen, is_frozen) = watch::channel(None);
        let arrived = Arc::<AtomicU64>::default();
        let desk = Arc::new(Desk {
            places: Semaphore::new(capacity.places),
            service_time: capacity.service_time,
            frozen: is_frozen,
            requests_per_connection,
            arrived: Arc::clone(&arrived),
            worked: AtomicU64::new(0),
        });
        let thread = Background::start("upstream", move || {
            tokio::task::spawn_local(listen(listener, desk));
        });
        Self {
            address,
            frozen,
            arrived,
            _thread: thread,
        }
    }

    /// Lets requests wait whose target begins so, until [`Self::thaw`].
    pub(crate) fn freeze(&self, target: &'static str) {
        self.frozen.send_replace(Some(target));
    }

    /// Serves all again.
    pub(crate) fn thaw(&self) {
        self.frozen.send_replace(None);
    }

    /// Returns how many requests came.
    pub(crate) fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }
}

/// Listens with room for all who may connect at once; std's 128 would make some of them wait.
fn bind(address: Ipv4Addr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((address, 0)).into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

async fn listen(listener: std::net::TcpListener, desk: Arc<Desk>) {
    let listener = TcpListener::from_std(listener).expect("a listener");
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => {
                let desk = Arc::clone(&desk);
                // A connection that fails is the proxy's to notice.
                tokio::task::spawn_local(async move { drop(serve(stream, &desk).await) });
            }
            Err(_short_of_descriptors) => sleep(Duration::from_millis(5)).await,
        }
    }
}

/// A request, as far as it matters here.
#[derive(Debug, Default)]
struct Request {
    target: String,
    length: usize,
    is_chunked: bool,
}

impl Request {
    fn parse(head: &[u8]) -> Self {
        let text = String::from_utf8_lossy(head);
        let mut lines = text.lines();
        let start = lines.next().unwrap_or_default();
        let mut request = Self {
            target: start.split(' ').nth(1).unwrap_or_default().to_owned(),
            ..Self::default()
        };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            if name.eq_ignore_ascii_case("content-length") {
                request.length = value.trim().parse().unwrap_or(0);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                request.is_chunked = true;
            }
        }
        request
    }

    /// What is to be done to the answer.
    fn wish(&self) -> Option<&str> {
        let (_, rest) = self.target.split_once("do=")?;
        rest.split('&').next().filter(|wish| !wish.is_empty())
    }
}

/// Answers the requests of one connection, one after the other.
async fn serve(mut stream: TcpStream, desk: &Desk) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer: Vec<u8> = Vec::with_capacity(4096);
    let mut requests = 0;
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if buffer.len() > HEAD_BYTES_MAX || stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let request = Request::parse(buffer.get(..end).unwrap_or_default());
        buffer.drain(..end);
        desk.arrived.fetch_add(1, Ordering::Relaxed);
        requests += 1;
        if requests > desk.requests_per_connection {
            return Ok(());
        }
        if request.wish() != Some("read-nothing") {
            skip_body(&mut stream, &mut buffer, &request).await?;
        }
        desk.work(&request).await;
        let goes_on = match request.wish() {
            Some(wish) => misbehave(&mut stream, wish, &request.target).await?,
            None => answer(&mut stream, &request.target).await?,
        };
        if !goes_on {
            return Ok(());
        }
    }
}

/// Reads a body and forgets it.
async fn skip_body(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    request: &Request,
) -> io::Result<()> {
    let mut left = request.length;
    if request.is_chunked {
        // Bodies without a length are small here, and nothing comes behind them.
        while !buffer.ends_with(b"0\r\n\r\n") {
            if stream.read_buf(buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        buffer.clear();
        return Ok(());
    }
    loop {
        let taken = left.min(buffer.len());
        buffer.drain(..taken);
        left -= taken;
        if left == 0 {
            return Ok(());
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

impl Desk {
    /// Waits for a place and is busy in it.
    async fn work(&self, request: &Request) {
        let mut frozen = self.frozen.clone();
        let is_free = frozen.wait_for(|target| {
            target.is_none_or(|beginning| !request.target.starts_with(beginning))
        });
        // The upstream itself may be gone, and all of this with it.
        drop(is_free.await);
        if !self.service_time.is_zero() {
            let place = self.places.acquire().await;
            let number = self.worked.fetch_add(1, Ordering::Relaxed);
            // Evenly spread, and the same in each run.
            let share = 0.5 + (number as f64 * GOLDEN).fract();
            sleep(self.service_time.mul_f64(share)).await;
            drop(place);
        }
    }
}

async fn answer(stream: &mut TcpStream, target: &str) -> io::Result<bool> {
    let length = target.len();
    let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{target}");
    stream.write_all(text.as_bytes()).await?;
    Ok(true)
}

/// Answers badly. Returns whether the connection goes on.
async fn misbehave(stream: &mut TcpStream, wish: &str, target: &str) -> io::Result<bool> {
    match wish {
        "reset" => reset(stream)?,
        "close" => {}
        "reset-inside" => {
            let begun = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nthe beginning";
            stream.write_all(begun.as_bytes()).await?;
            // So that it is read before the reset throws it away.
            sleep(Duration::from_millis(20)).await;
            reset(stream)?;
        }
        "switch" => {
            let text = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                upgrade: other\r\n\r\n";
            stream.write_all(text.as_bytes()).await?;
            reset(stream)?;
        }
        "garbage" => stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").await?,
        "bad-length" => {
            let text = b"HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\nevil!";
            stream.write_all(text).await?;
        }
        "two-lengths" => {
            let text = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 4\r\n\r\nevil";
            stream.write_all(text).await?;
        }
        "interim" => {
            let hundred = "HTTP/1.1 100 Continue\r\n\r\n".repeat(100);
            for _ in 0..INTERIM_ANSWERS / 100 {
                stream.write_all(hundred.as_bytes()).await?;
            }
            return answer(stream, target).await;
        }
        "large-head" => {
            let line = format!("x-a: {}\r\n", "a".repeat(1017));
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
            for _ in 0..LARGE_HEAD_BYTES / line.len() {
                stream.write_all(line.as_bytes()).await?;
            }
            stream.write_all(b"content-length: 0\r\n\r\n").await?;
        }
        "unsolicited" => {
            answer(stream, target).await?;
            // The second answer is nobody's, and must stay so.
            return answer(stream, "evil").await;
        }
        "drip" => {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {DRIPPED_BYTES}\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            for _ in 0..DRIPPED_BYTES {
                stream.write_all(b".").await?;
                sleep(Duration::from_secs(1)).await;
            }
        }
        "stall" => {
            let begun = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nthe beginning";
            stream.write_all(begun.as_bytes()).await?;
            return wait_for_the_end(stream).await;
        }
        "large" => {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE_BODY_BYTES}\r\n\r\n");
            // What the kernel would hold besides, megabytes each, is copied for nothing.
            SockRef::from(&*stream).set_send_buffer_size(64 * 1024)?;
            stream.write_all(head.as_bytes()).await?;
            let piece = vec![b'.'; 64 * 1024];
            for _ in 0..LARGE_BODY_BYTES / piece.len() {
                stream.write_all(&piece).await?;
            }
            return Ok(true);
        }
        "read-nothing" => return wait_for_ever().await,
        other => panic!("nobody knows how to do {other:?}"),
    }
    Ok(false)
}

fn reset(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

async fn wait_for_the_end(stream: &mut TcpStream) -> io::Result<bool> {
    while stream.read(&mut [0; 1024]).await? > 0 {}
    Ok(false)
}

/// Holds the connection until the upstream is dropped.
async fn wait_for_ever() -> io::Result<bool> {
    std::future::pending().await
}
