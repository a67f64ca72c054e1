//! Whose fault an upstream failure is, and what may be done about it.
//!
//! The text of every kind goes to people, so it names hosts and classes of failure and never a
//! query, user info or token. No error of the HTTP library is kept: those carry whole URLs.

use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::egress::gives_identities;
use crate::telemetry::metrics::UpstreamOutcome;

/// What went wrong, and with which registry.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{registry}: {kind}")]
pub struct UpstreamError {
    pub registry: String,
    pub kind: UpstreamErrorKind,
}

/// Each kind has one row in the table of answers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamErrorKind {
    /// 401 or 403 after the token flow.
    #[error("does not exist or needs credentials this proxy lacks")]
    Refused,
    /// Our login was refused where it is exchanged for something else: names the step and the way out.
    #[error("{0}")]
    LoginRefused(String),
    /// There should be a login, and it cannot be had: names where it should come from.
    #[error("{0}")]
    LoginUnavailable(String),
    /// 404.
    #[error("not found")]
    NotFound,
    /// 429; the wait is as the upstream asked, at most 15 minutes.
    #[error("rate limit")]
    RateLimited { retry_after: Option<Duration> },
    /// Refused, reset, DNS, TLS, 5xx: the class and the host.
    #[error("{0}")]
    Unavailable(String),
    /// 5xx with the wish to be left alone for a while, at most 15 minutes.
    #[error("{text}")]
    Overloaded { text: String, retry_after: Duration },
    /// Every endpoint has failed a moment ago, so none was asked: since when, why, and how long
    /// until one is.
    #[error("{text}")]
    Down { text: String, retry_after: Duration },
    /// Too many requests to it are under way from here.
    #[error("too many requests to it are under way")]
    Busy { retry_after: Duration },
    /// One of `[limits]` ran out.
    #[error("{0}")]
    TimedOut(String),
    /// 416 to a range request.
    #[error("the requested range does not exist")]
    RangeNotSatisfiable,
    /// Not what the protocol allows: Content-Encoding, too large, a wrong Content-Range.
    #[error("{0}")]
    Invalid(String),
    /// A redirect, token realm or address that the configuration does not allow: names the host
    /// and the configuration line that would allow it.
    #[error("{0}")]
    HostRefused(String),
    /// The egress proxy is down, wants a login, or refuses the host. Whoever asks again, or asks
    /// another endpoint, goes the same way.
    #[error("{0}")]
    NoWayOut(String),
}

/// A name on the list turned out to be at an address that the address guard refuses.
#[derive(Debug, thiserror::Error)]
#[error("{host} is at {address}, an internal address")]
pub(super) struct AddressRefused {
    pub(super) host: String,
    pub(super) address: IpAddr,
}

// === impl UpstreamErrorKind ===

impl UpstreamErrorKind {
    /// Whether the same request may do better a moment later, or at another endpoint.
    pub(super) fn is_transient(&self) -> bool {
        matches!(
            self,
            UpstreamErrorKind::Unavailable(_)
                | UpstreamErrorKind::Overloaded { .. }
                | UpstreamErrorKind::TimedOut(_)
        )
    }

    /// How long an endpoint that fails like this wants to be left alone.
    pub(super) fn rest(&self) -> Option<Duration> {
        match self {
            UpstreamErrorKind::Overloaded { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// The same with the step of a login at which it happened.
    pub(super) fn at(self, step: &str) -> Self {
        let text = |text: String| format!("{step}: {text}");
        match self {
            UpstreamErrorKind::Unavailable(said) => UpstreamErrorKind::Unavailable(text(said)),
            UpstreamErrorKind::TimedOut(said) => UpstreamErrorKind::TimedOut(text(said)),
            UpstreamErrorKind::Invalid(said) => UpstreamErrorKind::Invalid(text(said)),
            UpstreamErrorKind::HostRefused(said) => UpstreamErrorKind::HostRefused(text(said)),
            other => other,
        }
    }

    /// How this counts in the metrics.
    pub(super) fn outcome(&self) -> UpstreamOutcome {
        match self {
            UpstreamErrorKind::Refused | UpstreamErrorKind::LoginRefused(_) => {
                UpstreamOutcome::Refused
            }
            UpstreamErrorKind::NotFound => UpstreamOutcome::NotFound,
            UpstreamErrorKind::RateLimited { .. } => UpstreamOutcome::RateLimited,
            UpstreamErrorKind::Unavailable(_)
            | UpstreamErrorKind::NoWayOut(_)
            | UpstreamErrorKind::LoginUnavailable(_)
            | UpstreamErrorKind::Overloaded { .. }
            | UpstreamErrorKind::Down { .. }
            | UpstreamErrorKind::Busy { .. } => UpstreamOutcome::Unavailable,
            UpstreamErrorKind::TimedOut(_) => UpstreamOutcome::TimedOut,
            UpstreamErrorKind::RangeNotSatisfiable
            | UpstreamErrorKind::Invalid(_)
            | UpstreamErrorKind::HostRefused(_) => UpstreamOutcome::Invalid,
        }
    }

    /// The kind of a request that got no response header. `key` is the entry of `[upstreams]`.
    pub(super) fn of_request(error: &reqwest::Error, host: &str, key: &str) -> Self {
        if let Some(refused) = find::<AddressRefused>(error) {
            if gives_identities(refused.address) {
                // No line is offered that would allow it: this is what an attack looks like.
                return UpstreamErrorKind::HostRefused(refused.to_string());
            }
            return UpstreamErrorKind::HostRefused(format!(
                "{refused}; allow_addresses = [\"{}\"] under [upstreams.\"{key}\"] would allow it",
                refused.address
            ));
        }
        if error.is_timeout() {
            return UpstreamErrorKind::TimedOut(format!("connecting to {host} took too long"));
        }
        UpstreamErrorKind::Unavailable(if error.is_dns() {
            format!("the address of {host} cannot be found")
        } else if let Some(tls) = find::<rustls::Error>(error) {
            format!("TLS with {host} failed ({tls})")
        } else if error.is_connect() {
            format!("cannot connect to {host} ({})", class(error))
        } else {
            format!(
                "{host} closed the connection before it answered ({})",
                class(error)
            )
        })
    }

    /// The kind of a body that ended before its end.
    pub(super) fn of_body(error: &reqwest::Error, host: &str) -> Self {
        UpstreamErrorKind::Unavailable(format!(
            "{host} cut the connection inside a body ({})",
            class(error)
        ))
    }
}

/// The system's word for it, such as "connection refused".
fn class(error: &reqwest::Error) -> String {
    match find::<io::Error>(error) {
        Some(error) => error.kind().to_string(),
        None => "protocol error".into(),
    }
}

/// The first error of type `E` among the causes. An `io::Error` hides what it wraps from
/// [`StdError::source`], so its inside is looked at too.
pub(super) fn find<E: StdError + 'static>(error: &reqwest::Error) -> Option<&E> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}
