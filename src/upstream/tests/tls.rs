//! Upstreams that cannot prove who they are: what they say is not heard, and people hear why.

use rcgen::{CertificateParams, CertifiedIssuer, KeyPair, date_time_ymd};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// A private authority, and TLS with a certificate that it signed unless it is to sign itself.
fn served(
    self_signed: bool,
    change: impl FnOnce(&mut CertificateParams),
) -> (String, Arc<rustls::ServerConfig>) {
    install_crypto();
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    change(&mut params);
    let certificate = if self_signed {
        params.self_signed(&key).unwrap()
    } else {
        params.signed_by(&key, &authority).unwrap()
    };
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (authority.pem(), Arc::new(config))
}

/// `registry.example` at this address, with its authority trusted.
async fn asked(
    address: std::net::SocketAddr,
    authority: &str,
) -> Result<Vec<u8>, UpstreamErrorKind> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, authority).unwrap();
    let toml = format!("[\"{NAME}\"]\nendpoints = [\"https://{address}\"]\nca_files = [{file:?}]");
    let upstreams = upstreams(&toml, &Limits::default()).unwrap();
    let result = get(&upstreams.get(&registry(NAME)).unwrap(), "a").await;
    result.map_err(|error| kind(Err::<(), _>(error)))
}

/// Security row T30.
#[tokio::test]
async fn a_certificate_that_proves_nothing_is_refused_with_its_reason() {
    type Change = fn(&mut CertificateParams);
    let cases: [(bool, Change, &str); 5] = [
        (false, |_| {}, ""),
        (
            true,
            |params| {
                params
                    .distinguished_name
                    .push(rcgen::DnType::CommonName, "somebody");
            },
            "UnknownIssuer",
        ),
        (
            false,
            |params| params.not_after = date_time_ymd(2020, 1, 1),
            "expired",
        ),
        (
            false,
            |params| params.not_before = date_time_ymd(2900, 1, 1),
            "not valid yet",
        ),
        (
            false,
            |params| {
                params.subject_alt_names =
                    vec![rcgen::SanType::DnsName("other.example".try_into().unwrap())];
            },
            "not valid for name",
        ),
    ];
    for (self_signed, change, reason) in cases {
        let (authority, config) = served(self_signed, change);
        let server = Server::start_tls(config, |_| Reply::new(200, "{}")).await;
        let result = asked(server.address, &authority).await;
        if reason.is_empty() {
            assert_eq!(result.unwrap(), b"{}");
            continue;
        }
        let error = result.unwrap_err();
        let UpstreamErrorKind::Unavailable(text) = &error else {
            panic!("{reason}: {error:?}")
        };
        let expected = format!("TLS with {} failed (", server.address);
        assert!(
            text.starts_with(&expected) && text.contains(reason),
            "{reason}: {text}"
        );
        assert_eq!(server.seen(), [], "{reason}");
    }
}

/// Security row T30: nothing older than TLS 1.2 is spoken, whatever the other side would like.
#[tokio::test]
async fn old_tls_is_not_spoken() {
    let mut hello = vec![
        0x16, 0x03, 0x02, 0x00, 0x2a, 0x02, 0x00, 0x00, 0x26, 0x03, 0x02,
    ];
    hello.extend([7; 32]);
    // No session, ECDHE_ECDSA with AES-128-CBC, no compression.
    hello.extend([0x00, 0xc0, 0x09, 0x00]);
    // An alert "protocol version", as servers of that age send it.
    let alert = vec![0x15, 0x03, 0x02, 0x00, 0x02, 0x02, 0x46];
    for answer in [hello, alert] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 5];
                stream.read_exact(&mut head).await.unwrap();
                let mut rest = vec![0; u16::from_be_bytes([head[3], head[4]]).into()];
                stream.read_exact(&mut rest).await.unwrap();
                stream.write_all(&answer).await.unwrap();
                let _ = stream.read(&mut head).await;
            }
        });
        let (authority, _) = served(false, |_| {});
        let error = asked(address, &authority).await.unwrap_err();
        let UpstreamErrorKind::Unavailable(text) = &error else {
            panic!("{error:?}")
        };
        let expected = format!("TLS with {address} failed (");
        assert!(text.starts_with(&expected), "{text}");
    }
}

/// Security rows T23 and T30: an upstream with https sends us nowhere without, not even to itself.
#[tokio::test]
async fn nothing_leads_out_of_tls() {
    let plain = Server::bystander().await;
    let target = plain.url();
    for redirects in [true, false] {
        let (target, (authority, config)) = (target.clone(), served(false, |_| {}));
        let server = Server::start_tls(config, move |_| {
            if redirects {
                Reply::redirect(target.clone())
            } else {
                Reply::challenge(format!("Bearer realm=\"{target}/token\""))
            }
        })
        .await;
        let error = asked(server.address, &authority).await.unwrap_err();
        assert!(
            matches!(error, UpstreamErrorKind::HostRefused(_)),
            "{error}"
        );
        assert!(error.to_string().contains("without https"), "{error}");
        assert_eq!(server.seen().len(), 1);
    }
    assert_eq!(plain.connections(), 0);
}
