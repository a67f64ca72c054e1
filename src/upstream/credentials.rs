//! A login at an upstream.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use zeroize::Zeroizing;

use crate::telemetry::Secret;

/// Who a login's images are shown to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShareWith {
    /// What this login may see is public here.
    Everyone,
}

/// A user name and a password, read and ready.
#[derive(Clone, Debug)]
pub(super) struct Credential {
    username: String,
    password: Secret<String>,
}

// === impl Credential ===

impl Credential {
    pub(super) fn new(username: String, password: Secret<String>) -> Self {
        Credential { username, password }
    }

    /// The value of `Authorization` in the Basic scheme (RFC 7617).
    pub(super) fn basic(&self) -> HeaderValue {
        let pair = Zeroizing::new(format!("{}:{}", self.username, self.password.expose()));
        let text = format!("Basic {}", STANDARD.encode(pair.as_bytes()));
        let mut value = HeaderValue::try_from(text).expect("base64 is a header value");
        value.set_sensitive(true);
        value
    }
}
