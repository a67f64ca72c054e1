//! The way out: through the egress proxy, when `[egress]` names one.
//!
//! Behind a proxy every connection of an upstream goes through it: by CONNECT for `https://`, by
//! SOCKS5, and in the absolute form for `http://`, because proxies rightly allow CONNECT to port
//! 443 alone. The proxy gets names and never addresses, whichever it is: it looks them up. On this
//! side nothing is looked up but the proxy's own name ([`Names`]), so that a request which would
//! miss the proxy finds no other way.

mod why;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{ClientBuilder, NoProxy};
use url::Url;

use super::config::Egress;
use super::egress::AddressGuard;
use why::Proxy;

/// Where machines get their identity: Azure's and Google's, those of ECS and EKS. They are asked at
/// these addresses, and a proxy would ask for an identity of its own.
const IDENTITIES: &str = "169.254.169.254,169.254.170.2,169.254.170.23,fd00:ec2::254,fd00:ec2::23,\
                          metadata.google.internal";

/// Scheme, host and port of a proxy, perhaps with a login, which is never shown.
#[derive(Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct ProxyUrl(Url);

/// Why a text is no [`ProxyUrl`]. Does not show it: there may be a password in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no proxy: write http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT")]
pub struct InvalidProxy;

/// How requests leave: directly, or through proxies.
#[derive(Clone, Debug, Default)]
pub(super) struct Way {
    /// For `https://` and for `http://`; they differ only where the environment says so.
    https: Option<ProxyUrl>,
    http: Option<ProxyUrl>,
    /// Hosts that are reached directly: the value of `NO_PROXY`.
    except: String,
    /// Services that give out identities are asked directly.
    identities: bool,
}

/// What clients may look up.
#[derive(Clone, Debug)]
pub(super) struct Names {
    guard: AddressGuard,
    /// Names of proxies: those are wherever they are, because the configuration spells them.
    proxies: Vec<String>,
    /// Some requests go past the proxies.
    others: bool,
}

/// Somebody asked for an address that only the proxy may look up.
#[derive(Debug, thiserror::Error)]
#[error("names are looked up by the egress proxy alone")]
struct NotOurs;

// === impl ProxyUrl ===

impl ProxyUrl {
    /// The same with a login in it.
    fn with_login(&self, username: &str, password: &str) -> Result<Self, InvalidProxy> {
        // Of what a URL must escape, the library leaves out the escape itself.
        let escaped = |text: &str| text.replace('%', "%25");
        let mut url = self.0.clone();
        url.set_username(&escaped(username))
            .and_then(|()| url.set_password(Some(&escaped(password))))
            .map_err(|()| InvalidProxy)?;
        ProxyUrl::try_from(url.to_string())
    }

    fn has_login(&self) -> bool {
        !self.0.username().is_empty() || self.0.password().is_some()
    }
}

impl FromStr for ProxyUrl {
    type Err = InvalidProxy;

    fn from_str(text: &str) -> Result<Self, InvalidProxy> {
        let mut url = Url::parse(text).map_err(|_| InvalidProxy)?;
        match url.scheme() {
            "http" | "https" => {}
            // Names go to the proxy in both, so there is no difference here.
            "socks5" | "socks5h" => {
                url.set_scheme("socks5h").map_err(|()| InvalidProxy)?;
                if url.port().is_none() {
                    url.set_port(Some(1080)).map_err(|()| InvalidProxy)?;
                }
            }
            _ => return Err(InvalidProxy),
        }
        let plain = matches!(url.path(), "" | "/") && url.query().is_none();
        let host = url.host_str().is_some_and(|host| !host.is_empty());
        // A URL that the library does not understand would mean no proxy to it.
        let understood = intercept(&url).is_some();
        if host && plain && url.fragment().is_none() && understood {
            Ok(ProxyUrl(url))
        } else {
            Err(InvalidProxy)
        }
    }
}

impl TryFrom<String> for ProxyUrl {
    type Error = InvalidProxy;

    fn try_from(text: String) -> Result<Self, InvalidProxy> {
        text.parse()
    }
}

/// Without the login.
impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.0.scheme().trim_end_matches('h');
        write!(f, "{scheme}://{}", address(&self.0))
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Host and port, as error texts name a proxy or what is behind it.
fn address(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or_default();
    format!("{host}:{port}")
}

// === impl Way ===

impl Way {
    /// What `egress` says. Blocking: reads the password. `variable` is the environment, of which
    /// nothing counts unless `from_environment` says so. Fails with all that is wrong, each with its
    /// key below `egress`.
    pub(super) fn new(
        egress: &Egress,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Vec<(&'static str, String)>> {
        let mut wrong = Vec::new();
        let mut add = |key, message: &str| wrong.push((key, message.to_owned()));
        let mut proxy = egress.proxy.clone();
        match (
            &egress.proxy,
            &egress.proxy_username,
            &egress.proxy_password,
        ) {
            (_, None, None) => {}
            (None, ..) => add("proxy_username", "is for egress.proxy, which is not there"),
            (Some(proxy), ..) if proxy.has_login() => {
                add(
                    "proxy_username",
                    "is there, and the URL in egress.proxy has a login too",
                );
            }
            (_, None, Some(_)) => add("proxy_password", "needs a proxy_username"),
            (_, Some(_), None) => add("proxy_username", "needs a proxy_password"),
            (_, Some(username), _) if username.contains(':') => {
                add("proxy_username", "has a colon, which no user name has");
            }
            (Some(bare), Some(username), Some(password)) => match password.read() {
                Err(message) => add("proxy_password", &message),
                Ok(password) => match bare.with_login(username, password.expose()) {
                    Ok(whole) => proxy = Some(whole),
                    Err(_) => add("proxy_password", "cannot be sent to a proxy"),
                },
            },
        }
        let mut way = Way {
            https: proxy.clone(),
            http: proxy,
            ..Way::default()
        };
        match (egress.from_environment, &egress.proxy) {
            (true, Some(_)) => add(
                "from_environment",
                "and proxy each name a proxy: keep one of them",
            ),
            (true, None) => match Way::from_environment(variable) {
                Ok(found) => way = found,
                Err(message) => add("from_environment", &message),
            },
            (false, None) if egress.proxy_filters => {
                add("proxy_filters", "is said of a proxy, and there is none");
            }
            (false, _) => {}
        }
        if wrong.is_empty() {
            Ok(way)
        } else {
            Err(wrong)
        }
    }

    fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let value = |name: &str| {
            let found = variable(name).or_else(|| variable(&name.to_ascii_lowercase()));
            found
                .map(|value| value.trim().to_owned())
                .filter(|value| !value.is_empty())
        };
        let proxy = |name: &str| {
            let whole = match value(name) {
                None => return Ok(None),
                Some(value) if value.contains("://") => value,
                // As other programs read it.
                Some(value) => format!("http://{value}"),
            };
            let proxy: ProxyUrl = whole.parse().map_err(|wrong| format!("{name} {wrong}"))?;
            Ok::<_, String>(Some(proxy))
        };
        let all = proxy("ALL_PROXY")?;
        Ok(Way {
            https: proxy("HTTPS_PROXY")?.or_else(|| all.clone()),
            http: proxy("HTTP_PROXY")?.or(all),
            except: value("NO_PROXY").unwrap_or_default(),
            identities: false,
        })
    }

    /// The same, but services that give out identities are asked directly.
    pub(super) fn except_identities(self) -> Self {
        Way {
            identities: true,
            ..self
        }
    }

    /// Whether all goes directly.
    pub(super) fn is_direct(&self) -> bool {
        self.https.is_none() && self.http.is_none()
    }

    /// What a client that goes this way may look up; `guard` judges it.
    pub(super) fn names(&self, guard: AddressGuard) -> Names {
        let proxies = [&self.https, &self.http];
        let named = proxies.into_iter().flatten();
        Names {
            guard,
            proxies: named
                .filter_map(|proxy| proxy.0.host_str().map(str::to_owned))
                .collect(),
            others: proxies.contains(&&None) || !self.except.is_empty(),
        }
    }

    /// Makes a client go this way.
    pub(super) fn lay(
        &self,
        builder: ClientBuilder,
        guard: AddressGuard,
    ) -> Result<ClientBuilder, InvalidProxy> {
        // First, because it takes the environment out of the library's hands.
        let mut builder = builder.no_proxy().dns_resolver(Arc::new(self.names(guard)));
        let make: [fn(Url) -> reqwest::Result<reqwest::Proxy>; 2] =
            [reqwest::Proxy::https, reqwest::Proxy::http];
        for (proxy, make) in [&self.https, &self.http].into_iter().zip(make) {
            if let Some(proxy) = proxy {
                let proxy = make(proxy.0.clone()).map_err(|_| InvalidProxy)?;
                builder = builder.proxy(proxy.no_proxy(NoProxy::from_string(&self.no_proxy())));
            }
        }
        Ok(builder)
    }

    fn no_proxy(&self) -> String {
        let identities = if self.identities { IDENTITIES } else { "" };
        format!("{identities},{}", self.except)
    }

    /// The proxy that requests to `url` go through: the library decides by the same rules.
    pub(super) fn of(&self, url: &Url) -> Option<Proxy> {
        let named = match url.scheme() {
            "https" => self.https.as_ref()?,
            _ => self.http.as_ref()?,
        };
        let way = Matcher::builder()
            .all(named.0.as_str())
            .no(self.no_proxy())
            .build()
            .intercept(&url.origin().ascii_serialization().parse().ok()?)?;
        Some(Proxy {
            url: named.clone(),
            way,
        })
    }
}

/// How the library goes to a proxy; None where it does not understand the URL.
fn intercept(proxy: &Url) -> Option<Intercept> {
    let any = http::Uri::from_static("https://registry.example");
    Matcher::builder()
        .all(proxy.as_str())
        .build()
        .intercept(&any)
}

// === impl Names ===

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let proxy = |proxy: &String| proxy.eq_ignore_ascii_case(name.as_str());
        if self.proxies.iter().any(proxy) {
            return Box::pin(async move {
                let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
                Ok(Box::new(found.collect::<Vec<_>>().into_iter()) as Addrs)
            });
        }
        if self.others {
            return self.guard.resolve(name);
        }
        Box::pin(async { Err(NotOurs.into()) })
    }
}
