//! An entry of the record: one target and who asked for it.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use crate::oci::Digest;
use crate::policy::{Client, Subject, Target};

/// Clients of one target.
pub(super) const MOST_CLIENTS: usize = 16;
/// A subject's characters; nobody is known by a longer one.
const LONGEST_SUBJECT: usize = 1024;
/// Requests of one client for one target within so many seconds are one pull: clients ask twice
/// (HEAD, then GET).
pub(super) const ONE_PULL: i64 = 5;
/// How long after a tag its manifests are asked for at most, in seconds.
pub(super) const LATELY: i64 = 15 * 60;

/// One target and who asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    /// As it was asked for, in canonical form.
    pub image: Target,
    /// What a tag answered last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Pulls, those of clients that are no longer on record too.
    pub count: u64,
    /// Unix seconds, as is `last`.
    pub first: i64,
    pub last: i64,
    /// The last of them; at most [`MOST_CLIENTS`].
    pub clients: Vec<Asker>,
}

/// One client of one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asker {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Of its certificate.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "subject"
    )]
    pub subject: Option<Arc<Subject>>,
    pub count: u64,
    /// Unix seconds, as is `last`.
    pub first: i64,
    pub last: i64,
    pub verdict: Verdict,
}

/// What policy made of it, the last time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub was: Was,
    /// The rule that decided; None for the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewritten_to: Option<Arc<Target>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Was {
    Allowed,
    /// Served with a warning.
    Audited,
    Refused,
    /// Allowed, but its registry was neither known nor configured.
    NotServed,
    /// Allowed, but offline it was not here, or not all of it.
    Missing,
}

/// All that is on record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// In the order of their images.
    pub pulls: Vec<Pull>,
    /// Targets that had to go.
    pub forgotten: u64,
}

// === impl Recorded ===

impl Recorded {
    /// What clients got, in the order of their names.
    pub fn served(&self) -> impl Iterator<Item = &Target> {
        let served = |pull: &&Pull| pull.clients.iter().any(Asker::was_served);
        self.pulls.iter().filter(served).map(|pull| &pull.image)
    }
}

// === impl Pull ===

impl Pull {
    /// Pulls by clients that are no longer on record.
    #[must_use]
    pub fn others(&self) -> u64 {
        let known = self.clients.iter().map(|asker| asker.count).sum();
        self.count.saturating_sub(known)
    }

    /// Whether that is any news.
    pub(super) fn note(
        &mut self,
        client: &Client,
        verdict: Verdict,
        digest: Option<Digest>,
        now: i64,
    ) -> bool {
        let moved = digest.is_some() && digest != self.digest;
        if moved {
            self.digest = digest;
        }
        let known = self.clients.iter_mut().find(|asker| asker.is(client));
        if let Some(asker) = known {
            if (0..ONE_PULL).contains(&(now - asker.last)) && asker.verdict == verdict {
                return moved;
            }
            asker.count += 1;
            asker.last = now;
            asker.verdict = verdict;
        } else {
            if self.clients.len() >= MOST_CLIENTS {
                let oldest = self.clients.iter().enumerate();
                let oldest = oldest.min_by_key(|(_, asker)| asker.last);
                if let Some((oldest, _)) = oldest {
                    self.clients.swap_remove(oldest);
                }
            }
            self.clients.push(Asker {
                address: client.address,
                subject: client.subject.clone().filter(is_short),
                count: 1,
                first: now,
                last: now,
                verdict,
            });
        }
        self.count += 1;
        self.last = now;
        true
    }

    pub(super) fn was_asked_lately_by(&self, client: &Client, now: i64) -> bool {
        let lately = |then: i64| (0..=LATELY).contains(&(now - then));
        let mut clients = self.clients.iter();
        clients.any(|asker| asker.is(client) && lately(asker.last) && asker.was_served())
            // It may be one of those whom others pushed out a moment ago.
            || self.clients.len() == MOST_CLIENTS && self.others() > 0 && lately(self.last)
    }
}

/// Asked of a subject that a certificate has, once for each of its targets.
fn is_short(subject: &Arc<Subject>) -> bool {
    subject.to_string().len() <= LONGEST_SUBJECT
}

// === impl Asker ===

impl Asker {
    /// As rules see it.
    #[must_use]
    pub fn client(&self) -> Client {
        Client {
            address: self.address,
            subject: self.subject.clone(),
            ..Client::default()
        }
    }

    /// Whether it got the image, the last time.
    #[must_use]
    pub fn was_served(&self) -> bool {
        matches!(self.verdict.was, Was::Allowed | Was::Audited)
    }

    fn is(&self, client: &Client) -> bool {
        self.address == client.address
            && match (&self.subject, &client.subject) {
                (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one == other,
                (None, None) => true,
                (None, Some(long)) => !is_short(long),
                (Some(_), None) => false,
            }
    }
}

/// One that cannot be read back, such as that of a certificate without any name, is left out.
fn subject<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Arc<Subject>>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.and_then(|text| text.parse().ok()).map(Arc::new))
}

// === impl Verdict ===

impl Verdict {
    pub(in crate::cache) fn new(was: Was, rule: Option<Arc<str>>) -> Self {
        Verdict {
            was,
            rule,
            rewritten_to: None,
        }
    }
}
