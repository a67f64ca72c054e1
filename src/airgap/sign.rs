//! Signatures of bundles, with keys and formats that `openssl` has too.
//!
//! What is signed is the output of `sha256sum bundle.json checksums.txt`: two lines, and through
//! them every byte of the bundle. `bundle.sig` is the signature in base64: 64 bytes for ed25519, or
//! an ECDSA signature in DER over the SHA-256 of those lines, for a key on P-256. Which of the two
//! it is, the key says.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair,
    UnparsedPublicKey,
};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};

use super::bundle::{BUNDLE_FILE, CHECKSUMS_FILE};
use crate::oci::Digest;

/// A private key.
#[derive(Debug)]
pub enum SigningKey {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

/// A public key: its `SubjectPublicKeyInfo`, in DER.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedKey(Vec<u8>);

/// Why there is no key in a file, or no signature by one.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(
        "it is no unencrypted private key in PEM for ed25519 or ECDSA on P-256, as `openssl genpkey -algorithm ed25519` makes one"
    )]
    Private,
    #[error("it is no public key in PEM, as `openssl pkey -pubout` writes one")]
    Public,
    #[error("the key cannot sign")]
    Signing,
}

// === impl SigningKey ===

impl SigningKey {
    /// Reads a private key in PEM, PKCS#8 or SEC1.
    ///
    /// # Errors
    /// When it is none that we use.
    pub fn parse(pem: &[u8]) -> Result<Self, KeyError> {
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| KeyError::Private)?;
        let der = key.secret_der();
        if let Ok(key) = Ed25519KeyPair::from_pkcs8(der) {
            return Ok(SigningKey::Ed25519(key));
        }
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let key = EcdsaKeyPair::from_private_key_der(algorithm, der);
        key.map(SigningKey::P256).map_err(|_| KeyError::Private)
    }

    /// The text of `bundle.sig`.
    ///
    /// # Errors
    /// When there is no randomness to be had.
    pub fn sign(&self, bundle: &[u8], checksums: &[u8]) -> Result<String, KeyError> {
        let message = message(bundle, checksums);
        let signature = match self {
            SigningKey::Ed25519(key) => key.try_sign(message.as_bytes()),
            SigningKey::P256(key) => key.sign(&SystemRandom::new(), message.as_bytes()),
        };
        let signature = signature.map_err(|_| KeyError::Signing)?;
        Ok(BASE64_STANDARD.encode(signature.as_ref()) + "\n")
    }
}

// === impl TrustedKey ===

impl TrustedKey {
    /// Reads a public key in PEM.
    ///
    /// # Errors
    /// When there is none.
    pub fn parse(pem: &[u8]) -> Result<Self, KeyError> {
        let key = SubjectPublicKeyInfoDer::from_pem_slice(pem);
        key.map(|key| TrustedKey(key.to_vec()))
            .map_err(|_| KeyError::Public)
    }

    /// For a request of `/api/v1`.
    #[must_use]
    pub fn to_text(&self) -> String {
        BASE64_STANDARD.encode(&self.0)
    }

    /// # Errors
    /// When it is not what [`TrustedKey::to_text`] makes.
    pub fn from_text(text: &str) -> Result<Self, KeyError> {
        let der = BASE64_STANDARD.decode(text);
        der.map(TrustedKey).map_err(|_| KeyError::Public)
    }

    /// Whether `signature`, the content of `bundle.sig`, is by this key.
    #[must_use]
    pub fn verifies(&self, bundle: &[u8], checksums: &[u8], signature: &[u8]) -> bool {
        let Ok(signature) = BASE64_STANDARD.decode(signature.trim_ascii()) else {
            return false;
        };
        let message = message(bundle, checksums);
        let by = |public: UnparsedPublicKey<&Vec<u8>>| {
            public.verify(message.as_bytes(), &signature).is_ok()
        };
        by(UnparsedPublicKey::new(&ED25519, &self.0))
            || by(UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.0))
    }
}

fn message(bundle: &[u8], checksums: &[u8]) -> String {
    let line = |bytes, name| format!("{}  {name}\n", Digest::sha256(bytes).hex());
    line(bundle, BUNDLE_FILE) + &line(checksums, CHECKSUMS_FILE)
}
