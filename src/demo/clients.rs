//! The simulated clients: the honest, who are measured, and the loop, which is counted.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use rustix::process::setpriority_process;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::background::Background;
use super::devices::{Device, Random};
use super::report::{End, Outcome};
use super::wire::{Answer, Connection};

/// Honest devices; each sends about one request a second.
pub(super) const HONEST: u32 = 400;
/// After how long an honest client gives up.
const HONEST_PATIENCE: Duration = Duration::from_secs(2);

/// Looping devices at a time.
pub(super) const LOOPERS: u32 = 900;
/// What all of them send, in requests per second, unless they wait for answers.
pub(super) const LOOP_PER_SECOND: u32 = 7500;
/// After how long a looping device gives up, and asks again at once.
const LOOP_PATIENCE: Duration = Duration::from_millis(300);
/// How many requests a looping device sends, on average, before another takes its place.
const REQUESTS_PER_LOOPER: u64 = 30;
/// Within which time all have begun: in the period of one, 900 / 7,500 s.
const LOOP_BEGINS_WITHIN: f64 = 0.12;

/// Starts the honest clients. Each request's outcome goes to `outcomes`; times count from `began`.
///
/// They are an open loop: latency counts from when a request was due, and a client that is held up
/// is late with the next one, so no stall hides behind clients that wait for it.
pub(super) fn start_honest(
    proxy: SocketAddr,
    began: std::time::Instant,
    outcomes: SyncSender<Outcome>,
) -> io::Result<Background> {
    Background::start("demo-honest", move || {
        let mut random = Random::new(1);
        for number in 0..HONEST {
            let device = Device::honest(number, &mut random);
            let random = Random::new(random.next());
            let outcomes = outcomes.clone();
            tokio::task::spawn_local(honest(device, proxy, began.into(), outcomes, random));
        }
        Ok(())
    })
}

async fn honest(
    device: Device,
    proxy: SocketAddr,
    began: Instant,
    outcomes: SyncSender<Outcome>,
    mut random: Random,
) {
    let mut connection = None;
    let mut due = began + Duration::from_secs_f64(random.fraction());
    loop {
        sleep_until(due).await;
        let request = device.request(&mut random);
        let asked = ask_again(&mut connection, &device, proxy, &request);
        // What ends otherwise has closed its connection.
        let end = match timeout_at(due + HONEST_PATIENCE, asked).await {
            Ok(Ok(answer)) => End::of_status(answer.status),
            Ok(Err(_)) | Err(_) => End::Failed,
        };
        let outcome = Outcome {
            due: due - began,
            took: due.elapsed(),
            end,
        };
        if outcomes.send(outcome).is_err() {
            return;
        }
        due += Duration::from_secs_f64(0.5 + random.fraction());
    }
}

/// Asks; once more where the connection was kept and has been closed meanwhile, as all clients do.
async fn ask_again(
    connection: &mut Option<Connection>,
    device: &Device,
    proxy: SocketAddr,
    request: &[u8],
) -> io::Result<Answer> {
    let was_kept = connection.is_some();
    match ask(connection, device, proxy, request).await {
        Err(_closed) if was_kept => ask(connection, device, proxy, request).await,
        asked => asked,
    }
}

async fn ask(
    connection: &mut Option<Connection>,
    device: &Device,
    proxy: SocketAddr,
    request: &[u8],
) -> io::Result<Answer> {
    let mut open = match connection.take() {
        Some(open) => open,
        None => Connection::open(device.address, proxy).await?,
    };
    let answer = open.ask(request).await?;
    if answer.keep {
        *connection = Some(open);
    }
    Ok(answer)
}

/// What became of the loop's requests.
#[derive(Debug, Default)]
pub(super) struct LoopTally {
    /// Sent.
    pub(super) sent: AtomicU64,
    /// Answered 429 or 403.
    pub(super) refused: AtomicU64,
}

impl LoopTally {
    /// Returns what was sent and what was refused.
    pub(super) fn read(&self) -> (u64, u64) {
        (
            self.sent.load(Ordering::Relaxed),
            self.refused.load(Ordering::Relaxed),
        )
    }
}

/// How far the loop's thread stands back for the others when the processors are busy.
const LOOP_NICENESS: i32 = 5;

/// Starts the loop.
///
/// Phones have processors of their own; here they share them with what is measured. So this thread
/// has the lower priority. It still sends what it should unless the machine is busy elsewhere; what
/// it sends is told in each line.
pub(super) fn start_loop(proxy: SocketAddr, tally: Arc<LoopTally>) -> io::Result<Background> {
    Background::start("demo-loop", move || {
        // Of this thread alone, on Linux. Without it, the figures are noisier.
        setpriority_process(None, LOOP_NICENESS).unwrap_or(());
        let next = Rc::new(RefCell::new(NextDevice {
            number: HONEST,
            random: Random::new(2),
        }));
        for _ in 0..LOOPERS {
            tokio::task::spawn_local(looper(Rc::clone(&next), proxy, Arc::clone(&tally)));
        }
        Ok(())
    })
}

/// Makes the devices of the loop, one after the other.
#[derive(Debug)]
struct NextDevice {
    number: u32,
    random: Random,
}

impl NextDevice {
    fn take(&mut self) -> (Device, Random) {
        let device = Device::looping(self.number, &mut self.random);
        self.number += 1;
        (device, Random::new(self.random.next()))
    }
}

/// One device that loops, and after a while the next one in its place.
async fn looper(next: Rc<RefCell<NextDevice>>, proxy: SocketAddr, tally: Arc<LoopTally>) {
    let period = Duration::from_secs(1) * LOOPERS / LOOP_PER_SECOND;
    let phase = next.borrow_mut().random.fraction() * LOOP_BEGINS_WITHIN;
    let mut due = Instant::now() + Duration::from_secs_f64(phase);
    loop {
        let (device, mut random) = next.borrow_mut().take();
        let mut connection = None;
        for _ in 0..=random.next() % (2 * REQUESTS_PER_LOOPER) {
            sleep_until(due).await;
            let request = device.request(&mut random);
            tally.sent.fetch_add(1, Ordering::Relaxed);
            let asked = ask(&mut connection, &device, proxy, &request);
            if let Ok(Ok(answer)) = timeout(LOOP_PATIENCE, asked).await
                && End::of_status(answer.status) == End::Refused
            {
                tally.refused.fetch_add(1, Ordering::Relaxed);
            }
            due = (due + period).max(Instant::now());
        }
    }
}
