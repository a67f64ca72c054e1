//! Blob bodies: a range of a blob, exactly the one that was asked for, chunk by chunk.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_RANGE;
use tokio::time::Instant;

use super::request::Answer;
use super::{UpstreamError, UpstreamErrorKind};
use crate::oci::range::parse_content_range;

/// The head of a blob answer; the body follows chunk by chunk.
#[derive(Debug)]
pub struct BlobResponse {
    /// For a 206: the range that follows. It starts where it was asked to start and does not end
    /// later; it may end earlier. None for a 200: the whole blob from its first byte.
    pub range: Option<Range<u64>>,
    /// The size of the whole blob, where the upstream told it.
    pub total: Option<u64>,
    pub body: BlobBody,
}

/// The bytes of one [`BlobResponse`]. Dropping it before its end closes the connection.
#[derive(Debug)]
pub struct BlobBody {
    answer: Answer,
    registry: String,
    left: Left,
    pace: Pace,
}

/// A body that drips keeps a connection and its readers as surely as a silent one: less than
/// 10 KiB/s over a minute of waiting is no better than silence.
const PACE_OVER: Duration = Duration::from_secs(60);
const PACE_BYTES: u64 = 60 * 10 * 1024;

/// How fast a body comes. Only time that was spent waiting for it counts: a reader that takes its
/// time is not the upstream's fault.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

/// What may still come.
#[derive(Clone, Copy, Debug)]
enum Left {
    Exactly(u64),
    AtMost(u64),
}

// === impl BlobResponse ===

impl BlobResponse {
    /// Judges the header of the answer to a GET of `asked`, or of the whole blob.
    pub(super) fn judge(
        answer: Answer,
        asked: Option<&Range<u64>>,
        registry: &str,
        limit: u64,
    ) -> Result<Self, UpstreamErrorKind> {
        let (range, total) = match (answer.status(), asked) {
            (StatusCode::OK, _) => (None, answer.content_length()),
            (StatusCode::PARTIAL_CONTENT, Some(asked)) => {
                let (range, total) = answer
                    .header(CONTENT_RANGE)
                    .and_then(parse_content_range)
                    .ok_or_else(|| answer.invalid("sends a range without saying which"))?;
                let inside = range.end <= asked.end && total.is_none_or(|size| range.end <= size);
                if range.start != asked.start || range.is_empty() || !inside {
                    return Err(answer.invalid(&format!(
                        "sends bytes {range:?} of {total:?} where {asked:?} were asked for"
                    )));
                }
                (Some(range), total)
            }
            (StatusCode::PARTIAL_CONTENT, None) => {
                return Err(answer.invalid("sends a part where the whole was asked for"));
            }
            (status, _) => return Err(answer.invalid(&format!("answers a blob with {status}"))),
        };
        if total.is_some_and(|total| total > limit) {
            return Err(answer.invalid("has a larger blob than limits.blob_size allows"));
        }
        let left = match (&range, total) {
            (Some(range), _) => Left::Exactly(range.end - range.start),
            (None, Some(total)) => Left::Exactly(total),
            (None, None) => Left::AtMost(limit),
        };
        let body = BlobBody {
            answer,
            registry: registry.to_owned(),
            left,
            pace: Pace::default(),
        };
        Ok(BlobResponse { range, total, body })
    }
}

// === impl BlobBody ===

impl BlobBody {
    /// The next chunk, as it came from the connection; None at the end, which is the end that the
    /// header announced.
    ///
    /// Fails when the connection is cut, stays silent for `limits.idle`, brings less than 10 KiB/s
    /// over a minute, or has more than was announced. Cancel-safe.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let asked = Instant::now();
        let result = match self.answer.chunk().await {
            Ok(chunk) => self.count(chunk, asked.elapsed()),
            Err(kind) => Err(kind),
        };
        result.map_err(|kind| UpstreamError {
            registry: self.registry.clone(),
            kind,
        })
    }

    fn count(
        &mut self,
        chunk: Option<Bytes>,
        waited: Duration,
    ) -> Result<Option<Bytes>, UpstreamErrorKind> {
        let (Left::Exactly(left) | Left::AtMost(left)) = &mut self.left;
        match &chunk {
            Some(bytes) => match left.checked_sub(bytes.len() as u64) {
                None => return Err(self.answer.invalid("sends more than it announced")),
                Some(less) => {
                    *left = less;
                    if less > 0 && !self.pace.holds(waited, bytes.len() as u64) {
                        let host = self.answer.host();
                        return Err(UpstreamErrorKind::TimedOut(format!(
                            "{host} sends less than 10 KiB/s"
                        )));
                    }
                }
            },
            None => {
                if matches!(self.left, Left::Exactly(1..)) {
                    return Err(UpstreamErrorKind::Unavailable(format!(
                        "{} ended a body early",
                        self.answer.host()
                    )));
                }
            }
        }
        Ok(chunk)
    }
}

// === impl Pace ===

impl Pace {
    /// Counts a chunk and the time that it was waited for; false when it is too slow.
    fn holds(&mut self, waited: Duration, bytes: u64) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < PACE_OVER {
            return true;
        }
        let Pace { bytes, .. } = std::mem::take(self);
        bytes >= PACE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drip_is_found_after_a_minute_of_waiting_and_a_slow_reader_is_none() {
        let second = Duration::from_secs(1);
        let lasts = |bytes, waited| {
            let mut pace = Pace::default();
            (0..600).find(|_| !pace.holds(waited, bytes))
        };
        assert_eq!(lasts(10 * 1024, second), None);
        assert_eq!(lasts(10 * 1024 - 1, second), Some(59));
        assert_eq!(lasts(1, Duration::ZERO), None, "nobody waited");

        // A minute that was good enough does not make up for the next.
        let mut pace = Pace::default();
        assert!((0..60).all(|_| pace.holds(second, 1 << 20)));
        assert!(!(0..60).all(|_| pace.holds(second, 1)));
    }
}
