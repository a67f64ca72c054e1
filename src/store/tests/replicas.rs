//! Several stores on one shared store that can be made to fail.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::signer::Signer;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result,
};
use tokio::task::JoinSet;
use url::Url;

use super::*;
use std::sync::Mutex;

/// How the cloud is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Weather {
    Fine,
    /// Every request fails at once.
    Down,
    /// Every request takes so long.
    Slow(Duration),
}

/// An object store in memory, as all replicas see it.
#[derive(Debug)]
pub(in crate::store) struct Cloud {
    objects: InMemory,
    weather: Mutex<Weather>,
    requests: AtomicUsize,
    /// Of blobs.
    uploads: AtomicUsize,
}

/// One process.
pub(in crate::store) struct Replica {
    pub(in crate::store) store: Arc<Store>,
    pub(in crate::store) shared: Arc<Shared>,
    dir: Dir,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

// === impl Cloud ===

impl Cloud {
    pub(in crate::store) fn new() -> Arc<Self> {
        Arc::new(Cloud {
            objects: InMemory::new(),
            weather: Mutex::new(Weather::Fine),
            requests: AtomicUsize::new(0),
            uploads: AtomicUsize::new(0),
        })
    }

    pub(in crate::store) fn set(&self, weather: Weather) {
        *self.weather.lock().unwrap() = weather;
    }

    pub(in crate::store) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    pub(in crate::store) fn uploads(&self) -> usize {
        self.uploads.load(Ordering::Relaxed)
    }

    pub(in crate::store) fn shared(self: &Arc<Self>) -> Arc<Shared> {
        let objects = Arc::clone(self);
        let signer = Arc::clone(self);
        Arc::new(Shared::new(objects, Some(signer), ""))
    }

    /// The names of everything that contains `fragment`.
    pub(in crate::store) async fn names(&self, fragment: &str) -> Vec<String> {
        let listed = self.objects.list(None).map(|meta| meta.unwrap());
        let names = listed.map(|meta| meta.location.to_string());
        let names: Vec<String> = names.collect().await;
        names
            .into_iter()
            .filter(|name| name.contains(fragment))
            .collect()
    }

    pub(in crate::store) async fn write(&self, name: &str, bytes: &Bytes) {
        let payload = PutPayload::from_bytes(bytes.clone());
        self.objects.put(&Key::from(name), payload).await.unwrap();
    }

    pub(in crate::store) async fn read(&self, name: &str) -> Bytes {
        let found = self.objects.get(&Key::from(name)).await.unwrap();
        found.bytes().await.unwrap()
    }

    async fn pass(&self) -> Result<()> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let weather = *self.weather.lock().unwrap();
        match weather {
            Weather::Fine => Ok(()),
            Weather::Slow(time) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            Weather::Down => Err(Error::Generic {
                store: "cloud",
                source: "down".into(),
            }),
        }
    }
}

impl fmt::Display for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cloud")
    }
}

#[async_trait]
impl ObjectStore for Cloud {
    async fn put_opts(&self, to: &Key, bytes: PutPayload, o: PutOptions) -> Result<PutResult> {
        self.pass().await?;
        if to.as_ref().contains("/blobs/") {
            self.uploads.fetch_add(1, Ordering::Relaxed);
        }
        self.objects.put_opts(to, bytes, o).await
    }

    async fn put_multipart_opts(
        &self,
        to: &Key,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.pass().await?;
        self.uploads.fetch_add(1, Ordering::Relaxed);
        self.objects.put_multipart_opts(to, options).await
    }

    async fn get_opts(&self, from: &Key, options: GetOptions) -> Result<GetResult> {
        self.pass().await?;
        self.objects.get_opts(from, options).await
    }

    fn delete_stream(
        &self,
        names: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        self.objects.delete_stream(names)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
        self.pass().await?;
        self.objects.copy_opts(from, to, options).await
    }
}

#[async_trait]
impl Signer for Cloud {
    async fn signed_url(&self, _: http::Method, path: &Key, ttl: Duration) -> Result<Url> {
        self.pass().await?;
        let url = format!(
            "https://cloud.example/{path}?sig=canary&ttl={}",
            ttl.as_secs()
        );
        Ok(url.parse().unwrap())
    }
}

// === impl Replica ===

impl Replica {
    pub(in crate::store) fn start(cloud: &Arc<Cloud>) -> Self {
        Replica::start_in(Dir::new(), 1 << 40, cloud)
    }

    pub(in crate::store) fn start_in(dir: Dir, max_size: u64, cloud: &Arc<Cloud>) -> Self {
        let shared = cloud.shared();
        let store = dir.open_shared(max_size, Arc::clone(&shared));
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn({
            let (store, stop) = (Arc::clone(&store), stop.clone());
            async move { store.run(stop).await }
        });
        Replica {
            store,
            shared,
            dir,
            stop,
            tasks,
        }
    }

    pub(in crate::store) fn metrics(&self) -> &Metrics {
        self.dir.metrics()
    }

    pub(in crate::store) fn layout(&self) -> Layout {
        self.dir.layout()
    }

    pub(in crate::store) fn waiting(&self) -> i64 {
        self.metrics().shared_waiting.get()
    }

    /// Everything that waited has arrived.
    pub(in crate::store) async fn settled(&self) {
        self.until(|| self.waiting() == 0).await;
    }

    pub(in crate::store) async fn until(&self, arrived: impl Fn() -> bool) {
        let wait = async {
            while !arrived() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(120), wait).await;
        waited.expect("it never came to that");
    }

    /// In good order.
    pub(in crate::store) async fn stop(mut self) -> Dir {
        self.stop.cancel();
        self.tasks.join_next().await.unwrap().unwrap();
        self.store.close().await.unwrap();
        self.dir
    }

    /// As a kill does: nothing is written any more.
    pub(in crate::store) async fn kill(mut self) -> Dir {
        self.tasks.shutdown().await;
        let Replica { store, dir, .. } = self;
        let store = Arc::into_inner(store).expect("nobody else has it");
        drop(store);
        dir
    }
}
