//! Grants: who may read what of a registry whose login sees more than everybody may. Security rows
//! T33 and T35 to T38: no route, no cache and no running download is a way round them.

use portcullis::oci::Digest;
use serde_json::Value;

use crate::support::canary::secret;
use crate::support::certificates::Certificates;
use crate::support::client::Client;
use crate::support::image::Image;
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;
use crate::support::{KIB, MIB, at, eventually};

/// Addresses by which the tests' clients come.
const TEAM_A: [u8; 4] = [127, 1, 2, 3];
const TEAM_B: [u8; 4] = [127, 2, 2, 3];
const STRANGER: [u8; 4] = [127, 0, 0, 1];

const GRANTS: &str = r#"grants = [
    { client = "127.1.0.0/16", repositories = ["team-a/**"] },
    { client = "127.2.0.0/16", repositories = ["team-b/**", "shared/base"] },
]"#;

fn setup(upstream: &Upstream, grants: &str) -> Setup {
    let password = secret!("of-the-registry");
    let login = format!("username = \"corp\"\npassword = \"{password}\"");
    Setup::new(upstream).upstream(&format!("{login}\n{grants}"))
}

/// An image of team A, in a registry that asks for no login from whoever has none.
fn scene() -> (Upstream, Proxy, Image) {
    let upstream = Upstream::start();
    let image = Image::with_layers(&[100 * KIB]);
    upstream.image("team-a/app", "1", &image);
    let list = r#"{"name": "team-a/app", "tags": ["1"]}"#;
    upstream.document("/v2/team-a/app/tags/list", list, "application/json");
    let proxy = setup(&upstream, GRANTS).start();
    (upstream, proxy, image)
}

fn by(proxy: &Proxy, address: [u8; 4]) -> Client {
    proxy.client().from(address.into())
}

/// Whatever can be asked of a repository: what is there and what is not.
fn routes(image: &Image) -> Vec<String> {
    let (manifest, layer) = (image.manifest.digest(), Digest::sha256(&image.layers[0]));
    let none = Digest::sha256(b"nobody has this");
    let rest = [
        "manifests/1".to_owned(),
        "manifests/2".to_owned(),
        format!("manifests/{manifest}"),
        format!("manifests/{none}"),
        format!("blobs/{layer}"),
        format!("blobs/{none}"),
        "tags/list".to_owned(),
        "tags/list?n=1".to_owned(),
        format!("referrers/{manifest}"),
        format!("referrers/{none}"),
    ];
    rest.iter()
        .map(|rest| at(&format!("team-a/app/{rest}")))
        .collect()
}

/// All routes are refused in the same words, whoever asks of these two.
#[track_caller]
fn assert_closed(proxy: &Proxy, image: &Image) {
    for address in [STRANGER, TEAM_B] {
        let client = by(proxy, address);
        for path in routes(image) {
            let refused = client.get(&path).assert_error(403, "DENIED");
            assert_eq!(
                refused.reason,
                "registry.example/team-a/app is not allowed: it is granted to certain clients, \
                 and this is none of them",
                "{path}"
            );
            for name in ["age", "cache-status", "etag", "docker-content-digest"] {
                assert_eq!(refused.header(name), None, "{path}");
            }
            client.head(&path).assert(403);
            client.range(&path, "bytes=1-").assert(403);
        }
    }
}

#[test]
fn no_route_leads_round_a_grant_and_nothing_tells_what_is_there() {
    let (upstream, proxy, image) = scene();
    assert_closed(&proxy, &image);
    assert_eq!(upstream.connects(), 0, "somebody was asked");

    let team_a = by(&proxy, TEAM_A);
    let large = upstream.blob("team-a/app", vec![7; 4 * MIB]);
    let gate = upstream.hold(large, 2 * MIB as u64);
    let path = at(&format!("team-a/app/blobs/{large}"));
    let mut running = team_a.open("GET", &path, &[]);
    assert_eq!(running.take(MIB), vec![7; MIB]);
    gate.reached();
    by(&proxy, STRANGER).get(&path).assert_error(403, "DENIED");
    gate.open();
    assert_eq!(running.finish().body, vec![7; 3 * MIB]);

    let tag = at("team-a/app/manifests/1");
    team_a.get(&tag).assert_whole(&image.manifest.bytes);
    for blob in image.blobs() {
        let path = at(&format!("team-a/app/blobs/{}", Digest::sha256(blob)));
        team_a.get(&path).assert_whole(blob);
    }
    team_a.get(&at("team-a/app/tags/list")).assert(200);
    let asked = upstream.requests().len();
    assert_closed(&proxy, &image);
    assert_eq!(upstream.requests().len(), asked);
}

/// Security row T33.
#[test]
fn a_digest_that_is_cached_is_no_way_into_another_repository() {
    let (upstream, mut proxy, image) = scene();
    let layer = Digest::sha256(&image.layers[0]);
    let path = at(&format!("team-a/app/blobs/{layer}"));
    by(&proxy, TEAM_A).get(&path).assert_whole(&image.layers[0]);
    proxy.wait_until_stored(&layer);
    for repository in ["team-b/app", "shared/base"] {
        let other = at(&format!("{repository}/blobs/{layer}"));
        let asked = by(&proxy, TEAM_B).get(&other);
        asked.assert_error(404, "BLOB_UNKNOWN");
        assert_eq!(upstream.hits(format!("{repository}/blobs")), 1);
    }
    assert!(proxy.terminate().success());
    proxy.start_again_with(|setup| setup.section("server", "offline = true"));
    let other = at(&format!("shared/base/blobs/{layer}"));
    by(&proxy, TEAM_B)
        .get(&other)
        .assert_error(503, "UNAVAILABLE");
    by(&proxy, STRANGER).get(&path).assert_error(403, "DENIED");
    by(&proxy, TEAM_A).get(&path).assert_whole(&image.layers[0]);
}

/// Security row T36.
#[test]
fn a_grant_that_is_taken_back_ends_at_the_next_request() {
    let (upstream, mut proxy, image) = scene();
    let tag = at("team-a/app/manifests/1");
    let get = |proxy: &Proxy, address| by(proxy, address).get(&tag).status;
    assert_eq!((get(&proxy, TEAM_A), get(&proxy, TEAM_B)), (200, 403));
    let swapped = GRANTS
        .replace("127.1.", "127.9.")
        .replace("127.2.", "127.1.");
    let swapped = swapped.replace("127.9.", "127.2.");
    proxy.configure(|_| setup(&upstream, &swapped));
    eventually("other grants", || get(&proxy, TEAM_A) == 403);
    by(&proxy, TEAM_B)
        .get(&tag)
        .assert_whole(&image.manifest.bytes);
    let log = proxy.logs().text();
    assert!(!log.contains("needs a restart"), "{log}");
    // What is no grant changes nothing.
    let wrong = GRANTS.replace("127.1.0.0/16", "nodes");
    proxy.configure(|_| setup(&upstream, &wrong));
    proxy.logs().wait_for_text("neither a network");
    assert_eq!((get(&proxy, TEAM_A), get(&proxy, TEAM_B)), (403, 200));
}

#[test]
fn a_certificate_may_be_what_is_granted_to() {
    let upstream = Upstream::start();
    let image = Image::with_layers(&[KIB]);
    upstream.image("team-a/app", "1", &image);
    let directory = tempfile::TempDir::new().unwrap();
    let files = Certificates::create(directory.path());
    let authority = files.authority_file.display();
    let grants = GRANTS.replace("127.1.0.0/16", "mtls:CN=team-a");
    let said = setup(&upstream, &grants).check().assert_failure().text;
    assert!(said.contains("server.tls.client_ca"), "{said}");
    let proxy = setup(&upstream, &grants)
        .tls(&files.certificate, &files.key, &files.authority)
        .section("server.tls", &format!("client_ca = \"{authority}\""))
        .start();
    let get = |name: &str| {
        let (certificate, key) = files.client(&[("CN", name)]);
        let client = proxy
            .client()
            .presenting(&certificate, &key, &files.authority);
        client.get(&at("team-a/app/manifests/1"))
    };
    get("team-b").assert_error(403, "DENIED");
    get("team-a").assert_whole(&image.manifest.bytes);
}

/// Whoever runs the proxy needs no grant for its own commands.
#[test]
fn operators_warm_what_is_granted_to_others_and_see_who_may_read_it() {
    let (_upstream, proxy, image) = scene();
    let name = "registry.example/team-a/app:1";
    let said = proxy.run(|setup| setup, &["warm", name]);
    said.assert_success();
    assert_closed(&proxy, &image);
    let granted = |client: Option<&str>| {
        let mut arguments = vec!["explain", name, "-o", "json"];
        arguments.extend(client.into_iter().flat_map(|client| ["--client", client]));
        let said = proxy.run(|setup| setup, &arguments).assert_success();
        let said: Value = serde_json::from_str(&said.stdout).unwrap();
        said[0]["granted"].clone()
    };
    assert_eq!(granted(Some("127.1.0.1")), true);
    assert_eq!(granted(Some("127.2.0.1")), false);
    assert_eq!(granted(None), false);
}
