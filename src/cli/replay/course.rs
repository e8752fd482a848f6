//! How counts went over time, in as many slots as fit a page, however long the log is. Knows nothing
//! of what is counted.

use super::entry::Moment;

/// Slots that are kept: 360 × 8 B for each series, which is 29 MiB for 10,000 rules that all act over
/// the whole log.
const SLOTS_MAX: u64 = 360;
/// Rows that are shown at most.
const ROWS_MAX: u64 = 24;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// How wide a slot can be. Each is a multiple of the one before, so that slots can be put together.
const SLOT_WIDTHS: [u64; 14] = [
    100 * MS,
    500 * MS,
    SECOND,
    5 * SECOND,
    10 * SECOND,
    30 * SECOND,
    MINUTE,
    5 * MINUTE,
    15 * MINUTE,
    30 * MINUTE,
    HOUR,
    6 * HOUR,
    DAY,
    10 * DAY,
];
/// How wide a row can be; beyond the last, that one's multiples.
const ROW_WIDTHS: [u64; 22] = [
    100 * MS,
    500 * MS,
    SECOND,
    2 * SECOND,
    5 * SECOND,
    10 * SECOND,
    20 * SECOND,
    30 * SECOND,
    MINUTE,
    2 * MINUTE,
    5 * MINUTE,
    10 * MINUTE,
    15 * MINUTE,
    30 * MINUTE,
    HOUR,
    2 * HOUR,
    3 * HOUR,
    6 * HOUR,
    12 * HOUR,
    DAY,
    5 * DAY,
    10 * DAY,
];

/// Several series of counts over one time.
#[derive(Debug)]
pub(super) struct Course {
    width: u64,
    /// The first slot's place on the calendar, in widths since 1970.
    first: Option<u64>,
    series: Vec<Vec<u64>>,
}

/// A slot, valid until the next call of [`Course::slot`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot(usize);

/// The rows to show: slots put together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rows {
    /// When the first begins.
    pub(super) from: Moment,
    /// How long each is, in nanoseconds.
    pub(super) width: u64,
    /// How many there are.
    pub(super) count: usize,
    /// How many slots before the first slot the first row begins, and how many make a row.
    before: usize,
    each: usize,
}

impl Course {
    pub(super) fn new(series: usize) -> Self {
        let [width, ..] = SLOT_WIDTHS;
        Self {
            width,
            first: None,
            series: vec![Vec::new(); series],
        }
    }

    /// Returns the slot of a moment, which must not be before the first that was asked for.
    pub(super) fn slot(&mut self, at: Moment) -> Slot {
        loop {
            let place = at.0 / self.width;
            let slot = place.saturating_sub(*self.first.get_or_insert(place));
            if slot < SLOTS_MAX {
                return Slot(slot as usize);
            }
            self.widen();
        }
    }

    /// Counts one in a slot.
    pub(super) fn add(&mut self, series: usize, slot: Slot) {
        let Some(counts) = self.series.get_mut(series) else {
            return;
        };
        if counts.len() <= slot.0 {
            counts.resize(slot.0 + 1, 0);
        }
        if let Some(count) = counts.get_mut(slot.0) {
            *count += 1;
        }
    }

    fn widen(&mut self) {
        let wider = SLOT_WIDTHS.into_iter().find(|wide| *wide > self.width);
        let wider = wider.unwrap_or(self.width * 2);
        let factor = wider / self.width;
        let first = self.first.unwrap_or(0);
        let ahead = (first % factor) as usize;
        for counts in &mut self.series {
            *counts = together(counts, ahead, factor as usize);
        }
        self.first = Some(first / factor);
        self.width = wider;
    }

    /// Returns the rows of everything that was counted in a series.
    pub(super) fn rows(&self, series: usize) -> Rows {
        let slots = self.series.get(series).map_or(0, Vec::len) as u64;
        let first = self.first.unwrap_or(0);
        let last = first + slots.saturating_sub(1);
        let count = |each: u64| (last / each) - (first / each) + 1;
        let each = ROW_WIDTHS
            .into_iter()
            .filter(|width| width.is_multiple_of(self.width))
            .map(|width| width / self.width)
            .chain((1..u64::BITS).map(|twice| 1 << twice))
            .find(|each| count(*each) <= ROWS_MAX)
            .unwrap_or(1);
        Rows {
            from: Moment(first / each * each * self.width),
            width: each * self.width,
            count: if slots == 0 { 0 } else { count(each) as usize },
            before: (first % each) as usize,
            each: each as usize,
        }
    }

    /// Returns a series' counts in rows.
    pub(super) fn counts(&self, series: usize, rows: &Rows) -> Vec<u64> {
        let slots = self.series.get(series).map(Vec::as_slice);
        let mut counts = together(slots.unwrap_or_default(), rows.before, rows.each);
        counts.resize(rows.count, 0);
        counts
    }
}

impl Rows {
    /// Returns when a row begins.
    pub(super) fn moment(&self, row: usize) -> Moment {
        Moment(
            self.from
                .0
                .saturating_add(self.width.saturating_mul(row as u64)),
        )
    }
}

/// Adds up every `each` counts, as if `ahead` empty ones stood before them.
fn together(counts: &[u64], ahead: usize, each: usize) -> Vec<u64> {
    let (head, rest) = counts.split_at(counts.len().min(each.saturating_sub(ahead)));
    let sum = |some: &[u64]| some.iter().sum();
    let head = (!head.is_empty()).then(|| sum(head));
    head.into_iter().chain(rest.chunks(each).map(sum)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_begin_where_a_clock_strikes() {
        let mut course = Course::new(2);
        let begin = 1_790_000_000 * SECOND / HOUR * HOUR + 7 * MINUTE;
        for minute in 0..60 {
            let slot = course.slot(Moment(begin + minute * MINUTE));
            course.add(0, slot);
            if minute == 10 {
                course.add(1, slot);
            }
        }
        let rows = course.rows(0);
        assert_eq!((rows.width, rows.count), (5 * MINUTE, 13));
        assert_eq!(rows.from.0, begin - 2 * MINUTE);
        let [first, .., last] = *course.counts(0, &rows) else {
            panic!("there are 13 rows");
        };
        assert_eq!((first, last), (3, 2));
        assert_eq!(course.counts(1, &rows)[2], 1);
        assert_eq!(course.counts(1, &rows).len(), 13);
    }

    proptest! {
        /// Nothing is lost, and everything is in the row of its time.
        #[test]
        fn every_moment_is_in_its_row(
            start in 0..4_000_000_000_u64,
            mut steps in proptest::collection::vec(0..u64::MAX, 1..100),
            power in 1..60_u32,
        ) {
            let mut course = Course::new(1);
            let mut at = start * SECOND;
            let mut moments = Vec::new();
            for step in &mut steps {
                at = at.saturating_add(*step >> power).min(u64::MAX / 2);
                moments.push(at);
                let slot = course.slot(Moment(at));
                course.add(0, slot);
            }
            let rows = course.rows(0);
            prop_assert!(rows.count as u64 <= ROWS_MAX);
            let mut expected = vec![0; rows.count];
            for at in moments {
                expected[((at - rows.from.0) / rows.width) as usize] += 1;
            }
            prop_assert_eq!(course.counts(0, &rows), expected);
        }
    }
}
