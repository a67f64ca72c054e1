//! `POST /admission`: what a cluster's API server hears, over TLS.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::MIB;
use crate::support::cases::{pod, vectors};
use crate::support::certificates::Certificates;
use crate::support::client::{Client, Response};
use crate::support::proxy::{Proxy, Setup};

struct Scene {
    proxy: Proxy,
    client: Client,
    _directory: TempDir,
}

impl Scene {
    fn new(server: &str, rules: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let files = Certificates::create(directory.path());
        let lines = format!(
            "listen = \"127.0.0.1:0\"\ntls = {{ certificate = \"{}\", key = \"{}\" }}",
            files.certificate.display(),
            files.key.display()
        );
        let listen = "listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
        let proxy = Setup::default()
            .section("server", &format!("{listen}{server}"))
            .section("admission", &lines)
            .rules(rules)
            .start();
        let address = proxy.logs().wait_for("listening")["admission"].clone();
        let address: SocketAddr = address.as_str().unwrap().parse().unwrap();
        Scene {
            proxy,
            client: Client::trusting(address, &files.authority),
            _directory: directory,
        }
    }

    fn ask(&self, object: &Value) -> Value {
        let request = json!({
            "uid": "u-1", "operation": "CREATE", "namespace": "n", "object": object,
            "kind": { "group": "", "version": "v1", "kind": object["kind"] },
        });
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request,
        });
        let answer = self.post(review.to_string().as_bytes()).assert(200);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.json()["response"]["uid"], "u-1");
        answer.json()["response"].clone()
    }

    fn post(&self, body: &[u8]) -> Response {
        self.client.post("/admission?timeout=3s", body)
    }

    fn metric(&self, result: &str) -> Option<String> {
        let metrics = Client::new(self.proxy.admin).get("/metrics").assert(200);
        let text = String::from_utf8(metrics.body).unwrap();
        let name = format!("portcullis_admissions_total{{result=\"{result}\"}} ");
        text.lines()
            .find_map(|line| line.strip_prefix(&name))
            .map(str::to_owned)
    }
}

#[test]
fn a_refusal_reads_as_the_pull_would() {
    let scene = Scene::new("", "");
    let denied = scene.ask(&pod(&json!("k8s.gcr.io/pause:3.9")));
    let pull = scene.proxy.get("/v2/k8s.gcr.io/pause/manifests/3.9");
    assert_eq!(denied["allowed"], false);
    assert_eq!(denied["status"]["message"], pull.assert(403).reason);
    let allowed = scene.ask(&pod(&json!("registry.k8s.io/pause:3.9")));
    assert_eq!(allowed, json!({ "uid": "u-1", "allowed": true }));
    let line = scene.proxy.logs().wait_for("admission refused");
    assert_eq!(
        (&line["object"], &line["refusal"]),
        (&json!("Pod in n"), &denied["status"]["message"])
    );
    let counts = ["Allowed", "Denied"].map(|result| scene.metric(result));
    assert_eq!(counts, [Some("1".to_owned()), Some("1".to_owned())]);
}

#[test]
fn what_is_no_review_is_told_so_and_harms_nobody() {
    let scene = Scene::new("", "");
    for body in [
        &b""[..],
        b"{",
        b"[[[[",
        &vec![b'['; MIB],
        b"{\"request\":{\"uid\":\"u\"}}",
    ] {
        scene.post(body).assert(400);
    }
    assert_eq!(scene.metric("Invalid").as_deref(), Some("5"));
    // Odd objects in sound reviews have answers.
    for image in [json!(3), json!(["a"]), json!({ "a": 1 }), json!(true)] {
        assert_eq!(scene.ask(&pod(&image))["allowed"], false, "{image}");
    }
    // The registry is not served here, and reviews are answered nowhere else.
    scene.client.get("/v2/").assert(404);
    scene.client.get("/admission").assert(405);
    scene.proxy.client().post("/admission", b"{}").assert(405);
}

#[test]
fn the_shared_cases_agree() {
    let mut asked = 0;
    for table in vectors().tables {
        // In an admission nobody is known to ask.
        if table.anonymous_images().next().is_none() && table.workloads().next().is_none() {
            continue;
        }
        let scene = Scene::new(&table.server(), &table.rules());
        for (workload, case, expect) in table.workloads() {
            let name = &case.name;
            let answer = scene.ask(workload);
            assert_eq!(
                answer["allowed"],
                expect.violations.is_empty(),
                "{name}: {answer}"
            );
            let message = answer["status"]["message"].as_str().unwrap_or_default();
            let mut named: Vec<_> = message
                .lines()
                .map(|line| line.split(" is not allowed: ").next().unwrap().to_owned())
                .collect();
            named.sort();
            // A refusal shortens digests to what people compare.
            let shorten = |image: &String| match image.split_once("@sha256:") {
                Some((name, hex)) if hex.len() == 64 && !named.contains(image) => {
                    format!("{name}@sha256:{}", &hex[..12])
                }
                _ => image.clone(),
            };
            let violations: Vec<_> = expect.violations.iter().map(shorten).collect();
            assert_eq!(named, violations, "{name}");
            asked += 1;
        }
        for (image, expect) in table.anonymous_images() {
            let about = format!("{}: {image}", table.name);
            let answer = scene.ask(&pod(&json!(image)));
            let refused = expect.invalid || expect.effect.as_deref() == Some("deny");
            assert_eq!(answer["allowed"], !refused, "{about}: {answer}");
            let audited = expect.effect.as_deref() == Some("audit");
            assert_eq!(answer["warnings"].is_array(), audited, "{about}: {answer}");
            asked += 1;
        }
    }
    assert!(asked >= 160, "only {asked}");
}

#[test]
fn it_needs_a_certificate() {
    let scene = Scene::new("", "");
    let outcome = scene.proxy.run(
        |_| Setup::default().section("admission", "listen = \"127.0.0.1:0\""),
        &["serve"],
    );
    let text = outcome.assert_failure().text;
    assert!(text.contains("API servers speak TLS only"), "{text}");
    // Plain HTTP gets no answer.
    let address = scene.proxy.logs().wait_for("listening")["admission"].clone();
    let plain = Client::new(address.as_str().unwrap().parse().unwrap());
    let answer = plain.raw(b"POST /admission HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
}
