//! From a target and a client to a decision, and the trail that led there.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::client::Client;
use super::pattern::Pattern;
use super::refusal::{self, AUDITED, HELD_BACK, REFUSED, Refusal};
use super::rewrite::MOST_REWRITES;
use super::rule::{Effect, Require, Rule, Verdict, judge};
use super::{Engine, Target};
use crate::oci::Reference;
use crate::units;

/// What the policy says about one target.
#[derive(Clone, Debug)]
pub struct Decision {
    /// `Allow`, `Audit` or `Deny`: rewrites have been followed to their end.
    pub effect: Effect,
    /// The rule that decided; `None` when none matched and the default did.
    pub rule: Option<Arc<str>>,
    /// What is pulled: what was asked for, unless it was rewritten.
    pub target: Target,
    /// How it was rewritten, in order; the last leads to `target`.
    pub rewrites: Vec<Rewrite>,
    /// What has to be so besides. Only where a tag is served.
    pub obligation: Option<Arc<Obligation>>,
    /// Only by digest, and where it is not plainly served: it may be served from each of these,
    /// if a tag or an index that [`Engine::evaluate`] allows led to it there.
    pub if_led: Vec<Target>,
    /// With `Deny`, why. With `Audit`, what the client is to be told.
    pub refusal: Option<Arc<Refusal>>,
}

/// One step to another place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    pub rule: Arc<str>,
    pub to: Target,
}

/// A tag answers only with what it has been seen with for a while. Whoever knows what tags have
/// pointed to fulfils it; by digest there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obligation {
    pub rule: Arc<str>,
    pub min_age: Duration,
    asked: Target,
    reason: Option<String>,
    contact: Option<String>,
}

/// One rule's part in a decision, for `explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    pub rule: Arc<str>,
    pub effect: Effect,
    pub decides: bool,
    /// Whether one of its patterns is about this name at all.
    pub matches: bool,
    /// In words, with the pattern.
    pub why: String,
}

/// What the rules say about one target, before anything is followed.
#[derive(Debug, Default)]
struct Found<'a> {
    decides: Option<(&'a Rule, &'a Pattern)>,
    /// Where some versions of the repository may be served from.
    ways: Vec<Target>,
}

// === impl Engine ===

impl Engine {
    /// Decides. The first rule that matches does; what it rewrites is asked about again.
    #[must_use]
    pub fn evaluate(&self, asked: &Target, client: &Client) -> Decision {
        let mut decision = Decision {
            effect: self.default,
            rule: None,
            target: asked.clone(),
            rewrites: Vec::new(),
            obligation: None,
            if_led: Vec::new(),
            refusal: None,
        };
        loop {
            let Found { decides, ways } = self.find(&decision.target, client);
            decision.rule = decides.map(|(rule, _)| Arc::clone(&rule.id));
            decision.effect = decides.map_or(self.default, |(rule, _)| rule.effect);
            for way in ways {
                if !decision.if_led.contains(&way) {
                    decision.if_led.push(way);
                }
            }
            if let Some((rule, pattern)) = decides
                && rule.effect == Effect::Rewrite
            {
                match decision.follow(rule, pattern) {
                    Ok(()) => continue,
                    Err(why) => return decision.deny(asked, decides, &why),
                }
            }
            return decision.settle(asked, decides);
        }
    }

    fn find(&self, target: &Target, client: &Client) -> Found<'_> {
        let name = target.repository.to_string();
        let mut found = Found::default();
        let mut open = true;
        for (rule, verdict) in self.candidates(&name, target, client) {
            match verdict {
                Verdict::Unsure(by) => found.may(rule, by, target),
                Verdict::Yes { by, unless } => {
                    match found.decides {
                        None => found.decides = Some((rule, by)),
                        Some(_) => found.may(rule, by, target),
                    }
                    if unless.is_none() {
                        open = false;
                        break;
                    }
                }
                Verdict::No | Verdict::Others | Verdict::Excepted(_) => {}
            }
        }
        if open && found.decides.is_some() && self.default.serves() {
            found.ways.push(target.clone());
        }
        found
    }

    /// The rules that may be about `name`, in order, with what they say.
    fn candidates(
        &self,
        name: &str,
        target: &Target,
        client: &Client,
    ) -> impl Iterator<Item = (&Rule, Verdict<'_>)> {
        let (images, except) = (self.images.find(name), self.except.find(name));
        let mut at = 0;
        std::iter::from_fn(move || {
            let number = images.get(at)?.0;
            let rule = &self.rules[number];
            let its = images[at..].iter().take_while(|(rule, _)| *rule == number);
            let others = except.partition_point(|(rule, _)| *rule < number);
            let not = except[others..]
                .iter()
                .take_while(|(rule, _)| *rule == number);
            at += its.clone().count();
            let verdict = if rule.is_about(client) {
                judge(
                    its.map(|(_, image)| &rule.images[*image]),
                    not.map(|(_, exception)| &rule.except[*exception]),
                    name,
                    target.reference.as_ref(),
                )
            } else {
                Verdict::Others
            };
            Some((rule, verdict))
        })
    }

    /// Every rule down to the one that decides, with its reason to do so or not. For what a rule
    /// makes of it, ask again: see [`Decision::rewrites`].
    #[must_use]
    pub fn explain(&self, target: &Target, client: &Client) -> Vec<Step> {
        let name = target.repository.to_string();
        let mut trail = Vec::new();
        for rule in &self.rules {
            let (images, except) = (rule.images.iter(), rule.except.iter());
            let mut verdict = judge(images, except, &name, target.reference.as_ref());
            let matches = !matches!(verdict, Verdict::No);
            if matches && !rule.is_about(client) {
                verdict = Verdict::Others;
            }
            let decides = matches!(verdict, Verdict::Yes { .. });
            trail.push(Step {
                rule: Arc::clone(&rule.id),
                effect: rule.effect,
                decides,
                matches,
                why: why(rule, verdict, target),
            });
            if decides {
                break;
            }
        }
        trail
    }
}

/// What a verdict comes from, in words.
fn why(rule: &Rule, verdict: Verdict<'_>, target: &Target) -> String {
    match verdict {
        Verdict::No => "no pattern matches".to_owned(),
        Verdict::Others => "is about certain clients only".to_owned(),
        Verdict::Excepted(pattern) => format!("excepts {pattern}"),
        Verdict::Unsure(pattern) => {
            format!("{pattern} is about some versions, and this reference does not tell")
        }
        Verdict::Yes { by, unless } => {
            let tag = matches!(target.reference, Some(Reference::Tag(_)));
            let unless = unless.map(|only| format!("; {only} is excepted only by version"));
            let require = rule.require.filter(|_| tag).map(|_| "; it wants a digest");
            let age = rule.min_age.filter(|_| tag).map(units::show);
            let age = age.map(|age| format!("; it wants a tag to be {age} old"));
            format!(
                "{by} matches{}{}{}",
                unless.unwrap_or_default(),
                require.unwrap_or_default(),
                age.unwrap_or_default()
            )
        }
    }
}

// === impl Found ===

impl Found<'_> {
    /// Some versions of `target`'s repository may be served by `rule`.
    fn may(&mut self, rule: &Rule, by: &Pattern, target: &Target) {
        let way = match (rule.effect, &rule.instead) {
            (Effect::Deny, _) => None,
            (Effect::Rewrite, Some(instead)) => instead.target(by, target),
            _ => Some(target.clone()),
        };
        self.ways.extend(way.filter(|way| !self.ways.contains(way)));
    }
}

// === impl Decision ===

impl Decision {
    /// Goes where `rule` rewrites the target, or says why not.
    fn follow(&mut self, rule: &Rule, pattern: &Pattern) -> Result<(), String> {
        let id = &rule.id;
        if self.rewrites.len() >= MOST_REWRITES {
            return Err(refusal::too_often(id));
        }
        let instead = rule.instead.as_ref();
        let to = instead.and_then(|instead| instead.target(pattern, &self.target));
        let to = to.ok_or_else(|| refusal::too_long(id))?;
        self.rewrites.push(Rewrite {
            rule: Arc::clone(id),
            to: to.clone(),
        });
        self.target = to;
        Ok(())
    }

    /// What the rule that decides makes of it, with its conditions.
    fn settle(mut self, asked: &Target, decides: Option<(&Rule, &Pattern)>) -> Self {
        let rule = decides.map(|(rule, _)| rule);
        if self.effect == Effect::Deny {
            // A list of tags is there to find the allowed one in.
            let ways = self.if_led.first().cloned();
            if let Some(way) = ways.filter(|_| self.target.reference.is_none()) {
                return Decision {
                    effect: Effect::Allow,
                    rule: None,
                    target: way,
                    rewrites: Vec::new(),
                    if_led: Vec::new(),
                    ..self
                };
            }
            let why = match rule {
                Some(rule) => rule.refuses(),
                None if self.if_led.is_empty() => refusal::NOTHING_ALLOWS.to_owned(),
                None => refusal::NOTHING_LED.to_owned(),
            };
            return self.deny(asked, decides, &why);
        }
        let tag = matches!(self.target.reference, Some(Reference::Tag(_)));
        if let Some(rule) = rule.filter(|rule| tag && rule.require == Some(Require::Digest)) {
            let why = format!(
                "{}; pin it as {}@sha256:...",
                rule.wants_digest(),
                self.target
            );
            return self.deny(asked, decides, &why);
        }
        // Another way is of use only where it makes a difference.
        let (effect, target) = (self.effect, &self.target);
        self.if_led
            .retain(|way| way.reference.is_some() && (way != target || effect == Effect::Audit));
        if let Some((rule, _)) = decides.filter(|_| effect == Effect::Audit) {
            self.refusal = Some(Arc::new(self.refusal(
                AUDITED,
                asked,
                decides,
                &rule.audits(),
            )));
        }
        self.obligation = rule.filter(|_| tag).and_then(|rule| {
            Some(Arc::new(Obligation {
                rule: Arc::clone(&rule.id),
                min_age: rule.min_age?,
                asked: asked.clone(),
                reason: rule.reason.clone(),
                contact: rule.contact.clone(),
            }))
        });
        self
    }

    fn deny(mut self, asked: &Target, decides: Option<(&Rule, &Pattern)>, why: &str) -> Self {
        self.effect = Effect::Deny;
        self.refusal = Some(Arc::new(self.refusal(REFUSED, asked, decides, why)));
        self
    }

    /// `asked` is what the client knows it by; `state` what becomes of it.
    fn refusal(
        &self,
        state: &str,
        asked: &Target,
        decides: Option<(&Rule, &Pattern)>,
        why: &str,
    ) -> Refusal {
        let rule = decides.map(|(rule, _)| rule);
        let instead = decides
            .filter(|(rule, _)| rule.effect != Effect::Rewrite)
            .and_then(|(rule, by)| Some(rule.instead.as_ref()?.shown(by, &self.target)));
        let contact = rule.and_then(|rule| rule.contact.clone());
        let from = self.rewrites.last().map(|rewrite| &rewrite.to.repository);
        let why = match from {
            Some(from) => format!("it is pulled from {from}: {why}"),
            None => why.to_owned(),
        };
        let subject = asked.to_string();
        let message = refusal::message(
            &subject,
            state,
            &why,
            instead.as_deref(),
            contact.as_deref(),
        );
        Refusal {
            message,
            rule: rule.map(|rule| rule.id.to_string()),
            reason: rule.and_then(|rule| rule.reason.clone()),
            instead,
            contact,
            served_from: None,
        }
    }
}

// === impl Obligation ===

impl Obligation {
    /// Why the tag is not served yet, but will be at `from`.
    #[must_use]
    pub fn refusal(&self, from: Timestamp) -> Refusal {
        let (age, from) = (units::show(self.min_age), format!("{from:.0}"));
        let reason = self.reason.as_ref().map(|reason| format!(": {reason}"));
        let why = format!(
            "it will be from {from} on, {age} after it was first seen{}",
            reason.as_deref().unwrap_or_default()
        );
        let subject = self.asked.to_string();
        Refusal {
            message: refusal::message(&subject, HELD_BACK, &why, None, self.contact.as_deref()),
            rule: Some(self.rule.to_string()),
            reason: self.reason.clone(),
            instead: None,
            contact: self.contact.clone(),
            served_from: Some(from),
        }
    }
}
