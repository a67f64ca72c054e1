use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ClientConfig;

use super::*;

/// A server certificate with its key in files, and the root that signed it.
pub(in crate::server) struct Pair {
    files: Config,
    root: CertificateDer<'static>,
}

impl Pair {
    /// Writes `tls.crt` and `tls.key` for `name`, signed by a root of its own.
    pub(in crate::server) fn write(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &root).unwrap();
        let files = Config {
            certificate: dir.join("tls.crt"),
            key: dir.join("tls.key"),
            client_ca: None,
        };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        Pair {
            files,
            root: root.der().clone(),
        }
    }

    pub(in crate::server) fn config(&self) -> Config {
        self.files.clone()
    }

    /// A client that trusts this pair's root alone.
    pub(in crate::server) fn client(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

/// A client certificate, for a client that trusts `server`, and its root in a file.
fn client_of(server: &Pair, roots: &Path) -> Arc<ClientConfig> {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(roots, root.pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["node".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &root).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = (*server.client()).clone();
    let chain = vec![certificate.der().clone()];
    let certified = rustls::sign::CertifiedKey::from_der(chain, key, config.crypto_provider());
    let resolver = rustls::sign::SingleCertAndKey::from(certified.unwrap());
    config.client_auth_cert_resolver = Arc::new(resolver);
    Arc::new(config)
}

/// Whether the server lets this client in.
async fn lets_in(tls: &Tls, client: Arc<ClientConfig>) -> bool {
    let (near, far) = tokio::io::duplex(64 << 10);
    let name = rustls::pki_types::ServerName::try_from("a.test").unwrap();
    let connect = tokio_rustls::TlsConnector::from(client).connect(name, near);
    let (accepted, _connected) = tokio::join!(tls.acceptor().accept(far), connect);
    accepted.is_ok()
}

#[tokio::test]
async fn with_a_client_ca_only_its_clients_are_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::write(dir.path(), "a.test");
    let mut files = pair.config();
    assert!(lets_in(&Tls::load(files.clone(), false).unwrap(), pair.client()).await);
    let roots = dir.path().join("clients.pem");
    let member = client_of(&pair, &roots);
    let stranger = client_of(&pair, &dir.path().join("others.pem"));
    files.client_ca = Some(roots);
    let tls = Tls::load(files, false).unwrap();
    assert!(lets_in(&tls, member).await);
    assert!(!lets_in(&tls, stranger).await);
    assert!(!lets_in(&tls, pair.client()).await);
}

#[test]
fn a_client_is_whom_its_certificate_names() {
    use rcgen::{DistinguishedName, DnType};

    let mut params = CertificateParams::new(vec!["not-the-subject".to_owned()]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    for (kind, value) in [
        (DnType::CommonName, "team-a, CN=admin"),
        (DnType::OrganizationName, "corp"),
        (DnType::CustomDnType(vec![1, 2, 3, 4]), "unknown"),
    ] {
        params.distinguished_name.push(kind, value);
    }
    let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    let named = subject(Some(&[certificate.der().clone()])).unwrap();
    assert_eq!(named.to_string(), "CN=team-a\\, CN=admin,O=corp");
    assert_eq!(subject(None), None);
    assert_eq!(subject(Some(&[])), None);
    assert_eq!(subject(Some(&[CertificateDer::from(vec![1, 2, 3])])), None);
}

#[test]
fn a_pair_that_does_not_match_is_refused() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut files = Pair::write(one.path(), "a.test").config();
    files.key = Pair::write(other.path(), "a.test").config().key;
    assert!(load(&files, false).is_err());
}

#[test]
fn errors_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = Pair::write(dir.path(), "a.test").config();
    std::fs::write(&files.certificate, "").unwrap();
    let error = load(&files, false).unwrap_err().to_string();
    assert!(error.contains("tls.crt"), "{error}");
    files.key = dir.path().join("none.key");
    files.certificate = Pair::write(dir.path(), "a.test").config().certificate;
    let error = load(&files, false).unwrap_err().to_string();
    assert!(error.contains("none.key"), "{error}");
}

#[test]
fn a_swapped_symlink_is_another_version() {
    let dir = tempfile::tempdir().unwrap();
    for version in ["1", "2"] {
        std::fs::create_dir(dir.path().join(version)).unwrap();
        Pair::write(&dir.path().join(version), "a.test");
    }
    // As Kubernetes mounts a secret: tls.crt -> ..data/tls.crt, ..data -> a directory.
    let data = dir.path().join("..data");
    std::os::unix::fs::symlink("1", &data).unwrap();
    std::os::unix::fs::symlink("..data/tls.crt", dir.path().join("tls.crt")).unwrap();
    let before = stamp(&dir.path().join("tls.crt"));
    std::fs::remove_file(&data).unwrap();
    std::os::unix::fs::symlink("2", &data).unwrap();
    let after = stamp(&dir.path().join("tls.crt"));
    assert!(before.is_some() && after.is_some() && before != after);
}

#[test]
fn http2_is_offered_only_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let files = Pair::write(dir.path(), "a.test").config();
    let http1: &[u8] = b"http/1.1";
    assert_eq!(load(&files, false).unwrap().alpn_protocols, [http1]);
    assert_eq!(load(&files, true).unwrap().alpn_protocols, [b"h2", http1]);
}
