//! The rules as an ordered list of regular expressions, for those who decide by them without this
//! engine: the policies that a cluster runs by itself.
//!
//! A clause is about references in canonical form, `registry/repository:tag` or
//! `registry/repository@digest`, and the first that matches decides, as [`Engine::evaluate`] does
//! for a client of whom nothing is known. What has to be known besides stays behind: see
//! [`LeftOut`].

use std::sync::Arc;

use serde::Serialize;

use super::pattern::{Pattern, Versions};
use super::refusal::{NOTHING_ALLOWS, NOTHING_LED, too_long, too_often};
use super::rewrite::Instead;
use super::rule::{Require, Rule};
use super::{Effect, Engine};

/// A policy in other words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    pub clauses: Vec<Clause>,
    /// For what no clause matches.
    pub default: Says,
    pub left_out: Vec<LeftOut>,
}

/// Some references, and what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Clause {
    /// In the syntax of RE2, anchored, without a backslash.
    pub when: String,
    /// What it is not about after all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unless: Option<String>,
    #[serde(flatten)]
    pub says: Says,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "says", rename_all = "lowercase")]
pub enum Says {
    Serve,
    /// Served, and somebody is told.
    Audit(Words),
    Refuse(Words),
    /// Judged as something else. `words` are for what has been that too often already.
    Rewrite {
        to: Destination,
        #[serde(flatten)]
        words: Words,
    },
}

/// What is said about a reference, in the parts of one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Words {
    pub why: String,
    /// Whether to say how the reference is pinned.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pin: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instead: Option<Replacement>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contact: Option<String>,
}

/// Another image: `start`, and behind it what is left of the reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Replacement {
    pub start: String,
    /// Without that many of its segments, but never without the last. None: nothing is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip: Option<usize>,
}

/// Where a rewrite leads, in canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Destination {
    #[serde(flatten)]
    pub name: Replacement,
    /// `:tag` or `@digest` that every tag becomes. None: the version stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Whether a single segment at Docker Hub is one of `library/`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub library: bool,
    /// Why there is no such place, when the name becomes too long.
    pub too_long: String,
}

/// What a rule says that cannot be told from a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// The rule is about certain clients: to somebody unknown it is not there.
    Clients(Arc<str>),
    /// What the rule allows is allowed, however young.
    MinAge(Arc<str>),
}

// === impl Engine ===

impl Engine {
    #[must_use]
    pub fn outline(&self) -> Outline {
        let (theirs, rules): (Vec<&Rule>, Vec<&Rule>) =
            self.rules.iter().partition(|rule| rule.clients.is_some());
        let aged = rules.iter().filter(|rule| rule.min_age.is_some());
        let left_out = theirs
            .into_iter()
            .map(|rule| LeftOut::Clients(Arc::clone(&rule.id)))
            .chain(aged.map(|rule| LeftOut::MinAge(Arc::clone(&rule.id))))
            .collect();
        let mut clauses: Vec<_> = rules.iter().flat_map(|rule| rule.clauses()).collect();
        let default = if self.default.serves() {
            Says::Serve
        } else {
            clauses.extend(rules.iter().filter_map(|rule| rule.unsure()));
            Says::Refuse(Words::new(NOTHING_ALLOWS))
        };
        Outline {
            clauses,
            default,
            left_out,
        }
    }
}

// === impl Rule ===

impl Rule {
    fn clauses(&self) -> Vec<Clause> {
        // Patterns that replace as much of a name as each other are one expression.
        let is_alike = |a: &Pattern, b: &Pattern| match self.instead {
            Some(Instead::Under(_)) => a.replaced() == b.replaced(),
            _ => true,
        };
        let mut clauses = Vec::new();
        for images in self.images.chunk_by(is_alike) {
            let skip = images.first().map_or(0, Pattern::replaced);
            let mut add = |versions, says| {
                clauses.extend(self.clause(images, versions, says));
            };
            if self.require == Some(Require::Digest) {
                add(Versions::Digests, self.says(skip));
                add(Versions::Tags, Says::Refuse(self.pin(skip)));
            } else {
                add(Versions::Sure, self.says(skip));
            }
        }
        clauses
    }

    /// Refused, but for those that an allowed version led to.
    fn unsure(&self) -> Option<Clause> {
        if self.effect == Effect::Deny {
            return None;
        }
        let says = Says::Refuse(Words::new(NOTHING_LED));
        self.clause(&self.images, Versions::Unsure, says)
    }

    fn clause(&self, images: &[Pattern], versions: Versions, says: Says) -> Option<Clause> {
        Some(Clause {
            when: union(images, versions)?,
            unless: union(&self.except, Versions::Sure),
            says,
        })
    }

    fn says(&self, skip: usize) -> Says {
        match (self.effect, &self.instead) {
            (Effect::Allow, _) => Says::Serve,
            (Effect::Audit, _) => Says::Audit(self.words(self.audits(), skip)),
            (Effect::Rewrite, Some(instead)) => Says::Rewrite {
                to: instead.destination(skip, too_long(&self.id)),
                words: Words {
                    instead: None,
                    ..self.words(too_often(&self.id), skip)
                },
            },
            (Effect::Deny | Effect::Rewrite, _) => Says::Refuse(self.words(self.refuses(), skip)),
        }
    }

    fn pin(&self, skip: usize) -> Words {
        Words {
            pin: true,
            ..self.words(self.wants_digest(), skip)
        }
    }

    fn words(&self, why: String, skip: usize) -> Words {
        Words {
            why,
            pin: false,
            instead: self
                .instead
                .as_ref()
                .map(|instead| instead.replacement(skip)),
            contact: self.contact.clone(),
        }
    }
}

/// One expression for all of `patterns`; None when they match nothing.
fn union(patterns: &[Pattern], versions: Versions) -> Option<String> {
    let parts = patterns
        .iter()
        .filter_map(|pattern| pattern.regex(versions));
    let parts: Vec<_> = parts.collect();
    match parts.as_slice() {
        [] => None,
        [one] => Some(format!("^{one}")),
        several => Some(format!("^({})", several.join("|"))),
    }
}

// === impl Words ===

impl Words {
    fn new(why: &str) -> Self {
        Words {
            why: why.to_owned(),
            pin: false,
            instead: None,
            contact: None,
        }
    }
}

// === impl Instead ===

impl Instead {
    /// As people are shown it.
    fn replacement(&self, skip: usize) -> Replacement {
        match self {
            Instead::Image { text, .. } => Replacement {
                start: text.clone(),
                skip: None,
            },
            Instead::Under(start) => Replacement {
                start: start.clone(),
                skip: Some(skip),
            },
        }
    }

    fn destination(&self, skip: usize, too_long: String) -> Destination {
        let (start, skip, version) = match self {
            Instead::Image { image, .. } => {
                let has_version = image.tag.is_some() || image.digest.is_some();
                let repository = image.repository.to_string();
                let target = super::Target::from(image).to_string();
                let version = has_version.then(|| target[repository.len()..].to_owned());
                (repository, None, version)
            }
            // What has been checked when it was read has a canonical form.
            Instead::Under(start) => {
                let start = self.start().unwrap_or_else(|| start.clone());
                (start, Some(skip), None)
            }
        };
        Destination {
            library: start == "docker.io/",
            name: Replacement { start, skip },
            version,
            too_long,
        }
    }
}
