//! Small objects: made only where there is none, changed only where nobody else has changed them.

use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error as ObjectError, ObjectStoreExt as _, PutMode, PutPayload, UpdateVersion};

use super::{HEADER, LOOK, Name, Shared, SharedError, absent};

/// A small object in memory, in bytes: a manifest is the largest, the rest is far below.
const SMALL: u64 = 8 * 1024 * 1024;
/// Lost races after which a compare-and-swap gives up; each means that another replica got on.
pub(super) const RACES: usize = 16;

/// A state of a small object: what a change must still find there. On S3 the same bytes are the
/// same state, so whoever wants a change to be seen must change the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(pub(super) UpdateVersion);

/// A small object as it was read.
#[derive(Clone, Debug)]
pub struct Document {
    pub bytes: Bytes,
    pub version: Version,
}

// === impl Shared: small objects ===

impl Shared {
    /// A small object; None when there is none.
    pub async fn get(&self, name: Name<'_>) -> Result<Option<Document>, SharedError> {
        let path = self.keys.small(name);
        self.get_small(&path, LOOK).await
    }

    pub(super) async fn get_small(
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

    pub(super) async fn put(
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

    pub(super) async fn remove(&self, path: &Path) -> Result<(), SharedError> {
        let delete = self.objects.delete(path);
        absent(self.ask(|| format!("delete {path}"), HEADER, delete).await).map(drop)
    }
}

fn too_large(path: &Path) -> ObjectError {
    ObjectError::Generic {
        store: "shared",
        source: format!("{path} is larger than anything of its kind").into(),
    }
}
