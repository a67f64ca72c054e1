//! A source in memory that behaves as badly as it is told to.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Duration, sleep};
use tokio_util::task::TaskTracker;

use super::Case;
use crate::fill::{
    FillError, Near, Nearest, Opened, Reader, Source, SourceError, SourceErrorKind, Vigil,
    message_cause,
};
use crate::oci::Digest;

/// How a source behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    Honest,
    /// Sends the whole blob whatever it is asked for.
    NoRanges,
    /// The same, and does not say how long it is.
    NoLength,
    /// Flips a bit.
    Corrupt,
    /// Lets two connections in, says "too many" to others.
    Throttling,
    /// Has no such blob.
    Gone,
}

#[derive(Debug)]
pub(super) struct Fake {
    name: String,
    manner: Manner,
    content: Bytes,
    /// Each body is cut after at most so many bytes, as long as cuts are left.
    cut_after: usize,
    cuts: AtomicU64,
    chunk: usize,
    latency: Duration,
    permits: Arc<Semaphore>,
    open: Arc<Semaphore>,
    /// Bytes sent, all bodies together.
    pub(super) sent: Arc<AtomicU64>,
    /// Times that it was told of its wrong bytes.
    pub(super) condemned: AtomicU64,
}

/// What came of reading along.
pub(super) type Passed = Result<Vec<u8>, FillError>;

/// Who has it near: one after the other, each for a time.
#[derive(Clone, Debug)]
pub(super) struct FakeNear {
    stops: Arc<Mutex<VecDeque<Stop>>>,
    latency: Duration,
    /// Vigils that were told of a commit.
    pub(super) committed: Arc<AtomicU64>,
    /// Vigils that are held, and how often the way turned.
    pub(super) held: Arc<AtomicU64>,
    pub(super) turns: Arc<AtomicU64>,
    /// What those got who read along while a fill slid by, and how long they take over a piece.
    passed: Arc<Mutex<Vec<Passed>>>,
    along: TaskTracker,
    pub(super) pace: Duration,
}

/// One answer.
#[derive(Debug)]
pub(super) struct Stop {
    /// None: the upstream.
    pub(super) source: Option<Arc<Fake>>,
    pub(super) outdated_after: Option<Duration>,
}

#[derive(Debug)]
struct FakeVigil {
    near: FakeNear,
    outdated_after: Option<Duration>,
    /// Knows by itself what comes next.
    tells: bool,
}

// === impl FakeNear ===

impl FakeNear {
    pub(super) fn new(stops: impl IntoIterator<Item = Stop>, case: &Case) -> Self {
        FakeNear {
            stops: Arc::new(Mutex::new(stops.into_iter().collect())),
            latency: Duration::from_millis(case.latency),
            committed: Arc::default(),
            held: Arc::default(),
            turns: Arc::default(),
            passed: Arc::default(),
            along: TaskTracker::new(),
            pace: Duration::from_millis(case.latency),
        }
    }

    /// What was passed on until now, when all of that has ended.
    pub(super) async fn passed(&self) -> Vec<Passed> {
        self.along.close();
        let ended = tokio::time::timeout(Duration::from_hours(1), self.along.wait());
        ended.await.expect("who reads along waits for ever");
        self.along.reopen();
        self.passed.lock().unwrap().clone()
    }

    async fn read_along(&self, mut reader: Reader) -> Passed {
        let mut bytes = Vec::new();
        while let Some(piece) = reader.next().await {
            super::read(&piece?, &mut bytes);
            sleep(self.pace).await;
        }
        Ok(bytes)
    }

    fn next(&self, failed: &[String]) -> Nearest {
        let turn = self.turns.fetch_add(1, Ordering::SeqCst);
        let mut stops = self.stops.lock().unwrap();
        let stop = loop {
            match stops.pop_front() {
                Some(stop) if (stop.source.as_ref()).is_some_and(|s| failed.contains(&s.name)) => {}
                stop => break stop,
            }
        };
        let vigil = stop.as_ref().map(|stop| {
            self.held.fetch_add(1, Ordering::SeqCst);
            let vigil = FakeVigil {
                near: self.clone(),
                outdated_after: stop.outdated_after,
                tells: turn % 2 == 1,
            };
            Arc::new(vigil) as Arc<dyn Vigil>
        });
        let source = stop.and_then(|stop| stop.source);
        Nearest {
            source: source.map(|source| source as Arc<dyn Source>),
            vigil,
        }
    }
}

#[async_trait]
impl Near for FakeNear {
    async fn locate(&self, _: &Digest, _: Option<u64>, failed: &[String]) -> Nearest {
        sleep(self.latency).await;
        self.next(failed)
    }
}

#[async_trait]
impl Vigil for FakeVigil {
    async fn outdated(self: Arc<Self>) -> Option<Nearest> {
        match self.outdated_after {
            Some(after) => sleep(after).await,
            None => std::future::pending().await,
        }
        self.tells.then(|| self.near.next(&[]))
    }

    fn committed(self: Arc<Self>) {
        self.near.committed.fetch_add(1, Ordering::SeqCst);
    }

    fn passing(self: Arc<Self>, reader: Reader) {
        let near = self.near.clone();
        self.near.along.spawn(async move {
            let got = near.read_along(reader).await;
            near.passed.lock().unwrap().push(got);
        });
    }
}

impl Drop for FakeVigil {
    fn drop(&mut self) {
        self.near.held.fetch_sub(1, Ordering::SeqCst);
    }
}

// === impl Fake ===

impl Fake {
    pub(super) fn new(name: String, manner: Manner, content: &Bytes, case: &Case) -> Self {
        Fake {
            name,
            manner,
            content: content.clone(),
            cut_after: case.cut_after,
            cuts: AtomicU64::new(case.cuts),
            chunk: case.chunk,
            latency: Duration::from_millis(case.latency),
            permits: Arc::new(Semaphore::new(32)),
            open: Arc::new(Semaphore::new(if manner == Manner::Throttling {
                2
            } else {
                64
            })),
            sent: Arc::default(),
            condemned: AtomicU64::new(0),
        }
    }
}

fn error(kind: SourceErrorKind, message: &str) -> SourceError {
    SourceError {
        kind,
        cause: message_cause(message.to_owned()),
    }
}

#[async_trait]
impl Source for Fake {
    fn name(&self) -> &str {
        &self.name
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.permits).acquire_owned().await.unwrap()
    }

    fn try_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }

    fn condemned(&self) {
        assert_eq!(
            self.manner,
            Manner::Corrupt,
            "{} sent no wrong byte",
            self.name
        );
        self.condemned.fetch_add(1, Ordering::SeqCst);
    }

    async fn open(&self, range: Option<Range<u64>>) -> Result<Opened, SourceError> {
        sleep(self.latency).await;
        if self.manner == Manner::Gone {
            return Err(error(SourceErrorKind::Gone, "no such blob"));
        }
        let Ok(busy) = Arc::clone(&self.open).try_acquire_owned() else {
            return Err(error(SourceErrorKind::Throttled, "too many requests"));
        };
        let size = self.content.len() as u64;
        let ranges = !matches!(self.manner, Manner::NoRanges | Manner::NoLength);
        let range = range
            .filter(|_| ranges)
            .map(|range| range.start..range.end.min(size));
        if range.as_ref().is_some_and(Range::is_empty) {
            return Err(error(SourceErrorKind::NoRanges, "range not satisfiable"));
        }
        let part = range.clone().unwrap_or(0..size);
        let part = usize::try_from(part.start).unwrap()..usize::try_from(part.end).unwrap();
        let mut body = self.content.slice(part).to_vec();
        if self.manner == Manner::Corrupt
            && let Some(byte) = body.first_mut()
        {
            *byte ^= 1;
        }
        let cut = body.len() > self.cut_after
            && self
                .cuts
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_ok();
        if cut {
            body.truncate(self.cut_after);
        }
        let mut chunks: Vec<_> = body
            .chunks(self.chunk)
            .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
            .collect();
        if cut {
            chunks.push(Err(error(SourceErrorKind::Broken, "cut")));
        }
        let (sent, latency) = (Arc::clone(&self.sent), self.latency);
        let body = stream::iter(chunks).then(move |chunk| {
            // The permit lives as long as the body.
            let _busy = &busy;
            if let Ok(chunk) = &chunk {
                sent.fetch_add(chunk.len() as u64, Ordering::SeqCst);
            }
            async move {
                sleep(latency / 8).await;
                chunk
            }
        });
        let total = (self.manner != Manner::NoLength).then_some(size);
        Ok(Opened {
            range,
            total,
            body: body.boxed(),
        })
    }
}
