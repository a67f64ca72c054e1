//! Which images may be pulled, by whom and from where: rules in order, the first that matches
//! decides.
//!
//! Pure: no clock, no I/O, so that every decision can be explained by asking again. What a clock
//! or a store is needed for is handed back: an [`Obligation`] for tags, [`Decision::if_led`] for
//! digests.
//!
//! **By digest.** Container runtimes resolve a tag once and ask for everything else by digest, so
//! a rule on tags never sees those requests. By digest therefore only patterns without a version
//! (or with that very digest) decide. Where those say no but some version of the repository may be
//! allowed, the decision names the repositories in which a tag or an index may have led there:
//! whoever keeps track of that asks again with those.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize, Serializer};

use crate::oci::{Image, InvalidName, Reference, Registry, Repository};

mod client;
mod decide;
mod grants;
mod index;
mod outline;
mod pattern;
mod reach;
mod refusal;
mod rewrite;
mod rule;
pub mod suggest;

pub use client::{Client, Subject};
pub use decide::{Decision, Obligation, Rewrite, Step};
pub use grants::Grants;
use index::Index;
pub use outline::{Clause, Destination, LeftOut, Outline, Replacement, Says, Words};
pub use pattern::{Hit, InvalidPattern, Pattern, RegistryPart};
pub use refusal::{AUDITED, REFUSED, Refusal};
pub use rewrite::MOST_REWRITES;
use rule::Rule;
pub use rule::{Effect, Require, RuleConfig};

/// `[policy]`. A section that is there decides everything, and what it does not allow is refused;
/// [`Config::default`] is the policy of a configuration without one.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// For images that no rule matches. `allow` is still bounded by the registries that are served.
    #[serde(default = "closed", deserialize_with = "default_effect")]
    pub default: Effect,
    #[serde(default)]
    pub rules: Vec<RuleConfig>,
}

/// What is asked for, in canonical form. Tag lists have no reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub repository: Repository,
    pub reference: Option<Reference>,
}

/// Something wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: `policy.rules.2.images.0`, counted from 0.
    pub key: String,
    pub message: String,
}

/// A compiled policy.
#[derive(Debug)]
pub struct Engine {
    default: Effect,
    rules: Vec<Rule>,
    images: Index,
    except: Index,
}

// === impl Config ===

fn closed() -> Effect {
    Effect::Deny
}

fn default_effect<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Effect, D::Error> {
    match Effect::deserialize(deserializer)? {
        effect @ (Effect::Allow | Effect::Deny) => Ok(effect),
        other => Err(D::Error::custom(format_args!(
            "the default is \"allow\" or \"deny\": for {:?} write a last rule for [\"**\"]",
            other.as_str()
        ))),
    }
}

impl Default for Config {
    fn default() -> Self {
        let frozen = RuleConfig {
            id: "frozen-k8s-gcr".to_owned(),
            images: vec!["k8s.gcr.io/**".to_owned()],
            except: Vec::new(),
            effect: Effect::Deny,
            reason: Some("k8s.gcr.io is frozen since 3 April 2023".to_owned()),
            instead: Some("registry.k8s.io/**".to_owned()),
            contact: None,
            clients: None,
            require: None,
            min_age: None,
        };
        Config {
            default: Effect::Allow,
            rules: vec![frozen],
        }
    }
}

// === impl Engine ===

impl Engine {
    /// Compiles all rules, or says everything that is wrong with them.
    pub fn compile(config: &Config) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut rules: Vec<Rule> = Vec::new();
        for (index, rule) in config.rules.iter().enumerate() {
            let key = format!("policy.rules.{index}");
            if rules.iter().any(|other| *other.id == *rule.id) {
                let message = format!("another rule has the id {:?}", rule.id);
                problems.push(Problem {
                    key: format!("{key}.id"),
                    message,
                });
            }
            rules.push(Rule::compile(rule, &key, &mut problems));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let engine = Engine {
            default: config.default,
            images: Index::new(rules.iter().map(|rule| rule.images.as_slice())),
            except: Index::new(rules.iter().map(|rule| rule.except.as_slice())),
            rules,
        };
        let problems = engine.dead_ends();
        if problems.is_empty() {
            Ok(engine)
        } else {
            Err(problems)
        }
    }

    /// How many rules there are.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// The registries that rules and their exceptions name.
    pub fn registries(&self) -> impl Iterator<Item = &RegistryPart> {
        let patterns = self
            .rules
            .iter()
            .flat_map(|rule| rule.images.iter().chain(&rule.except));
        patterns.map(Pattern::registry)
    }

    /// The rules that rewrite, and the registry that each leads to.
    pub fn rewrites(&self) -> impl Iterator<Item = (&str, Registry)> {
        let rewriting = self
            .rules
            .iter()
            .filter(|rule| rule.effect == Effect::Rewrite);
        rewriting.filter_map(|rule| Some((&*rule.id, rule.instead.as_ref()?.registry()?)))
    }

    /// What rules refuse by tag. A tag is no lock: whoever asks for the digest behind it gets it,
    /// unless a rule without a tag refuses that too.
    pub fn refused_by_tag(&self) -> impl Iterator<Item = (&str, &Pattern)> {
        let refusing = self.rules.iter().filter(|rule| rule.effect == Effect::Deny);
        let patterns = refusing.flat_map(|rule| rule.images.iter().map(|image| (&*rule.id, image)));
        patterns.filter(|(_, image)| image.has_tag())
    }
}

// === impl Target ===

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reference {
            None => self.repository.fmt(f),
            Some(Reference::Tag(tag)) => write!(f, "{}:{tag}", self.repository),
            Some(Reference::Digest(digest)) => write!(f, "{}@{digest}", self.repository),
        }
    }
}

impl From<&Image> for Target {
    fn from(image: &Image) -> Self {
        Target {
            repository: image.repository.clone(),
            reference: Some(image.reference()),
        }
    }
}

impl FromStr for Target {
    type Err = InvalidName;

    /// Reads an image as people write it: without a version it is `latest`.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        text.parse::<Image>().map(|image| Target::from(&image))
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

// === impl Problem ===

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

#[cfg(test)]
mod tests;
