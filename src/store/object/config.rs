//! `[store.shared]`: which object store replicas share, and how it is reached.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use url::{Host, Url};

use super::connect::{ConnectError, build};
use super::recorded::Recorded;
use crate::telemetry::SecretSource;
use crate::units;

/// A shorter time than this could take what a replica uses but has not written down yet.
pub const SHORTEST_PRUNE: Duration = Duration::from_secs(24 * 60 * 60);

/// `[store.shared]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub url: Location,
    /// Who we are there. Nothing in the environment takes its place.
    pub credential: Credential,
    /// For `account-key` on S3: the name of the key.
    pub key_id: Option<String>,
    /// The account key, the SAS, the S3 secret key, or the JSON of a Google service account.
    pub secret: Option<SecretSource>,
    /// For emulators and odd clouds; with an account's path where the cloud wants it.
    pub endpoint: Option<Url>,
    /// S3 only; default `us-east-1`.
    pub region: Option<String>,
    #[serde(default)]
    pub via: Via,
    /// Clients in these networks get a signed URL instead of a stream.
    #[serde(default)]
    pub redirect: Vec<IpNet>,
    pub peers: Option<Peers>,
    /// What has not been used for this long is pruned once a day; None: only by command.
    #[serde(default, deserialize_with = "some_duration")]
    pub prune_older_than: Option<Duration>,
}

/// `[store.shared.peers]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peers {
    /// How other replicas reach this one.
    pub advertise: Url,
    /// Where replicas are: they are dialled and listened to only inside.
    pub networks: Vec<IpNet>,
    /// What replicas sign their requests to each other with.
    pub secret: SecretSource,
}

/// `az://ACCOUNT/CONTAINER/PREFIX`, `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Location {
    pub cloud: Cloud,
    /// Azure's container, or a bucket.
    pub container: String,
    /// Without slashes at its ends; may be empty.
    pub prefix: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cloud {
    Azure { account: String },
    S3,
    Google,
}

/// Who we are at the shared store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Credential {
    /// Azure: the federated token that AKS mounts. S3: the same by a web identity token.
    WorkloadIdentity,
    /// Of the machine that we run on: Azure's, or an S3 instance role, or Google's metadata server.
    ManagedIdentity,
    /// Azure: an account's key. S3: an access key. Google: a service account's key.
    AccountKey,
    /// Azure: a shared access signature for the container.
    Sas,
    /// Azurite's well-known account, or an S3 emulator that asks for nothing; makes its container.
    Emulator,
}

/// The way out to the shared store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    #[default]
    Direct,
    /// As upstreams are reached: through the egress proxy. Identity services never are.
    Egress,
}

/// Why a text is no [`Location`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no shared store: write az://ACCOUNT/CONTAINER/PREFIX, s3://BUCKET/PREFIX or \
     gs://BUCKET/PREFIX"
)]
pub struct InvalidLocation(String);

fn some_duration<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    units::duration(deserializer).map(Some)
}

// === impl Config ===

impl Config {
    /// Whether the way there leads through the egress proxy, if there is one.
    #[must_use]
    pub fn by_proxy(&self) -> bool {
        self.via == Via::Egress
    }

    pub(super) fn region(&self) -> &str {
        self.region.as_deref().unwrap_or("us-east-1")
    }

    /// Everything that can be known to be wrong without a connection: the key below
    /// `store.shared`, and what is wrong with it. Blocks: reads secrets from files. `client` sends
    /// nothing.
    #[must_use]
    pub fn check(&self, client: &reqwest::Client) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        let mut add = |key: &str, message: &str| wrong.push((key.to_owned(), message.to_owned()));
        let client = Recorded {
            client: client.clone(),
            ledger: Arc::default(),
            store: self.host(),
        };
        if let Err(ConnectError::Config { key, message }) = build(self, client) {
            add(key, &message);
        }
        if !self.redirect.is_empty() && self.credential == Credential::Sas {
            add(
                "redirect",
                "needs a credential that can sign URLs, which a SAS cannot",
            );
        }
        if self
            .prune_older_than
            .is_some_and(|age| age < SHORTEST_PRUNE)
        {
            add(
                "prune_older_than",
                "must be at least 1d: replicas write down once an hour what they use",
            );
        }
        wrong
    }
}

// === impl Peers ===

/// Fewer bytes of a secret could be guessed.
const SHORTEST_SECRET: usize = 16;

impl Peers {
    /// What is wrong with it, each with its key. Blocking: reads the secret.
    #[must_use]
    pub fn check(&self) -> Vec<(&'static str, String)> {
        let mut wrong = Vec::new();
        if self.networks.is_empty() {
            wrong.push((
                "networks",
                "names no network: replicas are dialled and answered only inside".to_owned(),
            ));
        }
        let url = &self.advertise;
        let plain = Url::parse(&url.origin().ascii_serialization()).as_ref() == Ok(url);
        if !matches!(url.scheme(), "http" | "https") || !plain {
            let message = "must be http:// or https:// with host and port and nothing more";
            wrong.push(("advertise", message.to_owned()));
        }
        let literal = match url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(Host::Domain(_)) | None => None,
        };
        if let Some(address) = literal
            && !self
                .networks
                .iter()
                .any(|network| network.contains(&address))
        {
            let message = format!("{address} is not inside networks: no replica would dial it");
            wrong.push(("advertise", message));
        }
        if let Some(network) = self.networks.iter().find(|network| !is_private(network))
            && url.scheme() == "http"
        {
            let message = format!(
                "is http://, and {network} is not private: anybody on the way could read along;                  use https:// or smaller networks"
            );
            wrong.push(("advertise", message));
        }
        match self.secret.read() {
            Ok(secret) if secret.expose().len() < SHORTEST_SECRET => wrong.push((
                "secret",
                format!("is shorter than {SHORTEST_SECRET} bytes and could be guessed"),
            )),
            Ok(_) => {}
            Err(message) => wrong.push(("secret", message)),
        }
        wrong
    }
}

/// Whether nothing of a network is on the internet.
fn is_private(network: &IpNet) -> bool {
    const PRIVATE: [&str; 8] = [
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "::1/128",
        "fc00::/7",
    ];
    let private = PRIVATE.iter().filter_map(|text| text.parse::<IpNet>().ok());
    private.into_iter().any(|private| private.contains(network))
}

// === impl Location ===

impl FromStr for Location {
    type Err = InvalidLocation;

    fn from_str(text: &str) -> Result<Self, InvalidLocation> {
        let invalid = || InvalidLocation(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(invalid)?;
        let mut parts = rest.trim_end_matches('/').splitn(3, '/');
        let mut part = || parts.next().unwrap_or_default().to_owned();
        let (cloud, container) = match scheme {
            "az" => (Cloud::Azure { account: part() }, part()),
            "s3" => (Cloud::S3, part()),
            "gs" => (Cloud::Google, part()),
            _ => return Err(invalid()),
        };
        let rest: Vec<&str> = parts.collect();
        let prefix = rest.join("/");
        let plain = |text: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !text.is_empty() && !text.starts_with('.') && text.chars().all(known)
        };
        let account = match &cloud {
            Cloud::Azure { account } => plain(account),
            Cloud::S3 | Cloud::Google => true,
        };
        if !account || !plain(&container) || !(prefix.is_empty() || prefix.split('/').all(plain)) {
            return Err(invalid());
        }
        Ok(Location {
            cloud,
            container,
            prefix,
        })
    }
}

impl TryFrom<String> for Location {
    type Error = InvalidLocation;

    fn try_from(text: String) -> Result<Self, InvalidLocation> {
        text.parse()
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cloud {
            Cloud::Azure { account } => write!(f, "az://{account}/{}", self.container)?,
            Cloud::S3 => write!(f, "s3://{}", self.container)?,
            Cloud::Google => write!(f, "gs://{}", self.container)?,
        }
        if self.prefix.is_empty() {
            Ok(())
        } else {
            write!(f, "/{}", self.prefix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(lines: &str) -> Vec<(&'static str, String)> {
        let plain = "advertise = \"https://10.1.2.3:5000\"\nnetworks = [\"10.1.2.0/24\"]\n\
                     secret = \"0123456789abcdef\"";
        let mut table: toml::Table = toml::from_str(plain).unwrap();
        table.extend(toml::from_str::<toml::Table>(lines).unwrap());
        table.try_into::<Peers>().unwrap().check()
    }

    #[test]
    fn peers_are_where_they_say_and_keep_their_secret() {
        assert_eq!(peers(""), []);
        assert_eq!(peers("advertise = \"http://10.1.2.3:5000\""), []);
        assert_eq!(
            peers("advertise = \"https://portcullis-0.portcullis:5000\""),
            []
        );
        for (lines, key, message) in [
            ("networks = []", "networks", "names no network"),
            (
                "advertise = \"https://10.9.9.9\"",
                "advertise",
                "is not inside networks",
            ),
            (
                "advertise = \"https://[fd00::1]\"",
                "advertise",
                "is not inside networks",
            ),
            (
                "advertise = \"ftp://a.example\"",
                "advertise",
                "must be http",
            ),
            (
                "advertise = \"https://a.example/v2\"",
                "advertise",
                "nothing more",
            ),
            (
                "advertise = \"https://u:p@a.example\"",
                "advertise",
                "nothing more",
            ),
            (
                "advertise = \"http://a.example\"\nnetworks = [\"20.1.0.0/16\"]",
                "advertise",
                "is not private",
            ),
            ("secret = \"short\"", "secret", "could be guessed"),
            ("secret = { file = \"/nowhere\" }", "secret", "/nowhere"),
        ] {
            let wrong = peers(lines);
            let fits = |(at, text): &(&str, String)| *at == key && text.contains(message);
            assert!(wrong.iter().any(fits), "{lines}: {wrong:?}");
        }
    }

    #[test]
    fn a_location_has_a_cloud_a_container_and_perhaps_a_prefix() {
        let azure: Location = "az://corp/images/team/a/".parse().unwrap();
        let account = "corp".to_owned();
        assert_eq!(azure.cloud, Cloud::Azure { account });
        assert_eq!((&*azure.container, &*azure.prefix), ("images", "team/a"));
        assert_eq!(azure.to_string(), "az://corp/images/team/a");
        for text in ["s3://bucket", "gs://bucket/x"] {
            assert_eq!(text.parse::<Location>().unwrap().to_string(), text);
        }
        for text in [
            "az://corp",
            "az:///images",
            "ftp://x/y",
            "s3://",
            "s3://b/../c",
            "s3://b//c",
            "s3://b/%2e",
            "bucket",
        ] {
            text.parse::<Location>().unwrap_err();
        }
    }
}
