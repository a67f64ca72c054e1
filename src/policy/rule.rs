//! One entry of `[[policy.rules]]`: as it is written, and compiled.

use std::sync::Arc;
use std::time::Duration;

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};

use super::Problem;
use super::client::{Client, Clients};
use super::pattern::{Cover, Hit, InvalidPattern, Names, Pattern};
use super::refusal::LONGEST_MESSAGE;
use super::rewrite::Instead;
use crate::oci::Reference;

/// What a rule says about the images it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    Allow,
    /// Served, with a warning.
    Audit,
    Deny,
    /// Answered from another place.
    Rewrite,
}

/// What a reference must be, beside matching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Require {
    Digest,
}

/// A rule as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// Names the rule in refusals, logs and metrics.
    pub id: String,
    /// Patterns over `registry/repository[:tag][@digest]`.
    pub images: Vec<String>,
    /// Patterns for what the rule is not about after all.
    #[serde(default)]
    pub except: Vec<String>,
    pub effect: Effect,
    pub reason: Option<String>,
    /// Shown in a refusal; where a rewrite sends the pull.
    pub instead: Option<String>,
    pub contact: Option<String>,
    /// Networks and subjects (`mtls:CN=...`) that the rule is about; None: everybody.
    pub clients: Option<Vec<String>>,
    pub require: Option<Require>,
    /// How long ago a tag must have been seen with a digest for the first time.
    #[serde(default, deserialize_with = "optional_duration")]
    pub min_age: Option<Duration>,
}

/// A compiled rule.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) id: Arc<str>,
    pub(super) effect: Effect,
    pub(super) images: Vec<Pattern>,
    pub(super) except: Vec<Pattern>,
    pub(super) reason: Option<String>,
    pub(super) instead: Option<Instead>,
    pub(super) contact: Option<String>,
    pub(super) clients: Option<Vec<Clients>>,
    pub(super) require: Option<Require>,
    pub(super) min_age: Option<Duration>,
}

/// Whether a rule is about an image, and which pattern says so.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict<'a> {
    No,
    /// The rule is about other clients.
    Others,
    Excepted(&'a Pattern),
    /// Only some versions, and the reference does not tell whether it is one of them.
    Unsure(&'a Pattern),
    /// `unless`: an exception that only some versions have, as above.
    Yes {
        by: &'a Pattern,
        unless: Option<&'a Pattern>,
    },
}

// === impl Effect ===

impl Effect {
    /// Whether an image with this effect is served.
    #[must_use]
    pub fn serves(self) -> bool {
        self != Effect::Deny
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Effect::Allow => "allow",
            Effect::Audit => "audit",
            Effect::Deny => "deny",
            Effect::Rewrite => "rewrite",
        }
    }
}

impl<'de> Deserialize<'de> for Effect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        [Effect::Allow, Effect::Audit, Effect::Deny, Effect::Rewrite]
            .into_iter()
            .find(|effect| effect.as_str() == text)
            .ok_or_else(|| {
                Error::custom(format_args!(
                    "{text:?} is no effect: use \"allow\", \"audit\", \"deny\" or \"rewrite\""
                ))
            })
    }
}

fn optional_duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    crate::units::duration(deserializer).map(Some)
}

// === impl Rule ===

impl Rule {
    /// Compiles the rule at `key`; what is wrong with it goes to `problems`, and the rule is then
    /// of no use.
    pub(super) fn compile(config: &RuleConfig, key: &str, problems: &mut Vec<Problem>) -> Self {
        let mut wrong = |name: &str, message: String| {
            problems.push(Problem {
                key: format!("{key}.{name}"),
                message,
            });
        };
        let id_character = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if config.id.is_empty() || config.id.len() > 64 || !config.id.chars().all(id_character) {
            wrong(
                "id",
                "an id has 1 to 64 letters, digits, dashes, dots and underscores".to_owned(),
            );
        }
        if config.images.is_empty() {
            wrong(
                "images",
                "a rule without images matches nothing: write [\"**\"] for all".to_owned(),
            );
        }
        for (name, text) in [("reason", &config.reason), ("contact", &config.contact)] {
            let Some(text) = text else { continue };
            if text.is_empty()
                || text.chars().count() > LONGEST_MESSAGE
                || text.contains(char::is_control)
            {
                wrong(
                    name,
                    format!("must be one line of 1 to {LONGEST_MESSAGE} characters"),
                );
            }
        }
        let images = compile("images", &config.images, Pattern::parse, &mut wrong);
        let except = compile("except", &config.except, Pattern::parse, &mut wrong);
        let instead = config.instead.as_deref().map(Instead::parse).transpose();
        let instead = instead.unwrap_or_else(|InvalidPattern(error)| {
            wrong("instead", error);
            None
        });
        let clients = config.clients.as_ref();
        if clients.is_some_and(Vec::is_empty) {
            wrong(
                "clients",
                "a rule for no client never holds: leave the key out for all".to_owned(),
            );
        }
        let clients = clients.map(|texts| compile("clients", texts, Clients::parse, &mut wrong));
        let rule = Rule {
            id: config.id.as_str().into(),
            effect: config.effect,
            images,
            except,
            reason: config.reason.clone(),
            instead,
            contact: config.contact.clone(),
            clients,
            require: config.require,
            min_age: config.min_age,
        };
        rule.check(config, &mut wrong);
        rule
    }

    /// What does not go together.
    fn check(&self, config: &RuleConfig, wrong: &mut impl FnMut(&str, String)) {
        let mut versions = |name: &str, patterns: &[Pattern], why: &str| {
            if let Some(pattern) = patterns.iter().find(|pattern| pattern.has_version()) {
                wrong(name, format!("{pattern}: {why}"));
            }
        };
        if self.effect == Effect::Rewrite {
            let why = "a rewrite is about whole repositories, since nodes ask by digest for all but the tag";
            versions("images", &self.images, why);
            versions("except", &self.except, why);
        } else if self.require.is_some() {
            let tags: Vec<_> = self
                .images
                .iter()
                .filter(|image| image.has_tag())
                .cloned()
                .collect();
            let why = "with require = \"digest\" no tag is ever served";
            versions("images", &tags, why);
        }
        if self.effect == Effect::Rewrite && config.instead.is_none() {
            wrong(
                "instead",
                "must say where a rewrite sends the pull".to_owned(),
            );
        }
        let serves = matches!(self.effect, Effect::Allow | Effect::Audit);
        for (name, given) in [
            ("require", self.require.is_some()),
            ("min_age", self.min_age.is_some()),
        ] {
            if given && !serves {
                let effect = self.effect.as_str();
                let way = "goes with \"allow\" and \"audit\": it says what is not served after all";
                wrong(name, format!("{way}, and this rule says \"{effect}\""));
            }
        }
        if self.require.is_some() && self.min_age.is_some() {
            wrong(
                "min_age",
                "judges tags, and with require = \"digest\" none is served".to_owned(),
            );
        }
    }

    /// Whether it is about this client.
    pub(super) fn is_about(&self, client: &Client) -> bool {
        let clients = self.clients.as_ref();
        clients.is_none_or(|clients| clients.iter().any(|clients| clients.has(client)))
    }

    /// How many of `names` it decides about.
    pub(super) fn covers(&self, names: &Names) -> Cover<'_> {
        let mut cover = Cover::None;
        for image in &self.images {
            match image.covers(names) {
                Cover::None => {}
                Cover::Some => cover = Cover::Some,
                Cover::All(pattern) => {
                    cover = Cover::All(pattern);
                    break;
                }
            }
        }
        for exception in &self.except {
            match (exception.covers(names), cover) {
                (Cover::All(_), _) => return Cover::None,
                (Cover::Some, Cover::All(_)) => cover = Cover::Some,
                _ => {}
            }
        }
        match cover {
            Cover::All(_) if self.clients.is_some() => Cover::Some,
            cover => cover,
        }
    }
}

/// Reads each of `texts`, or says which are wrong.
fn compile<T>(
    name: &str,
    texts: &[String],
    parse: impl Fn(&str) -> Result<T, InvalidPattern>,
    wrong: &mut impl FnMut(&str, String),
) -> Vec<T> {
    let mut compiled = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match parse(text) {
            Ok(one) => compiled.push(one),
            Err(InvalidPattern(error)) => wrong(&format!("{name}.{index}"), error),
        }
    }
    compiled
}

/// What the patterns of a rule say about `name`, which is `registry/repository`.
pub(super) fn judge<'a>(
    images: impl Iterator<Item = &'a Pattern>,
    except: impl Iterator<Item = &'a Pattern>,
    name: &str,
    reference: Option<&Reference>,
) -> Verdict<'a> {
    let (hit, by) = first_hit(images, name, reference);
    let Some(by) = by else { return Verdict::No };
    match (hit, first_hit(except, name, reference)) {
        (_, (Hit::Yes, Some(exception))) => Verdict::Excepted(exception),
        (Hit::Yes, (_, unless)) => Verdict::Yes { by, unless },
        _ => Verdict::Unsure(by),
    }
}

/// The first pattern that surely matches, else the first that may.
fn first_hit<'a>(
    patterns: impl Iterator<Item = &'a Pattern>,
    name: &str,
    reference: Option<&Reference>,
) -> (Hit, Option<&'a Pattern>) {
    let mut unsure = None;
    for pattern in patterns {
        match pattern.hit(name, reference) {
            Hit::Yes => return (Hit::Yes, Some(pattern)),
            Hit::Unsure => unsure = unsure.or(Some(pattern)),
            Hit::No => {}
        }
    }
    let hit = unsure.map_or(Hit::No, |_| Hit::Unsure);
    (hit, unsure)
}
