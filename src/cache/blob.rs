//! Blobs: from the store where the repository has a link, else through a fill.
//!
//! | bytes here | link | what happens |
//! |---|---|---|
//! | yes | yes | served from disk |
//! | yes | no | one upstream HEAD; its yes makes the link |
//! | no | yes | a fill, joined or started |
//! | no | no | a fill whose first answer is the proof; to join one that others proved, one HEAD first |
//!
//! Where replicas share a store, the fill may find the bytes near, and what is near proves nothing:
//! so the HEAD runs beside the fill, and what comes first is the proof.

use std::fmt;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;

use url::Url;

use super::access::Access;
use super::error::Kind;
use super::flight::landed;
use super::source::{Offline, RepositorySource};
use super::{Cache, CacheError, Outcome};
use crate::fill::{Join, Joined, Reader, Source};
use crate::oci::{Digest, RangeSpec, Reference, Repository};
use crate::policy::Client;
use crate::store::FileRange;
use crate::telemetry::SafeUrl;

/// A blob, whole or on its way.
#[derive(Debug)]
pub struct BlobAnswer {
    pub digest: Digest,
    /// In bytes. `None`: the upstream has told none, and the blob is not complete yet.
    pub size: Option<u64>,
    pub outcome: Outcome,
    content: Content,
}

/// What of a blob is wanted, said before its size is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Only whether it is there, and its size.
    Head,
    Whole,
    Range(RangeSpec),
}

enum Content {
    File(FileRange),
    Fill(Joined),
    /// A URL by which the client gets it from the shared store.
    Elsewhere(Url),
    /// For a HEAD.
    Nothing,
}

/// A body in pieces, each a file and a range of it.
#[derive(Debug)]
pub enum Pieces {
    File(Option<FileRange>),
    Fill(Reader),
}

// === impl Wanted ===

impl Wanted {
    /// The first byte that is wanted, if that is known.
    fn from(self) -> Option<u64> {
        match self {
            Wanted::Head | Wanted::Whole => Some(0),
            Wanted::Range(RangeSpec::From(start) | RangeSpec::FromTo(start, _)) => Some(start),
            Wanted::Range(RangeSpec::Suffix(_)) => None,
        }
    }
}

// === impl Cache ===

impl Cache {
    pub(super) async fn find_blob(
        self: &Arc<Self>,
        client: &Client,
        access: &Access,
        digest: &Digest,
        wanted: Wanted,
    ) -> Result<BlobAnswer, CacheError> {
        let repository = access.repository();
        let mut linked = self.linked(access, digest).await?.is_some();
        if linked
            && wanted != Wanted::Head
            && client
                .address
                .is_some_and(|address| self.store.redirects(address))
            && let Some(url) = self.store.elsewhere(digest).await
        {
            return Ok(BlobAnswer::elsewhere(*digest, url));
        }
        if self.store.disk.stat(digest).is_some() {
            if !linked {
                self.prove(access, digest).await?;
                linked = true;
            }
            match self.store.disk.open_blob(digest).await {
                Ok(Some(file)) => return Ok(BlobAnswer::stored(*digest, file)),
                // Gone or damaged since: fetched anew.
                Ok(None) => {}
                Err(error) if self.offline => return Err(error.into()),
                Err(error) => tracing::warn!(%digest, %error, "cannot read a blob"),
            }
        }
        if wanted == Wanted::Head {
            return self.head(access, digest, linked).await;
        }
        let missing = CacheError::Offline { listing: false };
        // What the upstream has said yes to may need nothing of it: it runs already, or is near.
        let near = linked && (self.store.is_shared() || self.fills.is_running(digest));
        let upstream = if near {
            access.upstream(missing)
        } else {
            access.ask(missing)
        };
        let source: Arc<dyn Source> = match upstream {
            Ok(upstream) => Arc::new(RepositorySource::new(
                Arc::clone(upstream),
                repository.clone(),
                *digest,
            )),
            Err(CacheError::Offline { .. }) if near => {
                let shared = self.store.shared.clone();
                Arc::new(Offline::new(repository, shared, *digest))
            }
            Err(error) => return Err(error),
        };
        if !linked {
            self.recently_missing(repository, digest)?;
        }
        let (mut joined, outcome) = loop {
            match self
                .fills
                .join_or_start(digest, &source, linked, wanted.from())?
            {
                Join::Started(joined) => break (joined, Outcome::Miss),
                Join::Joined(joined) => break (joined, Outcome::Collapsed),
                Join::ProveFirst => {
                    self.prove(access, digest).await?;
                    linked = true;
                }
            }
        };
        let beside = !linked && self.store.shared.is_some();
        let proving = beside.then(|| joined.proving());
        let opened = async {
            match wanted {
                // What a range means depends on the size.
                Wanted::Range(_) => joined.size().await.map(Some),
                Wanted::Head | Wanted::Whole => joined.opened().await,
            }
        };
        let opened = match proving {
            None => opened.await,
            Some(proving) => {
                let mut opened = pin!(opened);
                tokio::select! {
                    biased;
                    opened = &mut opened => opened,
                    proved = self.prove(access, digest) => {
                        proving.proved(proved?);
                        opened.await
                    }
                }
            }
        };
        let size = opened.map_err(|error| self.blob_failed(repository, digest, error.into()))?;
        // A download that runs says what the upstream said when it began, to whoever began it.
        let heard_now = outcome == Outcome::Miss || !access.is_private();
        if !linked && heard_now {
            self.store.add_link(repository, digest, None).await;
        }
        Ok(BlobAnswer {
            digest: *digest,
            size,
            outcome,
            content: Content::Fill(joined),
        })
    }

    /// Size of a blob that is not here.
    async fn head(
        self: &Arc<Self>,
        access: &Access,
        digest: &Digest,
        linked: bool,
    ) -> Result<BlobAnswer, CacheError> {
        let known = match linked.then(|| self.fills.size(digest)).flatten() {
            None if linked => self.store.fleets_size(digest).await,
            running => running,
        };
        let size = match known {
            Some(size) => Some(size),
            None => self.prove(access, digest).await?,
        };
        let outcome = Outcome::Passed;
        Ok(BlobAnswer {
            digest: *digest,
            size,
            outcome,
            content: Content::Nothing,
        })
    }

    pub(super) async fn find_for_peer(
        &self,
        digest: &Digest,
        wanted: Wanted,
    ) -> Option<BlobAnswer> {
        // A fill that ends in between has left a blob.
        for _ in 0..2 {
            if self.store.disk.stat(digest).is_some()
                && let Ok(Some(file)) = self.store.disk.open_blob(digest).await
            {
                return Some(BlobAnswer::stored(*digest, file));
            }
            if let Some(mut joined) = self.fills.follow(digest, wanted.from()) {
                let size = joined.size().await.ok()?;
                return Some(BlobAnswer {
                    digest: *digest,
                    size: Some(size),
                    outcome: Outcome::Hit,
                    content: Content::Fill(joined),
                });
            }
        }
        None
    }

    /// Has the upstream say that this repository has the digest, and notes the link. Gives the
    /// size, if it told it.
    async fn prove(
        self: &Arc<Self>,
        access: &Access,
        digest: &Digest,
    ) -> Result<Option<u64>, CacheError> {
        let repository = access.repository();
        let upstream = access.ask(CacheError::Offline { listing: false })?;
        self.recently_missing(repository, digest)?;
        let key = (repository.clone(), *digest);
        let probe = self.blob_probes.join(&key, || {
            let (cache, upstream) = (Arc::clone(self), Arc::clone(upstream));
            let (repository, digest) = key.clone();
            async move {
                let probe = upstream.probe_blob(&repository.name, &digest).await;
                let probe = probe.map_err(|error| {
                    let error = CacheError::from_upstream(error, Kind::Blob);
                    cache.blob_failed(&repository, &digest, error)
                })?;
                cache.store.add_link(&repository, &digest, None).await;
                Ok(probe.size)
            }
        });
        landed(probe.await.0)
    }

    /// Remembers what a failure means for those who come next.
    fn blob_failed(
        &self,
        repository: &Repository,
        digest: &Digest,
        error: CacheError,
    ) -> CacheError {
        self.recent
            .note(repository, &Reference::Digest(*digest), &error);
        error
    }

    fn recently_missing(&self, repository: &Repository, digest: &Digest) -> Result<(), CacheError> {
        let reference = Reference::Digest(*digest);
        if self.recent.is_missing(repository, &reference, Kind::Blob) {
            return Err(CacheError::BlobUnknown);
        }
        Ok(())
    }
}

// === impl BlobAnswer ===

impl BlobAnswer {
    fn stored(digest: Digest, file: FileRange) -> Self {
        let size = Some(file.len());
        BlobAnswer {
            digest,
            size,
            outcome: Outcome::Hit,
            content: Content::File(file),
        }
    }

    fn elsewhere(digest: Digest, url: Url) -> Self {
        BlobAnswer {
            digest,
            size: None,
            outcome: Outcome::Redirected,
            content: Content::Elsewhere(url),
        }
    }

    /// Where the client is to get it instead. Whoever has this URL can read the blob.
    #[must_use]
    pub fn location(&self) -> Option<&Url> {
        match &self.content {
            Content::Elsewhere(url) => Some(url),
            _ => None,
        }
    }

    /// The body of a range that lies within the size.
    #[must_use]
    pub fn read(self, range: Range<u64>) -> Pieces {
        match self.content {
            Content::File(file) => Pieces::File(Some(file.slice(range))),
            Content::Fill(joined) => Pieces::Fill(joined.read(range)),
            Content::Elsewhere(_) | Content::Nothing => Pieces::File(None),
        }
    }

    /// The whole body, however long it turns out to be.
    #[must_use]
    pub fn read_all(self) -> Pieces {
        let end = self.size.unwrap_or(u64::MAX);
        self.read(0..end)
    }
}

// === impl Content ===

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::File(file) => f.debug_tuple("File").field(file).finish(),
            Content::Fill(joined) => f.debug_tuple("Fill").field(joined).finish(),
            Content::Elsewhere(url) => f.debug_tuple("Elsewhere").field(&SafeUrl(url)).finish(),
            Content::Nothing => f.write_str("Nothing"),
        }
    }
}

// === impl Pieces ===

impl Pieces {
    /// The next piece, readable now; `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// The body must then end short of its length, with a FIN, so that clients resume.
    pub async fn next(&mut self) -> Option<Result<FileRange, CacheError>> {
        match self {
            Pieces::File(file) => file.take().filter(|file| !file.is_empty()).map(Ok),
            Pieces::Fill(reader) => reader.next().await.map(|piece| piece.map_err(Into::into)),
        }
    }
}
