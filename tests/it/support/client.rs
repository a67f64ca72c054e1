//! An HTTP/1.1 client that hides nothing: the reason phrase as it came, how the body ended, and
//! what came before it ended. One connection for each request unless a test says otherwise.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;

use portcullis::oci::Digest;
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ConfigBuilder, RootCertStore, StreamOwned};
use serde_json::Value;

use super::PATIENCE;
use super::canary::assert_silent;

#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    /// Where it comes from, when that matters.
    from: Option<Ipv4Addr>,
    tls: Option<Arc<ClientConfig>>,
}

/// An answer whose body may still be on its way.
pub struct Answer {
    pub status: u16,
    pub reason: String,
    pub headers: Vec<(String, String)>,
    reader: BufReader<Box<dyn Stream>>,
    left: Left,
}

/// A whole answer, as far as it came.
pub struct Response {
    pub status: u16,
    pub reason: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub end: End,
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As its framing said.
    Complete,
    /// FIN before its framing said so.
    Short,
    /// RST.
    Reset,
    /// Nothing came for a long time.
    Silence,
}

/// What the framing says is still to come.
enum Left {
    Bytes(u64),
    /// Bytes left in the current chunk.
    Chunks(u64),
    UntilClose,
    Nothing,
}

pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

// === impl Client ===

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Client {
            address,
            from: None,
            tls: None,
        }
    }

    /// The same from another address of this machine: all of 127.0.0.0/8 are.
    pub fn from(self, address: Ipv4Addr) -> Self {
        Client {
            from: Some(address),
            ..self
        }
    }

    /// Trusts only the authority in the given PEM text.
    pub fn trusting(address: SocketAddr, authority: &str) -> Self {
        Client {
            tls: Some(Arc::new(trusting(authority).with_no_client_auth())),
            ..Client::new(address)
        }
    }

    /// The same with a certificate of its own (PEM).
    pub fn presenting(self, certificate: &str, key: &str, authority: &str) -> Self {
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let config = trusting(authority).with_client_auth_cert(vec![certificate], key);
        Client {
            tls: Some(Arc::new(config.unwrap())),
            ..self
        }
    }

    pub fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let stream = match self.from {
            None => TcpStream::connect(self.address)?,
            Some(from) => connect_from(from, self.address)?,
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return Ok(Box::new(stream));
        };
        let name = ServerName::from(self.address.ip());
        let connection = ClientConnection::new(Arc::clone(tls), name).map_err(io::Error::other)?;
        Ok(Box::new(StreamOwned::new(connection, stream)))
    }

    pub fn get(&self, path: &str) -> Response {
        self.send("GET", path, &[])
    }

    pub fn head(&self, path: &str) -> Response {
        self.send("HEAD", path, &[])
    }

    pub fn range(&self, path: &str, range: &str) -> Response {
        self.send("GET", path, &[("Range", range)])
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        self.open(method, path, headers).finish()
    }

    /// Returns as soon as the head of the answer is there.
    pub fn open(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.try_open(method, path, headers)
            .unwrap_or_else(|error| panic!("{method} {path}: no answer: {error}"))
    }

    /// The same where the other side may not be there.
    pub fn try_open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> io::Result<Answer> {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("host"))
        {
            head += &format!("Host: {}\r\n", self.address);
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let mut stream = self.connect()?;
        stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
        Answer::read(BufReader::new(stream), method)
    }

    /// JSON.
    pub fn post(&self, path: &str, body: &[u8]) -> Response {
        self.upload("POST", path, "application/json", body)
    }

    pub fn upload(&self, method: &str, path: &str, media_type: &str, body: &[u8]) -> Response {
        let mut stream = self.connect().unwrap();
        let (address, length) = (self.address, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: {media_type}\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        Answer::read(BufReader::new(stream), method)
            .unwrap()
            .finish()
    }

    /// Everything that comes back for these bytes until the other side closes.
    pub fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // A reset after an answer is an answer.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

fn trusting(authority: &str) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(authority.as_bytes()).unwrap();
    roots.add(authority).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
}

fn connect_from(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&socket, &SocketAddr::from((from, 0)))?;
    connect(&socket, &to)?;
    Ok(socket.into())
}

// === impl Answer ===

impl Answer {
    pub fn read(mut reader: BufReader<Box<dyn Stream>>, method: &str) -> io::Result<Self> {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.trim_end_matches(['\r', '\n']).splitn(3, ' ');
        words.next();
        let status = words.next().and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("not HTTP: {line:?}")))?;
        let reason = words.next().unwrap_or_default().to_owned();
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let length = find(&headers, "content-length").map(|value| value.parse().unwrap());
        let left = match length {
            _ if method == "HEAD" || status == 204 || status == 304 => Left::Nothing,
            Some(length) => Left::Bytes(length),
            None if find(&headers, "transfer-encoding").is_some() => Left::Chunks(0),
            None => Left::UntilClose,
        };
        Ok(Answer {
            status,
            reason,
            headers,
            reader,
            left,
        })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// Exactly `len` bytes of the body; fails when they do not come.
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let mut body = Vec::new();
        let end = self.read_to(&mut body, len);
        assert_eq!(body.len(), len, "the body ended early: {end:?}");
        body
    }

    /// The rest of the body.
    pub fn finish(mut self) -> Response {
        let mut body = Vec::new();
        let end = self.read_to(&mut body, usize::MAX).unwrap_or(End::Complete);
        let Answer {
            status,
            reason,
            headers,
            ..
        } = self;
        let response = Response {
            status,
            reason,
            headers,
            body,
            end,
        };
        if status >= 400 {
            assert_silent("an error", format!("{response:?}").as_bytes());
            assert_silent("an error's body", &response.body);
        }
        response
    }

    /// The connection, for the next request; the body must have been taken.
    pub fn into_stream(self) -> Box<dyn Stream> {
        assert!(
            self.reader.buffer().is_empty(),
            "bytes that nobody asked for"
        );
        self.reader.into_inner()
    }

    /// None when there may be more.
    fn read_to(&mut self, body: &mut Vec<u8>, len: usize) -> Option<End> {
        let mut buffer = vec![0; 256 * 1024];
        while body.len() < len {
            let expected = match self.left {
                Left::Nothing | Left::Bytes(0) => return Some(End::Complete),
                Left::UntilClose => u64::MAX,
                Left::Chunks(0) => match self.next_chunk() {
                    Ok(0) => return Some(End::Complete),
                    Ok(size) => size,
                    Err(error) => return Some(End::of(&error)),
                },
                Left::Bytes(left) | Left::Chunks(left) => left,
            };
            let want = buffer.len().min(len - body.len());
            let want = want.min(usize::try_from(expected).unwrap_or(usize::MAX));
            let got = match self.reader.read(&mut buffer[..want]) {
                Ok(0) if matches!(self.left, Left::UntilClose) => return Some(End::Complete),
                Ok(0) => return Some(End::Short),
                Ok(got) => got,
                Err(error) => return Some(End::of(&error)),
            };
            body.extend_from_slice(&buffer[..got]);
            self.left = match self.left {
                Left::Bytes(_) => Left::Bytes(expected - got as u64),
                Left::Chunks(_) => Left::Chunks(expected - got as u64),
                Left::UntilClose | Left::Nothing => Left::UntilClose,
            };
        }
        None
    }

    /// The size of the chunk that begins here.
    fn next_chunk(&mut self) -> io::Result<u64> {
        let mut line = String::new();
        // The line end behind the chunk before.
        while line.trim().is_empty() {
            line.clear();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)
    }
}

// === impl End ===

impl End {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => End::Short,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => End::Silence,
            _ => End::Reset,
        }
    }
}

// === impl Response ===

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// `errors[0].code` of an error's body.
    pub fn code(&self) -> String {
        self.json()["errors"][0]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// `errors[0].message` of an error's body.
    pub fn message(&self) -> String {
        self.json()["errors"][0]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    #[track_caller]
    pub fn assert(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// 200 with exactly these bytes.
    #[track_caller]
    pub fn assert_whole(self, bytes: &[u8]) -> Self {
        let response = self.assert(200);
        assert_eq!(response.end, End::Complete, "{response:?}");
        assert_same(&response.body, bytes);
        response
    }

    /// 206 with exactly this part of `whole`.
    #[track_caller]
    pub fn assert_part(self, whole: &[u8], range: std::ops::Range<usize>) -> Self {
        let response = self.assert(206);
        let told = format!("bytes {}-{}/{}", range.start, range.end - 1, whole.len());
        assert_eq!(
            response.header("content-range"),
            Some(told.as_str()),
            "{response:?}"
        );
        assert_eq!(response.end, End::Complete, "{response:?}");
        assert_same(&response.body, &whole[range]);
        response
    }

    /// An error: its status and code, a reason phrase and the same text as its message.
    #[track_caller]
    pub fn assert_error(self, status: u16, code: &str) -> Self {
        let response = self.assert(status);
        assert_eq!(response.code(), code, "{response:?}");
        assert_eq!(
            response.header("content-type"),
            Some("application/json"),
            "{response:?}"
        );
        assert_eq!(
            response.reason,
            response.message(),
            "phrase and message differ"
        );
        assert!(
            !response.reason.is_empty() && response.reason.len() <= 200,
            "{response:?}"
        );
        assert!(
            response.header("www-authenticate").is_none(),
            "{response:?}"
        );
        response
    }

    /// Whether a client would believe that it has everything, and of which digest.
    pub fn complete_digest(&self) -> Option<Digest> {
        (self.status == 200 && self.end == End::Complete).then(|| Digest::sha256(&self.body))
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.body[..self.body.len().min(400)];
        writeln!(f, "{} {}", self.status, self.reason)?;
        for (name, value) in &self.headers {
            writeln!(f, "{name}: {value}")?;
        }
        write!(
            f,
            "{} bytes, {:?}: {}",
            self.body.len(),
            self.end,
            shown.escape_ascii()
        )
    }
}

/// Says where bodies differ, which tells more than the bodies would.
#[track_caller]
pub fn assert_same(found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len(), "another length");
    // Unoptimised, looking for the place takes seconds.
    if found == expected {
        return;
    }
    let differs = |(at, (a, b)): (usize, (&u8, &u8))| (a != b).then_some(at);
    let first = found.iter().zip(expected).enumerate().find_map(differs);
    let last = found
        .iter()
        .zip(expected)
        .enumerate()
        .rev()
        .find_map(differs);
    if let (Some(first), Some(last)) = (first, last) {
        let shown = found[first..(last + 1).min(first + 16)].escape_ascii();
        panic!(
            "other bytes from {first} to {last} of {}: {shown}",
            found.len()
        );
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
}
