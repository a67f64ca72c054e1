//! Which hosts the configuration makes us dial, without its secrets and certificates.
//!
//! A firewall is opened before there is a server, far from what it needs to run: this reads names
//! only. What is dialled in the end is judged by the same lists (`egress`).

use std::collections::BTreeMap;

use url::Url;

use super::config::Config;
use super::credentials::identity_urls;
use super::egress::HostPattern;
use super::known::{Known, REGISTRIES};
use crate::oci::Registry;
use crate::telemetry::ledger::Purpose;

/// Every registry that is served, with the hosts behind it.
#[derive(Debug)]
pub struct HostBook<'a> {
    exact: BTreeMap<Registry, Part<'a>>,
    /// The longest first.
    wildcards: Vec<(HostPattern, Part<'a>)>,
}

/// One key of `[upstreams]` or of the known table.
#[derive(Clone, Debug)]
struct Part<'a> {
    key: &'a str,
    /// None: the known table is all there is.
    config: Option<&'a Config>,
}

/// A host that one registry may make us dial.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// A name, an address, `*.` and a name, or `*` for any public host.
    pub host: String,
    pub port: u16,
    pub tls: bool,
    pub purpose: Purpose,
}

/// What an entry lists: endpoints (None: the registry's own name), auth hosts, redirect hosts.
pub(super) type Lists = (Option<Vec<Url>>, Vec<HostPattern>, Vec<HostPattern>);

/// The lists of the entry `key`, put together with what the known table has about it.
pub(super) fn lists(key: &str, row: Option<&'static Known>, config: &Config) -> Lists {
    let endpoints = match (&config.endpoints[..], row.and_then(|row| row.endpoint)) {
        ([], None) => None,
        ([], Some(host)) => Url::parse(&format!("https://{host}"))
            .ok()
            .map(|url| vec![url]),
        (own, _) => Some(own.to_vec()),
    };
    // Nobody can list the hosts behind registries that nobody has named.
    let any = (key == "*").then_some("*");
    let list = |own: &[HostPattern], table: &[&str]| {
        let table = table.iter().copied().chain(any);
        let table = table.filter_map(|host| host.parse().ok());
        own.iter().cloned().chain(table).collect()
    };
    (
        endpoints,
        list(&config.auth_hosts, row.map_or(&[], |row| row.auth_hosts)),
        list(
            &config.redirect_hosts,
            row.map_or(&[], |row| row.redirect_hosts),
        ),
    )
}

// === impl HostBook ===

impl<'a> HostBook<'a> {
    /// Keys that are no names are left out.
    #[must_use]
    pub fn new(entries: &'a BTreeMap<String, Config>) -> Self {
        let mut book = HostBook {
            exact: BTreeMap::new(),
            wildcards: Vec::new(),
        };
        for row in REGISTRIES.iter().filter(|row| row.is_exact()) {
            let (key, config) = (row.registry, None);
            book.add(Part { key, config });
        }
        for (key, config) in entries {
            let config = Some(config);
            book.add(Part { key, config });
        }
        let length = |(pattern, _): &(HostPattern, _)| std::cmp::Reverse(pattern.len());
        book.wildcards.sort_by_key(length);
        book
    }

    fn add(&mut self, part: Part<'a>) {
        if part.key.starts_with('*') {
            let pattern = part.key.parse().ok();
            self.wildcards
                .extend(pattern.map(|pattern| (pattern, part)));
        } else if let Ok(registry) = part.key.parse() {
            self.exact.insert(registry, part);
        }
    }

    /// The registries that are served by their own names.
    pub fn registries(&self) -> impl Iterator<Item = &Registry> {
        self.exact.keys()
    }

    /// The keys that stand for many registries, such as `*.azurecr.io`.
    pub fn wildcards(&self) -> impl Iterator<Item = &str> {
        self.wildcards.iter().map(|(_, part)| part.key)
    }

    /// The wildcard key that serves `registry`; None where it has a key of its own, or none.
    #[must_use]
    pub fn wildcard_of(&self, registry: &Registry) -> Option<&str> {
        if self.exact.contains_key(registry) {
            return None;
        }
        self.wildcard(registry).map(|part| part.key)
    }

    fn wildcard(&self, registry: &Registry) -> Option<&Part<'a>> {
        let (host, port) = (registry.host(), registry.port());
        let mut wildcards = self.wildcards.iter();
        let found = wildcards.find(|(pattern, _)| pattern.matches(host, port));
        found.map(|(_, part)| part)
    }

    /// The hosts that pulls from `registry` may dial; None where it is not served.
    #[must_use]
    pub fn of(&self, registry: &Registry) -> Option<Vec<Listed>> {
        let part = self.exact.get(registry);
        let part = part.or_else(|| self.wildcard(registry))?;
        Some(part.hosts(registry.as_str()))
    }

    /// The hosts that pulls from any registry under the wildcard `key` may dial; none if there is
    /// no such key.
    #[must_use]
    pub fn of_wildcard(&self, key: &str) -> Vec<Listed> {
        let mut wildcards = self.wildcards.iter();
        let found = wildcards.find(|(_, part)| part.key == key);
        found.map_or_else(Vec::new, |(_, part)| part.hosts(key))
    }
}

// === impl Part ===

impl Part<'_> {
    /// `name` is the registry, or the wildcard that stands for it.
    fn hosts(&self, name: &str) -> Vec<Listed> {
        let plain = Config::default();
        let config = self.config.unwrap_or(&plain);
        let row = Known::for_key(if self.key.starts_with('*') {
            self.key
        } else {
            name
        });
        let (endpoints, auth, redirect) = lists(self.key, row, config);
        let mut hosts = match endpoints {
            Some(endpoints) => endpoints.iter().map(Listed::endpoint).collect(),
            None => vec![Listed::of(name, !config.insecure, Purpose::Endpoint)],
        };
        // Where endpoints are dialled without TLS, so is what they name.
        let tls = hosts.iter().all(|endpoint| endpoint.tls);
        for (list, purpose) in [(auth, Purpose::Token), (redirect, Purpose::Redirect)] {
            for host in list {
                let host = host.to_string();
                hosts.push(Listed::of(&host, tls, purpose));
                if !tls && !Listed::has_port(&host) {
                    // It may be either there.
                    hosts.push(Listed::of(&host, true, purpose));
                }
            }
        }
        let identities = identity_urls(self.key, config);
        hosts.extend(identities.iter().map(|url| Listed {
            purpose: Purpose::Identity,
            ..Listed::endpoint(url)
        }));
        hosts
    }
}

// === impl Listed ===

impl Listed {
    fn endpoint(url: &Url) -> Self {
        Listed {
            host: url.host_str().unwrap_or_default().to_owned(),
            port: url.port_or_known_default().unwrap_or_default(),
            tls: url.scheme() == "https",
            purpose: Purpose::Endpoint,
        }
    }

    /// From `host` or `host:port`.
    fn of(text: &str, tls: bool, purpose: Purpose) -> Self {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if Listed::has_port(text) => (host, port.parse().ok()),
            _ => (text, None),
        };
        Listed {
            host: host.to_owned(),
            port: port.unwrap_or(if tls { 443 } else { 80 }),
            tls,
            purpose,
        }
    }

    /// The last colon is the port's unless it stands inside the brackets of an IPv6 address.
    fn has_port(text: &str) -> bool {
        text.rsplit_once(':')
            .is_some_and(|(_, port)| !port.ends_with(']'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(toml: &str) -> BTreeMap<String, Config> {
        toml::from_str(toml).unwrap()
    }

    fn of(toml: &str, registry: &str) -> Option<Vec<String>> {
        let entries = entries(toml);
        let hosts = HostBook::new(&entries).of(&registry.parse().unwrap())?;
        let text = |host: &Listed| {
            let scheme = if host.tls { "https" } else { "http" };
            format!("{} {scheme}://{}:{}", host.purpose, host.host, host.port)
        };
        Some(hosts.iter().map(text).collect())
    }

    #[test]
    fn names_are_enough() {
        assert_eq!(
            of("", "mcr.microsoft.com").unwrap(),
            [
                "endpoint https://mcr.microsoft.com:443",
                "redirect https://*.data.mcr.microsoft.com:443"
            ]
        );
        assert_eq!(of("", "corp.azurecr.io"), None);
        // Neither the file nor the missing word matters here.
        let login = "[\"index.docker.io\"]\nusername = \"u\"\n\
                     password = { file = \"/nowhere\" }\nredirect_hosts = [\"more.example:8443\"]";
        let hub = of(login, "docker.io").unwrap();
        assert_eq!(hub[0], "endpoint https://registry-1.docker.io:443");
        assert_eq!(hub[1], "token https://auth.docker.io:443");
        assert_eq!(hub[2], "redirect https://more.example:8443");
        assert!(
            hub.iter()
                .any(|host| host.contains("r2.cloudflarestorage.com"))
        );
    }

    #[test]
    fn an_identity_is_asked_for_elsewhere() {
        let toml = "[\"corp.azurecr.io\"]\ncredential = \"azure\"\n[\"corp.azurecr.cn\"]\n\
                    [\"corp.azurecr.cn\".logins.team]\n\
                    credential = { azure = \"workload-identity\" }";
        let identities = |registry: &str| {
            let hosts = of(toml, registry).unwrap().into_iter();
            let hosts = hosts.filter(|host| host.starts_with("identity "));
            hosts.collect::<Vec<_>>()
        };
        assert_eq!(
            identities("corp.azurecr.io"),
            [
                "identity http://169.254.169.254:80",
                "identity https://login.microsoftonline.com:443"
            ]
        );
        assert_eq!(
            identities("corp.azurecr.cn"),
            ["identity https://login.chinacloudapi.cn:443"]
        );
    }

    #[test]
    fn a_wildcard_stands_for_one_registry_at_a_time() {
        let toml = "[\"*.azurecr.io\"]\n[\"*\"]\n[\"own.azurecr.io\"]\n\
                    endpoints = [\"https://10.1.2.3:5000\"]";
        assert_eq!(
            of(toml, "corp.azurecr.io").unwrap()[..2],
            [
                "endpoint https://corp.azurecr.io:443",
                "redirect https://*.data.azurecr.io:443"
            ]
        );
        assert_eq!(
            of(toml, "own.azurecr.io").unwrap()[0],
            "endpoint https://10.1.2.3:5000"
        );
        assert_eq!(of(toml, "any.example:5000"), None);
        assert!(
            of(toml, "any.example")
                .unwrap()
                .contains(&"token https://*:443".to_owned())
        );
        let entries = entries(toml);
        let book = HostBook::new(&entries);
        assert_eq!(book.wildcards().collect::<Vec<_>>(), ["*.azurecr.io", "*"]);
        assert_eq!(book.of_wildcard("*.azurecr.io")[0].host, "*.azurecr.io");
        let under = |name: &str| book.wildcard_of(&name.parse().unwrap()).map(str::to_owned);
        assert_eq!(under("a.azurecr.io").as_deref(), Some("*.azurecr.io"));
        assert_eq!(under("own.azurecr.io"), None);
    }

    #[test]
    fn without_tls_both_schemes_may_come() {
        let toml =
            "[\"lab.example\"]\ninsecure = true\nauth_hosts = [\"a.example\", \"b.example:81\"]";
        assert_eq!(
            of(toml, "lab.example").unwrap(),
            [
                "endpoint http://lab.example:80",
                "token http://a.example:80",
                "token https://a.example:443",
                "token http://b.example:81"
            ]
        );
    }

    /// The table says what a firewall needs: no host twice, none that another one covers.
    #[test]
    fn known_hosts_are_hosts() {
        let none = BTreeMap::new();
        let book = HostBook::new(&none);
        assert!(book.registries().count() >= 15);
        for registry in book.registries() {
            let hosts = book.of(registry).unwrap();
            for (number, host) in hosts.iter().enumerate() {
                let name = host.host.trim_start_matches("*.");
                assert!(name.contains('.') && !name.contains('*'), "{host:?}");
                assert_eq!((host.port, host.tls), (443, true));
                let twice = hosts[..number].iter().any(|other| other.host == host.host);
                assert!(!twice, "{registry}: {host:?}");
            }
        }
    }
}
