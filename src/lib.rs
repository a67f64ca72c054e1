//! Portcullis: one gate for container images.
//!
//! The modules stand in layer order; each may use those above it in this list, never those below
//! (`tests/layers.rs` checks it). To follow one request: [`server`] accepts and parses it,
//! [`cache`] asks [`policy`] and then finds or fetches what it names, [`fill`] downloads a blob
//! once for everybody through [`upstream`] into [`store`], and [`server`] brings the bytes to the
//! socket. [`app`] puts all of them together; `docs/architecture.md` tells the rest.

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::unwrap_used,
        reason = "tests make their own files, tasks and clients, and fail by panicking"
    )
)]

pub mod oci;
pub mod telemetry;
pub mod units;

pub mod policy;
pub mod store;
pub mod upstream;

pub mod fill;

pub mod cache;

pub mod airgap;
pub mod cluster;
pub mod server;

pub mod config;

pub mod app;

pub mod cli;
