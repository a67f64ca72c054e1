//! Behind an egress proxy: what it hears, what it must not hear, and what its refusals become.

use std::time::{Duration, Instant};

use reqwest::dns::Resolve as _;
use tokio::net::TcpListener;
use url::Url;

use super::gate::{Does, Gate, socks, tls};
use super::*;
use crate::upstream::egress::AddressGuard;
use crate::upstream::proxy::{ProxyUrl, Way};

const LOGIN: &str = "proxy_username = \"corp\"\nproxy_password = \"hunter2%20/@\"\n";
/// `corp:hunter2%20/@`
const BASIC: &str = "Basic Y29ycDpodW50ZXIyJTIwL0A=";

fn egress(toml: &str) -> Egress {
    toml::from_str(toml).unwrap()
}

fn way(toml: &str, environment: &[(&str, &str)]) -> Result<Way, String> {
    let variable = |name: &str| {
        let found = environment.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let lines = |wrong: Vec<(&str, String)>| {
        let lines: Vec<_> = wrong
            .iter()
            .map(|(key, text)| format!("{key} {text}"))
            .collect();
        lines.join("\n")
    };
    Way::new(&egress(toml), variable).map_err(lines)
}

/// Security rows T26 and T29: registry, token service and CDN by CONNECT to their names, which
/// resolve nowhere but there; the login of the proxy goes to the proxy, that of the registry does not.
#[tokio::test]
async fn every_connection_is_a_tunnel_to_a_name() {
    let directory = tempfile::tempdir().unwrap();
    let names = [NAME, "auth.example", "cdn.example"];
    let (ca, config) = tls(directory.path(), &names);
    let server = Server::start_tls(config, |request| {
        match (request.header("host").unwrap(), &*request.target) {
            ("auth.example", _) => Reply::new(200, "{\"token\":\"t0ken\"}"),
            ("cdn.example", "/x") => Reply::new(200, "{}"),
            (NAME, "/v2/evil/manifests/latest") => {
                Reply::redirect("https://cdn.example%0d%0aX-Evil:%20yes/")
            }
            (NAME, "/v2/internal/manifests/latest") => Reply::redirect("https://169.254.169.254/x"),
            (NAME, _) if request.header("authorization").is_some() => {
                Reply::redirect("https://cdn.example/x")
            }
            (NAME, _) => Reply::challenge("Bearer realm=\"https://auth.example/token\""),
            other => panic!("{other:?}"),
        }
    })
    .await;
    let address = server.address;
    let gate = Gate::start(None, move |_| Does::Go(address)).await;
    let toml = format!(
        "[\"{NAME}\"]\nauth_hosts = [\"auth.example\"]\nredirect_hosts = [\"cdn.example\"]\n\
         ca_files = [{ca:?}]\nusername = \"corp\"\npassword = \"t0ken\"\nshare_with = \"everyone\""
    );
    let upstreams = upstreams_by(&gate.egress(LOGIN), &toml, &Limits::default()).unwrap();
    let upstream = upstreams.get(&registry(NAME)).unwrap();
    assert_eq!(get(&upstream, "a").await.unwrap(), b"{}");
    for name in ["evil", "internal"] {
        get(&upstream, name).await.unwrap_err();
    }
    let mut targets = gate.targets();
    targets.dedup();
    let expected = names.map(|name| format!("CONNECT {name}:443"));
    assert_eq!(targets, expected);
    for request in gate.seen.lock().unwrap().iter() {
        assert_eq!(request.header("proxy-authorization"), Some(BASIC));
        assert_eq!(request.header("authorization"), None);
        assert_eq!(request.header("x-evil"), None);
    }
    for request in server.seen() {
        assert_eq!(request.header("proxy-authorization"), None, "{request:?}");
    }
    let shown = format!("{upstreams:?} {:?}", gate.egress(LOGIN));
    assert!(!shown.contains("hunter2"), "{shown}");
}

/// The host could be reached directly, and is not.
#[tokio::test]
async fn a_proxy_that_does_not_let_us_through_says_why_and_nobody_goes_past_it() {
    use UpstreamErrorKind::{NoWayOut, TimedOut, Unavailable};
    let server = Server::bystander().await;
    let host = server.address;
    let toml = format!("[\"{NAME}\"]\nendpoints = [\"https://{host}\"]");
    for (does, tries, more) in [
        (Does::Say(403), 1, ""),
        (Does::Say(407), 1, ""),
        (Does::Say(407), 1, LOGIN),
        (Does::Say(503), 3, ""),
        (Does::HangUp, 3, ""),
        (Does::Stall, 3, ""),
    ] {
        let gate = Gate::start(None, move |_| does).await;
        let mut limits = Limits::default();
        if matches!(does, Does::Stall) {
            limits.connect = Duration::from_millis(300);
        }
        let upstreams = upstreams_by(&gate.egress(more), &toml, &limits).unwrap();
        let error = kind(get(&upstreams.get(&registry(NAME)).unwrap(), "a").await);
        let proxy = format!("the egress proxy {}", gate.address);
        let expected = match (does, more) {
            (Does::Say(403), _) => NoWayOut(format!(
                "{proxy} refused CONNECT to {host} (403): allow the host there"
            )),
            (Does::Say(407), "") => NoWayOut(format!(
                "{proxy} wants a login: proxy_username and proxy_password under [egress]"
            )),
            (Does::Say(407), _) => NoWayOut(format!("{proxy} refused the login that it was given")),
            (Does::Say(_), _) => Unavailable(format!("{proxy} cannot reach {host} (503)")),
            (Does::HangUp, _) => Unavailable(format!(
                "{proxy} opened no connection to {host} (unexpected end of file)"
            )),
            _ => TimedOut(format!(
                "{proxy} did not open a connection to {host} in time"
            )),
        };
        assert_eq!(error, expected);
        // Each try, and one question more to learn what the library does not tell.
        let asked = if matches!(does, Does::Stall) {
            tries
        } else {
            2 * tries
        };
        assert_eq!(gate.targets(), vec![format!("CONNECT {host}"); asked]);
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_proxy_that_is_down_is_found_out_at_once_and_not_asked_again() {
    let server = Server::bystander().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    for scheme in ["http", "https", "socks5"] {
        for target in ["https", "http"] {
            let toml = format!(
                "[\"{NAME}\"]\ninsecure = true\nendpoints = [\"{target}://{0}\", \"{target}://{0}\"]",
                server.address
            );
            let egress = egress(&format!("proxy = \"{scheme}://{nobody}\"\n"));
            let upstreams = upstreams_by(&egress, &toml, &Limits::default()).unwrap();
            let began = Instant::now();
            let error = kind(get(&upstreams.get(&registry(NAME)).unwrap(), "a").await);
            let text = format!("cannot connect to the egress proxy {nobody} (connection refused)");
            assert_eq!(error, UpstreamErrorKind::NoWayOut(text));
            assert!(began.elapsed() < Limits::default().connect);
        }
    }
    assert_eq!(server.connections(), 0);
}

/// Proxies allow CONNECT to port 443 only, so plain requests go in the absolute form.
#[tokio::test]
async fn plain_http_goes_in_the_absolute_form() {
    let server = Server::start(|_| Reply::new(200, "{}")).await;
    let address = server.address;
    let gate = Gate::start(None, move |request| {
        match request.header("proxy-authorization") {
            Some(BASIC) => Does::Go(address),
            _ => Does::Say(407),
        }
    })
    .await;
    let toml = format!("[\"{NAME}\"]\ninsecure = true");
    let upstream = |more| {
        let upstreams = upstreams_by(&gate.egress(more), &toml, &Limits::default()).unwrap();
        upstreams.get(&registry(NAME)).unwrap()
    };
    assert_eq!(get(&upstream(LOGIN), "a").await.unwrap(), b"{}");
    let error = kind(get(&upstream(""), "a").await);
    assert!(error.to_string().contains("wants a login"), "{error}");
    let target = format!("GET http://{NAME}/v2/a/manifests/latest");
    assert_eq!(gate.targets(), [target.clone(), target]);
}

/// The authorities of `[egress]` hold for the way to the proxy too.
#[tokio::test]
async fn a_proxy_may_have_tls_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let (ca, config) = tls(directory.path(), &[NAME]);
    let (gate_ca, gate_config) = tls(directory.path(), &["127.0.0.1"]);
    let server = Server::start_tls(config, |_| Reply::new(200, "{}")).await;
    let address = server.address;
    let toml = format!("[\"{NAME}\"]\nca_files = [{ca:?}]");
    let gate = Gate::start(Some(gate_config), move |_| Does::Go(address)).await;
    let proxy = format!("proxy = \"https://{}\"\n", gate.address);
    let upstream = |more: &str| {
        let egress = egress(&format!("{proxy}{more}"));
        let upstreams = upstreams_by(&egress, &toml, &Limits::default()).unwrap();
        upstreams.get(&registry(NAME)).unwrap()
    };
    let trusting = upstream(&format!("ca_files = [{gate_ca:?}]"));
    assert_eq!(get(&trusting, "a").await.unwrap(), b"{}");
    let error = kind(get(&upstream(""), "a").await);
    let expected = format!("TLS with the egress proxy {} failed (", gate.address);
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert_eq!(server.seen().len(), 1);
    assert_eq!(gate.targets(), [format!("CONNECT {NAME}:443")]);
}

#[tokio::test]
async fn socks_gets_names_and_says_why_not() {
    let directory = tempfile::tempdir().unwrap();
    let (ca, config) = tls(directory.path(), &[NAME]);
    let server = Server::start_tls(config, |_| Reply::new(200, "{}")).await;
    let toml = format!("[\"{NAME}\"]\nca_files = [{ca:?}]");
    for (scheme, code, expected) in [
        ("socks5", 0, ""),
        ("socks5h", 0, ""),
        (
            "socks5",
            2,
            "refused a connection to registry.example:443: allow the host there",
        ),
        (
            "socks5",
            4,
            "cannot reach registry.example:443 (host unreachable)",
        ),
    ] {
        let (proxy, seen) = socks(code, server.address).await;
        let egress = egress(&format!("proxy = \"{scheme}://{proxy}\""));
        let upstreams = upstreams_by(&egress, &toml, &Limits::default()).unwrap();
        let result = get(&upstreams.get(&registry(NAME)).unwrap(), "a").await;
        if code == 0 {
            assert_eq!(result.unwrap(), b"{}");
        } else {
            let text = kind(result).to_string();
            assert_eq!(text, format!("the egress proxy {proxy} {expected}"));
        }
        assert_eq!(seen.lock().unwrap()[0], format!("{NAME}:443"));
    }
}

/// A private endpoint goes past the proxy, with the address guard on as ever.
#[tokio::test]
async fn an_upstream_may_go_past_the_proxy() {
    let server = Server::start(|_| Reply::new(200, "{}")).await;
    let gate = Gate::start(None, |_| Does::HangUp).await;
    let port = server.address.port();
    let toml = format!(
        "[\"{NAME}\"]\ninsecure = true\nproxy = \"none\"\nendpoints = [\"http://localhost:{port}\"]"
    );
    let asked = async |more: &str| {
        let toml = format!("{toml}\n{more}");
        let upstreams = upstreams_by(&gate.egress(""), &toml, &Limits::default()).unwrap();
        get(&upstreams.get(&registry(NAME)).unwrap(), "a").await
    };
    asked("allow_addresses = [\"127.0.0.0/8\"]").await.unwrap();
    let error = kind(asked("").await);
    assert!(
        matches!(error, UpstreamErrorKind::HostRefused(_)),
        "{error}"
    );
    assert_eq!(gate.targets().len(), 0);
}

/// Security row T26: nobody but the proxy sees where `"*"` leads.
#[test]
fn any_host_behind_a_proxy_must_be_said_aloud() {
    let wrong = |toml: &str, more: &str| {
        let egress = egress(&format!("proxy = \"http://10.0.0.4:3128\"\n{more}"));
        let result = upstreams_by(&egress, toml, &Limits::default());
        result.map(|_| ()).map_err(|wrong| wrong.join("\n"))
    };
    for toml in [
        "[\"*\"]",
        "[\"*:5000\"]",
        "[\"r.example\"]\nredirect_hosts = [\"*\"]",
        "[\"r.example\"]\nauth_hosts = [\"*\"]",
    ] {
        let text = wrong(toml, "").unwrap_err();
        assert!(
            text.contains("say proxy_filters = true under [egress]"),
            "{text}"
        );
        wrong(toml, "proxy_filters = true").unwrap();
        wrong(&format!("{toml}\nproxy = \"none\""), "").unwrap();
    }
    wrong("[\"*.azurecr.io\"]", "").unwrap();
    let login = "username = \"corp\"\npassword = \"x\"\nshare_with = \"everyone\"";
    let plain = format!(
        "[\"r.example\"]\ninsecure = true\n{login}\n\
                         endpoints = [\"https://r.example\"]"
    );
    let text = wrong(&plain, "").unwrap_err();
    assert!(text.contains("the egress proxy could read it"), "{text}");
}

#[test]
fn what_is_wrong_with_the_way_out_is_said_without_its_password() {
    for (text, expected) in [
        (
            "proxy_filters = true",
            "proxy_filters is said of a proxy, and there is none",
        ),
        (
            "proxy_username = \"corp\"",
            "proxy_username is for egress.proxy",
        ),
        (
            "proxy = \"http://p\"\nproxy_username = \"corp\"",
            "needs a proxy_password",
        ),
        (
            "proxy = \"http://p\"\nproxy_password = \"hunter2\"",
            "needs a proxy_username",
        ),
        (
            "proxy = \"http://p\"\nproxy_username = \"a:b\"\nproxy_password = \"hunter2\"",
            "has a colon",
        ),
        (
            "proxy = \"http://corp:hunter2@p\"\nproxy_username = \"a\"\nproxy_password = \"b\"",
            "proxy_username is there, and the URL",
        ),
        (
            "proxy = \"http://p\"\nproxy_username = \"a\"\nproxy_password = { file = \"/nowhere\" }",
            "proxy_password /nowhere",
        ),
        (
            "proxy = \"http://p\"\nfrom_environment = true",
            "from_environment and proxy each name a proxy",
        ),
    ] {
        let wrong = way(text, &[]).unwrap_err();
        assert!(wrong.contains(expected), "{text}: {wrong}");
        assert!(!wrong.contains("hunter2"), "{wrong}");
    }
    for text in [
        "",
        "10.0.0.4:3128",
        "ftp://p",
        "http://",
        "http://p/path",
        "http://p?x=hunter2",
        "http://p#x",
        "socks4://p",
        "http://corp:hunter2@",
    ] {
        let error = toml::from_str::<Egress>(&format!("proxy = \"{text}\"")).unwrap_err();
        let text = error.message();
        assert!(
            text.contains("is no proxy") && !text.contains("hunter2"),
            "{text}"
        );
    }
    let proxy: ProxyUrl = "socks5://corp:hunter2@p.example".parse().unwrap();
    assert_eq!(
        format!("{proxy} {proxy:?}"),
        ["socks5://p.example:1080"; 2].join(" ")
    );
}

/// Security row T29: the environment counts when the configuration says so, and not before.
#[test]
fn the_environment_counts_only_when_asked_for() {
    let environment = [
        ("HTTPS_PROXY", "http://corp:hunter2@10.0.0.4:3128"),
        ("http_proxy", "10.0.0.5:8080"),
        ("NO_PROXY", "corp.example, 10.1.0.0/16"),
    ];
    let urls = [
        "https://r.example/x?sig=y",
        "http://r.example",
        "https://r.corp.example:5000",
        "https://10.1.2.3",
    ]
    .map(|url| Url::parse(url).unwrap());
    let proxied = |way: &Way| urls.each_ref().map(|url| way.of(url).is_some());
    let ignored = way("", &environment).unwrap();
    assert!(ignored.is_direct());
    assert_eq!(proxied(&ignored), [false; 4]);
    let asked = way("from_environment = true", &environment).unwrap();
    assert_eq!(proxied(&asked), [true, true, false, false]);
    assert!(!format!("{asked:?}").contains("hunter2"));
    let all = [("all_proxy", "socks5://10.0.0.4"), ("HTTPS_PROXY", "")];
    let all = way("from_environment = true", &all).unwrap();
    assert_eq!(proxied(&all), [true; 4]);
    assert!(way("from_environment = true", &[]).unwrap().is_direct());
    let wrong = [("HTTPS_PROXY", "quic://corp:hunter2@p")];
    let wrong = way("from_environment = true", &wrong).unwrap_err();
    assert!(wrong.contains("HTTPS_PROXY is no proxy"), "{wrong}");
    assert!(!wrong.contains("hunter2"), "{wrong}");
    // And a proxy that the configuration names has no exceptions.
    let named = way("proxy = \"http://10.0.0.4:3128\"", &environment).unwrap();
    assert_eq!(proxied(&named), [true; 4]);
}

/// An identity is that of the machine which asks, so no proxy may ask for it.
#[test]
fn identity_services_are_asked_directly() {
    let way = way("proxy = \"http://10.0.0.4:3128\"", &[])
        .unwrap()
        .except_identities();
    for (url, proxied) in [
        (
            "http://169.254.169.254/metadata/identity/oauth2/token",
            false,
        ),
        ("http://169.254.170.23/v1/credentials", false),
        ("http://[fd00:ec2::254]/", false),
        ("http://metadata.google.internal/", false),
        ("https://login.microsoftonline.com/", true),
        ("https://corp.blob.core.windows.net/", true),
    ] {
        assert_eq!(
            way.of(&Url::parse(url).unwrap()).is_some(),
            proxied,
            "{url}"
        );
    }
}

/// What would miss the proxy finds no address to go to.
#[tokio::test]
async fn behind_a_proxy_only_its_own_name_is_looked_up() {
    for (proxy, finds) in [
        ("http://LOCALHOST:3128", true),
        ("http://10.0.0.4:3128", false),
    ] {
        let guard = AddressGuard {
            allowed: Vec::new(),
            public: true,
        };
        let names = way(&format!("proxy = \"{proxy}\""), &[])
            .unwrap()
            .names(guard);
        // Loopback, which the guard would refuse anybody else.
        let own = names.resolve("localhost".parse().unwrap()).await;
        assert_eq!(own.is_ok(), finds, "{proxy}");
        let other = names.resolve("ip6-localhost".parse().unwrap()).await;
        let error = other.map(|_| ()).unwrap_err().to_string();
        assert_eq!(error, "names are looked up by the egress proxy alone");
    }
}
