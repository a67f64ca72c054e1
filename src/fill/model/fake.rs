//! A source in memory that behaves as badly as it is told to.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Duration, sleep};

use super::Case;
use crate::fill::{Opened, Source, SourceError, SourceErrorKind, message_cause};

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
