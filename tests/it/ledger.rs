//! The ledger of hosts: whatever the program dials is in it, whatever it refuses to dial too, and it
//! outlives the process. `portcullis egress` shows it, with and without a server.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::client::Client;
use crate::support::image::random;
use crate::support::listeners::Bystander;
use crate::support::programs::{program, run};
use crate::support::proxy::{Proxy, Setup, command};
use crate::support::stores::azurite;
use crate::support::upstream::{Fault, TOKEN, Upstream};
use crate::support::{at, eventually};

/// A registry whose tokens come from one host and whose blobs from another.
struct Scene {
    upstream: Upstream,
    tokens: Upstream,
    storage: Upstream,
    proxy: Proxy,
    bytes: Vec<u8>,
    path: String,
}

/// What a row counts.
type Counts = (String, u16, String, String);

impl Scene {
    fn start() -> Self {
        let (upstream, tokens, storage) = (Upstream::start(), Upstream::start(), Upstream::start());
        upstream.require_token_of(&format!("{}/token", tokens.origin()));
        let token = format!(r#"{{"token":"{TOKEN}","expires_in":300}}"#);
        tokens.document("/token", token, "application/json");
        let bytes = random(300_000);
        let digest = upstream.blob("demo/app", bytes.clone());
        storage.blob("demo/app", bytes.clone());
        upstream.always(digest, Fault::Redirect(storage.origin()));
        let lists = format!(
            "auth_hosts = [\"{}\"]\nredirect_hosts = [\"{}\"]",
            tokens.address(),
            storage.address()
        );
        let proxy = Setup::new(&upstream).upstream(&lists).start();
        Scene {
            upstream,
            tokens,
            storage,
            proxy,
            path: at(&format!("demo/app/blobs/{digest}")),
            bytes,
        }
    }

    fn pull(&self) {
        self.proxy.get(&self.path).assert_whole(&self.bytes);
    }
}

fn ledger(proxy: &Proxy) -> Value {
    let answer = Client::new(proxy.admin).get("/api/v1/egress").assert(200);
    serde_json::from_slice(&answer.body).unwrap()
}

/// The rows by port and purpose (and why it was refused), with requests, bytes and failures.
fn rows(ledger: &Value) -> BTreeMap<Counts, (u64, u64, u64)> {
    let row = |row: &Value| {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| row[name].as_u64().unwrap();
        assert_eq!(
            row["host"]
                .as_str()
                .map(|host| host == "127.0.0.1" || host == "localhost"),
            Some(true)
        );
        assert!(text("first") <= text("last"), "{row}");
        let port = u16::try_from(number("port")).unwrap();
        let key = (text("for"), port, text("purpose"), text("refused"));
        (
            key,
            (number("requests"), number("received"), number("failures")),
        )
    };
    ledger["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .map(row)
        .collect()
}

fn key(port: u16, purpose: &str, refused: &str) -> Counts {
    (
        "registry.example".to_owned(),
        port,
        purpose.to_owned(),
        refused.to_owned(),
    )
}

#[test]
fn a_pull_leaves_exactly_the_hosts_that_it_asked() {
    let scene = Scene::start();
    scene.pull();
    let found = rows(&ledger(&scene.proxy));
    let asked = |upstream: &Upstream| upstream.requests().len() as u64;
    assert_eq!(found.len(), 3, "{found:?}");
    let (requests, _, failures) = found[&key(scene.upstream.address().port(), "endpoint", "")];
    assert_eq!((requests, failures), (asked(&scene.upstream), 0));
    let (requests, received, _) = found[&key(scene.tokens.address().port(), "token", "")];
    assert_eq!((requests, received), (1, scene.tokens.sent("/token")));
    let (requests, received, failures) =
        found[&key(scene.storage.address().port(), "redirect", "")];
    assert_eq!(requests, asked(&scene.storage));
    assert_eq!((received, failures), (scene.bytes.len() as u64, 0));

    // What is cached dials nobody.
    scene.pull();
    assert_eq!(rows(&ledger(&scene.proxy)), found);
}

#[test]
fn a_host_that_does_not_answer_is_a_failure() {
    let scene = Scene::start();
    let digest = scene.path.rsplit('/').next().unwrap();
    scene.storage.once(digest, Fault::CutAt(100_000));
    scene.pull();
    let cut = key(scene.storage.address().port(), "redirect", "");
    let (_, received, failures) = rows(&ledger(&scene.proxy))[&cut];
    assert_eq!((received, failures), (scene.bytes.len() as u64, 1));

    let mut upstream = scene.upstream;
    upstream.stop();
    assert!(scene.proxy.get(&at("demo/app/manifests/1")).status >= 500);
    let gone = key(upstream.address().port(), "endpoint", "");
    assert!(rows(&ledger(&scene.proxy))[&gone].2 > 0);
}

/// An administrator wants to know who was asked for, most of all when the answer was no.
#[test]
fn what_was_refused_is_in_it_too() {
    let (upstream, nobody) = (Upstream::start(), Bystander::start());
    let guarded = format!(
        "endpoints = [\"http://localhost:{}\"]\ninsecure = true",
        nobody.address.port()
    );
    let proxy = Setup::new(&upstream)
        .section("upstreams.\"guarded.example\"", &guarded)
        .rules("[policy]\ndefault = \"allow\"\n")
        .start();
    let digest = upstream.blob("demo/app", random(1000));
    let elsewhere = format!("http://{}", nobody.address);
    upstream.always(digest, Fault::Redirect(elsewhere));
    proxy
        .get(&at(&format!("demo/app/blobs/{digest}")))
        .assert_error(502, "UNAVAILABLE");
    upstream.require_token_of(&format!(
        "http://token.example:{}/token",
        nobody.address.port()
    ));
    assert_ne!(proxy.get(&at("demo/app/manifests/1")).status, 200);
    assert_ne!(proxy.get("/v2/guarded.example/a/manifests/1").status, 200);

    let ledger = ledger(&proxy);
    let mut refused: Vec<_> = ledger["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["refused"].is_string())
        .map(|row| {
            format!(
                "{} {} {} {}",
                row["for"], row["purpose"], row["host"], row["refused"]
            )
            .replace('"', "")
        })
        .collect();
    refused.sort();
    assert_eq!(
        refused,
        [
            "guarded.example endpoint localhost internal-address",
            "registry.example redirect 127.0.0.1 internal-address",
            "registry.example token token.example not-listed",
        ]
    );
    let used = ledger["hosts"].as_array().unwrap().len() - refused.len();
    assert_eq!(used, 1, "only the endpoint was dialled: {ledger}");
    nobody.assert_never_called();
}

#[test]
fn it_outlives_the_process() {
    let mut scene = Scene::start();
    scene.pull();
    let file = scene.proxy.store().join("v1/ledger.json");
    // Behind the answers, but not far.
    eventually("the ledger is written", || {
        fs::read_to_string(&file).is_ok_and(|text| text.contains("\"redirect\""))
    });
    let known = ledger(&scene.proxy);
    scene.proxy.kill9();
    scene.proxy.start_again();
    assert_eq!(ledger(&scene.proxy), known);

    // What came just before a stop is there exactly.
    let digest = scene.upstream.blob("demo/more", random(1000));
    scene
        .proxy
        .get(&at(&format!("demo/more/blobs/{digest}")))
        .assert(200);
    let known = ledger(&scene.proxy);
    assert!(scene.proxy.terminate().success());
    scene.proxy.start_again();
    assert_eq!(ledger(&scene.proxy), known);

    assert!(scene.proxy.terminate().success());
    fs::write(&file, "{ torn").unwrap();
    scene.proxy.start_again();
    scene
        .proxy
        .logs()
        .wait_for_text("unreadable ledger of hosts");
    assert_eq!(ledger(&scene.proxy)["hosts"], serde_json::json!([]));
}

#[test]
fn the_shared_store_is_in_it() {
    let upstream = Upstream::start();
    let name = azurite().fresh_container();
    let proxy = Setup::new(&upstream).shared(azurite(), &name).start();
    let bytes = random(300_000);
    let digest = upstream.blob("demo/app", bytes.clone());
    proxy
        .get(&at(&format!("demo/app/blobs/{digest}")))
        .assert_whole(&bytes);
    let port = azurite().endpoint();
    let port: u16 = port
        .rsplit(':')
        .next()
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let found = rows(&ledger(&proxy));
    let store = (
        "store.shared".to_owned(),
        port,
        "store".to_owned(),
        String::new(),
    );
    assert!(found[&store].0 > 0, "{found:?}");
    assert!(
        found
            .keys()
            .all(|(owner, _, purpose, _)| owner == "registry.example" || purpose == "store")
    );
}

/// With the server it is asked, without it the file is read; and both say the same.
#[test]
fn commands_show_it_with_and_without_a_server() {
    let mut scene = Scene::start();
    let nothing = scene
        .proxy
        .run(|setup| setup, &["egress", "--observed", "-o", "json"]);
    assert!(nothing.assert_success().stdout.contains("\"hosts\": []"));
    scene.pull();
    let observed = |proxy: &Proxy| -> Value {
        let output = proxy.run(|setup| setup, &["egress", "--observed", "-o", "json"]);
        serde_json::from_str(&output.assert_success().stdout).unwrap()
    };
    let known = observed(&scene.proxy);
    assert_eq!(known, ledger(&scene.proxy));
    let table = scene
        .proxy
        .run(|setup| setup, &["egress", "--observed"])
        .assert_success();
    for upstream in [&scene.upstream, &scene.tokens, &scene.storage] {
        let host = upstream.address().to_string();
        assert!(
            table.stdout.contains(&host),
            "{host} is not in {}",
            table.stdout
        );
    }

    for running in [true, false] {
        if !running {
            assert!(scene.proxy.terminate().success());
            assert_eq!(observed(&scene.proxy), known);
        }
        let fine = scene
            .proxy
            .run(|setup| setup, &["egress", "--diff"])
            .assert_success();
        assert_eq!(fine.stdout, "what is needed is what was used\n");
        // The policy has changed since: nothing of it is needed any more.
        let closed = |setup: Setup| setup.rules("[policy]\n");
        let finding = scene.proxy.run(closed, &["egress", "--diff", "-o", "json"]);
        assert_eq!(finding.status.code(), Some(2), "{}", finding.text);
        let finding: Value = serde_json::from_str(&finding.stdout).unwrap();
        assert_eq!(
            finding["not_needed"].as_array().unwrap().len(),
            3,
            "{finding}"
        );
    }
}

/// The generated files that are checked in, read by the programs that they are for.
#[test]
fn squid_and_bash_read_what_is_generated() {
    let directory = TempDir::new().unwrap();
    let lines = include_str!("../../docs/egress/squid.conf");
    let file = directory.path().join("squid.conf");
    fs::write(
        &file,
        format!("http_port 127.0.0.1:3128\n{lines}http_access deny all\n"),
    )
    .unwrap();
    let outcome = run(program("squid").args(["-k", "parse", "-f"]).arg(&file)).assert_success();
    for word in ["ERROR", "WARNING", "FATAL"] {
        assert!(!outcome.text.contains(word), "{}", outcome.text);
    }
    let script = directory.path().join("rules.sh");
    fs::write(&script, include_str!("../../docs/egress/rules.sh")).unwrap();
    run(program("bash").arg("-n").arg(&script)).assert_success();

    // With a stand-in for `az`, the script asks for every host, and for nobody else's address.
    let az = directory.path().join("az");
    fs::write(
        &az,
        "#!/bin/sh\nfor word; do echo \"$word\"; done >> \"$0.log\"\n",
    )
    .unwrap();
    run(program("chmod").arg("+x").arg(&az)).assert_success();
    let path = format!("{}:/usr/bin:/bin", directory.path().display());
    run(program("bash").arg(&script).env_clear().env("PATH", &path)).assert_failure();
    run(program("bash")
        .arg(&script)
        .env_clear()
        .env("PATH", &path)
        .env("RESOURCE_GROUP", "net")
        .env("FIREWALL_POLICY", "hub"))
    .assert_success();
    let said = fs::read_to_string(directory.path().join("az.log")).unwrap();
    let words: Vec<&str> = said.lines().collect();
    for host in include_str!("../../docs/egress/hosts.txt").lines() {
        let host = host.split(':').next().unwrap();
        assert!(words.contains(&host), "{host} is not in {said}");
    }
    let sources = words
        .windows(2)
        .filter(|pair| pair[0] == "--source-addresses");
    let sources: Vec<_> = sources.map(|pair| pair[1]).collect();
    assert!(
        !sources.is_empty() && sources.iter().all(|source| *source == "10.42.3.4/32"),
        "{sources:?}"
    );
}

/// Every file and every `$` command of docs/egress.md, and what it is said to print.
#[test]
fn the_manual_shows_what_happens() {
    let manual = include_str!("../../docs/egress.md");
    let directory = TempDir::new().unwrap();
    let config = directory.path().join("portcullis.toml");
    fs::write(&config, include_str!("../../docs/egress/portcullis.toml")).unwrap();
    let mut commands = 0;
    for block in manual.split("\n```").skip(1).step_by(2) {
        let (info, text) = block.split_once('\n').unwrap();
        let text = format!("{text}\n");
        if let Some((_, name)) = info.split_once(' ') {
            fs::write(directory.path().join(name), text).unwrap();
        } else if let Some(text) = text.strip_prefix("$ portcullis ") {
            let (arguments, expected) = text.split_once('\n').unwrap();
            let arguments: Vec<_> = arguments.split(' ').collect();
            let outcome = run(command(&config, &arguments).current_dir(directory.path()));
            assert_eq!(outcome.assert_success().stdout, expected);
            commands += 1;
        }
    }
    assert_eq!(commands, 1);
    // The files that it leads to are there.
    for link in manual.split("](egress/").skip(1) {
        let name = link.split(')').next().unwrap();
        let path = format!("{}/docs/egress/{name}", env!("CARGO_MANIFEST_DIR"));
        assert!(fs::exists(&path).unwrap(), "{path}");
    }
}
