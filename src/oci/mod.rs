//! The protocol's words: pure types and parsers, no I/O, nothing async.

pub mod digest;
pub mod error;
pub mod image;
pub mod manifest;
pub mod name;
pub mod own;
pub mod range;
pub mod route;

pub use digest::{Algorithm, Digest, Hasher, InvalidDigest};
pub use error::ErrorCode;
pub use image::Image;
pub use manifest::{Descriptor, InvalidManifest, InvalidPlatform, Manifest, MediaType, Platform};
pub use name::{InvalidName, Reference, Registry, Repository, RepositoryName, Tag};
pub use own::OwnNames;
pub use range::RangeSpec;
pub use route::{HostMap, Route, RouteError, Routed};
