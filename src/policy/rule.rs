//! One entry of `[[policy.rules]]`: as it is written, and compiled.

use std::sync::Arc;

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};

use super::Problem;
use super::pattern::{Hit, InvalidPattern, Pattern};
use super::refusal::{Instead, LONGEST_MESSAGE};
use crate::oci::Reference;

/// What a rule says about the images it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    Allow,
    Deny,
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
    pub instead: Option<String>,
    pub contact: Option<String>,
    /// Keys that a later version enforces. To ignore one would look like protection.
    #[serde(default, rename = "clients", alias = "require", alias = "min_age")]
    #[serde(deserialize_with = "not_yet")]
    pub later: (),
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
}

/// Whether a rule is about an image, and which pattern says so.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict<'a> {
    No,
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

impl<'de> Deserialize<'de> for Effect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "allow" => Ok(Effect::Allow),
            "deny" => Ok(Effect::Deny),
            later @ ("audit" | "rewrite") => Err(Error::custom(format_args!(
                "the effect \"{later}\" is not supported in this version: use \"allow\" or \"deny\""
            ))),
            other => Err(Error::custom(format_args!(
                "{other:?} is no effect: use \"allow\" or \"deny\""
            ))),
        }
    }
}

fn not_yet<'de, D: Deserializer<'de>>(_: D) -> Result<(), D::Error> {
    Err(Error::custom(
        "clients, require and min_age are not supported in this version",
    ))
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
        let mut compile = |name: &str, texts: &[String]| -> Vec<Pattern> {
            let patterns = texts.iter().enumerate().map(|(index, text)| {
                Pattern::parse(text)
                    .map_err(|InvalidPattern(error)| wrong(&format!("{name}.{index}"), error))
            });
            patterns.filter_map(Result::ok).collect()
        };
        let images = compile("images", &config.images);
        let except = compile("except", &config.except);
        let instead = config.instead.as_deref().map(Instead::parse).transpose();
        Rule {
            id: config.id.as_str().into(),
            effect: config.effect,
            images,
            except,
            reason: config.reason.clone(),
            instead: instead.unwrap_or_else(|InvalidPattern(error)| {
                wrong("instead", error);
                None
            }),
            contact: config.contact.clone(),
        }
    }
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
    (
        if unsure.is_some() {
            Hit::Unsure
        } else {
            Hit::No
        },
        unsure,
    )
}
