//! Brings what waits in [`Uploads`](super::uploads::Uploads) to the shared store, for ever but
//! cheaply: everything that was verified while it was down arrives there when it is back.
//!
//! Publishing is idempotent. Each name is looked up anew, so what arrives is the latest; what
//! several replicas write is joined, never overwritten; a blob that is there with the right size
//! stays as it is.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::disk::UPLOAD;
use super::files::blocking;
use super::object::{Name, SharedError};
use super::records::{self, LedRecord, LinkRecord};
use super::tier::Tier;
use super::uploads::{Item, Keep, Taken};
use super::{Store, StoreError};
use crate::oci::Digest;
use crate::telemetry::metrics::PublishResult;

/// Small things on their way at once.
const SMALL: usize = 32;
/// Blobs on their way at once; each has four parts of 8 MiB in memory.
const BLOBS: usize = 2;
/// A larger blob is not uploaded by those who followed while its claim is held: once is enough.
const WORTH_A_LOOK: u64 = 1024 * 1024;
/// How long a name waits until it is written to the journal: most arrive sooner.
const JOURNAL_DELAY: Duration = Duration::from_millis(500);
/// How often to look whether the shared store is back.
const DOWN: Duration = Duration::from_secs(1);
/// How long a stop waits for what is on its way; the rest waits in the journal.
const LAST_CHANCE: Duration = Duration::from_secs(5);

/// Why something was not published this time.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("another replica has claimed it and will bring it")]
    Claimed,
    #[error(transparent)]
    Shared(#[from] SharedError),
    #[error(transparent)]
    Local(#[from] StoreError),
}

// === impl Store ===

impl Store {
    /// Publishes what waits, and what comes, until `token` is cancelled and a moment longer.
    pub(super) async fn publish(self: &Arc<Self>, token: CancellationToken) {
        let Some(tier) = &self.tier else { return };
        let (small, blobs) = (Semaphore::new(SMALL), Semaphore::new(BLOBS));
        let (small, blobs) = (Arc::new(small), Arc::new(blobs));
        let mut running = JoinSet::new();
        let mut journal_due: Option<Instant> = None;
        let mut stop_at: Option<Instant> = None;
        loop {
            let up = tier.shared.is_up();
            if up {
                self.start(tier, &small, &blobs, &mut running);
            }
            let done = tier.uploads.is_empty() || !up;
            if stop_at.is_some_and(|at| done || at <= Instant::now()) {
                break;
            }
            if journal_due.is_none() && tier.uploads.journal_is_behind() {
                journal_due = Some(Instant::now() + JOURNAL_DELAY);
            }
            let retry = if up {
                tier.uploads.next_due()
            } else {
                Some(Instant::now() + DOWN)
            };
            let wake = [retry, journal_due, stop_at].into_iter().flatten().min();
            tokio::select! {
                () = tier.uploads.changed() => {}
                Some(_) = running.join_next() => {}
                () = sleep_until(wake) => {}
                () = token.cancelled(), if stop_at.is_none() => {
                    stop_at = Some(Instant::now() + LAST_CHANCE);
                }
            }
            if journal_due.is_some_and(|due| due <= Instant::now()) {
                journal_due = None;
                self.write_journal().await;
            }
        }
    }

    /// Starts what is due, as far as there are permits.
    fn start(
        self: &Arc<Self>,
        tier: &Arc<Tier>,
        small: &Arc<Semaphore>,
        blobs: &Arc<Semaphore>,
        running: &mut JoinSet<()>,
    ) {
        let free = |permits: &Arc<Semaphore>| permits.available_permits() > 0;
        while let Some(taken) = tier.uploads.take(free(small), free(blobs)) {
            let permits = match taken.item() {
                Item::Blob(_) => blobs,
                _ => small,
            };
            // Only this task takes any, so there is one.
            let Ok(permit) = Arc::clone(permits).try_acquire_owned() else {
                return;
            };
            let (store, tier) = (Arc::clone(self), Arc::clone(tier));
            running.spawn(async move { store.publish_one(&tier, taken, permit).await });
        }
    }

    async fn publish_one(&self, tier: &Tier, taken: Taken, permit: OwnedSemaphorePermit) {
        let result = self.bring(tier, &taken).await;
        drop(permit);
        match result {
            Ok(result) => taken.done(result),
            // Nobody was asked: it waits as before.
            Err(PublishError::Shared(SharedError::Down)) => drop(taken),
            // Should it die, its claim goes, and then it is our turn.
            Err(PublishError::Claimed) => taken.later(),
            Err(error) => {
                if let PublishError::Shared(error) = &error {
                    tier.note(error);
                }
                taken.failed();
            }
        }
    }

    /// Brings what a name stands for at this moment.
    async fn bring(&self, tier: &Tier, taken: &Taken) -> Result<PublishResult, PublishError> {
        let shared = &tier.shared;
        match taken.item() {
            Item::Blob(digest) => self.bring_blob(tier, digest, taken).await,
            Item::Link(repository, digest) => {
                let Some(link) = self.links.link(repository, digest).await else {
                    return Ok(PublishResult::Gone);
                };
                let (name, ours) = (Name::Link(repository, digest), LinkRecord::from(link));
                Ok(records::publish(shared, name, &ours, true).await?.1)
            }
            Item::Led(repository, child) => {
                let parents = self.links.parents(repository, child).await;
                if parents.is_empty() {
                    return Ok(PublishResult::Gone);
                }
                let (name, ours) = (Name::Led(repository, child), LedRecord { parents });
                Ok(records::publish(shared, name, &ours, true).await?.1)
            }
            Item::Tag(repository, tag) => {
                let Some(ours) = self.tags.get(repository, tag).await else {
                    return Ok(PublishResult::Gone);
                };
                let (name, new) = (Name::Tag(repository, tag), ours.is_new());
                let (there, result) = records::publish(shared, name, &*ours, new).await?;
                self.tags.adopt(repository, tag, &there).await;
                Ok(result)
            }
        }
    }

    async fn bring_blob(
        &self,
        tier: &Tier,
        digest: &Digest,
        taken: &Taken,
    ) -> Result<PublishResult, PublishError> {
        // What an unclean end left is hashed before it goes there.
        let Some(blob) = self.disk.open_blob(digest).await? else {
            return Ok(PublishResult::Gone);
        };
        let (shared, size) = (&tier.shared, blob.len());
        // It came from there, or went there with the answer.
        if tier.has_seen(digest) == Some(size) {
            return Ok(PublishResult::Present);
        }
        let result = match shared.stat(digest).await? {
            Some(there) if there == size => PublishResult::Present,
            there => {
                if there.is_some() {
                    tracing::warn!(%digest, "a wrong object in the shared store is set aside");
                    shared.quarantine(digest).await?;
                }
                let mine = size < WORTH_A_LOOK || taken.is_claimed();
                if !mine && shared.get(Name::Claim(digest)).await?.is_some() {
                    return Err(PublishError::Claimed);
                }
                shared.put_blob(digest, blob.file(), size).await?;
                PublishResult::Done
            }
        };
        tier.saw(digest, size);
        Ok(result)
    }

    /// Writes what waits where the next start finds it.
    pub(super) async fn write_journal(&self) {
        if let Some(tier) = &self.tier {
            let uploads = Arc::clone(&tier.uploads);
            let write = move || {
                uploads.write_journal();
                Ok(())
            };
            // Failures are noted where they happen.
            let _ = blocking(write).await;
        }
    }

    /// Keeps a blob until it is published.
    pub(super) fn hold(&self, digest: &Digest) -> Keep {
        Box::new(self.disk.hold(digest, UPLOAD))
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
