//! Panics on purpose, at places where one must not end more than it has to. In tests only: otherwise
//! [`point`] is nothing.

/// Where a panic can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// While a request is served.
    Request,
    /// While a worker does what must be done now and then.
    Housekeeping,
    /// While the control side ticks.
    Tick,
    /// While files are read.
    Reload,
    /// While the admin side answers.
    Admin,
}

#[cfg(not(test))]
#[inline]
pub(crate) const fn point(_: Point) {}

#[cfg(test)]
pub(crate) use asked::{ask_for, point};

#[cfg(test)]
mod asked {
    use parking_lot::Mutex;

    use super::Point;

    static ASKED: Mutex<Vec<Point>> = Mutex::new(Vec::new());

    #[expect(clippy::panic, reason = "it is what was asked for")]
    pub(crate) fn point(here: Point) {
        let mut asked = ASKED.lock();
        if let Some(at) = asked.iter().position(|point| *point == here) {
            asked.remove(at);
            drop(asked);
            panic!("asked for at {here:?}");
        }
    }

    /// Has a place panic once.
    pub(crate) fn ask_for(point: Point) {
        ASKED.lock().push(point);
    }
}
