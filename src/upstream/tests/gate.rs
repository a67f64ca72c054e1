//! Egress proxies that do as a test tells them, and remember what they were asked.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use super::*;

/// What a proxy does about one request.
#[derive(Clone, Copy)]
pub(super) enum Does {
    /// A tunnel to there, or the answer from there.
    Go(SocketAddr),
    Say(u16),
    HangUp,
    Stall,
}

/// A proxy, which alone knows where names are.
pub(super) struct Gate {
    pub(super) address: SocketAddr,
    pub(super) seen: Arc<Mutex<Vec<Request>>>,
}

impl Gate {
    pub(super) async fn start(
        tls: Option<Arc<rustls::ServerConfig>>,
        script: impl Fn(&Request) -> Does + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, script) = (Arc::default(), Arc::new(script));
        let log = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, log) = (Arc::clone(&script), Arc::clone(&log));
                let tls = tls.clone().map(tokio_rustls::TlsAcceptor::from);
                tokio::spawn(async move {
                    match tls {
                        None => pass(stream, &*script, &log).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => pass(stream, &*script, &log).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Gate { address, seen }
    }

    pub(super) fn targets(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        seen.iter()
            .map(|request| format!("{} {}", request.method, request.target))
            .collect()
    }

    pub(super) fn egress(&self, more: &str) -> Egress {
        toml::from_str(&format!("proxy = \"http://{}\"\n{more}", self.address)).unwrap()
    }
}

async fn pass(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    script: &(dyn Fn(&Request) -> Does + Send + Sync),
    log: &Mutex<Vec<Request>>,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let request = Request::read(&mut stream).await?;
    log.lock().unwrap().push(request.clone());
    match script(&request) {
        Does::HangUp => {}
        Does::Stall => std::future::pending().await,
        Does::Say(status) => {
            let answer = format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.ok()?;
        }
        Does::Go(address) => {
            let mut other = TcpStream::connect(address).await.ok()?;
            if request.method == "CONNECT" {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
            } else {
                let path = Url::parse(&request.target).unwrap().path().to_owned();
                let ask = format!("{} {path} HTTP/1.1\r\nhost: x\r\n\r\n", request.method);
                other.write_all(ask.as_bytes()).await.ok()?;
            }
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut other).await;
        }
    }
    Some(())
}

/// A SOCKS5 server that answers every request with one reply code, or goes there.
pub(super) async fn socks(code: u8, address: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let mut head = [0; 2];
                // The probe of an error text says nothing and goes.
                if stream.read_exact(&mut head).await.is_err() {
                    return;
                }
                let mut methods = vec![0; head[1].into()];
                stream.read_exact(&mut methods).await.unwrap();
                stream.write_all(&[5, 0]).await.unwrap();
                let mut request = [0; 5];
                stream.read_exact(&mut request).await.unwrap();
                assert_eq!(request[..4], [5, 1, 0, 3], "a name, not an address");
                let mut name = vec![0; usize::from(request[4]) + 2];
                stream.read_exact(&mut name).await.unwrap();
                let port = u16::from_be_bytes([name[name.len() - 2], name[name.len() - 1]]);
                name.truncate(name.len() - 2);
                let name = String::from_utf8(name).unwrap();
                log.lock().unwrap().push(format!("{name}:{port}"));
                stream
                    .write_all(&[5, code, 0, 1, 0, 0, 0, 0, 0, 0])
                    .await
                    .unwrap();
                if code == 0 {
                    let mut other = TcpStream::connect(address).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut other).await;
                }
            });
        }
    });
    (own, seen)
}

/// A private CA in a file, and TLS by it for `names`.
pub(super) fn tls(directory: &Path, names: &[&str]) -> (PathBuf, Arc<rustls::ServerConfig>) {
    install_crypto();
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let certificate = CertificateParams::new(names.clone())
        .unwrap()
        .signed_by(&key, &ca)
        .unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let file = directory.join(format!("{}.pem", names[0]));
    std::fs::write(&file, ca.pem()).unwrap();
    (file, Arc::new(config))
}
