//! The certificate that nodes see, taken from files and taken anew when these change.
//!
//! Kubernetes mounts a secret as symlinks and renews it by swapping one of them, which no watch on
//! the file itself would see. So the files are looked at every few seconds, through the links. A
//! pair that is broken or does not match changes nothing but the log and a counter: the old one
//! serves on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde::Deserialize;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::policy::Subject;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{ReloadLabels, ReloadResult};

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// `[server.tls]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// PEM: the server's certificate, then those between it and the root.
    pub certificate: PathBuf,
    /// PEM: the private key of the first certificate.
    pub key: PathBuf,
    /// PEM: the roots of client certificates. With it a client without one is turned away.
    pub client_ca: Option<PathBuf>,
}

/// The TLS set-up for new connections.
#[derive(Debug)]
pub(super) struct Tls {
    files: Config,
    http2: bool,
    current: ArcSwap<ServerConfig>,
    /// The files that were there at the start.
    first: Version,
}

/// What tells one version of the files from another: inode, size and time of each.
type Version = Vec<Option<(u64, u64, SystemTime)>>;

// === impl Config ===

impl Config {
    /// Reads the files as a start would. Blocking.
    ///
    /// # Errors
    /// A file cannot be read or understood, or key and certificate do not belong together.
    pub fn check(&self) -> io::Result<()> {
        load(self, false).map(|_| ())
    }
}

// === impl Tls ===

impl Tls {
    /// Blocking. `http2` offers h2 by ALPN before HTTP/1.1.
    pub(super) fn load(files: Config, http2: bool) -> io::Result<Arc<Self>> {
        // Looked at before they are read, so that no change in between goes unseen.
        let first = version(&files);
        let current = ArcSwap::from_pointee(load(&files, http2)?);
        Ok(Arc::new(Tls {
            files,
            http2,
            current,
            first,
        }))
    }

    /// For one handshake.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load_full())
    }

    /// Takes new files when they come. Runs until it is dropped.
    pub(super) async fn watch(self: Arc<Self>, metrics: Arc<Metrics>) {
        let mut seen = self.first.clone();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let version = self.version().await;
            if version == seen {
                continue;
            }
            seen = version;
            let result = self.reload().await;
            let result = match result {
                Ok(()) => {
                    tracing::info!(certificate = %self.files.certificate.display(), "TLS certificate taken from its new file");
                    ReloadResult::Ok
                }
                Err(error) => {
                    tracing::error!(%error, "new TLS files are unusable, the old certificate serves on");
                    ReloadResult::Failed
                }
            };
            metrics
                .tls_reloads
                .get_or_create(&ReloadLabels { result })
                .inc();
        }
    }

    async fn reload(self: &Arc<Self>) -> io::Result<()> {
        let this = Arc::clone(self);
        let load = move || load(&this.files, this.http2);
        self.current
            .store(Arc::new(tokio::task::spawn_blocking(load).await??));
        Ok(())
    }

    async fn version(self: &Arc<Self>) -> Version {
        let this = Arc::clone(self);
        let version = tokio::task::spawn_blocking(move || version(&this.files));
        version.await.unwrap_or_default()
    }
}

/// Blocking.
fn version(
    Config {
        certificate,
        key,
        client_ca,
    }: &Config,
) -> Version {
    let files = [Some(certificate), Some(key), client_ca.as_ref()];
    files
        .into_iter()
        .flatten()
        .map(|file| stamp(file))
        .collect()
}

/// Follows symlinks. None when the file cannot be read.
fn stamp(file: &Path) -> Option<(u64, u64, SystemTime)> {
    let meta = std::fs::metadata(file).ok()?;
    Some((
        std::os::unix::fs::MetadataExt::ino(&meta),
        meta.len(),
        meta.modified().ok()?,
    ))
}

fn load(files: &Config, http2: bool) -> io::Result<ServerConfig> {
    let certificates = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| invalid(&files.key, &e))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for root in self::certificates(file)? {
                roots.add(root).map_err(|e| invalid(file, &e))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|e| invalid(file, &e))?)
        }
    };
    let mut config = builder
        .with_single_cert(certificates, key)
        .map_err(|e| invalid(&files.certificate, &e))?;
    if http2 {
        config.alpn_protocols.push(b"h2".to_vec());
    }
    config.alpn_protocols.push(b"http/1.1".to_vec());
    Ok(config)
}

/// Whose certificate the first of these is. The handshake has verified it; what in it is no text
/// or has no short name is left out.
pub(super) fn subject(certificates: Option<&[CertificateDer<'_>]>) -> Option<Arc<Subject>> {
    let (_, certificate) = X509Certificate::from_der(certificates?.first()?).ok()?;
    let attributes = certificate
        .subject()
        .iter_attributes()
        .filter_map(|attribute| {
            let name = match attribute.attr_type().to_id_string().as_str() {
                "2.5.4.3" => "CN",
                "2.5.4.5" => "SERIALNUMBER",
                "2.5.4.6" => "C",
                "2.5.4.7" => "L",
                "2.5.4.8" => "ST",
                "2.5.4.10" => "O",
                "2.5.4.11" => "OU",
                "0.9.2342.19200300.100.1.1" => "UID",
                "0.9.2342.19200300.100.1.25" => "DC",
                _ => return None,
            };
            Some((name.to_owned(), attribute.as_str().ok()?.to_owned()))
        });
    Some(Arc::new(Subject::new(attributes.collect())))
}

fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| invalid(file, &e))?;
    if certificates.is_empty() {
        return Err(invalid(file, &"no certificate in it"));
    }
    Ok(certificates)
}

fn invalid(file: &Path, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{}: {error}", file.display()),
    )
}

#[cfg(test)]
pub(super) mod tests;
