//! Who has a blob near: the store that replicas share, and the replica that fills it for all.
//!
//! A fill that asks is sent
//!
//! | what is found | where |
//! |---|---|
//! | the blob in the shared store | there |
//! | no blob, and the claim is ours now | to the upstream, for everybody |
//! | no blob, and another replica has the claim | to that replica, which sends what it has so far |
//! | no answer within 250 ms | to the upstream, until the answer comes |
//! | an error | to the upstream; it asks again in a few seconds |
//!
//! A holder that goes silent costs the others a few seconds: one of them takes its claim over, the
//! rest follow that one. Without `[store.shared.peers]` nobody could follow, so nobody claims.

mod passing;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use moka::sync::Cache as Memory;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use url::Url;

use super::flight::Flights;
use super::source::{body_stream, source_error};
use crate::fill::{Near, Nearest, Opened, Reader, Source, SourceError, SourceErrorKind, Vigil};
use crate::oci::Digest;
use crate::store::claims::{Holder, LOOK, Standing};
use crate::store::{Claim, Claims, Disk, Shared, SharedError};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{NearLabels, NearSource, PublishLabels};
use crate::upstream::{Peers, UpstreamErrorKind};
use passing::Passing;

/// How long a pull waits before it goes to the upstream.
const ASK: Duration = Duration::from_millis(250);
/// How long after an error a fill asks again: the store that failed may be back.
const AGAIN: Duration = Duration::from_secs(5);
/// How long one waits that was cut off from a holder: until that one is dead, or shows that it
/// lives.
const PATIENCE: Duration = Duration::from_secs(12);
/// A smaller blob is fetched in less time than it takes to agree on who does it.
const WORTH_A_CLAIM: u64 = 1024 * 1024;
/// How long a source that sent wrong bytes is not used for that digest.
const CONDEMNED: Duration = Duration::from_secs(60);
/// How long a replica that could not be reached is not tried.
const UNREACHABLE: Duration = Duration::from_secs(30);
/// Sources remembered for either.
const REMEMBERED: u64 = 4096;
/// The name of the shared store among sources.
const SHARED: &str = "the shared store";

/// Everything near, for all fills.
#[derive(Clone, Debug)]
pub struct Nearby {
    shared: Arc<Shared>,
    disk: Arc<Disk>,
    fleet: Option<Fleet>,
    /// One question at a time for each digest; it goes on when a pull has waited long enough.
    finds: Arc<Flights<Digest, Found>>,
    condemned: Memory<(Digest, String), ()>,
    unreachable: Memory<String, ()>,
    received: Counter,
    published: Family<PublishLabels, Counter>,
    passing: Arc<Passing>,
    tracker: TaskTracker,
}

/// The other replicas.
#[derive(Clone, Debug)]
pub struct Fleet {
    pub claims: Arc<Claims>,
    pub peers: Arc<Peers>,
}

#[derive(Clone, Debug)]
enum Found {
    Shared,
    Peer {
        holder: Holder,
        address: Url,
    },
    Mine(Claim),
    Nothing,
    /// The store did not say.
    Unknown,
}

/// A blob in the shared store.
struct SharedSource {
    nearby: Nearby,
    digest: Digest,
}

/// A blob at another replica.
struct PeerSource {
    nearby: Nearby,
    peers: Arc<Peers>,
    address: Url,
    digest: Digest,
    name: String,
}

/// We fill for all.
#[derive(Debug)]
struct Holding {
    claim: Claim,
    nearby: Nearby,
    digest: Digest,
    /// The shared store may have the blob by now.
    look_again: bool,
}

/// We fill for ourselves, where nobody could follow.
#[derive(Debug)]
struct Alone {
    nearby: Nearby,
    digest: Digest,
}

/// Another replica fills, and we follow.
#[derive(Debug)]
struct Following {
    claims: Arc<Claims>,
    digest: Digest,
    replica: String,
}

/// The answer is still to come.
#[derive(Debug)]
struct Late {
    nearby: Nearby,
    digest: Digest,
    size: Option<u64>,
    failed: Vec<String>,
}

/// There was no answer.
#[derive(Debug)]
struct Unanswered;

// === impl Nearby ===

impl Nearby {
    /// `fleet` are the other replicas, if they can be reached.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        disk: Arc<Disk>,
        fleet: Option<Fleet>,
        metrics: &Metrics,
        tracker: &TaskTracker,
    ) -> Self {
        let source = NearSource::Shared;
        Nearby {
            shared,
            disk,
            fleet,
            finds: Arc::new(Flights::new(tracker)),
            condemned: remember(CONDEMNED),
            unreachable: remember(UNREACHABLE),
            received: metrics
                .near_received
                .get_or_create(&NearLabels { source })
                .clone(),
            published: metrics.shared_published.clone(),
            passing: Arc::default(),
            tracker: tracker.clone(),
        }
    }

    /// Looks, or joins who looks already.
    async fn find(&self, digest: &Digest, size: Option<u64>, failed: &[String]) -> Found {
        let find = || {
            let (nearby, digest, failed) = (self.clone(), *digest, failed.to_vec());
            async move {
                let found = nearby.try_find(&digest, size, &failed).await;
                found.unwrap_or_else(|error| {
                    tracing::debug!(%digest, %error, "cannot find out who has it");
                    Found::Unknown
                })
            }
        };
        let (found, _) = self.finds.join(digest, find).await;
        found.unwrap_or(Found::Unknown)
    }

    async fn try_find(
        &self,
        digest: &Digest,
        size: Option<u64>,
        failed: &[String],
    ) -> Result<Found, SharedError> {
        if self.may_use_shared(digest, failed) && self.shared.stat(digest).await?.is_some() {
            return Ok(Found::Shared);
        }
        let Some(fleet) = &self.fleet else {
            return Ok(Found::Nothing);
        };
        if size.is_some_and(|size| size < WORTH_A_CLAIM) {
            return Ok(Found::Nothing);
        }
        loop {
            let holder = match fleet.claims.take(digest).await? {
                Standing::Mine(claim) => return Ok(Found::Mine(claim)),
                Standing::Theirs(holder) => holder,
            };
            let name = peer_name(&holder);
            let has_failed = failed.contains(&name);
            if let Some(address) = holder.address.clone()
                && !has_failed
                && !self.unreachable.contains_key(&name)
                && !self.condemned.contains_key(&(*digest, name))
            {
                return Ok(Found::Peer { holder, address });
            }
            if !has_failed || !fallen_silent(&fleet.claims, digest, &holder).await? {
                return Ok(Found::Nothing);
            }
        }
    }

    fn may_use_shared(&self, digest: &Digest, failed: &[String]) -> bool {
        let condemned = self.condemned.contains_key(&(*digest, SHARED.to_owned()));
        !condemned && failed.iter().all(|name| name != SHARED)
    }

    fn nearest(&self, digest: &Digest, found: Found, failed: &[String]) -> Nearest {
        let (nearby, digest) = (self.clone(), *digest);
        match (found, &self.fleet) {
            (Found::Shared, _) => Nearest {
                source: Some(Arc::new(SharedSource { nearby, digest })),
                vigil: None,
            },
            (Found::Peer { holder, address }, Some(fleet)) => Nearest {
                source: Some(Arc::new(PeerSource {
                    nearby,
                    peers: Arc::clone(&fleet.peers),
                    address,
                    digest,
                    name: peer_name(&holder),
                })),
                vigil: Some(Arc::new(Following {
                    claims: Arc::clone(&fleet.claims),
                    digest,
                    replica: holder.replica,
                })),
            },
            (Found::Mine(claim), _) => Nearest {
                source: None,
                vigil: Some(Arc::new(Holding {
                    claim,
                    look_again: self.may_use_shared(&digest, failed),
                    nearby,
                    digest,
                })),
            },
            (Found::Nothing | Found::Peer { .. }, None) => Nearest {
                source: None,
                vigil: Some(Arc::new(Alone { nearby, digest })),
            },
            (Found::Nothing, Some(_)) => Nearest {
                source: None,
                vigil: None,
            },
            (Found::Unknown, _) => Nearest {
                source: None,
                vigil: Some(Arc::new(Unanswered)),
            },
        }
    }
}

#[async_trait]
impl Near for Nearby {
    async fn locate(&self, digest: &Digest, size: Option<u64>, failed: &[String]) -> Nearest {
        // Only who has lost a peer has to wait for what becomes of it.
        let lost_a_peer = failed.iter().any(|name| name != SHARED);
        let limit = if lost_a_peer { PATIENCE } else { ASK };
        if let Ok(found) = timeout(limit, self.find(digest, size, failed)).await {
            return self.nearest(digest, found, failed);
        }
        tracing::info!(%digest, "the shared store is slow: asking the upstream meanwhile");
        let late = Late {
            nearby: self.clone(),
            digest: *digest,
            size,
            failed: failed.to_vec(),
        };
        Nearest {
            source: None,
            vigil: Some(Arc::new(late)),
        }
    }
}

/// Waits until the claim is free or has another holder; false when `holder` shows that it lives,
/// and only we cannot reach it. One renewal shows nothing: it may have been on its way when its
/// sender died.
async fn fallen_silent(
    claims: &Claims,
    digest: &Digest,
    holder: &Holder,
) -> Result<bool, SharedError> {
    let mut last = holder.clone();
    let mut renewals = 0;
    while renewals < 2 {
        sleep(LOOK).await;
        match claims.look(digest).await? {
            Some((now, false)) if now.replica == last.replica => {
                renewals += u32::from(now != last);
                last = now;
            }
            Some(_) | None => return Ok(true),
        }
    }
    Ok(false)
}

/// A replica that was started again is another one.
fn peer_name(holder: &Holder) -> String {
    let address = holder.address.as_ref().map_or("nowhere", Url::as_str);
    format!("replica {} at {address}", holder.replica)
}

fn remember<K: std::hash::Hash + Eq + Send + Sync + 'static>(time: Duration) -> Memory<K, ()> {
    Memory::builder()
        .max_capacity(REMEMBERED)
        .time_to_live(time)
        .build()
}

// === vigils ===

#[async_trait]
impl Vigil for Holding {
    async fn outdated(self: Arc<Self>) -> Option<Nearest> {
        // Its last holder may have finished between our look and our claim.
        if self.look_again && matches!(self.nearby.shared.stat(&self.digest).await, Ok(Some(_))) {
            return None;
        }
        // What slid by here may be there soon.
        tokio::select! {
            () = self.claim.lost() => {}
            () = self.nearby.passing.ended(&self.digest) => {}
        }
        None
    }

    /// Until the shared store has the blob, the others are to come here for it.
    fn committed(self: Arc<Self>) {
        let claim = Box::new(self.claim.clone());
        self.nearby.disk.until_published(&self.digest, claim);
    }

    fn passing(self: Arc<Self>, reader: Reader) {
        let (nearby, digest) = (self.nearby.clone(), self.digest);
        nearby.keep_passing(digest, reader, self);
    }
}

#[async_trait]
impl Vigil for Alone {
    async fn outdated(self: Arc<Self>) -> Option<Nearest> {
        self.nearby.passing.ended(&self.digest).await;
        None
    }

    fn passing(self: Arc<Self>, reader: Reader) {
        self.nearby.keep_passing(self.digest, reader, ());
    }
}

#[async_trait]
impl Vigil for Following {
    async fn outdated(self: Arc<Self>) -> Option<Nearest> {
        loop {
            sleep(LOOK).await;
            match self.claims.look(&self.digest).await {
                Ok(Some((holder, dead))) if dead || holder.replica != self.replica => return None,
                // Given back: it has the blob, or its connections tell that it has not.
                Ok(None) => std::future::pending::<()>().await,
                // A store that is down says nothing about the holder.
                Ok(Some(_)) | Err(_) => {}
            }
        }
    }
}

#[async_trait]
impl Vigil for Late {
    /// The answer itself: who asked again would wait as long once more, and hear it too late again.
    async fn outdated(self: Arc<Self>) -> Option<Nearest> {
        let (digest, failed) = (&self.digest, &self.failed);
        let found = self.nearby.find(digest, self.size, failed).await;
        Some(self.nearby.nearest(digest, found, failed))
    }
}

#[async_trait]
impl Vigil for Unanswered {
    async fn outdated(self: Arc<Self>) -> Option<Nearest> {
        sleep(AGAIN).await;
        None
    }
}

// === sources ===

#[async_trait]
impl Source for SharedSource {
    fn name(&self) -> &str {
        SHARED
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        self.nearby.shared.permit().await
    }

    fn try_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.nearby.shared.try_permit()
    }

    async fn open(&self, range: Option<Range<u64>>) -> Result<Opened, SourceError> {
        let found = self.nearby.shared.open(&self.digest, range).await;
        let body = found
            .map_err(shared_error)?
            .ok_or_else(|| gone("it is not there any more"))?;
        let (range, total) = (body.range.clone(), body.total);
        let received = self.nearby.received.clone();
        let body: BoxStream<'static, Result<Bytes, SourceError>> =
            stream::unfold(Some((body, received)), |state| async {
                let (mut body, received) = state?;
                match body.chunk().await {
                    Ok(Some(chunk)) => {
                        received.inc_by(chunk.len() as u64);
                        Some((Ok(chunk), Some((body, received))))
                    }
                    Ok(None) => None,
                    Err(error) => Some((Err(shared_error(error)), None)),
                }
            })
            .boxed();
        Ok(Opened {
            range: Some(range),
            total: Some(total),
            body,
        })
    }

    /// Nobody is to read it again, and somebody may look why.
    fn condemned(&self) {
        let (nearby, digest) = (self.nearby.clone(), self.digest);
        nearby.condemned.insert((digest, SHARED.to_owned()), ());
        self.nearby.tracker.spawn(async move {
            let set_aside = nearby.shared.quarantine(&digest).await;
            match set_aside {
                Ok(()) => {
                    tracing::warn!(%digest, "a wrong object of the shared store is set aside");
                }
                Err(error) => {
                    tracing::error!(%digest, %error, "cannot set a wrong object aside");
                }
            }
        });
    }
}

#[async_trait]
impl Source for PeerSource {
    fn name(&self) -> &str {
        &self.name
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        self.peers.body_permit().await
    }

    fn try_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.peers.try_body_permit()
    }

    async fn open(&self, range: Option<Range<u64>>) -> Result<Opened, SourceError> {
        let answer = self.peers.blob(&self.address, &self.digest, range).await;
        let answer = answer.map_err(|error| {
            let about_the_blob = matches!(
                error.kind,
                UpstreamErrorKind::NotFound | UpstreamErrorKind::RangeNotSatisfiable
            );
            if !about_the_blob {
                self.nearby.unreachable.insert(self.name.clone(), ());
            }
            source_error(error)
        })?;
        Ok(Opened {
            range: answer.range,
            total: answer.total,
            body: body_stream(answer.body),
        })
    }

    fn condemned(&self) {
        let key = (self.digest, self.name.clone());
        self.nearby.condemned.insert(key, ());
    }
}

impl fmt::Debug for SharedSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHARED)
    }
}

impl fmt::Debug for PeerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

fn shared_error(error: SharedError) -> SourceError {
    SourceError {
        kind: SourceErrorKind::Broken,
        cause: Arc::new(error),
    }
}

fn gone(message: &'static str) -> SourceError {
    SourceError {
        kind: SourceErrorKind::Gone,
        cause: Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(message)),
    }
}

#[cfg(test)]
mod tests;
