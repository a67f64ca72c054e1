//! Times as the store keeps them: unix seconds.

use std::time::Duration;

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// How long ago that was, in unix seconds. A time that lies in the future is now: clocks are set
/// back.
pub(super) fn age(then: i64) -> Duration {
    Duration::from_secs(u64::try_from(now().saturating_sub(then)).unwrap_or(0))
}
