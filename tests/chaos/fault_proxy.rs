//! A TCP proxy that breaks what goes through it, while it goes through: latency, stalls, black holes,
//! resets, ends of one direction, garbage, slow drips, refusals. What is behind stays well.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::background::Background;

/// The most bytes that are in flight in one direction of one connection, besides the kernel's.
const PIECE_BYTES: usize = 16 * 1024;
/// What is sent in place of an answer.
const GARBAGE: &[u8] = b"\x16\x03\x01\x00\x00 this is not HTTP \xff\xfe\x00\r\n\r\n";

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    Nothing,
    /// Each piece of an answer comes so much later.
    Latency(Duration),
    /// Connections are accepted, and nothing goes through; all of it does when this is over.
    Stall,
    /// Connections that exist are silent for ever, without an end; new ones are well.
    BlackHole,
    /// All connections are reset, new ones as soon as they are there.
    Reset,
    /// What comes next from behind ends the sending direction instead; the other one stays open.
    HalfClose,
    /// What comes next from behind arrives as garbage.
    Garbage,
    /// Answers come byte by byte, one in each so long a time.
    Drip(Duration),
    /// Nobody listens, and connections that there were are reset.
    Refuse,
}

/// The proxy, as long as it lives.
#[derive(Debug)]
pub(crate) struct FaultProxy {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    fault: watch::Sender<Fault>,
    /// Keeps the port while nobody listens.
    _port: Socket,
    _thread: Background,
}

impl FaultProxy {
    /// Passes everything on to `behind`.
    pub(crate) fn before(behind: SocketAddr) -> Self {
        let port = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        let address = port.local_addr().expect("a bound socket");
        let address = address.as_socket().expect("an address of IP");
        let (fault, faults) = watch::channel(Fault::Nothing);
        let thread = Background::start("faults", move || {
            tokio::task::spawn_local(listen(address, behind, faults));
        });
        let proxy = Self {
            address,
            fault,
            _port: port,
            _thread: thread,
        };
        proxy.wait_until_listening();
        proxy
    }

    fn wait_until_listening(&self) {
        while std::net::TcpStream::connect(self.address).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Breaks it in another way from now on.
    pub(crate) fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
        if fault != Fault::Refuse {
            self.wait_until_listening();
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bind(address)?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

async fn listen(address: SocketAddr, behind: SocketAddr, mut faults: watch::Receiver<Fault>) {
    loop {
        let may_listen = faults.wait_for(|fault| *fault != Fault::Refuse).await;
        if may_listen.is_err() {
            return;
        }
        drop(may_listen);
        let open = listener(address).expect("the port is kept");
        let mut changes = faults.clone();
        loop {
            let stream = tokio::select! {
                accepted = open.accept() => accepted,
                refuse = changes.wait_for(|fault| *fault == Fault::Refuse) => {
                    if refuse.is_err() {
                        return;
                    }
                    break;
                }
            };
            let Ok((stream, _peer)) = stream else {
                sleep(Duration::from_millis(1)).await;
                continue;
            };
            let passing = connection(stream, behind, faults.clone());
            // A connection that fails is for those at its ends to notice.
            tokio::task::spawn_local(async move { drop(passing.await) });
        }
    }
}

/// Passes on what comes on one connection, until it ends or breaks.
async fn connection(
    mut front: TcpStream,
    behind: SocketAddr,
    mut faults: watch::Receiver<Fault>,
) -> io::Result<()> {
    let born = *faults.borrow_and_update();
    if born == Fault::Reset {
        return reset(&front);
    }
    let mut back = TcpStream::connect(behind).await?;
    front.set_nodelay(true)?;
    back.set_nodelay(true)?;
    let broken = {
        let (front_read, front_write) = front.split();
        let (back_read, back_write) = back.split();
        // Requests arrive as they were sent, but for being held up.
        let up = pass(front_read, back_write, faults.clone(), |_| Fault::Nothing);
        let down = pass(back_read, front_write, faults.clone(), |fault| fault);
        let both = async { tokio::join!(up, down) };
        tokio::select! {
            (up, down) = both => return up.and(down),
            fault = breaks(&mut faults, born) => fault,
        }
    };
    if broken != Fault::BlackHole {
        reset(&back)?;
        return reset(&front);
    }
    // Silent for as long as there is this proxy: not even an end is told.
    drop(back);
    while faults.changed().await.is_ok() {}
    Ok(())
}

/// Waits until a connection breaks as a whole. A black hole swallows those that were there before.
async fn breaks(faults: &mut watch::Receiver<Fault>, born: Fault) -> Fault {
    let breaks = |fault: &Fault| match fault {
        Fault::Reset | Fault::Refuse => true,
        Fault::BlackHole => born != Fault::BlackHole,
        _ => false,
    };
    match faults.wait_for(breaks).await {
        Ok(fault) => *fault,
        Err(_the_proxy_is_gone) => Fault::Reset,
    }
}

/// Has the kernel reset a connection when it is closed.
fn reset(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// Waits while nothing goes through; returns what is wrong otherwise.
async fn passes(faults: &mut watch::Receiver<Fault>) -> Fault {
    match faults.wait_for(|fault| *fault != Fault::Stall).await {
        Ok(fault) => *fault,
        Err(_the_proxy_is_gone) => Fault::Reset,
    }
}

/// Passes on what comes one way, broken as far as that concerns it.
async fn pass(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut faults: watch::Receiver<Fault>,
    concerns: fn(Fault) -> Fault,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = from.read(&mut piece).await?;
        let fault = concerns(passes(&mut faults).await);
        if count == 0 || fault == Fault::HalfClose {
            return to.shutdown().await;
        }
        let piece = piece.get(..count).unwrap_or_default();
        match fault {
            Fault::Latency(delay) => {
                sleep(delay).await;
                to.write_all(piece).await?;
            }
            Fault::Garbage => {
                to.write_all(GARBAGE).await?;
                return to.shutdown().await;
            }
            Fault::Drip(interval) => {
                for byte in piece {
                    to.write_all(&[*byte]).await?;
                    sleep(interval).await;
                }
            }
            _ => to.write_all(piece).await?,
        }
    }
}
