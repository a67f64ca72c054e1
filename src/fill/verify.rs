//! The hash follows the contiguous prefix as it grows, on the blocking pool, reading what was
//! just written back from the page cache.

use std::io;
use std::sync::Arc;

use super::Fill;
use crate::store::Verifier;

/// Bytes that are worth a trip to the blocking pool before the blob is complete.
const STEP: u64 = 1024 * 1024;

/// Hashes until the blob is complete and gives the finished hash. Dropping the future stops it.
pub(super) async fn follow(fill: &Arc<Fill>) -> io::Result<Verifier> {
    let mut verifier = Verifier::new(&fill.digest);
    let mut changes = fill.changes.subscribe();
    loop {
        changes.mark_unchanged();
        let (found, spool) = {
            let mut state = fill.state();
            let hashed = verifier.hashed();
            let complete = state.is_complete();
            let prefix = state.map.prefix().min(state.total.unwrap_or(u64::MAX));
            if complete && hashed >= prefix {
                return Ok(verifier);
            }
            let due = complete || prefix >= hashed + STEP;
            (
                due.then(|| state.locate(hashed, prefix)).flatten(),
                state.spool.clone(),
            )
        };
        let Some(found) = found else {
            // The sender lives in the fill.
            let _ = changes.changed().await;
            continue;
        };
        verifier = blocking(move || {
            let end = found.range().end;
            match spool {
                Some(spool) if Arc::ptr_eq(spool.file(), found.file()) => {
                    verifier.advance(&spool, end)?;
                }
                _ => verifier.advance_foreign(found.file(), end)?,
            }
            Ok(verifier)
        })
        .await?;
        fill.state().hashed = verifier.hashed();
        fill.consumed.notify_one();
    }
}

/// Runs `work` on the blocking pool. A panic there is a bug; it becomes an error here so that it
/// fails one download and not the server.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}
