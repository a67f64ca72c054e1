//! What an image is replaced by: shown in a refusal, or where a rewrite sends the pull.
//!
//! A rewrite may lead to another one, so the result is asked about again; see
//! [`MOST_REWRITES`]. Where it is known when the policy is loaded that a rewrite leads nowhere, it
//! is refused then: that is worth more than a pull that fails.

use super::pattern::{Cover, InvalidPattern, Names, Pattern};
use super::{Effect, Engine, Problem, Target};
use crate::oci::{Image, Reference, Registry};

/// How often one pull may be rewritten. More would only hide where an image comes from.
pub const MOST_REWRITES: usize = 2;

/// One image, or, ending in `/**`, the same path elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Instead {
    Image { image: Image, text: String },
    Under(String),
}

// === impl Instead ===

impl Instead {
    pub(super) fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let under = text
            .strip_suffix("**")
            .filter(|prefix| prefix.ends_with('/'));
        // With something in the place of the wildcard it is an image like any other.
        let example = under.map_or_else(|| text.to_owned(), |prefix| format!("{prefix}x"));
        match (example.parse::<Image>(), under) {
            (Ok(image), None) => Ok(Instead::Image {
                image,
                text: text.to_owned(),
            }),
            (Ok(_), Some(prefix)) => Ok(Instead::Under(prefix.to_owned())),
            (Err(error), _) => Err(InvalidPattern(format!(
                "{text:?} is neither an image nor a name that ends in /** ({error})"
            ))),
        }
    }

    /// What people are to use in place of `target`, which `pattern` matched.
    pub(super) fn shown(&self, pattern: &Pattern, target: &Target) -> String {
        let prefix = match self {
            Instead::Image { text, .. } => return text.clone(),
            Instead::Under(prefix) => prefix,
        };
        // Only the name is replaced: the version, which follows it, stays.
        let name = target.repository.to_string();
        let version = target.to_string().split_off(name.len());
        format!("{prefix}{}{version}", pattern.remainder(&name))
    }

    /// Where to pull `target` from. A digest stays what it is: nothing else may be answered.
    /// None when there is no such name: it is too long.
    pub(super) fn target(&self, pattern: &Pattern, target: &Target) -> Option<Target> {
        let asked = &target.reference;
        match self {
            Instead::Image { image, .. } => {
                let reference = match asked {
                    Some(Reference::Tag(_)) if image.tag.is_some() || image.digest.is_some() => {
                        Some(image.reference())
                    }
                    _ => asked.clone(),
                };
                Some(Target {
                    repository: image.repository.clone(),
                    reference,
                })
            }
            Instead::Under(prefix) => {
                let name = target.repository.to_string();
                let image = format!("{prefix}{}", pattern.remainder(&name));
                Some(Target {
                    repository: image.parse::<Image>().ok()?.repository,
                    reference: asked.clone(),
                })
            }
        }
    }

    pub(super) fn registry(&self) -> Option<Registry> {
        match self {
            Instead::Image { image, .. } => Some(image.repository.registry.clone()),
            Instead::Under(prefix) => {
                let image: Image = format!("{prefix}x").parse().ok()?;
                Some(image.repository.registry)
            }
        }
    }

    /// All that it can make of what `pattern` matches.
    fn names(&self, pattern: &Pattern) -> Option<Names> {
        let prefix = match self {
            Instead::Image { image, .. } => {
                return Some(Names::One(image.repository.to_string()));
            }
            Instead::Under(prefix) => prefix,
        };
        let canonical = |name: &str| {
            let image: Image = format!("{prefix}{name}").parse().ok()?;
            Some(image.repository.to_string())
        };
        if let Some(name) = pattern.exact() {
            return canonical(pattern.remainder(name)).map(Names::One);
        }
        self.start().map(Names::Under)
    }

    /// What the same path elsewhere begins with, in canonical form.
    pub(super) fn start(&self) -> Option<String> {
        let Instead::Under(prefix) = self else {
            return None;
        };
        let image: Image = format!("{prefix}x/x").parse().ok()?;
        let name = image.repository.to_string();
        Some(name.strip_suffix("x/x")?.to_owned())
    }
}

// === impl Engine ===

impl Engine {
    /// Rewrites of which it is known now that what they lead to is never served.
    pub(super) fn dead_ends(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (number, rule) in self.rules.iter().enumerate() {
            let Some(instead) = rule
                .instead
                .as_ref()
                .filter(|_| rule.effect == Effect::Rewrite)
            else {
                continue;
            };
            let ends = rule.images.iter().filter_map(|pattern| {
                let names = instead.names(pattern)?;
                self.dead_end(&names, MOST_REWRITES - 1)
            });
            problems.extend(ends.take(1).map(|message| Problem {
                key: format!("policy.rules.{number}.instead"),
                message,
            }));
        }
        problems
    }

    /// Why none of `names` is ever served, if that is so for all of them.
    fn dead_end(&self, names: &Names, rewrites: usize) -> Option<String> {
        let mut surely = None;
        for rule in &self.rules {
            match rule.covers(names) {
                Cover::None => {}
                // Some go another way than others.
                Cover::Some => return None,
                Cover::All(pattern) => {
                    surely = Some((rule, pattern));
                    break;
                }
            }
        }
        let Some((rule, pattern)) = surely else {
            let why = format!("no rule allows {names}, where this leads");
            return (self.default == Effect::Deny).then_some(why);
        };
        match (rule.effect, &rule.instead) {
            (Effect::Deny, _) => Some(format!(
                "rule {} refuses {names}, where this leads",
                rule.id
            )),
            (Effect::Rewrite, Some(_)) if rewrites == 0 => Some(format!(
                "rule {} rewrites {names}, where this leads, once more: a pull is rewritten {MOST_REWRITES} times at most",
                rule.id
            )),
            (Effect::Rewrite, Some(instead)) => {
                let next = match names {
                    Names::One(name) => {
                        let image = name.parse::<Image>().ok()?;
                        let target = instead.target(pattern, &Target::from(&image))?;
                        Names::One(target.repository.to_string())
                    }
                    // What is left of a name depends on the name where the two patterns differ.
                    Names::Under(_) | Names::Registries(_) => instead.names(pattern)?,
                };
                self.dead_end(&next, rewrites - 1)
            }
            _ => None,
        }
    }
}
