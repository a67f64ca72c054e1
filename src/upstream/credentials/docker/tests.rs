//! Which login of a file is meant.

use super::*;

/// `u:p-<what>` in base64.
fn auth(what: &str) -> String {
    format!(r#"{{"auth":"{}"}}"#, STANDARD.encode(format!("u:p-{what}")))
}

fn entries(registry: &str, text: &str) -> Result<Entries, String> {
    Entries::parse(text, &registry.parse().unwrap())
}

fn found(entries: &Entries, name: &str) -> String {
    match entries.find(&name.parse().unwrap()) {
        None => "nothing".into(),
        Some(Entry::Asked(ask)) => format!("{} {}", ask.program, ask.server),
        Some(Entry::Written(Credential::Password { password, .. })) => password.expose().clone(),
        Some(Entry::Written(Credential::Refresh(token))) => format!("refresh {}", token.expose()),
        Some(Entry::Written(Credential::Bearer(token))) => format!("bearer {}", token.expose()),
        Some(entry) => panic!("{entry:?}"),
    }
}

#[test]
fn the_longest_key_decides() {
    let text = format!(
        r#"{{"auths":{{"quay.io":{},"quay.io/corp":{},"quay.io/corp/app":{},"ghcr.io":{}}}}}"#,
        auth("quay"),
        auth("corp"),
        auth("app"),
        auth("ghcr")
    );
    let entries = entries("quay.io", &text).unwrap();
    for (name, expected) in [
        ("other/app", "p-quay"),
        ("corp/other", "p-corp"),
        ("corp", "p-corp"),
        ("corporate/app", "p-quay"),
        ("corp/app", "p-app"),
        ("corp/app/part", "p-app"),
        ("corp/application", "p-corp"),
    ] {
        assert_eq!(found(&entries, name), expected, "{name}");
    }
}

#[test]
fn docker_hub_has_many_spellings() {
    for key in [
        "https://index.docker.io/v1/",
        "index.docker.io/v1/",
        "https://index.docker.io/v1",
        "docker.io",
        "registry-1.docker.io",
        "https://registry-1.docker.io/v2/",
        "https://docker.io",
    ] {
        let text = format!(r#"{{"auths":{{"{key}":{}}}}}"#, auth("hub"));
        let entries = entries("docker.io", &text).unwrap();
        assert_eq!(found(&entries, "library/nginx"), "p-hub", "{key}");
    }
    // Elsewhere v1 is a name like any other, unless it stands in a URL.
    let text = format!(r#"{{"auths":{{"quay.io/v1":{}}}}}"#, auth("v1"));
    let entries = entries("quay.io", &text).unwrap();
    assert_eq!(found(&entries, "corp/app"), "nothing");
    assert_eq!(found(&entries, "v1/app"), "p-v1");
}

#[test]
fn helpers_come_before_what_is_written_and_the_store_last() {
    let text = format!(
        r#"{{"auths":{{"r.example":{0},"r.example/corp":{{}},"r.example/own":{0},
            "r.example/id":{{"auth":"","identitytoken":"t"}},
            "r.example/token":{{"registrytoken":"t"}},
            "r.example/plain":{{"username":"u","password":"p-plain"}}}},
            "credHelpers":{{"r.example/own":"ecr-login"}},"credsStore":"desktop",
            "HttpHeaders":{{"x":"y"}}}}"#,
        auth("all")
    );
    let entries = entries("r.example", &text).unwrap();
    for (name, expected) in [
        ("corp/app", "p-all"),
        ("own/app", "docker-credential-ecr-login r.example/own"),
        ("id/app", "refresh t"),
        ("token/app", "bearer t"),
        ("plain/app", "p-plain"),
    ] {
        assert_eq!(found(&entries, name), expected, "{name}");
    }
    for (registry, server) in [("docker.io", HUB), ("quay.io", "quay.io")] {
        let entries = super::tests::entries(registry, r#"{"credsStore":"pass"}"#).unwrap();
        let expected = format!("docker-credential-pass {server}");
        assert_eq!(found(&entries, "any/app"), expected);
    }
}

#[test]
fn what_is_wrong_with_a_file_is_told_and_not_what_is_in_it() {
    for (text, expected) in [
        ("{}", "has no login for r.example"),
        (
            r#"{"auths":{"other.example":{"auth":"aHVudGVyMjpodW50ZXIy"}}}"#,
            "has no login",
        ),
        (
            r#"{"auths":{"r.example":{"auth":"hunter2!"}}}"#,
            "no base64",
        ),
        (
            r#"{"auths":{"r.example":{"auth":"aHVudGVyMg=="}}}"#,
            "without a user name",
        ),
        ("{\n\"auths\": hunter2}", "line 2"),
        (r#"{"auths":{"r.example":"hunter2"}}"#, "line 1"),
        (r#"{"credsStore":"../hunter"}"#, "no credential helper"),
        (
            r#"{"credHelpers":{"r.example":"a b"}}"#,
            "no credential helper",
        ),
    ] {
        let error = entries("r.example", text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
