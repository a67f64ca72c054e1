//! Host patterns and the address guard.

use std::net::{IpAddr, SocketAddr};

use url::Url;

use super::*;
use crate::upstream::HostPattern;
use crate::upstream::egress::{AddressGuard, Hosts, Purpose};

fn allows(pattern: &str, url: &str) -> bool {
    let hosts = Hosts {
        key: NAME.into(),
        endpoints: Vec::new(),
        auth: Vec::new(),
        redirect: vec![pattern.parse().unwrap()],
        insecure: url.starts_with("http://"),
    };
    let url = Url::parse(url).unwrap();
    assert!(
        hosts.check(&url, Purpose::Token).is_err(),
        "each purpose has its own list"
    );
    hosts.check(&url, Purpose::Redirect).is_ok()
}

#[test]
fn a_pattern_allows_what_it_spells() {
    for (pattern, url) in [
        ("cdn.example", "https://cdn.example/x"),
        ("cdn.example", "https://cdn.example:443/x"),
        ("CDN.example", "https://cdn.EXAMPLE/x"),
        ("cdn.example", "http://cdn.example/x"),
        ("cdn.example:8443", "https://cdn.example:8443/x"),
        ("cdn.example:443", "https://cdn.example/x"),
        ("*.cdn.example", "https://a.cdn.example/x"),
        ("*.cdn.example", "https://a.b.cdn.example/x"),
        ("*.cdn.example:8443", "https://a.cdn.example:8443/x"),
        ("10.0.0.5", "https://10.0.0.5/x"),
        ("[fd00::5]:5000", "https://[fd00::5]:5000/x"),
        ("*", "https://cdn.example/x"),
    ] {
        assert!(allows(pattern, url), "{pattern} {url}");
    }
}

#[test]
fn a_pattern_allows_nothing_else() {
    for (pattern, url) in [
        ("cdn.example", "https://cdn.example:8443/x"),
        ("cdn.example", "https://cdn.example.evil/x"),
        ("cdn.example", "https://xcdn.example/x"),
        ("cdn.example", "https://a.cdn.example/x"),
        ("cdn.example", "https://cdn.example./x"),
        ("cdn.example", "https://cdn.example@evil.example/x"),
        ("cdn.example", "https://user@cdn.example/x"),
        ("cdn.example:8443", "https://cdn.example/x"),
        ("*.cdn.example", "https://cdn.example/x"),
        ("*.cdn.example", "https://.cdn.example/x"),
        ("*.cdn.example", "https://evilcdn.example/x"),
        ("10.0.0.5", "https://10.0.0.5:5000/x"),
        ("10.0.0.5", "https://[::ffff:10.0.0.5]/x"),
        ("*", "https://10.0.0.5/x"),
        ("*", "https://93.184.216.34/x"),
        ("*", "https://localhost/x"),
        ("*", "https://registry.localhost/x"),
        ("*", "https://kubernetes.default.svc/x"),
        ("*", "https://metadata.google.internal/x"),
        ("*", "https://cdn.example:8443/x"),
    ] {
        assert!(!allows(pattern, url), "{pattern} {url}");
    }
}

#[test]
fn what_is_no_pattern_is_refused() {
    for text in [
        "",
        "https://cdn.example",
        "cdn.example/x",
        "cdn.*",
        "a*.example",
        "*.*.example",
        "**",
        "*.",
        "*.10.0.0.5",
        "0x7f.1",
        "127.1",
        "2130706433",
        "fd00::5",
        "[fd00:0::5]",
        "cdn.example:",
        "cdn.example:99999",
        "cdn.example.",
        "user@cdn.example",
        "cdn example",
    ] {
        assert!(text.parse::<HostPattern>().is_err(), "{text:?}");
    }
}

#[test]
fn the_longest_wildcard_is_meant() {
    let toml = "[\"*.example\"]\n[\"*.deep.example\"]\ninsecure = true\n[\"*\"]\n";
    let upstreams = upstreams(toml, &Limits::default()).unwrap();
    let endpoint = |name| {
        upstreams
            .hosts(&registry(name))
            .map(|hosts| hosts.endpoints[0].clone())
    };
    assert_eq!(
        endpoint("a.deep.example").as_deref(),
        Some("http://a.deep.example")
    );
    assert_eq!(endpoint("b.example").as_deref(), Some("https://b.example"));
    assert_eq!(endpoint("quay.io").as_deref(), Some("https://quay.io"));
    assert_eq!(
        endpoint("other.test").as_deref(),
        Some("https://other.test")
    );
    // Nothing internal by the widest wildcard: no single label, no port.
    assert_eq!(endpoint("localhost"), None);
    assert_eq!(endpoint("other.test:5000"), None);
    let served = upstreams.registries();
    let wildcards: Vec<_> = served.wildcards.iter().map(ToString::to_string).collect();
    assert_eq!(wildcards, ["*.deep.example", "*.example", "*"]);
}

fn guard(allowed: &[&str]) -> AddressGuard {
    AddressGuard {
        public: true,
        allowed: allowed
            .iter()
            .map(|network| network.parse().unwrap())
            .collect(),
    }
}

/// Security row T25: of a mixed answer, only the good part.
#[test]
fn the_guard_lets_public_and_allowed_addresses_through() {
    let internal = [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "168.63.129.16",
        "169.254.169.254",
        "172.31.255.255",
        "192.0.0.8",
        "192.168.1.1",
        "198.19.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fd00::1",
        "fe80::1",
        "ff02::1",
        "::ffff:10.1.2.3",
        "64:ff9b::a01:203",
        "2002:a01:203::1",
    ];
    let public = [
        "93.184.216.34",
        "168.63.129.17",
        "172.32.0.1",
        "2606:2800::1",
        "2002:5db8:d822::",
    ];
    let parse = |text: &str| SocketAddr::new(text.parse::<IpAddr>().unwrap(), 0);
    let strict = guard(&[]);
    for address in internal {
        let error = strict
            .screen("x.example", std::iter::once(parse(address)))
            .unwrap_err();
        assert!(error.to_string().contains("x.example"), "{error}");
    }
    let mixed = internal.iter().chain(&public).map(|address| parse(address));
    let permitted = strict.screen("x.example", mixed).unwrap();
    assert_eq!(permitted, public.map(parse));
    // Where identities are given out, nobody gets by permission for everything.
    let open = guard(&["0.0.0.0/0", "::/0"]);
    for address in [
        "168.63.129.16",
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "fd00:ec2::254",
    ] {
        let found = open.screen("x.example", std::iter::once(parse(address)));
        assert!(found.is_err(), "{address}");
    }
    let found = open.screen("x.example", std::iter::once(parse("169.254.1.1")));
    assert!(found.is_ok());
    let lenient = guard(&["10.1.0.0/16"]);
    for address in ["10.1.2.3", "::ffff:10.1.2.3"] {
        assert!(
            lenient
                .screen("x.example", std::iter::once(parse(address)))
                .is_ok(),
            "{address}"
        );
    }
    assert!(
        lenient
            .screen("x.example", std::iter::once(parse("10.2.0.1")))
            .is_err()
    );
}

#[tokio::test]
async fn a_name_at_an_internal_address_is_not_connected_to() {
    let server = Server::start(|_| Reply::new(200, "{}")).await;
    let port = server.address.port();
    let entry =
        format!("[\"{NAME}\"]\ninsecure = true\nendpoints = [\"http://localhost:{port}\"]\n");
    let get_with = async |toml: &str| {
        let upstreams = upstreams(toml, &Limits::default()).unwrap();
        get(&upstreams.get(&registry(NAME)).unwrap(), "a").await
    };
    let error = kind(get_with(&entry).await);
    let UpstreamErrorKind::HostRefused(text) = error else {
        panic!("{error:?}")
    };
    assert!(text.contains("allow_addresses = ["), "{text}");
    assert_eq!(server.connections(), 0);
    get_with(&format!("{entry}allow_addresses = [\"127.0.0.0/8\"]"))
        .await
        .unwrap();
}
