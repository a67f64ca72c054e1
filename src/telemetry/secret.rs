//! The three ways to spell a secret in the configuration.

use std::path::PathBuf;

use zeroize::Zeroizing;

use super::Secret;

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
        SecretSource::trim(&text).map_err(|error| format!("{place} {error}"))
    }

    /// The secret in the text of a file: without the newline at its end.
    pub fn trim(text: &str) -> Result<Secret<String>, String> {
        match text.trim_end_matches(['\r', '\n']) {
            "" => Err("is empty".into()),
            secret => Ok(Secret::new(secret.to_owned())),
        }
    }
}
