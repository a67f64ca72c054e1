//! For tests: a client that shows what is on the wire, which clever ones hide.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// A client that reads answers as they stand on the wire.
pub(super) struct Client<IO> {
    pub(super) io: IO,
    pub(super) buffer: Vec<u8>,
    /// Bytes to read at a time.
    pub(super) step: usize,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Client<IO> {
    pub(super) fn new(io: IO) -> Self {
        Client {
            io,
            buffer: Vec::new(),
            step: 256 << 10,
        }
    }

    pub(super) async fn send(&mut self, method: &str, path: &str) {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        self.io.write_all(request.as_bytes()).await.unwrap();
    }

    /// More bytes; false at the end of the connection.
    pub(super) async fn more(&mut self) -> bool {
        let mut buf = vec![0; self.step];
        let n = self.io.read(&mut buf).await.unwrap();
        self.buffer.extend_from_slice(&buf[..n]);
        n > 0
    }

    /// The head of the next answer.
    pub(super) async fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                let rest = self.buffer.split_off(end + 4);
                let head = std::mem::replace(&mut self.buffer, rest);
                return String::from_utf8(head).unwrap();
            }
            assert!(self.more().await, "the connection ended inside a head");
        }
    }

    pub(super) async fn bytes(&mut self, len: usize) -> Vec<u8> {
        while self.buffer.len() < len {
            assert!(self.more().await, "the connection ended inside a body");
        }
        let rest = self.buffer.split_off(len);
        std::mem::replace(&mut self.buffer, rest)
    }

    /// One answer with a length.
    pub(super) async fn answer(&mut self) -> Vec<u8> {
        let head = self.head().await;
        self.bytes(length(&head)).await
    }

    pub(super) async fn get(&mut self, path: &str) -> Vec<u8> {
        self.send("GET", path).await;
        self.answer().await
    }

    /// All that is still to come.
    pub(super) async fn rest(mut self) -> Vec<u8> {
        while self.more().await {}
        self.buffer
    }
}

pub(super) fn length(head: &str) -> usize {
    let line = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    line.unwrap_or_else(|| panic!("no length in {head}"))
        .parse()
        .unwrap()
}

pub(super) fn assert_same(got: &[u8], wanted: &[u8]) {
    assert_eq!(got.len(), wanted.len());
    let differs = got.iter().zip(wanted).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the first byte that differs");
}
