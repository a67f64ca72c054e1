//! A policy with everything that is not used taken away: an allow list from what was pulled.
//!
//! The present rules stay where they are, so that whatever they refuse stays refused and what they
//! rewrite stays rewritten. Each rule that serves is left with the repositories that it served
//! ([`Proposed`]), under its own conditions, and what those refuse stays refused. The default becomes deny, and what it served gets a
//! rule for each registry at the end. A pattern that is about some versions keeps them. Otherwise a
//! repository stands for all its versions, and a path with [`MANY`] repositories of one rule below it
//! for all that are there, if that rule's own patterns cover them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::client::Client;
use super::pattern::{Cover, Names, Pattern};
use super::rule::{Rule, Verdict, judge};
use super::{Config, Effect, Engine, RuleConfig, Target};
use crate::oci::Registry;

/// Repositories from which on the path above them is proposed.
pub const MANY: usize = 3;
/// An id's characters.
const LONGEST_ID: usize = 64;

/// Somebody got an image.
#[derive(Clone, Debug)]
pub struct Pulled<'a> {
    pub target: &'a Target,
    pub client: &'a Client,
}

#[derive(Clone, Debug)]
pub struct Suggestion {
    /// To be loaded with the default deny.
    pub rules: Vec<Proposal>,
    /// What present rules refuse although it was served once; by its place in what was given.
    pub refused: Vec<usize>,
    /// Rules that rewrote to where nothing is served any more, and refuse instead.
    pub closed: Vec<String>,
}

/// A rule, and why its images are what they are.
#[derive(Clone, Debug)]
pub struct Proposal {
    pub rule: RuleConfig,
    /// One for each of the rule's images; empty for a rule that is as it was.
    pub images: Vec<Proposed>,
}

/// One pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposed {
    pub pattern: String,
    /// `registry/repository` of what was pulled: more than one when it is wider than that.
    pub repositories: BTreeSet<String>,
    /// The pulls that ask for it, by their place in what was given.
    pub pulls: BTreeSet<usize>,
}

/// What was pulled through one rule: by repository and, where its pattern has one, version.
type Used = BTreeMap<(String, String), BTreeSet<usize>>;

impl Engine {
    /// Narrows the policy that this is compiled from down to `pulls`. `group`: paths with many
    /// repositories become one pattern.
    #[must_use]
    pub fn suggest(&self, present: &Config, pulls: &[Pulled<'_>], group: bool) -> Suggestion {
        let mut used: Vec<Used> = vec![Used::new(); self.rules.len()];
        let mut by_default: BTreeMap<Registry, Used> = BTreeMap::new();
        let mut refused = Vec::new();
        for (number, pull) in pulls.iter().enumerate() {
            let mut is_served = false;
            for (rule, target, version) in self.ways(pull) {
                is_served = true;
                let used = match rule {
                    Some(rule) => &mut used[rule],
                    None => by_default
                        .entry(target.repository.registry.clone())
                        .or_default(),
                };
                let key = (target.repository.to_string(), version);
                used.entry(key).or_default().insert(number);
            }
            if !is_served {
                refused.push(number);
            }
        }
        let mut rules: Vec<Proposal> = Vec::new();
        let ids = present.rules.iter().map(|rule| rule.id.clone());
        let mut ids: HashSet<String> = ids.collect();
        for ((config, rule), used) in present.rules.iter().zip(&self.rules).zip(&used) {
            if matches!(rule.effect, Effect::Deny | Effect::Rewrite) {
                rules.push(as_it_is(config.clone()));
                continue;
            }
            if !used.is_empty() {
                let may_group = |start: &str| group && rule.has_all_under(start);
                rules.push(narrowed(config.clone(), used, may_group));
            }
            // What it would have refused must not come to a rule below it.
            if rule.require.is_some() || rule.min_age.is_some() {
                let id = unused_id(&format!("{}-rest", rule.id), &mut ids);
                rules.push(as_it_is(deny(id, config)));
            }
        }
        for (registry, used) in &by_default {
            let name = registry.as_str().replace(':', "-");
            let id = unused_id(&format!("pulled-{name}"), &mut ids);
            rules.push(narrowed(allow(id), used, |_| group));
        }
        let closed = close_dead_ends(&mut rules);
        Suggestion {
            rules,
            refused,
            closed,
        }
    }

    /// The rules that serve it, each with where it comes from and the version that the rule is
    /// about; None for the default. None at all when a rule refuses it.
    fn ways(&self, pull: &Pulled<'_>) -> Vec<(Option<usize>, Target, String)> {
        let decision = self.evaluate(pull.target, pull.client);
        if decision.effect == Effect::Deny {
            if decision.if_led.is_empty() {
                // No rule, but it was served: the policy was another one, and may be so again.
                let nobody = decision.rule.is_none();
                return nobody
                    .then(|| (None, decision.target, String::new()))
                    .into_iter()
                    .collect();
            }
            let ways = decision.if_led.into_iter();
            return ways
                .flat_map(|way| self.serving(&way, pull.client))
                .collect();
        }
        let mut ways = self.serving(&decision.target, pull.client);
        let decides = |way: &(Option<usize>, Target, String)| {
            way.0.map(|rule| &self.rules[rule].id) == decision.rule.as_ref()
        };
        ways.retain(decides);
        ways
    }

    /// Every rule that serves some version of `target`, down to the one that serves all.
    fn serving(&self, target: &Target, client: &Client) -> Vec<(Option<usize>, Target, String)> {
        let name = target.repository.to_string();
        let mut serving = Vec::new();
        for (number, rule) in self.rules.iter().enumerate() {
            if !rule.is_about(client) {
                continue;
            }
            let (images, except) = (rule.images.iter(), rule.except.iter());
            let (by, is_last) = match judge(images, except, &name, target.reference.as_ref()) {
                Verdict::Unsure(by) => (by, false),
                Verdict::Yes { by, unless } => (by, unless.is_none()),
                Verdict::No | Verdict::Others | Verdict::Excepted(_) => continue,
            };
            if matches!(rule.effect, Effect::Allow | Effect::Audit) {
                serving.push((Some(number), target.clone(), version(by)));
            }
            if is_last {
                return serving;
            }
        }
        if self.default.serves() {
            serving.push((None, target.clone(), String::new()));
        }
        serving
    }
}

impl Rule {
    /// Whether its images are all that starts so.
    fn has_all_under(&self, start: &str) -> bool {
        let names = Names::Under(start.to_owned());
        let mut images = self.images.iter();
        images.any(|image| matches!(image.covers(&names), Cover::All(_)))
    }
}

/// `:1.*` or `@sha256:...`; empty for every version.
fn version(pattern: &Pattern) -> String {
    let text = pattern.to_string();
    if !pattern.has_version() {
        return String::new();
    }
    let at = text.find('@').or_else(|| text.rfind(':'));
    at.map_or_else(String::new, |at| text[at..].to_owned())
}

fn narrowed(rule: RuleConfig, used: &Used, may_group: impl Fn(&str) -> bool) -> Proposal {
    let all_versions = used.keys().filter(|(_, version)| version.is_empty());
    let names: BTreeSet<&str> = all_versions.map(|(name, _)| name.as_str()).collect();
    let mut below: BTreeMap<&str, usize> = BTreeMap::new();
    for name in &names {
        // Never all of a registry.
        let above = name.rfind('/').map(|slash| &name[..=slash]);
        if let Some(above) = above.filter(|above| above.matches('/').count() > 1) {
            *below.entry(above).or_default() += 1;
        }
    }
    let many = |above: &&str| below[above] >= MANY && may_group(above);
    let groups: Vec<&str> = below.keys().copied().filter(many).collect();
    let mut images: BTreeMap<String, Proposed> = BTreeMap::new();
    for ((name, version), pulls) in used {
        let group = groups.iter().find(|start| name.starts_with(**start));
        let pattern = match group.filter(|_| version.is_empty()) {
            Some(start) => format!("{start}**"),
            None => format!("{name}{version}"),
        };
        let proposed = images.entry(pattern.clone()).or_insert_with(|| Proposed {
            pattern,
            repositories: BTreeSet::new(),
            pulls: BTreeSet::new(),
        });
        proposed.repositories.insert(name.clone());
        proposed.pulls.extend(pulls);
    }
    Proposal {
        rule: RuleConfig {
            images: images.keys().cloned().collect(),
            ..rule
        },
        images: images.into_values().collect(),
    }
}

fn as_it_is(rule: RuleConfig) -> Proposal {
    Proposal {
        rule,
        images: Vec::new(),
    }
}

/// Refuses all that `rule` is about.
fn deny(id: String, rule: &RuleConfig) -> RuleConfig {
    RuleConfig {
        id,
        effect: Effect::Deny,
        require: None,
        min_age: None,
        ..rule.clone()
    }
}

fn allow(id: String) -> RuleConfig {
    RuleConfig {
        id,
        images: Vec::new(),
        except: Vec::new(),
        effect: Effect::Allow,
        reason: None,
        instead: None,
        contact: None,
        clients: None,
        require: None,
        min_age: None,
    }
}

/// `wanted`, or something like it that no rule is called; none is from now on.
fn unused_id(wanted: &str, ids: &mut HashSet<String>) -> String {
    let id = |number: usize| {
        let end = match number {
            1 => String::new(),
            number => format!("-{number}"),
        };
        let start: String = wanted.chars().take(LONGEST_ID - end.len()).collect();
        start + &end
    };
    // Some number is free: there are more of them than rules.
    let id = (1..=ids.len() + 1).map(id).find(|id| !ids.contains(id));
    let id = id.unwrap_or_default();
    ids.insert(id.clone());
    id
}

/// What a rewrite leads to may have been allowed by a rule that nobody used: then it refuses, as it
/// would, and can be loaded. Names them.
fn close_dead_ends(rules: &mut [Proposal]) -> Vec<String> {
    let mut closed = Vec::new();
    loop {
        let config = Config {
            default: Effect::Deny,
            rules: rules.iter().map(|it| it.rule.clone()).collect(),
        };
        let problems = Engine::compile(&config).err().unwrap_or_default();
        let before = closed.len();
        for problem in problems {
            let number = problem.key.split('.').nth(2);
            let number = number.and_then(|number| number.parse::<usize>().ok());
            let rule = number.and_then(|number| rules.get_mut(number));
            if let Some(rule) = rule.map(|it| &mut it.rule)
                && rule.effect == Effect::Rewrite
            {
                rule.effect = Effect::Deny;
                rule.instead = None;
                closed.push(rule.id.clone());
            }
        }
        if closed.len() == before {
            return closed;
        }
    }
}

#[cfg(test)]
mod tests;
