//! The store that replicas share: Azure Blob Storage, S3 or Google Cloud Storage.
//!
//! Replicas agree on nothing but what lies here, and change what others may change only by
//! compare-and-swap: an object's version (its `ETag`) must still be the one that was read.
//!
//! A failing store never fails a pull. Every call is bounded in time, and after three failures in a
//! row nobody asks for five seconds: [`SharedError::Down`] costs nothing. Then one call finds out
//! for all whether it is back.
//!
//! The rooms: `small` objects that replicas agree by, `blobs`, large ones in `parts`, `list`s; `keys` their names; `config`
//! and `connect` which store it is and who we are there.

mod blobs;
mod config;
mod connect;
#[cfg(test)]
pub(crate) mod fake;
mod hosts;
mod keys;
mod list;
mod parts;
mod recorded;
mod small;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use object_store::signer::Signer;
use object_store::{Error as ObjectError, ObjectStore};
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use blobs::Body;
pub use config::{
    Cloud, Config, Credential, InvalidLocation, Location, Peers, SHORTEST_PRUNE, Via,
};
pub use connect::{ConnectError, open};
pub use hosts::Host;
pub use keys::{Name, Tree};
pub use list::Listed;
pub use parts::Parts;
pub use small::{Document, Version};

use super::files::lock;
use super::used::Used;
use keys::Keys;

/// A look-up in the path of a pull: all tries together.
const LOOK: Duration = Duration::from_secs(3);
/// A response header of a body, and a write of something small.
const HEADER: Duration = Duration::from_secs(10);
/// Bodies open at once.
const BODIES: usize = 64;
/// Failures in a row after which nobody asks.
const FAILURES: u32 = 3;
const DOWN: Duration = Duration::from_secs(5);

/// The shared store. One per process.
#[derive(Debug)]
pub struct Shared {
    objects: Arc<dyn ObjectStore>,
    signer: Option<Arc<dyn Signer>>,
    keys: Keys,
    bodies: Arc<Semaphore>,
    health: Mutex<Health>,
    /// What this replica answers with, so that no replica prunes it.
    pub used: Used,
}

/// Why the shared store did not do what it was asked to. Pulls go on without it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SharedError {
    #[error("the shared store failed a moment ago and is not asked again yet")]
    Down,
    #[error("the shared store took too long to {0}")]
    TimedOut(String),
    #[error("cannot {what} in the shared store: {source}")]
    Failed {
        what: String,
        source: Arc<ObjectError>,
    },
    #[error(
        "the shared store does not let us {what}: look at store.shared.credential and \
         store.shared.secret, what that identity may do there, and this machine's clock: {source}"
    )]
    Refused {
        what: String,
        source: Arc<ObjectError>,
    },
    #[error("cannot {what} in the shared store: other replicas kept changing it")]
    Contended { what: String },
    #[error("cannot read {what}: {source}")]
    Local {
        what: String,
        source: Arc<std::io::Error>,
    },
}

#[derive(Debug, Default)]
struct Health {
    failures: u32,
    until: Option<Instant>,
}

// === impl Shared: set-up and health ===

impl Shared {
    /// `prefix` goes in front of every name. `signer` makes URLs for [`Shared::sign`].
    #[must_use]
    pub fn new(
        objects: Arc<dyn ObjectStore>,
        signer: Option<Arc<dyn Signer>>,
        prefix: &str,
    ) -> Self {
        Shared {
            objects,
            signer,
            keys: Keys::new(prefix),
            bodies: Arc::new(Semaphore::new(BODIES)),
            health: Mutex::default(),
            used: Used::default(),
        }
    }

    /// Whether it is worth asking: false for a few seconds after it failed several times.
    #[must_use]
    pub fn is_up(&self) -> bool {
        lock(&self.health)
            .until
            .is_none_or(|until| until <= Instant::now())
    }

    /// Whether it answers, and lets us in.
    pub async fn probe(self: &Arc<Self>) -> Result<(), SharedError> {
        self.list(Tree::Claims).try_next().await.map(drop)
    }

    /// Whether to ask now; who is told so after a pause finds out for all the others.
    fn may_ask(&self) -> bool {
        let mut health = lock(&self.health);
        let now = Instant::now();
        match health.until {
            None => true,
            Some(until) if until > now => false,
            Some(_) => {
                health.until = Some(now + DOWN);
                true
            }
        }
    }

    /// Asks, unless that is pointless now, and learns from how it went. `what` is for people.
    async fn ask<T>(
        &self,
        what: impl Fn() -> String,
        within: Duration,
        answer: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, SharedError> {
        if !self.may_ask() {
            return Err(SharedError::Down);
        }
        let result = match tokio::time::timeout(within, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => Err(SharedError::of(what(), source)),
            Err(_) => Err(SharedError::TimedOut(what())),
        };
        self.note(result.as_ref().err());
        result
    }

    fn note(&self, error: Option<&SharedError>) {
        let mut health = lock(&self.health);
        if error.is_none_or(SharedError::is_an_answer) {
            *health = Health::default();
        } else {
            health.failures = health.failures.saturating_add(1);
            if health.failures >= FAILURES {
                // One more failure after the time is enough to wait again.
                health.until = Some(Instant::now() + DOWN);
            }
        }
    }
}

fn absent<T>(result: Result<T, SharedError>) -> Result<Option<T>, SharedError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

// === impl SharedError ===

impl SharedError {
    fn of(what: String, source: ObjectError) -> Self {
        let source = Arc::new(source);
        let refused = match &*source {
            ObjectError::PermissionDenied { .. } | ObjectError::Unauthenticated { .. } => true,
            // What a list fails with is hidden from us; its text is not.
            ObjectError::Generic { .. } => {
                let text = source.to_string();
                ["status code: 401", "status code: 403"]
                    .iter()
                    .any(|status| text.contains(status))
            }
            _ => false,
        };
        if refused {
            SharedError::Refused { what, source }
        } else {
            SharedError::Failed { what, source }
        }
    }

    fn object(&self) -> Option<&ObjectError> {
        match self {
            SharedError::Failed { source, .. } => Some(source),
            _ => None,
        }
    }

    fn is_not_found(&self) -> bool {
        matches!(self.object(), Some(ObjectError::NotFound { .. }))
    }

    /// Somebody else has made or changed the object.
    fn is_lost_race(&self) -> bool {
        matches!(
            self.object(),
            Some(
                ObjectError::AlreadyExists { .. }
                    | ObjectError::Precondition { .. }
                    | ObjectError::NotFound { .. }
            )
        )
    }

    /// The store works, it only said no.
    fn is_an_answer(&self) -> bool {
        self.is_lost_race() || matches!(self, SharedError::Local { .. })
    }
}
