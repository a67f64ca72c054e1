//! The last step of a blob on a plain socket: file to socket inside the kernel.
//!
//! hyper knows bodies only as bytes in memory. So the body hands it slices of one placeholder
//! region that nobody ever reads or writes, and queues beside it which part of which file each
//! slice stands for. [`Wire`], the socket under hyper, knows such a slice by its address and
//! calls sendfile(2) in its place: the bytes never enter this process.
//!
//! Both sides count alike: a slice is sent only when the head of the queue has exactly its length
//! and its progress. Anything else ends the connection, so that no placeholder byte can ever
//! reach a client.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::store::FileRange;

/// The most that one slice stands for, in bytes.
pub(super) const LONGEST: usize = 1 << 20;

/// Zeroed memory comes from the kernel untouched and stays so: the region costs addresses only.
static PLACEHOLDER: LazyLock<&'static [u8]> = LazyLock::new(|| vec![0; LONGEST].leak());

/// The parts of files that a connection still has to send, in the order of its body slices.
/// Shared by the body, which pushes, and the [`Wire`], which sends.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue(Arc<Mutex<VecDeque<Part>>>);

#[derive(Debug)]
struct Part {
    range: FileRange,
    len: usize,
    sent: usize,
}

/// A plain TCP connection that sends placeholder slices as the files they stand for.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    queue: Queue,
}

// === impl Queue ===

impl Queue {
    /// The slice to hand to hyper in place of `range`, which has 1 to [`LONGEST`] bytes.
    pub(super) fn push(&self, range: FileRange) -> io::Result<Bytes> {
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        let slice = PLACEHOLDER.get(..len).ok_or(io::ErrorKind::InvalidInput)?;
        self.lock().push_back(Part {
            range,
            len,
            sent: 0,
        });
        Ok(Bytes::from_static(slice))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Part>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One sendfile(2) for the part that `slice` must stand for.
    fn send(&self, socket: &TcpStream, slice: &[u8]) -> io::Result<usize> {
        let mut parts = self.lock();
        let part = parts.front_mut().filter(|part| {
            part.len - part.sent == slice.len()
                && PLACEHOLDER.as_ptr().addr() + part.sent == slice.as_ptr().addr()
        });
        let Some(part) = part else {
            return Err(io::Error::other(
                "a body slice stands for no part of a file",
            ));
        };
        let file = part.range.file();
        let mut offset = part.range.range().start + part.sent as u64;
        let sent = rustix::fs::sendfile(socket, file, Some(&mut offset), slice.len())?;
        if sent == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter",
            ));
        }
        part.sent += sent;
        if part.sent == part.len {
            parts.pop_front();
        }
        Ok(sent)
    }
}

fn is_placeholder(slice: &[u8]) -> bool {
    let start = PLACEHOLDER.as_ptr().addr();
    !slice.is_empty() && (start..start + LONGEST).contains(&slice.as_ptr().addr())
}

// === impl Wire ===

impl Wire {
    /// The connection, and the queue for its bodies.
    pub(super) fn new(stream: TcpStream) -> (Self, Queue) {
        let queue = Queue::default();
        (
            Wire {
                stream,
                queue: queue.clone(),
            },
            queue,
        )
    }

    /// Runs `send` when the socket takes bytes; again when it turns out that it did not.
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        mut send: impl FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_io(Interest::WRITABLE, &mut send) {
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if is_placeholder(buf) {
            self.poll_send(cx, || self.queue.send(&self.stream, buf))
        } else {
            Pin::new(&mut self.stream).poll_write(cx, buf)
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.iter().position(|buf| !buf.is_empty()).unwrap_or(0);
        match bufs.iter().position(|buf| is_placeholder(buf)) {
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, bufs),
            Some(file) if file == first => {
                self.poll_send(cx, || self.queue.send(&self.stream, &bufs[file]))
            }
            // The header goes first. MSG_MORE lets it share a packet with the file behind it.
            Some(file) => self.poll_send(cx, || {
                let mut control = SendAncillaryBuffer::default();
                let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
                Ok(rustix::net::sendmsg(
                    &self.stream,
                    &bufs[..file],
                    &mut control,
                    flags,
                )?)
            }),
        }
    }

    /// Without this hyper would copy body slices, the placeholder too, into its header buffer.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn connected() -> (Wire, Queue, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (wire, queue) = Wire::new(listener.accept().await.unwrap().0);
        (wire, queue, client)
    }

    fn part(content: &[u8], range: std::ops::Range<u64>) -> FileRange {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        FileRange::new(Arc::new(file), range)
    }

    #[tokio::test]
    async fn a_slice_is_sent_as_the_part_it_stands_for() {
        let (mut wire, queue, mut client) = connected().await;
        let first = queue.push(part(b"0123456789", 2..6)).unwrap();
        let second = queue.push(part(b"abc", 0..3)).unwrap();
        let bufs = [b"head " as &[u8], &first, &second].map(IoSlice::new);
        let mut sent = 0;
        // Each write takes the header or one part.
        for (from, len) in [(0, 5), (1, 4), (2, 3)] {
            assert_eq!(wire.write_vectored(&bufs[from..]).await.unwrap(), len);
            sent += len;
        }
        let mut got = vec![0; sent];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(got, b"head 2345abc");
    }

    #[tokio::test]
    async fn a_slice_that_stands_for_nothing_is_an_error_and_sends_nothing() {
        let (mut wire, queue, mut client) = connected().await;
        let slice = queue.push(part(b"0123456789", 0..10)).unwrap();
        // Too short, too far, then right, then once more.
        wire.write(&slice[..9]).await.unwrap_err();
        wire.write(&slice[1..]).await.unwrap_err();
        assert_eq!(wire.write(&slice).await.unwrap(), 10);
        wire.write(&slice).await.unwrap_err();
        drop(wire);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"0123456789");
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_is_an_error() {
        let (mut wire, queue, _client) = connected().await;
        let slice = queue.push(part(b"0123", 4..8)).unwrap();
        let error = wire.write(&slice).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_part_is_not_longer_than_the_region() {
        let longest = LONGEST as u64;
        assert_eq!(
            Queue::default().push(part(b"", 0..longest)).unwrap().len(),
            LONGEST
        );
        Queue::default()
            .push(part(b"", 0..longest + 1))
            .unwrap_err();
    }
}
