//! Logins at an upstream: where they come from, and what they are at the moment.
//!
//! - `config`: how the configuration spells them;
//! - `file`: secrets in files, read again when the files change;
//! - `helper`: programs that give a login;
//! - `docker`: `config.json`, and the helpers that it names;
//! - `azure`: identities of Azure, and what a registry there (`acr`) gives for them;
//! - `kept`: what has to be renewed, by one caller at a time.
//!
//! Of several logins the one with the longest repository prefix is meant. A login is asked for again
//! for every use, which costs nothing while nothing has changed, and once more when it was refused.

mod acr;
mod azure;
mod config;
mod docker;
mod file;
mod helper;
mod kept;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use sha2::{Digest as _, Sha256};
use url::Url;
use zeroize::Zeroizing;

use super::UpstreamErrorKind;
use super::config::Config;
use super::http::Factory;
use crate::oci::{Registry, RepositoryName};
use crate::telemetry::{Metrics, Secret};
use docker::DockerConfig;
use file::Watched;
use helper::Helper;

pub(super) use acr::Claims;
pub(super) use azure::{Azure, post};
pub use config::{CredentialSource, LoginConfig};

/// Who a login's images are shown to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShareWith {
    /// What this login may see is public here.
    Everyone,
}

/// What a login is at the moment.
#[derive(Clone, Debug)]
pub(super) enum Credential {
    /// For the Basic scheme, at a registry or at its token service.
    Password {
        username: String,
        password: Secret<String>,
    },
    /// Stands for a login at a token service (docker's `identitytoken`).
    Refresh(Secret<String>),
    /// A token for the registry itself: none is asked for (docker's `registrytoken`).
    Bearer(Secret<String>),
    /// Becomes a refresh token at the registry that asks for it.
    Azure(Arc<Azure>),
}

/// Tells one credential from another without showing it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Principal([u8; 32]);

/// The logins of one upstream by repository prefix, the longest first; the empty prefix is all of
/// the registry.
#[derive(Debug, Default)]
pub(super) struct Logins(Vec<(String, Login)>);

#[derive(Debug)]
enum Login {
    Fixed(Credential),
    PasswordFile {
        username: String,
        password: Watched<Secret<String>>,
    },
    Docker(DockerConfig),
    Helper(Helper),
    Azure(Arc<Azure>),
}

// === impl Credential ===

impl Credential {
    /// The value of `Authorization` in the Basic scheme (RFC 7617), where there is a password.
    pub(super) fn basic(&self) -> Option<HeaderValue> {
        let Credential::Password { username, password } = self else {
            return None;
        };
        let pair = Zeroizing::new(format!("{username}:{}", password.expose()));
        let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
        sensitive(&text)
    }

    /// The same in the Bearer scheme, where the credential is the token.
    pub(super) fn bearer(&self) -> Option<HeaderValue> {
        let Credential::Bearer(token) = self else {
            return None;
        };
        sensitive(&Zeroizing::new(format!("Bearer {}", token.expose())))
    }

    pub(super) fn principal(&self) -> Principal {
        let parts: [&str; 3] = match self {
            Credential::Password { username, password } => {
                ["password", username, password.expose()]
            }
            Credential::Refresh(token) => ["refresh", "", token.expose()],
            Credential::Bearer(token) => ["bearer", "", token.expose()],
            // One identity for as long as the configuration holds.
            Credential::Azure(azure) => ["azure", azure.key(), ""],
        };
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Principal(hasher.finalize().into())
    }
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Principal")
    }
}

// === impl Logins ===

impl Logins {
    /// The logins of an entry. Blocking: reads files and the environment. Fails with all that is
    /// wrong.
    pub(super) fn new(
        key: &str,
        config: &Config,
        factory: &mut Factory<'_>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, Vec<String>> {
        let mut logins = Vec::new();
        let mut wrong = Vec::new();
        for (prefix, spelled) in LoginConfig::all(config) {
            let said = |problem: String| match prefix.as_str() {
                "" => problem,
                prefix => format!("logins.\"{prefix}\": {problem}"),
            };
            if !prefix.is_empty() && prefix.parse::<RepositoryName>().is_err() {
                wrong.push(said("is no repository and no beginning of one".into()));
                continue;
            }
            match Login::new(key, &spelled, factory, metrics) {
                Ok(login) => logins.push((prefix, login)),
                Err(problem) => wrong.push(said(problem)),
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        logins.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Ok(Logins(logins))
    }

    /// What to log in with for a repository; None: nothing.
    ///
    /// # Errors
    /// There should be a login, and it cannot be had.
    pub(super) async fn current(
        &self,
        name: &RepositoryName,
    ) -> Result<Option<Credential>, UpstreamErrorKind> {
        match self.of(name) {
            Some(login) => login.current(name).await,
            None => Ok(None),
        }
    }

    /// What to log in with where `refused` was: only what differs from it.
    pub(super) async fn instead_of(
        &self,
        refused: Principal,
        name: &RepositoryName,
    ) -> Result<Option<Credential>, UpstreamErrorKind> {
        let Some(login) = self.of(name) else {
            return Ok(None);
        };
        login.refused(refused, name).await;
        let now = login.current(name).await?;
        Ok(now.filter(|credential| credential.principal() != refused))
    }

    /// Hosts that are dialled for identities and for nothing else.
    pub(super) fn identity_hosts(&self) -> Vec<String> {
        let hosts = self.0.iter().filter_map(|(_, login)| match login {
            Login::Azure(azure) => Some(azure.host()),
            _ => None,
        });
        let mut hosts: Vec<_> = hosts.collect();
        hosts.sort();
        hosts.dedup();
        hosts
    }

    fn of(&self, name: &RepositoryName) -> Option<&Login> {
        let found = self.0.iter().find(|(prefix, _)| is_under(name, prefix));
        found.map(|(_, login)| login)
    }
}

/// Where the entry `key` may ask for identities, by the configuration alone; each once.
pub(super) fn identity_urls(key: &str, config: &Config) -> Vec<Url> {
    let logins = config.logins.values();
    let sources = logins
        .map(|login| &login.credential)
        .chain([&config.credential]);
    let mut urls: Vec<Url> = Vec::new();
    for source in sources.flatten() {
        if let CredentialSource::Azure(source) = source {
            urls.extend(azure::hosts(key, source));
        }
    }
    urls.sort();
    urls.dedup();
    urls
}

/// Whether a repository is `prefix` or below it, by whole segments.
fn is_under(name: &RepositoryName, prefix: &str) -> bool {
    match name.as_str().strip_prefix(prefix) {
        Some(rest) => prefix.is_empty() || rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}

// === impl Login ===

impl Login {
    fn new(
        key: &str,
        spelled: &LoginConfig,
        factory: &mut Factory<'_>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, String> {
        let Some(source) = &spelled.credential else {
            return spelled.password();
        };
        if spelled.username.is_some() || spelled.password.is_some() {
            return Err("has a credential, and a username or password beside it".into());
        }
        let registry = || key.parse::<Registry>().map_err(|error| error.to_string());
        match source {
            CredentialSource::DockerConfig { file, env } => {
                DockerConfig::new(registry()?, file.as_deref(), env).map(Login::Docker)
            }
            CredentialSource::Exec {
                command,
                env,
                lifetime,
            } => Helper::new(command, env, registry()?.as_str(), *lifetime).map(Login::Helper),
            CredentialSource::Azure(spelled) => {
                let azure = Azure::new(key, spelled, factory, metrics)?;
                Ok(Login::Azure(Arc::new(azure)))
            }
        }
    }

    async fn current(
        &self,
        name: &RepositoryName,
    ) -> Result<Option<Credential>, UpstreamErrorKind> {
        match self {
            Login::Fixed(credential) => Ok(Some(credential.clone())),
            Login::PasswordFile { username, password } => Ok(Some(Credential::Password {
                username: username.clone(),
                password: Secret::clone(&*password.current().await),
            })),
            Login::Docker(docker) => docker.current(name).await,
            Login::Helper(helper) => helper.some().await,
            Login::Azure(azure) => Ok(Some(Credential::Azure(Arc::clone(azure)))),
        }
    }

    /// Looks again where the login comes from.
    async fn refused(&self, refused: Principal, name: &RepositoryName) {
        match self {
            // An identity is renewed where it is exchanged.
            Login::Fixed(_) | Login::Azure(_) => {}
            Login::PasswordFile { password, .. } => password.read_again().await,
            Login::Docker(docker) => docker.refused(refused, name).await,
            Login::Helper(helper) => helper.refused(refused),
        }
    }
}
