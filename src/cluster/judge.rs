//! Policy's word on what somebody wrote down.
//!
//! Rules alone decide, as at the pull: an image that they allow and that no upstream serves is not
//! against them, and is marked for whoever wants to know. Nothing here knows the client, how old a
//! tag is or what tags have led to: rules about certain clients say nothing, `min_age` is left to
//! the pull, and a digest in a repository that is allowed by tag only counts as refused.

use serde::Serialize;

use super::mention::Written;
use crate::oci::OwnNames;
use crate::policy::{Client, Decision, Effect, Engine, Target};
use crate::upstream::Served;

/// What a text that is no image is cut to, in characters.
const LONGEST_TEXT: usize = 60;

/// A policy with what it takes to understand images.
#[derive(Clone, Copy, Debug)]
pub struct Judge<'a> {
    pub policy: &'a Engine,
    /// Images with one of our own names in front are those that stand behind it.
    pub names: &'a OwnNames,
    pub served: &'a Served,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Allowed,
    /// Allowed, and somebody should look at it.
    Warning,
    /// Of a recorded pull: refused, as it was then. Nothing breaks.
    Refused,
    Violation,
    /// No image, or nobody can tell which one. What cannot be read cannot be allowed.
    Unreadable,
}

/// What is said about one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judgement {
    /// In canonical form; what cannot be read, as it was written.
    pub image: String,
    pub outcome: Outcome,
    /// Whether a pull would find an upstream. True where that is not the question.
    pub served: bool,
    /// The rule that decided; `None` for the default and for what cannot be read.
    pub rule: Option<String>,
    /// One line for people. `None` when there is nothing to say.
    pub message: Option<String>,
    pub reason: Option<String>,
    pub instead: Option<String>,
    pub contact: Option<String>,
}

// === impl Judge ===

impl Judge<'_> {
    #[must_use]
    pub fn judge(&self, written: &Written) -> Judgement {
        let text = match written {
            Written::Image(text) => text,
            Written::Odd { found, wanted } => {
                let why = format!("{found} stands where {wanted} belongs");
                return Judgement::unreadable(&format!("({found})"), &why);
            }
            Written::Open { text, variable } => {
                let why = format!("the variable {} has no value here", printable(variable));
                return Judgement::unreadable(text, &why);
            }
        };
        match self.names.image(text) {
            Ok(image) => self.target(&Target::from(&image)),
            Err(error) => Judgement::unreadable(text, &format!("it is no image: {error}")),
        }
    }

    fn target(&self, target: &Target) -> Judgement {
        let nobody = Client::default();
        self.judgement(target, &self.policy.evaluate(target, &nobody))
    }

    /// What is said of a pull by `client`. `has_led` knows whether what is allowed led to the target,
    /// for digests that are allowed so.
    pub(super) fn pull(
        &self,
        target: &Target,
        client: &Client,
        has_led: impl Fn(&Target) -> bool,
    ) -> Judgement {
        let decision = self.policy.evaluate(target, client);
        let mut ways = decision.if_led.iter();
        if decision.effect == Effect::Deny && ways.any(has_led) {
            return Judgement {
                outcome: Outcome::Allowed,
                message: None,
                ..self.judgement(target, &decision)
            };
        }
        self.judgement(target, &decision)
    }

    fn judgement(&self, target: &Target, decision: &Decision) -> Judgement {
        let refusal = decision.refusal.as_deref();
        Judgement {
            image: target.to_string(),
            outcome: outcome(decision),
            served: self.served.contains(&decision.target.repository.registry),
            rule: decision.rule.as_deref().map(str::to_owned),
            message: refusal.map(|refusal| refusal.message.clone()),
            reason: refusal.and_then(|refusal| refusal.reason.clone()),
            instead: refusal.and_then(|refusal| refusal.instead.clone()),
            contact: refusal.and_then(|refusal| refusal.contact.clone()),
        }
    }
}

fn outcome(decision: &Decision) -> Outcome {
    match decision.effect {
        Effect::Allow => Outcome::Allowed,
        Effect::Audit => Outcome::Warning,
        // A rewrite has been followed to its end; one that had none is a denial.
        Effect::Deny | Effect::Rewrite => Outcome::Violation,
    }
}

// === impl Judgement ===

impl Judgement {
    fn unreadable(text: &str, why: &str) -> Self {
        let image = printable(text);
        Judgement {
            message: Some(format!("{image} is not allowed: {why}")),
            image,
            outcome: Outcome::Unreadable,
            served: true,
            rule: None,
            reason: Some(why.to_owned()),
            instead: None,
            contact: None,
        }
    }

    #[must_use]
    pub fn is_violation(&self) -> bool {
        self.outcome >= Outcome::Violation
    }

    /// Allowed by the rules, and yet no pull through us would work.
    #[must_use]
    pub fn is_unserved(&self) -> bool {
        !self.served && !self.is_violation()
    }
}

/// One line of at most 60 characters that no terminal takes for a command.
fn printable(text: &str) -> String {
    let mut clean = text.chars().map(|c| if c.is_control() { '?' } else { c });
    let line: String = clean.by_ref().take(LONGEST_TEXT).collect();
    match clean.next() {
        Some(_) => line + "...",
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = r#"
        rules = [
            { id = "frozen", images = ["k8s.gcr.io/**"], effect = "deny", reason = "it is frozen", instead = "registry.k8s.io/**", contact = "us" },
            { id = "look", images = ["quay.io/old/**"], effect = "audit", reason = "it is old" },
            { id = "moved", images = ["gcr.io/moved/**"], effect = "rewrite", instead = "quay.io/**" },
            { id = "pinned", images = ["quay.io/pinned/**"], effect = "allow", require = "digest" },
            { id = "young", images = ["quay.io/young/**"], effect = "allow", min_age = "3d" },
            { id = "theirs", images = ["quay.io/**"], effect = "deny", clients = ["10.0.0.0/8"] },
            { id = "some", images = ["quay.io/**", "ghcr.io/a:1", "nowhere.example/**"], effect = "allow" },
        ]"#;

    fn judge(written: &Written) -> Judgement {
        let policy = Engine::compile(&toml::from_str(RULES).unwrap()).unwrap();
        let mut names = OwnNames::default();
        names.add_url("images.corp.example", 5000, &"docker.io".parse().unwrap());
        let served = Served::by_name(std::iter::empty());
        let judge = Judge {
            policy: &policy,
            names: &names,
            served: &served,
        };
        judge.judge(written)
    }

    fn image(text: &str) -> Judgement {
        judge(&Written::Image(text.to_owned()))
    }

    #[test]
    fn rules_decide_and_what_is_served_does_not() {
        for (text, canonical, outcome, is_unserved) in [
            ("quay.io/a", "quay.io/a:latest", Outcome::Allowed, false),
            (
                "nginx",
                "docker.io/library/nginx:latest",
                Outcome::Violation,
                false,
            ),
            (
                "nowhere.example/a",
                "nowhere.example/a:latest",
                Outcome::Allowed,
                true,
            ),
            (
                "quay.io/old/a",
                "quay.io/old/a:latest",
                Outcome::Warning,
                false,
            ),
            (
                "gcr.io/moved/a:1",
                "gcr.io/moved/a:1",
                Outcome::Allowed,
                false,
            ),
            (
                "quay.io/pinned/a:1",
                "quay.io/pinned/a:1",
                Outcome::Violation,
                false,
            ),
            (
                "quay.io/young/a:1",
                "quay.io/young/a:1",
                Outcome::Allowed,
                false,
            ),
            // A rule's word goes before whether anybody serves it.
            (
                "other.example/a",
                "other.example/a:latest",
                Outcome::Violation,
                false,
            ),
            (
                "images.corp.example:5000/quay.io/a:1",
                "quay.io/a:1",
                Outcome::Allowed,
                false,
            ),
            (
                "images.corp.example:5000/k8s.gcr.io/a:1",
                "k8s.gcr.io/a:1",
                Outcome::Violation,
                false,
            ),
            ("quay.io/A", "quay.io/A", Outcome::Unreadable, false),
        ] {
            let judgement = image(text);
            assert_eq!(
                (
                    &*judgement.image,
                    judgement.outcome,
                    judgement.is_unserved()
                ),
                (canonical, outcome, is_unserved),
                "{text}"
            );
        }
    }

    #[test]
    fn a_violation_says_what_the_pull_would_hear() {
        let judgement = image("k8s.gcr.io/pause:3.9");
        assert_eq!(
            judgement.message.unwrap(),
            "k8s.gcr.io/pause:3.9 is not allowed: it is frozen; use registry.k8s.io/pause:3.9 instead; contact us"
        );
        assert_eq!(judgement.rule.as_deref(), Some("frozen"));
        assert_eq!(
            judgement.instead.as_deref(),
            Some("registry.k8s.io/pause:3.9")
        );
        assert_eq!(image("quay.io/a").message, None);
    }

    #[test]
    fn what_cannot_be_read_is_said_in_one_short_line() {
        for (written, message) in [
            (
                Written::Odd {
                    found: "a number",
                    wanted: "an image",
                },
                "(a number) is not allowed: a number stands where an image belongs",
            ),
            (
                Written::Open {
                    text: "a:${TAG}".to_owned(),
                    variable: "TAG".to_owned(),
                },
                "a:${TAG} is not allowed: the variable TAG has no value here",
            ),
            (
                Written::Image("a\u{1b}[2J\nb".to_owned()),
                "a?[2J?b is not allowed: it is no image: ",
            ),
        ] {
            let judgement = judge(&written);
            assert!(
                judgement.message.as_deref().unwrap().starts_with(message),
                "{judgement:?}"
            );
            assert!(judgement.is_violation());
        }
        let long = image(&"x/".repeat(1000)).message.unwrap();
        assert!(long.chars().count() < 200, "{long}");
    }
}
