//! One question at a time for each answer: who asks what is being asked already waits for that.
//!
//! The work runs in a task of its own, so that no client that leaves takes it along.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tokio_util::task::TaskTracker;

use super::CacheError;

/// What work under way will come to; `None` if it panics.
pub(super) type Flight<V> = Shared<BoxFuture<'static, Option<V>>>;

/// Work under way, by key.
pub(super) struct Flights<K, V> {
    running: Arc<Mutex<HashMap<K, Flight<V>>>>,
    tracker: TaskTracker,
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new(tracker: &TaskTracker) -> Self {
        Flights {
            running: Arc::default(),
            tracker: tracker.clone(),
        }
    }

    /// The result of `work`, or of what runs already under `key`; then the flag is true.
    /// `None` if the work panicked.
    ///
    /// Cancel-safe: the work goes on.
    pub(super) async fn join<W, F>(&self, key: &K, work: W) -> (Option<V>, bool)
    where
        W: FnOnce() -> F,
        F: Future<Output = V> + Send + 'static,
    {
        let (running, joined) = self.start(key, work);
        (running.await, joined)
    }

    /// The same without waiting: `work` runs, whether anybody wants its result or not.
    pub(super) fn start<W, F>(&self, key: &K, work: W) -> (Flight<V>, bool)
    where
        W: FnOnce() -> F,
        F: Future<Output = V> + Send + 'static,
    {
        let mut table = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = table.get(key) {
            return (running.clone(), true);
        }
        // Boxed: a task moves its future about, and these are large.
        let work = Box::pin(work());
        let landing = Landing {
            table: Arc::clone(&self.running),
            key: key.clone(),
        };
        let task = self.tracker.spawn(async move {
            let result = work.await;
            drop(landing);
            result
        });
        let running = task.map(Result::ok).boxed().shared();
        table.insert(key.clone(), running.clone());
        (running, false)
    }
}

/// What a look-up came to.
pub(super) fn landed<T>(result: Option<Result<T, CacheError>>) -> Result<T, CacheError> {
    result.unwrap_or_else(|| Err(CacheError::Internal("a look-up panicked".into())))
}

impl<K, V> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flights")
    }
}

/// Takes the entry out of the table, also when the work panics.
struct Landing<K: Eq + Hash, V> {
    table: Arc<Mutex<HashMap<K, Flight<V>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn one_works_for_all_and_outlives_who_started_it() {
        let flights: Arc<Flights<&str, usize>> = Arc::new(Flights::new(&TaskTracker::new()));
        let started = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(Notify::new());
        let work = || {
            let (started, gate) = (Arc::clone(&started), Arc::clone(&gate));
            move || async move {
                let count = started.fetch_add(1, Ordering::SeqCst) + 1;
                gate.notified().await;
                count
            }
        };
        let mut first = Box::pin(flights.join(&"key", work()));
        assert!(futures_util::poll!(&mut first).is_pending());
        let second = flights.join(&"key", work());
        drop(first);
        gate.notify_one();
        assert_eq!(second.await, (Some(1), true));
        gate.notify_one();
        assert_eq!(
            flights.join(&"key", work()).await,
            (Some(2), false),
            "it starts anew"
        );
    }

    #[tokio::test]
    async fn a_panic_is_nobodys_end() {
        let flights: Flights<&str, usize> = Flights::new(&TaskTracker::new());
        let (result, _) = flights.join(&"key", || async { panic!("a bug") }).await;
        assert_eq!(result, None);
        assert_eq!(flights.join(&"key", || async { 7 }).await, (Some(7), false));
    }
}
