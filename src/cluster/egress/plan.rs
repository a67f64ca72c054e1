//! What of the needs a list of names can express, in the groups that rules are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use super::Needs;
use crate::upstream::known::AS_OF;

/// Groups of names, and what is to be said beside them.
#[derive(Clone, Debug)]
pub struct Plan {
    pub groups: Vec<Group>,
    /// For people: what the names open, and what they cannot say.
    pub remarks: Vec<String>,
}

/// Names that one registry, or one section of the configuration, needs on one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub owner: String,
    /// Letters, digits and dashes; no other group has it.
    pub name: String,
    pub port: u16,
    pub tls: bool,
    /// Names, or `*.` and a name. Sorted.
    pub hosts: Vec<String>,
}

// === impl Plan ===

impl Plan {
    #[must_use]
    pub fn new(needs: &Needs) -> Self {
        let mut groups: BTreeMap<(&str, u16, bool), BTreeSet<&str>> = BTreeMap::new();
        let mut remarks = BTreeSet::new();
        for need in needs.iter() {
            let (host, owner) = (&*need.host.host, &need.owner);
            let at = need.authority();
            if need.is_local() {
                remarks.insert(format!(
                    "{at} for {owner} is answered beside this machine: no rule is needed"
                ));
            } else if host == "*" {
                remarks.insert(format!(
                    "[upstreams.\"{owner}\"] is for registries that nobody has named: no list of \
                     names can open what they need"
                ));
            } else if is_address(host) {
                remarks.insert(format!(
                    "{at} for {owner} is an address: it needs a rule by address, not by name"
                ));
            } else if !is_name(host) {
                remarks.insert(format!(
                    "{at:?} for {owner} is no name that a rule may have"
                ));
            } else {
                let key = (&**owner, need.host.port, need.host.tls);
                groups.entry(key).or_default().insert(host);
            }
        }
        for host in groups.values().flatten() {
            remarks.extend(breadth(host).map(str::to_owned));
        }
        let mut names = BTreeSet::new();
        let groups = groups.into_iter().map(|((owner, port, tls), hosts)| Group {
            owner: owner.to_owned(),
            name: name(owner, port, &mut names),
            port,
            tls,
            hosts: hosts.into_iter().map(str::to_owned).collect(),
        });
        Plan {
            groups: groups.collect(),
            remarks: remarks.into_iter().collect(),
        }
    }

    /// What every format begins with, in lines that start with `comment`; `more` is said at the end.
    pub(super) fn head(&self, comment: &str, format: &str, more: &[&str]) -> String {
        let mut text = String::new();
        let mut line = |line: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{comment} {line}");
        };
        line(&format!(
            "Written by `portcullis egress -o {format}`: what this configuration needs,"
        ));
        line(&format!(
            "with the known registries as of {AS_OF}. `portcullis egress --diff` says what has changed."
        ));
        for remark in self
            .remarks
            .iter()
            .map(String::as_str)
            .chain(more.iter().copied())
        {
            line(&format!("- {remark}"));
        }
        if self.groups.is_empty() {
            line("No name is needed.");
        }
        text
    }

    /// The ports, each with its groups: for formats that cannot say more in one rule.
    pub(super) fn ports(&self) -> BTreeMap<u16, Vec<&Group>> {
        let mut ports: BTreeMap<u16, Vec<&Group>> = BTreeMap::new();
        for group in &self.groups {
            ports.entry(group.port).or_default().push(group);
        }
        ports
    }
}

/// What a name opens beyond the registry that it is for.
fn breadth(host: &str) -> Option<&'static str> {
    if host.contains(".s3.dualstack.") {
        return Some(
            "registry.k8s.io answers from buckets in 32 regions. Each is named, because \
             *.s3.dualstack.<region>.amazonaws.com would open every bucket of S3 there, anybody's",
        );
    }
    if host.starts_with("*.blob.core.") {
        return Some(
            "*.blob.core.windows.net is every storage account of Azure, anybody's: registries with \
             dedicated data endpoints (`az acr update --data-endpoint-enabled`) do without it",
        );
    }
    None
}

/// Hosts of URLs may have quotes and worse, and rules are read by shells.
fn is_name(host: &str) -> bool {
    let name = host.strip_prefix("*.").unwrap_or(host);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    !name.is_empty() && name.chars().all(plain)
}

fn is_address(host: &str) -> bool {
    host.starts_with('[') || host.parse::<IpAddr>().is_ok()
}

fn name(owner: &str, port: u16, taken: &mut BTreeSet<String>) -> String {
    let words = owner.replace('*', "any");
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let mut name: String = words.chars().map(plain).collect();
    if port != 443 {
        name = format!("{name}-{port}");
    }
    while !taken.insert(name.clone()) {
        name.push_str("-x");
    }
    name
}
