//! A private certificate authority and what it signs.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// PEM files in a directory.
#[derive(Debug)]
pub struct Certificates {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// The authority's own certificate.
    pub authority: String,
    pub authority_file: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    /// A new authority, and a certificate of it for `127.0.0.1` and `localhost`.
    pub fn create(directory: &Path) -> Self {
        Certificates::of(directory, &["127.0.0.1", "localhost"])
    }

    /// The same with a certificate for `names`.
    pub fn of(directory: &Path, names: &[&str]) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();

        // skopeo and podman want a directory in which the authority is alone.
        std::fs::create_dir_all(directory.join("authority")).unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            // As a rotation does it: the file is whole or absent.
            let temporary = path.with_extension("new");
            std::fs::write(&temporary, text).unwrap();
            std::fs::rename(&temporary, &path).unwrap();
            path
        };
        Certificates {
            authority: issuer.pem(),
            authority_file: write("authority/ca.crt", &issuer.pem()),
            key: write("tls.key", &key.serialize_pem()),
            certificate: write("tls.crt", &certificate.pem()),
            issuer,
        }
    }

    /// A client's certificate and key (PEM) with these attributes, `CN` and `O`, as its subject.
    pub fn client(&self, subject: &[(&str, &str)]) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        for (name, value) in subject {
            let kind = match *name {
                "CN" => DnType::CommonName,
                "O" => DnType::OrganizationName,
                other => panic!("no attribute {other}"),
            };
            params.distinguished_name.push(kind, *value);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}
