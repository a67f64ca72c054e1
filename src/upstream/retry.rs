//! When a failed request is sent again, and when not before.
//!
//! Only reads come through here, and only before anything of their answer was handed out, so a
//! second try is never seen. What the upstream said clearly (any 4xx) is never asked again.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use http::HeaderMap;
use http::header::RETRY_AFTER;
use jiff::Timestamp;
use jiff::fmt::rfc2822;

use super::UpstreamErrorKind;

/// Tries after the first.
const RETRIES: usize = 2;
/// The longest time that an upstream may tell us to stay away.
const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);

/// Runs `attempt` until it succeeds, fails for good, or has failed three times. Its caller bounds
/// the time of all tries together.
pub(super) async fn retrying<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, UpstreamErrorKind>
where
    F: Future<Output = Result<T, UpstreamErrorKind>>,
{
    let mut delays = ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(2))
        .with_max_times(RETRIES)
        .build();
    loop {
        let error = match attempt().await {
            Err(error) if error.is_transient() => error,
            result => return result,
        };
        let Some(delay) = delays.next() else {
            return Err(error);
        };
        tracing::debug!(%error, ?delay, "asking the upstream again");
        tokio::time::sleep(delay).await;
    }
}

/// `Retry-After` in either of its forms (RFC 9110 section 10.2.3), at most 15 minutes.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if text.bytes().all(|b| b.is_ascii_digit()) {
        // Digits that do not fit mean "very long".
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let until = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
        // A time that has passed is no wait at all.
        Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default()
    };
    (!text.is_empty()).then(|| wait.min(LONGEST_WAIT))
}
