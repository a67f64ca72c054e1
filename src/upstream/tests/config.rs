//! Entries of `[upstreams]`: what they mean, what they may not say, and what they never show.

use super::*;
use crate::telemetry::SecretSource;
use crate::upstream::known::{Known, REGISTRIES};
use crate::upstream::{HostPattern, Served};

fn wrong(toml: &str) -> String {
    upstreams(toml, &Limits::default())
        .map(|_| ())
        .unwrap_err()
        .join("\n")
}

#[test]
fn the_known_table_is_well_formed() {
    for row in REGISTRIES {
        for host in row
            .auth_hosts
            .iter()
            .chain(row.redirect_hosts)
            .chain(&row.endpoint)
        {
            assert!(host.parse::<HostPattern>().is_ok(), "{host}");
        }
        if row.is_exact() {
            let registry: Registry = row.registry.parse().unwrap();
            assert_eq!(registry.as_str(), row.registry, "the canonical form");
        }
    }
    assert!(Known::for_key("k8s.gcr.io").is_none());
}

#[test]
fn the_world_is_closed() {
    let upstreams = upstreams("", &Limits::default()).unwrap();
    for name in [
        "docker.io",
        "registry-1.docker.io",
        "registry.k8s.io",
        "mcr.microsoft.com",
    ] {
        assert!(upstreams.get(&registry(name)).is_some(), "{name}");
    }
    // Rows for wildcards are data, not permission.
    for name in [
        "k8s.gcr.io",
        "corp.azurecr.io",
        "europe-docker.pkg.dev",
        "evil.example",
    ] {
        assert!(upstreams.get(&registry(name)).is_none(), "{name}");
    }
    let served = upstreams.registries();
    assert!(served.registries.is_sorted() && served.wildcards.is_empty());
    assert_eq!(
        served.registries.len(),
        REGISTRIES.iter().filter(|row| row.is_exact()).count()
    );
    let hub = upstreams.hosts(&Registry::docker_hub()).unwrap();
    assert_eq!(hub.endpoints, ["https://registry-1.docker.io"]);
    assert_eq!(hub.auth_hosts, ["auth.docker.io"]);
}

#[test]
fn a_known_name_needs_only_what_differs() {
    let toml = "[\"index.docker.io\"]\nredirect_hosts = [\"cdn.example\"]\n[\"*.azurecr.io\"]";
    let upstreams = upstreams(toml, &Limits::default()).unwrap();
    let hub = upstreams.hosts(&Registry::docker_hub()).unwrap();
    assert_eq!(hub.endpoints.len() + hub.auth_hosts.len(), 2);
    assert_eq!(hub.redirect_hosts[0], "cdn.example");
    assert!(
        hub.redirect_hosts
            .contains(&"production.cloudflare.docker.com".into())
    );
    // The same as far as names tell.
    let served = Served::by_name(["index.docker.io", "*.azurecr.io", "no name"].into_iter());
    assert_eq!(served, upstreams.registries());
    for (name, is_served) in [
        ("docker.io", true),
        ("quay.io", true),
        ("corp.azurecr.io", true),
        ("azurecr.io", false),
        ("corp.azurecr.io:5000", false),
        ("k8s.gcr.io", false),
    ] {
        assert_eq!(served.contains(&registry(name)), is_served, "{name}");
        assert_eq!(
            upstreams.get(&registry(name)).is_some(),
            is_served,
            "{name}"
        );
    }
    let azure = upstreams.hosts(&registry("corp.azurecr.io")).unwrap();
    assert_eq!(azure.endpoints, ["https://corp.azurecr.io"]);
    assert!(
        azure
            .redirect_hosts
            .contains(&"*.blob.core.windows.net".into())
    );
    let one = upstreams.get(&registry("corp.azurecr.io")).unwrap();
    assert!(Arc::ptr_eq(
        &one,
        &upstreams.get(&registry("corp.azurecr.io")).unwrap()
    ));
    assert_eq!(one.registry().as_str(), "corp.azurecr.io");
}

#[test]
fn what_cannot_be_meant_is_refused_all_at_once() {
    let login = "username = \"corp\"\npassword = \"hunter2\"\n";
    let shared = format!("{login}share_with = \"everyone\"\n");
    let cases = [
        (login.to_owned(), "share_with = \"everyone\""),
        (
            format!("{shared}grants = [{{ client = \"10.0.0.1\", repositories = [\"**\"] }}]"),
            "one of them is meant",
        ),
        (
            "username = \"corp\"\nshare_with = \"everyone\"".into(),
            "no password",
        ),
        (
            "password = \"hunter2\"\nshare_with = \"everyone\"".into(),
            "no username",
        ),
        ("endpoints = [\"http://r.example\"]".into(), "not https"),
        (
            "endpoints = [\"ftp://r.example\"]\ninsecure = true".into(),
            "not https",
        ),
        (
            "endpoints = [\"https://corp:hunter2@r.example\"]".into(),
            "more than scheme",
        ),
        (
            "endpoints = [\"https://r.example/prefix?sig=hunter2\"]".into(),
            "more than scheme",
        ),
        (
            format!("{shared}endpoints = [\"http://r.example\"]\ninsecure = true"),
            "without https",
        ),
        (format!("{shared}insecure = true"), "spell its endpoints"),
        ("ca_files = [\"/nowhere/ca.pem\"]".into(), "/nowhere/ca.pem"),
        (
            "username = \"corp\"\npassword = { file = \"/nowhere/password\" }\n\
             share_with = \"everyone\""
                .into(),
            "/nowhere/password",
        ),
        (
            "username = \"corp\"\npassword = { env = \"PORTCULLIS_NO_SUCH\" }\n\
             share_with = \"everyone\""
                .into(),
            "PORTCULLIS_NO_SUCH is not set",
        ),
    ];
    let mut all = String::new();
    for (number, (lines, expected)) in cases.iter().enumerate() {
        let entry = format!("[\"r{number}.example\"]\n{lines}\n");
        let text = wrong(&entry);
        assert!(
            text.starts_with(&format!("[upstreams.\"r{number}.example\"] ")),
            "{text}"
        );
        assert!(text.contains(expected), "{expected}: {text}");
        assert!(!text.contains("hunter2"), "{text}");
        all.push_str(&entry);
    }
    assert!(wrong(&all).lines().count() >= cases.len());
    for lines in [
        "endpoints = [\"https://169.254.169.254\"]",
        "redirect_hosts = [\"168.63.129.16\"]",
        "auth_hosts = [\"[::ffff:a9fe:a9fe]\"]",
    ] {
        let text = wrong(&format!("[\"r.example\"]\n{lines}"));
        assert!(text.contains("gives machines their identity"), "{text}");
    }
    assert!(wrong(&format!("[\"*.r.example\"]\n{shared}")).contains("not to a wildcard"));
    assert!(wrong("[\"*.r.example\"]\nendpoints = [\"https://r.example\"]").contains("wildcard"));
    assert!(wrong("[\"docker.io\"]\n[\"index.docker.io\"]").contains("configured twice"));
    assert!(wrong("[\"127.0.0.1:5000\"]").contains("by its DNS name"));
    assert!(wrong("[\"*r.example\"]").contains("no host"));
}

#[test]
fn unknown_keys_and_bad_values_are_refused() {
    for toml in [
        "endpoint = \"https://r.example\"",
        "redirect_hosts = [\"https://r.example\"]",
        "allow_addresses = [\"10.0.0.0\"]",
        "password = { file = \"x\", env = \"Y\" }",
        "password = { fil = \"x\" }",
        "share_with = \"anyone\"",
    ] {
        assert!(toml::from_str::<Config>(toml).is_err(), "{toml}");
    }
    assert!(toml::from_str::<Limits>("connect = 5").is_err());
    assert!(toml::from_str::<Egress>("proxies = []").is_err());
    let limits: Limits = toml::from_str("answer = \"20s\"\nblob_size = \"1GiB\"").unwrap();
    assert_eq!((limits.answer.as_secs(), limits.blob_size), (20, 1 << 30));
    assert_eq!(limits.connect, Limits::default().connect);
}

#[test]
fn secrets_are_read_in_three_spellings_and_never_shown() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "hunter2\n").unwrap();
    let read = |value: &str| {
        let config: Config = toml::from_str(&format!("password = {value}")).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        config
            .password
            .as_ref()
            .unwrap()
            .read()
            .map(|secret| secret.expose().clone())
    };
    assert_eq!(read("\"hunter2\"").unwrap(), "hunter2");
    assert_eq!(read(&format!("{{ file = {file:?} }}")).unwrap(), "hunter2");
    // Cargo sets this one for every test.
    assert_eq!(read("{ env = \"CARGO_PKG_NAME\" }").unwrap(), "portcullis");
    std::fs::write(&file, "\n").unwrap();
    assert!(
        read(&format!("{{ file = {file:?} }}"))
            .unwrap_err()
            .contains("is empty")
    );
    assert!(
        SecretSource::File("/nowhere".into())
            .read()
            .unwrap_err()
            .contains("/nowhere")
    );

    let toml = format!(
        "[\"{NAME}\"]\nusername = \"corp\"\npassword = \"hunter2\"\nshare_with = \"everyone\""
    );
    let upstreams = upstreams(&toml, &Limits::default()).unwrap();
    let one = upstreams.get(&registry(NAME)).unwrap();
    assert!(!format!("{upstreams:?} {one:?}").contains("hunter2"));
}
