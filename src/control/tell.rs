//! Puts the detector's events into words for the log, and counts those by which a rule was corrected.

use tidegate_engine::detect::{Event, Evidence, Happening};
use tidegate_engine::source::Source;

use crate::metrics::Metrics;

/// The most refused candidates in one line; all of them stand in the incident.
const REJECTED_SHOWN: usize = 4;

/// Makes the series of corrected rules, at zero: of a series that begins at 1 no alert sees the increase.
pub(super) fn begin_counting(metrics: &Metrics) {
    for what in ["narrowed", "withdrawn"] {
        let series = &metrics.detected_rules_corrected_total;
        series.with_label_values(&[what]).inc_by(0);
    }
}

/// Counts an event by which a rule was corrected that had not kept its promise.
pub(super) fn count(event: &Event, metrics: &Metrics) {
    let what = match event.what {
        Happening::Narrowed => "narrowed",
        Happening::Withdrawn => "withdrawn",
        _ => return,
    };
    let series = &metrics.detected_rules_corrected_total;
    series.with_label_values(&[what]).inc();
}

/// Logs an event with its evidence: what a person must look at as a warning, the rest as news.
pub(super) fn log(event: &Event) {
    let everybody = Source::everybody();
    let source = event.source.as_ref().unwrap_or(&everybody);
    let evidence = &event.evidence;
    let (incident, rule) = (
        event.incident.0,
        event.rule.as_ref().map_or("", |rule| rule.as_str()),
    );
    let rejected = rejected(evidence);
    let why = event.why.as_deref().unwrap_or_default();
    macro_rules! tell {
        ($level:ident, $text:literal) => {
            tracing::$level!(
                incident,
                %source,
                rule,
                observed_rate = evidence.observed_rate.round(),
                expected_rate = evidence.expected_rate.round(),
                coverage = hundredths(evidence.coverage),
                collateral = hundredths(evidence.collateral),
                collateral_of_service = hundredths(evidence.collateral_of_service),
                instances = evidence.instances.round(),
                requests_per_instance = hundredths(evidence.requests_per_instance),
                candidates = evidence.candidates,
                rejected,
                why,
                $text
            )
        };
    }
    match event.what {
        Happening::Surge => tell!(warn, "arrivals are well above what was expected"),
        Happening::Throttled => tell!(warn, "the source was found and is throttled"),
        Happening::Suggested => tell!(
            warn,
            "the source was found; its rule only counts until it is approved"
        ),
        Happening::Approved => tell!(info, "an operator has the rule act"),
        Happening::Shadowed => tell!(info, "an operator has the rule only count"),
        Happening::Ramped => tell!(info, "a block comes, step by step"),
        Happening::Blocked => tell!(warn, "the source is blocked"),
        Happening::Probing => tell!(
            info,
            "the source is calm; a few of its requests are let through"
        ),
        Happening::Released => tell!(info, "the source behaves again; its rule is gone"),
        Happening::Crowd => tell!(
            warn,
            "more clients than usual, each as usual: nobody is blocked"
        ),
        Happening::NotLocalisable => {
            tell!(
                warn,
                "no source explains the surge; limits alone protect the service"
            );
        }
        Happening::Shared => tell!(
            warn,
            "no source explains the surge and the upstream suffers; all share what it can do"
        ),
        Happening::Eased => tell!(warn, "the source is a crowd after all; it is not blocked"),
        Happening::Merged => tell!(info, "the rule has become part of a wider one"),
        Happening::Displaced => tell!(warn, "the rule gave way to one for a larger surge"),
        Happening::Narrowed => tell!(
            warn,
            "the rule refused more normal traffic than it promised; it is about a narrower source now"
        ),
        Happening::Withdrawn => tell!(
            warn,
            "the rule refused more normal traffic than it promised; it is gone"
        ),
        Happening::Revoked => tell!(
            warn,
            "an operator took the rule back; its source is left alone for ten minutes"
        ),
        Happening::LeftAlone => tell!(
            warn,
            "the source is known, and nothing is done because an operator said so"
        ),
        Happening::Ended => tell!(info, "the surge is over"),
    }
}

/// Returns the candidates that lost and why, the first few of them.
fn rejected(evidence: &Evidence) -> String {
    let candidates = evidence.rejected_candidates.iter().take(REJECTED_SHOWN);
    let words: Vec<String> = candidates
        .map(|candidate| format!("{}: {}", candidate.when, candidate.why))
        .collect();
    words.join("; ")
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use tidegate_engine::detect::IncidentId;
    use tidegate_engine::time::Instant;

    use super::*;

    #[test]
    fn rules_that_did_not_keep_their_promise_are_counted_from_zero() {
        let metrics = Metrics::new();
        begin_counting(&metrics);
        let name = "tidegate_detected_rules_corrected_total";
        let shown = |what: &str, count| {
            let line = format!("{name}{{what=\"{what}\"}} {count}");
            let text = String::from_utf8(metrics.text()).unwrap();
            text.lines().any(|shown| shown == line)
        };
        assert!(shown("narrowed", 0) && shown("withdrawn", 0));
        for what in [
            Happening::Throttled,
            Happening::Narrowed,
            Happening::Withdrawn,
            Happening::Narrowed,
            Happening::Revoked,
        ] {
            let event = Event {
                incident: IncidentId(1),
                what,
                at: Instant::ZERO,
                source: None,
                rule: None,
                evidence: Evidence::default(),
                why: None,
                effect: None,
            };
            count(&event, &metrics);
        }
        assert!(shown("narrowed", 2) && shown("withdrawn", 1));
    }
}
