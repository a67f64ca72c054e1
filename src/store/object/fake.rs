//! A store in memory that fails, hangs and dates its objects as a test tells it to.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _, future, stream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result,
};

use crate::store::files::{lock, unix_now};

/// See the module. Share it with the [`super::Shared`] that is tested.
#[derive(Debug, Default)]
pub(crate) struct Fake {
    inner: InMemory,
    mood: Mutex<Mood>,
    asked: AtomicUsize,
    /// Seconds since it was changed, for some.
    ages: Mutex<HashMap<Path, i64>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    #[default]
    Fine,
    /// 503.
    Failing,
    /// 403.
    Refusing,
    /// No answer, ever.
    Hanging,
    /// Answers to reads of bodies fail; lists and writes are fine.
    Unreadable,
}

impl Fake {
    pub(crate) fn is(&self, mood: Mood) {
        *lock(&self.mood) = mood;
    }

    /// How often anything was asked of it.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// From now on the object was changed so long ago.
    pub(crate) fn age(&self, path: &str, seconds: i64) {
        lock(&self.ages).insert(Path::from(path), seconds);
    }

    /// Writes past whoever uses it.
    pub(crate) async fn put(&self, path: &str, text: &'static str) {
        let put = self.inner.put(&Path::from(path), text.into()).await;
        put.unwrap();
    }

    /// All names, in order.
    pub(crate) async fn names(&self) -> Vec<String> {
        let listed: Vec<ObjectMeta> = self.inner.list(None).try_collect().await.unwrap();
        let mut names: Vec<_> = listed
            .into_iter()
            .map(|meta| meta.location.to_string())
            .collect();
        names.sort();
        names
    }

    async fn judge(&self, reads: bool) -> Result<()> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mood = *lock(&self.mood);
        match mood {
            Mood::Fine => Ok(()),
            Mood::Unreadable if !reads => Ok(()),
            Mood::Failing | Mood::Unreadable => Err(Error::Generic {
                store: "fake",
                source: "503".into(),
            }),
            Mood::Refusing => Err(Error::PermissionDenied {
                path: "there".into(),
                source: "403".into(),
            }),
            Mood::Hanging => future::pending().await,
        }
    }

    fn dated(&self, mut meta: ObjectMeta) -> ObjectMeta {
        if let Some(age) = lock(&self.ages).get(&meta.location) {
            let age = Duration::from_secs(u64::try_from(*age).unwrap());
            meta.last_modified -= age;
        }
        meta
    }
}

/// Unix seconds before now.
pub(crate) fn ago(seconds: i64) -> i64 {
    unix_now() - seconds
}

impl fmt::Display for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

#[async_trait]
impl ObjectStore for Fake {
    async fn put_opts(&self, at: &Path, bytes: PutPayload, how: PutOptions) -> Result<PutResult> {
        self.judge(false).await?;
        lock(&self.ages).remove(at);
        self.inner.put_opts(at, bytes, how).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.judge(false).await?;
        self.inner.put_multipart_opts(at, how).await
    }

    async fn get_opts(&self, at: &Path, how: GetOptions) -> Result<GetResult> {
        self.judge(!how.head).await?;
        self.inner.get_opts(at, how).await
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.judge(true).await?;
        self.inner.get_ranges(at, ranges).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        match *lock(&self.mood) {
            Mood::Fine | Mood::Unreadable => self.inner.delete_stream(paths),
            Mood::Hanging => stream::pending().boxed(),
            Mood::Failing | Mood::Refusing => {
                let failed = Error::Generic {
                    store: "fake",
                    source: "503".into(),
                };
                stream::once(future::err(failed)).boxed()
            }
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match *lock(&self.mood) {
            Mood::Hanging => return stream::pending().boxed(),
            Mood::Failing | Mood::Refusing => {
                let failed = Error::Generic {
                    store: "fake",
                    source: "503".into(),
                };
                return stream::once(future::err(failed)).boxed();
            }
            Mood::Fine | Mood::Unreadable => {}
        }
        let listed = self.inner.list(prefix);
        let listed = future::FutureExt::now_or_never(listed.collect::<Vec<_>>());
        let listed = listed.expect("memory does not wait");
        let dated = listed.into_iter().map(|meta| meta.map(|m| self.dated(m)));
        stream::iter(dated.collect::<Vec<_>>()).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.judge(false).await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        self.judge(false).await?;
        self.inner.copy_opts(from, to, how).await
    }
}
