//! Blobs: read in ranges, uploaded in parts, set aside when they do not hash. Nothing that comes out
//! of here is verified.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use futures_util::stream::BoxStream;
use object_store::{GetOptions, ObjectStoreExt as _, PutMode};
use tokio::sync::OwnedSemaphorePermit;
use url::Url;

use super::parts::{PART, read};
use super::{HEADER, LOOK, Shared, SharedError, absent};
use crate::oci::Digest;
use crate::store::files::unix_now;

/// Silence inside a body.
const IDLE: Duration = Duration::from_secs(30);
/// Parts of one blob on their way at once.
const PARTS: usize = 4;

/// A blob, or a part of it, on its way.
pub struct Body {
    /// What is coming, in bytes from the blob's start.
    pub range: Range<u64>,
    /// Of the whole blob, in bytes.
    pub total: u64,
    stream: BoxStream<'static, object_store::Result<Bytes>>,
}

// === impl Shared: blobs ===

impl Shared {
    /// The size of a blob in bytes; None when it is not there.
    pub async fn stat(&self, digest: &Digest) -> Result<Option<u64>, SharedError> {
        let path = self.keys.blob(digest);
        let head = self.objects.head(&path);
        let found = absent(self.ask(|| format!("look up {path}"), LOOK, head).await)?;
        Ok(found.map(|meta| meta.size))
    }

    /// Opens a blob, or a part of it; None when it is not there. What comes out is unverified.
    ///
    /// # Errors
    ///
    /// Also when the range starts past the end of the blob.
    pub async fn open(
        &self,
        digest: &Digest,
        range: Option<Range<u64>>,
    ) -> Result<Option<Body>, SharedError> {
        let path = self.keys.blob(digest);
        let options = GetOptions {
            range: range.map(Into::into),
            ..GetOptions::default()
        };
        let get = self.objects.get_opts(&path, options);
        let found = absent(self.ask(|| format!("read {path}"), HEADER, get).await)?;
        Ok(found.map(|found| Body {
            range: found.range.clone(),
            total: found.meta.size,
            stream: found.into_stream(),
        }))
    }

    /// The content of a small blob such as a manifest, unverified; None when it is not there or
    /// larger than 8 MiB.
    pub async fn read(&self, digest: &Digest) -> Result<Option<Bytes>, SharedError> {
        let path = self.keys.blob(digest);
        let document = self.get_small(&path, LOOK).await?;
        Ok(document.map(|document| document.bytes))
    }

    /// Waits for the right to have one more body open.
    pub async fn permit(&self) -> OwnedSemaphorePermit {
        let bodies = Arc::clone(&self.bodies);
        bodies
            .acquire_owned()
            .await
            .expect("nobody closes this semaphore")
    }

    /// The same without waiting.
    #[must_use]
    pub fn try_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.bodies).try_acquire_owned().ok()
    }

    /// Keeps a small blob whose bytes are known to hash. One that is there stays.
    pub async fn put_bytes(&self, digest: &Digest, bytes: Bytes) -> Result<(), SharedError> {
        let path = self.keys.blob(digest);
        self.put(&path, bytes, PutMode::Create).await.map(drop)
    }

    /// Uploads `size` bytes of `file`, which are known to hash to `digest`, in parts. Two replicas
    /// that upload the same do no harm: both write the same bytes, and who comes second is told
    /// that it is there.
    ///
    /// Cancel-safe: without its last step nothing is visible, and the store forgets the parts.
    pub async fn put_blob(
        &self,
        digest: &Digest,
        file: &Arc<File>,
        size: u64,
    ) -> Result<(), SharedError> {
        let path = self.keys.blob(digest);
        if size <= PART as u64 {
            let bytes = read(file, 0..size, Vec::new()).await?;
            return self
                .put(&path, bytes.into(), PutMode::Create)
                .await
                .map(drop);
        }
        let mut parts = self.begin(digest, PARTS).await?;
        let uploaded = async {
            let mut start = 0;
            while start < size {
                let end = size.min(start + PART as u64);
                parts.read(file, start..end).await?;
                parts.send().await?;
                start = end;
            }
            parts.complete().await
        };
        let Err(error) = uploaded.await else {
            return Ok(());
        };
        parts.abort().await;
        // Another replica's upload may have ended between our first part and our last step.
        match self.stat(digest).await {
            Ok(Some(there)) if there == size => Ok(()),
            _ => Err(error),
        }
    }

    /// Where a blob is, or would be.
    #[must_use]
    pub fn name_of(&self, digest: &Digest) -> String {
        self.keys.blob(digest).into()
    }

    pub async fn delete_blob(&self, digest: &Digest) -> Result<(), SharedError> {
        let path = self.keys.blob(digest);
        self.remove(&path).await
    }

    /// Sets a blob aside that does not hash, so that nobody reads it and somebody may look why.
    pub async fn quarantine(&self, digest: &Digest) -> Result<(), SharedError> {
        let path = self.keys.blob(digest);
        let aside = self.keys.quarantine(digest, unix_now());
        let copy = self.objects.copy(&path, &aside);
        // Taking it away matters more than keeping it.
        if let Err(error) = self.ask(|| format!("copy {path}"), HEADER, copy).await {
            tracing::warn!(%digest, %error, "cannot keep a wrong object for inspection");
        }
        self.remove(&path).await
    }

    /// A URL by which anybody may read the blob for `ttl`; None where the credential cannot sign.
    /// It is a secret.
    pub async fn sign(&self, digest: &Digest, ttl: Duration) -> Result<Option<Url>, SharedError> {
        let Some(signer) = &self.signer else {
            return Ok(None);
        };
        let path = self.keys.blob(digest);
        let sign = signer.signed_url(http::Method::GET, &path, ttl);
        let url = self
            .ask(|| format!("sign a URL of {path}"), LOOK, sign)
            .await?;
        Ok(Some(url))
    }
}

// === impl Body ===

impl Body {
    /// The next bytes; None at the end of the range. Silence of 30 s is an error.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, SharedError> {
        match tokio::time::timeout(IDLE, self.stream.try_next()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(source)) => Err(SharedError::of("read a blob".into(), source)),
            Err(_) => Err(SharedError::TimedOut("send a blob".into())),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({:?} of {})", self.range, self.total)
    }
}
