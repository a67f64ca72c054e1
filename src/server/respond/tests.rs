use std::sync::Arc;

use super::*;
use crate::oci::{HostMap, Manifest, MediaType, Registry, Route, Tag};
use crate::policy::Refusal;

const MANIFEST: &[u8] = br#"{"schemaVersion":2}"#;

fn shape(method: Method, headers: &[(&str, &str)]) -> Shape {
    let mut request = Request::builder().method(method);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Shape::of(&request.body(()).unwrap())
}

fn get(headers: &[(&str, &str)]) -> Shape {
    shape(Method::GET, headers)
}

fn digest() -> Digest {
    Digest::sha256(MANIFEST)
}

fn manifest_answer(warnings: Vec<String>) -> ManifestAnswer {
    let media_type = MediaType::parse("application/vnd.oci.image.manifest.v1+json").unwrap();
    let manifest = Manifest::from_store(Bytes::from_static(MANIFEST), media_type, digest());
    ManifestAnswer {
        manifest: Arc::new(manifest),
        outcome: Outcome::Hit,
        warnings: warnings.into(),
        audit: None,
    }
}

fn tags_answer(tags: &[&str], more: Option<&str>) -> TagsAnswer {
    let tag = |tag: &&str| tag.parse::<Tag>().unwrap();
    let tags = tags.iter().map(tag).collect();
    TagsAnswer {
        tags,
        more: more.as_ref().map(tag),
        outcome: Outcome::Stale,
    }
}

fn routed(target: &str) -> Routed {
    let hosts = HostMap {
        default_registry: Registry::docker_hub(),
        hosts: std::collections::HashMap::new(),
        own: None,
    };
    Route::parse(&Method::GET, &target.parse().unwrap(), None, &hosts).unwrap()
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response
        .headers()
        .get(name)
        .map(|value| value.to_str().unwrap())
}

async fn content(response: Response<Body>) -> Bytes {
    http_body_util::BodyExt::collect(response.into_body())
        .await
        .unwrap()
        .to_bytes()
}

#[tokio::test]
async fn a_manifest_has_type_length_and_digest_on_get_and_head() {
    for method in [Method::GET, Method::HEAD] {
        let response = manifest(&shape(method.clone(), &[]), &manifest_answer(vec![]));
        let digest = digest().to_string();
        assert_eq!(response.status(), 200);
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        assert_eq!(header(&response, "content-type"), Some(media_type));
        assert_eq!(header(&response, "content-length"), Some("19"));
        assert_eq!(header(&response, "docker-content-digest"), Some(&*digest));
        assert_eq!(header(&response, "etag"), Some(&*format!("\"{digest}\"")));
        assert_eq!(header(&response, "cache-status"), Some("portcullis; hit"));
        let expected = if method == Method::GET { MANIFEST } else { b"" };
        assert_eq!(content(response).await, expected);
    }
}

#[test]
fn what_the_client_has_already_is_not_sent_again() {
    let etag = format!("\"{}\"", digest());
    let weak = format!("W/{etag}");
    let list = format!("\"other\", {etag}");
    for known in [&*etag, &weak, &list, "*"] {
        let response = manifest(&get(&[("if-none-match", known)]), &manifest_answer(vec![]));
        assert_eq!(response.status(), 304, "{known}");
        assert_eq!(header(&response, "etag"), Some(&*etag));
        assert_eq!(header(&response, "content-length"), None);
    }
    let response = manifest(
        &get(&[("if-none-match", "\"other\"")]),
        &manifest_answer(vec![]),
    );
    assert_eq!(response.status(), 200);
}

#[test]
fn warnings_stop_at_4096_bytes() {
    let warning = format!("299 - \"{}\"", "x".repeat(2000));
    let response = manifest(&get(&[]), &manifest_answer(vec![warning.clone(); 3]));
    assert_eq!(response.headers().get_all(WARNING).iter().count(), 2);
    assert_eq!(header(&response, "warning"), Some(&*warning));
}

#[test]
fn what_policy_has_to_say_comes_first() {
    let mut answer = manifest_answer(vec!["299 - \"from the upstream\"".to_owned()]);
    let text = "a.example/x:1 is served, but audited: so \"called\" b\\c; f\u{fc}r sp\u{e4}ter";
    answer.audit = Some(Arc::new(Refusal::new(text.to_owned())));
    let response = manifest(&get(&[]), &answer);
    let warnings: Vec<_> = response.headers().get_all(WARNING).iter().collect();
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    assert_eq!(
        warnings[0].as_bytes(),
        format!("299 - \"{escaped}\"").as_bytes()
    );
    assert_eq!(warnings[1], "299 - \"from the upstream\"");
    assert_eq!(warnings.len(), 2);
}

fn part(range: &str, size: u64) -> Part {
    get(&[("range", range)]).part(Some(size))
}

#[test]
fn one_range_is_answered_and_anything_else_is_ignored() {
    assert_eq!(
        part("bytes=0-", 10),
        Part::Range {
            range: 0..10,
            of: 10
        }
    );
    assert_eq!(
        part("bytes=4-", 10),
        Part::Range {
            range: 4..10,
            of: 10
        }
    );
    assert_eq!(
        part("bytes=4-5", 10),
        Part::Range {
            range: 4..6,
            of: 10
        }
    );
    assert_eq!(
        part("bytes=4-99", 10),
        Part::Range {
            range: 4..10,
            of: 10
        }
    );
    assert_eq!(
        part("bytes=-3", 10),
        Part::Range {
            range: 7..10,
            of: 10
        }
    );
    assert_eq!(part("bytes=10-", 10), Part::Unsatisfiable(10));
    assert_eq!(part("bytes=0-", 0), Part::Whole(0));
    for ignored in ["bytes=0-1,3-4", "bytes=5-4", "bytes=x-", "lines=0-", ""] {
        assert_eq!(part(ignored, 10), Part::Whole(10), "{ignored}");
    }
    let twice = get(&[("range", "bytes=0-1"), ("range", "bytes=2-3")]);
    assert_eq!(twice.part(Some(10)), Part::Whole(10));
    assert_eq!(
        shape(Method::HEAD, &[("range", "bytes=1-2")]).part(Some(10)),
        Part::Whole(10)
    );
    assert_eq!(get(&[("range", "bytes=1-2")]).part(None), Part::Open);
}

#[test]
fn if_range_holds_only_for_this_digest() {
    let etag = format!("\"{}\"", digest());
    let weak = format!("W/{etag}");
    for (condition, honoured) in [
        (&*etag, true),
        ("\"other\"", false),
        (&weak, false),
        ("Sat, 21 Nov 2026 07:28:00 GMT", false),
    ] {
        let request = Request::get("/")
            .header("range", "bytes=1-")
            .header("if-range", condition);
        let request = request.body(()).unwrap();
        let wanted = Shape::of(&request).wanted(request.headers(), &digest());
        assert_eq!(matches!(wanted, Wanted::Range(_)), honoured, "{condition}");
    }
}

#[test]
fn the_head_of_a_blob_says_which_bytes_these_are() {
    let shape = get(&[]);
    let response = blob_head(
        &shape,
        &Part::Range {
            range: 4..6,
            of: 10,
        },
    )
    .unwrap();
    assert_eq!(response.status(), 206);
    assert_eq!(header(&response, "content-range"), Some("bytes 4-5/10"));
    assert_eq!(header(&response, "content-length"), Some("2"));
    assert_eq!(header(&response, "accept-ranges"), Some("bytes"));
    assert_eq!(
        header(&response, "content-type"),
        Some("application/octet-stream")
    );
    let response = blob_head(&shape, &Part::Open).unwrap();
    assert_eq!(
        (
            response.status().as_u16(),
            header(&response, "content-length")
        ),
        (200, None)
    );
    let refused = blob_head(&shape, &Part::Unsatisfiable(10)).unwrap_err();
    let response = error(false, &refused);
    assert_eq!(response.status(), 416);
    assert_eq!(header(&response, "content-range"), Some("bytes */10"));
    let http10 = Shape {
        http10: true,
        ..shape
    };
    assert_eq!(blob_head(&http10, &Part::Open).unwrap_err().status, 505);
}

#[tokio::test]
async fn a_tag_list_leads_back_here() {
    let routed = routed("/v2/pause/tags/list?ns=up.example%3A5000&n=2");
    let response = tags(
        &get(&[]),
        &routed,
        Some(2),
        &tags_answer(&["a", "b"], Some("b")),
    );
    let link = "</v2/pause/tags/list?ns=up.example:5000&n=2&last=b>; rel=\"next\"";
    assert_eq!(header(&response, "link"), Some(link));
    assert_eq!(
        header(&response, "cache-status"),
        Some("portcullis; hit; detail=stale")
    );
    let json: serde_json::Value = serde_json::from_slice(&content(response).await).unwrap();
    assert_eq!(
        json,
        serde_json::json!({ "name": "pause", "tags": ["a", "b"] })
    );
}

#[tokio::test]
async fn no_tags_were_asked_for_and_none_are_given() {
    let routed = routed("/v2/registry.k8s.io/pause/tags/list?n=0");
    let response = tags(&get(&[]), &routed, Some(0), &tags_answer(&["a"], Some("a")));
    assert_eq!(header(&response, "link"), None);
    let json: serde_json::Value = serde_json::from_slice(&content(response).await).unwrap();
    assert_eq!(
        json,
        serde_json::json!({ "name": "registry.k8s.io/pause", "tags": [] })
    );
}

#[tokio::test]
async fn referrers_are_an_index_and_say_what_was_filtered() {
    let body = Bytes::from_static(b"{}");
    let answer = ReferrersAnswer {
        body,
        filtered: true,
        outcome: Outcome::Miss,
    };
    let response = referrers(&get(&[]), answer);
    let media_type = "application/vnd.oci.image.index.v1+json";
    assert_eq!(header(&response, "content-type"), Some(media_type));
    assert_eq!(
        header(&response, "oci-filters-applied"),
        Some("artifactType")
    );
    assert_eq!(
        header(&response, "cache-status"),
        Some("portcullis; fwd=miss; stored")
    );
}

#[tokio::test]
async fn an_error_is_the_same_on_head_and_get() {
    let refused = ApiError::route(&crate::oci::RouteError::Method);
    let (get, head) = (error(false, &refused), error(true, &refused));
    for response in [&get, &head] {
        assert_eq!(response.status(), 405);
        assert_eq!(header(response, "allow"), Some("GET, HEAD"));
        let reason = response.extensions().get::<ReasonPhrase>().unwrap();
        assert_eq!(reason.as_bytes(), refused.message.as_bytes());
    }
    assert_eq!(
        header(&get, "content-length"),
        header(&head, "content-length")
    );
    let body = content(get).await;
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(json["errors"][0]["message"], refused.message);
    assert_eq!(json["errors"][0]["code"], "UNSUPPORTED");
    assert_eq!(
        body.len().to_string(),
        header(&head, "content-length").unwrap()
    );
    assert_eq!(content(head).await, "");
}
