//! An allow list from recorded pulls, as TOML that can be loaded as it is.
//!
//! [`crate::policy::suggest`] says which rules are left and with which images; here they are written
//! down, each image with who pulled it, so that somebody can judge it.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cache::pulls::{Asker, Pull, Recorded};
use crate::policy::suggest::{Proposal, Proposed, Pulled, Suggestion};
use crate::policy::{Client, Config, Engine, RuleConfig};
use crate::units;

/// Repositories that a comment names.
const MOST_NAMED: usize = 10;

/// What is proposed, and from what.
#[derive(Debug)]
pub struct Suggested<'a> {
    suggestion: Suggestion,
    /// Those that were served, as the suggestion counts them.
    pulls: Vec<(&'a Pull, &'a Asker)>,
    /// For whoever reads it.
    pub notes: Vec<String>,
}

// === impl Suggested ===

impl<'a> Suggested<'a> {
    /// `present` is what `policy` was compiled from. `group`: paths with many repositories become one
    /// pattern.
    #[must_use]
    pub fn new(recorded: &'a Recorded, present: &Config, policy: &Engine, group: bool) -> Self {
        let askers = recorded.pulls.iter().flat_map(|pull| {
            let served = pull.clients.iter().filter(|asker| asker.was_served());
            served.map(move |asker| (pull, asker))
        });
        let pulls: Vec<_> = askers.collect();
        let clients: Vec<Client> = pulls.iter().map(|(_, asker)| asker.client()).collect();
        let asked: Vec<_> = pulls
            .iter()
            .zip(&clients)
            .map(|((pull, _), client)| Pulled {
                target: &pull.image,
                client,
            })
            .collect();
        let suggestion = policy.suggest(present, &asked, group);
        let mut notes = Vec::new();
        let refused: BTreeSet<_> = suggestion
            .refused
            .iter()
            .map(|at| &pulls[*at].0.image)
            .map(ToString::to_string)
            .collect();
        for image in refused {
            notes.push(format!(
                "{image} was served, but a rule of today refuses it, and goes on to"
            ));
        }
        for rule in &suggestion.closed {
            notes.push(format!(
                "rule {rule} refuses what it rewrote: nothing of that was pulled"
            ));
        }
        if recorded.forgotten > 0 {
            notes.push(format!(
                "{} targets are no longer on record",
                recorded.forgotten
            ));
        }
        Suggested {
            suggestion,
            pulls,
            notes,
        }
    }

    /// A `[policy]` section.
    #[must_use]
    pub fn toml(&self) -> String {
        let mut text = self.head();
        text.push_str("[policy]\ndefault = \"deny\"\n");
        for proposal in &self.suggestion.rules {
            self.rule(&mut text, proposal);
        }
        text
    }

    /// `policy` is the section; `images` says why each image is there.
    #[must_use]
    pub fn json(&self) -> Value {
        // We have written it: it can be read.
        let section: Value = toml::from_str(&self.toml()).unwrap_or_default();
        let rules = self.suggestion.rules.iter();
        let images =
            rules.flat_map(|proposal| proposal.images.iter().map(move |image| (proposal, image)));
        let images = images.map(|(proposal, image)| {
            let Use {
                pulls,
                clients,
                last,
            } = self.uses(image);
            json!({
                "rule": proposal.rule.id,
                "pattern": image.pattern,
                "wider": is_wider(image),
                "repositories": image.repositories,
                "pulls": pulls,
                "clients": clients,
                "last": last,
            })
        });
        json!({ "policy": section["policy"], "images": images.collect::<Vec<_>>(), "notes": self.notes })
    }

    fn head(&self) -> String {
        let images: HashSet<_> = self
            .pulls
            .iter()
            .map(|(pull, _)| pull.image.to_string())
            .collect();
        let count: u64 = self.pulls.iter().map(|(_, asker)| asker.count).sum();
        let first = self.pulls.iter().map(|(_, asker)| asker.first).min();
        let last = self.pulls.iter().map(|(_, asker)| asker.last).max();
        let mut head = format!("# Proposed from {count} pulls of {} images", images.len());
        if let Some((first, last)) = first.zip(last) {
            // Writing to a String cannot fail.
            let _ = write!(head, " from {} to {}", day(first), day(last));
        }
        head.push_str(
            ".\n# A repository stands for all its tags and digests. What is not here is refused.\n",
        );
        for note in &self.notes {
            let _ = writeln!(head, "# {note}.");
        }
        head.push('\n');
        head
    }

    fn rule(&self, text: &mut String, proposal: &Proposal) {
        let RuleConfig {
            id,
            images,
            except,
            effect,
            reason,
            instead,
            contact,
            clients,
            require,
            min_age,
        } = &proposal.rule;
        text.push_str("\n[[policy.rules]]\n");
        let mut line = |name: &str, value: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name} = {value}");
        };
        line("id", quoted(id));
        if proposal.images.is_empty() {
            line("images", list(images));
        } else {
            let images = proposal.images.iter();
            let lines = images
                .map(|image| format!("    {},  # {}\n", quoted(&image.pattern), self.why(image)));
            line("images", format!("[\n{}]", lines.collect::<String>()));
        }
        if !except.is_empty() {
            line("except", list(except));
        }
        line("effect", quoted(effect.as_str()));
        for (name, value) in [
            ("reason", reason),
            ("instead", instead),
            ("contact", contact),
        ] {
            if let Some(value) = value {
                line(name, quoted(value));
            }
        }
        if let Some(clients) = clients {
            line("clients", list(clients));
        }
        if require.is_some() {
            line("require", quoted("digest"));
        }
        if let Some(age) = min_age {
            line("min_age", quoted(&units::show(*age)));
        }
    }

    /// `12 pulls by 3 clients, last 2026-11-22`
    fn why(&self, image: &Proposed) -> String {
        let Use {
            pulls,
            clients,
            last,
        } = self.uses(image);
        let count = |number: u64, what: &str| match number {
            1 => format!("1 {what}"),
            number => format!("{number} {what}s"),
        };
        let mut why = format!(
            "{} by {}, last {}",
            count(pulls, "pull"),
            count(clients as u64, "client"),
            day(last)
        );
        if is_wider(image) {
            let start = image.pattern.trim_end_matches("**");
            let names = image
                .repositories
                .iter()
                .map(|name| name.strip_prefix(start).unwrap_or(name));
            let named: Vec<_> = names.take(MOST_NAMED).collect();
            let more = if image.repositories.len() > MOST_NAMED {
                ", ..."
            } else {
                ""
            };
            let _ = write!(
                why,
                "; wider than what was pulled: {}{more}",
                named.join(", ")
            );
        }
        why
    }

    fn uses(&self, image: &Proposed) -> Use {
        let pulls = image.pulls.iter().map(|at| &self.pulls[*at].1);
        let clients: HashSet<_> = pulls
            .clone()
            .map(|asker| {
                (
                    asker.address,
                    asker.subject.as_ref().map(ToString::to_string),
                )
            })
            .collect();
        Use {
            pulls: pulls.clone().map(|asker| asker.count).sum(),
            clients: clients.len(),
            last: pulls.map(|asker| asker.last).max().unwrap_or(0),
        }
    }
}

/// How much one pattern was used.
struct Use {
    pulls: u64,
    clients: usize,
    /// Unix seconds.
    last: i64,
}

fn is_wider(image: &Proposed) -> bool {
    image.pattern.ends_with("/**")
}

fn day(seconds: i64) -> String {
    let time = Timestamp::from_second(seconds).unwrap_or_default();
    time.strftime("%Y-%m-%d").to_string()
}

fn list(texts: &[String]) -> String {
    let quoted: Vec<_> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", quoted.join(", "))
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

#[cfg(test)]
mod tests;
