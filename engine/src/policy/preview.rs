//! Tries a rule on the recent requests before it is in force: how many it would meet, and whose.

use std::collections::BTreeMap;

use serde::Serialize;

use super::condition::Clauses;
use crate::attribute::{AttributeId, Schema};
use crate::recent::{Recent, RecentRequest, telling_attributes};
use crate::rules::{Action, Mode, Origin, Rule};
use crate::source::Source;
use crate::time::Instant;

/// The most sources and tenants that are listed.
const LISTED_MAX: usize = 10;

/// Share of the recent normal traffic above which a rule needs somebody to insist.
pub const NORMAL_SHARE_MAX: f64 = 0.25;

/// Sampled requests below which a share says nothing.
const SAMPLED_MIN: u64 = 20;

/// What a rule would meet. An estimate from a sample: a share of `p` from `n` requests errs by about
/// √(p (1 − p) / n).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Preview {
    /// How far the sample goes back, in seconds.
    pub seconds: f64,
    /// Requests in the sample.
    pub sampled: u64,
    /// Whether those are enough for the shares to say something.
    pub judged: bool,
    /// Of them, those that the rule would meet.
    pub matched: u64,
    /// Requests a second that the rule would meet.
    pub matched_per_second: f64,
    /// Share of all requests that it would meet, 0 to 1.
    pub share: f64,
    /// Share of the normal traffic that it would meet, 0 to 1: of what no rule and no limit refused. For a
    /// detected rule, what its source sent above what was expected of it is the surge, and not normal.
    pub share_of_normal: f64,
    /// Whose requests it would meet, most first.
    pub sources: Vec<Met>,
    /// Which tenants' requests, most first; empty where no attribute is called `tenant`.
    pub tenants: Vec<Met>,
}

/// A source that a rule would meet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Met {
    /// The source.
    pub source: Source,
    /// Its requests that the rule would meet, a second.
    pub requests_per_second: f64,
    /// Their share of all that the rule would meet, 0 to 1.
    pub share: f64,
}

impl Preview {
    /// Returns whether the rule would meet so much of the normal traffic that somebody must insist.
    /// Rules that refuse nothing never do, be it for their action or because they are in shadow, and a
    /// handful of requests says nothing: see [`Self::judged`].
    pub fn needs_force(&self, rule: &Rule) -> bool {
        let acts = rule.mode == Mode::Enforce;
        let refuses = acts && !matches!(rule.action, Action::Allow | Action::Log);
        refuses && self.judged && self.share_of_normal > NORMAL_SHARE_MAX
    }

    /// Tries a rule on what came lately. Its mode, `percent` and rate are left out of account: what is
    /// shown is what the rule is about. Whether somebody must insist is [`Preview::needs_force`]'s business.
    pub fn of(rule: &Rule, recent: &Recent, schema: &Schema, now: Instant) -> Self {
        let clauses = Clauses::new(&rule.when);
        let spares_proxies = rule.origin == Origin::Detected;
        let by = telling_attributes(schema);
        let tenant = schema.id("tenant");
        let mut preview = Self::default();
        let (mut all, mut met, mut normal, mut normal_met) = (0.0, 0.0, 0.0, 0.0);
        let mut sources: BTreeMap<Source, f64> = BTreeMap::new();
        let mut tenants: BTreeMap<Source, f64> = BTreeMap::new();
        preview.seconds = recent.each(now, |request| {
            preview.sampled += 1;
            all += request.weight;
            if request.passed {
                normal += request.weight;
            }
            let is_ours = spares_proxies && request.facts.is_trusted_proxy();
            if is_ours || !clauses.hold(&request.facts) {
                return;
            }
            preview.matched += 1;
            met += request.weight;
            if request.passed {
                normal_met += request.weight;
            }
            let source = source_of(request, &by, schema);
            *sources.entry(source).or_default() += request.weight;
            if let Some(tenant) = tenant {
                let source = source_of(request, &[tenant], schema);
                *tenants.entry(source).or_default() += request.weight;
            }
        });
        preview.judged = preview.sampled >= SAMPLED_MIN;
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        // One tick at least: what is gathered came before.
        let seconds = preview.seconds.max(0.1);
        let listed = |sums: BTreeMap<Source, f64>| {
            let mut sums: Vec<(Source, f64)> = sums.into_iter().collect();
            sums.sort_by(|a, b| b.1.total_cmp(&a.1));
            sums.truncate(LISTED_MAX);
            let met_by = |(source, sum)| Met {
                source,
                requests_per_second: sum / seconds,
                share: share(sum, met),
            };
            sums.into_iter().map(met_by).collect()
        };
        preview.matched_per_second = met / seconds;
        // Who is found in a flood is most of what passes; that flood is no reason to spare him.
        let surge = rule.sparing.as_ref().map_or(0.0, |sparing| {
            (normal_met - sparing.expected_per_second.max(0.0) * seconds).max(0.0)
        });
        normal -= surge;
        normal_met -= surge;
        preview.share = share(met, all);
        preview.share_of_normal = share(normal_met, normal);
        preview.sources = listed(sources);
        preview.tenants = listed(tenants);
        preview
    }
}

fn source_of(request: &RecentRequest<'_>, by: &[AttributeId], schema: &Schema) -> Source {
    by.iter().fold(Source::everybody(), |source, id| {
        match request.facts.text(*id) {
            Some(value) => source.with(schema.name(*id), &value),
            // A value that is not kept is not an absent one.
            None if request.facts.is_present(*id) => source,
            None => source.lacking(schema.name(*id)),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::*;
    use crate::attribute::{AttributeKind, AttributeSpec, Side};
    use crate::request::{HashKey, RequestFacts};
    use crate::rules::Sparing;
    use crate::rules_file::{Vocabulary, parse_rule};
    use crate::traffic::Familiar;
    use crate::verdict::Verdict;

    fn schema() -> Schema {
        let mut schema = Schema::built_in();
        for name in ["app", "tenant"] {
            let spec = AttributeSpec {
                name: name.into(),
                kind: AttributeKind::Text,
                side: Side::Who,
                secret: false,
            };
            schema.add(spec).unwrap();
        }
        schema
    }

    fn rule(when: &str, action: &str) -> Rule {
        let text = format!("{{ name: r, when: {when}, action: {action} }}");
        let mut vocabulary = Vocabulary::of_schema(schema());
        let now = SystemTime::UNIX_EPOCH;
        parse_rule("-", &text, &mut vocabulary, now, Origin::Operator).unwrap()
    }

    /// One of `acme`, which is let through, to three of `calm`, and as many of `loop`, all refused.
    fn recent() -> Recent {
        let (recent, key) = (Recent::new(1, 1), HashKey::from_seed(1));
        let recorder = recent.recorder(0).unwrap();
        let block = Verdict::Block {
            rule: crate::verdict::Name::new("b"),
            status: 403,
        };
        for _ in 0..100 {
            for (app, verdict) in [
                ("acme", &Verdict::Forward),
                ("calm", &Verdict::Forward),
                ("calm", &Verdict::Forward),
                ("calm", &Verdict::Forward),
                ("loop", &block),
                ("loop", &block),
                ("loop", &block),
                ("loop", &block),
            ] {
                let mut facts = RequestFacts::new(&key, "198.51.100.7".parse().unwrap());
                facts.set(schema().id("app").unwrap(), Cow::Borrowed(app));
                facts.set(schema().id("tenant").unwrap(), Cow::Borrowed("t1"));
                recorder.note(&facts, verdict, b"", Instant::ZERO);
            }
            recent.gather(Instant::ZERO);
        }
        recent
    }

    #[test]
    fn a_preview_tells_whose_requests_a_rule_would_meet() {
        let now = Instant::from_secs_f64(10.0);
        let preview = Preview::of(&rule("{ app: acme }", "block"), &recent(), &schema(), now);
        assert_eq!((preview.sampled, preview.matched), (800, 100));
        assert!((preview.share - 0.125).abs() < 1e-9);
        assert!((preview.share_of_normal - 0.25).abs() < 1e-9);
        assert!((preview.matched_per_second - 10.0).abs() < 1e-9);
        let met = Source::everybody().with("app", "acme");
        assert_eq!(preview.sources.len(), 1);
        assert_eq!(preview.sources[0].source, met);
        let tenant = Source::everybody().with("tenant", "t1");
        assert_eq!(preview.tenants[0].source, tenant);
    }

    #[test]
    fn a_rule_in_shadow_needs_nobody_to_insist() {
        let everybody = rule("{ ip: 0.0.0.0/0 }", "block");
        let preview = Preview::of(&everybody, &recent(), &schema(), Instant::ZERO);
        assert!(preview.needs_force(&everybody));
        let shadow = Rule {
            mode: Mode::Shadow,
            ..everybody
        };
        assert!(!preview.needs_force(&shadow));
    }

    /// A suggestion lets the flood pass, which must not make the flood the normal traffic.
    #[test]
    fn of_a_detected_rule_what_was_expected_is_normal_and_the_surge_is_not() {
        // 300 of 400 passing requests of ten seconds are of `calm`.
        let share = |expected_per_second| {
            let detected = Rule {
                origin: Origin::Detected,
                sparing: Some(Sparing {
                    expected_per_second,
                    usual_per_instance_per_second: 1.0,
                    familiar: Arc::new(Familiar::default()),
                }),
                ..rule("{ app: calm }", "block")
            };
            let now = Instant::from_secs_f64(10.0);
            let preview = Preview::of(&detected, &recent(), &schema(), now);
            (preview.share_of_normal, preview.needs_force(&detected))
        };
        let near = |share: f64, wanted: f64| assert!((share - wanted).abs() < 1e-9, "{share}");
        near(share(0.0).0, 0.0);
        // 10 a second are 100 of those, beside 100 of others.
        near(share(10.0).0, 0.5);
        assert!(!share(0.0).1 && share(10.0).1);
        // No surge: all of it was expected.
        near(share(1000.0).0, 0.75);
    }

    #[test]
    fn a_secret_that_every_request_has_is_met_by_asking_whether_it_is_there() {
        let (recent, key) = (Recent::new(1, 1), HashKey::from_seed(1));
        let recorder = recent.recorder(0).unwrap();
        for request in 0..30 {
            let mut facts = RequestFacts::new(&key, "198.51.100.7".parse().unwrap());
            if request % 3 > 0 {
                facts.set_secret(AttributeId::INSTANCE, b"token");
            }
            recorder.note(&facts, &Verdict::Forward, b"", Instant::ZERO);
        }
        recent.gather(Instant::ZERO);
        let share = |when| {
            let preview = Preview::of(&rule(when, "block"), &recent, &schema(), Instant::ZERO);
            preview.share_of_normal
        };
        for (when, expected) in [
            ("{ instance: { present: true } }", 2.0 / 3.0),
            ("{ instance: { present: false } }", 1.0 / 3.0),
            ("{ instance: { not: { present: true } } }", 1.0 / 3.0),
            ("{ instance: { not: { present: false } } }", 2.0 / 3.0),
            ("{ app: { present: true } }", 0.0),
            ("{ app: { present: false } }", 1.0),
        ] {
            assert!(
                (share(when) - expected).abs() < 1e-9,
                "{when}: {}",
                share(when)
            );
        }
    }

    #[test]
    fn of_a_handful_of_requests_it_is_said_that_nothing_can_be_said() {
        let (recent, key) = (Recent::new(1, 1), HashKey::from_seed(1));
        let recorder = recent.recorder(0).unwrap();
        let everybody = rule("{ ip: 0.0.0.0/0 }", "block");
        for requests in 1..=SAMPLED_MIN {
            let facts = RequestFacts::new(&key, "198.51.100.7".parse().unwrap());
            recorder.note(&facts, &Verdict::Forward, b"", Instant::ZERO);
            recent.gather(Instant::ZERO);
            let preview = Preview::of(&everybody, &recent, &schema(), Instant::ZERO);
            assert_eq!(preview.sampled, requests);
            assert_eq!(preview.judged, requests == SAMPLED_MIN);
            assert_eq!(preview.needs_force(&everybody), preview.judged);
        }
    }

    #[test]
    fn who_is_refused_already_is_not_normal() {
        let preview = |when| Preview::of(&rule(when, "block"), &recent(), &schema(), Instant::ZERO);
        assert!(preview("{ app: loop }").share_of_normal < 1e-9);
        let needs = |when, action| preview(when).needs_force(&rule(when, action));
        assert!(!needs("{ app: loop }", "block"));
        assert!(!needs("{ app: acme }", "block"), "a quarter, not more");
        assert!(needs("{ app: [acme, calm] }", "block"));
        assert!(needs("{ ip: 0.0.0.0/0 }", "drop"));
        assert!(!needs("{ ip: 0.0.0.0/0 }", "allow"));
    }
}
