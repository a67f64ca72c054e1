use proptest::prelude::*;

use super::*;
use crate::oci::Image;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// `nginx:1` and the like; a name without a tag and with a trailing `?` has no reference.
fn hit(pattern: &str, image: &str) -> Hit {
    let pattern = Pattern::parse(pattern).unwrap();
    let parsed: Image = image.trim_end_matches('?').parse().unwrap();
    let reference = (!image.ends_with('?')).then(|| parsed.reference());
    pattern.hit(&parsed.repository.to_string(), reference.as_ref())
}

#[test]
fn names() {
    for (pattern, image, matches) in [
        ("k8s.gcr.io/**", "k8s.gcr.io/pause", true),
        ("k8s.gcr.io/**", "k8s.gcr.io/a/b/c:1", true),
        ("k8s.gcr.io/**", "registry.k8s.io/k8s.gcr.io/pause", false),
        ("k8s.gcr.io/**", "xk8s.gcr.io/pause", false),
        ("k8s.gcr.io/**", "k8s.gcr.io.evil.example/pause", false),
        ("K8S.gcr.io./**", "k8s.gcr.io/pause", true),
        ("k8s.gcr.io/*", "k8s.gcr.io/pause", true),
        ("k8s.gcr.io/*", "k8s.gcr.io/a/b", false),
        ("quay.io/a", "quay.io/a", true),
        ("quay.io/a", "quay.io/a/b", false),
        ("quay.io/a", "quay.io/ab", false),
        ("quay.io/team-*/app", "quay.io/team-x/app", true),
        ("quay.io/team-*/app", "quay.io/team-x/y/app", false),
        ("quay.io/**/app", "quay.io/app", true),
        ("quay.io/**/app", "quay.io/a/b/app", true),
        ("quay.io/**/app", "quay.io/a/xapp", false),
        ("quay.io/a.b", "quay.io/axb", false),
        ("**", "nginx", true),
        ("**/nginx", "nginx", true),
        ("*/library/nginx", "nginx", true),
        ("*.azurecr.io/**", "team.azurecr.io/a/b", true),
        ("*.azurecr.io/**", "azurecr.io/a", false),
        ("*.AZURECR.io/**", "team.azurecr.io/a", true),
        ("localhost:5001/**", "localhost:5001/x", true),
        ("*.example:5000/**", "reg.example:5000/x", true),
        // Docker Hub has one name, and its short images one place.
        ("docker.io/nginx", "nginx", true),
        ("docker.io/nginx", "docker.io/library/nginx", true),
        ("docker.io/library/nginx", "nginx", true),
        ("docker.io/*", "nginx", true),
        ("docker.io/*", "corp/nginx", false),
        ("docker.io/**", "corp/nginx", true),
        ("index.docker.io/**", "nginx", true),
        ("registry-1.docker.io:443/corp/*", "corp/nginx", true),
    ] {
        let expected = if matches { Hit::Yes } else { Hit::No };
        assert_eq!(hit(pattern, image), expected, "{pattern} and {image}");
    }
}

#[test]
fn versions() {
    let at = |name: &str| format!("{name}@{DIGEST}");
    let other = DIGEST.replace("sha256:e", "sha256:f");
    for (pattern, image, expected) in [
        ("quay.io/a:1", "quay.io/a:1", Hit::Yes),
        ("quay.io/a:1", "quay.io/a:12", Hit::No),
        ("quay.io/a:1", "quay.io/b:1", Hit::No),
        ("quay.io/a:latest", "quay.io/a", Hit::Yes),
        ("quay.io/a:1.*", "quay.io/a:1.2.3", Hit::Yes),
        ("quay.io/a:*-rc*", "quay.io/a:v1-rc.2", Hit::Yes),
        ("**:v*.*.*", "quay.io/a:v1.2.3", Hit::Yes),
        ("**:v*.*.*", "quay.io/a:v1", Hit::No),
        ("quay.io/a:1", &at("quay.io/a"), Hit::Unsure),
        ("quay.io/a:1", &at("quay.io/a:1"), Hit::Unsure),
        ("quay.io/a:1", &at("quay.io/b"), Hit::No),
        ("quay.io/a:1", "quay.io/a?", Hit::Unsure),
        ("quay.io/a", &at("quay.io/a"), Hit::Yes),
        ("quay.io/a", "quay.io/a?", Hit::Yes),
        ("quay.io/a@*", &at("quay.io/a"), Hit::Yes),
        ("quay.io/a@*", "quay.io/a:1", Hit::No),
        ("quay.io/a@*", "quay.io/a?", Hit::Unsure),
        (&at("quay.io/a"), &at("quay.io/a"), Hit::Yes),
        (&at("quay.io/a:9"), &at("quay.io/a:1"), Hit::Yes),
        (&at("quay.io/a"), "quay.io/a:1", Hit::No),
        (&at("quay.io/a"), &format!("quay.io/a@{other}"), Hit::Unsure),
    ] {
        assert_eq!(hit(pattern, image), expected, "{pattern} and {image}");
    }
}

#[test]
fn what_is_no_pattern() {
    for pattern in [
        "",
        " ",
        "nginx",
        "library/nginx",
        "k8s.gcr.io",
        "*",
        "*:1",
        "quay.io/",
        "quay.io//a",
        "/a",
        "quay.io/A",
        "quay.io/a**",
        "quay.io/**a",
        "quay.io/a:",
        "quay.io/a:-1",
        "quay.io/a@",
        "quay.io/a@sha256:12",
        "quay.io/a@sha256:*",
        "quay.io/{a,b}",
        "quay.io/[ab]",
        "quay.io/a?",
        "10.0.0.1/**",
        "u@quay.io/**",
        "https://quay.io/**",
        "quay_io.x/**",
        "quay.io/\u{e9}",
        "quay.io/a\\b",
        "quay.io/a b",
        "quay.io/a:b/c",
    ] {
        let error = Pattern::parse(pattern).err();
        let error = error
            .unwrap_or_else(|| panic!("{pattern:?} was accepted"))
            .to_string();
        assert!(error.starts_with(&format!("{pattern:?}")), "{error}");
    }
}

#[test]
fn the_registry_is_known() {
    for (pattern, registry) in [
        (
            "index.docker.io/nginx:1",
            RegistryPart::Exact(Registry::docker_hub()),
        ),
        (
            "*.azurecr.io/**",
            RegistryPart::Wildcard("*.azurecr.io".to_owned()),
        ),
        ("**/nginx", RegistryPart::Wildcard("**".to_owned())),
        ("**:1", RegistryPart::Wildcard("**".to_owned())),
    ] {
        assert_eq!(
            *Pattern::parse(pattern).unwrap().registry(),
            registry,
            "{pattern}"
        );
    }
}

#[test]
fn what_the_last_wildcard_stands_for() {
    for (pattern, name, remainder) in [
        ("k8s.gcr.io/**", "k8s.gcr.io/a/b", "a/b"),
        ("docker.io/bitnami/**", "docker.io/bitnami/a/b", "a/b"),
        ("*.azurecr.io/**", "x.azurecr.io/a/b", "a/b"),
        ("**", "quay.io/a/b", "quay.io/a/b"),
        ("quay.io/a/*", "quay.io/a/b", "a/b"),
        ("quay.io/a", "quay.io/a", "a"),
    ] {
        assert_eq!(
            Pattern::parse(pattern).unwrap().remainder(name),
            remainder,
            "{pattern}"
        );
    }
}

proptest! {
    /// A whole registry matches everything in it, and nothing beside it, by text and by glob.
    #[test]
    fn a_registry_matches_its_own(
        registry in "[a-z]{1,5}\\.[a-z]{1,5}",
        other in "[a-z]{1,5}\\.[a-z]{1,5}",
        name in "[a-z0-9]{1,5}(/[a-z0-9]{1,5}){0,3}",
    ) {
        let reference = "v1".parse().unwrap();
        let under = Pattern::parse(&format!("{registry}/**")).unwrap();
        // The same as a real glob: a wildcard in front that can stand for nothing.
        let glob = Pattern::parse(&format!("**/{registry}*/**")).unwrap();
        let own = format!("{registry}/{name}");
        prop_assert_eq!(under.hit(&own, Some(&reference)), Hit::Yes);
        prop_assert_eq!(glob.hit(&own, Some(&reference)), Hit::Yes);
        if other != registry {
            prop_assert_eq!(under.hit(&format!("{other}/{name}"), Some(&reference)), Hit::No);
        }
    }

    #[test]
    fn no_text_panics(text in "[a-zA-Z0-9*./:@_-]{0,30}", image in "[a-z0-9./-]{0,20}") {
        if let Ok(pattern) = Pattern::parse(&text) {
            let _ = (pattern.hit(&image, None), pattern.remainder(&image));
            let again = Pattern::parse(&pattern.to_string()).unwrap();
            prop_assert_eq!(again.registry(), pattern.registry());
        }
    }
}
