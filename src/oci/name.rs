//! Names: which registry, which repository, which tag or digest.
//!
//! Every type here can only hold what its grammar allows, so code below never checks again: a
//! [`RepositoryName`] or [`Tag`] is always a safe part of a path and of a request line. There is
//! one canonical form of a registry's name ([`Registry`]), and it is the one that policy, cache
//! keys and connections all use; two spellings of one registry can therefore not disagree.
//!
//! Source: OCI distribution-spec, "Pulling manifests" (grammar of `<name>` and `<reference>`).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::digest::{Digest, InvalidDigest};

/// The longest `registry + "/" + repository` that clients can name.
const LONGEST_NAME: usize = 255;

const DOCKER_HUB: &str = "docker.io";

/// Other names of Docker Hub that images and clients use.
const DOCKER_HUB_ALIASES: &[&str] = &[
    "index.docker.io",
    "registry-1.docker.io",
    "registry.hub.docker.com",
];

/// A registry's public name in canonical form: lower-case host with an optional port, no user
/// info, no trailing dot, aliases folded, never an IP literal (`localhost:5001` is allowed).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Registry(Arc<str>);

/// `library/nginx`: the path of a repository inside its registry.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Arc<str>);

/// `1.27`, `latest`: a movable name for a manifest.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

/// A repository with the registry it lives in.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    pub registry: Registry,
    pub name: RepositoryName,
}

/// The last part of `/v2/<name>/manifests/<reference>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    Tag(Tag),
    Digest(Digest),
}

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("a registry is a DNS name with an optional port, such as registry.k8s.io")]
    Registry,
    #[error("a registry is named by its DNS name, not by an IP address")]
    IpLiteral,
    #[error(
        "a repository has lower-case letters, digits and single separators, such as library/nginx"
    )]
    Repository,
    #[error("registry and repository together may have {LONGEST_NAME} characters")]
    TooLong,
    #[error("a tag has at most 128 letters, digits, dots, dashes and underscores")]
    Tag,
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
}

// === impl Registry ===

impl Registry {
    /// Docker Hub, the registry of names that mention none.
    #[must_use]
    pub fn docker_hub() -> Self {
        Registry(DOCKER_HUB.into())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names that are folded into this one.
    #[must_use]
    pub fn aliases(&self) -> &'static [&'static str] {
        if self.as_str() == DOCKER_HUB {
            DOCKER_HUB_ALIASES
        } else {
            &[]
        }
    }

    /// The host without the port.
    #[must_use]
    pub fn host(&self) -> &str {
        self.0.split(':').next().unwrap_or(&self.0)
    }

    /// The port, if the name has one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.0
            .split_once(':')
            .and_then(|(_, port)| port.parse().ok())
    }
}

impl FromStr for Registry {
    type Err = InvalidName;

    /// Folds every spelling of a registry into its one canonical form, or refuses it.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.is_empty() || text.len() > LONGEST_NAME || !text.is_ascii() {
            return Err(InvalidName::Registry);
        }
        let lower = text.to_ascii_lowercase();
        let (host, port) = match lower.split_once(':') {
            // A second colon is an IPv6 literal or nonsense.
            Some((_, port)) if port.contains(':') => return Err(InvalidName::IpLiteral),
            Some((host, port)) => (host, Some(parse_port(port)?)),
            None => (lower.as_str(), None),
        };
        let host = host.strip_suffix('.').unwrap_or(host);
        if !is_dns_name(host) {
            return Err(InvalidName::Registry);
        }
        if looks_like_ip(host) {
            return Err(InvalidName::IpLiteral);
        }
        // HTTPS on its own port is no port at all.
        let port = port.filter(|port| *port != 443);
        Ok(Registry(match (host, port) {
            (alias, None) if DOCKER_HUB_ALIASES.contains(&alias) => DOCKER_HUB.into(),
            (host, None) => host.into(),
            (host, Some(port)) => format!("{host}:{port}").into(),
        }))
    }
}

fn parse_port(text: &str) -> Result<u16, InvalidName> {
    let digits = !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(InvalidName::Registry),
    }
}

/// RFC 1123 labels, joined by single dots.
fn is_dns_name(host: &str) -> bool {
    !host.is_empty()
        && host.len() <= 253
        && host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

/// What some resolver somewhere would read as an IPv4 address: `127.1`, `0x7f.1`, `2130706433`.
/// The last label of a DNS name is never a number (RFC 3696, section 2), so it alone decides, as
/// in the WHATWG URL standard's "ends in a number".
fn looks_like_ip(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or(host);
    let hex = last
        .strip_prefix("0x")
        .is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    hex || last.bytes().all(|b| b.is_ascii_digit())
}

// === impl RepositoryName ===

impl RepositoryName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.len() > LONGEST_NAME {
            return Err(InvalidName::TooLong);
        }
        if text.split('/').all(is_component) {
            Ok(RepositoryName(text.into()))
        } else {
            Err(InvalidName::Repository)
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    bytes.split(|b| alphanumeric(*b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

// === impl Tag ===

impl Tag {
    /// The tag of references that mention none.
    #[must_use]
    pub fn latest() -> Self {
        Tag("latest".into())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let bytes = text.as_bytes();
        let valid = (1..=128).contains(&bytes.len())
            && word(bytes[0])
            && bytes.iter().all(|b| word(*b) || *b == b'.' || *b == b'-');
        if valid {
            Ok(Tag(text.into()))
        } else {
            Err(InvalidName::Tag)
        }
    }
}

// === impl Reference ===

impl Reference {
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            Reference::Digest(digest) => Some(digest),
            Reference::Tag(_) => None,
        }
    }

    #[must_use]
    pub fn tag(&self) -> Option<&Tag> {
        match self {
            Reference::Tag(tag) => Some(tag),
            Reference::Digest(_) => None,
        }
    }
}

impl FromStr for Reference {
    type Err = InvalidName;

    /// A colon can only stand in a digest: no tag has one.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.contains(':') {
            Ok(Reference::Digest(text.parse()?))
        } else {
            Ok(Reference::Tag(text.parse()?))
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Tag(tag) => tag.fmt(f),
            Reference::Digest(digest) => digest.fmt(f),
        }
    }
}

// === impl Repository ===

impl Repository {
    /// Joins the two. A single-name repository of Docker Hub is one of `library/`.
    pub fn new(registry: Registry, name: RepositoryName) -> Result<Self, InvalidName> {
        let name = if registry.as_str() == DOCKER_HUB && !name.as_str().contains('/') {
            RepositoryName(format!("library/{name}").into())
        } else {
            name
        };
        if registry.as_str().len() + 1 + name.as_str().len() > LONGEST_NAME {
            return Err(InvalidName::TooLong);
        }
        Ok(Repository { registry, name })
    }
}

/// Splits off a first part that is a registry, as image references and paths without `ns` name it:
/// one with a dot or a colon, or `localhost`. A name of a single part is always a repository.
pub(super) fn split_registry(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            (Some(first), rest)
        }
        _ => (None, name),
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.name)
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Display, Debug and serde for the types that are one checked string.
macro_rules! checked_string {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

checked_string!(Registry, RepositoryName, Tag);

#[cfg(test)]
mod tests;
