//! Manifests on their way to the disk: a burst of pulls comes first, and what it brought is written
//! in one go. Meanwhile it is in memory; a kill costs a request.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::oci::{Digest, Manifest};

/// A burst is over when nothing has come for so long.
const PAUSE: Duration = Duration::from_millis(500);
/// How many pauses are waited for at most.
const MOST_PAUSES: usize = 4;

/// Manifests that wait for the end of a burst.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    waiting: Mutex<Vec<(Digest, Bytes)>>,
    /// Held by who writes.
    writing: tokio::sync::Mutex<()>,
}

// === impl Unwritten ===

impl Unwritten {
    /// Whether it is the first, so that somebody has to come for them.
    pub(super) fn push(&self, manifest: &Manifest) -> bool {
        let mut waiting = self.lock();
        waiting.push((*manifest.digest(), manifest.bytes().clone()));
        waiting.len() == 1
    }

    /// Resolves when the burst is over, two seconds from now at the latest.
    pub(super) async fn burst(&self) {
        let mut seen = 1;
        for _ in 0..MOST_PAUSES {
            tokio::time::sleep(PAUSE).await;
            let before = std::mem::replace(&mut seen, self.lock().len());
            if before == seen {
                break;
            }
        }
    }

    /// Has `write` write all that have come. When this returns, what others took is written too.
    pub(super) async fn flush(&self, write: impl AsyncFnOnce(Vec<(Digest, Bytes)>)) {
        let _one_at_a_time = self.writing.lock().await;
        let manifests = std::mem::take(&mut *self.lock());
        write(manifests).await;
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Digest, Bytes)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::oci::Algorithm;

    fn manifest(number: u32) -> Manifest {
        let bytes = format!("{{\"number\":{number}}}").into();
        Manifest::parse(bytes, Some("application/json"), Algorithm::Sha256).unwrap()
    }

    /// How many there are when the burst is over.
    async fn count(unwritten: &Unwritten) -> usize {
        unwritten.burst().await;
        let mut count = 0;
        unwritten
            .flush(async |manifests| count = manifests.len())
            .await;
        count
    }

    #[tokio::test(start_paused = true)]
    async fn one_manifest_waits_for_one_pause() {
        let (unwritten, begin) = (Unwritten::default(), Instant::now());
        assert!(unwritten.push(&manifest(1)));
        assert_eq!(count(&unwritten).await, 1);
        assert_eq!(begin.elapsed().as_millis(), 500);
        assert!(unwritten.push(&manifest(2)), "the next begins a new burst");
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_written_when_it_is_over_or_lasts_too_long() {
        let (unwritten, begin) = (Unwritten::default(), Instant::now());
        let burst = async {
            for number in 0..=30 {
                unwritten.push(&manifest(number));
                sleep(Duration::from_millis(100)).await;
            }
        };
        let writer = async {
            let first = count(&unwritten).await;
            let then = begin.elapsed().as_millis();
            (first, then, count(&unwritten).await)
        };
        let ((), (first, then, rest)) = tokio::join!(burst, writer);
        assert_eq!(then, 2000);
        assert_eq!(first + rest, 31);
        assert!(begin.elapsed() < Duration::from_millis(4000));
    }
}
