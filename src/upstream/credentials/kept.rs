//! Something that was expensive to get and is good for a while: renewed before its end, by one
//! caller at a time.
//!
//! While one renews it the others go on with what there is. When renewing fails, what there is serves
//! until its end; without anything the failure is everybody's for a few seconds, so that a service
//! that is down is not asked by each pull.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::UpstreamErrorKind;

/// How long before its end a thing is renewed, at most; short-lived ones in their last tenth.
const EARLIEST: Duration = Duration::from_secs(5 * 60);
/// How long a failure is everybody's.
const FAILED_FOR: Duration = Duration::from_secs(5);
/// The same for one that the next try may not meet: for those who waited, not for who tries again.
const BLIP: Duration = Duration::from_millis(100);
/// What is younger is not fetched again because it was refused: the same would come.
const JUST_NOW: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Kept<T> {
    state: Mutex<State<T>>,
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State<T> {
    held: Option<Held<T>>,
    failed: Option<(Instant, UpstreamErrorKind)>,
}

#[derive(Debug)]
struct Held<T> {
    value: T,
    since: Instant,
    /// None: until it is refused.
    lifetime: Option<Duration>,
}

/// How good what is held is.
enum Look<T> {
    Good(T),
    /// It is time to renew it.
    Ageing(T),
    Nothing,
}

// === impl Kept ===

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Kept {
            state: Mutex::new(State {
                held: None,
                failed: None,
            }),
            fetching: tokio::sync::Mutex::new(()),
        }
    }
}

impl<T: Clone> Kept<T> {
    /// What is kept, or what `fetch` gives and how long that is good. Cancel-safe: who waits goes on
    /// in the place of who was renewing.
    pub(super) async fn get<F>(&self, fetch: impl FnOnce() -> F) -> Result<T, UpstreamErrorKind>
    where
        F: Future<Output = Result<(T, Option<Duration>), UpstreamErrorKind>>,
    {
        let _turn = match self.look() {
            Look::Good(value) => return Ok(value),
            Look::Ageing(value) => match self.fetching.try_lock() {
                Ok(turn) => turn,
                Err(_) => return Ok(value),
            },
            Look::Nothing => self.fetching.lock().await,
        };
        let old = match self.look() {
            // Somebody was quicker.
            Look::Good(value) => return Ok(value),
            Look::Ageing(value) => Some(value),
            Look::Nothing => None,
        };
        let recent = self.failure();
        let failure = match recent {
            Some(failure) => failure,
            None => match fetch().await {
                Ok((value, lifetime)) => {
                    self.set(value.clone(), lifetime);
                    return Ok(value);
                }
                Err(failure) => {
                    self.lock().failed = Some((Instant::now(), failure.clone()));
                    if old.is_some() {
                        tracing::warn!(error = %failure, "a login cannot be renewed yet");
                    }
                    failure
                }
            },
        };
        old.ok_or(failure)
    }

    /// Drops what was refused, unless it has just come. Whether there may now be something else.
    pub(super) fn refuse(&self, is_refused: impl FnOnce(&T) -> bool) -> bool {
        let mut state = self.lock();
        match &state.held {
            None => true,
            Some(held) if !is_refused(&held.value) => true,
            Some(held) if held.since.elapsed() < JUST_NOW => false,
            Some(_) => {
                state.held = None;
                true
            }
        }
    }

    fn look(&self) -> Look<T> {
        let state = self.lock();
        let Some(held) = &state.held else {
            return Look::Nothing;
        };
        let value = held.value.clone();
        let Some(lifetime) = held.lifetime else {
            return Look::Good(value);
        };
        let age = held.since.elapsed();
        if age >= lifetime {
            Look::Nothing
        } else if age >= lifetime.saturating_sub(EARLIEST.min(lifetime / 10)) {
            Look::Ageing(value)
        } else {
            Look::Good(value)
        }
    }

    fn failure(&self) -> Option<UpstreamErrorKind> {
        let state = self.lock();
        let recent = state.failed.as_ref();
        let recent = recent.filter(|(since, failure)| {
            let long = if failure.is_transient() {
                BLIP
            } else {
                FAILED_FOR
            };
            since.elapsed() < long
        });
        recent.map(|(_, failure)| failure.clone())
    }

    fn set(&self, value: T, lifetime: Option<Duration>) {
        *self.lock() = State {
            held: Some(Held {
                value,
                since: Instant::now(),
                lifetime,
            }),
            failed: None,
        };
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<T>> {
        // Nothing in here can panic half-way.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
