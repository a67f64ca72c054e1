//! A login at an upstream, and the three ways to spell its secret.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use zeroize::Zeroizing;

use crate::telemetry::Secret;

/// Where a secret is written down: `"literal"`, `{ env = "NAME" }` or `{ file = "/run/x" }`.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(from = "Spelling")]
pub enum SecretSource {
    Literal(Secret<String>),
    Env(String),
    File(PathBuf),
}

#[derive(serde::Deserialize)]
#[serde(
    untagged,
    expecting = "a secret is \"text\", { env = \"NAME\" } or { file = \"PATH\" }"
)]
enum Spelling {
    Literal(String),
    Env(EnvSpelling),
    File(FileSpelling),
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvSpelling {
    env: String,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSpelling {
    file: PathBuf,
}

/// Who a login's images are shown to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShareWith {
    /// What this login may see is public here.
    Everyone,
}

/// A user name and a password, read and ready.
#[derive(Clone, Debug)]
pub(super) struct Credential {
    username: String,
    password: Secret<String>,
}

// === impl SecretSource ===

impl From<Spelling> for SecretSource {
    fn from(spelling: Spelling) -> Self {
        match spelling {
            Spelling::Literal(text) => SecretSource::Literal(Secret::new(text)),
            Spelling::Env(EnvSpelling { env }) => SecretSource::Env(env),
            Spelling::File(FileSpelling { file }) => SecretSource::File(file),
        }
    }
}

impl SecretSource {
    /// Reads the secret; blocking. The newline at the end of a file is not part of it. Errors
    /// name the variable or the file, never what was in it.
    pub fn read(&self) -> Result<Secret<String>, String> {
        let (text, place) = match self {
            SecretSource::Literal(secret) => return Ok(secret.clone()),
            SecretSource::Env(name) => {
                let place = format!("the environment variable {name}");
                let text = std::env::var(name).map_err(|_| format!("{place} is not set"))?;
                (Zeroizing::new(text), place)
            }
            SecretSource::File(path) => {
                let place = path.display().to_string();
                let text = std::fs::read_to_string(path).map_err(|e| format!("{place}: {e}"))?;
                (Zeroizing::new(text), place)
            }
        };
        match text.trim_end_matches(['\r', '\n']) {
            "" => Err(format!("{place} is empty")),
            secret => Ok(Secret::new(secret.to_owned())),
        }
    }
}

// === impl Credential ===

impl Credential {
    pub(super) fn new(username: String, password: Secret<String>) -> Self {
        Credential { username, password }
    }

    /// The value of `Authorization` in the Basic scheme (RFC 7617).
    pub(super) fn basic(&self) -> HeaderValue {
        let pair = Zeroizing::new(format!("{}:{}", self.username, self.password.expose()));
        let text = format!("Basic {}", STANDARD.encode(pair.as_bytes()));
        let mut value = HeaderValue::try_from(text).expect("base64 is a header value");
        value.set_sensitive(true);
        value
    }
}
