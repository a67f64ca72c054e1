//! Where requests may go: lists of hosts, and a guard over addresses.
//!
//! Two checks, because each sees what the other cannot. The lists judge every URL before it is
//! used, whether an endpoint, a token realm or a redirect's target, and cost no DNS query. The
//! guard judges the addresses that a listed name turned out to have, inside the connector, so
//! what was checked is what is connected to. A URL with an IP literal never meets a resolver;
//! it passes only when the configuration spells that very address. Behind an egress proxy names are
//! looked up by the proxy, and the lists are all there is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::UpstreamErrorKind;
use super::error::AddressRefused;
use crate::telemetry::ledger::Refusal;

/// One entry of a list of hosts. Without a port it means the scheme's own.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct HostPattern {
    name: NamePattern,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum NamePattern {
    /// `*`: any public DNS name.
    Any,
    /// `*.azurecr.io`, kept as `.azurecr.io`: one or more labels in front of it.
    Under(String),
    Exactly(Host),
}

/// Why a text is no [`HostPattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no host: write registry.example, registry.example:5000, *.registry.example or an \
     IP address"
)]
pub struct InvalidHost(String);

/// Everything that one upstream's requests may reach.
#[derive(Clone, Debug)]
pub(super) struct Hosts {
    /// The entry of `[upstreams]` that a refusal points to.
    pub(super) key: String,
    pub(super) endpoints: Vec<Url>,
    pub(super) auth: Vec<HostPattern>,
    pub(super) redirect: Vec<HostPattern>,
    /// `http://` is allowed.
    pub(super) insecure: bool,
}

/// Why a URL is used: which list it must be on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Token,
    Redirect,
}

/// Why a URL may not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostRefused {
    pub(super) why: Refusal,
    text: String,
}

/// Lets only public addresses through, and those that the configuration allows.
#[derive(Clone, Debug)]
pub(super) struct AddressGuard {
    pub(super) allowed: Vec<IpNet>,
    /// False: not even public addresses.
    pub(super) public: bool,
}

// === impl HostPattern ===

impl HostPattern {
    /// Whether `url`'s host and port are what this entry allows.
    fn allows(&self, url: &Url) -> bool {
        let port = match self.port {
            None => url.port().is_none(),
            port => url.port_or_known_default() == port,
        };
        port && url.host().is_some_and(|host| self.name.matches(&host))
    }

    /// Whether a registry of this name is meant by this entry as a key of `[upstreams]`.
    pub(super) fn matches(&self, host: &str, port: Option<u16>) -> bool {
        self.port == port && self.name.matches(&Host::Domain(host))
    }

    /// Whether it is `*`.
    pub(super) fn is_any(&self) -> bool {
        self.name == NamePattern::Any
    }

    /// The address that it spells.
    pub(super) fn address(&self) -> Option<IpAddr> {
        match self.name {
            NamePattern::Exactly(Host::Ipv4(address)) => Some(address.into()),
            NamePattern::Exactly(Host::Ipv6(address)) => Some(address.into()),
            _ => None,
        }
    }

    /// How much of a name is fixed: of several entries that match, the longest is meant.
    pub(super) fn len(&self) -> usize {
        match &self.name {
            NamePattern::Any => 0,
            NamePattern::Under(suffix) => suffix.len(),
            NamePattern::Exactly(_) => usize::MAX,
        }
    }
}

impl NamePattern {
    fn matches<S: AsRef<str>>(&self, host: &Host<S>) -> bool {
        match (self, host) {
            (NamePattern::Any, Host::Domain(name)) => is_public(name.as_ref()),
            (NamePattern::Under(suffix), Host::Domain(name)) => {
                let name = name.as_ref();
                name.len() > suffix.len() && name.ends_with(suffix.as_str())
            }
            (NamePattern::Exactly(Host::Domain(own)), Host::Domain(name)) => own == name.as_ref(),
            (NamePattern::Exactly(Host::Ipv4(own)), Host::Ipv4(address)) => own == address,
            (NamePattern::Exactly(Host::Ipv6(own)), Host::Ipv6(address)) => own == address,
            _ => false,
        }
    }
}

impl FromStr for HostPattern {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let invalid = || InvalidHost(text.into());
        let (wildcard, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        // The last colon is the port's unless it stands inside the brackets of an IPv6 address.
        let (name, port) = match rest.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => {
                (name, Some(port.parse().map_err(|_| invalid())?))
            }
            _ => (rest, None),
        };
        if name == "*" && !wildcard {
            return Ok(HostPattern {
                name: NamePattern::Any,
                port,
            });
        }
        let host = Host::parse(name).map_err(|_| invalid())?;
        let name = match host {
            Host::Domain(name) if name.contains('*') || name.ends_with('.') => {
                return Err(invalid());
            }
            Host::Domain(name) if wildcard => NamePattern::Under(format!(".{name}")),
            // Only the plain spelling: nobody allows 127.0.0.1 by writing 0x7f.1.
            host if host.to_string() == name || matches!(host, Host::Domain(_)) => {
                NamePattern::Exactly(host)
            }
            _ => return Err(invalid()),
        };
        if wildcard && !matches!(name, NamePattern::Under(_)) {
            return Err(invalid());
        }
        Ok(HostPattern { name, port })
    }
}

impl TryFrom<String> for HostPattern {
    type Error = InvalidHost;

    fn try_from(text: String) -> Result<Self, InvalidHost> {
        text.parse()
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            NamePattern::Any => f.write_str("*")?,
            NamePattern::Under(suffix) => write!(f, "*{suffix}")?,
            NamePattern::Exactly(host) => write!(f, "{host}")?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

// === impl Hosts ===

impl Hosts {
    /// Refuses `url` unless its scheme, host and port are allowed for `purpose`. Nothing is
    /// looked up: a refused host hears nothing of it, and neither does DNS.
    pub(super) fn check(&self, url: &Url, purpose: Purpose) -> Result<(), HostRefused> {
        let host = authority(url);
        let (what, list, allowed) = match purpose {
            Purpose::Token => ("asks for a token from", "auth_hosts", &self.auth),
            Purpose::Redirect => ("redirects to", "redirect_hosts", &self.redirect),
        };
        let refused = |why, text: &str| {
            let text = format!("{what} {text}");
            Err(HostRefused { why, text })
        };
        match url.scheme() {
            "https" => {}
            "http" if self.insecure => {}
            _ => {
                let text = format!("{host} without https, which is not allowed");
                return refused(Refusal::Plain, &text);
            }
        }
        if !url.username().is_empty() || url.password().is_some() {
            let text = format!("{host} with user info in the URL, which is not allowed");
            return refused(Refusal::UserInfo, &text);
        }
        let own = self
            .endpoints
            .iter()
            .any(|endpoint| endpoint.origin() == url.origin());
        if own || allowed.iter().any(|pattern| pattern.allows(url)) {
            return Ok(());
        }
        if literal(url).is_some_and(is_internal) {
            // No line is offered that would allow it: this is what an attack looks like.
            let text = format!("{host}, an internal address");
            return refused(Refusal::InternalAddress, &text);
        }
        let text = format!(
            "{host}, which is not on its list; {list} = [\"{host}\"] under \
             [upstreams.\"{}\"] would allow it",
            self.key
        );
        refused(Refusal::NotListed, &text)
    }
}

impl From<HostRefused> for UpstreamErrorKind {
    fn from(refused: HostRefused) -> Self {
        UpstreamErrorKind::HostRefused(refused.text)
    }
}

/// `host`, or `host:port` where the port is not the scheme's own: as lists of hosts spell it.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Whether credentials may be sent to `url`: only where nobody on the way can read them.
pub(super) fn is_private_channel(url: &Url) -> bool {
    url.scheme() == "https"
        || literal(url).is_some_and(|address| address.is_loopback())
        || url.host_str() == Some("localhost")
}

/// The address that `url` spells, if it does.
pub(super) fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain(_) => None,
    }
}

// === impl AddressGuard ===

impl AddressGuard {
    fn permits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let allowed = self
            .allowed
            .iter()
            .any(|network| network.contains(&address));
        !gives_identities(address) && (allowed || self.public && !is_internal(address))
    }

    /// Those of the addresses of `host` that may be connected to; an error when none may.
    pub(super) fn screen(
        &self,
        host: &str,
        found: impl Iterator<Item = SocketAddr>,
    ) -> Result<Vec<SocketAddr>, AddressRefused> {
        let (permitted, refused): (Vec<_>, Vec<_>) =
            found.partition(|address| self.permits(address.ip()));
        match refused.first() {
            Some(address) if permitted.is_empty() => Err(AddressRefused {
                host: host.to_owned(),
                address: address.ip(),
            }),
            _ => Ok(permitted),
        }
    }
}

/// The connector asks here once and connects to what it gets, so no second answer of DNS can
/// slip in between check and use.
impl Resolve for AddressGuard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            // The connector replaces port 0 by the URL's.
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let permitted = guard.screen(name.as_str(), found)?;
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}

/// Ranges that no public registry is in: this host, private, shared, link-local, test networks,
/// multicast, reserved, and the address at which Azure's fabric answers its guests.
const INTERNAL_V4: &[Ipv4Net] = &[
    net4([0, 0, 0, 0], 8),
    net4([10, 0, 0, 0], 8),
    net4([100, 64, 0, 0], 10),
    net4([127, 0, 0, 0], 8),
    net4([168, 63, 129, 16], 32),
    net4([169, 254, 0, 0], 16),
    net4([172, 16, 0, 0], 12),
    net4([192, 0, 0, 0], 24),
    net4([192, 168, 0, 0], 16),
    net4([198, 18, 0, 0], 15),
    net4([224, 0, 0, 0], 4),
    net4([240, 0, 0, 0], 4),
];

const INTERNAL_V6: &[Ipv6Net] = &[
    net6(0, 0, 128),
    net6(0, 1, 128),
    net6(0xfc00, 0, 7),
    net6(0xfe80, 0, 10),
    net6(0xff00, 0, 8),
];

/// What answers here gives a machine its identity, and who can ask for that is the machine. No
/// configuration lets a request of ours get there by way of a name or a redirect.
const IDENTITIES: &[IpAddr] = &[
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
];

/// Last labels of names that mean something on one network only, so that none is a public registry:
/// reserved (RFC 6761, 6762, 8375, 9476; ICANN for `internal`) or common, and `svc` of Kubernetes.
const NOT_PUBLIC: &[&str] = &[
    "alt",
    "arpa",
    "corp",
    "home",
    "internal",
    "intranet",
    "invalid",
    "lan",
    "local",
    "localdomain",
    "localhost",
    "onion",
    "private",
    "svc",
];

/// Whether a name can be that of a public host.
fn is_public(name: &str) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(_, last)| !NOT_PUBLIC.contains(&last))
}

const fn net4([a, b, c, d]: [u8; 4], length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn net6(first: u16, last: u16, length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last), length)
}

/// Whether a service that gives out identities has this address, in any spelling.
pub(super) fn gives_identities(address: IpAddr) -> bool {
    let address = match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => embedded_v4(address).map_or(address.into(), IpAddr::from),
    };
    IDENTITIES.contains(&address)
}

fn is_internal(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => INTERNAL_V4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(address) => {
            INTERNAL_V6.iter().any(|network| network.contains(&address))
                || embedded_v4(address).is_some_and(|address| is_internal(address.into()))
        }
    }
}

/// The IPv4 address that some IPv6 addresses are another spelling of.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let (prefix, high, low) = match address.segments() {
        [0x2002, high, low, ..] => return Some(join(high, low)),
        [prefix @ .., high, low] => (prefix, high, low),
    };
    // IPv4-mapped, RFC 4291; NAT64, RFC 6052; and 6to4 above, RFC 3056.
    let embeds = matches!(prefix, [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0]);
    embeds.then(|| join(high, low))
}

fn join(high: u16, low: u16) -> Ipv4Addr {
    (u32::from(high) << 16 | u32::from(low)).into()
}
