//! All registries that are served: the known ones and the configured ones, no others.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use url::Url;

use super::auth::Auth;
use super::config::{Config, Egress, Limits};
use super::credentials::{Logins, ShareWith};
use super::egress::{
    HostPattern, Hosts, InvalidHost, gives_identities, is_private_channel, literal,
};
use super::health::Health;
use super::hosts::lists;
use super::http::{Clients, Factory, way_out};
use super::known::{Known, REGISTRIES};
use super::pace::Pace;
use super::proxy::Way;
use super::request::{Meter, Transport};
use super::retry::Retries;
use super::{BODIES, Upstream};
use crate::oci::{InvalidName, Registry};
use crate::telemetry::{Metrics, SafeUrl};

/// Registries under wildcards that are kept ready; the least used goes and is made again.
const INSTANCES: u64 = 1024;
/// Redirect targets that one upstream remembers, and how long: a signed URL does not live long.
const FOUND: u64 = 4096;
const FOUND_FOR: Duration = Duration::from_secs(5 * 60);

/// The closed world of registries.
#[derive(Debug)]
pub struct Upstreams {
    exact: HashMap<Registry, Arc<Upstream>>,
    /// The longest first.
    wildcards: Vec<(HostPattern, Blueprint)>,
    instances: moka::sync::Cache<Registry, Arc<Upstream>>,
}

/// What is served, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Sorted.
    pub registries: Vec<Registry>,
    /// Keys such as `*.azurecr.io`, the longest first.
    pub wildcards: Vec<HostPattern>,
}

/// The hosts that one registry may make us dial, as the configuration spells them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLists {
    pub endpoints: Vec<String>,
    pub auth_hosts: Vec<String>,
    pub redirect_hosts: Vec<String>,
    /// Where a cloud says who we are: dialled for nothing else.
    pub identity_hosts: Vec<String>,
}

/// An entry made ready: all that an [`Upstream`] needs but its name.
#[derive(Debug)]
struct Blueprint {
    key: String,
    /// None: the registry's own name.
    endpoints: Option<Vec<Url>>,
    auth: Vec<HostPattern>,
    redirect: Vec<HostPattern>,
    insecure: bool,
    logins: Arc<Logins>,
    clients: Arc<Clients>,
    limits: Limits,
    ratelimit_floor: u64,
    metrics: Arc<Metrics>,
}

// === impl Upstreams ===

impl Upstreams {
    /// Puts the known table and the entries of `[upstreams]` together. Blocking: reads
    /// certificates and secrets. Fails with all that is wrong, one line each.
    pub fn new(
        entries: &BTreeMap<String, Config>,
        limits: &Limits,
        egress: &Egress,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, Vec<String>> {
        let mut upstreams = Upstreams {
            exact: HashMap::new(),
            wildcards: Vec::new(),
            instances: moka::sync::Cache::new(INSTANCES),
        };
        let mut wrong = Vec::new();
        let way = way_out(egress).unwrap_or_else(|problems| {
            wrong.extend(problems);
            // Nobody goes this way: an error keeps everything from starting.
            Way::default()
        });
        let mut factory = Factory::new(limits, egress, way);
        for (key, config) in entries {
            if let Err(problems) = upstreams.add(key, config, &mut factory, metrics) {
                let problems = problems.into_iter();
                wrong.extend(problems.map(|problem| format!("[upstreams.\"{key}\"] {problem}")));
            }
        }
        for row in REGISTRIES.iter().filter(|row| row.is_exact()) {
            if row
                .registry
                .parse()
                .is_ok_and(|registry| upstreams.exact.contains_key(&registry))
            {
                continue;
            }
            if let Err(problems) =
                upstreams.add(row.registry, &Config::default(), &mut factory, metrics)
            {
                // Only what `[egress]` says can be wrong here, and one row is enough to say it.
                wrong.extend(problems);
                break;
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        upstreams
            .wildcards
            .sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.len()));
        Ok(upstreams)
    }

    fn add(
        &mut self,
        key: &str,
        config: &Config,
        factory: &mut Factory<'_>,
        metrics: &Arc<Metrics>,
    ) -> Result<(), Vec<String>> {
        if key.starts_with('*') {
            let pattern: HostPattern = key.parse().map_err(|e: InvalidHost| vec![e.to_string()])?;
            let row = Known::for_key(&pattern.to_string());
            let blueprint = Blueprint::new(key, row, config, factory, metrics)?;
            self.wildcards.push((pattern, blueprint));
            return Ok(());
        }
        let registry: Registry = key.parse().map_err(|e: InvalidName| vec![e.to_string()])?;
        if self.exact.contains_key(&registry) {
            return Err(vec![format!(
                "{registry} is configured twice, under two spellings"
            )]);
        }
        let row = Known::for_key(registry.as_str());
        let blueprint = Blueprint::new(key, row, config, factory, metrics)?;
        let upstream = Arc::new(blueprint.build(&registry));
        self.exact.insert(registry, upstream);
        Ok(())
    }

    /// The upstream of an exact name, else of the longest wildcard that matches, else None: the
    /// registry is not served here.
    #[must_use]
    pub fn get(&self, registry: &Registry) -> Option<Arc<Upstream>> {
        if let Some(upstream) = self.exact.get(registry) {
            return Some(Arc::clone(upstream));
        }
        let (_, blueprint) = self
            .wildcards
            .iter()
            .find(|(pattern, _)| pattern.matches(registry.host(), registry.port()))?;
        let make = || Arc::new(blueprint.build(registry));
        Some(self.instances.get_with_by_ref(registry, make))
    }

    /// Everything that is served.
    #[must_use]
    pub fn registries(&self) -> Served {
        let mut registries: Vec<_> = self.exact.keys().cloned().collect();
        registries.sort();
        let wildcards = self
            .wildcards
            .iter()
            .map(|(pattern, _)| pattern.clone())
            .collect();
        Served {
            registries,
            wildcards,
        }
    }

    /// The hosts that pulls from `registry` may dial; None where it is not served.
    #[must_use]
    pub fn hosts(&self, registry: &Registry) -> Option<HostLists> {
        let upstream = self.get(registry)?;
        let hosts = &upstream.transport.hosts;
        let texts = |list: &[HostPattern]| list.iter().map(ToString::to_string).collect();
        Some(HostLists {
            endpoints: hosts
                .endpoints
                .iter()
                .map(|url| url.origin().ascii_serialization())
                .collect(),
            auth_hosts: texts(&hosts.auth),
            redirect_hosts: texts(&hosts.redirect),
            identity_hosts: upstream.auth.identity_hosts(),
        })
    }
}

// === impl Served ===

impl Served {
    /// What is served with these keys of `[upstreams]`. Names are enough for that: policies are
    /// tried out far from the secrets and certificates that [`Upstreams::new`] reads. Keys that are
    /// none are left out.
    #[must_use]
    pub fn by_name<'a>(keys: impl Iterator<Item = &'a str>) -> Self {
        let (wildcards, exact): (Vec<_>, Vec<_>) = keys.partition(|key| key.starts_with('*'));
        let known = REGISTRIES.iter().filter(|row| row.is_exact());
        let names = exact.into_iter().chain(known.map(|row| row.registry));
        let mut registries: Vec<Registry> = names.filter_map(|name| name.parse().ok()).collect();
        registries.sort();
        registries.dedup();
        let wildcards = wildcards.iter().filter_map(|key| key.parse().ok());
        let mut wildcards: Vec<HostPattern> = wildcards.collect();
        wildcards.sort_by_key(|pattern| std::cmp::Reverse(pattern.len()));
        Served {
            registries,
            wildcards,
        }
    }

    /// Whether [`Upstreams::get`] has an upstream for `registry`.
    #[must_use]
    pub fn contains(&self, registry: &Registry) -> bool {
        let (host, port) = (registry.host(), registry.port());
        self.registries.binary_search(registry).is_ok()
            || self
                .wildcards
                .iter()
                .any(|pattern| pattern.matches(host, port))
    }
}

// === impl Blueprint ===

impl Blueprint {
    /// `row` is what the known table has about the entry.
    fn new(
        key: &str,
        row: Option<&'static Known>,
        config: &Config,
        factory: &mut Factory<'_>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, Vec<String>> {
        let mut wrong = check(key, config);
        if !factory.is_direct(config) {
            wrong.extend(check_proxied(key, config, factory.proxy_filters()));
        }
        let logins = if key.starts_with('*') {
            // Refused by `check` where there are any.
            Ok(Logins::default())
        } else {
            Logins::new(key, config, factory, metrics).map_err(|problems| wrong.extend(problems))
        };
        let clients = factory
            .clients(config)
            .map_err(|problem| wrong.push(problem));
        let (Ok(logins), Ok(clients), true) = (logins, clients, wrong.is_empty()) else {
            return Err(wrong);
        };
        let (endpoints, auth, redirect) = lists(key, row, config);
        Ok(Blueprint {
            key: key.to_owned(),
            endpoints,
            auth,
            redirect,
            insecure: config.insecure,
            logins: Arc::new(logins),
            clients,
            limits: factory.limits().clone(),
            ratelimit_floor: config.ratelimit_floor,
            metrics: Arc::clone(metrics),
        })
    }

    fn build(&self, registry: &Registry) -> Upstream {
        let scheme = if self.insecure { "http" } else { "https" };
        let own = || {
            Url::parse(&format!("{scheme}://{registry}"))
                .into_iter()
                .collect()
        };
        let hosts = Hosts {
            key: self.key.clone(),
            endpoints: self.endpoints.clone().unwrap_or_else(own),
            auth: self.auth.clone(),
            redirect: self.redirect.clone(),
            insecure: self.insecure,
        };
        let meter = Meter::new(Arc::clone(&self.metrics), self.key.clone());
        Upstream {
            registry: registry.clone(),
            health: Health::new(&hosts.endpoints, meter.clone()),
            pace: Pace::new(registry.to_string(), self.ratelimit_floor, meter.clone()),
            retries: Retries::new(registry.to_string(), meter.clone()),
            transport: Transport {
                clients: Arc::clone(&self.clients),
                hosts,
                limits: self.limits.clone(),
                meter,
            },
            auth: Auth::new(Arc::clone(&self.logins)),
            found: moka::sync::Cache::builder()
                .max_capacity(FOUND)
                .time_to_live(FOUND_FOR)
                .build(),
            bodies: Arc::new(Semaphore::new(BODIES)),
        }
    }
}

/// What is wrong with an entry, as far as it shows without reading anything.
fn check(key: &str, config: &Config) -> Vec<String> {
    let mut wrong = Vec::new();
    let has_login = config.has_login();
    if key.starts_with('*') && !config.endpoints.is_empty() {
        wrong.push("endpoints belong to one registry, not to a wildcard".into());
    }
    if key.starts_with('*') && has_login {
        // Whoever may name a registry below the wildcard could have the login sent there.
        wrong.push("a login belongs to one registry, not to a wildcard".into());
    }
    if key == "*" && config.insecure {
        wrong.push("registries that nobody has named are reached by https only".into());
    }
    if key.starts_with('*') && !config.grants.is_empty() {
        wrong.push("grants belong to one registry, not to a wildcard".into());
    }
    match (config.share_with, config.grants.is_empty()) {
        (Some(ShareWith::Everyone), false) => wrong
            .push("says both share_with = \"everyone\" and grants: one of them is meant".into()),
        (None, true) if has_login => wrong.push(
            "has a login, so whatever it may see can be pulled here by everyone: say share_with \
             = \"everyone\" if that is meant, or in grants who may pull what"
                .into(),
        ),
        _ => {}
    }
    let listed = config.auth_hosts.iter().chain(&config.redirect_hosts);
    let spelled = listed.filter_map(HostPattern::address);
    for address in spelled.chain(config.endpoints.iter().filter_map(literal)) {
        if gives_identities(address) {
            wrong.push(format!(
                "{address} gives machines their identity and is asked for nothing else"
            ));
        }
    }
    for endpoint in &config.endpoints {
        let shown = SafeUrl(endpoint);
        let scheme = endpoint.scheme();
        if scheme != "https" && !(scheme == "http" && config.insecure) {
            wrong.push(format!(
                "endpoint {shown} is not https (insecure = true allows http)"
            ));
        }
        let plain = Url::parse(&endpoint.origin().ascii_serialization());
        if plain.as_ref() != Ok(endpoint) {
            wrong.push(format!(
                "endpoint {shown} has more than scheme, host and port"
            ));
        }
        if has_login && !is_private_channel(endpoint) {
            wrong.push(format!("the login would be sent to {shown} without https"));
        }
    }
    if has_login && config.insecure && config.endpoints.is_empty() {
        wrong.push("has a login and insecure = true: spell its endpoints".into());
    }
    wrong
}

/// What is wrong with an entry whose requests go through a proxy. That looks names up itself, so no
/// address is judged here: where the names are anybody's, somebody must have said that it does.
fn check_proxied(key: &str, config: &Config, filters: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let own: Option<HostPattern> = key.parse().ok();
    let lists = config.auth_hosts.iter().chain(&config.redirect_hosts);
    if !filters && own.iter().chain(lists).any(HostPattern::is_any) {
        wrong.push(
            "lets in any host, and the egress proxy looks names up where no address can be \
             checked: if the proxy refuses internal targets, say proxy_filters = true under \
             [egress]; else name the hosts, or say proxy = \"none\" here"
                .into(),
        );
    }
    if config.has_login() && config.insecure {
        wrong.push(
            "has a login and insecure = true, and the egress proxy could read it: use https, or \
             say proxy = \"none\" here"
                .into(),
        );
    }
    wrong
}
