//! Which hosts must be open so that a configuration works, in the words of the firewalls that open
//! them.
//!
//! [`Needs`] is the answer, from the policy, the known registries and `[upstreams]`, without any
//! network: every registry that a rule may allow, and nothing for one that is refused as a whole. A
//! rewrite needs no word of its own, because what it leads to must be allowed too. [`Plan`] is what of it
//! names can express, and each format is one file that turns a plan into text. [`Diff`] compares the
//! needs with the ledger of what was really used.

mod az;
mod bicep;
mod calico;
mod cilium;
mod diff;
mod plan;
mod squid;
mod terraform;
use std::collections::BTreeSet;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::oci::Image;
use crate::policy::{Client, Engine, RegistryPart, Target};
use crate::telemetry::ledger::{Entry, Purpose, Snapshot};
use crate::upstream::known::AS_OF;
use crate::upstream::{HostBook, Listed};

pub use diff::Diff;
pub use plan::{Group, Plan};

/// Hosts, each for a key of the configuration.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    needs: BTreeSet<Need>,
    /// What no list of hosts can say.
    pub notes: Vec<String>,
}

/// One host that must be reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// The registry, or the section of the configuration.
    pub owner: String,
    pub host: Listed,
}

/// What a firewall reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Azure Firewall, as commands.
    Az,
    Bicep,
    Terraform,
    Cilium,
    Calico,
    Squid,
}

// === impl Needs ===

impl Needs {
    /// Everything that some client may be served.
    #[must_use]
    pub fn of_policy(policy: &Engine, book: &HostBook<'_>) -> Self {
        let mut needs = Needs::default();
        for registry in book.registries().filter(|name| policy.may_serve(name)) {
            needs.extend(registry.as_str(), book.of(registry).unwrap_or_default());
        }
        for key in book.wildcards() {
            let open = policy.may_serve_under(key.trim_start_matches('*'));
            if open {
                needs.extend(key, book.of_wildcard(key));
            }
            // No list can say "any host", but the registries that rules name it can.
            if open && key != "*" {
                continue;
            }
            for part in policy.registries() {
                if let RegistryPart::Exact(registry) = part
                    && book.wildcard_of(registry) == Some(key)
                    && policy.may_serve(registry)
                {
                    needs.extend(registry.as_str(), book.of(registry).unwrap_or_default());
                }
            }
        }
        needs
    }

    /// Exactly what pulls of `images` need. By rules about certain clients none is allowed, as in
    /// an audit; what is not allowed or not served is a note.
    #[must_use]
    pub fn of_images(images: &[Image], policy: &Engine, book: &HostBook<'_>) -> Self {
        let mut needs = Needs::default();
        for image in images {
            let decision = policy.evaluate(&Target::from(image), &Client::default());
            let led = decision.if_led.iter();
            let mut targets: Vec<&Target> = led.collect();
            if decision.effect.serves() {
                targets.push(&decision.target);
            } else if targets.is_empty() {
                needs
                    .notes
                    .push(format!("{image} is not allowed: no host for it"));
            }
            for target in targets {
                let registry = &target.repository.registry;
                match book.of(registry) {
                    Some(hosts) => needs.extend(registry.as_str(), hosts),
                    None => needs.notes.push(format!(
                        "{image}: {registry} is not served here: add [upstreams.\"{registry}\"]"
                    )),
                }
            }
        }
        needs.notes.sort();
        needs.notes.dedup();
        needs
    }

    /// What was used, by the ledger.
    #[must_use]
    pub fn of_ledger(snapshot: &Snapshot) -> Self {
        let used = snapshot.hosts.iter().filter(|row| row.refused.is_none());
        let need = |row: &Entry| Need {
            owner: row.owner.clone(),
            host: Listed {
                host: row.host.clone(),
                port: row.port,
                tls: row.port != 80,
                purpose: row.purpose,
            },
        };
        Needs {
            needs: used.map(need).collect(),
            notes: Vec::new(),
        }
    }

    pub fn extend(&mut self, owner: &str, hosts: impl IntoIterator<Item = Listed>) {
        let need = |host| Need {
            owner: owner.to_owned(),
            host,
        };
        self.needs.extend(hosts.into_iter().map(need));
    }

    /// By owner, then by host.
    pub fn iter(&self) -> impl Iterator<Item = &Need> {
        self.needs.iter()
    }

    /// One host a line, the port only where it is not 443.
    #[must_use]
    pub fn text(&self) -> String {
        let through = self.needs.iter().filter(|need| !need.is_local());
        let lines: BTreeSet<String> = through.map(|need| need.authority() + "\n").collect();
        lines.into_iter().collect()
    }

    #[must_use]
    pub fn json(&self) -> Value {
        let hosts: Vec<_> = self.needs.iter().map(Need::json).collect();
        json!({ "as_of": AS_OF, "hosts": hosts, "notes": self.notes })
    }

    /// What names can express, in `format`. `source` is this proxy's address; without it the one
    /// who uses the text has to say it.
    #[must_use]
    pub fn write(&self, format: Format, source: Option<IpNet>) -> String {
        let plan = Plan::new(self);
        match format {
            Format::Az => az::write(&plan, source),
            Format::Bicep => bicep::write(&plan, source),
            Format::Terraform => terraform::write(&plan, source),
            Format::Cilium => cilium::write(&plan),
            Format::Calico => calico::write(&plan),
            Format::Squid => squid::write(&plan, source),
        }
    }
}

// === impl Need ===

impl Need {
    /// Whether it is answered by the machine that we run on, or beside it: no firewall sees it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.host.purpose == Purpose::Identity && !self.host.tls
    }

    /// `host`, or `host:port` where the port is not 443.
    #[must_use]
    pub fn authority(&self) -> String {
        let Listed { host, port, .. } = &self.host;
        match port {
            443 => host.clone(),
            port => format!("{host}:{port}"),
        }
    }

    /// Whether what was used is what this is about.
    #[must_use]
    pub fn covers(&self, host: &str, port: u16) -> bool {
        let Listed {
            host: pattern,
            port: own,
            ..
        } = &self.host;
        let named = match pattern.strip_prefix('*') {
            Some("") => true,
            Some(end) => host.len() > end.len() && host.ends_with(end),
            None => host == pattern,
        };
        named && *own == port
    }

    fn json(&self) -> Value {
        json!({
            "host": self.host.host,
            "port": self.host.port,
            "tls": self.host.tls,
            "for": self.owner,
            "purpose": self.host.purpose,
            "local": self.is_local(),
        })
    }
}
