//! Bodies of answers: bytes at hand, or a blob that travels as file and range.
//!
//! A blob's bytes are taken from the page cache by the worker thread itself, which costs a third
//! of a trip through the blocking pool; only what is not in memory yet is read there first.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, Stream as _, StreamExt as _};
use http_body::{Frame, SizeHint};
use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};

use super::access::Access;
use super::sendfile::{self, Queue};
use crate::cache::Pieces;
use crate::store::FileRange;

/// Bytes per frame where they have to pass through memory (TLS, HTTP/2).
const READ: u64 = 64 << 10;

/// Up to here a frame is copied even where sendfile is possible: then it leaves in one write
/// together with the header.
const COPY: u64 = 64 << 10;

/// The body of one answer. Dropping it writes the access log.
#[derive(Debug)]
pub(super) struct Body {
    content: Content,
    access: Option<Box<Access>>,
}

enum Content {
    Bytes(Bytes),
    Blob(Blob),
}

struct Blob {
    frames: BoxStream<'static, io::Result<Bytes>>,
    /// Bytes to come, None when nobody knows.
    left: Option<u64>,
    /// Why it ends short, until everything before that has gone out.
    failure: Option<io::Error>,
}

/// What is still to be cut into frames.
struct Frames {
    pieces: Pieces,
    piece: Option<FileRange>,
    queue: Option<Queue>,
    /// The memory of the last frame that was read.
    spare: Bytes,
}

// === impl Body ===

impl Body {
    pub(super) fn empty() -> Self {
        Body::bytes(Bytes::new())
    }

    pub(super) fn bytes(bytes: impl Into<Bytes>) -> Self {
        Body {
            content: Content::Bytes(bytes.into()),
            access: None,
        }
    }

    /// `len` in bytes, None when nobody knows it yet; `queue` of the connection, where it has one.
    /// Ends with an error, never cleanly, when `pieces` end before `len`.
    pub(super) fn blob(pieces: Pieces, len: Option<u64>, queue: Option<Queue>) -> Self {
        let frames = Frames {
            pieces,
            piece: None,
            queue,
            spare: Bytes::new(),
        };
        let frames = stream::unfold(frames, async |mut frames| {
            let frame = frames.next().await?;
            Some((frame, frames))
        });
        let blob = Blob {
            frames: frames.boxed(),
            left: len,
            failure: None,
        };
        Body {
            content: Content::Blob(blob),
            access: None,
        }
    }

    /// The line of the access log that is to be written when this body has gone out.
    pub(super) fn log(&mut self, access: Access) {
        self.access = Some(Box::new(access));
    }
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Content::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Content::Blob(blob) => write!(f, "blob, {:?} bytes left", blob.left),
        }
    }
}

impl Content {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match self {
            Content::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            Content::Bytes(bytes) => Poll::Ready(Some(Ok(std::mem::take(bytes)))),
            Content::Blob(blob) => blob.poll_next(cx),
        }
    }
}

impl Blob {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Some(failure) = self.failure.take() {
            return Poll::Ready(Some(Err(failure)));
        }
        if self.left == Some(0) {
            return Poll::Ready(None);
        }
        let failure = match ready!(Pin::new(&mut self.frames).poll_next(cx)) {
            Some(Ok(bytes)) => match self.left.map(|left| left.checked_sub(bytes.len() as u64)) {
                Some(None) => io::Error::other("more bytes than the blob has"),
                left => {
                    self.left = left.flatten();
                    return Poll::Ready(Some(Ok(bytes)));
                }
            },
            Some(Err(failure)) => failure,
            None if self.left.is_none() => return Poll::Ready(None),
            None => io::ErrorKind::UnexpectedEof.into(),
        };
        // hyper drops what it has not written yet when a body fails, the head of the answer too.
        // While a body is pending it writes.
        self.failure = Some(failure);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        let frame = ready!(this.content.poll_next(cx));
        if let Some(access) = &mut this.access {
            match &frame {
                Some(Ok(bytes)) => access.sent(bytes.len()),
                Some(Err(e)) => access.cut(e),
                None => {}
            }
        }
        Poll::Ready(frame.map(|frame| frame.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Bytes(bytes) => bytes.is_empty(),
            Content::Blob(blob) => blob.left == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Blob(blob) => blob
                .left
                .map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

// === impl Frames ===

impl Frames {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let piece = loop {
            let piece = match self.piece.take() {
                Some(piece) => piece,
                None => match self.pieces.next().await? {
                    Ok(piece) => piece,
                    Err(e) => return Some(Err(io::Error::other(e))),
                },
            };
            if !piece.is_empty() {
                break piece;
            }
        };
        Some(self.frame(piece).await)
    }

    /// The first frame of `piece`; the rest of it is kept for the next call.
    async fn frame(&mut self, mut piece: FileRange) -> io::Result<Bytes> {
        let lend = piece.len() > COPY && !piece.is_leased();
        let queue = self.queue.as_ref().filter(|_| lend);
        let longest = if queue.is_some() {
            sendfile::LONGEST as u64
        } else {
            READ
        };
        let frame = piece.split_front(longest);
        if !piece.is_empty() {
            self.piece = Some(piece);
        }
        if !is_resident(&frame)? {
            let frame = frame.clone();
            tokio::task::spawn_blocking(move || warm(&frame)).await??;
        }
        match queue {
            Some(queue) => queue.push(frame),
            None => read(&frame, &mut self.spare),
        }
    }
}

/// Whether the first and the last page are in memory: one byte each, never waiting for the disk.
/// File systems that cannot say count as not resident.
fn is_resident(part: &FileRange) -> io::Result<bool> {
    let Range { start, end } = part.range();
    for offset in [start, end - 1] {
        let mut byte = [0];
        let buf = &mut [io::IoSliceMut::new(&mut byte)];
        match rustix::io::preadv2(part.file(), buf, offset, ReadWriteFlags::NOWAIT) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(true)
}

/// Blocking. Brings the bytes into the page cache.
fn warm(part: &FileRange) -> io::Result<()> {
    let Range { start, end } = part.range();
    // Advice only: where it fails the reads below fetch the pages all the same.
    let _ = rustix::fs::fadvise(
        part.file(),
        start,
        std::num::NonZeroU64::new(end - start),
        Advice::WillNeed,
    );
    let mut buf = vec![0; 64 << 10];
    let mut at = start;
    while at < end {
        let want = buf
            .len()
            .min(usize::try_from(end - at).unwrap_or(usize::MAX));
        match part.file().read_at(&mut buf[..want], at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => at += n as u64,
        }
    }
    Ok(())
}

/// Bytes that are in the page cache already; at most [`READ`] of them. They are read into `spare`
/// when nobody else holds it any more, because fresh memory costs as much as the copy.
fn read(part: &FileRange, spare: &mut Bytes) -> io::Result<Bytes> {
    let len = usize::try_from(part.len()).map_err(io::Error::other)?;
    let mut buf = match std::mem::take(spare).try_into_mut() {
        Ok(buf) if buf.len() >= len => buf,
        _ => BytesMut::zeroed(len),
    };
    part.file()
        .read_exact_at(&mut buf[..len], part.range().start)?;
    *spare = buf.freeze();
    Ok(spare.slice(..len))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::Arc;

    use http_body_util::BodyExt as _;

    use super::*;

    fn file(content: &[u8]) -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[tokio::test]
    async fn what_is_not_in_memory_is_fetched_from_the_disk() {
        let content: Vec<u8> = (0..3_000_000u32)
            .map(|i| (i ^ (i >> 8)).to_le_bytes()[0])
            .collect();
        let file = file(&content);
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        let part = FileRange::new(Arc::new(file), 5..3_000_000);
        let body = Body::blob(Pieces::File(Some(part.clone())), Some(part.len()), None);
        assert!(body.collect().await.unwrap().to_bytes() == content[5..]);
        assert!(is_resident(&part).unwrap());
    }

    #[tokio::test]
    async fn memory_is_used_again_once_a_frame_is_gone() {
        let pieces = || {
            Pieces::File(Some(FileRange::new(
                Arc::new(file(&vec![7; 300_000])),
                0..300_000,
            )))
        };
        let mut body = Body::blob(pieces(), Some(300_000), None);
        let mut places = std::collections::HashSet::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.unwrap().into_data().unwrap();
            assert!(frame.iter().all(|byte| *byte == 7));
            places.insert(frame.as_ptr().addr());
        }
        assert_eq!(places.len(), 1);
        // A frame that is still held is not touched.
        let frames = Body::blob(pieces(), Some(300_000), None)
            .collect()
            .await
            .unwrap();
        assert!(frames.to_bytes().iter().all(|byte| *byte == 7));
    }

    #[tokio::test]
    async fn a_body_with_other_than_its_length_is_an_error() {
        let part = || Pieces::File(Some(FileRange::new(Arc::new(file(&[7; 100])), 0..100)));
        assert_eq!(
            Body::blob(part(), Some(100), None)
                .collect()
                .await
                .unwrap()
                .to_bytes()
                .len(),
            100
        );
        Body::blob(part(), Some(99), None)
            .collect()
            .await
            .unwrap_err();
        let short = Body::blob(part(), Some(101), None)
            .collect()
            .await
            .unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(
            Body::blob(part(), None, None)
                .collect()
                .await
                .unwrap()
                .to_bytes()
                .len(),
            100
        );
    }
}
