//! The upstream behind the policy: a queue with a capacity. Knows nothing of who waits in it.

/// The upstream answers what waits no longer than this; the rest fails.
const WAIT_MAX_S: f64 = 1.0;

/// It suffers when its answers take three times as long as usual, if that is 50 ms.
const SUFFERING_S: f64 = 0.15;

/// The queue in front of the upstream.
#[derive(Debug)]
pub(super) struct Upstream {
    /// Requests per second; infinite where there is no bound.
    capacity: f64,
    waiting: f64,
}

impl Upstream {
    pub(super) fn new(capacity: Option<f64>) -> Self {
        Self {
            capacity: capacity.unwrap_or(f64::INFINITY),
            waiting: 0.0,
        }
    }

    /// Takes what was let through in a tick; returns the share of it that fails.
    pub(super) fn serve(&mut self, requests: f64, seconds: f64) -> f64 {
        self.waiting = (self.waiting + requests - self.capacity * seconds).max(0.0);
        let failed = (self.waiting - self.capacity * WAIT_MAX_S).max(0.0);
        self.waiting -= failed;
        if requests > 0.0 {
            failed / requests
        } else {
            0.0
        }
    }

    pub(super) fn suffers(&self) -> bool {
        self.waiting > self.capacity * SUFFERING_S
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_the_capacity_waits_and_then_fails() {
        let mut upstream = Upstream::new(Some(1000.0));
        assert!(upstream.serve(100.0, 0.1).abs() < 1e-9);
        assert!(!upstream.suffers());
        assert!(upstream.serve(300.0, 0.1).abs() < 1e-9, "200 wait");
        assert!(upstream.suffers());
        let failed = upstream.serve(2100.0, 0.1);
        assert!((failed - 1200.0 / 2100.0).abs() < 1e-9, "{failed}");
        for _ in 0..9 {
            upstream.serve(0.0, 0.1);
        }
        assert!(!upstream.suffers());
    }

    #[test]
    fn an_upstream_without_bound_never_suffers() {
        let mut upstream = Upstream::new(None);
        assert!(upstream.serve(1e9, 0.1).abs() < 1e-9);
        assert!(!upstream.suffers());
    }
}
