//! Which registries a policy lets anybody pull from: what a firewall must be opened for.
//!
//! Both questions err on the side of yes, since a host too many is seen in `egress --diff` and a
//! host too few is a pull that fails. A rewrite needs no question of its own: what it leads to is
//! judged by the same rules.

use super::Engine;
use super::pattern::{Cover, Names};
use super::rule::Effect;
use crate::oci::Registry;

// === impl Engine ===

impl Engine {
    /// Whether some image in `registry` may be served to some client.
    #[must_use]
    pub fn may_serve(&self, registry: &Registry) -> bool {
        self.may(&Names::Under(format!("{registry}/")))
    }

    /// Whether some image may be in some registry whose name ends in `end` (`.azurecr.io`; any name
    /// ends in nothing), those registries left out that rules name in full.
    #[must_use]
    pub fn may_serve_under(&self, end: &str) -> bool {
        self.may(&Names::Registries(end.to_owned()))
    }

    fn may(&self, names: &Names) -> bool {
        for rule in &self.rules {
            match (rule.covers(names), rule.effect) {
                (Cover::None, _) | (Cover::Some, Effect::Deny | Effect::Rewrite) => {}
                (_, Effect::Allow | Effect::Audit) => return true,
                (Cover::All(_), Effect::Deny | Effect::Rewrite) => return false,
            }
        }
        self.default.serves()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Image;
    use crate::policy::{Client, Target};

    fn engine(rules: &str) -> Engine {
        Engine::compile(&toml::from_str(rules).unwrap()).unwrap()
    }

    fn may(rules: &str, registry: &str) -> bool {
        engine(rules).may_serve(&registry.parse().unwrap())
    }

    #[test]
    fn a_registry_counts_when_anything_in_it_may_be_served() {
        for (rules, quay, hub) in [
            ("", false, false),
            ("default = \"allow\"", true, true),
            (
                r#"rules = [{ id = "a", images = ["quay.io/a/b:1"], effect = "allow" }]"#,
                true,
                false,
            ),
            (
                r#"rules = [{ id = "a", images = ["quay.io/**"], effect = "audit" }]"#,
                true,
                false,
            ),
            (
                r#"rules = [{ id = "a", images = ["**/nginx"], effect = "allow" }]"#,
                true,
                true,
            ),
            // The whole of it, or only a part.
            (
                r#"default = "allow"
                rules = [{ id = "a", images = ["quay.io/**"], effect = "deny" }]"#,
                false,
                true,
            ),
            (
                r#"default = "allow"
                rules = [{ id = "a", images = ["quay.io/**"], except = ["quay.io/a/**"], effect = "deny" }]"#,
                true,
                true,
            ),
            (
                r#"default = "allow"
                rules = [{ id = "a", images = ["**:latest", "quay.io/a/**"], effect = "deny" }]"#,
                true,
                true,
            ),
            (
                r#"default = "allow"
                rules = [{ id = "a", images = ["**"], except = ["docker.io/**"], effect = "deny" }]"#,
                false,
                true,
            ),
            (
                r#"default = "allow"
                rules = [{ id = "a", images = ["q*.io/**"], effect = "deny" }]"#,
                false,
                true,
            ),
            // Some clients may have what others may not.
            (
                r#"default = "allow"
                rules = [{ id = "a", images = ["quay.io/**"], clients = ["10.0.0.0/8"], effect = "deny" }]"#,
                true,
                true,
            ),
            (
                r#"rules = [{ id = "a", images = ["quay.io/**"], clients = ["10.0.0.0/8"], effect = "allow" }]"#,
                true,
                false,
            ),
            // A rewrite takes its registry out and leaves in what it leads to.
            (
                r#"rules = [
                    { id = "a", images = ["docker.io/**"], effect = "rewrite", instead = "quay.io/hub/**" },
                    { id = "b", images = ["quay.io/hub/**"], effect = "allow" },
                ]"#,
                true,
                false,
            ),
            (
                r#"default = "allow"
                rules = [{ id = "a", images = ["docker.io/**"], effect = "rewrite", instead = "quay.io/hub/**" }]"#,
                true,
                false,
            ),
        ] {
            assert_eq!(
                (may(rules, "quay.io"), may(rules, "docker.io")),
                (quay, hub),
                "{rules}"
            );
        }
    }

    #[test]
    fn a_wildcard_counts_when_a_rule_goes_beyond_names() {
        for (rules, azure, any) in [
            ("", false, false),
            ("default = \"allow\"", true, true),
            (
                r#"rules = [{ id = "a", images = ["corp.azurecr.io/**"], effect = "allow" }]"#,
                false,
                false,
            ),
            (
                r#"rules = [{ id = "a", images = ["*.azurecr.io/**"], effect = "allow" }]"#,
                true,
                true,
            ),
            (
                r#"rules = [{ id = "a", images = ["team-*.azurecr.io/x"], effect = "allow" }]"#,
                true,
                true,
            ),
            (
                r#"rules = [{ id = "a", images = ["*.example/**"], effect = "allow" }]"#,
                false,
                true,
            ),
            (
                r#"rules = [{ id = "a", images = ["**/nginx:1"], effect = "allow" }]"#,
                true,
                true,
            ),
            (
                r#"default = "allow"
                rules = [{ id = "a", images = ["*.azurecr.io/**"], effect = "deny" }]"#,
                false,
                true,
            ),
            (
                r#"default = "allow"
                rules = [{ id = "a", images = ["*.io/**"], effect = "deny" }]"#,
                false,
                true,
            ),
            (
                r#"default = "allow"
                rules = [{ id = "a", images = ["corp.azurecr.io/**", "*.azurecr.io/old/**"], effect = "deny" }]"#,
                true,
                true,
            ),
            (
                r#"default = "allow"
                rules = [{ id = "a", images = ["*/**"], effect = "deny" }]"#,
                false,
                false,
            ),
        ] {
            let engine = engine(rules);
            let found = (
                engine.may_serve_under(".azurecr.io"),
                engine.may_serve_under(""),
            );
            assert_eq!(found, (azure, any), "{rules}");
        }
    }

    /// Whatever is served is in a registry that counts.
    #[test]
    fn nothing_is_served_from_elsewhere() {
        let vectors = include_str!("../../tests/policy-vectors.json");
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        let mut served = 0;
        for table in vectors["tables"].as_array().unwrap() {
            let config = serde_json::from_value(table["policy"].clone()).unwrap();
            let engine = Engine::compile(&config).unwrap();
            for case in table["cases"].as_array().unwrap() {
                // Others are workloads.
                let text = case["image"].as_str().unwrap_or_default();
                let Ok(image) = text.parse::<Image>() else {
                    continue;
                };
                let client = case["client"]
                    .as_str()
                    .map(|client| client.parse().unwrap());
                let client: Client = client.unwrap_or_default();
                let decision = engine.evaluate(&Target::from(&image), &client);
                if decision.effect.serves() {
                    served += 1;
                    let registry = &decision.target.repository.registry;
                    assert!(engine.may_serve(registry), "{text}: {registry}");
                }
            }
        }
        assert!(served > 20, "only {served}");
    }
}
