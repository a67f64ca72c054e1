//! Everything that somebody wrote down against the policy, and the reports about it.
//!
//! One finding is one image with all its places. Whatever order the inputs came in, findings are in
//! the order of their images; places stay in the order of the inputs.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde_json::{Value, json};

use super::inputs::Inputs;
use super::judge::{Judge, Judgement, Outcome};
use super::mention::{Place, Written};
use crate::cache::pulls::Was;

mod report;
mod sarif;
mod text;

pub use report::Kind as ReportKind;

/// One image, what is said about it, and everywhere it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    #[serde(flatten)]
    pub judgement: Judgement,
    pub places: Vec<Place>,
}

/// What an audit found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// It is about recorded pulls, and each place is a client.
    pub of_pulls: bool,
    /// Those that are allowed too.
    pub findings: Vec<Finding>,
    /// What could not be read: then nothing is known about the rest.
    pub errors: Vec<String>,
    /// What was passed over.
    pub notes: Vec<String>,
}

/// One for each image and what is said about it.
#[derive(Debug, Default)]
pub(super) struct Findings(BTreeMap<(String, Outcome, Option<String>), Finding>);

// === impl Findings ===

impl Findings {
    pub(super) fn add(&mut self, judgement: &Judgement, place: Place) {
        let Judgement {
            image,
            outcome,
            message,
            ..
        } = judgement;
        let key = (image.clone(), *outcome, message.clone());
        let finding = self.0.entry(key).or_insert_with(|| Finding {
            judgement: judgement.clone(),
            places: Vec::new(),
        });
        finding.places.push(place);
    }

    pub(super) fn into_list(self) -> Vec<Finding> {
        self.0.into_values().collect()
    }
}

// === impl Audit ===

impl Audit {
    #[must_use]
    pub fn new(inputs: impl IntoIterator<Item = Inputs>, judge: &Judge<'_>) -> Self {
        let mut audit = Audit::default();
        // A cluster has thousands of pods with a few hundred images.
        let mut judged: HashMap<Written, Judgement> = HashMap::new();
        let mut findings = Findings::default();
        for input in inputs {
            audit.errors.extend(input.errors);
            audit.notes.extend(input.notes);
            for mention in input.mentions {
                let judgement = judged
                    .entry(mention.written)
                    .or_insert_with_key(|written| judge.judge(written));
                findings.add(judgement, mention.place);
            }
        }
        audit.findings = findings.into_list();
        audit
    }

    /// What policy refuses, and what cannot be read.
    pub fn violations(&self) -> impl Iterator<Item = &Finding> {
        self.of(Judgement::is_violation)
    }

    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.of(|judgement| judgement.outcome == Outcome::Warning)
    }

    /// Not against the rules, but no pull through us would work.
    pub fn unserved(&self) -> impl Iterator<Item = &Finding> {
        self.of(Judgement::is_unserved)
    }

    /// Recorded pulls that are refused, as they were: nothing breaks.
    pub fn refused(&self) -> impl Iterator<Item = &Finding> {
        self.of(|judgement| judgement.outcome == Outcome::Refused)
    }

    /// Recorded pulls that were refused, and would not be any more.
    pub fn freed(&self) -> impl Iterator<Item = &Finding> {
        let was_refused = |place: &Place| {
            let pulled = place.pulled.as_ref();
            pulled.is_some_and(|pulled| pulled.was == Was::Refused)
        };
        self.of(|judgement| judgement.outcome < Outcome::Refused)
            .filter(move |finding| finding.places.iter().any(was_refused))
    }

    fn of(&self, wanted: impl Fn(&Judgement) -> bool) -> impl Iterator<Item = &Finding> {
        self.findings
            .iter()
            .filter(move |finding| wanted(&finding.judgement))
    }

    /// A table for people.
    #[must_use]
    pub fn text(&self) -> String {
        text::render(self)
    }

    #[must_use]
    pub fn json(&self) -> Value {
        let images = self.findings.iter().map(|Finding { judgement, places }| {
            json!({
                "image": judgement.image,
                "outcome": judgement.outcome,
                "served": judgement.served,
                "places": places.len(),
            })
        });
        let mut json = json!({
            "violations": self.violations().collect::<Vec<_>>(),
            "warnings": self.warnings().collect::<Vec<_>>(),
            "unserved": self.unserved().collect::<Vec<_>>(),
            "images": images.collect::<Vec<_>>(),
            "errors": self.errors,
            "notes": self.notes,
        });
        if self.of_pulls {
            json["refused"] = json!(self.refused().collect::<Vec<_>>());
            json["freed"] = json!(self.freed().collect::<Vec<_>>());
        }
        json
    }

    /// SARIF 2.1.0, for code scanning.
    #[must_use]
    pub fn sarif(&self) -> Value {
        sarif::log(self)
    }

    /// Reports for the cluster, as one `List` that can be applied.
    #[must_use]
    pub fn report(&self, kind: ReportKind) -> Value {
        report::list(self, kind)
    }
}

// === impl Finding ===

impl Finding {
    /// The rule's id, or a word that no rule can have for what no rule says.
    fn rule(&self) -> &str {
        let judgement = &self.judgement;
        match (judgement.outcome, &judgement.rule) {
            (Outcome::Unreadable, _) => "portcullis/no-image",
            _ if judgement.is_unserved() => "portcullis/not-served",
            (_, Some(rule)) => rule,
            (_, None) => "portcullis/default",
        }
    }

    /// What there is to say, if anything.
    fn message(&self) -> Option<String> {
        let judgement = &self.judgement;
        if judgement.is_unserved() {
            let image = &judgement.image;
            return Some(format!(
                "{image} is allowed, but its registry is neither known nor in [upstreams]"
            ));
        }
        judgement.message.clone()
    }
}

#[cfg(test)]
mod tests;
