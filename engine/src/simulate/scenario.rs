//! What a scenario says, once it is valid. Reading it is for [`super::read`].

use std::sync::Arc;
use std::time::Duration;

use crate::attribute::{AttributeKind, AttributeSpec, Schema, Side};
use crate::detect::DetectionSpec;
use crate::problem::Place;
use crate::source::Source;

/// A valid scenario.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// What all draws come from.
    pub seed: u64,
    /// How long it plays, after the training.
    pub duration: Duration,
    /// The folder of rules in force, as written.
    pub rules: Option<Written>,
    /// Services and their weights, where the background does not draw them.
    pub services: Vec<(Arc<str>, f64)>,
    /// What is normal.
    pub background: Background,
    /// What happens.
    pub events: Vec<Event>,
    /// How the detector is set.
    pub detection: DetectionSpec,
    /// Whether it begins knowing nothing.
    pub cold: bool,
    /// Requests per second that the upstream serves; `None`: any number.
    pub capacity: Option<f64>,
    /// What must come of it.
    pub expect: Vec<Expectation>,
}

/// A text and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The text.
    pub text: String,
    /// Where it stands.
    pub place: Place,
}

/// Normal traffic.
#[derive(Clone, Debug)]
pub enum Background {
    /// Described by independent draws.
    Drawn(Drawn),
    /// Recorded counts.
    Table(TableSpec),
}

/// A population whose attributes are drawn independently.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// Requests per second.
    pub rate: f64,
    /// Clients.
    pub clients: u32,
    /// What each attribute is drawn from.
    pub attributes: Vec<(Arc<str>, Draws)>,
    /// A file that the total follows.
    pub shape: Option<Written>,
    /// How many times faster the shape is played.
    pub speed: f64,
    /// Where in the shape the scenario begins.
    pub begin: Duration,
}

/// What an attribute's values are drawn from.
#[derive(Clone, Debug, PartialEq)]
pub enum Draws {
    /// Values with weights.
    Weights(Vec<(Arc<str>, f64)>),
    /// `values` values named `prefix` and a number from 1, the n-th with weight `n^-exponent`.
    Zipf {
        /// How many.
        values: u32,
        /// How uneven.
        exponent: f64,
        /// Their names' beginning.
        prefix: Arc<str>,
    },
}

/// Recorded counts as background.
#[derive(Clone, Debug, PartialEq)]
pub struct TableSpec {
    /// The file, as written.
    pub path: Written,
    /// How many times faster the table's clock runs; the requests per second stay.
    pub speed: f64,
    /// Where in the table the scenario begins.
    pub begin: Duration,
    /// The mean of the whole table, where it is to be another than recorded.
    pub rate: Option<f64>,
    /// A file that the total follows instead of the table's own.
    pub shape: Option<Written>,
}

/// What kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Instances send more than usual: bad.
    Surge,
    /// More instances, each as usual: legitimate.
    Crowd,
    /// The mix shifts to a source, the total is constant: legitimate.
    Rollout,
}

/// Which instances a surge or crowd sends from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Instances {
    /// A population of its own, not seen before.
    #[default]
    New,
    /// Those of the background that belong to the source.
    Known,
    /// A new one for each request.
    Forged,
}

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    /// What kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// When it begins.
    pub from: Duration,
    /// When it ends.
    pub until: Duration,
    /// Requests per second at its height.
    pub rate: f64,
    /// How long it takes to get there.
    pub ramp: Duration,
    /// By how much its rate grows each minute, compounding: 0.05 is 5 %.
    pub growth: f64,
    /// What its requests have in common.
    pub source: Source,
    /// How many clients.
    pub clients: Option<u32>,
    /// How many addresses these have together; `None`: about one each.
    pub addresses: Option<u32>,
    /// Who the clients are.
    pub instances: Instances,
    /// For how long it is on, then off, again and again.
    pub pulse: Option<(Duration, Duration)>,
    /// Attributes with a fresh value in each request.
    pub cycle: Vec<Arc<str>>,
    /// For a rollout, the share of its clients that have moved at the end of the ramp.
    pub share: f64,
}

/// The most requests per second of the background, and of one event.
pub(super) const RATE_MAX: f64 = 1e7;

impl Event {
    /// Returns its requests per second at `t` seconds.
    pub fn rate_at(&self, t: f64) -> f64 {
        if t < self.from.as_secs_f64() || t >= self.until.as_secs_f64() {
            return 0.0;
        }
        let age = t - self.from.as_secs_f64();
        if let Some((on, off)) = self.pulse {
            let (on, off) = (on.as_secs_f64(), off.as_secs_f64());
            if age % (on + off) >= on {
                return 0.0;
            }
        }
        let rate = self.rate * self.progress(age) * (1.0 + self.growth).powf(age / 60.0);
        rate.min(RATE_MAX)
    }

    /// Returns how far the ramp has come, 0 to 1, at an age of so many seconds.
    pub fn progress(&self, age: f64) -> f64 {
        let ramp = self.ramp.as_secs_f64();
        if ramp > 0.0 {
            (age / ramp).clamp(0.0, 1.0)
        } else {
            1.0
        }
    }
}

/// One thing that must come of a scenario.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    /// Its key.
    pub key: &'static str,
    /// What is wanted.
    pub wanted: Wanted,
}

/// The bound of an expectation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wanted {
    /// At most so long.
    Within(Duration),
    /// A ratio of at most this.
    AtMost(f64),
    /// A ratio of at least this.
    AtLeast(f64),
    /// A count of at most this.
    CountMax(u32),
    /// This answer.
    Flag(bool),
}

/// Attributes of a scenario that are built in, or taken as text, or versions by their names.
pub(super) fn add_attribute(schema: &mut Schema, name: &str) -> Result<(), String> {
    if name == "instance" || name == "ip" || name == "network" {
        return Ok(());
    }
    if schema.id(name).is_some() {
        return Ok(());
    }
    let kind = if name.ends_with("version") {
        AttributeKind::Version
    } else {
        AttributeKind::Text
    };
    let spec = AttributeSpec {
        name: Arc::from(name),
        kind,
        side: Side::Who,
        secret: false,
    };
    schema
        .add(spec)
        .map(drop)
        .map_err(|error| error.to_string())
}
