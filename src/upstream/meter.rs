//! What is counted of how an upstream fares and how it is treated.

use super::request::Meter;
use crate::telemetry::metrics::{Held, HeldLabels, RegistryLabels, RetryLabels, RetryResult};

impl Meter {
    fn labels(&self) -> RegistryLabels {
        RegistryLabels {
            registry: self.registry.clone(),
        }
    }

    /// A failed request was to be sent again, and was if it was `granted`.
    pub(super) fn retried(&self, granted: bool) {
        let labels = RetryLabels {
            registry: self.registry.clone(),
            result: if granted {
                RetryResult::Sent
            } else {
                RetryResult::OverBudget
            },
        };
        self.metrics.upstream_retries.get_or_create(&labels).inc();
    }

    /// Another endpoint than the first is asked.
    pub(super) fn failed_over(&self) {
        let labels = self.labels();
        self.metrics.upstream_failovers.get_or_create(&labels).inc();
    }

    /// A request did not go out.
    pub(super) fn held(&self, reason: Held) {
        let labels = HeldLabels {
            registry: self.registry.clone(),
            reason,
        };
        self.metrics.upstream_held.get_or_create(&labels).inc();
    }

    /// So many more endpoints are passed over.
    pub(super) fn endpoints_open(&self, more: i64) {
        let labels = self.labels();
        let open = &self.metrics.upstream_endpoints_open;
        open.get_or_create(&labels).inc_by(more);
        if let Ok(opened @ 1..) = u64::try_from(more) {
            let breaks = &self.metrics.upstream_endpoint_breaks;
            breaks.get_or_create(&labels).inc_by(opened);
        }
    }

    pub(super) fn ratelimit_limit(&self, limit: u64) {
        let gauge = &self.metrics.upstream_ratelimit_limit;
        gauge.get_or_create(&self.labels()).set(as_gauge(limit));
    }

    pub(super) fn ratelimit_remaining(&self, left: u64) {
        let gauge = &self.metrics.upstream_ratelimit_remaining;
        gauge.get_or_create(&self.labels()).set(as_gauge(left));
    }
}

fn as_gauge(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
