//! A request's path and `?ns=` become a closed [`Route`], or a reason why not.
//!
//! Names have slashes, so a path is read from the right: the last part, then the word in front of
//! it, and all that is left is the name. Which registry that name belongs to is decided here and
//! nowhere else: `ns` alone when it is given; without it a first part that looks like a host; then
//! the Host header; then the default. What comes out is canonical, so that policy, cache key and
//! connection cannot disagree about it.
//!
//! Only path and query of the URI are looked at. HTTP/2 puts an authority there as well, and a
//! forward-proxy request does too; telling those apart needs the HTTP version, and is the
//! listener's task.
//!
//! Source: OCI distribution-spec, "Endpoints" and "Registry Proxying".

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;

use http::{Method, Uri};
use url::form_urlencoded;

use super::name::split_registry;
use super::{Digest, InvalidName, Reference, Registry, Repository, Tag};

/// The longest path and query together, in bytes: a name of 255, a sha512 digest of 135 and an
/// `ns` of 255 fit three times over.
const LONGEST_URI: usize = 2048;

/// The most tags that one page of a tag list has; a larger `n` means this.
const LARGEST_PAGE: usize = 1000;

/// What a client may ask for. Everything else is a [`RouteError`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`
    Ping,
    /// `/v2/<name>/manifests/<reference>`
    Manifest {
        repository: Repository,
        reference: Reference,
    },
    /// `/v2/<name>/blobs/<digest>`
    Blob {
        repository: Repository,
        digest: Digest,
    },
    /// `/v2/<name>/tags/list`; `n` is at most 1000, `last` is exclusive.
    Tags {
        repository: Repository,
        n: Option<usize>,
        last: Option<Tag>,
    },
    /// `/v2/<name>/referrers/<digest>`
    Referrers {
        repository: Repository,
        digest: Digest,
        artifact_type: Option<String>,
    },
}

/// Who we are to clients: what the Host header and a path without a registry mean.
#[derive(Clone, Debug)]
pub struct HostMap {
    /// The registry of requests that name none.
    pub default_registry: Registry,
    /// Lower-case Host header, with or without its port, to the registry it stands for. When not
    /// empty, other names are refused.
    pub hosts: HashMap<String, Registry>,
    /// The lower-case host of `server.url`, without a port; always one of ours.
    pub own: Option<String>,
}

/// A route with what the answer must echo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed {
    pub route: Route,
    /// The value for `OCI-Namespace`, when `ns` was given.
    pub namespace: Option<Registry>,
    /// `/v2/` and the name as the client spelled it, safe to put into a URI as it is. A `Link`
    /// made of it leads back here: see [`Routed::next_tags`].
    pub path_name: String,
}

/// Why a request is no [`Route`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// A bad name, tag or digest.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Dot segments, empty segments, encoded separators, anything that is not printable ASCII.
    #[error(
        "the path is not plain: it has empty or dot segments, or encodes what needs no encoding"
    )]
    Path,
    #[error("ns must be given once and name a registry")]
    Namespace,
    #[error("n must be a number, and n, last and artifactType may be given once")]
    Query,
    #[error("not part of the distribution API")]
    NotFound,
    /// What a wrong URL in containerd's `hosts.toml` makes of a path.
    #[error(
        "a path before or after /v2/: in hosts.toml write the proxy's URL without a path, \
         or end it in /v2/<registry> with override_path = true"
    )]
    Misplaced,
    #[error("this host name is not served here")]
    Host,
    #[error("this registry is read-only: only GET and HEAD")]
    Method,
    #[error("path and query may have {LONGEST_URI} bytes")]
    TooLong,
}

// === impl Route ===

impl Route {
    /// Reads a request line. `host` is the Host header (or HTTP/2's `:authority`) as it came.
    pub fn parse(
        method: &Method,
        uri: &Uri,
        host: Option<&str>,
        map: &HostMap,
    ) -> Result<Routed, RouteError> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Err(RouteError::Method);
        }
        let query = uri.query().unwrap_or_default();
        if uri.path().len() + query.len() > LONGEST_URI {
            return Err(RouteError::TooLong);
        }
        let default = map.registry(host)?;
        let namespace = namespace(query)?;
        let path = decode(uri.path())?;

        let routed = |route, path_name| {
            Ok(Routed {
                route,
                namespace: namespace.clone(),
                path_name,
            })
        };
        let rest = match path.strip_prefix("/v2/") {
            Some("") => return routed(Route::Ping, "/v2/".to_owned()),
            None if path == "/v2" => return routed(Route::Ping, "/v2/".to_owned()),
            None if path.contains("/v2/") => return Err(RouteError::Misplaced),
            None => return Err(RouteError::NotFound),
            Some(rest) => rest,
        };
        let (rest, last) = rest.rsplit_once('/').ok_or(RouteError::NotFound)?;
        let (name, kind) = rest.rsplit_once('/').ok_or(RouteError::NotFound)?;
        let repository = || locate(name, namespace.as_ref(), default);
        let digest = || last.parse().map_err(InvalidName::Digest);
        let route = match (kind, last) {
            ("manifests", reference) => Route::Manifest {
                repository: repository()?,
                reference: reference.parse()?,
            },
            ("blobs", _) => Route::Blob {
                repository: repository()?,
                digest: digest()?,
            },
            ("tags", "list") => Route::Tags {
                repository: repository()?,
                n: page(query)?,
                last: after(query)?,
            },
            ("referrers", _) => Route::Referrers {
                repository: repository()?,
                digest: digest()?,
                artifact_type: artifact_type(query)?,
            },
            _ => return Err(RouteError::NotFound),
        };
        routed(route, format!("/v2/{name}"))
    }
}

/// The registry and repository that a name means.
pub(super) fn locate(
    name: &str,
    ns: Option<&Registry>,
    default: &Registry,
) -> Result<Repository, RouteError> {
    let (registry, path) = match ns {
        Some(ns) => match name.split_once('/') {
            Some((first, path)) if first.parse().as_ref() == Ok(ns) => (Some(ns.clone()), path),
            _ => return Ok(Repository::new(ns.clone(), name.parse()?)?),
        },
        None => match split_registry(name) {
            (Some(registry), path) => (Some(registry.parse()?), path),
            (None, path) => (None, path),
        },
    };
    match registry {
        // A registry by path with a second `v2` behind it is override_path forgotten. (A repository
        // that really is in a namespace `v2` can be had by `ns`.)
        Some(_) if path.starts_with("v2/") => Err(RouteError::Misplaced),
        registry => {
            let registry = registry.unwrap_or_else(|| default.clone());
            Ok(Repository::new(registry, path.parse()?)?)
        }
    }
}

/// Undoes percent-encoding, once. No name has a byte that would have to be encoded, so what is
/// encoded may be harmless (`sha256%3A..`, as many clients write it) or is refused.
fn decode(path: &str) -> Result<Cow<'_, str>, RouteError> {
    let plain = if path.contains('%') {
        let mut parts = path.split('%');
        let mut plain = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (hex, rest) = part.split_at_checked(2).ok_or(RouteError::Path)?;
            if !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(RouteError::Path);
            }
            let byte = u8::from_str_radix(hex, 16).map_err(|_| RouteError::Path)?;
            if matches!(byte, b'/' | b'.' | b'%') {
                return Err(RouteError::Path);
            }
            plain.push(char::from(byte));
            plain.push_str(rest);
        }
        Cow::Owned(plain)
    } else {
        Cow::Borrowed(path)
    };
    let odd = |b: u8| !b.is_ascii_graphic() || b == b'\\';
    let steps = plain.contains("//") || plain.split('/').any(|part| part == "." || part == "..");
    if steps || plain.bytes().any(odd) {
        Err(RouteError::Path)
    } else {
        Ok(plain)
    }
}

fn namespace(query: &str) -> Result<Option<Registry>, RouteError> {
    match once(query, "ns").map_err(|_| RouteError::Namespace)? {
        None => Ok(None),
        Some(ns) if ns.is_empty() => Err(RouteError::Namespace),
        Some(ns) => Ok(Some(ns.parse()?)),
    }
}

fn page(query: &str) -> Result<Option<usize>, RouteError> {
    let Some(n) = once(query, "n")? else {
        return Ok(None);
    };
    if n.is_empty() || !n.bytes().all(|b| b.is_ascii_digit()) {
        return Err(RouteError::Query);
    }
    // Too many digits for a number is a large number, not an error.
    Ok(Some(n.parse().unwrap_or(usize::MAX).min(LARGEST_PAGE)))
}

fn after(query: &str) -> Result<Option<Tag>, RouteError> {
    match once(query, "last")? {
        None => Ok(None),
        Some(last) if last.is_empty() => Ok(None),
        Some(last) => Ok(Some(last.parse()?)),
    }
}

/// A media type has a plus but no space, and some clients forget to encode the plus.
fn artifact_type(query: &str) -> Result<Option<String>, RouteError> {
    Ok(once(query, "artifactType")?
        .map(|text| text.replace(' ', "+"))
        .filter(|t| !t.is_empty()))
}

/// The decoded value of a parameter that may be given once.
fn once<'a>(query: &'a str, name: &str) -> Result<Option<Cow<'a, str>>, RouteError> {
    let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
    let first = values.next();
    match values.next() {
        Some(_) => Err(RouteError::Query),
        None => Ok(first.map(|(_, value)| value)),
    }
}

// === impl Routed ===

impl Routed {
    /// The target of `Link: <..>; rel="next"` behind a page of `n` tags that ends with `last`.
    #[must_use]
    pub fn next_tags(&self, n: usize, last: &Tag) -> String {
        // Registries and tags have no character that a query would have to encode.
        let ns = self
            .namespace
            .as_ref()
            .map(|ns| format!("ns={ns}&"))
            .unwrap_or_default();
        format!("{}/tags/list?{ns}n={n}&last={last}", self.path_name)
    }
}

// === impl HostMap ===

impl HostMap {
    /// The registry that a Host header stands for, or [`RouteError::Host`] for a name that is not
    /// ours. Names that no outside page can make a browser send (addresses, `localhost`, names
    /// without a dot) always pass.
    fn registry(&self, host: Option<&str>) -> Result<&Registry, RouteError> {
        let Some(host) = host.filter(|_| !self.hosts.is_empty()) else {
            return Ok(&self.default_registry);
        };
        let host = host.to_ascii_lowercase();
        // An IPv6 address is in brackets, and has no use for what stands behind its last colon.
        let name = host
            .rsplit_once(':')
            .map_or(host.as_str(), |(name, _)| name);
        let name = name.strip_suffix('.').unwrap_or(name);
        if let Some(registry) = self.hosts.get(&host).or_else(|| self.hosts.get(name)) {
            return Ok(registry);
        }
        let ours = host.starts_with('[')
            || name.parse::<IpAddr>().is_ok()
            || !name.contains('.')
            || self.own.as_deref() == Some(name);
        if ours {
            Ok(&self.default_registry)
        } else {
            Err(RouteError::Host)
        }
    }
}

#[cfg(test)]
mod tests;
