//! Traffic: what was seen, per source, in bounded memory.

/// The instances that were seen before: a bounded, approximate set.
#[derive(Debug, Default)]
pub struct Familiar {}

impl Familiar {
    /// Returns whether the instance was seen long enough ago to be known.
    pub fn contains(&self, _instance: u64) -> bool {
        false
    }
}
