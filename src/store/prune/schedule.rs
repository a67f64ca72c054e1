//! Once an hour a replica writes down what it uses and what it has pinned; once a day one of them
//! prunes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{PruneError, Pruned, prune};
use crate::store::Store;
use crate::store::files::unix_now;
use crate::store::object::{Name, Shared, SharedError};

const HOUR: Duration = Duration::from_secs(60 * 60);
/// How long the last stop may take to write down what was used.
const LAST_NOTE: Duration = Duration::from_secs(3);
/// Between two prunes, in seconds.
const DAY: i64 = 24 * 60 * 60;

/// `v1/pruned`
#[derive(serde::Deserialize, serde::Serialize)]
struct LastPrune {
    /// When it began, in unix seconds.
    began: i64,
}

/// Runs until `token` is cancelled. `older_than` is `store.shared.prune_older_than`. Does nothing
/// without a shared store.
pub async fn run(store: Arc<Store>, older_than: Option<Duration>, token: CancellationToken) {
    let Some(shared) = &store.shared else {
        return;
    };
    while token
        .run_until_cancelled(tokio::time::sleep(HOUR))
        .await
        .is_some()
    {
        if let Err(error) = shared.used.write(shared).await {
            tracing::warn!(%error, "cannot write down what is used");
        }
        if let Err(error) = store.publish_pins().await {
            tracing::warn!(%error, "other replicas do not know what is pinned here");
            // Who cannot say what has to stay must not take away what others did not say.
            continue;
        }
        if let Some(older_than) = older_than {
            let pruned = token
                .run_until_cancelled(once_a_day(shared, older_than))
                .await;
            match pruned {
                Some(Ok(Some(pruned))) => tracing::info!(
                    objects = pruned.objects,
                    bytes = pruned.bytes,
                    kept = pruned.kept,
                    "pruned the shared store"
                ),
                Some(Err(error)) => tracing::warn!(%error, "cannot prune the shared store"),
                Some(Ok(None)) | None => {}
            }
        }
    }
    let last = shared.used.write(shared);
    if !matches!(tokio::time::timeout(LAST_NOTE, last).await, Ok(Ok(()))) {
        tracing::warn!("what was used in the last hour is not written down");
    }
}

/// Prunes if no replica did within a day.
async fn once_a_day(
    shared: &Arc<Shared>,
    older_than: Duration,
) -> Result<Option<Pruned>, PruneError> {
    let now = unix_now();
    if !begin(shared, now).await? {
        return Ok(None);
    }
    let window = i64::try_from(older_than.as_secs()).unwrap_or(i64::MAX);
    let tell = |doomed: &super::Doomed| tracing::debug!(name = doomed.name, "pruned");
    prune(shared, now.saturating_sub(window), false, tell)
        .await
        .map(Some)
}

/// Whether it is this replica's turn. Of many that ask at once, one gets a yes.
async fn begin(shared: &Shared, now: i64) -> Result<bool, SharedError> {
    let mut ours = false;
    let bytes = serde_json::to_vec(&LastPrune { began: now }).unwrap_or_default();
    let bytes = Bytes::from(bytes);
    shared
        .update(Name::Pruned, |before| {
            let last = before.and_then(|bytes| serde_json::from_slice::<LastPrune>(bytes).ok());
            ours = last.is_none_or(|last| now - last.began >= DAY);
            ours.then(|| bytes.clone())
        })
        .await?;
    Ok(ours)
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn one_replica_a_day_prunes() {
        let objects = Arc::new(object_store::memory::InMemory::new());
        let shared = Arc::new(Shared::new(objects, None, "fleet"));
        for day in 100..103 {
            let mut replicas = JoinSet::new();
            for _ in 0..8 {
                let shared = Arc::clone(&shared);
                replicas.spawn(async move { begin(&shared, day * DAY).await.unwrap() });
            }
            let turns = replicas.join_all().await;
            assert_eq!(turns.iter().filter(|turn| **turn).count(), 1);
            assert!(!begin(&shared, day * DAY + DAY - 1).await.unwrap());
        }
    }
}
