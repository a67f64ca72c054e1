use std::fmt;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::tests::replica;
use super::*;
use crate::fill::{Config, Fills, Join, Opened, Source, SourceError};
use crate::store::{self, Store};
use crate::telemetry::Metrics;

const MIB: usize = 1024 * 1024;

/// Has all of it, at once.
struct Whole {
    content: Bytes,
    permits: Arc<Semaphore>,
}

impl fmt::Debug for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Whole")
    }
}

#[async_trait]
impl Source for Whole {
    fn name(&self) -> &'static str {
        "whole"
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.permits).acquire_owned().await.unwrap()
    }

    fn try_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }

    async fn open(&self, range: Option<Range<u64>>) -> Result<Opened, SourceError> {
        let total = self.content.len() as u64;
        let range = range.map_or(0..total, |range| range.start..range.end.min(total));
        let part = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        let mut part = self.content.slice(part);
        let mut chunks = Vec::new();
        while !part.is_empty() {
            chunks.push(Ok(part.split_to(part.len().min(MIB))));
        }
        Ok(Opened {
            range: Some(range),
            total: Some(total),
            body: stream::iter(chunks).boxed(),
        })
    }
}

/// How long a pull takes that slides by in front of a store which takes `wait` for each write, and
/// whether the store has it in the end.
async fn pull(size: usize, wait: Duration) -> (Duration, bool) {
    let config = ThrottleConfig {
        wait_put_per_call: wait,
        ..ThrottleConfig::default()
    };
    let objects: Arc<dyn ObjectStore> = Arc::new(ThrottledStore::new(InMemory::new(), config));
    let mut nearby = replica(&objects, "a");
    nearby.fleet = None;
    let dir = tempfile::tempdir().unwrap();
    let config = store::Config {
        path: dir.path().to_owned(),
        max_size: Some(16 * MIB as u64),
        ..store::Config::default()
    };
    let metrics = Arc::new(Metrics::default());
    let store = Store::open(&config, None, Arc::clone(&metrics)).unwrap();
    let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
    let near = Some(Arc::new(nearby.clone()) as _);
    let disk = Arc::clone(&store.disk);
    let fills = Fills::new(
        Config::default(),
        disk,
        near,
        metrics,
        tracker.clone(),
        stop,
    );

    let content: Vec<u8> = (0..size).map(|at| at.to_le_bytes()[at % 3]).collect();
    let digest = Digest::sha256(&content);
    let source: Arc<dyn Source> = Arc::new(Whole {
        content: content.clone().into(),
        permits: Arc::new(Semaphore::new(4)),
    });
    let started = Instant::now();
    let joined = fills.join_or_start(&digest, &source, true, Some(0));
    let Ok(Join::Started(mut joined)) = joined else {
        panic!("nothing was running");
    };
    joined.opened().await.unwrap();
    let (mut reader, mut got) = (joined.read(0..u64::MAX), 0);
    while let Some(piece) = reader.next().await {
        got += piece.unwrap().len();
    }
    let took = started.elapsed();
    assert_eq!(got, size as u64);
    drop(reader);
    for tracker in [&tracker, &nearby.tracker] {
        tracker.close();
        tracker.wait().await;
    }
    let name = nearby.shared.name_of(&digest);
    let kept = objects.get(&name.as_str().into()).await;
    if let Ok(kept) = kept {
        assert!(kept.bytes().await.unwrap() == content);
        return (took, true);
    }
    (took, false)
}

#[tokio::test(start_paused = true)]
async fn what_fits_into_the_window_gets_there() {
    let (_, kept) = pull(40 * MIB, Duration::ZERO).await;
    assert!(kept);
    let (took, kept) = pull(40 * MIB, Duration::from_secs(10)).await;
    assert!(kept && took < Duration::from_secs(1), "{took:?}");
}

/// Not even while a part is under way that takes as long as a part may.
#[tokio::test(start_paused = true)]
async fn no_pull_waits_for_a_slow_store() {
    let (took, kept) = pull(120 * MIB, Duration::from_secs(50)).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(!kept, "nothing was slow");
}
