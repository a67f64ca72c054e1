//! Who asks: the address of a connection, and the subject of its certificate when there is one.
//!
//! A rule with `clients` is only about those. Of a client that is not known (a manifest that is
//! audited, an image that is explained) such a rule does not hold.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::pattern::InvalidPattern;

/// What names a subject in place of an address.
const MTLS: &str = "mtls:";

/// The attributes that a subject can be asked for by.
const ATTRIBUTES: [&str; 9] = ["CN", "O", "OU", "C", "ST", "L", "DC", "UID", "SERIALNUMBER"];

/// Who asks, as far as it is known; [`Client::default`] is nobody in particular.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    pub address: Option<IpAddr>,
    /// Of a certificate that has been verified.
    pub subject: Option<Arc<Subject>>,
    /// Whoever runs this proxy, by its own commands: what it may read need not be granted.
    pub operator: bool,
}

/// A certificate's subject: attributes by their short names (`CN`, `O`), in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject(Vec<(String, String)>);

/// One entry of a rule's `clients`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Clients {
    /// Everybody in a network.
    Network(IpNet),
    /// Everybody whose certificate has at least these attributes.
    Subject(Subject),
}

// === impl Client ===

impl Client {
    /// A client of which only the address is known.
    #[must_use]
    pub fn at(address: impl Into<IpAddr>) -> Self {
        Client {
            address: Some(address.into()),
            ..Client::default()
        }
    }

    /// On this machine, for rules.
    #[must_use]
    pub fn operator() -> Self {
        Client {
            operator: true,
            ..Client::at(Ipv4Addr::LOCALHOST)
        }
    }
}

impl FromStr for Client {
    type Err = InvalidPattern;

    /// Reads an address or `mtls:CN=...`.
    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        if let Some(subject) = text.strip_prefix(MTLS) {
            return Ok(Client {
                subject: Some(Arc::new(subject.parse()?)),
                ..Client::default()
            });
        }
        let address: IpAddr = text.parse().map_err(|_| {
            InvalidPattern(format!(
                "{text:?} is no client: write an address, or mtls:CN=..."
            ))
        })?;
        Ok(Client::at(address.to_canonical()))
    }
}

// === impl Subject ===

impl Subject {
    /// Attributes that are not known by a short name are to be left out.
    #[must_use]
    pub fn new(attributes: Vec<(String, String)>) -> Self {
        Subject(attributes)
    }

    /// Whether every attribute of `wanted` is here.
    fn has(&self, wanted: &Subject) -> bool {
        wanted.0.iter().all(|attribute| self.0.contains(attribute))
    }
}

impl FromStr for Subject {
    type Err = InvalidPattern;

    /// Reads `CN=team-a,O=corp`; a backslash keeps the comma that follows it in the value.
    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let invalid = |why: &str| InvalidPattern(format!("{text:?}: a subject {why}"));
        let mut parts = vec![String::new()];
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            let kept = match character {
                ',' => {
                    parts.push(String::new());
                    continue;
                }
                '\\' => characters
                    .next()
                    .ok_or_else(|| invalid("ends in a backslash"))?,
                character => character,
            };
            parts
                .last_mut()
                .into_iter()
                .for_each(|part| part.push(kept));
        }
        let mut attributes = Vec::new();
        for part in &parts {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| invalid("has attributes such as CN=team-a"))?;
            attributes.push((name.trim().to_ascii_uppercase(), value.to_owned()));
        }
        let known = |name: &String| ATTRIBUTES.contains(&name.as_str());
        if !attributes.iter().all(|(name, _)| known(name)) {
            return Err(invalid(&format!(
                "has one or more of {}",
                ATTRIBUTES.join(", ")
            )));
        }
        if attributes.iter().any(|(_, value)| value.is_empty()) {
            return Err(invalid("has a value for each attribute"));
        }
        Ok(Subject(attributes))
    }
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, value)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let value = value.replace('\\', "\\\\").replace(',', "\\,");
            write!(f, "{comma}{name}={value}")?;
        }
        Ok(())
    }
}

// === impl Clients ===

impl Clients {
    pub(super) fn parse(text: &str) -> Result<Self, InvalidPattern> {
        if let Some(subject) = text.strip_prefix(MTLS) {
            return subject.parse().map(Clients::Subject);
        }
        let network = text.parse::<IpNet>().ok();
        let network = network.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        network.map(Clients::Network).ok_or_else(|| {
            InvalidPattern(format!(
                "{text:?} is neither a network such as 10.1.0.0/16 nor a subject such as mtls:CN=team-a"
            ))
        })
    }

    pub(super) fn has(&self, client: &Client) -> bool {
        match self {
            Clients::Network(network) => client
                .address
                .is_some_and(|address| network.contains(&address)),
            Clients::Subject(wanted) => client
                .subject
                .as_ref()
                .is_some_and(|subject| subject.has(wanted)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_is_meant() {
        for (clients, client, has) in [
            ("10.1.0.0/16", "10.1.2.3", true),
            ("10.1.0.0/16", "::ffff:10.1.2.3", true),
            ("10.1.0.0/16", "10.2.0.1", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("2001:db8::/32", "2001:db8::1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("10.1.0.0/16", "mtls:CN=10.1.2.3", false),
            ("mtls:CN=team-a", "mtls:CN=team-a", true),
            ("mtls:cn=team-a", "mtls:O=corp,CN=team-a", true),
            ("mtls:CN=team-a,O=corp", "mtls:CN=team-a", false),
            ("mtls:CN=team", "mtls:CN=team-a", false),
            ("mtls:CN=team-a", "mtls:OU=team-a", false),
            ("mtls:CN=team-a", "mtls:CN=TEAM-A", false),
            ("mtls:CN=team-a", "10.1.2.3", false),
            ("mtls:CN=a", "mtls:CN=x\\,CN=a", false),
            ("mtls:CN=x\\,CN=a", "mtls:CN=x\\,CN=a", true),
        ] {
            let (parsed, client) = (Clients::parse(clients).unwrap(), client.parse().unwrap());
            assert_eq!(parsed.has(&client), has, "{clients} {client:?}");
            assert!(!parsed.has(&Client::default()), "nobody is in {clients}");
        }
    }

    #[test]
    fn what_is_nobody() {
        for text in [
            "",
            "10.1.0.0/33",
            "nodes",
            "mtls:",
            "mtls:team-a",
            "mtls:CN=",
            "mtls:X=a",
            "CN=a",
            "mtls:CN=a\\",
            "mtls:CN=a,,O=b",
        ] {
            assert!(Clients::parse(text).is_err(), "{text:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn a_subject_reads_what_it_writes(values in prop::collection::vec("\\PC{1,9}", 1..4)) {
            let subject = Subject(values.into_iter().map(|value| ("CN".to_owned(), value)).collect());
            prop_assert_eq!(subject.to_string().parse::<Subject>(), Ok(subject));
        }
    }
}
