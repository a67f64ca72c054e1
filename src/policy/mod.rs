//! Which images may be pulled: rules in order, the first that matches decides.
//!
//! Pure: no clock, no I/O, so that every decision can be explained by asking again.
//!
//! **By digest.** Container runtimes resolve a tag once and ask for everything else by digest, so
//! a rule on tags never sees those requests. By digest therefore only patterns without a version
//! (or with that very digest) decide. Where that says no but some version of the repository may be
//! allowed, the decision is [`Decision::if_led_by_tag`]: whoever keeps track of which tags and
//! indexes led to which digests asks again with those.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::oci::{Image, Reference, Repository};

mod index;
mod pattern;
mod refusal;
mod rule;

use index::Index;
pub use pattern::{Hit, InvalidPattern, Pattern, RegistryPart};
pub use refusal::Refusal;
pub use rule::{Effect, RuleConfig};
use rule::{Rule, Verdict};

/// `[policy]`. A section that is there decides everything, and what it does not allow is refused;
/// [`Config::default`] is the policy of a configuration without one.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// For images that no rule matches. `allow` is still bounded by the registries that are served.
    #[serde(default = "closed")]
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

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    pub address: IpAddr,
}

/// What the policy says about one target.
#[derive(Clone, Debug)]
pub struct Decision {
    pub effect: Effect,
    /// The rule that decided; `None` when none matched and the default did.
    pub rule: Option<Arc<str>>,
    /// Only with `Deny` by digest: some version of this repository may be allowed. The digest may
    /// be served all the same if a tag or an index that [`Engine::evaluate`] allows led to it.
    pub if_led_by_tag: bool,
    /// With `Deny`, why.
    pub refusal: Option<Arc<Refusal>>,
}

/// One rule's part in a decision, for `explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    pub rule: Arc<str>,
    pub effect: Effect,
    pub decides: bool,
    /// In words, with the pattern.
    pub why: String,
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
            later: (),
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
        if problems.is_empty() {
            Ok(Engine {
                default: config.default,
                images: Index::new(rules.iter().map(|rule| rule.images.as_slice())),
                except: Index::new(rules.iter().map(|rule| rule.except.as_slice())),
                rules,
            })
        } else {
            Err(problems)
        }
    }

    /// Decides. Rules that look at the client are refused when they are loaded, so every client
    /// gets the same answer in this version.
    #[must_use]
    pub fn evaluate(&self, target: &Target, _client: &Client) -> Decision {
        let name = target.repository.to_string();
        let reference = target.reference.as_ref();
        let mut decided = None;
        // Whether some version of this repository may be allowed.
        let mut possible = None;
        let (images, except) = (self.images.find(&name), self.except.find(&name));
        for images in images.chunk_by(|(a, _), (b, _)| a == b) {
            let number = images[0].0;
            let rule = &self.rules[number];
            let start = except.partition_point(|(rule, _)| *rule < number);
            let except = except[start..]
                .iter()
                .take_while(|(rule, _)| *rule == number);
            let verdict = rule::judge(
                images.iter().map(|(_, image)| &rule.images[*image]),
                except.map(|(_, exception)| &rule.except[*exception]),
                &name,
                reference,
            );
            match (verdict, rule.effect) {
                (Verdict::Unsure(_), Effect::Allow) => possible = Some(true),
                (Verdict::Yes { by, unless }, effect) => {
                    decided = decided.or(Some((rule, by)));
                    if unless.is_none() {
                        possible = possible.or(Some(effect == Effect::Allow));
                        break;
                    }
                }
                _ => {}
            }
        }
        let effect = decided.map_or(self.default, |(rule, _)| rule.effect);
        let possible = possible.unwrap_or(self.default == Effect::Allow);
        let mut decision = Decision {
            effect,
            rule: decided.map(|(rule, _)| Arc::clone(&rule.id)),
            if_led_by_tag: false,
            refusal: None,
        };
        match (effect, reference) {
            (Effect::Allow, _) => {}
            // A list of tags is there to find the allowed one in.
            (Effect::Deny, None) if possible => {
                decision.effect = Effect::Allow;
                decision.rule = None;
            }
            (Effect::Deny, _) => {
                decision.if_led_by_tag = possible;
                decision.refusal = Some(Arc::new(refuse(target, decided, possible)));
            }
        }
        decision
    }

    /// Every rule down to the one that decides, with its reason to do so or not.
    #[must_use]
    pub fn explain(&self, target: &Target) -> Vec<Step> {
        let name = target.repository.to_string();
        let mut trail = Vec::new();
        for rule in &self.rules {
            let reference = target.reference.as_ref();
            let verdict = rule::judge(rule.images.iter(), rule.except.iter(), &name, reference);
            let why = match verdict {
                Verdict::No => "no pattern matches".to_owned(),
                Verdict::Excepted(pattern) => format!("excepts {pattern}"),
                Verdict::Unsure(pattern) => {
                    format!("{pattern} is about some versions, and this reference does not tell")
                }
                Verdict::Yes { by, unless: None } => format!("{by} matches"),
                Verdict::Yes {
                    by,
                    unless: Some(exception),
                } => {
                    format!("{by} matches; {exception} is excepted only by version")
                }
            };
            let decides = matches!(verdict, Verdict::Yes { .. });
            trail.push(Step {
                rule: Arc::clone(&rule.id),
                effect: rule.effect,
                decides,
                why,
            });
            if decides {
                break;
            }
        }
        trail
    }

    /// The registries that rules and their exceptions name.
    pub fn registries(&self) -> impl Iterator<Item = &RegistryPart> {
        let patterns = self
            .rules
            .iter()
            .flat_map(|rule| rule.images.iter().chain(&rule.except));
        patterns.map(Pattern::registry)
    }

    /// What rules refuse by tag. A tag is no lock: whoever asks for the digest behind it gets it,
    /// unless a rule without a tag refuses that too.
    pub fn refused_by_tag(&self) -> impl Iterator<Item = (&str, &Pattern)> {
        let refusing = self.rules.iter().filter(|rule| rule.effect == Effect::Deny);
        let patterns = refusing.flat_map(|rule| rule.images.iter().map(|image| (&*rule.id, image)));
        patterns.filter(|(_, image)| image.has_tag())
    }
}

/// `possible`: some version of the repository may be allowed.
fn refuse(target: &Target, decided: Option<(&Rule, &Pattern)>, possible: bool) -> Refusal {
    let rule = decided.map(|(rule, _)| rule);
    let why = match rule.map(|rule| (&rule.reason, &rule.id)) {
        Some((Some(reason), _)) => reason.clone(),
        Some((None, id)) => format!("rule {id} refuses it"),
        None if possible => {
            "only some versions are, and none of them led to this digest".to_owned()
        }
        None => "no rule allows it".to_owned(),
    };
    let instead =
        decided.and_then(|(rule, pattern)| Some(rule.instead.as_ref()?.of(pattern, target)));
    let contact = rule.and_then(|rule| rule.contact.clone());
    Refusal {
        message: refusal::message(
            &target.to_string(),
            &why,
            instead.as_deref(),
            contact.as_deref(),
        ),
        rule: rule.map(|rule| rule.id.to_string()),
        reason: rule.and_then(|rule| rule.reason.clone()),
        instead,
        contact,
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

// === impl Problem ===

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

#[cfg(test)]
mod tests;
