//! The store that replicas share: Azure Blob Storage, S3 or Google Cloud Storage.
//!
//! Replicas agree on nothing but what lies here, and change what others may change only by
//! compare-and-swap: an object's version (its `ETag`) must still be the one that was read.
//!
//! A failing store never fails a pull. Every call is bounded in time, and after three failures in a
//! row nobody asks for five seconds: [`SharedError::Down`] costs nothing. Then one call finds out
//! for all whether it is back.

mod config;
mod connect;
#[cfg(test)]
pub(crate) mod fake;
mod hosts;
mod keys;
mod recorded;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{
    Error as ObjectError, GetOptions, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMode, PutPayload, UpdateVersion,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use url::Url;

pub use config::{
    Cloud, Config, Credential, InvalidLocation, Location, Peers, SHORTEST_PRUNE, Via,
};
pub use connect::{ConnectError, open};
pub use hosts::Host;
pub use keys::{Name, Tree};

use super::files::{lock, unix_now};
use super::used::Used;
use crate::oci::Digest;
use keys::{Keys, digest_of};

/// A look-up in the path of a pull: all tries together.
const LOOK: Duration = Duration::from_secs(3);
/// A response header of a body, and a write of something small.
const HEADER: Duration = Duration::from_secs(10);
/// Silence inside a body.
const IDLE: Duration = Duration::from_secs(30);
/// One part of an upload: 8 MiB in a minute is a store that does not get on.
const PART_TIME: Duration = Duration::from_secs(60);
/// In bytes.
const PART: u64 = 8 * 1024 * 1024;
/// Parts of one blob on their way at once; each takes [`PART`] of memory.
const PARTS: usize = 4;
/// A small object in memory, in bytes: a manifest is the largest, the rest is far below.
const SMALL: u64 = 8 * 1024 * 1024;
/// Bodies open at once.
const BODIES: usize = 64;
/// Failures in a row after which nobody asks.
const FAILURES: u32 = 3;
const DOWN: Duration = Duration::from_secs(5);
/// Lost races after which a compare-and-swap gives up; each means that another replica got on.
const RACES: usize = 16;

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

/// A state of a small object: what a change must still find there. On S3 the same bytes are the
/// same state, so whoever wants a change to be seen must change the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(UpdateVersion);

/// A small object as it was read.
#[derive(Clone, Debug)]
pub struct Document {
    pub bytes: Bytes,
    pub version: Version,
}

/// An object in a listing.
#[derive(Clone, Debug)]
pub struct Listed {
    path: Path,
    /// In bytes.
    pub size: u64,
    /// Unix seconds by the store's clock.
    pub modified: i64,
    pub version: Version,
}

/// A blob, or a part of it, on its way.
pub struct Body {
    /// What is coming, in bytes from the blob's start.
    pub range: Range<u64>,
    /// Of the whole blob, in bytes.
    pub total: u64,
    stream: BoxStream<'static, object_store::Result<Bytes>>,
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

// === impl Shared: small objects ===

impl Shared {
    /// A small object; None when there is none.
    pub async fn get(&self, name: Name<'_>) -> Result<Option<Document>, SharedError> {
        let path = self.keys.small(name);
        self.get_small(&path, LOOK).await
    }

    async fn get_small(
        &self,
        path: &Path,
        within: Duration,
    ) -> Result<Option<Document>, SharedError> {
        let read = async {
            let found = self.objects.get(path).await?;
            let version = Version(UpdateVersion {
                e_tag: found.meta.e_tag.clone(),
                version: found.meta.version.clone(),
            });
            if found.meta.size > SMALL {
                return Err(too_large(path));
            }
            let bytes = found.bytes().await?;
            Ok(Document { bytes, version })
        };
        absent(self.ask(|| format!("read {path}"), within, read).await)
    }

    /// Makes a small object; None when there is one already.
    pub async fn create(
        &self,
        name: Name<'_>,
        bytes: Bytes,
    ) -> Result<Option<Version>, SharedError> {
        let path = self.keys.small(name);
        self.put(&path, bytes, PutMode::Create).await
    }

    /// Puts `bytes` in the place of the state `version`; None when somebody else has changed or
    /// deleted it since.
    pub async fn replace(
        &self,
        name: Name<'_>,
        version: &Version,
        bytes: Bytes,
    ) -> Result<Option<Version>, SharedError> {
        let path = self.keys.small(name);
        let mode = PutMode::Update(version.0.clone());
        self.put(&path, bytes, mode).await
    }

    /// Puts `bytes` whatever was there: only for what no other replica writes.
    pub async fn overwrite(&self, name: Name<'_>, bytes: Bytes) -> Result<(), SharedError> {
        let path = self.keys.small(name);
        self.put(&path, bytes, PutMode::Overwrite).await.map(drop)
    }

    /// Reads, changes and writes until no other replica comes between. `change` gets what is
    /// there and gives what should be there; None leaves it as it is. Gives what is there then.
    pub async fn update(
        &self,
        name: Name<'_>,
        mut change: impl FnMut(Option<&Bytes>) -> Option<Bytes>,
    ) -> Result<Option<Bytes>, SharedError> {
        for _ in 0..RACES {
            let before = self.get(name).await?;
            let Some(bytes) = change(before.as_ref().map(|document| &document.bytes)) else {
                return Ok(before.map(|document| document.bytes));
            };
            let written = match &before {
                None => self.create(name, bytes.clone()).await?,
                Some(document) => self.replace(name, &document.version, bytes.clone()).await?,
            };
            if written.is_some() {
                return Ok(Some(bytes));
            }
        }
        let what = format!("change {}", self.keys.small(name));
        Err(SharedError::Contended { what })
    }

    /// Takes a small object away; one that is not there is no error.
    pub async fn delete(&self, name: Name<'_>) -> Result<(), SharedError> {
        let path = self.keys.small(name);
        self.remove(&path).await
    }

    async fn put(
        &self,
        path: &Path,
        bytes: Bytes,
        mode: PutMode,
    ) -> Result<Option<Version>, SharedError> {
        let put = self
            .objects
            .put_opts(path, PutPayload::from_bytes(bytes), mode.into());
        let put = self.ask(|| format!("write {path}"), HEADER, put).await;
        match put {
            Ok(done) => Ok(Some(Version(UpdateVersion {
                e_tag: done.e_tag,
                version: done.version,
            }))),
            Err(error) if error.is_lost_race() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn remove(&self, path: &Path) -> Result<(), SharedError> {
        let delete = self.objects.delete(path);
        absent(self.ask(|| format!("delete {path}"), HEADER, delete).await).map(drop)
    }
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
        if size <= PART {
            let bytes = read_part(file, 0..size).await?;
            return self.put(&path, bytes, PutMode::Create).await.map(drop);
        }
        let what = || format!("write {path}");
        let start = self.objects.put_multipart(&path);
        let mut upload = self.ask(what, HEADER, start).await?;
        let uploaded = self.put_parts(upload.as_mut(), file, size, &what).await;
        let result = match uploaded {
            Ok(()) => self.ask(what, PART_TIME, upload.complete()).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            // Best effort: the store forgets them by itself, later.
            let _ = tokio::time::timeout(HEADER, upload.abort()).await;
            // Another replica's upload may have ended between our first part and our last step.
            return match self.stat(digest).await {
                Ok(Some(there)) if there == size => Ok(()),
                _ => Err(error),
            };
        }
        Ok(())
    }

    async fn put_parts(
        &self,
        upload: &mut dyn MultipartUpload,
        file: &Arc<File>,
        size: u64,
        what: &impl Fn() -> String,
    ) -> Result<(), SharedError> {
        let mut running = JoinSet::new();
        let mut offset = 0;
        loop {
            while offset < size && running.len() < PARTS {
                let end = size.min(offset + PART);
                let bytes = read_part(file, offset..end).await?;
                let part = upload.put_part(PutPayload::from_bytes(bytes));
                running.spawn(tokio::time::timeout(PART_TIME, part));
                offset = end;
            }
            let result = match running.join_next().await {
                None => return Ok(()),
                Some(Ok(Ok(Ok(())))) => Ok(()),
                Some(Ok(Ok(Err(source)))) => Err(SharedError::of(what(), source)),
                Some(Ok(Err(_)) | Err(_)) => Err(SharedError::TimedOut(what())),
            };
            self.note(result.as_ref().err());
            result?;
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

// === impl Shared: lists ===

impl Shared {
    /// Everything below one tree, in no order, as a stream: there may be millions. Ends with the
    /// first error.
    pub fn list(self: &Arc<Self>, tree: Tree) -> BoxStream<'static, Result<Listed, SharedError>> {
        let path = self.keys.tree(tree);
        let objects = self.objects.list(Some(&path));
        let state = Some((Arc::clone(self), objects));
        let next = move |state: Option<(Arc<Self>, BoxStream<'static, _>)>| {
            let what = format!("list {path}");
            async move {
                let (shared, mut objects) = state?;
                let next = shared
                    .ask(|| what.clone(), HEADER, objects.try_next())
                    .await;
                match next.transpose()? {
                    Ok(meta) => Some((Ok(Listed::of(meta)), Some((shared, objects)))),
                    Err(error) => Some((Err(error), None)),
                }
            }
        };
        stream::unfold(state, next).boxed()
    }

    /// Reads something listed; None when it has gone since.
    pub async fn get_listed(&self, listed: &Listed) -> Result<Option<Document>, SharedError> {
        self.get_small(&listed.path, HEADER).await
    }

    /// Takes something listed away.
    pub async fn delete_listed(&self, listed: &Listed) -> Result<(), SharedError> {
        self.remove(&listed.path).await
    }
}

/// Reads from the local disk, off the async threads.
async fn read_part(file: &Arc<File>, range: Range<u64>) -> Result<Bytes, SharedError> {
    let file = Arc::clone(file);
    let read = move || {
        // Parts are small.
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or_default()];
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(Bytes::from(bytes))
    };
    let read = tokio::task::spawn_blocking(read).await;
    read.unwrap_or_else(|error| Err(error.into()))
        .map_err(|source| SharedError::Local {
            what: "what is to be uploaded".into(),
            source: Arc::new(source),
        })
}

fn too_large(path: &Path) -> ObjectError {
    ObjectError::Generic {
        store: "shared",
        source: format!("{path} is larger than anything of its kind").into(),
    }
}

fn absent<T>(result: Result<T, SharedError>) -> Result<Option<T>, SharedError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

// === impl Listed ===

impl Listed {
    fn of(meta: ObjectMeta) -> Self {
        Listed {
            path: meta.location,
            size: meta.size,
            modified: meta.last_modified.timestamp(),
            version: Version(UpdateVersion {
                e_tag: meta.e_tag.map(quoted),
                version: meta.version,
            }),
        }
    }

    /// The digest that a blob, a link, a led digest or a claim is named after.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        digest_of(&self.path)
    }

    #[must_use]
    pub fn path(&self) -> &str {
        self.path.as_ref()
    }

    /// The last part of its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.filename().unwrap_or_default()
    }

    /// The name of the directory that it is in: `_tags`, `_links`, `_led` and so on.
    #[must_use]
    pub fn directory(&self) -> &str {
        self.path.as_ref().rsplit('/').nth(1).unwrap_or_default()
    }
}

/// Azure leaves the quotes away in its lists.
fn quoted(tag: String) -> String {
    if tag.contains('"') {
        tag
    } else {
        format!("\"{tag}\"")
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
