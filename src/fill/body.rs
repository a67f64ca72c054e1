//! The body of a source's answer, read in pieces as large as have arrived.

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};

use super::SourceError;

/// What is gathered before it is written, in bytes: as much as has arrived, up to this.
const GATHER: usize = 1024 * 1024;

/// A body, read in pieces as large as have arrived.
pub(super) struct Body {
    stream: BoxStream<'static, Result<Bytes, SourceError>>,
    /// What came after the last chunk that was given out.
    end: Option<Result<(), SourceError>>,
}

impl Body {
    pub(super) fn new(stream: BoxStream<'static, Result<Bytes, SourceError>>) -> Self {
        Body { stream, end: None }
    }

    /// Waits for a chunk and takes what else is there already. `None` is the clean end.
    pub(super) async fn gather(&mut self) -> Result<Option<Vec<Bytes>>, SourceError> {
        if let Some(end) = self.end.take() {
            return end.map(|()| None);
        }
        let Some(first) = self.stream.next().await.transpose()? else {
            return Ok(None);
        };
        let mut length = first.len();
        let mut chunks = vec![first];
        while length < GATHER && self.end.is_none() {
            match self.stream.next().now_or_never() {
                Some(Some(Ok(chunk))) => {
                    length += chunk.len();
                    chunks.push(chunk);
                }
                Some(Some(Err(error))) => self.end = Some(Err(error)),
                Some(None) => self.end = Some(Ok(())),
                None => break,
            }
        }
        Ok(Some(chunks))
    }
}

/// Cuts `chunks`, which start at `offset`, to what lies in `start..end`. Gives the length that
/// they had together, in bytes.
pub(super) fn trim(chunks: &mut Vec<Bytes>, offset: u64, start: u64, end: u64) -> u64 {
    let mut at = offset;
    chunks.retain_mut(|chunk| {
        let length = chunk.len() as u64;
        let from = start.saturating_sub(at).min(length);
        let to = end.saturating_sub(at).min(length);
        at += length;
        if from >= to {
            return false;
        }
        // Both are at most the chunk's own length.
        let whole = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        *chunk = chunk.slice(whole(from)..whole(to));
        true
    });
    at - offset
}
