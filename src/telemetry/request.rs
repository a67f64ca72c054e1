//! Which request a line of the log belongs to.

use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

tokio::task_local! {
    static CURRENT: RequestId;
}

/// Names one request in its answer and in every line of the log that it causes; 16 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId(u64);

// === impl RequestId ===

impl RequestId {
    /// For tests of texts that mention one.
    #[cfg(test)]
    pub const EXAMPLE: Self = RequestId(0x0123_4567_89ab_cdef);

    /// Unique in this process, and unlike those of any other.
    #[must_use]
    pub fn next() -> Self {
        static FIRST: LazyLock<u64> = LazyLock::new(|| RandomState::new().build_hasher().finish());
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // An odd factor makes neighbours look different without ever repeating one.
        let count = COUNT
            .fetch_add(1, Ordering::Relaxed)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        RequestId(FIRST.wrapping_add(count))
    }

    /// Runs `work`, whose lines in the log carry this id. What it spawns has none: others may
    /// wait for the same work.
    pub async fn scope<F: Future>(self, work: F) -> F::Output {
        CURRENT.scope(self, work).await
    }

    /// The request that this code runs for.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.try_get().ok()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_sixteen_hex_digits_and_differ() {
        let ids: Vec<_> = (0..1000).map(|_| RequestId::next().to_string()).collect();
        assert!(
            ids.iter()
                .all(|id| id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit()))
        );
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), 1000);
    }

    #[tokio::test]
    async fn the_current_request_is_known_inside_only() {
        let id = RequestId::next();
        assert_eq!(id.scope(async { RequestId::current() }).await, Some(id));
        assert_eq!(RequestId::current(), None);
    }
}
