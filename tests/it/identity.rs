//! Who we are at the shared store: what the configuration says, whatever the environment holds.

use std::net::TcpListener;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis::oci::Digest;
use portcullis::store::object::Name;
use url::form_urlencoded;

use crate::contract::open;
use crate::support::at;
use crate::support::canary::secret;
use crate::support::image::random;
use crate::support::listeners::Bystander;
use crate::support::network::in_own_network;
use crate::support::proxy::{Proxy, Setup};
use crate::support::service::{Reply, Request, Service};
use crate::support::stores::{ACCOUNT, ACCOUNT_KEY, azurite, block_on};
use crate::support::upstream::Upstream;

const TOKEN: &str = secret!("token-of-azure");
const FEDERATED: &str = secret!("token-of-kubernetes");
const SHARING: &str = "sharing a store";
const NO_ANSWER: &str = "no answer from the shared store; pulls go on without it";

/// Plays a cloud: its identity service and an empty container that takes this service's token.
fn cloud_on(address: &str) -> Service {
    Service::on(address, |request| {
        if request.target.contains("/oauth2/") {
            // One of the two services writes the number as a text.
            let token = format!(
                r#"{{"access_token":"{TOKEN}","expires_in":3600,"expires_on":"4102444800",
                    "token_type":"Bearer"}}"#
            );
            return Reply::new(200, token);
        }
        if request.header("authorization") != Some(&format!("Bearer {TOKEN}")) {
            return Reply::new(403, "");
        }
        let empty =
            r#"<?xml version="1.0"?><EnumerationResults><Blobs></Blobs></EnumerationResults>"#;
        Reply::new(200, empty)
    })
}

/// What somebody may have left in the environment for another account.
pub fn with_leftovers(setup: Setup, elsewhere: &Bystander) -> Setup {
    let elsewhere = format!("http://{}", elsewhere.address);
    [
        ("AZURE_STORAGE_ACCOUNT_NAME", "somebody"),
        ("AZURE_STORAGE_ACCOUNT_KEY", "c29tZWJvZHk="),
        ("AZURE_STORAGE_ACCESS_KEY", "c29tZWJvZHk="),
        ("AZURE_STORAGE_SAS_KEY", "sv=1&sig=c29tZWJvZHk%3D"),
        ("AZURE_STORAGE_TOKEN", "somebody"),
        ("AZURE_STORAGE_CLIENT_SECRET", "somebody"),
        ("AZURE_STORAGE_USE_EMULATOR", "true"),
        ("AZURE_USE_AZURE_CLI", "true"),
        ("AZURE_ENDPOINT", &elsewhere),
        ("AZURITE_BLOB_STORAGE_URL", &elsewhere),
        ("AWS_ACCESS_KEY_ID", "somebody"),
        ("AWS_SECRET_ACCESS_KEY", "somebody"),
        ("AWS_SESSION_TOKEN", "somebody"),
        ("AWS_ENDPOINT", &elsewhere),
        ("AWS_ENDPOINT_URL", &elsewhere),
        ("GOOGLE_SERVICE_ACCOUNT", "/nowhere"),
        ("HTTP_PROXY", &elsewhere),
        ("http_proxy", &elsewhere),
        ("ALL_PROXY", &elsewhere),
    ]
    .iter()
    .fold(setup, |setup, (name, value)| setup.env(name, value))
}

fn azure(container: &str, lines: &str) -> String {
    format!(
        "url = \"az://{ACCOUNT}/{container}/fleet\"\nendpoint = \"{}\"\n{lines}",
        azurite().endpoint()
    )
}

/// An uncached pull, which needs no shared store.
fn assert_serves(proxy: &Proxy, upstream: &Upstream) {
    let bytes = random(1000);
    let digest = upstream.blob("demo/app", bytes.clone());
    let path = at(&format!("demo/app/blobs/{digest}"));
    proxy.get(&path).assert_whole(&bytes);
}

#[test]
fn what_is_left_in_the_environment_never_wins() {
    let upstream = Upstream::start();
    let nobody = Bystander::start();
    let name = azurite().fresh_container();
    // Makes the container.
    open(&azurite().lines(&name));
    let key = format!("credential = \"account-key\"\nsecret = \"{ACCOUNT_KEY}\"");
    for lines in [azure(&name, &key), azurite().lines(&name)] {
        let setup = Setup::new(&upstream).section("store.shared", &lines);
        let proxy = with_leftovers(setup, &nobody).start();
        proxy.logs().wait_for(SHARING);
        assert_serves(&proxy, &upstream);
    }
    let s3 = crate::support::stores::moto().lines("bucket-of-identity");
    let setup = Setup::new(&upstream).section("store.shared", &s3);
    let proxy = with_leftovers(setup, &nobody).start();
    proxy.logs().wait_for(SHARING);
    nobody.assert_never_called();
}

#[test]
fn who_is_refused_is_told_which_key_to_look_at_and_serves_all_the_same() {
    let upstream = Upstream::start();
    let name = azurite().fresh_container();
    open(&azurite().lines(&name));
    let not_the_key = STANDARD.encode(secret!("not-the-key"));
    for lines in [
        format!("credential = \"account-key\"\nsecret = \"{not_the_key}\""),
        "credential = \"sas\"\nsecret = \"sv=2021-12-02&sr=c&sp=rl&se=2099-01-01&sig=bm8%3D\""
            .into(),
    ] {
        let setup = Setup::new(&upstream).section("store.shared", &azure(&name, &lines));
        let proxy = setup.start();
        let said = proxy.logs().wait_for(NO_ANSWER).to_string();
        for part in ["store.shared.credential", "store.shared.secret"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert_serves(&proxy, &upstream);
    }
}

#[test]
fn a_store_that_is_not_there_keeps_nobody_from_starting() {
    let upstream = Upstream::start();
    let nobody = Bystander::start();
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    // One refuses connections, one never answers.
    for address in [gone, nobody.address] {
        let lines = format!(
            "url = \"az://{ACCOUNT}/images\"\ncredential = \"emulator\"\n\
             endpoint = \"http://{address}/{ACCOUNT}\""
        );
        let proxy = Setup::new(&upstream)
            .section("store.shared", &lines)
            .start();
        assert_serves(&proxy, &upstream);
        proxy.logs().wait_for(NO_ANSWER);
    }
}

/// A signature for a container, as operators make them.
fn sas(container: &str) -> String {
    let (permissions, expiry, version) = ("racwdl", "2099-01-01T00:00:00Z", "2021-12-02");
    let text = format!(
        "{permissions}\n\n{expiry}\n/blob/{ACCOUNT}/{container}\n\n\n\n{version}\nc\n\n\n\n\n\n\n"
    );
    let key = STANDARD.decode(ACCOUNT_KEY).unwrap();
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), text.as_bytes());
    form_urlencoded::Serializer::new(String::new())
        .append_pair("sp", permissions)
        .append_pair("se", expiry)
        .append_pair("sv", version)
        .append_pair("sr", "c")
        .append_pair("sig", &STANDARD.encode(signature))
        .finish()
}

#[test]
fn a_signature_for_the_container_is_enough() {
    let name = azurite().fresh_container();
    open(&azurite().lines(&name));
    let sas = sas(&name);
    // With the question mark that the portal gives with it, too.
    for secret in [sas.clone(), format!("?{sas}")] {
        let lines = format!("credential = \"sas\"\nsecret = \"{secret}\"");
        let store = open(&azure(&name, &lines));
        let digest = Digest::sha256(&random(8));
        block_on(async {
            store.probe().await.unwrap();
            let made = store
                .create(Name::Claim(&digest), "1".into())
                .await
                .unwrap();
            assert!(made.is_some());
            let found = store.get(Name::Claim(&digest)).await.unwrap();
            assert_eq!(found.unwrap().bytes, "1");
            store.delete(Name::Claim(&digest)).await.unwrap();
            let ttl = std::time::Duration::from_secs(60);
            assert!(store.sign(&digest, ttl).await.unwrap().is_none());
        });
    }
}

#[test]
fn an_identity_of_aks_is_exchanged_for_a_token() {
    let upstream = Upstream::start();
    let cloud = cloud_on("127.0.0.1:0");
    let nobody = Bystander::start();
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, FEDERATED).unwrap();
    let lines = format!(
        "url = \"az://corp/images\"\ncredential = \"workload-identity\"\n\
         endpoint = \"http://{}/corp\"",
        cloud.address
    );
    let setup = Setup::new(&upstream)
        .section("store.shared", &lines)
        .env("AZURE_CLIENT_ID", "the-client")
        .env("AZURE_TENANT_ID", "the-tenant")
        .env("AZURE_FEDERATED_TOKEN_FILE", file.to_str().unwrap())
        // With a slash, as AKS writes it.
        .env(
            "AZURE_AUTHORITY_HOST",
            &format!("http://{}/", cloud.address),
        );
    let proxy = with_leftovers(setup, &nobody).start();
    proxy.logs().wait_for(SHARING);
    let request = cloud.request("/oauth2/");
    assert_eq!(request.method, "POST");
    assert_eq!(request.target, "/the-tenant/oauth2/v2.0/token");
    let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let expected = [
        ("client_assertion", FEDERATED),
        (
            "client_assertion_type",
            "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        ),
        ("client_id", "the-client"),
        ("grant_type", "client_credentials"),
        ("scope", "https://storage.azure.com/.default"),
    ];
    assert_eq!(Request::parameters(&request.body), expected.map(pair));
    cloud.request("/corp/images?");
    nobody.assert_never_called();

    // And without what AKS gives a pod.
    let check = proxy.run(|setup| setup, &["check"]).assert_failure();
    let expected = "store.shared.credential: workload-identity needs the environment variable";
    assert!(check.text.contains(expected), "{}", check.text);
}

#[test]
fn the_identity_of_the_machine_is_asked_for_at_its_address() {
    let name = "identity::the_identity_of_the_machine_is_asked_for_at_its_address";
    in_own_network(name, &["169.254.169.254/32"], || {
        let upstream = Upstream::start();
        let metadata = cloud_on("169.254.169.254:80");
        let blobs = cloud_on("127.0.0.1:0");
        let nobody = Bystander::start();
        let lines = format!(
            "url = \"az://corp/images\"\ncredential = \"managed-identity\"\n\
             key_id = \"the-client\"\nendpoint = \"http://{}/corp\"",
            blobs.address
        );
        let setup = Setup::new(&upstream).section("store.shared", &lines);
        let proxy = with_leftovers(setup, &nobody).start();
        proxy.logs().wait_for(SHARING);
        let request = metadata.request("/oauth2/");
        assert_eq!(
            (&*request.method, request.path()),
            ("GET", "/metadata/identity/oauth2/token")
        );
        assert!(request.headers.contains("metadata: true\n"), "{request:?}");
        let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let expected = [
            ("api-version", "2019-08-01"),
            ("client_id", "the-client"),
            ("resource", "https://storage.azure.com"),
        ];
        assert_eq!(request.query(), expected.map(pair));
        blobs.request("/corp/images?");
        nobody.assert_never_called();
    });
}

/// A proxy would be given an identity of its own.
#[test]
fn the_identity_of_the_machine_is_never_asked_for_through_a_proxy() {
    let name = "identity::the_identity_of_the_machine_is_never_asked_for_through_a_proxy";
    in_own_network(name, &["169.254.169.254/32"], || {
        let upstream = Upstream::start();
        let metadata = cloud_on("169.254.169.254:80");
        let gate = cloud_on("127.0.0.1:0");
        let lines = "url = \"az://corp/images\"\ncredential = \"managed-identity\"\n\
                     endpoint = \"http://store.example/corp\"\nvia = \"egress\"";
        let proxy = Setup::new(&upstream)
            .section("egress", &format!("proxy = \"http://{}\"", gate.address))
            .section("store.shared", lines)
            .start();
        proxy.logs().wait_for(SHARING);
        metadata.request("/oauth2/");
        // In the absolute form, as a proxy is asked.
        gate.request("http://store.example/corp/images?");
        assert!(gate.seen("oauth2").is_empty());
    });
}

#[test]
fn a_prune_is_a_command_that_needs_no_server() {
    let upstream = Upstream::start();
    let name = azurite().fresh_container();
    let proxy = Setup::new(&upstream)
        .section("store.shared", &azurite().lines(&name))
        .start();
    proxy.logs().wait_for(SHARING);
    let said = |arguments: &[&str]| proxy.run(|setup| setup, arguments);
    let text = said(&["cache", "prune", "--older-than", "30d"])
        .assert_success()
        .stdout;
    assert!(text.contains("0 objects"), "{text}");
    let json = said(&[
        "cache",
        "prune",
        "--older-than",
        "48h",
        "--dry-run",
        "-o",
        "json",
    ]);
    let json: serde_json::Value = serde_json::from_str(&json.assert_success().stdout).unwrap();
    assert_eq!(
        (&json["dry_run"], &json["older_than"]),
        (&true.into(), &"2d".into())
    );
    let short = said(&["cache", "prune", "--older-than", "23h"]).assert_failure();
    assert!(short.text.contains("at least 1d"), "{}", short.text);
    let unsaid = said(&["cache", "prune"]).assert_failure();
    assert!(unsaid.text.contains("prune_older_than"), "{}", unsaid.text);
}
