//! What is learnt, and from whom not: nothing that came in the last second, nothing of who is under a
//! rule or under suspicion, nothing of whom an operator has left alone.

use super::Detector;
use super::NAMES_KEPT;
use super::pattern::Pattern;
use super::usual::Length;
use super::watch::Suspicion;
use super::window::{CLIENTS_KEPT, ClientKind, SECOND};
use crate::time::Instant;
use crate::traffic::LeafKey;

impl Detector {
    /// Learns what was calm a second ago, and lets time pass over what was learnt.
    pub(super) fn learn(&mut self, now: Instant) {
        let calm = self.may_learn(now);
        if calm && let Some(tick) = self.window.of_age(SECOND) {
            let ruled = self.measures.iter().map(|measure| measure.held);
            let left_alone = self.past.left_alone().map(|(_, held)| held);
            let held: f64 = ruled.chain(left_alone).sum();
            let suspects = self.suspicion.as_ref().map_or(&[][..], Suspicion::suspects);
            let set_aside: Vec<Pattern> = self.set_aside().cloned().collect();
            let leaves = tick.leaves.iter().filter(|leaf| {
                !leaf.key.refused()
                    && !set_aside.iter().any(|pattern| pattern.matches(&leaf.key))
                    && !suspects.iter().any(|suspect| suspect.matches(&leaf.key))
            });
            self.reference.learn(leaves, tick.seconds(), held, now);
        }
        if now.since(self.clock.settled) >= SECOND {
            self.clock.settled = now;
            let set_aside: Vec<Pattern> = self.set_aside().cloned().collect();
            self.reference.settle(self.columns.len(), |key| {
                set_aside.iter().any(|pattern| pattern.matches(key))
            });
            if calm && !self.is_suspicious(now) {
                self.learn_clients(now);
            }
        }
        if now.since(self.clock.familiar) >= self.spec.settle_every() {
            self.clock.familiar = now;
            if self.may_get_to_know(now) {
                self.familiar.settle();
            } else {
                self.familiar.discard();
            }
        }
        if now.since(self.clock.names) >= NAMES_KEPT {
            self.clock.names = now;
            self.names.turn();
        }
    }

    /// Learns what clients sent until a second ago: what began since may turn out to be a surge, whose
    /// clients must not say what is usual of themselves.
    fn learn_clients(&mut self, now: Instant) {
        let suspects = self.suspicion.as_ref().map_or(&[][..], Suspicion::suspects);
        let left_out: Vec<Pattern> = self
            .set_aside()
            .chain(suspects)
            .map(|pattern| pattern.who(&self.columns))
            .collect();
        let belongs =
            |key: &LeafKey| !key.refused() && !left_out.iter().any(|who| who.matches(key));
        let fade = self.reference.fading(SECOND);
        let long = now.since(self.clock.long) >= CLIENTS_KEPT / 2
            && self.window.seconds_since(now - CLIENTS_KEPT) > CLIENTS_KEPT.as_secs_f64() * 0.9;
        let until = now - SECOND;
        if long {
            self.clock.long = now;
        }
        for (kind, usual) in [
            (ClientKind::Instance, &mut self.instances),
            (ClientKind::Address, &mut self.addresses),
        ] {
            usual.fade(fade);
            usual.hold_growth(SECOND, self.reference.trained() >= self.spec.warmup);
            for length in [Length::Short, Length::Second, Length::Long] {
                if length != Length::Long || long {
                    let from = until - length.duration();
                    let clients = self.window.clients_between(kind, from, until, belongs);
                    usual.learn(&clients, length);
                }
            }
        }
    }
}
