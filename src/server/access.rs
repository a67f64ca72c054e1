//! One line per answer in the log, and the counters that go with it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};

use crate::cache::Outcome;
use crate::oci::Route;
use crate::telemetry::metrics::{RequestLabels, RouteLabel};
use crate::telemetry::{Metrics, RequestId};

/// What there is to say about one request. Dropped when its answer has gone out, whole or not,
/// and says it then.
#[derive(Debug)]
pub(super) struct Access {
    pub(super) id: RequestId,
    pub(super) client: IpAddr,
    pub(super) method: Method,
    /// None when the request was no part of the API.
    pub(super) route: Option<Route>,
    pub(super) status: StatusCode,
    pub(super) outcome: Option<Outcome>,
    pub(super) started: Instant,
    pub(super) metrics: Arc<Metrics>,
    /// Body bytes handed to the connection.
    pub(super) bytes: u64,
    /// Why the body ended short.
    pub(super) failure: Option<String>,
}

// === impl Access ===

impl Access {
    pub(super) fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    pub(super) fn cut(&mut self, error: &std::io::Error) {
        self.failure = Some(error.to_string());
    }

    fn label(&self) -> RouteLabel {
        match &self.route {
            Some(Route::Ping) => RouteLabel::Ping,
            Some(Route::Manifest { .. }) => RouteLabel::Manifest,
            Some(Route::Blob { .. }) => RouteLabel::Blob,
            Some(Route::Tags { .. }) => RouteLabel::Tags,
            Some(Route::Referrers { .. }) => RouteLabel::Referrers,
            None => RouteLabel::Other,
        }
    }

    fn count(&self) {
        let labels = RequestLabels {
            route: self.label(),
            status: self.status.as_u16(),
        };
        self.metrics.requests.get_or_create(&labels).inc();
        self.metrics.sent.inc_by(self.bytes);
    }

    fn log(&self) {
        let (route, repository, reference) = match &self.route {
            None => ("other", None, None),
            Some(Route::Ping) => ("ping", None, None),
            Some(Route::Manifest {
                repository,
                reference,
            }) => (
                "manifest",
                Some(repository),
                Some(reference as &dyn fmt::Display),
            ),
            Some(Route::Blob { repository, digest }) => {
                ("blob", Some(repository), Some(digest as &dyn fmt::Display))
            }
            Some(Route::Tags { repository, .. }) => ("tags", Some(repository), None),
            Some(Route::Referrers {
                repository, digest, ..
            }) => (
                "referrers",
                Some(repository),
                Some(digest as &dyn fmt::Display),
            ),
        };
        tracing::info!(
            target: "portcullis::access",
            request_id = %self.id,
            client = %self.client,
            method = %self.method,
            route,
            repository = repository.map(tracing::field::display),
            reference = reference.map(tracing::field::display),
            status = self.status.as_u16(),
            bytes = self.bytes,
            ms = milliseconds(self.started.elapsed()),
            outcome = self.outcome.map(outcome_name),
            failure = self.failure.as_deref(),
            "answered"
        );
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        self.count();
        if tracing::enabled!(target: "portcullis::access", tracing::Level::INFO) {
            self.log();
        }
    }
}

/// With three decimals.
fn milliseconds(time: Duration) -> f64 {
    f64::from(u32::try_from(time.as_micros()).unwrap_or(u32::MAX)) / 1000.0
}

const fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Hit => "hit",
        Outcome::Stale => "stale",
        Outcome::Miss => "miss",
        Outcome::Collapsed => "collapsed",
        Outcome::Passed => "passed",
        Outcome::Redirected => "redirected",
    }
}
