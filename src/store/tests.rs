//! The store as a whole, on a real directory.

mod crash;
mod disk;
mod evict;
mod full;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;

use super::files::Faults;
use super::layout::Layout;
use super::*;
use crate::oci::{Repository, RepositoryName};

/// A directory for one store, and the metrics of all that open it.
pub(super) struct Dir {
    dir: TempDir,
    metrics: Arc<Metrics>,
}

impl Dir {
    pub(super) fn new() -> Self {
        Dir {
            dir: tempfile::tempdir().unwrap(),
            metrics: Arc::default(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn layout(&self) -> Layout {
        let layout = Layout::new(self.path());
        // Normally made when the disk is opened.
        std::fs::create_dir_all(layout.spool()).unwrap();
        std::fs::create_dir_all(layout.pins()).unwrap();
        layout
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(super) fn faults(&self) -> Arc<Faults> {
        Arc::new(Faults::new(Arc::clone(&self.metrics)))
    }

    pub(super) fn links(&self) -> Links {
        Links::new(self.layout(), self.faults(), self.pins(), Arc::default())
    }

    pub(super) fn tags(&self) -> Tags {
        Tags::new(self.layout(), self.faults(), self.pins(), Arc::default())
    }

    pub(super) fn pins(&self) -> Arc<Pins> {
        Arc::new(Pins::load(&self.layout(), &self.faults()).unwrap())
    }

    pub(super) fn open(&self) -> Arc<Store> {
        self.open_sized(1 << 40)
    }

    /// A store that was dropped a moment ago may be locked for another: programs that other tests
    /// start have its file until they are loaded.
    pub(super) fn open_sized(&self, max_size: u64) -> Arc<Store> {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            match open(self.path(), max_size, &self.metrics) {
                Err(StoreError::Locked(_)) if std::time::Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                opened => return opened.unwrap(),
            }
        }
    }
}

pub(super) fn open(
    path: &Path,
    max_size: u64,
    metrics: &Arc<Metrics>,
) -> Result<Arc<Store>, StoreError> {
    let config = Config {
        path: path.into(),
        max_size: Some(max_size),
        ..Config::default()
    };
    Store::open(&config, None, Arc::clone(metrics))
}

/// `docker.io/library/a`
pub(super) fn repository(text: &str) -> Repository {
    let (registry, name) = text.split_once('/').unwrap();
    let name: RepositoryName = name.parse().unwrap();
    Repository::new(registry.parse().unwrap(), name).unwrap()
}

/// Different bytes for every `seed`.
fn content(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// Commits `bytes` by way of a spool, as a fill does.
async fn commit(disk: &Arc<Disk>, bytes: &Bytes) -> Digest {
    let digest = Digest::sha256(bytes);
    let verified = verified(disk, bytes).await;
    disk.commit(verified).await.unwrap();
    digest
}

async fn verified(disk: &Arc<Disk>, bytes: &Bytes) -> Verified {
    let digest = Digest::sha256(bytes);
    let (spool, _) = disk.spool(&digest).await.unwrap();
    spool.note_total(bytes.len() as u64);
    spool.write(0, std::slice::from_ref(bytes)).unwrap();
    spool.flush().unwrap();
    let mut verifier = Verifier::new(&digest);
    verifier.advance(&spool, bytes.len() as u64).unwrap();
    spool.verify(&verifier).unwrap()
}

async fn put(disk: &Arc<Disk>, bytes: &Bytes) -> Digest {
    let digest = Digest::sha256(bytes);
    disk.put(&digest, bytes.clone()).await.unwrap();
    digest
}

/// The bytes that a reader of the blob would get.
async fn bytes_of(disk: &Arc<Disk>, digest: &Digest) -> Option<Bytes> {
    use std::os::unix::fs::FileExt as _;
    let found = disk.open_blob(digest).await.unwrap()?;
    let (file, range) = (found.file(), found.range());
    let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
    file.read_exact_at(&mut bytes, range.start).unwrap();
    Some(bytes.into())
}

fn names_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
