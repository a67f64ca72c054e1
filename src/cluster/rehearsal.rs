//! Recorded pulls against a policy that need not be live yet: what would break, and for whom.
//!
//! Each client of each target is judged as itself, so that rules about certain clients count. What
//! was served and would be refused is a violation; what is refused as it was then breaks nothing.
//! A digest in a repository that is allowed by tag only is allowed when a tag that the policy allows
//! is on record as having answered it. `min_age` is left to the pull.

use std::collections::HashMap;
use std::sync::Arc;

use super::audit::{Audit, Findings};
use super::judge::{Judge, Outcome};
use super::mention::{Place, Pulled};
use crate::cache::pulls::{Pull, Recorded};
use crate::oci::{Digest, Repository};
use crate::policy::{Client, Target};

/// Where the record lies, below a store.
const FILE: &str = "v1/pulls";

/// Tags by what they answered.
type Leaders<'a> = HashMap<(&'a Repository, Digest), Vec<&'a Target>>;

impl Audit {
    /// Judges a record.
    #[must_use]
    pub fn rehearse(recorded: &Recorded, judge: &Judge<'_>) -> Self {
        let mut findings = Findings::default();
        let leaders = leaders(&recorded.pulls);
        let file: Arc<str> = FILE.into();
        let mut others = 0;
        for pull in &recorded.pulls {
            others += pull.others();
            for asker in &pull.clients {
                let client = asker.client();
                let has_led = |way: &Target| has_led(judge, &leaders, way, &client);
                let mut judgement = judge.pull(&pull.image, &client, has_led);
                if judgement.outcome == Outcome::Violation && !asker.was_served() {
                    judgement.outcome = Outcome::Refused;
                }
                let place = Place {
                    file: Some(Arc::clone(&file)),
                    pulled: Some(Pulled::from(asker)),
                    ..Place::default()
                };
                findings.add(&judgement, place);
            }
        }
        let gone = [
            (recorded.forgotten, "targets are no longer on record"),
            (others, "pulls are of clients that are no longer on record"),
        ];
        let notes = gone.into_iter().filter(|(count, _)| *count > 0);
        Audit {
            of_pulls: true,
            findings: findings.into_list(),
            errors: Vec::new(),
            notes: notes
                .map(|(count, what)| format!("{count} {what}"))
                .collect(),
        }
    }
}

/// What was pulled is where the rewrites of that time led.
fn leaders(pulls: &[Pull]) -> Leaders<'_> {
    let mut leaders = Leaders::new();
    for pull in pulls {
        let Some(digest) = pull.digest else { continue };
        let rewritten = pull.clients.iter().map(|asker| &asker.verdict.rewritten_to);
        let places = rewritten.map(|to| to.as_deref().unwrap_or(&pull.image));
        for place in places {
            let tags = leaders.entry((&place.repository, digest)).or_default();
            if !tags.contains(&place) {
                tags.push(place);
            }
        }
    }
    leaders
}

fn has_led(judge: &Judge<'_>, leaders: &Leaders<'_>, way: &Target, client: &Client) -> bool {
    let digest = way.reference.as_ref().and_then(|found| found.digest());
    let tags = digest.and_then(|digest| leaders.get(&(&way.repository, *digest)));
    tags.into_iter().flatten().any(|tag| {
        let decision = judge.policy.evaluate(tag, client);
        decision.effect.serves() && decision.target.repository == way.repository
    })
}

#[cfg(test)]
mod tests;
