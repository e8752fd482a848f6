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
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Like [`Self::new`], at this address.
    pub(crate) fn at(address: SocketAddr) -> Self {
        Self::accepting(address, |wire| wire)
    }

    /// Like [`Self::new`], but the kernel holds little of what is not read.
    pub(crate) fn with_small_window() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::accepting(any, Wire::with_small_window)
    }

    fn accepting(address: SocketAddr, prepare: impl Fn(Wire) -> Wire + Send + 'static) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
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

/// An upstream that answers by itself, and remembers what it was sent.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Message>>>,
}

impl Upstream {
    /// Starts an upstream that answers every request with 200 `ok`.
    pub(crate) fn recording() -> Recorder {
        Self::new().recorder(|_, request| {
            let is_head = request.start.starts_with("HEAD ");
            Some(if is_head {
                OK.trim_end_matches("ok").to_owned()
            } else {
                OK.to_owned()
            })
        })
    }

    /// Answers every request by its number on its connection, from 0; without an answer the
    /// connection is closed.
    pub(crate) fn recorder(
        self,
        answer: impl Fn(usize, &Message) -> Option<String> + Send + Sync + 'static,
    ) -> Recorder {
        let upstream = self;
        let answer = Arc::new(answer);
        let address = upstream.address;
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        std::thread::spawn(move || {
            while let Ok(mut wire) = upstream.connections.recv() {
                let kept: Arc<Mutex<Vec<Message>>> = Arc::clone(&kept);
                let answer = Arc::clone(&answer);
                std::thread::spawn(move || {
                    wire.wait_for_ever();
                    for number in 0.. {
                        let Some(request) = wire.request_if_any() else {
                            return;
                        };
                        let answer = answer(number, &request);
                        kept.lock().expect("no panics here").push(request);
                        let Some(answer) = answer else { return };
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
