//! An upstream that does what it is told, and shows what it was sent.

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Message, OK, PATIENCE, Wire};

/// A listener whose connections a test takes one by one and scripts by hand.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    connections: Receiver<Wire>,
}

impl Upstream {
    pub(crate) fn new() -> Self {
        Self::accepting(|wire| wire)
    }

    /// Like [`Self::new`], but the kernel holds little of what is not read.
    pub(crate) fn with_small_window() -> Self {
        Self::accepting(Wire::with_small_window)
    }

    fn accepting(prepare: impl Fn(Wire) -> Wire + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let (sender, connections) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if sender.send(prepare(Wire::over(stream))).is_err() {
                    return;
                }
            }
        });
        Self {
            address,
            connections,
        }
    }

    /// Takes the next connection.
    #[track_caller]
    pub(crate) fn accept(&self) -> Wire {
        match self.connections.recv_timeout(PATIENCE) {
            Ok(wire) => wire,
            Err(error) => panic!("{error}: the proxy did not connect within {PATIENCE:?}"),
        }
    }

    /// Takes a connection that was made already.
    pub(crate) fn accept_if_any(&self) -> Option<Wire> {
        self.connections
            .recv_timeout(Duration::from_millis(50))
            .ok()
    }

    /// Fails the test when a connection was made that nobody took.
    #[track_caller]
    pub(crate) fn expect_untouched(&self) {
        if let Ok(mut wire) = self.connections.try_recv() {
            panic!("the upstream was asked: {:?}", wire.head_if_any());
        }
    }
}

/// An upstream that answers every request with 200 `ok`, and remembers what it was sent.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Message>>>,
}

impl Upstream {
    /// Starts an upstream that answers every request.
    pub(crate) fn recording() -> Recorder {
        let upstream = Self::new();
        let address = upstream.address;
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        std::thread::spawn(move || {
            while let Ok(mut wire) = upstream.connections.recv() {
                let kept: Arc<Mutex<Vec<Message>>> = Arc::clone(&kept);
                std::thread::spawn(move || {
                    wire.wait_for_ever();
                    while let Some(request) = wire.request_if_any() {
                        let is_head = request.start.starts_with("HEAD ");
                        kept.lock().expect("no panics here").push(request);
                        let answer = if is_head {
                            OK.trim_end_matches("ok")
                        } else {
                            OK
                        };
                        wire.send(answer);
                    }
                });
            }
        });
        Recorder { address, requests }
    }
}

impl Recorder {
    /// Returns what came since the last time.
    pub(crate) fn take(&self) -> Vec<Message> {
        std::mem::take(&mut *self.requests.lock().expect("no panics here"))
    }
}
