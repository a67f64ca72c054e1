//! Log set-up, metrics, and the types that keep secrets out of both.
pub mod log;
pub mod metrics;
pub mod redact;
mod request;
mod secret;
pub use metrics::Metrics;
pub use redact::{SafeUrl, Secret};
pub use request::RequestId;
pub use secret::SecretSource;
