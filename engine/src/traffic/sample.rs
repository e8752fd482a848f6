//! A coordinated sample of clients: the same clients in every worker and every tick.

use super::LeafKey;

/// The most rows of one sample: 1,024 × 80 B = 80 KiB.
pub const ROWS_MAX: usize = 1024;

/// Places of the index: twice the rows, so that a probe ends soon.
const PLACES: usize = 2 * ROWS_MAX;

/// How often a sample can be halved; 2⁻⁴⁰ of all clients is nobody.
const SHIFT_MAX: u32 = 40;

/// The requests of one client with one set of who attributes.
#[derive(Clone, Copy, Debug)]
pub struct SampleRow {
    /// The client: the keyed hash of its instance or address.
    pub client: u64,
    /// What describes it.
    pub who: LeafKey,
    /// Its requests.
    pub requests: u32,
}

/// Requests per client, of those clients whose hash begins with `shift` zero bits.
///
/// Who takes part depends on the client's keyed hash alone, so counts of one client from several
/// workers and ticks add up, and a sample at a higher shift is a part of one at a lower. A full
/// sample halves itself by raising its shift.
///
/// # Accuracy
///
/// A number of clients `n` that left `k` of them in the sample is estimated as `k · 2^shift`, with a
/// relative standard error of 1/√k.
#[derive(Clone, Debug)]
pub struct Sample {
    shift: u32,
    rows: Vec<SampleRow>,
    /// Row + 1 by hash; 0 is free.
    places: Vec<u16>,
}

impl Sample {
    pub(super) fn new() -> Self {
        Self {
            shift: 0,
            rows: Vec::with_capacity(ROWS_MAX),
            places: vec![0; PLACES],
        }
    }

    /// Returns how many leading zero bits a client's hash has that takes part.
    pub fn shift(&self) -> u32 {
        self.shift
    }

    /// Returns the rows.
    pub fn rows(&self) -> &[SampleRow] {
        &self.rows
    }

    pub(super) fn takes(&self, client: u64) -> bool {
        client.leading_zeros() >= self.shift
    }

    pub(super) fn add(&mut self, client: u64, who: &LeafKey) {
        let mut place = Self::place(client, who);
        for _ in 0..PLACES {
            match self.places.get(place) {
                Some(0) | None => break,
                Some(row) => {
                    if let Some(row) = self.rows.get_mut(usize::from(*row) - 1)
                        && row.client == client
                        && row.who == *who
                    {
                        row.requests += 1;
                        return;
                    }
                }
            }
            place = (place + 1) % PLACES;
        }
        while self.rows.len() >= ROWS_MAX && self.shift < SHIFT_MAX {
            self.halve();
        }
        if self.takes(client) && self.rows.len() < ROWS_MAX {
            self.rows.push(SampleRow {
                client,
                who: *who,
                requests: 1,
            });
            self.index(self.rows.len(), client, who);
        }
    }

    pub(super) fn clear(&mut self, shift: u32) {
        self.shift = shift.min(SHIFT_MAX);
        if !self.rows.is_empty() {
            self.rows.clear();
            self.places.fill(0);
        }
    }

    /// Keeps the clients with one more leading zero bit: about half.
    fn halve(&mut self) {
        self.shift += 1;
        let shift = self.shift;
        self.rows.retain(|row| row.client.leading_zeros() >= shift);
        self.places.fill(0);
        for at in 0..self.rows.len() {
            if let Some(row) = self.rows.get(at).copied() {
                self.index(at + 1, row.client, &row.who);
            }
        }
    }

    fn index(&mut self, row: usize, client: u64, who: &LeafKey) {
        let mut place = Self::place(client, who);
        for _ in 0..PLACES {
            if let Some(free @ 0) = self.places.get_mut(place) {
                *free = row as u16;
                return;
            }
            place = (place + 1) % PLACES;
        }
    }

    fn place(client: u64, who: &LeafKey) -> usize {
        (client ^ who.tag()) as usize % PLACES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::Random;

    #[test]
    fn a_full_sample_still_estimates_the_number_of_clients() {
        let mut random = Random::from_seed(5);
        let mut sample = Sample::new();
        for _ in 0..100_000 {
            let client = random.bits();
            if sample.takes(client) {
                sample.add(client, &LeafKey::default());
            }
        }
        let estimate = sample.rows().len() as f64 * f64::from(1_u32 << sample.shift());
        assert!((estimate / 100_000.0 - 1.0).abs() < 0.2, "{estimate}");
    }

    #[test]
    fn a_client_that_takes_part_is_counted_request_by_request() {
        let mut sample = Sample::new();
        for _ in 0..7 {
            sample.add(42, &LeafKey::default());
        }
        assert_eq!(sample.rows().len(), 1);
        assert_eq!(sample.rows()[0].requests, 7);
    }
}
