//! Which single addresses send the most. Knows nothing of who they are.

use std::net::IpAddr;

use super::Random;
use crate::request::counted_address;

/// Buckets: 512 × 32 B = 16 KiB.
const BUCKETS: usize = 1 << 9;

/// Requests of one address in one tick.
#[derive(Clone, Copy, Debug)]
pub struct Talker {
    /// The address as it counts: IPv6 as its /64.
    pub address: IpAddr,
    /// Its requests.
    pub requests: u32,
    hash: u64,
}

/// The busiest addresses, by the same method as [`super::CocoSketch`].
///
/// # Accuracy
///
/// Estimates are unbiased; an address with share `p` of all requests is estimated with a relative
/// standard error of at most √((1-p)/(512·p)): 2.2 % for p = 50 %.
#[derive(Clone, Debug)]
pub struct Talkers {
    buckets: Vec<Option<Talker>>,
}

impl Talkers {
    pub(super) fn new() -> Self {
        Self {
            buckets: vec![None; BUCKETS],
        }
    }

    /// Walks the addresses.
    pub fn iter(&self) -> impl Iterator<Item = &Talker> {
        self.buckets.iter().flatten()
    }

    pub(super) fn add(&mut self, hash: u64, address: IpAddr, random: &mut Random) {
        let places = [hash as usize % BUCKETS, (hash >> 32) as usize % BUCKETS];
        let mut smaller = (places[0], u32::MAX);
        for at in places {
            match self.buckets.get_mut(at) {
                Some(Some(talker)) if talker.hash == hash => {
                    talker.requests = talker.requests.saturating_add(1);
                    return;
                }
                Some(Some(talker)) if talker.requests < smaller.1 => {
                    smaller = (at, talker.requests);
                }
                Some(None) if smaller.1 > 0 => smaller = (at, 0),
                _ => {}
            }
        }
        let requests = smaller.1.saturating_add(1);
        if let Some(bucket) = self.buckets.get_mut(smaller.0) {
            match bucket {
                Some(talker) if random.unit() * f64::from(requests) >= 1.0 => {
                    talker.requests = requests;
                }
                _ => {
                    let address = counted_address(address);
                    *bucket = Some(Talker {
                        address,
                        requests,
                        hash,
                    });
                }
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.buckets.fill(None);
    }
}
