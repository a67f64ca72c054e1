use serde_json::Value;

use super::*;
use crate::oci::OwnNames;
use crate::policy::Engine;
use crate::upstream::Served;

const RULES: &str = r#"
    default = "allow"
    rules = [{ id = "look", images = ["quay.io/old/**"], effect = "audit", reason = "it is old" }, { id = "frozen", images = ["k8s.gcr.io/**"], effect = "deny", reason = "it is frozen", instead = "registry.k8s.io/**" }]"#;

fn ask(body: &[u8]) -> Result<Answer, InvalidReview> {
    let policy = Engine::compile(&toml::from_str(RULES).unwrap()).unwrap();
    let served = Served::by_name(std::iter::empty());
    let judge = Judge {
        policy: &policy,
        names: &OwnNames::default(),
        served: &served,
    };
    answer(body, &judge)
}

fn review(request: &Value) -> Value {
    let answer = ask(&body(request)).unwrap();
    let review: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(review["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(review["kind"], "AdmissionReview");
    assert_eq!(review["response"]["uid"], "u-1");
    let message = review["response"]["status"]["message"].as_str();
    assert_eq!(answer.message.as_deref(), message);
    assert_eq!(review["response"]["allowed"] == false, message.is_some());
    review["response"].clone()
}

fn body(request: &Value) -> Vec<u8> {
    let mut request = request.clone();
    request["uid"] = json!("u-1");
    let review = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request });
    review.to_string().into_bytes()
}

fn pod(images: &[&str]) -> Value {
    let containers: Vec<_> = images
        .iter()
        .map(|image| json!({ "name": "c", "image": image }))
        .collect();
    json!({ "apiVersion": "v1", "kind": "Pod", "spec": { "containers": containers } })
}

#[test]
fn what_is_refused_hears_what_its_pull_would() {
    let response = review(
        &json!({ "operation": "CREATE", "object": pod(&["quay.io/a/b:1", "k8s.gcr.io/pause:3.9", "K8S.gcr.io/pause:3.9"]) }),
    );
    assert_eq!(
        response["status"],
        json!({
            "code": 403,
            "reason": "Forbidden",
            "message": "k8s.gcr.io/pause:3.9 is not allowed: it is frozen; use registry.k8s.io/pause:3.9 instead",
        })
    );
    assert_eq!(response["warnings"], Value::Null);
    let response = review(
        &json!({ "operation": "CREATE", "object": pod(&["quay.io/a/b:1", "nowhere.example/a"]) }),
    );
    assert_eq!(response, json!({ "uid": "u-1", "allowed": true }));
}

#[test]
fn every_refused_image_is_named_within_bounds() {
    let images: Vec<_> = (0..25).map(|n| format!("k8s.gcr.io/pause:{n}")).collect();
    let images: Vec<_> = images.iter().map(String::as_str).collect();
    let response = review(&json!({ "operation": "CREATE", "object": pod(&images) }));
    let message = response["status"]["message"].as_str().unwrap();
    let lines: Vec<_> = message.lines().collect();
    assert_eq!((lines.len(), lines[10]), (11, "and 15 more"));
    assert!(lines[9].starts_with("k8s.gcr.io/pause:9 is not allowed"));
    let response = review(&json!({ "operation": "CREATE", "object": pod(&images[..10]) }));
    assert_eq!(
        response["status"]["message"]
            .as_str()
            .unwrap()
            .lines()
            .count(),
        10
    );
}

#[test]
fn only_what_an_update_brings_is_judged() {
    let (denied, other) = ("k8s.gcr.io/pause:3.9", "k8s.gcr.io/etcd:3");
    for (operation, old, new, allowed) in [
        ("UPDATE", &[denied][..], &[denied][..], true),
        (
            "UPDATE",
            &[denied, "quay.io/a:1"],
            &[denied, "quay.io/a:2"],
            true,
        ),
        ("UPDATE", &[denied], &[denied, other], false),
        ("UPDATE", &["quay.io/a:1"], &[denied], false),
        ("CREATE", &[denied], &[denied], false),
        ("DELETE", &[denied], &[denied], true),
        ("CONNECT", &[], &[denied], true),
        ("SOMETHING", &[], &[denied], false),
    ] {
        let response =
            review(&json!({ "operation": operation, "object": pod(new), "oldObject": pod(old) }));
        assert_eq!(response["allowed"], allowed, "{operation} {old:?} {new:?}");
    }
    let deleted =
        review(&json!({ "operation": "DELETE", "object": null, "oldObject": pod(&[denied]) }));
    assert_eq!(deleted["allowed"], true);
}

#[test]
fn an_audited_image_is_a_warning() {
    let warning = "quay.io/old/a:1 is served, but audited: it is old";
    let images = &["quay.io/old/a:1", "quay.io/a:1"];
    let response = review(&json!({ "operation": "CREATE", "object": pod(images) }));
    assert_eq!(
        response,
        json!({ "uid": "u-1", "allowed": true, "warnings": [warning] })
    );
    let images = &["quay.io/old/a:1", "k8s.gcr.io/a:1"];
    let response = review(&json!({ "operation": "CREATE", "object": pod(images) }));
    assert_eq!(response["allowed"], false);
    assert_eq!(response["warnings"], json!([warning]));
}

#[test]
fn debugging_a_pod_is_an_update_too() {
    let mut new = pod(&["quay.io/a:1"]);
    new["spec"]["ephemeralContainers"] = json!([{ "name": "d", "image": "k8s.gcr.io/pause:3.9" }]);
    let request = json!({
        "operation": "UPDATE", "subResource": "ephemeralcontainers", "namespace": "n", "name": "p",
        "kind": { "group": "", "version": "v1", "kind": "Pod" },
        "object": new, "oldObject": pod(&["quay.io/a:1"]),
    });
    assert_eq!(review(&request)["allowed"], false);
    let answer = ask(&body(&request)).unwrap();
    assert_eq!(answer.object.to_string(), "Pod n/p");
    assert_eq!(answer.outcome, Outcome::Violation);
}

#[test]
fn the_request_tells_what_an_object_does_not() {
    let object = json!({ "spec": { "template": { "spec": { "containers": [{ "image": "k8s.gcr.io/pause" }] } } } });
    let kind = json!({ "group": "apps", "version": "v1", "kind": "Deployment" });
    let request = json!({ "operation": "CREATE", "kind": kind, "object": object });
    assert_eq!(review(&request)["allowed"], false);
}

#[test]
fn odd_objects_are_refused_with_their_place() {
    let object =
        json!({ "apiVersion": "v1", "kind": "Pod", "spec": { "containers": [{ "image": 3.9 }] } });
    let response = review(&json!({ "operation": "CREATE", "object": object }));
    assert_eq!(
        response["status"]["message"],
        "(a number) is not allowed: a number stands where an image belongs (spec.containers[0].image)"
    );
    for object in [
        json!(null),
        json!(3),
        json!([]),
        json!("x"),
        json!({}),
        json!({ "kind": [] }),
    ] {
        let response = review(&json!({ "operation": "CREATE", "object": object }));
        assert_eq!(response["allowed"], true, "{object}");
    }
}

#[test]
fn what_is_no_review_has_no_answer() {
    for body in [
        &b""[..],
        b"{",
        b"[]",
        b"{}",
        br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#,
        br#"{"apiVersion":"admission.k8s.io/v1","request":{}}"#,
        br#"{"apiVersion":"admission.k8s.io/v1","request":{"uid":5}}"#,
        br#"{"apiVersion":"admission.k8s.io/v1beta1","request":{"uid":"u"}}"#,
        b"\xff",
    ] {
        assert!(ask(body).is_err(), "{}", body.escape_ascii());
    }
}

#[test]
fn warnings_stay_within_what_is_passed_on() {
    let warning = |n: usize| Judged {
        judgement: Judgement {
            image: format!("a:{n}"),
            outcome: Outcome::Warning,
            served: true,
            rule: Some("r".to_owned()),
            message: Some(format!("{n} {}", "ä".repeat(300))),
            reason: None,
            instead: None,
            contact: None,
        },
        path: String::new(),
    };
    let some: Vec<_> = (0..100).map(warning).collect();
    let warnings = warnings(&some);
    assert!(warnings.iter().all(|text| text.chars().count() <= 256));
    assert!(warnings.iter().map(String::len).sum::<usize>() <= 4096);
    let shown = warnings.len() - 1;
    assert_eq!(warnings[shown], format!("and {} more images", 100 - shown));
    assert_eq!(super::warnings(&some[..3]).len(), 3);
}
