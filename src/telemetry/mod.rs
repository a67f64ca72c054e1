//! Log set-up, metrics, the ledger of hosts, and the types that keep secrets out of all of them.
pub mod ledger;
pub mod log;
pub mod metrics;
pub mod redact;
mod request;
mod secret;
pub use ledger::Ledger;
pub use metrics::Metrics;
pub use redact::{SafeUrl, Secret};
pub use request::RequestId;
pub use secret::SecretSource;
