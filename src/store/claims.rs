//! Claims: one replica fills a digest for all of them.
//!
//! A claim is the object `v1/claims/<hex>`, made only where there is none. Its holder renews it
//! every two seconds, and each renewal gives it another version. Nobody compares clocks: a claim is
//! dead when its version has not changed for six seconds by the observer's own monotonic clock, and
//! whoever sees that takes it over by compare-and-swap. A holder that was stopped and wakes up finds
//! its claim changed at the next renewal, and has lost it.
//!
//! Claims save bytes, nothing depends on them: two holders for a moment cost a second download.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use super::files::lock;
use super::object::{Name, Shared, SharedError, Tree, Version};
use crate::oci::Digest;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{ClaimEvent, ClaimLabels};

/// How often a holder says that it lives.
const RENEW: Duration = Duration::from_secs(2);
/// How often those who wait look whether it does.
pub const LOOK: Duration = Duration::from_secs(1);
/// How long a version stays the same before its holder counts as dead.
const DEAD: Duration = Duration::from_secs(6);
/// A claim that was renewed this recently cannot be another's.
const SURE: Duration = Duration::from_secs(4);
/// Two lost races mean that others get on.
const TRIES: usize = 3;
/// How often claims are looked for that nobody asks about any more.
const SWEEP: Duration = Duration::from_secs(30);
/// How far apart two looks are between which a living claim changes.
const UNCHANGED: Duration = Duration::from_secs(10);
/// Claims that are watched, here or by the sweeper; what is forgotten costs a few seconds.
const MOST_SEEN: usize = 16 * 1024;

/// The claims of one replica, and what it has seen of others'.
#[derive(Debug)]
pub struct Claims {
    shared: Arc<Shared>,
    replica: String,
    address: Option<Url>,
    metrics: Arc<Metrics>,
    tracker: TaskTracker,
    held: Mutex<HashMap<Digest, Weak<Held>>>,
    seen: Mutex<HashMap<Digest, Seen>>,
}

/// The right to fill a digest for all replicas; given back when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Claim(Arc<Held>);

/// What the object says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Random, another one for each start.
    pub replica: String,
    /// Where it can be reached, if it can.
    pub address: Option<Url>,
    /// Changes with each renewal, so that the version does on every cloud.
    pub counter: u64,
}

/// Who has a claim.
#[derive(Clone, Debug)]
pub enum Standing {
    Mine(Claim),
    Theirs(Holder),
}

#[derive(Debug)]
struct Held {
    /// Somebody else has it.
    lost: CancellationToken,
    /// Nobody needs it any more.
    released: CancellationToken,
}

/// A version, and since when it has been the same.
#[derive(Debug)]
struct Seen {
    version: Version,
    since: Instant,
}

/// A look at the object.
struct Look {
    holder: Holder,
    version: Version,
    dead: bool,
}

// === impl Claims ===

impl Claims {
    /// `address` is where other replicas reach this one; `tracker` runs the renewals.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        address: Option<Url>,
        metrics: Arc<Metrics>,
        tracker: TaskTracker,
    ) -> Arc<Self> {
        let mut random = [0; 16];
        // It fails only where nothing could be encrypted either; an id of the time will do then.
        if aws_lc_rs::rand::fill(&mut random).is_err() {
            random[..8].copy_from_slice(&super::files::unix_now().to_be_bytes());
        }
        Arc::new(Claims {
            shared,
            replica: Digest::sha256(&random).hex()[..32].to_owned(),
            address,
            metrics,
            tracker,
            held: Mutex::default(),
            seen: Mutex::default(),
        })
    }

    /// Takes the claim if nobody has it or its holder is dead, else says who has it.
    ///
    /// # Errors
    ///
    /// When the shared store does not answer.
    pub async fn take(self: &Arc<Self>, digest: &Digest) -> Result<Standing, SharedError> {
        if let Some(claim) = self.mine(digest) {
            return Ok(Standing::Mine(claim));
        }
        for _ in 0..TRIES {
            if let Some(version) = self
                .shared
                .create(Name::Claim(digest), self.body(0))
                .await?
            {
                return Ok(Standing::Mine(self.hold(digest, version, ClaimEvent::Made)));
            }
            let Some(look) = self.look_at(digest).await? else {
                // It was given back between the two.
                continue;
            };
            if look.holder.replica == self.replica {
                // Our own write, whose answer got lost, or one that is being given back.
                return Ok(Standing::Mine(self.hold(
                    digest,
                    look.version,
                    ClaimEvent::Made,
                )));
            }
            if !look.dead {
                return Ok(Standing::Theirs(look.holder));
            }
            let body = self.body(0);
            let taken = self
                .shared
                .replace(Name::Claim(digest), &look.version, body);
            if let Some(version) = taken.await? {
                let dead = look.holder.replica;
                tracing::info!(%digest, dead, "took over the claim of a replica that went silent");
                return Ok(Standing::Mine(self.hold(
                    digest,
                    version,
                    ClaimEvent::TakenOver,
                )));
            }
        }
        let what = format!("claim {digest}");
        Err(SharedError::Contended { what })
    }

    /// Who has it; None: nobody. The second is true when its holder is dead.
    pub async fn look(&self, digest: &Digest) -> Result<Option<(Holder, bool)>, SharedError> {
        let look = self.look_at(digest).await?;
        Ok(look.map(|look| (look.holder, look.dead)))
    }

    fn mine(&self, digest: &Digest) -> Option<Claim> {
        let held = lock(&self.held).get(digest)?.upgrade()?;
        (!held.lost.is_cancelled()).then_some(Claim(held))
    }

    async fn look_at(&self, digest: &Digest) -> Result<Option<Look>, SharedError> {
        let document = self.shared.get(Name::Claim(digest)).await?;
        let mut seen = lock(&self.seen);
        let Some(document) = document else {
            seen.remove(digest);
            return Ok(None);
        };
        let dead = unchanged_for(&mut seen, digest, &document.version) >= DEAD;
        drop(seen);
        // What cannot be read says nothing about its holder; it dies like any other.
        let holder = serde_json::from_slice(&document.bytes).unwrap_or(Holder {
            replica: String::new(),
            address: None,
            counter: 0,
        });
        Ok(Some(Look {
            holder,
            version: document.version,
            dead,
        }))
    }

    fn body(&self, counter: u64) -> Bytes {
        let holder = Holder {
            replica: self.replica.clone(),
            address: self.address.clone(),
            counter,
        };
        // A struct of texts and a number has no way to fail.
        serde_json::to_vec(&holder).unwrap_or_default().into()
    }

    fn hold(self: &Arc<Self>, digest: &Digest, version: Version, event: ClaimEvent) -> Claim {
        let held = Arc::new(Held {
            lost: CancellationToken::new(),
            released: CancellationToken::new(),
        });
        self.count(event);
        lock(&self.seen).remove(digest);
        lock(&self.held).insert(*digest, Arc::downgrade(&held));
        let (lost, released) = (held.lost.clone(), held.released.clone());
        let (claims, digest) = (Arc::clone(self), *digest);
        self.tracker.spawn(async move {
            claims.keep(&digest, version, &lost, &released).await;
            let mut held = lock(&claims.held);
            // Another one may have begun since.
            if held
                .get(&digest)
                .is_some_and(|held| held.strong_count() == 0)
            {
                held.remove(&digest);
            }
        });
        Claim(held)
    }

    /// Renews a claim until it is given back or lost.
    async fn keep(
        &self,
        digest: &Digest,
        mut version: Version,
        lost: &CancellationToken,
        released: &CancellationToken,
    ) {
        let mut renewed = Instant::now();
        let mut counter = 0;
        while released.run_until_cancelled(sleep(RENEW)).await.is_some() {
            counter += 1;
            match self.renew(digest, &version, counter).await {
                Ok(Some(new)) => {
                    version = new;
                    renewed = Instant::now();
                }
                Ok(None) => {
                    tracing::info!(%digest, "another replica has taken our claim");
                    self.count(ClaimEvent::Lost);
                    lost.cancel();
                    return;
                }
                // Others may not see it as dead either.
                Err(error) => tracing::debug!(%digest, %error, "cannot renew a claim"),
            }
        }
        if let Err(error) = self.give_back(digest, renewed).await {
            // The sweepers of all replicas look for it.
            tracing::debug!(%digest, %error, "cannot give a claim back");
        }
    }

    /// The claim's new version; None: it is another's.
    async fn renew(
        &self,
        digest: &Digest,
        version: &Version,
        counter: u64,
    ) -> Result<Option<Version>, SharedError> {
        let name = Name::Claim(digest);
        if let Some(version) = self
            .shared
            .replace(name, version, self.body(counter))
            .await?
        {
            return Ok(Some(version));
        }
        match self.shared.get(name).await? {
            // Swept away while we could not renew it.
            None => self.shared.create(name, self.body(counter)).await,
            Some(document) => {
                let holder = serde_json::from_slice(&document.bytes);
                let ours = holder.is_ok_and(|holder: Holder| holder.replica == self.replica);
                // The answer to an earlier renewal got lost.
                Ok(ours.then_some(document.version))
            }
        }
    }

    async fn give_back(&self, digest: &Digest, renewed: Instant) -> Result<(), SharedError> {
        let name = Name::Claim(digest);
        let ours = renewed.elapsed() < SURE
            || match self.shared.get(name).await? {
                None => false,
                Some(document) => serde_json::from_slice(&document.bytes)
                    .is_ok_and(|holder: Holder| holder.replica == self.replica),
            };
        if ours && self.mine(digest).is_none() {
            self.shared.delete(name).await?;
        }
        Ok(())
    }

    fn count(&self, event: ClaimEvent) {
        self.metrics
            .claims
            .get_or_create(&ClaimLabels { event })
            .inc();
    }

    /// Takes away the claims of replicas that were killed, which nobody may ask about again. Runs
    /// until `token` is cancelled.
    pub async fn run(&self, token: CancellationToken) {
        let mut clock = tokio::time::interval(SWEEP);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = HashMap::new();
        while token.run_until_cancelled(clock.tick()).await.is_some() {
            if !self.shared.is_up() {
                continue;
            }
            match token.run_until_cancelled(self.sweep(&mut seen)).await {
                None => return,
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::debug!(%error, "cannot look for dead claims"),
            }
        }
    }

    async fn sweep(&self, seen: &mut HashMap<Digest, Seen>) -> Result<(), SharedError> {
        let mut listed = self.shared.list(Tree::Claims);
        let mut there = HashMap::new();
        while let Some(found) = listed.next().await {
            let found = found?;
            let Some(digest) = found.digest() else {
                continue;
            };
            if unchanged_for(seen, &digest, &found.version) >= UNCHANGED {
                tracing::info!(%digest, "taking away the claim of a replica that went silent");
                self.shared.delete_listed(&found).await?;
            } else if let Some(seen) = seen.remove(&digest) {
                there.insert(digest, seen);
            }
        }
        *seen = there;
        Ok(())
    }
}

/// How long the version of a claim has been the same, by our clock.
fn unchanged_for(seen: &mut HashMap<Digest, Seen>, digest: &Digest, version: &Version) -> Duration {
    if let Some(seen) = seen.get(digest)
        && seen.version == *version
    {
        return seen.since.elapsed();
    }
    if seen.len() >= MOST_SEEN {
        seen.retain(|_, seen| seen.since.elapsed() < DEAD);
    }
    if seen.len() < MOST_SEEN {
        let (version, since) = (version.clone(), Instant::now());
        seen.insert(*digest, Seen { version, since });
    }
    Duration::ZERO
}

// === impl Claim ===

impl Claim {
    /// Resolves when another replica has taken it over.
    pub async fn lost(&self) {
        self.0.lost.cancelled().await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.released.cancel();
    }
}

#[cfg(test)]
mod tests;
