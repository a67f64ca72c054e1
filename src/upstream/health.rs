//! Which endpoint of an upstream is asked: the first, in order, that is not known to be down.
//!
//! | an endpoint is | since | requests |
//! |---|---|---|
//! | closed | it answers | ask it |
//! | open | it failed: once where another is closed; else five times in a row, or more than half of 20 within 10 s | pass it over, for 5 s at first, then twice as long each time, a minute at most |
//! | probed | that time is over | one asks it, the others pass it over until that one knows |
//!
//! To fail is to have no connection, no TLS, no answer in time, or an answer of 5xx. Every other
//! answer is one, whatever it says. What happens where a redirect led is not the endpoint's doing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{Timestamp, Unit};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use url::Url;

use super::UpstreamErrorKind;
use super::egress::authority;
use super::request::Meter;

/// Failures in a row that open an endpoint to which there is no alternative.
const IN_A_ROW: u32 = 5;
/// Or more than half of this many requests within [`WINDOW`].
const ENOUGH: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);
/// How long an open endpoint is passed over: at first, and at most.
const FIRST_BREAK: Duration = Duration::from_secs(5);
const LONGEST_BREAK: Duration = Duration::from_secs(60);
/// When to come back while somebody else is finding out.
const SOON: Duration = Duration::from_secs(1);

/// The endpoints of one upstream, in the order of its configuration.
#[derive(Debug)]
pub(super) struct Health {
    endpoints: Mutex<Vec<Endpoint>>,
    /// An endpoint was closed or opened.
    changed: Notify,
    meter: Meter,
}

#[derive(Debug)]
struct Endpoint {
    host: String,
    state: State,
    /// Failures in a row.
    failures: u32,
    window: Window,
    /// How long the next break is.
    pause: Duration,
    /// Since when it only fails, and how it did last.
    failing: Option<(Timestamp, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    Probed,
}

/// What became of the requests of a short while.
#[derive(Debug)]
struct Window {
    began: Instant,
    requests: u32,
    failed: u32,
}

/// The right to ask one endpoint. How that went must be said, or a probe counts as failed.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    health: &'a Health,
    /// Which endpoint.
    pub(super) at: usize,
    probe: bool,
    settled: bool,
}

// === impl Health ===

impl Health {
    pub(super) fn new(endpoints: &[Url], meter: Meter) -> Self {
        let endpoints = endpoints.iter().map(|url| Endpoint {
            host: authority(url),
            state: State::Closed,
            failures: 0,
            window: Window::new(),
            pause: FIRST_BREAK,
            failing: None,
        });
        Health {
            endpoints: Mutex::new(endpoints.collect()),
            changed: Notify::new(),
            meter,
        }
    }

    fn endpoints(&self) -> MutexGuard<'_, Vec<Endpoint>> {
        self.endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The first endpoint at or after `from` that may be asked.
    pub(super) fn admit(&self, from: usize) -> Option<Pass<'_>> {
        let mut endpoints = self.endpoints();
        let now = Instant::now();
        let (at, endpoint) = endpoints
            .iter_mut()
            .enumerate()
            .skip(from)
            .find(|(_, endpoint)| endpoint.may_be_asked(now))?;
        let probe = endpoint.state != State::Closed;
        if probe {
            endpoint.state = State::Probed;
        }
        Some(Pass {
            health: self,
            at,
            probe,
            settled: false,
        })
    }

    /// Waits until an endpoint may be asked; false if none may by `deadline`.
    pub(super) async fn recovers(&self, deadline: Instant) -> bool {
        loop {
            let changed = self.changed.notified();
            let wake = {
                let (endpoints, now) = (self.endpoints(), Instant::now());
                if endpoints.iter().any(|endpoint| endpoint.may_be_asked(now)) {
                    return true;
                }
                if now >= deadline {
                    return false;
                }
                let wake = endpoints
                    .iter()
                    .filter_map(|endpoint| match endpoint.state {
                        State::Open { until } => Some(until),
                        // Whoever probes it will tell.
                        State::Probed => Some(deadline),
                        State::Closed => None,
                    });
                wake.filter(|wake| *wake <= deadline).min()
            };
            let Some(wake) = wake else { return false };
            tokio::select! {
                () = changed => {}
                () = sleep_until(wake) => {}
            }
        }
    }

    /// What to say where no endpoint may be asked: since when, and when the next try is.
    pub(super) fn down(&self) -> UpstreamErrorKind {
        let (endpoints, now) = (self.endpoints(), Instant::now());
        let wait = |endpoint: &Endpoint| match endpoint.state {
            State::Open { until } => until.saturating_duration_since(now).max(SOON),
            State::Closed | State::Probed => SOON,
        };
        let retry_after = endpoints.iter().map(wait).min().unwrap_or(SOON);
        let failing = endpoints.iter().filter_map(|end| end.failing.as_ref());
        // The first endpoint is the one that ought to answer.
        let text = match failing.clone().map(|(since, _)| *since).min() {
            Some(since) => {
                let since = since.round(Unit::Second).unwrap_or(since);
                let cause = failing.map(|(_, cause)| cause.as_str()).next();
                format!(
                    "down since {since}, next try in {} s: {}",
                    seconds(retry_after),
                    cause.unwrap_or_default()
                )
            }
            None => "has no endpoint".to_owned(),
        };
        UpstreamErrorKind::Down { text, retry_after }
    }

    fn answered(&self, at: usize, probe: bool) {
        let mut endpoints = self.endpoints();
        let Some(endpoint) = endpoints.get_mut(at) else {
            return;
        };
        endpoint.window.count(false);
        // What was asked before it opened says nothing about now.
        if endpoint.state != State::Closed && !probe {
            return;
        }
        endpoint.failures = 0;
        endpoint.pause = FIRST_BREAK;
        endpoint.failing = None;
        if probe {
            endpoint.state = State::Closed;
            endpoint.window = Window::new();
            tracing::info!(endpoint = endpoint.host, "an endpoint answers again");
            self.meter.endpoints_open(-1);
            self.changed.notify_waiters();
        }
    }

    /// `rest`: how long the endpoint wants to be left alone, where it said that.
    fn failed(&self, at: usize, probe: bool, cause: &str, rest: Option<Duration>) {
        let mut endpoints = self.endpoints();
        let alternative = endpoints
            .iter()
            .enumerate()
            .any(|(other, endpoint)| other != at && endpoint.state == State::Closed);
        let Some(endpoint) = endpoints.get_mut(at) else {
            return;
        };
        endpoint.window.count(true);
        if endpoint.state != State::Closed && !probe {
            return;
        }
        endpoint.failures += 1;
        let since = endpoint
            .failing
            .take()
            .map_or_else(Timestamp::now, |(since, _)| since);
        endpoint.failing = Some((since, cause.to_owned()));
        let enough = if alternative { 1 } else { IN_A_ROW };
        if !probe && endpoint.failures < enough && !endpoint.window.mostly_fails() {
            return;
        }
        let rest = rest.unwrap_or_default().min(LONGEST_BREAK);
        let pause = endpoint.pause.max(rest);
        if !probe {
            let endpoint = &endpoint.host;
            tracing::warn!(endpoint, ?pause, cause, "an endpoint is passed over");
            self.meter.endpoints_open(1);
        }
        endpoint.state = State::Open {
            until: Instant::now() + pause,
        };
        endpoint.pause = (endpoint.pause * 2).min(LONGEST_BREAK);
        self.changed.notify_waiters();
    }
}

/// Nobody counts what is no longer there.
impl Drop for Health {
    fn drop(&mut self) {
        let closed = |endpoint: &Endpoint| endpoint.state == State::Closed;
        let open = self.endpoints().iter().filter(|end| !closed(end)).count();
        self.meter
            .endpoints_open(-i64::try_from(open).unwrap_or_default());
    }
}

// === impl Endpoint ===

impl Endpoint {
    fn may_be_asked(&self, now: Instant) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until } => until <= now,
            State::Probed => false,
        }
    }
}

// === impl Window ===

impl Window {
    fn new() -> Self {
        Window {
            began: Instant::now(),
            requests: 0,
            failed: 0,
        }
    }

    fn count(&mut self, failed: bool) {
        if self.began.elapsed() > WINDOW {
            *self = Window::new();
        }
        self.requests += 1;
        self.failed += u32::from(failed);
    }

    fn mostly_fails(&self) -> bool {
        self.requests >= ENOUGH && self.failed * 2 > self.requests
    }
}

// === impl Pass ===

impl Pass<'_> {
    pub(super) fn answered(mut self) {
        self.settled = true;
        self.health.answered(self.at, self.probe);
    }

    /// `cause` is for people; `rest` is how long the endpoint wants to be left alone.
    pub(super) fn failed(mut self, cause: &str, rest: Option<Duration>) {
        self.settled = true;
        self.health.failed(self.at, self.probe, cause, rest);
    }
}

/// The time for the whole answer ran out, say.
impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.probe && !self.settled {
            self.health.failed(self.at, true, "it took too long", None);
        }
    }
}

/// In whole seconds, rounded up.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests;
