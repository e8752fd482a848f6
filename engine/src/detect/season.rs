//! How busy each time of day is: what was normal yesterday at this hour is no surge today.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::time::{Instant, unix_seconds};

/// Slots of a day: 288 × 4 B. A slot is five minutes.
pub(super) const SLOTS: usize = 288;
const SLOT_S: f64 = 300.0;
const DAY_S: f64 = SLOTS as f64 * SLOT_S;

/// How much a new day counts against those before.
const NEW_DAY: f32 = 0.3;

/// Share of a slot that must have been learnt before its mean is kept.
const LEARNT_MIN: f64 = 0.5;

/// Requests per second by time of day.
#[derive(Clone, Debug)]
pub(super) struct Season {
    /// Seconds of the day at [`Instant::ZERO`]; `None` while the time of day is not known.
    offset: Option<f64>,
    set_at: Instant,
    /// 0: not known yet.
    slots: Vec<f32>,
    slot: Option<usize>,
    sum: f64,
    seconds: f64,
}

impl Default for Season {
    fn default() -> Self {
        Self {
            offset: None,
            set_at: Instant::ZERO,
            slots: vec![0.0; SLOTS],
            slot: None,
            sum: 0.0,
            seconds: 0.0,
        }
    }
}

impl Season {
    /// Takes over that it is `wall` at `now`. Days are those of UTC.
    pub(super) fn set_clock(&mut self, wall: SystemTime, now: Instant) {
        self.offset = Some(unix_seconds(wall) - now.as_secs_f64());
        self.set_at = now;
    }

    /// Returns what time it is at `now`.
    pub(super) fn wall(&self, now: Instant) -> Option<SystemTime> {
        let seconds = self.offset? + now.as_secs_f64();
        Some(UNIX_EPOCH + Duration::try_from_secs_f64(seconds).ok()?)
    }

    /// Returns when the clock was set.
    pub(super) fn set_at(&self) -> Instant {
        self.set_at
    }

    /// Takes over the clock of another one.
    pub(super) fn take_clock(&mut self, other: &Self) {
        self.offset = other.offset;
        self.set_at = other.set_at;
    }

    /// Learns the level at `now`, which held for `seconds`.
    pub(super) fn learn(&mut self, level: f64, seconds: f64, now: Instant) {
        let Some(second) = self.second_of_day(now) else {
            return;
        };
        let slot = (second / SLOT_S) as usize % SLOTS;
        if self.slot != Some(slot) {
            self.close();
            self.slot = Some(slot);
        }
        self.sum += level * seconds;
        self.seconds += seconds;
    }

    fn close(&mut self) {
        if let Some(slot) = self.slot.and_then(|at| self.slots.get_mut(at))
            && self.seconds >= LEARNT_MIN * SLOT_S
        {
            let mean = (self.sum / self.seconds) as f32;
            *slot = if *slot > 0.0 {
                *slot + NEW_DAY * (mean - *slot)
            } else {
                mean
            };
        }
        self.sum = 0.0;
        self.seconds = 0.0;
    }

    /// Returns the requests per second that are usual at this time of day, between two slots in
    /// proportion; `None` before a day was seen.
    pub(super) fn level(&self, now: Instant) -> Option<f64> {
        let place = self.second_of_day(now)? / SLOT_S - 0.5;
        let place = place.rem_euclid(SLOTS as f64);
        let at = place as usize % SLOTS;
        let slot = |at: usize| {
            let level = f64::from(*self.slots.get(at % SLOTS)?);
            (level > 0.0).then_some(level)
        };
        let part = place.fract();
        Some(slot(at)? * (1.0 - part) + slot(at + 1)? * part)
    }

    fn second_of_day(&self, now: Instant) -> Option<f64> {
        Some((self.offset? + now.as_secs_f64()).rem_euclid(DAY_S))
    }

    pub(super) fn slots(&self) -> &[f32] {
        &self.slots
    }

    pub(super) fn restore(&mut self, slots: impl Iterator<Item = f32>) {
        for (slot, level) in self.slots.iter_mut().zip(slots) {
            *slot = level;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after_days(days: f64) -> Season {
        let mut season = Season::default();
        season.set_clock(UNIX_EPOCH, Instant::ZERO);
        let mut second = 0.0;
        while second < days * DAY_S {
            let level = 2000.0 + 1000.0 * (std::f64::consts::TAU * second / DAY_S).sin();
            season.learn(level, 60.0, Instant::from_secs_f64(second));
            second += 60.0;
        }
        season
    }

    #[test]
    fn after_a_day_the_level_of_each_time_of_day_is_known() {
        let season = after_days(1.1);
        for hour in [1.0, 6.0, 13.5, 20.0] {
            let second = hour * 3600.0;
            let expected = 2000.0 + 1000.0 * (std::f64::consts::TAU * second / DAY_S).sin();
            let level = season
                .level(Instant::from_secs_f64(DAY_S + second))
                .unwrap();
            assert!((level / expected - 1.0).abs() < 0.03, "{hour} h: {level}");
        }
    }

    #[test]
    fn before_a_day_was_seen_nothing_is_known_of_the_rest_of_it() {
        let season = after_days(0.5);
        assert_eq!(season.level(Instant::from_secs_f64(0.75 * DAY_S)), None);
        assert_eq!(Season::default().level(Instant::ZERO), None);
    }
}
