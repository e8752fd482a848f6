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
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_the_deadline_that_is_asked_for_counts() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut alarm = Alarm::default();
        let mut wait = async |seconds| poll_fn(|cx| alarm.poll_until(at(seconds), cx)).await;
        tokio::time::timeout(Duration::from_secs(1), wait(5))
            .await
            .unwrap_err();
        wait(9).await;
        assert_eq!(began.elapsed().as_secs(), 9, "put off, it rings later");
        tokio::time::timeout(Duration::from_secs(1), wait(30))
            .await
            .unwrap_err();
        wait(12).await;
        assert_eq!(began.elapsed().as_secs(), 12, "brought forward, earlier");
        wait(3).await;
        assert_eq!(began.elapsed().as_secs(), 12, "what is past is past");
    }
}
