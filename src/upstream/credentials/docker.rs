//! docker's and podman's file of logins, `config.json` or `auth.json`.
//!
//! For a repository the longest key that it is under decides, `registry/namespace` before
//! `registry`; under one key a helper of its own (`credHelpers`) before what is written down
//! (`auths`). What no key decides is asked of `credsStore`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::file::Watched;
use super::helper::Helper;
use super::{Credential, Principal, is_under};
use crate::oci::{Registry, RepositoryName};
use crate::telemetry::Secret;
use crate::upstream::UpstreamErrorKind;

/// docker.io as `docker login` writes it.
const HUB: &str = "https://index.docker.io/v1/";

/// Helpers whose answers are kept; a file that goes on changing could name any number.
const HELPERS: usize = 64;

/// The logins of one file for one registry.
#[derive(Debug)]
pub(super) struct DockerConfig {
    entries: Watched<Entries>,
    environment: Vec<String>,
    /// By program and server: they keep what they were told.
    helpers: Mutex<HashMap<Ask, Arc<Helper>>>,
}

/// What a file has for one registry.
#[derive(Debug, Default)]
struct Entries {
    /// By repository prefix, the longest first.
    by_prefix: Vec<(String, Entry)>,
    store: Option<Ask>,
}

#[derive(Clone, Debug)]
enum Entry {
    Written(Credential),
    Asked(Ask),
}

/// `docker-credential-NAME get`, and the server that it is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Ask {
    program: String,
    server: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct File {
    auths: BTreeMap<String, Written>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Written {
    /// base64 of `user:password`.
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

// === impl DockerConfig ===

impl DockerConfig {
    /// Reads `file`, or docker's own. Blocking.
    ///
    /// # Errors
    /// Names the file and never what is in it. One without a login for `registry` is an error.
    pub(super) fn new(
        registry: Registry,
        file: Option<&Path>,
        environment: &[String],
    ) -> Result<Self, String> {
        let file = match file {
            Some(file) => file.to_owned(),
            None => default_file()?,
        };
        let parse = move |text: &str| Entries::parse(text, &registry);
        Ok(DockerConfig {
            entries: Watched::open(&file, parse)?,
            environment: environment.to_vec(),
            helpers: Mutex::default(),
        })
    }

    /// What the file, or a helper that it names, has for a repository.
    pub(super) async fn current(
        &self,
        name: &RepositoryName,
    ) -> Result<Option<Credential>, UpstreamErrorKind> {
        match self.entries.current().await.find(name) {
            None => Ok(None),
            Some(Entry::Written(credential)) => Ok(Some(credential)),
            Some(Entry::Asked(ask)) => self.helper(&ask)?.current().await,
        }
    }

    pub(super) async fn refused(&self, refused: Principal, name: &RepositoryName) {
        self.entries.read_again().await;
        if let Some(Entry::Asked(ask)) = self.entries.current().await.find(name)
            && let Ok(helper) = self.helper(&ask)
        {
            helper.refused(refused);
        }
    }

    fn helper(&self, ask: &Ask) -> Result<Arc<Helper>, UpstreamErrorKind> {
        let mut helpers = self.helpers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(helper) = helpers.get(ask) {
            return Ok(Arc::clone(helper));
        }
        if helpers.len() >= HELPERS {
            helpers.clear();
        }
        let command = [ask.program.clone(), "get".to_owned()];
        let helper = Helper::new(&command, &self.environment, &ask.server, None);
        let helper = Arc::new(helper.map_err(UpstreamErrorKind::LoginUnavailable)?);
        helpers.insert(ask.clone(), Arc::clone(&helper));
        Ok(helper)
    }
}

fn default_file() -> Result<PathBuf, String> {
    if let Some(directory) = std::env::var_os("DOCKER_CONFIG") {
        return Ok(Path::new(&directory).join("config.json"));
    }
    match std::env::var_os("HOME") {
        Some(home) => Ok(Path::new(&home).join(".docker/config.json")),
        None => Err(
            "docker-config needs the environment variable DOCKER_CONFIG or HOME, or \
                     { docker_config = \"FILE\" }"
                .into(),
        ),
    }
}

// === impl Entries ===

impl Entries {
    fn parse(text: &str, registry: &Registry) -> Result<Self, String> {
        let file: File = serde_json::from_str(text)
            // Not the library's words: they may quote.
            .map_err(|error| format!("is no docker config.json: line {}", error.line()))?;
        let mut by_prefix = Vec::new();
        for (key, name) in &file.cred_helpers {
            if let Some(prefix) = prefix_of(key, registry) {
                let ask = Ask::new(name, key)?;
                by_prefix.push((prefix, Entry::Asked(ask)));
            }
        }
        for (key, auth) in &file.auths {
            if let Some(prefix) = prefix_of(key, registry)
                && let Some(credential) = auth
                    .credential()
                    .map_err(|problem| format!("auths.\"{key}\" {problem}"))?
            {
                by_prefix.push((prefix, Entry::Written(credential)));
            }
        }
        // Stable, so that a helper stays in front of what is written under the same key.
        by_prefix.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        let server = match registry.as_str() {
            "docker.io" => HUB,
            own => own,
        };
        let store = match file.creds_store.as_str() {
            "" => None,
            name => Some(Ask::new(name, server)?),
        };
        if by_prefix.is_empty() && store.is_none() {
            return Err(format!("has no login for {registry}"));
        }
        Ok(Entries { by_prefix, store })
    }

    fn find(&self, name: &RepositoryName) -> Option<Entry> {
        let mut entries = self.by_prefix.iter();
        let found = entries.find(|(prefix, _)| is_under(name, prefix));
        match found {
            Some((_, entry)) => Some(entry.clone()),
            None => self.store.clone().map(Entry::Asked),
        }
    }
}

/// The repository prefix that a key means, if it is about `registry`: `quay.io/corp`, `quay.io`,
/// `https://index.docker.io/v1/`.
fn prefix_of(key: &str, registry: &Registry) -> Option<String> {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    let rest = bare.unwrap_or(key).trim_end_matches('/');
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let named: Registry = host.parse().ok()?;
    if named != *registry {
        return None;
    }
    // What `docker login` writes is a URL with the version of an API.
    let is_version = matches!(path, "v1" | "v2");
    let is_url = bare.is_some() || named == Registry::docker_hub();
    if is_version && is_url {
        return Some(String::new());
    }
    Some(path.to_owned())
}

// === impl Ask ===

impl Ask {
    fn new(name: &str, server: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || !name.chars().all(plain) {
            return Err(format!("names {name:?}, which is no credential helper"));
        }
        Ok(Ask {
            program: format!("docker-credential-{name}"),
            server: server.to_owned(),
        })
    }
}

// === impl Written ===

impl Written {
    /// None for an entry that only says that there is a login elsewhere.
    fn credential(&self) -> Result<Option<Credential>, String> {
        let secret = |text: &str| Secret::new(text.to_owned());
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credential::Bearer(secret(&self.registrytoken))));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credential::Refresh(secret(&self.identitytoken))));
        }
        let decoded = STANDARD.decode(self.auth.trim()).ok();
        let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        let decoded = Zeroizing::new(decoded.ok_or("has an auth that is no base64")?);
        let (username, password) = match decoded.trim_end_matches('\0').split_once(':') {
            Some(pair) => pair,
            None if decoded.is_empty() => (&*self.username, &*self.password),
            None => return Err("has an auth without a user name".into()),
        };
        let is_there = !username.is_empty() && !password.is_empty();
        Ok(is_there.then(|| Credential::Password {
            username: username.to_owned(),
            password: secret(password),
        }))
    }
}

#[cfg(test)]
mod tests;
