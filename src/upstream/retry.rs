//! When a failed request is sent again, and when not before.
//!
//! Only reads come through here, and only before anything of their answer was handed out, so a
//! second try is never seen. What the upstream said clearly (any 4xx) is never asked again. Tries
//! are spread by full jitter, and an upstream that fails altogether sees few of them: they come out
//! of a budget.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderMap;
use http::header::RETRY_AFTER;
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use tower::retry::budget::{Budget as _, TpsBudget};

use super::UpstreamErrorKind;
use super::request::Meter;

/// Tries after the first.
const RETRIES: u32 = 2;
/// The first of them waits up to this, the next up to twice that.
const JITTER: Duration = Duration::from_millis(200);
/// An upstream that wants more time than this is not asked again for the same answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Of the requests within so many seconds so many may be tried again, and always one a second.
const BUDGET_OVER: Duration = Duration::from_secs(10);
const BUDGET_SHARE: f32 = 0.1;
const BUDGET_FLOOR: u32 = 1;
/// The longest time that an upstream may tell us to stay away.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);

/// The tries of one upstream.
#[derive(Debug)]
pub(super) struct Retries {
    budget: TpsBudget,
    /// There was none left for the last one that wanted some.
    spent: AtomicBool,
    /// For the log.
    registry: String,
    meter: Meter,
}

// === impl Retries ===

impl Retries {
    pub(super) fn new(registry: String, meter: Meter) -> Self {
        Retries {
            budget: TpsBudget::new(BUDGET_OVER, BUDGET_FLOOR, BUDGET_SHARE),
            spent: AtomicBool::new(false),
            registry,
            meter,
        }
    }

    /// Runs `attempt` until it succeeds, fails for good, has failed three times or may not be
    /// repeated. Its caller bounds the time of all tries together.
    pub(super) async fn run<T, F>(
        &self,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, UpstreamErrorKind>
    where
        F: Future<Output = Result<T, UpstreamErrorKind>>,
    {
        self.budget.deposit();
        for retry in 0..RETRIES {
            let error = match attempt().await {
                Err(error) if error.is_transient() => error,
                result => return result,
            };
            let asked_for = match &error {
                UpstreamErrorKind::Overloaded { retry_after, .. } => *retry_after,
                _ => Duration::ZERO,
            };
            if asked_for > LONGEST_PAUSE || !self.may_retry() {
                return Err(error);
            }
            let delay = asked_for + JITTER.mul_f64(f64::from(1 << retry) * fastrand::f64());
            tracing::debug!(%error, ?delay, "asking the upstream again");
            tokio::time::sleep(delay).await;
        }
        attempt().await
    }

    fn may_retry(&self) -> bool {
        let granted = self.budget.withdraw();
        self.meter.retried(granted);
        let was_spent = self.spent.swap(!granted, Ordering::Relaxed);
        if !granted && !was_spent {
            let registry = &self.registry;
            tracing::warn!(registry, "too much fails: failed requests are not repeated");
        }
        granted
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

#[cfg(test)]
mod tests;
