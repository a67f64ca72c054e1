//! What the cache says becomes HTTP: status, headers and body of every answer.
//!
//! A HEAD answer has the headers of the GET, the true Content-Length above all: containerd takes
//! a length of 0 for a broken registry, and dockerd a missing one.

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap,
    HeaderName, HeaderValue, IF_NONE_MATCH, IF_RANGE, LINK, RANGE, RETRY_AFTER, WARNING,
};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::ext::ReasonPhrase;

use super::body::Body;
use super::error::{ApiError, BadRequest};
use super::sendfile::Queue;
use crate::cache::{BlobAnswer, ManifestAnswer, Outcome, ReferrersAnswer, TagsAnswer, Wanted};
use crate::oci::error::error_body;
use crate::oci::range::content_range;
use crate::oci::{Digest, RangeSpec, Routed};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const INDEX: HeaderValue = HeaderValue::from_static("application/vnd.oci.image.index.v1+json");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
const BYTES: HeaderValue = HeaderValue::from_static("bytes");

/// All Warning headers of an answer together, in bytes (OCI distribution-spec, "Warnings").
const LONGEST_WARNINGS: usize = 4096;

/// How a request wants its answer, taken from its head before anything is looked up.
#[derive(Debug)]
pub(super) struct Shape {
    head: bool,
    http10: bool,
    if_none_match: Option<HeaderValue>,
    range: Option<RangeSpec>,
}

/// Which bytes of a blob an answer has.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Whole(u64),
    Range {
        range: std::ops::Range<u64>,
        of: u64,
    },
    Unsatisfiable(u64),
    /// To the end, whatever it will be.
    Open,
}

// === impl Shape ===

impl Shape {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        let head = request.method() == Method::HEAD;
        Shape {
            head,
            http10: request.version() == Version::HTTP_10,
            if_none_match: headers.get(IF_NONE_MATCH).cloned(),
            // A range has no meaning for HEAD (RFC 9110 section 14.2).
            range: if head { None } else { single_range(headers) },
        }
    }

    /// What to ask the cache for. A range that is bound to other content than `digest` by
    /// If-Range is no range.
    pub(super) fn wanted(&mut self, headers: &HeaderMap, digest: &Digest) -> Wanted {
        if let Some(condition) = headers.get(IF_RANGE)
            && condition != digest.header_values().1
        {
            self.range = None;
        }
        match self.range {
            _ if self.head => Wanted::Head,
            Some(range) => Wanted::Range(range),
            None => Wanted::Whole,
        }
    }

    /// If-None-Match (RFC 9110 section 13.1.2) names this digest, or anything.
    fn has_already(&self, etag: &HeaderValue) -> bool {
        let Some(known) = self.if_none_match.as_ref().and_then(|v| v.to_str().ok()) else {
            return false;
        };
        known.split(',').map(str::trim).any(|tag| {
            tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == etag.as_bytes()
        })
    }

    fn part(&self, size: Option<u64>) -> Part {
        match (size, self.range) {
            (None, _) => Part::Open,
            // Clients that put `bytes=0-` on every request mean well, even for an empty blob.
            (Some(size), None) | (Some(size @ 0), _) => Part::Whole(size),
            (Some(size), Some(spec)) => match spec.resolve(size) {
                Some(range) => Part::Range { range, of: size },
                None => Part::Unsatisfiable(size),
            },
        }
    }
}

fn single_range(headers: &HeaderMap) -> Option<RangeSpec> {
    let mut lines = headers.get_all(RANGE).iter();
    let line = lines.next()?.to_str().ok()?;
    if lines.next().is_some() {
        None
    } else {
        RangeSpec::parse(line)
    }
}

// === answers ===

pub(super) fn ping(shape: &Shape) -> Response<Body> {
    whole(shape, JSON, Bytes::from_static(b"{}"))
}

pub(super) fn manifest(shape: &Shape, answer: &ManifestAnswer) -> Response<Body> {
    let manifest = &answer.manifest;
    let ready = manifest.headers();
    let mut response = if shape.has_already(&ready.etag) {
        not_modified()
    } else {
        whole(shape, ready.content_type.clone(), manifest.bytes().clone())
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_DIGEST, ready.digest.clone());
    headers.insert(ETAG, ready.etag.clone());
    headers.insert(CACHE_STATUS, cache_status(answer.outcome));
    if let Some(audit) = &answer.audit {
        headers.append(WARNING, warning(&audit.message));
    }
    warn(headers, &answer.warnings);
    response
}

/// `queue` is the connection's, where bodies can go from file to socket.
pub(super) fn blob(
    shape: &Shape,
    answer: BlobAnswer,
    queue: Option<Queue>,
) -> Result<Response<Body>, ApiError> {
    let (digest, etag) = answer.digest.header_values();
    let outcome = cache_status(answer.outcome);
    let mut response = if shape.has_already(&etag) {
        not_modified()
    } else {
        let part = shape.part(answer.size);
        let mut response = blob_head(shape, &part)?;
        *response.body_mut() = match part {
            _ if shape.head => Body::empty(),
            Part::Whole(size) => Body::blob(answer.read(0..size), Some(size), queue),
            Part::Range { range, .. } => {
                let len = range.end - range.start;
                Body::blob(answer.read(range), Some(len), queue)
            }
            Part::Open | Part::Unsatisfiable(_) => Body::blob(answer.read_all(), None, queue),
        };
        response
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_DIGEST, digest);
    headers.insert(ETAG, etag);
    headers.insert(CACHE_STATUS, outcome);
    Ok(response)
}

/// Status and the headers that say which bytes these are.
fn blob_head(shape: &Shape, part: &Part) -> Result<Response<Body>, ApiError> {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, OCTETS);
    headers.insert(ACCEPT_RANGES, BYTES);
    match part {
        Part::Whole(size) => {
            headers.insert(CONTENT_LENGTH, (*size).into());
        }
        Part::Range { range, of } => {
            headers.insert(CONTENT_LENGTH, (range.end - range.start).into());
            headers.insert(CONTENT_RANGE, text(&content_range(range, *of)));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        Part::Unsatisfiable(size) => return Err(ApiError::unsatisfiable(*size)),
        // Only the end of the connection would end this body, and a cut would look the same.
        Part::Open if shape.http10 => return Err(BadRequest::Http10.into()),
        Part::Open => {}
    }
    Ok(response)
}

/// `n` as the client asked for it.
pub(super) fn tags(
    shape: &Shape,
    routed: &Routed,
    n: Option<usize>,
    answer: &TagsAnswer,
) -> Response<Body> {
    let name = routed
        .path_name
        .strip_prefix("/v2/")
        .unwrap_or(&routed.path_name);
    let tags = if n == Some(0) {
        &[]
    } else {
        answer.tags.as_slice()
    };
    let list = serde_json::json!({ "name": name, "tags": tags });
    let mut response = whole(shape, JSON, list.to_string().into());
    let headers = response.headers_mut();
    headers.insert(CACHE_STATUS, cache_status(answer.outcome));
    if let Some(last) = answer.more.as_ref().filter(|_| n != Some(0)) {
        let n = n.unwrap_or(tags.len());
        let next = routed.next_tags(n, last);
        headers.insert(LINK, text(&format!("<{next}>; rel=\"next\"")));
    }
    response
}

pub(super) fn referrers(shape: &Shape, answer: ReferrersAnswer) -> Response<Body> {
    let mut response = whole(shape, INDEX, answer.body);
    let headers = response.headers_mut();
    headers.insert(CACHE_STATUS, cache_status(answer.outcome));
    if answer.filtered {
        headers.insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    response
}

pub(super) fn error(head: bool, error: &ApiError) -> Response<Body> {
    let body = Bytes::from(error_body(
        error.code,
        &error.message,
        error.detail.as_ref(),
    ));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = error.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CONTENT_LENGTH, body.len().into());
    if let Some(seconds) = error.retry_after {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    if let Some(content_range) = &error.content_range {
        headers.insert(CONTENT_RANGE, text(content_range));
    }
    if error.status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    if error.close {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Ok(reason) = ReasonPhrase::try_from(error.message.as_bytes()) {
        response.extensions_mut().insert(reason);
    }
    if !head {
        *response.body_mut() = Body::bytes(body);
    }
    response
}

// === parts of answers ===

fn whole(shape: &Shape, content_type: HeaderValue, content: Bytes) -> Response<Body> {
    let len = content.len();
    let mut response = Response::new(if shape.head {
        Body::empty()
    } else {
        Body::bytes(content)
    });
    // Room for all the headers of an answer at once.
    let mut headers = HeaderMap::with_capacity(16);
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CONTENT_LENGTH, len.into());
    *response.headers_mut() = headers;
    response
}

fn not_modified() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

/// RFC 9211.
const fn cache_status(outcome: Outcome) -> HeaderValue {
    HeaderValue::from_static(match outcome {
        Outcome::Hit => "portcullis; hit",
        Outcome::Stale => "portcullis; hit; detail=stale",
        Outcome::Miss => "portcullis; fwd=miss; stored",
        Outcome::Collapsed => "portcullis; fwd=miss; collapsed",
        Outcome::Passed => "portcullis; fwd=miss",
    })
}

/// `299 - "text"`, with what would end the text early escaped. Not all of it need be ASCII.
fn warning(message: &str) -> HeaderValue {
    let message = message.replace('\\', "\\\\").replace('"', "\\\"");
    text(&format!("299 - \"{message}\""))
}

/// Passes on upstream's `299 - "text"`, as many of them as the specification allows.
fn warn(headers: &mut HeaderMap, warnings: &[String]) {
    let said: usize = headers.get_all(WARNING).iter().map(HeaderValue::len).sum();
    let mut room = LONGEST_WARNINGS.saturating_sub(said);
    for warning in warnings {
        let Ok(value) = HeaderValue::from_str(warning) else {
            continue;
        };
        let Some(left) = room.checked_sub(value.len()) else {
            break;
        };
        room = left;
        headers.append(WARNING, value);
    }
}

/// For texts that are made of checked types; anything else becomes an empty value.
pub(super) fn text(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests;
