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
pub(super) struct Unwritten(Mutex<Vec<(Digest, Bytes)>>);

// === impl Unwritten ===

impl Unwritten {
    /// Whether it is the first, so that somebody has to come for them.
    pub(super) fn push(&self, manifest: &Manifest) -> bool {
        let mut waiting = self.lock();
        waiting.push((*manifest.digest(), manifest.bytes().clone()));
        waiting.len() == 1
    }

    /// All that have come when the burst is over, two seconds from now at the latest.
    pub(super) async fn take_after_burst(&self) -> Vec<(Digest, Bytes)> {
        let mut seen = 1;
        for _ in 0..MOST_PAUSES {
            tokio::time::sleep(PAUSE).await;
            let before = std::mem::replace(&mut seen, self.lock().len());
            if before == seen {
                break;
            }
        }
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Digest, Bytes)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

    #[tokio::test(start_paused = true)]
    async fn one_manifest_waits_for_one_pause() {
        let (unwritten, begin) = (Unwritten::default(), Instant::now());
        assert!(unwritten.push(&manifest(1)));
        assert_eq!(unwritten.take_after_burst().await.len(), 1);
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
            let first = unwritten.take_after_burst().await.len();
            let then = begin.elapsed().as_millis();
            (first, then, unwritten.take_after_burst().await.len())
        };
        let ((), (first, then, rest)) = tokio::join!(burst, writer);
        assert_eq!(then, 2000);
        assert_eq!(first + rest, 31);
        assert!(begin.elapsed() < Duration::from_millis(4000));
    }
}
