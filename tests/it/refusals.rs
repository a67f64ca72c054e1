//! What people see of a refusal: docs/refusals.md shows the texts of Debian's containerd, and here
//! they are, from real pulls over the socket that a kubelet asks. `UPDATE_DOCS=1` writes them there.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};

use crate::support::cri;
use crate::support::programs::Containerd;
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::{Fault, Upstream};

const RULES: &str = r#"
[policy]
default = "allow"
[[policy.rules]]
id = "frozen-k8s-gcr"
images = ["k8s.gcr.io/**"]
effect = "deny"
reason = "k8s.gcr.io is frozen since 3 April 2023"
instead = "registry.k8s.io/**"
contact = "platform@corp.example"
"#;

/// How the manual calls the proxy.
const NAME: &str = "images.corp.example:5000";
const VERSION: &str = "1.6.20";

/// The kinds of refusals and an image that meets each.
const KINDS: [(&str, &str); 7] = [
    ("refused by policy", "k8s.gcr.io/pause:3.9"),
    ("not served", "nowhere.example/app:1"),
    ("not found", "registry.example/demo/none:1"),
    ("rate limited", "busy.example/demo/busy:1"),
    ("upstream down", "down.example/app:1"),
    ("login needed", "registry.example/demo/private:1"),
    ("offline", "registry.example/demo/app:1"),
];

fn manual() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/refusals.md")
}

fn certs_d(proxy: &Proxy) -> PathBuf {
    let out = proxy.directory().join("certs.d");
    let url = format!("url = \"http://{}\"", proxy.address);
    let arguments = [
        "nodes",
        "hosts",
        "--default",
        "--out",
        out.to_str().unwrap(),
    ];
    proxy
        .run(|setup| setup.section("server", &url), &arguments)
        .assert_success();
    out
}

/// Nobody listens there, and nobody else will as long as the first is kept.
fn closed_port() -> (OwnedFd, String) {
    let port = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&port, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = SocketAddrV4::try_from(getsockname(&port).unwrap()).unwrap();
    (port, address.to_string())
}

/// As the event of a pod has it, through this proxy.
fn event(containerd: &Containerd, proxy: &Proxy, image: &str) -> String {
    let refused = cri::pull(&containerd.socket(), image).unwrap_err();
    let text = format!("Failed to pull image \"{image}\": {}", refused.text());
    text.replace(&proxy.address.to_string(), NAME)
}

#[test]
fn the_manual_shows_what_pods_say() {
    assert_eq!(
        Containerd::version(),
        VERSION,
        "the manual is about another"
    );
    let upstream = Upstream::start();
    upstream.always(
        "demo/busy",
        Fault::Answer(429, vec![("Retry-After", "60".to_owned())], Vec::new()),
    );
    upstream.always("demo/private", Fault::Answer(403, Vec::new(), Vec::new()));
    let (_port, down) = closed_port();
    let setup = Setup::new(&upstream)
        .registry("down.example", &format!("http://{down}"))
        .registry("busy.example", &upstream.origin())
        .rules(RULES);
    let proxy = setup.clone().start();
    let offline = setup.section("server", "offline = true").start();
    let (node, cut_off) = (
        Containerd::with_cri(&certs_d(&proxy)),
        Containerd::with_cri(&certs_d(&offline)),
    );
    let mut seen: BTreeMap<&str, String> = BTreeMap::new();
    for (kind, image) in KINDS {
        let text = match kind {
            "offline" => event(&cut_off, &offline, image),
            _ => event(&node, &proxy, image),
        };
        seen.insert(kind, text.replace(&down, "down.example:443"));
    }

    let text = std::fs::read_to_string(manual()).unwrap();
    let mut shown = text.clone();
    for (kind, _) in KINDS {
        let start = format!("```text {kind}\n");
        let at = text
            .find(&start)
            .unwrap_or_else(|| panic!("nothing is said of {kind}"));
        let block = &text[at + start.len()..];
        let block = &block[..block.find("```").unwrap()];
        let (before, after) = (
            format!("{start}{block}```"),
            format!("{start}{}\n```", seen[kind]),
        );
        shown = shown.replace(&before, &after);
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(manual(), &shown).unwrap();
    } else {
        assert_eq!(shown, text);
    }
}
