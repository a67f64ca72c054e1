//! Who may read which repositories of a registry that the proxy has a login for.
//!
//! Rules say what may be pulled at all; a grant says by whom, where what the login sees is not
//! everybody's. Both are asked before anything is looked up, and a refusal says the same whether
//! there is such a repository or not. A registry without grants is open to whoever reaches it.

use std::collections::HashMap;

use super::client::Clients;
use super::pattern::{Hit, InvalidPattern, Pattern};
use super::refusal::{REFUSED, message};
use super::{Client, Refusal};
use crate::oci::{Registry, Repository};

/// What decides, as a refusal names it.
const RULE: &str = "grants";
const WHY: &str = "it is granted to certain clients, and this is none of them";

/// All grants, by registry.
#[derive(Clone, Debug, Default)]
pub struct Grants {
    registries: HashMap<Registry, Vec<Grant>>,
}

#[derive(Clone, Debug)]
struct Grant {
    clients: Clients,
    repositories: Vec<Pattern>,
}

// === impl Grants ===

impl Grants {
    /// `client` may read `repositories`, written like the names of rules without their registry:
    /// `team-a/**`.
    ///
    /// # Errors
    /// Names what is no client or no pattern of repositories.
    pub fn add(
        &mut self,
        registry: &Registry,
        client: &str,
        repositories: &[String],
    ) -> Result<(), InvalidPattern> {
        let repositories = repositories.iter().map(|text| repository(registry, text));
        let grant = Grant {
            clients: Clients::parse(client)?,
            repositories: repositories.collect::<Result<_, _>>()?,
        };
        self.registries
            .entry(registry.clone())
            .or_default()
            .push(grant);
        Ok(())
    }

    /// Whether what is in `registry` is not everybody's.
    #[must_use]
    pub fn cover(&self, registry: &Registry) -> bool {
        self.registries.contains_key(registry)
    }

    /// Whether `client` may read `repository`; None where there is nothing to grant.
    #[must_use]
    pub fn of(&self, client: &Client, repository: &Repository) -> Option<bool> {
        let grants = self.registries.get(&repository.registry)?;
        let name = repository.to_string();
        let hits = |pattern: &Pattern| pattern.hit(&name, None) == Hit::Yes;
        let granted =
            |grant: &Grant| grant.clients.has(client) && grant.repositories.iter().any(hits);
        Some(client.operator || grants.iter().any(granted))
    }

    /// What a client is told that may not read `repository`: the same for what is there and what is
    /// not.
    #[must_use]
    pub fn refusal(&self, client: &Client, repository: &Repository) -> Option<Refusal> {
        if self.of(client, repository) != Some(false) {
            return None;
        }
        let text = message(&repository.to_string(), REFUSED, WHY, None, None);
        Some(Refusal {
            rule: Some(RULE.to_owned()),
            reason: Some(WHY.to_owned()),
            ..Refusal::new(text)
        })
    }
}

fn repository(registry: &Registry, text: &str) -> Result<Pattern, InvalidPattern> {
    if text.contains([':', '@']) {
        return Err(InvalidPattern(format!(
            "{text:?} has a version, and repositories are granted whole"
        )));
    }
    Pattern::parse(&format!("{registry}/{text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Image;

    fn grants(entries: &[(&str, &str, &[&str])]) -> Grants {
        let mut grants = Grants::default();
        for (registry, client, repositories) in entries {
            let repositories: Vec<String> = repositories.iter().map(ToString::to_string).collect();
            let registry = registry.parse().unwrap();
            grants.add(&registry, client, &repositories).unwrap();
        }
        grants
    }

    fn repository(text: &str) -> Repository {
        text.parse::<Image>().unwrap().repository
    }

    #[test]
    fn who_may_read_what() {
        let grants = grants(&[
            ("r.example", "mtls:CN=team-a", &["team-a/**", "shared/base"]),
            ("r.example", "10.1.0.0/16", &["shared/**"]),
            ("docker.io", "10.2.0.0/16", &["library/nginx", "*/tools"]),
        ]);
        for (client, name, expected) in [
            ("mtls:CN=team-a", "r.example/team-a/app", Some(true)),
            ("mtls:CN=team-a,O=corp", "r.example/team-a/x/y", Some(true)),
            ("mtls:CN=team-a", "r.example/shared/base", Some(true)),
            ("mtls:CN=team-a", "r.example/shared/other", Some(false)),
            ("mtls:CN=team-a", "r.example/team-ab/app", Some(false)),
            ("mtls:CN=team-b", "r.example/team-a/app", Some(false)),
            ("10.1.2.3", "r.example/shared/other", Some(true)),
            ("10.1.2.3", "r.example/team-a/app", Some(false)),
            ("10.2.2.3", "r.example/shared/other", Some(false)),
            ("10.2.2.3", "nginx", Some(true)),
            ("10.2.2.3", "docker.io/corp/tools", Some(true)),
            ("10.2.2.3", "docker.io/corp/other", Some(false)),
            ("10.9.9.9", "other.example/team-a/app", None),
        ] {
            let (client, name) = (client.parse().unwrap(), repository(name));
            assert_eq!(grants.of(&client, &name), expected, "{client:?} {name}");
            let is_refused = expected == Some(false);
            assert_eq!(grants.refusal(&client, &name).is_some(), is_refused);
            assert_ne!(grants.of(&Client::operator(), &name), Some(false));
            let nobody = grants.of(&Client::default(), &name);
            assert_eq!(nobody, expected.map(|_| false), "nobody is granted {name}");
        }
    }

    #[test]
    fn a_refusal_says_the_same_of_everything_in_a_registry() {
        let grants = grants(&[("r.example", "mtls:CN=a", &["a/**"])]);
        let client = "10.0.0.1".parse().unwrap();
        let refusal = grants.refusal(&client, &repository("r.example/a/b"));
        assert_eq!(
            refusal.unwrap().message,
            "r.example/a/b is not allowed: it is granted to certain clients, and this is none of them"
        );
    }

    #[test]
    fn what_cannot_be_granted() {
        for (client, repository) in [
            ("nodes", "a/**"),
            ("mtls:", "a/**"),
            ("10.1.0.0/16", "a:1"),
            ("10.1.0.0/16", "a@*"),
            ("10.1.0.0/16", ""),
            ("10.1.0.0/16", "A b"),
        ] {
            let registry = "r.example".parse().unwrap();
            let added = Grants::default().add(&registry, client, &[repository.to_owned()]);
            assert!(added.is_err(), "{client} {repository}");
        }
    }
}
