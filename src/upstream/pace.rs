//! How fast an upstream is asked: not at all while it wants to be left alone, by one request when
//! nobody knows, and never by too many at once.
//!
//! After a 429 nothing goes out until its `Retry-After` is over. Then one request finds out for
//! all, and so does the first one after a moment of quiet: a crowd that comes all at once would
//! otherwise run into the limit as a whole, before the first of them knows of it. What one request
//! finds out holds for its kind alone, because Docker Hub limits GETs of manifests and goes on
//! answering HEADs and blobs; only what holds for those GETs holds for everything.
//!
//! Docker Hub also says beforehand how much is left (`ratelimit-remaining: 76;w=21600`). Below
//! `ratelimit_floor` that is kept for what is not cached.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::UpstreamErrorKind;
use super::request::{Answer, Call, Meter};
use super::retry::{LONGEST_WAIT, retry_after};
use crate::telemetry::metrics::{Held, UpstreamRequest};

/// Requests with small answers in flight per upstream; bodies of blobs are counted apart.
const SMALL: usize = 64;
/// How long a rate limit lasts that does not say, and one that says nothing or a past time.
const LIMITED: Duration = Duration::from_secs(60);
const SHORTEST: Duration = Duration::from_secs(1);
/// After so long without an answer nobody knows whether there is a limit. Blobs follow their
/// manifest within the second.
const QUIET: Duration = Duration::from_millis(100);
const QUIET_BLOBS: Duration = Duration::from_secs(2);
/// How long a crowd waits for the one who finds out.
const PATIENCE: Duration = Duration::from_secs(1);
/// How soon to come again when too many requests wait already.
const BUSY: Duration = Duration::from_secs(5);

/// One upstream's limits, its own and ours.
#[derive(Debug)]
pub(super) struct Pace {
    state: Mutex<State>,
    /// A door has opened, or somebody else may find out.
    changed: Notify,
    small: Arc<Semaphore>,
    floor: u64,
    /// For the log.
    registry: String,
    meter: Meter,
}

#[derive(Debug, Default)]
struct State {
    /// Until when the upstream wants to be left alone.
    until: Option<Instant>,
    doors: [Door; 3],
    /// Somebody is finding out.
    scouting: bool,
    /// What is left of a rate limit, and when that was said.
    left: Option<(u64, Instant)>,
}

/// Requests that are limited alike, those that are limited last in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Heads,
    Blobs,
    /// GETs of manifests and lists.
    Gets,
}

/// What is known for one lane.
#[derive(Debug, Default)]
struct Door {
    /// The last answer that was no 429.
    heard: Option<Instant>,
    /// What was heard last was a limit.
    limited: bool,
}

/// Whoever has this one finds out for all; dropped when it is known, or when somebody else is to.
#[derive(Debug)]
pub(super) struct Scout<'a> {
    pace: &'a Pace,
}

// === impl Pace ===

impl Pace {
    pub(super) fn new(registry: String, floor: u64, meter: Meter) -> Self {
        Pace {
            state: Mutex::default(),
            changed: Notify::new(),
            small: Arc::new(Semaphore::new(SMALL)),
            floor,
            registry,
            meter,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the right to send one more request with a small answer. Cancel-safe.
    pub(super) async fn turn(
        &self,
        deadline: Instant,
    ) -> Result<OwnedSemaphorePermit, UpstreamErrorKind> {
        let turn = timeout_at(deadline, Arc::clone(&self.small).acquire_owned()).await;
        let Ok(permit) = turn else {
            self.meter.held(Held::Busy);
            return Err(UpstreamErrorKind::Busy { retry_after: BUSY });
        };
        Ok(permit.expect("the semaphore is never closed"))
    }

    /// The rate limit that is in force, with the time that is left of it.
    pub(super) fn limit(&self) -> Option<UpstreamErrorKind> {
        let left = self.state().limit()?;
        self.meter.held(Held::RateLimited);
        Some(limited(left))
    }

    /// Whether a request may go out now; waits a moment for who is finding out. Cancel-safe.
    ///
    /// # Errors
    /// The limit that is in force.
    pub(super) async fn admit(&self, lane: Lane) -> Result<Option<Scout<'_>>, UpstreamErrorKind> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state();
                if let Some(left) = state.limit() {
                    self.meter.held(Held::RateLimited);
                    return Err(limited(left));
                }
                let door = &state.doors[lane as usize];
                if door
                    .heard
                    .is_some_and(|heard| heard.elapsed() < lane.quiet())
                {
                    return Ok(None);
                }
                let limited_before = door.limited;
                if !state.scouting {
                    state.scouting = true;
                    return Ok(Some(Scout { pace: self }));
                }
                if Instant::now() >= deadline {
                    if !limited_before {
                        return Ok(None);
                    }
                    self.meter.held(Held::RateLimited);
                    return Err(limited(SHORTEST));
                }
            }
            // Late or not, the state says what is to be done.
            let _ = timeout_at(deadline, changed).await;
        }
    }

    /// Learns from an answer, whoever got it.
    pub(super) fn heard(&self, lane: Lane, answer: &Answer) {
        self.learn(lane, answer.status(), answer.headers());
    }

    fn learn(&self, lane: Lane, status: StatusCode, headers: &HeaderMap) {
        let now = Instant::now();
        let mut state = self.state();
        if let Some(limit) = leading_number(headers, "ratelimit-limit") {
            self.meter.ratelimit_limit(limit);
        }
        if let Some(left) = leading_number(headers, "ratelimit-remaining") {
            self.meter.ratelimit_remaining(left);
            let spared = |left: Option<u64>| left.is_some_and(|left| left < self.floor);
            let before = state.left.map(|(left, _)| left);
            if spared(Some(left)) != spared(before) {
                tracing::info!(
                    registry = self.registry,
                    left,
                    floor = self.floor,
                    "what is left of the rate limit crossed the floor"
                );
            }
            state.left = Some((left, now));
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            state.limit_for(retry_after(headers), &self.registry);
        } else if state.limit().is_none() {
            if lane == Lane::Gets && state.doors[lane as usize].limited {
                tracing::info!(registry = self.registry, "the rate limit is over");
            }
            let doors = match lane {
                Lane::Gets => &mut state.doors[..],
                lane => &mut state.doors[lane as usize..=lane as usize],
            };
            for door in doors {
                door.heard = Some(now);
                door.limited = false;
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Learns of a limit that no answer to a call told, as that of a token service.
    pub(super) fn limited(&self, retry_after: Option<Duration>) {
        self.state().limit_for(retry_after, &self.registry);
        self.changed.notify_waiters();
    }

    /// Whether what is left of the rate limit is to be kept for what is not cached. What was said
    /// long ago is asked again by one request: whoever is told false.
    pub(super) fn must_spare(&self) -> bool {
        let mut state = self.state();
        let Some((left, said)) = &mut state.left else {
            return false;
        };
        if *left >= self.floor {
            return false;
        }
        if said.elapsed() >= LONGEST_WAIT {
            *said = Instant::now();
            return false;
        }
        true
    }
}

// === impl State ===

impl State {
    fn limit(&self) -> Option<Duration> {
        let left = self.until?.checked_duration_since(Instant::now())?;
        (!left.is_zero()).then_some(left)
    }

    fn limit_for(&mut self, retry_after: Option<Duration>, registry: &str) {
        let wait = retry_after.unwrap_or(LIMITED).max(SHORTEST);
        if !self.doors[Lane::Gets as usize].limited {
            tracing::warn!(registry, ?wait, "the upstream limits our rate");
        }
        self.until = self.until.max(Some(Instant::now() + wait));
        for door in &mut self.doors {
            door.heard = None;
            door.limited = true;
        }
    }
}

// === impl Lane ===

impl Lane {
    fn quiet(self) -> Duration {
        match self {
            Lane::Blobs => QUIET_BLOBS,
            Lane::Heads | Lane::Gets => QUIET,
        }
    }
}

impl From<&Call> for Lane {
    fn from(call: &Call) -> Self {
        match (&call.method, call.kind) {
            (&Method::HEAD, _) => Lane::Heads,
            (_, UpstreamRequest::Blob) => Lane::Blobs,
            _ => Lane::Gets,
        }
    }
}

// === impl Scout ===

impl Drop for Scout<'_> {
    fn drop(&mut self) {
        self.pace.state().scouting = false;
        // If it found out nothing, the next one tries; if it did, everybody has been told.
        self.pace.changed.notify_one();
    }
}

fn limited(left: Duration) -> UpstreamErrorKind {
    UpstreamErrorKind::RateLimited {
        retry_after: Some(left),
    }
}

/// The number in front of `100;w=21600`.
fn leading_number(headers: &HeaderMap, name: &str) -> Option<u64> {
    let text = headers.get(name)?.to_str().ok()?;
    text.split([';', ',']).next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests;
