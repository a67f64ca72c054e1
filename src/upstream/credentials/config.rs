//! How the configuration spells logins: a user name and a password, or where a credential comes from.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::file::Watched;
use super::{Config, Credential, Login};
use crate::telemetry::SecretSource;
use crate::units;

/// `[upstreams."registry".logins."prefix"]`, and the same three keys of `[upstreams."registry"]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoginConfig {
    pub username: Option<String>,
    pub password: Option<SecretSource>,
    /// In place of both.
    pub credential: Option<CredentialSource>,
}

/// Where a credential comes from that is not written down here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Spelling")]
pub enum CredentialSource {
    /// docker's or podman's file of logins; None: where docker has it.
    DockerConfig {
        file: Option<PathBuf>,
        /// Variables that the helpers of the file may see.
        env: Vec<String>,
    },
    /// A program that prints a login as docker's credential helpers do.
    Exec {
        command: Vec<String>,
        env: Vec<String>,
        /// How long what it printed is good; None: until it is refused.
        lifetime: Option<Duration>,
    },
    Azure(AzureSource),
}

/// An identity of Azure, by which a registry there knows us.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AzureSource {
    /// None: workload identity where AKS gave us one, else managed identity.
    #[serde(rename = "azure", deserialize_with = "some_kind")]
    pub kind: Option<AzureKind>,
    /// Default: `AZURE_CLIENT_ID` for workload identity; the machine's only one for managed.
    pub client_id: Option<String>,
    /// Workload identity. Default: `AZURE_TENANT_ID`.
    pub tenant_id: Option<String>,
    /// Workload identity. Default: `AZURE_FEDERATED_TOKEN_FILE`.
    pub token_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AzureKind {
    /// The federated token that AKS mounts.
    WorkloadIdentity,
    /// Of the machine that we run on.
    ManagedIdentity,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a credential is \"azure\", { azure = \"workload-identity\" }, { azure = \
                 \"managed-identity\" }, \"docker-config\", { docker_config = \"FILE\" } or { exec = \
                 [\"PROGRAM\", ..] }"
)]
enum Spelling {
    Word(Word),
    DockerConfig(DockerConfigSpelling),
    Exec(ExecSpelling),
    Azure(AzureSource),
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    Azure,
    DockerConfig,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DockerConfigSpelling {
    docker_config: PathBuf,
    #[serde(default)]
    env: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExecSpelling {
    exec: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    #[serde(default, deserialize_with = "some_duration")]
    lifetime: Option<Duration>,
}

fn some_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    units::duration(deserializer).map(Some)
}

/// The table has to say it.
fn some_kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<AzureKind>, D::Error> {
    AzureKind::deserialize(deserializer).map(Some)
}

impl From<Spelling> for CredentialSource {
    fn from(spelling: Spelling) -> Self {
        match spelling {
            Spelling::Word(Word::Azure) => CredentialSource::Azure(AzureSource::default()),
            Spelling::Word(Word::DockerConfig) => CredentialSource::DockerConfig {
                file: None,
                env: Vec::new(),
            },
            Spelling::DockerConfig(DockerConfigSpelling { docker_config, env }) => {
                CredentialSource::DockerConfig {
                    file: Some(docker_config),
                    env,
                }
            }
            Spelling::Exec(ExecSpelling {
                exec,
                env,
                lifetime,
            }) => CredentialSource::Exec {
                command: exec,
                env,
                lifetime,
            },
            Spelling::Azure(source) => CredentialSource::Azure(source),
        }
    }
}

// === impl LoginConfig ===

impl LoginConfig {
    /// Every login of an entry with its repository prefix; the entry's own has none.
    pub(super) fn all(config: &Config) -> Vec<(String, LoginConfig)> {
        let own = LoginConfig {
            username: config.username.clone(),
            password: config.password.clone(),
            credential: config.credential.clone(),
        };
        let is_there = own.username.is_some() || own.password.is_some() || own.credential.is_some();
        let own = is_there.then(|| (String::new(), own));
        let more = config.logins.iter();
        let more = more.map(|(prefix, login)| (prefix.clone(), login.clone()));
        own.into_iter().chain(more).collect()
    }

    /// The login of a user name and a password. Blocking: reads the password.
    pub(super) fn password(&self) -> Result<Login, String> {
        let (username, password) = match (&self.username, &self.password) {
            (Some(username), Some(password)) => (username.clone(), password),
            (None, Some(_)) => return Err("has a password but no username".into()),
            (Some(_), None) => return Err("has a username but no password".into()),
            (None, None) => return Err("has no username and password, and no credential".into()),
        };
        if username.contains(':') {
            return Err("a username has no colon".into());
        }
        let wrong = |error: String| format!("password: {error}");
        if let SecretSource::File(path) = password {
            let password = Watched::open(path, SecretSource::trim).map_err(wrong)?;
            return Ok(Login::PasswordFile { username, password });
        }
        let password = password.read().map_err(wrong)?;
        Ok(Login::Fixed(Credential::Password { username, password }))
    }
}
