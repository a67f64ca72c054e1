//! The only table from causes to HTTP answers (DESIGN section 6; printed in `docs/errors.md`).
//!
//! The reason phrase carries the same one line as the JSON body, on HEAD and GET alike: it is all
//! that containerd before 2.3.3 shows to the person at `kubectl describe pod`. Nothing here ever
//! answers 401 or sends a challenge, because nodes answer challenges with their pull secrets.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::cache::CacheError;
use crate::cache::keep::KeepError;
use crate::oci::{ErrorCode, InvalidName, Registry, RouteError};
use crate::policy::Refusal;
use crate::store::keep::PinError;
use crate::telemetry::RequestId;
use crate::upstream::{UpstreamError, UpstreamErrorKind};

/// The longest text of a reason phrase, in characters.
const LONGEST_MESSAGE: usize = 200;

/// How long to wait when an upstream that limits us does not say.
const RETRY_AFTER: Duration = Duration::from_mins(1);

/// One answer that is not the thing that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) code: ErrorCode,
    /// One printable line of at most 200 characters.
    pub(super) message: String,
    pub(super) detail: Option<Value>,
    /// In whole seconds, rounded up.
    pub(super) retry_after: Option<u64>,
    /// `bytes */size` of a 416.
    pub(super) content_range: Option<String>,
    /// What follows it on the connection cannot be trusted to be a request.
    pub(super) close: bool,
}

/// Requests that are refused before anybody looks at what they name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadRequest {
    #[error("a request has no body here: Transfer-Encoding and Content-Length are refused")]
    Body,
    #[error("the request target must be a path: this is not a forward proxy")]
    AbsoluteForm,
    #[error("a request must have one Host header")]
    Host,
    #[error("the request has more than 64 headers")]
    ManyHeaders,
    #[error("the length of this blob is not known yet: ask with HTTP/1.1")]
    Http10,
}

// === impl ApiError ===

impl ApiError {
    fn new(status: StatusCode, code: ErrorCode, message: impl AsRef<str>) -> Self {
        ApiError {
            status,
            code,
            message: one_line(message.as_ref()),
            detail: None,
            retry_after: None,
            content_range: None,
            close: false,
        }
    }

    fn retry_after(self, after: Duration) -> Self {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        ApiError {
            retry_after: Some(seconds.max(1)),
            ..self
        }
    }

    /// The range lies outside the blob's `size` bytes.
    pub(super) fn unsatisfiable(size: u64) -> Self {
        let message = format!("the blob has {size} bytes, none of them in this range");
        ApiError {
            content_range: Some(format!("bytes */{size}")),
            ..ApiError::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                ErrorCode::Unsupported,
                message,
            )
        }
    }

    /// Somebody speaks in the name of a replica and is none. What is wrong is not for them.
    pub(super) fn peer_refused() -> Self {
        ApiError::new(StatusCode::FORBIDDEN, ErrorCode::Denied, "not a replica")
    }

    /// The cause in full goes to the log where it is ours; the client of a bug sees only `id`.
    pub(super) fn cache(error: &CacheError, id: RequestId) -> Self {
        use {ErrorCode as Code, StatusCode as Status};
        match error {
            CacheError::Denied(refusal) => denied(refusal),
            CacheError::NotServed(registry) => not_served(registry),
            CacheError::ManifestUnknown => {
                ApiError::new(Status::NOT_FOUND, Code::ManifestUnknown, "no such manifest")
            }
            CacheError::BlobUnknown => {
                ApiError::new(Status::NOT_FOUND, Code::BlobUnknown, "no such blob")
            }
            CacheError::NameUnknown => {
                ApiError::new(Status::NOT_FOUND, Code::NameUnknown, "no such repository")
            }
            // Clients ask for referrers and signatures on the side: a 404 lets them go on, while
            // for an image it would hide this text, which nobody shows for a 404.
            CacheError::Offline { listing: true } => {
                ApiError::new(Status::NOT_FOUND, Code::ManifestUnknown, error.to_string())
            }
            CacheError::Offline { listing: false } => ApiError::new(
                Status::SERVICE_UNAVAILABLE,
                Code::Unavailable,
                "this proxy is offline, and the image is not in its cache",
            ),
            CacheError::Upstream(error) => upstream(error),
            CacheError::WrongBytes(text) => {
                ApiError::new(Status::BAD_GATEWAY, Code::Unavailable, text)
            }
            CacheError::Busy { retry_after } => ApiError::new(
                Status::SERVICE_UNAVAILABLE,
                Code::Unavailable,
                "this proxy is too busy, try again",
            )
            .retry_after(*retry_after),
            CacheError::TooSlow(what) => ApiError::new(
                Status::GATEWAY_TIMEOUT,
                Code::Unavailable,
                format!("{what} took too long"),
            ),
            CacheError::Internal(_) => ApiError::new(
                Status::INTERNAL_SERVER_ERROR,
                Code::Unknown,
                format!("internal error of this proxy, its log has the cause: request {id}"),
            ),
        }
    }

    pub(super) fn route(error: &RouteError) -> Self {
        use {ErrorCode as Code, StatusCode as Status};
        let (status, code) = match error {
            RouteError::Name(InvalidName::Digest(_)) => (Status::BAD_REQUEST, Code::DigestInvalid),
            // Not 404, whose text containerd does not show.
            RouteError::Misplaced
            | RouteError::Name(_)
            | RouteError::Path
            | RouteError::Namespace
            | RouteError::Query => (Status::BAD_REQUEST, Code::NameInvalid),
            RouteError::NotFound => (Status::NOT_FOUND, Code::Unsupported),
            RouteError::Host => (Status::FORBIDDEN, Code::Denied),
            RouteError::Method => (Status::METHOD_NOT_ALLOWED, Code::Unsupported),
            RouteError::TooLong => (Status::URI_TOO_LONG, Code::NameInvalid),
        };
        ApiError::new(status, code, error.to_string())
    }
}

/// For `control.sock`, where the text says the rest.
pub(super) fn keep_status(error: &KeepError) -> StatusCode {
    match error {
        KeepError::Incomplete(_) => StatusCode::BAD_GATEWAY,
        KeepError::Pattern(_) => StatusCode::BAD_REQUEST,
        KeepError::NotHere(_) => StatusCode::NOT_FOUND,
        KeepError::Pin(PinError::TooLarge { .. } | PinError::Missing(_))
        | KeepError::Pinned { .. }
        | KeepError::Needed { .. } => StatusCode::CONFLICT,
        KeepError::Pin(PinError::Unlinked(_) | PinError::Store(_)) | KeepError::Store(_) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

impl From<BadRequest> for ApiError {
    fn from(error: BadRequest) -> Self {
        let status = match error {
            BadRequest::Body | BadRequest::AbsoluteForm | BadRequest::Host => {
                StatusCode::BAD_REQUEST
            }
            BadRequest::ManyHeaders => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            BadRequest::Http10 => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        };
        let error = ApiError::new(status, ErrorCode::Unsupported, error.to_string());
        ApiError {
            close: true,
            ..error
        }
    }
}

fn denied(refusal: &Refusal) -> ApiError {
    let mut detail = json!({
        "rule": refusal.rule,
        "reason": refusal.reason,
        "instead": refusal.instead,
        "contact": refusal.contact,
    });
    if let Some(from) = &refusal.served_from {
        detail["served_from"] = from.as_str().into();
    }
    ApiError {
        detail: Some(detail),
        ..ApiError::new(StatusCode::FORBIDDEN, ErrorCode::Denied, &refusal.message)
    }
}

fn not_served(registry: &Registry) -> ApiError {
    let message = format!(
        "{registry} is not served by this proxy; whoever runs it can add [upstreams.\"{registry}\"]"
    );
    ApiError::new(StatusCode::FORBIDDEN, ErrorCode::Denied, message)
}

fn upstream(error: &UpstreamError) -> ApiError {
    use {ErrorCode as Code, StatusCode as Status};
    let text = error.to_string();
    match &error.kind {
        // Whoever passes a 401 on makes nodes send their secrets.
        UpstreamErrorKind::Refused | UpstreamErrorKind::LoginRefused(_) => {
            ApiError::new(Status::FORBIDDEN, Code::Denied, text)
        }
        UpstreamErrorKind::NotFound => ApiError::new(Status::NOT_FOUND, Code::NameUnknown, text),
        UpstreamErrorKind::RateLimited { retry_after } => {
            let text = format!(
                "{} limits the rate of this proxy's requests",
                error.registry
            );
            ApiError::new(Status::TOO_MANY_REQUESTS, Code::TooManyRequests, text)
                .retry_after(retry_after.unwrap_or(RETRY_AFTER))
        }
        UpstreamErrorKind::Overloaded { retry_after, .. }
        | UpstreamErrorKind::Down { retry_after, .. } => {
            ApiError::new(Status::BAD_GATEWAY, Code::Unavailable, text).retry_after(*retry_after)
        }
        UpstreamErrorKind::Busy { retry_after } => {
            ApiError::new(Status::SERVICE_UNAVAILABLE, Code::Unavailable, text)
                .retry_after(*retry_after)
        }
        UpstreamErrorKind::TimedOut(_) => {
            ApiError::new(Status::GATEWAY_TIMEOUT, Code::Unavailable, text)
        }
        UpstreamErrorKind::Unavailable(_)
        | UpstreamErrorKind::LoginUnavailable(_)
        | UpstreamErrorKind::RangeNotSatisfiable
        | UpstreamErrorKind::Invalid(_)
        | UpstreamErrorKind::HostRefused(_)
        | UpstreamErrorKind::NoWayOut(_) => {
            ApiError::new(Status::BAD_GATEWAY, Code::Unavailable, text)
        }
    }
}

/// `text` as one printable line that fits a status line. Control characters and those that turn
/// the direction of text become spaces; runs of spaces become one.
fn one_line(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let clean: String = text
        .chars()
        .take(4 * LONGEST_MESSAGE)
        .map(|c| if hidden(c) { ' ' } else { c })
        .collect();
    let mut line = clean.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() > LONGEST_MESSAGE {
        line = line
            .chars()
            .take(LONGEST_MESSAGE - 3)
            .chain("...".chars())
            .collect();
    }
    line
}

#[cfg(test)]
mod tests;
