//! One way out: the proxy, and a node beside it, in a network whose only cable leads to an egress
//! proxy. Whatever else they try to send is a packet on that cable, and counted.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use portcullis::oci::Digest;

use crate::support::at;
use crate::support::certificates::Certificates;
use crate::support::image::Image;
use crate::support::listeners::Bystander;
use crate::support::network::in_own_network;
use crate::support::programs::{Containerd, program, run};
use crate::support::proxy::{Proxy, Setup};
use crate::support::stores::azurite;
use crate::support::upstream::Upstream;
use crate::support::world::{CDN, PASSWORD, PROXY, REGISTRY, Traffic, USER, World, cut_the_cable};
use crate::support::{KIB, MIB};

/// `base64(USER:PASSWORD)`
const BASIC: &str = "Y2FuYXJ5LXByb3h5LXVzZXI6Y2FuYXJ5JTQwcHJveHk6N2MxZQ==";

const RULES: &str = r#"
[[policy.rules]]
id = "not-this-one"
images = ["denied.public.example/**"]
effect = "deny"
reason = "nobody needs it"
[[policy.rules]]
id = "public"
images = ["registry.public.example/**", "unlisted.public.example/**"]
effect = "allow"
"#;

fn setup(egress: &str, certificates: &Certificates) -> Setup {
    let ca = format!("ca_files = [\"{}\"]", certificates.authority_file.display());
    Setup::listening()
        .section("egress", &format!("{egress}\n{ca}"))
        .section("tags", "fresh_for = \"1h\"")
        .section(
            &format!("upstreams.\"{REGISTRY}\""),
            &format!("redirect_hosts = [\"{CDN}\"]"),
        )
        .section("upstreams.\"denied.public.example\"", "")
        .section("upstreams.\"unlisted.public.example\"", "")
        .rules(RULES)
}

fn by_http(more: &str) -> String {
    format!("proxy = \"http://{PROXY}\"\n{more}")
}

/// What the egress proxy has to let through: the output of `portcullis egress`, one host a line.
fn hosts(proxy: &Proxy) -> Vec<String> {
    let said = proxy.run(|setup| setup, &["egress"]).assert_success();
    let name = |line: &str| line.split(':').next().unwrap_or_default().trim().to_owned();
    let mut names: Vec<String> = said.stdout.lines().map(name).collect();
    // What the proxy must not let through, so that its refusal can be seen.
    names.retain(|name| name != "unlisted.public.example");
    names.dedup();
    names
}

/// The certs.d tree as a node gets it.
fn certs_d(proxy: &Proxy) -> PathBuf {
    let out = proxy.directory().join("certs.d");
    let url = format!("url = \"http://{}\"", proxy.address);
    let arguments = ["nodes", "hosts", "--out", out.to_str().unwrap()];
    proxy
        .run(|setup| setup.section("server", &url), &arguments)
        .assert_success();
    out
}

fn image() -> Image {
    Image::with_layers(&[10 * KIB, 300 * KIB, 9 * MIB])
}

/// Debian's containerd pulls through the proxy, and gets what the registry has.
fn pull(proxy: &Proxy, image: &Image) {
    let name = format!("{REGISTRY}/demo/hello:1");
    let containerd = Containerd::start();
    containerd.pull(&certs_d(proxy), &name).assert_success();
    let digest = image.manifest.digest().to_string();
    assert_eq!(containerd.digest_of(&name), Some(digest));
}

#[track_caller]
fn assert_only_the_proxy_was_called() -> Traffic {
    let traffic = Traffic::so_far();
    assert_eq!((traffic.names, traffic.elsewhere), (0, 0), "{traffic:?}");
    traffic
}

fn path(registry: &str, rest: &str) -> String {
    format!("/v2/{registry}/{rest}")
}

/// The whole life behind squid: pull, refusals, an outage, and a proxy that is cut off.
#[test]
fn through_squid_and_no_other_way() {
    in_own_network("egress::through_squid_and_no_other_way", &[], || {
        let mut world = World::start();
        let image = image();
        world.push("demo/hello", "1", &image);
        let proxy = setup(&by_http(""), &world.certificates).start();
        world.squid(&hosts(&proxy), false);
        // The counters count.
        run(program("getent").args(["hosts", "registry.example"])).assert_failure();
        assert!(Traffic::so_far().names > 0, "{:?}", Traffic::so_far());
        world.squid(&hosts(&proxy), false);

        pull(&proxy, &image);
        let pulled = assert_only_the_proxy_was_called();

        // Security row T18 and promise 4: what is denied is not even asked of the proxy.
        for registry in ["denied.public.example", "nowhere.public.example"] {
            let answer = proxy.get(&path(registry, "demo/hello/manifests/1"));
            answer.assert_error(403, "DENIED");
        }
        assert_eq!(Traffic::so_far(), pulled);

        // The proxy's own refusal reaches the person who can do something about it.
        let answer = proxy.get(&path("unlisted.public.example", "demo/hello/manifests/1"));
        let answer = answer.assert_error(502, "UNAVAILABLE");
        let line = format!(
            "the egress proxy {PROXY} refused CONNECT to unlisted.public.example:443 (403): allow \
             the host there"
        );
        assert!(answer.reason.ends_with(&line), "{answer:?}");
        proxy.logs().wait_for_text(&line);

        world.stop_proxy();
        // Security row T26: names on its list, and the one that it refused.
        let mut asked = world.asked_of_squid();
        asked.sort();
        asked.dedup();
        let expected = [
            "TCP_DENIED/403 unlisted.public.example:443".to_owned(),
            format!("TCP_TUNNEL/200 {CDN}:443"),
            format!("TCP_TUNNEL/200 {REGISTRY}:443"),
        ];
        assert_eq!(asked, expected);
        pull(&proxy, &image);
        let began = Instant::now();
        for rest in [
            "demo/other/manifests/1",
            &format!("demo/other/blobs/{}", Digest::sha256(b"x")),
        ] {
            let answer = proxy
                .get(&path(REGISTRY, rest))
                .assert_error(502, "UNAVAILABLE");
            let line = format!("cannot connect to the egress proxy {PROXY} (connection refused)");
            assert!(answer.reason.ends_with(&line), "{answer:?}");
        }
        assert!(
            began.elapsed() < Duration::from_secs(15),
            "{:?}",
            began.elapsed()
        );
        assert_only_the_proxy_was_called();

        // A dead cable is told from a dead process by nothing but time: connections that were open
        // and new ones alike.
        world.squid(&hosts(&proxy), false);
        proxy
            .get(&path(REGISTRY, "demo/other/manifests/2"))
            .assert_error(404, "MANIFEST_UNKNOWN");
        cut_the_cable();
        let began = Instant::now();
        let answer = proxy.get(&path(REGISTRY, "demo/other/manifests/3"));
        let answer = answer.assert_error(502, "UNAVAILABLE");
        assert!(
            began.elapsed() < Duration::from_secs(15),
            "{:?}",
            began.elapsed()
        );
        assert!(answer.reason.ends_with("(timed out)"), "{answer:?}");
        proxy
            .get(&path(REGISTRY, "demo/hello/manifests/1"))
            .assert_whole(&image.manifest.bytes);
        assert_only_the_proxy_was_called();
    });
}

/// With a login: who has none is told, and the login shows nowhere.
#[test]
fn through_squid_with_a_login() {
    in_own_network("egress::through_squid_with_a_login", &[], || {
        let mut world = World::start();
        let image = image();
        world.push("demo/hello", "1", &image);
        let without = setup(&by_http(""), &world.certificates).start();
        world.squid(&hosts(&without), true);
        let answer = without
            .get(&path(REGISTRY, "demo/hello/manifests/1"))
            .assert_error(502, "UNAVAILABLE");
        assert!(
            answer.reason.contains("wants a login: proxy_username"),
            "{answer:?}"
        );

        // An escape in it, too: what is written is what is sent.
        let login =
            format!("proxy_username = \"{USER}\"\nproxy_password = {{ env = \"PROXY_PASSWORD\" }}");
        let proxy = setup(&by_http(&login), &world.certificates)
            .env("PROXY_PASSWORD", PASSWORD)
            .start();
        pull(&proxy, &image);
        assert_only_the_proxy_was_called();

        let wrong = setup(&by_http(&login), &world.certificates)
            .env("PROXY_PASSWORD", "canary-wrong-5a")
            .start();
        let answer = wrong
            .get(&path(REGISTRY, "demo/hello/manifests/1"))
            .assert_error(502, "UNAVAILABLE");
        assert!(answer.reason.contains("refused the login"), "{answer:?}");
        for proxy in [&proxy, &wrong] {
            let log = proxy.logs().text();
            for secret in [USER, PASSWORD, BASIC, "canary-wrong-5a"] {
                assert!(!log.contains(secret), "{secret} shows in {log}");
            }
        }
    });
}

#[test]
fn through_tinyproxy() {
    in_own_network("egress::through_tinyproxy", &[], || {
        let mut world = World::start();
        let image = image();
        world.push("demo/hello", "1", &image);
        let proxy = setup(&by_http(""), &world.certificates).start();
        world.tinyproxy(&hosts(&proxy));
        pull(&proxy, &image);
        let answer = proxy.get(&path("unlisted.public.example", "demo/hello/manifests/1"));
        let answer = answer.assert_error(502, "UNAVAILABLE");
        assert!(
            answer.reason.contains("(403): allow the host there"),
            "{answer:?}"
        );
        assert_only_the_proxy_was_called();
    });
}

#[test]
fn through_socks() {
    in_own_network("egress::through_socks", &[], || {
        let mut world = World::start();
        let image = image();
        world.push("demo/hello", "1", &image);
        let egress = format!("proxy = \"socks5://{PROXY}\"");
        let proxy = setup(&egress, &world.certificates).start();
        world.socks();
        pull(&proxy, &image);
        let answer = proxy.get(&path("unlisted.public.example", "demo/hello/manifests/1"));
        let answer = answer.assert_error(502, "UNAVAILABLE");
        assert!(answer.reason.contains("allow the host there"), "{answer:?}");
        assert_only_the_proxy_was_called();
    });
}

/// The proxy of the environment counts when the configuration says so, and with it `NO_PROXY`.
#[test]
fn through_the_proxy_of_the_environment() {
    in_own_network("egress::through_the_proxy_of_the_environment", &[], || {
        let mut world = World::start();
        let image = image();
        world.push("demo/hello", "1", &image);
        let proxy = setup("from_environment = true", &world.certificates)
            .env("HTTPS_PROXY", &format!("http://{PROXY}"))
            .env("NO_PROXY", "unlisted.public.example")
            .start();
        world.squid(&hosts(&proxy), false);
        pull(&proxy, &image);
        assert_only_the_proxy_was_called();
        let answer = proxy.get(&path("unlisted.public.example", "demo/hello/manifests/1"));
        let answer = answer.assert_error(502, "UNAVAILABLE");
        assert!(answer.reason.contains("cannot be found"), "{answer:?}");
        assert!(Traffic::so_far().names > 0);
    });
}

/// Security row T29: whatever the environment says, an upstream is dialled as the configuration says.
#[test]
fn a_proxy_that_only_the_environment_names_hears_nothing() {
    let upstream = Upstream::start();
    let evil = Bystander::start();
    let url = format!("http://{}", evil.address);
    let names = [
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ];
    let setup = names
        .iter()
        .fold(Setup::new(&upstream), |setup, name| setup.env(name, &url));
    let proxy = setup.start();
    let image = Image::with_layers(&[1000]);
    upstream.image("demo/app", "1", &image);
    proxy
        .get(&at("demo/app/manifests/1"))
        .assert_whole(&image.manifest.bytes);
    for request in upstream.requests() {
        assert_eq!(request.header("proxy-authorization"), None);
    }
    evil.assert_never_called();
}

/// The shared store goes by the proxy where that is said, and directly where it is not.
#[test]
fn the_shared_store_goes_where_it_is_told() {
    let upstream = Upstream::start();
    let name = azurite().fresh_container();
    for (via, calls) in [("direct", false), ("egress", true)] {
        let gate = Bystander::start();
        let lines = format!("{}\nvia = \"{via}\"", azurite().lines(&name));
        let proxy = Setup::new(&upstream)
            .upstream("proxy = \"none\"")
            .section("egress", &format!("proxy = \"http://{}\"", gate.address))
            .section("store.shared", &lines)
            .start();
        let said = if calls {
            "no answer from the shared store; pulls go on without it"
        } else {
            "sharing a store"
        };
        proxy.logs().wait_for(said);
        assert_eq!(gate.calls() > 0, calls, "{via}");
    }
}

#[test]
fn check_says_what_is_wrong_with_the_way_out() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    for (lines, expected) in [
        (
            "proxy = \"ftp://corp:canary-5e@p\"",
            "egress.proxy: is no proxy",
        ),
        (
            "proxy = \"http://p:3128\"\nproxy_username = \"corp\"",
            "egress.proxy_username: needs a proxy_password",
        ),
        (
            "proxy = \"http://p:3128\"\nfrom_environment = true",
            "egress.from_environment: and proxy each name a proxy",
        ),
        (
            "proxy_filters = true",
            "egress.proxy_filters: is said of a proxy",
        ),
    ] {
        let said = proxy.run(|setup| setup.section("egress", lines), &["check"]);
        let text = said.assert_failure().text;
        assert!(text.contains(expected), "{expected}: {text}");
        assert_eq!(text.matches(expected).count(), 1, "{text}");
        assert!(
            text.contains("line ") && !text.contains("canary-5e"),
            "{text}"
        );
    }
    let any = |setup: Setup| {
        let egress = "proxy = \"http://10.0.0.4:3128\"";
        setup
            .section("egress", egress)
            .section("upstreams.\"*\"", "")
    };
    let text = proxy.run(any, &["check"]).assert_failure().text;
    assert!(
        text.contains("say proxy_filters = true under [egress]"),
        "{text}"
    );
    let filtered = |setup: Setup| any(setup).section("egress", "proxy_filters = true");
    proxy.run(filtered, &["check"]).assert_success();
}
