//! Why somebody was refused, or is warned, in one line.
//!
//! The line is put into the HTTP/1.1 reason phrase as well as into the body, because that phrase
//! is all that containerd 1.6 to 2.2 show. It therefore stands alone: what was asked for, why not,
//! what to use instead, whom to ask; in this order, since the end is what goes first when it is
//! too long. Clients put their own `denied: ` in front.

use serde::Serialize;

use super::rewrite::MOST_REWRITES;
use super::rule::Rule;

/// What becomes of an image, as a line about it says.
pub const REFUSED: &str = "is not allowed";
pub const AUDITED: &str = "is served, but audited";
pub(super) const HELD_BACK: &str = "is not served yet";

/// Why, where no rule decides.
pub(super) const NOTHING_ALLOWS: &str = "no rule allows it";
pub(super) const NOTHING_LED: &str = "only some versions are, and none of them led to this digest";

/// The longest line, in characters; more than this no client shows well.
pub(super) const LONGEST_MESSAGE: usize = 200;

/// What a long name is cut to.
const LONGEST_NAME: usize = 60;

/// Why somebody was refused, as the person at `kubectl describe pod` reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// One line of at most 200 characters, none of them a control character.
    pub message: String,
    /// The rule that decided; `None` for the default.
    pub rule: Option<String>,
    pub reason: Option<String>,
    /// An image to use instead.
    pub instead: Option<String>,
    pub contact: Option<String>,
    /// When a tag that is not served yet will be, in RFC 3339.
    pub served_from: Option<String>,
}

impl Refusal {
    /// One of which there is nothing more to say than a line.
    #[must_use]
    pub fn new(message: String) -> Self {
        Refusal {
            message,
            rule: None,
            reason: None,
            instead: None,
            contact: None,
            served_from: None,
        }
    }
}

/// The whole of a refusal in one line. `state` is what becomes of `subject`.
pub(super) fn message(
    subject: &str,
    state: &str,
    why: &str,
    instead: Option<&str>,
    contact: Option<&str>,
) -> String {
    let line = |subject: &str, why: &str, instead: Option<&str>, contact: Option<&str>| {
        let use_instead = instead
            .map(|image| format!("; use {image} instead"))
            .unwrap_or_default();
        let contact = contact
            .map(|contact| format!("; contact {contact}"))
            .unwrap_or_default();
        format!("{subject} {state}: {why}{use_instead}{contact}")
    };
    let full = line(subject, why, instead, contact);
    if length(&full) <= LONGEST_MESSAGE {
        return full;
    }
    let (subject, instead) = (shorten(subject), instead.map(shorten));
    for contact in [contact, None] {
        let line = line(subject, why, instead, contact);
        if length(&line) <= LONGEST_MESSAGE {
            return line;
        }
    }
    let subject = clip(subject, LONGEST_NAME);
    let instead = instead.map(|image| clip(image, LONGEST_NAME));
    let rest = length(&line(&subject, "", instead.as_deref(), None));
    let why = clip(why, LONGEST_MESSAGE.saturating_sub(rest));
    line(&subject, &why, instead.as_deref(), None)
}

/// Cuts a digest to as many digits as people compare: `quay.io/a@sha256:0123456789ab`.
fn shorten(image: &str) -> &str {
    let end = image
        .find('@')
        .map_or(image.len(), |at| at + "@sha256:0123456789ab".len());
    image.get(..end).unwrap_or(image)
}

fn length(text: &str) -> usize {
    text.chars().count()
}

fn clip(text: &str, most: usize) -> String {
    if length(text) <= most {
        return text.to_owned();
    }
    text.chars()
        .take(most.saturating_sub(3))
        .chain("...".chars())
        .collect()
}

/// Why a rewrite by `rule` leads nowhere.
pub(super) fn too_often(rule: &str) -> String {
    format!("rule {rule} rewrites it once more, after {MOST_REWRITES} others")
}

pub(super) fn too_long(rule: &str) -> String {
    format!("what rule {rule} rewrites it to is too long a name")
}

// === impl Rule ===

/// Why, in its own words where it has some.
impl Rule {
    pub(super) fn refuses(&self) -> String {
        self.reason_or("refuses it")
    }

    pub(super) fn audits(&self) -> String {
        self.reason_or("is about it")
    }

    pub(super) fn wants_digest(&self) -> String {
        self.reason_or("wants a digest")
    }

    fn reason_or(&self, does: &str) -> String {
        let reason = self.reason.clone();
        reason.unwrap_or_else(|| format!("rule {} {does}", self.id))
    }
}
