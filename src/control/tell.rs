//! Puts the detector's events into words for the log.

use tidegate_engine::detect::{Event, Happening};
use tidegate_engine::source::Source;

/// Logs an event with its evidence: what a person must look at as a warning, the rest as news.
pub(super) fn log(event: &Event) {
    let everybody = Source::everybody();
    let source = event.source.as_ref().unwrap_or(&everybody);
    let evidence = &event.evidence;
    let (incident, rule) = (
        event.incident.0,
        event.rule.as_ref().map_or("", |rule| rule.as_str()),
    );
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
                requests_per_instance = hundredths(evidence.requests_per_instance),
                $text
            )
        };
    }
    match event.what {
        Happening::Surge => tell!(warn, "arrivals are well above what was expected"),
        Happening::Throttled => tell!(warn, "the source was found and is throttled"),
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
        Happening::Ended => tell!(info, "the surge is over"),
    }
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
