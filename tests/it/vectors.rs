//! `tests/policy-vectors.json`: one table of what must come out, through the engine, through
//! `explain` and through real pulls.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use portcullis::oci::{Image, Registry};
use portcullis::policy::{self, Client, Engine, Target};
use portcullis::units;
use serde::Deserialize;
use serde_json::Value;

use crate::support::cases::{Case, Expect, Table, vectors};
use crate::support::certificates::Certificates;
use crate::support::client::{self, Response};
use crate::support::image::OCI_MANIFEST;
use crate::support::programs::{Outcome, run};
use crate::support::proxy::{Proxy, Setup, command};
use crate::support::upstream::{Fault, Upstream};

/// The registries of one table, each with an upstream of its own.
struct Registries(BTreeMap<Registry, Upstream>);

// === the table ===

impl Table {
    /// Every registry that is named, or that something is pulled from.
    fn registries(&self) -> BTreeSet<Registry> {
        let names = self
            .images()
            .flat_map(|(image, _, expect)| [Some(image.to_owned()), expect.target]);
        let images = names
            .flatten()
            .filter_map(|name| name.parse::<Image>().ok());
        images.map(|image| image.repository.registry).collect()
    }

    fn wants_certificates(&self) -> bool {
        self.cases.iter().any(|case| case.subject().is_some())
    }
}

impl Case {
    fn subject(&self) -> Option<&str> {
        self.client.as_deref()?.strip_prefix("mtls:")
    }
}

/// Workloads are pulled by nobody.
fn with_images(tables: Vec<Table>) -> impl Iterator<Item = Table> {
    let has_some = |table: &Table| table.images().next().is_some();
    tables.into_iter().filter(has_some)
}

#[test]
fn there_are_enough() {
    let cases: usize = vectors()
        .tables
        .iter()
        .map(|table| table.images().count())
        .sum();
    assert!(cases >= 80, "only {cases}");
}

#[test]
fn the_engine_decides_so() {
    for table in vectors().tables {
        let config = policy::Config::deserialize(&table.policy).unwrap();
        let engine = Engine::compile(&config).unwrap();
        for (text, case, expect) in table.images() {
            let about = format!("{}: {text} {:?}", table.name, case.client);
            let Ok(image) = text.parse::<Image>() else {
                assert!(expect.invalid, "{about}");
                continue;
            };
            assert!(!expect.invalid, "{about}");
            let client = case
                .client
                .as_deref()
                .map(|client| client.parse::<Client>().unwrap());
            let asked = Target::from(&image);
            let decision = engine.evaluate(&asked, &client.unwrap_or_default());
            assert_eq!(
                Some(decision.effect.as_str()),
                expect.effect.as_deref(),
                "{about}"
            );
            assert_eq!(decision.rule.as_deref(), expect.rule.as_deref(), "{about}");
            let target = expect.target.unwrap_or_else(|| asked.to_string());
            assert_eq!(decision.target.to_string(), target, "{about}");
            let age = decision
                .obligation
                .map(|obligation| units::show(obligation.min_age));
            assert_eq!(age, expect.min_age, "{about}");
            assert_eq!(!decision.if_led.is_empty(), expect.if_led, "{about}");
            if let Some(instead) = expect.instead {
                assert_eq!(decision.refusal.unwrap().instead, Some(instead), "{about}");
            }
        }
    }
}

#[test]
fn explain_says_so() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("portcullis.toml");
    for table in with_images(vectors().tables) {
        // Without a proxy there are no certificates to ask for, but their names can be given.
        let tls = "[server.tls]\ncertificate = \"a\"\nkey = \"b\"\nclient_ca = \"c\"\n";
        let tls = if table.wants_certificates() { tls } else { "" };
        let registries = table.registries();
        let upstreams = registries
            .iter()
            .map(|name| format!("[upstreams.\"{name}\"]\n"));
        let upstreams: String = upstreams.collect();
        fs::write(&file, format!("{tls}{upstreams}{}", table.rules())).unwrap();
        let explain = |client: Option<&str>, images: &[&str]| -> Outcome {
            let client = client.map(|client| ["--client", client]);
            let mut arguments = vec!["explain", "-o", "json"];
            arguments.extend(client.into_iter().flatten().chain(images.iter().copied()));
            run(&mut command(&file, &arguments))
        };
        let clients: BTreeSet<_> = table
            .cases
            .iter()
            .map(|case| case.client.as_deref())
            .collect();
        for client in clients {
            let cases = table
                .images()
                .filter(|(_, case, _)| case.client.as_deref() == client);
            let (wrong, right): (Vec<_>, Vec<_>) = cases.partition(|(.., expect)| expect.invalid);
            for (image, ..) in wrong {
                let outcome = explain(client, &[image]);
                assert!(!outcome.status.success(), "{}: {image}", table.name);
            }
            let images: Vec<_> = right.iter().map(|(image, ..)| *image).collect();
            let outcome = explain(client, &images).assert_success();
            let said: Vec<Value> = serde_json::from_str(&outcome.stdout).unwrap();
            assert_eq!(said.len(), right.len());
            for ((image, _, expect), said) in right.into_iter().zip(said) {
                let about = format!("{}: {image} {client:?}: {said:#}", table.name);
                assert_eq!(said["effect"].as_str(), expect.effect.as_deref(), "{about}");
                assert_eq!(said["rule"].as_str(), expect.rule.as_deref(), "{about}");
                let target = expect
                    .target
                    .unwrap_or(said["image"].as_str().unwrap().to_owned());
                assert_eq!(said["target"], target, "{about}");
                assert_eq!(
                    said["min_age"].as_str(),
                    expect.min_age.as_deref(),
                    "{about}"
                );
                let denied = expect.effect.as_deref() == Some("deny");
                assert_eq!(said["hosts"].is_null(), denied, "{about}");
                let trail = said["trail"].as_array().unwrap();
                let decides = |step: &&Value| step["decides"] == true;
                let decider = trail.last().unwrap()["rules"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .find(decides);
                assert_eq!(
                    decider.and_then(|step| step["rule"].as_str()),
                    expect.rule.as_deref(),
                    "{about}"
                );
                if let Some(instead) = expect.instead {
                    assert_eq!(said["refusal"]["instead"], instead, "{about}");
                }
            }
        }
    }
}

// === real pulls ===

#[test]
fn a_pull_meets_it() {
    let vectors = vectors();
    for table in with_images(vectors.tables) {
        let registries = Registries::start(&table.registries(), &vectors.manifest);
        let directory = tempfile::TempDir::new().unwrap();
        let files = Certificates::create(directory.path());
        let mut setup = Setup::listening().section("tags", "fresh_for = \"0s\"");
        for (registry, upstream) in &registries.0 {
            setup = setup.registry(registry.as_str(), &upstream.origin());
        }
        if table.wants_certificates() {
            let authority = format!("client_ca = \"{}\"", files.authority_file.display());
            setup = setup
                .tls(&files.certificate, &files.key, &files.authority)
                .section("server.tls", &authority);
        }
        let proxy = setup.rules(&table.rules()).start();
        for (image, case, expect) in table.images() {
            let client = asker(&proxy, case, &files);
            for (path, method) in spellings(image) {
                let before = registries.requests();
                let answer = client.send(method, &path, &[]);
                let after = registries.requests();
                let about = format!(
                    "{}: {method} {path} {:?}\n{answer:?}",
                    table.name, case.client
                );
                if expect.invalid {
                    assert!(matches!(answer.status, 400 | 403), "{about}");
                    assert_eq!(before, after, "{about}");
                    continue;
                }
                judge(image, &expect, &answer, method, &about);
                let refused = expect.effect.as_deref() == Some("deny");
                let from = expect
                    .target
                    .as_deref()
                    .unwrap_or(image)
                    .parse::<Image>()
                    .unwrap();
                for (registry, count) in after {
                    let may = !refused && registry == from.repository.registry;
                    assert!(
                        may || before[&registry] == count,
                        "{registry} was called: {about}"
                    );
                }
            }
        }
    }
}

fn judge(image: &str, expect: &Expect, answer: &Response, method: &str, about: &str) {
    // A tag of some age has not been seen yet.
    let served = expect.effect.as_deref() != Some("deny") && expect.min_age.is_none();
    if served {
        assert_eq!(answer.status, 200, "{about}");
        let audited = expect.effect.as_deref() == Some("audit");
        assert_eq!(answer.header("warning").is_some(), audited, "{about}");
        return;
    }
    assert_eq!(answer.status, 403, "{about}");
    if method == "HEAD" {
        return;
    }
    assert_eq!(answer.code(), "DENIED", "{about}");
    let detail = &answer.json()["errors"][0]["detail"];
    assert_eq!(detail["rule"].as_str(), expect.rule.as_deref(), "{about}");
    assert_eq!(
        detail["served_from"].is_string(),
        expect.min_age.is_some(),
        "{about}"
    );
    if let Some(instead) = &expect.instead {
        assert_eq!(detail["instead"], *instead, "{about}");
    }
    let name = image.parse::<Image>().unwrap().repository.to_string();
    assert!(answer.message().starts_with(&name), "{about}");
}

/// The ways in which a client may ask for an image, as it is spelled.
fn spellings(image: &str) -> Vec<(String, &'static str)> {
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) if digest.starts_with("sha256:") => (rest, Some(digest)),
        _ => (image, None),
    };
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let reference = digest.or(tag).unwrap_or("latest");
    let named = name
        .split_once('/')
        .filter(|(first, _)| first.contains(['.', ':', '@']) || *first == "localhost");
    let (registry, path) = named.unwrap_or(("docker.io", name));
    vec![
        (format!("/v2/{name}/manifests/{reference}"), "GET"),
        (
            format!("/v2/{path}/manifests/{reference}?ns={registry}"),
            "HEAD",
        ),
        (
            format!("/v2/{path}/manifests/{reference}?ns={registry}"),
            "GET",
        ),
    ]
}

fn asker(proxy: &Proxy, case: &Case, files: &Certificates) -> client::Client {
    let client = proxy.client();
    match (case.subject(), case.client.as_deref()) {
        (Some(subject), _) => {
            // No more of the notation than the table uses.
            let subject = subject.replace("\\,", "\u{0}");
            let parts: Vec<_> = subject
                .split(',')
                .map(|part| part.replace('\u{0}', ","))
                .collect();
            let attributes: Vec<_> = parts
                .iter()
                .map(|part| part.split_once('=').unwrap())
                .collect();
            let (certificate, key) = files.client(&attributes);
            client.presenting(&certificate, &key, &files.authority)
        }
        (None, Some(address)) => client.from(address.parse().unwrap()),
        (None, None) => client,
    }
}

// === impl Registries ===

impl Registries {
    fn start(names: &BTreeSet<Registry>, manifest: &str) -> Self {
        let start = |name: &Registry| {
            let upstream = Upstream::start();
            let headers = vec![("Content-Type", OCI_MANIFEST.to_owned())];
            let answer = Fault::Answer(200, headers, manifest.as_bytes().to_vec());
            upstream.always("/manifests/", answer);
            (name.clone(), upstream)
        };
        Registries(names.iter().map(start).collect())
    }

    /// How often each has been asked.
    fn requests(&self) -> BTreeMap<Registry, usize> {
        let count =
            |(name, upstream): (&Registry, &Upstream)| (name.clone(), upstream.requests().len());
        self.0.iter().map(count).collect()
    }
}
