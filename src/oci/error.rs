//! OCI error codes and bodies: the JSON that we write, and others' read leniently.
//!
//! Source: OCI distribution-spec, "Error Codes".

use serde_json::{Value, json};

/// How much of a foreign message is repeated, in bytes.
const LONGEST_FOREIGN_MESSAGE: usize = 256;

/// The codes that we answer with. `UNAVAILABLE` and `UNKNOWN` stand only in answers of 500 and
/// above, where the specification's list does not bind; clients know both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    BlobUnknown,
    Denied,
    DigestInvalid,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    Unknown,
    Unsupported,
}

// === impl ErrorCode ===

impl ErrorCode {
    /// The code as it stands in the body.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BlobUnknown => "BLOB_UNKNOWN",
            ErrorCode::Denied => "DENIED",
            ErrorCode::DigestInvalid => "DIGEST_INVALID",
            ErrorCode::ManifestInvalid => "MANIFEST_INVALID",
            ErrorCode::ManifestUnknown => "MANIFEST_UNKNOWN",
            ErrorCode::NameInvalid => "NAME_INVALID",
            ErrorCode::NameUnknown => "NAME_UNKNOWN",
            ErrorCode::TooManyRequests => "TOOMANYREQUESTS",
            ErrorCode::Unauthorized => "UNAUTHORIZED",
            ErrorCode::Unavailable => "UNAVAILABLE",
            ErrorCode::Unknown => "UNKNOWN",
            ErrorCode::Unsupported => "UNSUPPORTED",
        }
    }
}

/// `{"errors":[{"code":"..","message":"..","detail":..}]}`
#[must_use]
pub fn error_body(code: ErrorCode, message: &str, detail: Option<&Value>) -> String {
    let mut error = json!({ "code": code.as_str(), "message": message });
    if let Some(detail) = detail {
        error["detail"] = detail.clone();
    }
    json!({ "errors": [error] }).to_string()
}

/// The first message of somebody else's error body: printable ASCII on one line, at most 256
/// bytes. `None` when there is none, as in an HTML page.
#[must_use]
pub fn foreign_message(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    // The specification's shape first; then those of token servers and gateways.
    let message = [
        &body["errors"][0]["message"],
        &body["message"],
        &body["error"],
        &body["details"],
    ]
    .into_iter()
    .filter_map(Value::as_str)
    .find(|message| !message.trim().is_empty())?;
    let printable = |c: char| {
        if c.is_ascii_graphic() || c == ' ' {
            c
        } else {
            '?'
        }
    };
    Some(
        message
            .trim()
            .chars()
            .take(LONGEST_FOREIGN_MESSAGE)
            .map(printable)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_has_the_shape_of_the_specification() {
        let body = error_body(
            ErrorCode::Denied,
            "a \"quoted\" line",
            Some(&json!({ "rule": "x" })),
        );
        let body: Value = serde_json::from_str(&body).unwrap();
        let expected = json!({ "errors": [
            { "code": "DENIED", "message": "a \"quoted\" line", "detail": { "rule": "x" } }
        ]});
        assert_eq!(body, expected);
        assert!(!error_body(ErrorCode::Unknown, "", None).contains("detail"));
    }

    #[test]
    fn foreign_bodies_are_read_leniently() {
        for (body, message) in [
            (
                r#"{"errors":[{"code":"UNKNOWN","message":"no such thing"}]}"#,
                Some("no such thing"),
            ),
            (
                r#"{"errors":[{"code":7,"message":" x "},{"message":"y"}]}"#,
                Some("x"),
            ),
            (
                r#"{"details":"incorrect username or password"}"#,
                Some("incorrect username or password"),
            ),
            (r#"{"error":"gone"}"#, Some("gone")),
            (r#"{"errors":[],"message":"m"}"#, Some("m")),
            (r#"{"errors":"x"}"#, None),
            (r#"["x"]"#, None),
            ("<html>", None),
            ("", None),
        ] {
            assert_eq!(
                foreign_message(body.as_bytes()).as_deref(),
                message,
                "{body}"
            );
        }
    }

    #[test]
    fn foreign_text_cannot_break_a_line() {
        let body = json!({ "message": format!("a\r\nb\u{1b}[0m\u{e9}{}", "z".repeat(9999)) });
        let message = foreign_message(body.to_string().as_bytes()).unwrap();
        assert!(message.starts_with("a??b?[0m?zz"), "{message}");
        assert_eq!(message.len(), 256);
    }
}
