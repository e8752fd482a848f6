//! Wakes the thread that reads files, from any thread. However often it rings before somebody comes,
//! that is one reload.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// A bell.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rings: Mutex<Rings>,
    rung: Condvar,
}

/// What the bell was rung for since it was last heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rings {
    /// Something changed on the disk.
    pub(super) changed: bool,
    /// An operator asks.
    pub(super) asked: bool,
    /// All is over. Stays.
    pub(super) ended: bool,
}

impl Rings {
    /// Adds what it was rung for later.
    pub(super) fn join(&mut self, later: Self) {
        self.changed |= later.changed;
        self.asked |= later.asked;
        self.ended |= later.ended;
    }
}

impl Bell {
    /// Notes that something changed on the disk.
    pub(super) fn changed(&self) {
        self.ring(|rings| rings.changed = true);
    }

    /// Notes that an operator asks.
    pub(super) fn ask(&self) {
        self.ring(|rings| rings.asked = true);
    }

    /// Notes that all is over.
    pub(super) fn end(&self) {
        self.ring(|rings| rings.ended = true);
    }

    fn ring(&self, note: impl FnOnce(&mut Rings)) {
        note(&mut self.rings.lock());
        self.rung.notify_one();
    }

    /// Waits until it rings, `at_most` so long, and returns what for.
    pub(super) fn wait(&self, at_most: Duration) -> Rings {
        let deadline = Instant::now() + at_most;
        let mut rings = self.rings.lock();
        while *rings == Rings::default() {
            if self.rung.wait_until(&mut rings, deadline).timed_out() {
                break;
            }
        }
        let heard = *rings;
        *rings = Rings {
            ended: heard.ended,
            ..Rings::default()
        };
        heard
    }

    /// Returns whether all is over.
    pub(super) fn has_ended(&self) -> bool {
        self.rings.lock().ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rings_are_heard_once_and_the_end_is_heard_for_ever() {
        let bell = Bell::default();
        for _ in 0..50 {
            bell.changed();
        }
        bell.ask();
        let heard = bell.wait(Duration::ZERO);
        assert!(heard.changed && heard.asked && !heard.ended);
        assert_eq!(bell.wait(Duration::ZERO), Rings::default());
        bell.end();
        for _ in 0..2 {
            assert!(bell.wait(Duration::from_mins(1)).ended);
        }
    }
}
