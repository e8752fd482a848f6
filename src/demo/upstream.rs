//! Three services with a real capacity: slots that each serve one request at a time. What finds no
//! free slot waits, as in most servers, even after its client has given up.

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use super::background::Background;

/// How long a slot is busy with a request.
const SERVICE_TIME: Duration = Duration::from_millis(10);
/// How much work may wait, in seconds of a service's capacity; what comes then is answered 503.
/// At 2,500 requests per second in all and one socket each, 5,500 descriptors.
const BACKLOG_SECONDS: f64 = 2.2;
/// The longest request head; the proxy sends about 500 bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;

const SERVED: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
    content-length: 49\r\n\r\n{\"answer\":\"what an application usually answers\"}\n";
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";

/// One of the services.
#[derive(Clone, Copy, Debug)]
pub(super) struct Service {
    /// Its name in the settings.
    pub(super) name: &'static str,
    /// What is asked for.
    pub(super) path: &'static str,
    /// Requests that it serves at a time.
    slots: usize,
    /// Its part of what clients ask for, in percent.
    pub(super) weight: u64,
}

impl Service {
    /// Requests per second.
    pub(super) fn capacity_per_second(&self) -> f64 {
        self.slots as f64 / SERVICE_TIME.as_secs_f64()
    }
}

/// How many services there are.
pub(super) const COUNT: usize = 3;

/// All services.
pub(super) const SERVICES: [Service; COUNT] = [
    Service {
        name: "chat",
        path: "/c/v1/chat/sessions",
        slots: 13,
        weight: 52,
    },
    Service {
        name: "kb",
        path: "/v1/kb/articles",
        slots: 7,
        weight: 28,
    },
    Service {
        name: "login",
        path: "/p/v1/auth/session",
        slots: 5,
        weight: 20,
    },
];

/// How busy a service is; written by its thread, read by whoever wants to know.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Microseconds that slots were busy, added up.
    busy_us: AtomicU64,
    /// Requests that wait for a slot.
    waiting: AtomicU64,
}

impl Load {
    /// Returns seconds that slots were busy, added up.
    pub(super) fn busy_seconds(&self) -> f64 {
        self.busy_us.load(Ordering::Relaxed) as f64 / 1e6
    }

    /// Returns how many requests wait for a slot.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// The share of a service's capacity that is `busy` slot seconds in `elapsed`.
pub(super) fn share_of_capacity(service: &Service, busy_seconds: f64, elapsed: Duration) -> f64 {
    busy_seconds / (service.slots as f64 * elapsed.as_secs_f64())
}

/// The services, running.
#[derive(Debug)]
pub(super) struct Upstreams {
    /// Where each listens.
    pub(super) addresses: Vec<SocketAddr>,
    /// How busy each is.
    pub(super) loads: Vec<Arc<Load>>,
    thread: Background,
}

impl Upstreams {
    /// Starts them on a thread of their own.
    ///
    /// # Errors
    ///
    /// No port or no thread is to be had.
    pub(super) fn start() -> io::Result<Self> {
        let mut addresses = Vec::new();
        let mut loads = Vec::new();
        let mut parts = Vec::new();
        for service in SERVICES {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            addresses.push(listener.local_addr()?);
            let load = Arc::new(Load::default());
            loads.push(Arc::clone(&load));
            parts.push((service, listener, load));
        }
        let thread = Background::start("demo-upstreams", move || {
            for (service, listener, load) in parts {
                let listener = TcpListener::from_std(listener)?;
                tokio::task::spawn_local(accept(service, listener, load));
            }
            Ok(())
        })?;
        Ok(Self {
            addresses,
            loads,
            thread,
        })
    }

    /// Ends them.
    ///
    /// # Errors
    ///
    /// They could not run.
    pub(super) fn stop(self) -> io::Result<()> {
        self.thread.stop()
    }
}

/// What the connections to one service share.
#[derive(Debug)]
struct Desk {
    slots: Semaphore,
    waiting: Cell<u64>,
    waiting_max: u64,
    load: Arc<Load>,
}

async fn accept(service: Service, listener: TcpListener, load: Arc<Load>) {
    let desk = Rc::new(Desk {
        slots: Semaphore::new(service.slots),
        waiting: Cell::new(0),
        waiting_max: (service.capacity_per_second() * BACKLOG_SECONDS) as u64,
        load,
    });
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => {
                let desk = Rc::clone(&desk);
                // A connection that fails is the proxy's to notice.
                tokio::task::spawn_local(async move { drop(serve(stream, &desk).await) });
            }
            Err(_short_of_descriptors) => sleep(SERVICE_TIME).await,
        }
    }
}

/// Answers the requests of one connection, one after the other.
async fn serve(mut stream: TcpStream, desk: &Desk) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::with_capacity(1024);
    loop {
        head.clear();
        while !head.ends_with(b"\r\n\r\n") {
            let read = stream.read_buf(&mut head).await?;
            if read == 0 || head.len() > HEAD_BYTES_MAX {
                return Ok(());
            }
        }
        let answer = desk.work().await;
        stream.write_all(answer).await?;
    }
}

impl Desk {
    /// Waits for a slot and is busy in it.
    async fn work(&self) -> &'static [u8] {
        if self.waiting.get() >= self.waiting_max {
            return FULL;
        }
        self.wait(1);
        let slot = self.slots.acquire().await;
        self.wait(-1);
        let began = Instant::now();
        sleep(SERVICE_TIME).await;
        drop(slot);
        let busy = began.elapsed().as_micros() as u64;
        self.load.busy_us.fetch_add(busy, Ordering::Relaxed);
        SERVED
    }

    fn wait(&self, change: i64) {
        let waiting = self.waiting.get().saturating_add_signed(change);
        self.waiting.set(waiting);
        self.load.waiting.store(waiting, Ordering::Relaxed);
    }
}
