use proptest::prelude::*;

use super::*;
use crate::policy::tests::properties::{any_client, any_image, any_rules};

/// What is proposed for these pulls, as `rule: pattern`.
fn suggest(policy: &str, images: &[&str]) -> Vec<String> {
    let config: Config = toml::from_str(policy).unwrap();
    let engine = Engine::compile(&config).unwrap();
    let targets: Vec<Target> = images.iter().map(|image| image.parse().unwrap()).collect();
    let client = Client::default();
    let pulls: Vec<_> = targets
        .iter()
        .map(|target| Pulled {
            target,
            client: &client,
        })
        .collect();
    let suggestion = engine.suggest(&config, &pulls, true);
    let rules = suggestion.rules.iter();
    rules
        .flat_map(|it| {
            it.rule
                .images
                .iter()
                .map(|image| format!("{}: {image}", it.rule.id))
        })
        .collect()
}

#[test]
fn repositories_are_grouped_where_many_lie_together() {
    let pulled = [
        "nginx:1",
        "nginx:2",
        "ghcr.io/fluxcd/a:1",
        "ghcr.io/fluxcd/b:1",
        "ghcr.io/fluxcd/c:1",
        "ghcr.io/fluxcd/c/deep:1",
        "registry.k8s.io/a:1",
        "registry.k8s.io/b:1",
        "registry.k8s.io/c:1",
        "localhost:5000/a:1",
    ];
    assert_eq!(
        suggest("default = \"allow\"", &pulled),
        [
            "pulled-docker.io: docker.io/library/nginx",
            "pulled-ghcr.io: ghcr.io/fluxcd/**",
            "pulled-localhost-5000: localhost:5000/a",
            // Never all of a registry.
            "pulled-registry.k8s.io: registry.k8s.io/a",
            "pulled-registry.k8s.io: registry.k8s.io/b",
            "pulled-registry.k8s.io: registry.k8s.io/c",
        ]
    );
}

#[test]
fn rules_keep_their_place_and_their_limits() {
    const POLICY: &str = r#"
        default = "deny"
        rules = [
            { id = "exception", images = ["quay.io/bad/but-good"], effect = "allow" },
            { id = "bad", images = ["quay.io/bad/**", "**:latest"], effect = "deny" },
            { id = "moved", images = ["gcr.io/x/**"], effect = "rewrite", instead = "quay.io/x/**" },
            { id = "unused", images = ["ghcr.io/**"], effect = "allow" },
            { id = "versions", images = ["quay.io/v/*:1.*"], effect = "allow" },
            { id = "no-group", images = ["quay.io/team/*-prod"], effect = "audit" },
            { id = "rest", images = ["quay.io/**"], effect = "allow" },
        ]"#;
    let pulled = [
        "quay.io/bad/but-good:1",
        "gcr.io/x/a:1",
        "quay.io/v/a:1.2",
        "quay.io/team/a-prod:1",
        "quay.io/team/b-prod:1",
        "quay.io/team/c-prod:1",
        // Served once; today's rules refuse one and say nothing about the other.
        "quay.io/bad/old:1",
        "mcr.microsoft.com/old:1",
    ];
    assert_eq!(
        suggest(POLICY, &pulled),
        [
            "exception: quay.io/bad/but-good",
            "bad: quay.io/bad/**",
            "bad: **:latest",
            "moved: gcr.io/x/**",
            "versions: quay.io/v/a:1.*",
            "no-group: quay.io/team/a-prod",
            "no-group: quay.io/team/b-prod",
            "no-group: quay.io/team/c-prod",
            "rest: quay.io/x/a",
            "pulled-mcr.microsoft.com: mcr.microsoft.com/old",
        ]
    );
}

#[test]
fn a_rewrite_that_leads_nowhere_any_more_refuses() {
    const POLICY: &str = r#"
        rules = [
            { id = "moved", images = ["gcr.io/**"], effect = "rewrite", instead = "quay.io/**" },
            { id = "some", images = ["quay.io/**", "ghcr.io/**"], effect = "allow" },
        ]"#;
    let config: Config = toml::from_str(POLICY).unwrap();
    let engine = Engine::compile(&config).unwrap();
    let target: Target = "ghcr.io/a:1".parse().unwrap();
    let pulls = [Pulled {
        target: &target,
        client: &Client::default(),
    }];
    let suggestion = engine.suggest(&config, &pulls, true);
    assert_eq!(suggestion.closed, ["moved"]);
    let rules = suggestion.rules.iter().map(|it| &it.rule);
    let rules: Vec<_> = rules.map(|rule| (rule.effect, &rule.images[..])).collect();
    assert_eq!(
        rules,
        [
            (Effect::Deny, &["gcr.io/**".to_owned()][..]),
            (Effect::Allow, &["ghcr.io/a".to_owned()]),
        ]
    );
}

/// It refused the tag, and a rewrite below it would not.
#[test]
fn what_a_condition_refuses_stays_refused() {
    const POLICY: &str = r#"
        default = "allow"
        rules = [
            { id = "pinned", images = ["quay.io/b"], effect = "allow", require = "digest" },
            { id = "moved", images = ["**/b"], effect = "rewrite", instead = "ghcr.io/a" },
        ]"#;
    assert_eq!(
        suggest(POLICY, &["gcr.io/b:1"]),
        [
            "pinned-rest: quay.io/b",
            "moved: **/b",
            "pulled-ghcr.io: ghcr.io/a"
        ]
    );
}

#[test]
fn an_id_is_nobody_elses() {
    const POLICY: &str = r#"
        default = "allow"
        rules = [{ id = "pulled-quay.io", images = ["quay.io/bad"], effect = "deny" }]"#;
    assert_eq!(
        suggest(POLICY, &["quay.io/a"]),
        ["pulled-quay.io: quay.io/bad", "pulled-quay.io-2: quay.io/a"]
    );
}

proptest! {
    #![proptest_config(crate::policy::tests::properties::fewer())]

    /// Whatever is served now is served so by what is proposed, to whomever, and nothing is that is
    /// refused now.
    #[test]
    fn what_was_pulled_passes_and_nothing_new(
        rules in any_rules(),
        images in prop::collection::vec(any_image(), 1..20),
        others in prop::collection::vec(any_image(), 1..20),
        client in any_client(),
        open: bool,
        group: bool,
    ) {
        let default = if open { Effect::Allow } else { Effect::Deny };
        let config = Config { default, rules };
        let Ok(engine) = Engine::compile(&config) else { return Ok(()) };
        let targets: Vec<Target> = images.iter().map(|image| image.replace('?', ":1").parse().unwrap()).collect();
        let served = |engine: &Engine, target: &Target| {
            let decision = engine.evaluate(target, &client);
            let led = !decision.if_led.is_empty();
            // What is served if a tag led to it comes from where that tag led.
            let from = decision.effect.serves().then_some(decision.target);
            (decision.effect, led && decision.effect == Effect::Deny, from)
        };
        let pulled: Vec<&Target> = targets.iter().filter(|target| {
            let (effect, led, _) = served(&engine, target);
            effect.serves() || led
        }).collect();
        let pulls: Vec<_> = pulled.iter().map(|target| Pulled { target, client: &client }).collect();
        let suggestion = engine.suggest(&config, &pulls, group);
        prop_assert!(suggestion.refused.is_empty());
        let rules: Vec<RuleConfig> = suggestion.rules.into_iter().map(|it| it.rule).collect();
        let proposed = Engine::compile(&Config { default: Effect::Deny, rules }).unwrap();
        for target in pulled {
            prop_assert_eq!(served(&proposed, target), served(&engine, target), "{}", target);
        }
        for other in others {
            let other: Target = other.replace('?', ":1").parse().unwrap();
            let (before, after) = (served(&engine, &other), served(&proposed, &other));
            if before.0 == Effect::Deny && !before.1 {
                prop_assert!(after.0 == Effect::Deny && !after.1, "{}", other);
            }
        }
    }
}
