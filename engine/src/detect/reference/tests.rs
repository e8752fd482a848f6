//! What the reference learns, and how fast.

use std::borrow::Cow;

use super::*;
use crate::attribute::{AttributeId, AttributeKind, AttributeSpec, Schema, Side};
use crate::request::{HashKey, RequestFacts};

struct Apps {
    columns: Columns,
    app: AttributeId,
    key: HashKey,
}

impl Apps {
    fn new() -> Self {
        let mut schema = Schema::built_in();
        let spec = AttributeSpec {
            name: "app".into(),
            kind: AttributeKind::Text,
            side: Side::Who,
            secret: false,
        };
        let app = schema.add(spec).unwrap();
        Self {
            columns: Columns::of(&schema),
            app,
            key: HashKey::from_seed(1),
        }
    }

    fn leaf(&self, app: usize, requests: f64) -> Leaf {
        let mut facts = RequestFacts::new(&self.key, [192, 0, 2, 1].into());
        facts.set(self.app, Cow::Owned(format!("app-{app}")));
        facts.set(AttributeId::SERVICE, Cow::Borrowed("chat"));
        Leaf {
            key: self.columns.key(&facts, false),
            requests,
        }
    }

    fn literal(&self, app: usize) -> Literal {
        let column = self.columns.of_attribute(self.app).unwrap();
        let value = self.leaf(app, 1.0).key.value(column);
        Literal { column, value }
    }

    /// Lets 20 apps send `rate(app, second)` requests a second each, in steps of half a minute.
    fn teach(
        &self,
        reference: &mut Reference,
        seconds: std::ops::Range<u32>,
        rate: impl Fn(usize, f64) -> f64,
    ) {
        for second in seconds.step_by(30) {
            let leaves: Vec<Leaf> = (0..20)
                .map(|app| self.leaf(app, 30.0 * rate(app, f64::from(second))))
                .collect();
            let now = Instant::from_secs_f64(f64::from(second));
            reference.learn(leaves.iter(), 30.0, 0.0, now);
            reference.settle(self.columns.len(), |_| false);
        }
    }

    fn reference(&self) -> Reference {
        let mut reference = Reference::new(Duration::from_mins(10), &self.columns, 1);
        reference.set_clock(SystemTime::UNIX_EPOCH, Instant::ZERO);
        reference
    }
}

const HOUR: u32 = 3600;

#[test]
fn an_attack_that_creeps_for_six_hours_raises_what_is_expected_by_a_fifth_an_hour_at_most() {
    let apps = Apps::new();
    let mut reference = apps.reference();
    apps.teach(&mut reference, 0..HOUR, |_, _| 100.0);
    let mut before = reference.expected_of(apps.literal(7));
    assert!((before / 100.0 - 1.0).abs() < 0.05, "{before}");
    for hour in 1..=6 {
        // 5 % a minute; it stops growing at a thousand times what it was.
        let creeps = |app, second: f64| match app {
            7 => 100.0 * 1.05_f64.powf((second - f64::from(HOUR)) / 60.0).min(1000.0),
            _ => 100.0,
        };
        apps.teach(&mut reference, hour * HOUR..(hour + 1) * HOUR, creeps);
        let after = reference.expected_of(apps.literal(7));
        assert!(after <= 1.2 * before, "hour {hour}: {before} to {after}");
        before = after;
    }
    let others = reference.expected_of(apps.literal(3));
    assert!((others / 100.0 - 1.0).abs() < 0.2, "the others: {others}");
}

/// The control: who grows together with all others is learnt as he comes.
#[test]
fn a_busy_morning_of_all_is_learnt_within_minutes() {
    let apps = Apps::new();
    let mut reference = apps.reference();
    apps.teach(&mut reference, 0..HOUR, |_, _| 100.0);
    let grows = |_, second: f64| 100.0 + 200.0 * (second / f64::from(HOUR) - 1.0).min(1.0);
    apps.teach(&mut reference, HOUR..3 * HOUR, grows);
    let expected = reference.expected_of(apps.literal(7));
    assert!((expected / 300.0 - 1.0).abs() < 0.1, "{expected}");
}

#[test]
fn what_was_usual_at_this_time_yesterday_is_expected_today() {
    let apps = Apps::new();
    let mut reference = apps.reference();
    // Each day at nine it jumps to three times as much, for an hour.
    let jumps = |_, second: f64| {
        let hour = second / 3600.0 % 24.0;
        if (9.0..10.0).contains(&hour) {
            300.0
        } else {
            100.0
        }
    };
    let ten_to_nine = 33 * HOUR - 600;
    apps.teach(&mut reference, 0..ten_to_nine, jumps);
    let before = reference.level();
    assert!((before / 2000.0 - 1.0).abs() < 0.1, "{before}");
    apps.teach(&mut reference, ten_to_nine..33 * HOUR + 600, |_, _| 100.0);
    let expected = reference.level();
    assert!(expected > 1.9 * 2000.0, "{expected}");
}

/// The last minutes say 0.7 of what is expected, the last day the rest.
#[test]
fn who_sent_all_day_is_still_expected_after_an_hour_of_silence() {
    let apps = Apps::new();
    let mut reference = apps.reference();
    apps.teach(&mut reference, 0..24 * HOUR, |_, _| 100.0);
    let silent = |app, _| if app == 7 { 0.0 } else { 100.0 };
    apps.teach(&mut reference, 24 * HOUR..25 * HOUR, silent);
    let expected = reference.expected_of(apps.literal(7));
    assert!((20.0..50.0).contains(&expected), "{expected}");
}

/// A process that was stopped for longer than the level follows in made one long tick of it, and the level
/// overshot what came by as much as it was off: below nothing, where less came.
#[test]
fn a_tick_longer_than_the_level_follows_in_is_learnt_as_it_was() {
    let apps = Apps::new();
    let mut reference = apps.reference();
    apps.teach(&mut reference, 0..HOUR, |_, _| 100.0);
    let came = [apps.leaf(7, 1000.0 * 600.0)];
    let now = Instant::from_secs_f64(f64::from(HOUR) + 600.0);
    reference.learn(came.iter(), 600.0, 0.0, now);
    let level = reference.level();
    assert!((990.0..=2000.0).contains(&level), "{level}");
}
