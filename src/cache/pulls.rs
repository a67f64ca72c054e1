//! Who asked for which image, and what became of it: a bounded record for rehearsing another
//! policy.
//!
//! A target is an image as a client named it. What one pull goes on to ask for by digest is no
//! target of its own: the manifest that the tag led to, and those of platforms below it. A digest
//! is one where the client had not asked, lately, for a tag or digest that leads there. Blobs,
//! lists and referrers are never targets. Nor is what was neither refused nor found, but for what is
//! missing offline.
//!
//! A busy cache hears the same names over and over. Most requests therefore change nothing here:
//! they look one or two names up under a lock that is held for no longer than that, whoever else
//! has it. Lines are written behind the answers every [`WRITE_EVERY`]; a kill costs what came since.
//!
//! [`record`]: what an entry says. [`log`]: the entries, and their lines in `v1/pulls`.

mod log;
mod record;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::clock::now;
use super::{Cache, CacheError, ManifestAnswer};
use crate::oci::{Digest, Reference, Repository};
use crate::policy::Client;
use crate::store::Store;
use crate::telemetry::Metrics;
use log::Log;
pub use record::{Asker, Pull, Recorded, Verdict, Was};

const WRITE_EVERY: Duration = Duration::from_secs(5);

/// The record of a running cache.
#[derive(Debug)]
pub(super) struct Pulls {
    log: Mutex<Log>,
    metrics: Arc<Metrics>,
}

// === impl Cache ===

impl Cache {
    /// What clients asked for, as far as it is on record.
    #[must_use]
    pub fn pulls(&self) -> Recorded {
        self.pulls.list()
    }

    /// Takes up the record where an earlier process left it. Call it before anything is asked for.
    pub async fn read_pulls(&self) {
        // A file that cannot be read has been told of; the record begins anew.
        let Ok(text) = self.store.read_pulls().await else {
            return;
        };
        let log = tokio::task::spawn_blocking(move || Log::read(&text, now())).await;
        self.pulls.restore(log.unwrap_or_default());
    }

    /// Writes the record down until `stop`, and once more then.
    pub async fn write_pulls(self: Arc<Self>, stop: CancellationToken) {
        let mut running = true;
        while running {
            let wait = stop.run_until_cancelled(tokio::time::sleep(WRITE_EVERY));
            running = wait.await.is_some();
            self.pulls.write(&self.store).await;
        }
    }

    /// Notes a request for a manifest and its answer. `access` is there when policy let it in.
    pub(super) async fn note_pull(
        &self,
        client: &Client,
        asked: (&Repository, &Reference),
        access: Option<&Access>,
        answer: Result<&ManifestAnswer, &CacheError>,
    ) {
        let (repository, reference) = asked;
        let (verdict, digest) = match (answer, access) {
            (Ok(answer), Some(access)) => {
                if let Reference::Digest(digest) = reference
                    && self
                        .belongs_to_a_pull(client, repository, access, digest)
                        .await
                {
                    return;
                }
                let verdict = Verdict {
                    was: if access.audit().is_some() {
                        Was::Audited
                    } else {
                        Was::Allowed
                    },
                    rule: access.rule().cloned(),
                    rewritten_to: access.rewritten_from(asked),
                };
                let tag = reference.tag();
                (verdict, tag.map(|_| *answer.manifest.digest()))
            }
            (Err(CacheError::Denied(refusal)), _) => {
                let rule = refusal.rule.as_deref().map(Arc::from);
                (Verdict::new(Was::Refused, rule), None)
            }
            (Err(CacheError::NotServed(_)), _) => (Verdict::new(Was::NotServed, None), None),
            (Err(error), Some(access)) if error.is_missing() => {
                let verdict = Verdict {
                    rewritten_to: access.rewritten_from(asked),
                    ..Verdict::new(Was::Missing, access.rule().cloned())
                };
                (verdict, None)
            }
            // Nothing was pulled, and policy has no part in that.
            _ => return,
        };
        self.pulls.note(client, asked, verdict, digest, now());
    }

    /// Whether the client has lately asked for something that leads to `digest`.
    async fn belongs_to_a_pull(
        &self,
        client: &Client,
        repository: &Repository,
        access: &Access,
        digest: &Digest,
    ) -> bool {
        let now = now();
        let asked_lately = |leader: &Reference| {
            let log = self.pulls.lock();
            log.asked_lately(client, repository, leader, now)
        };
        let links = &self.store.links;
        links.leads(access.repository(), digest, asked_lately).await
    }
}

// === impl Pulls ===

impl Pulls {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Pulls {
            log: Mutex::default(),
            metrics,
        }
    }

    pub(super) fn note(
        &self,
        client: &Client,
        (repository, reference): (&Repository, &Reference),
        verdict: Verdict,
        digest: Option<Digest>,
        now: i64,
    ) {
        let mut log = self.lock();
        let (targets, forgotten) = (log.targets, log.forgotten);
        log.note(client, repository, reference, verdict, digest, now);
        if log.targets != targets {
            self.metrics.pulls.set(gauge(log.targets));
            let forgotten = log.forgotten - forgotten;
            self.metrics.pulls_forgotten.inc_by(forgotten);
        }
    }

    fn restore(&self, log: Log) {
        self.metrics.pulls.set(gauge(log.targets));
        *self.lock() = log;
    }

    fn list(&self) -> Recorded {
        self.lock().list()
    }

    /// What cannot be written now is written the next time.
    async fn write(&self, store: &Store) {
        let anew = self.lock().starts_anew();
        let mut all = String::new();
        loop {
            // In small parts, because requests wait for that lock.
            let lines = self.lock().take_changed();
            if lines.is_empty() {
                break;
            }
            if anew {
                all.push_str(&lines);
            } else if store.append_pulls(lines).await.is_err() {
                self.lock().anew = true;
                return;
            }
        }
        if anew && store.replace_pulls(all).await.is_err() {
            self.lock().anew = true;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

// === impl Recorded ===

impl Recorded {
    /// Reads `v1/pulls`. Lines that make no sense are passed over.
    #[must_use]
    pub fn read(text: &str) -> Self {
        Log::read(text, now()).list()
    }
}
