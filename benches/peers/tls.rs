//! TLS for the peers and their clients: a certificate that lives as long as the run, and a client
//! that drops ciphertext in the kernel once it has shaken hands and asked.
//!
//! Decrypting would cost the client as much as encrypting costs the peer. The price is one
//! connection per blob, because only its end shows where the answer ends.

use std::fs::{self, File};
use std::io::{Error, ErrorKind, Read as _, Result, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier};

use rustix::net::{RecvFlags, recv};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::load::{Progress, Request};

/// A self-signed certificate for 127.0.0.1, as files for the peers and as a root for the clients.
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    client: Arc<ClientConfig>,
}

// === impl Identity ===

impl Identity {
    pub(crate) fn generate(directory: &Path) -> anyhow::Result<Self> {
        let issued = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        let certificate = directory.join("tls.crt");
        let key = directory.join("tls.key");
        fs::write(&certificate, issued.cert.pem())?;
        fs::write(&key, issued.signing_key.serialize_pem())?;
        Ok(Identity {
            certificate,
            key,
            client: Arc::new(client_config(issued.cert.der())?),
        })
    }

    /// Fetches the blob at `request` until the load ends: the client of `hammer` for TLS.
    pub(crate) fn fetch_until_stopped(
        &self,
        address: SocketAddr,
        request: &Request,
        progress: &Progress,
        ready: &Barrier,
    ) -> Result<()> {
        ready.wait();
        while !progress.stop.load(Ordering::Relaxed) {
            self.fetch(address, request, progress)?;
        }
        Ok(())
    }

    /// Fetches the blob at `request` once.
    pub(crate) fn fetch(
        &self,
        address: SocketAddr,
        request: &Request,
        progress: &Progress,
    ) -> Result<()> {
        let mut scratch = vec![0; 1 << 20];
        let tls = self.ask(address, request)?;
        loop {
            let (_, length) = recv(&tls.sock, &mut scratch[..], RecvFlags::TRUNC)?;
            progress.bytes.fetch_add(length as u64, Ordering::Relaxed);
            if length == 0 || progress.stop.load(Ordering::Relaxed) {
                break;
            }
        }
        progress.requests.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Fetches it once and looks at what comes: it must end with the bytes of `file`.
    pub(crate) fn compare(
        &self,
        address: SocketAddr,
        request: &Request,
        file: &File,
    ) -> Result<()> {
        let mut answer = Vec::new();
        match self.ask(address, request)?.read_to_end(&mut answer) {
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(error),
            _ => {}
        }
        let mut expected = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut expected, 0)?;
        if answer.ends_with(&expected) {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::InvalidData, "wrong bytes over TLS"))
        }
    }

    /// A handshake, a request and the first words of a 200.
    fn ask(
        &self,
        address: SocketAddr,
        request: &Request,
    ) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into());
        let connection =
            ClientConnection::new(Arc::clone(&self.client), name).map_err(Error::other)?;
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut tls = StreamOwned::new(connection, stream);
        tls.write_all(&request.wire("close"))?;
        let mut status = [0; 12];
        tls.read_exact(&mut status)?;
        if &status != b"HTTP/1.1 200" {
            let status = String::from_utf8_lossy(&status);
            return Err(Error::other(format!("answered {status}")));
        }
        Ok(tls)
    }
}

/// One cipher for every peer, or the ratios would compare ciphers.
fn client_config(root: &CertificateDer<'static>) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone())?;
    let provider = CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        ..aws_lc_rs::default_provider()
    };
    Ok(ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
