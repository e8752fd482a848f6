//! A deadline that is put off often and hardly ever reached.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is made when first waited for, and armed again only when it fires too early: putting a
/// deadline off costs nothing.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    timer: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// Ready when `deadline` has passed. The deadline may be another one each time.
    pub(crate) fn poll_until(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn only_the_deadline_that_is_asked_for_counts() {
        let long_ago = Instant::now() - Duration::from_mins(1);
        let far_off = Instant::now() + Duration::from_hours(1);
        let mut alarm = Alarm::default();
        let mut rings = |deadline| {
            let mut cx = Context::from_waker(Waker::noop());
            alarm.poll_until(deadline, &mut cx).is_ready()
        };
        assert!(!rings(far_off));
        assert!(rings(long_ago), "brought forward, it rings earlier");
        assert!(rings(long_ago), "and rings again for who asks again");
        assert!(!rings(far_off), "put off, it is silent");
    }
}
