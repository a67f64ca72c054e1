//! What the tests are made of.

pub mod canary;
pub mod cases;
pub mod certificates;
pub mod client;
pub mod cri;
pub mod engines;
pub mod herd;
pub mod image;
pub mod kill;
pub mod listeners;
pub mod network;
pub mod programs;
pub mod proxy;
pub mod service;
pub mod stores;
pub mod upstream;
pub mod wire;
pub mod world;

use std::time::{Duration, Instant};

/// How long anything may take before it counts as never happening.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const KIB: usize = 1024;
pub const MIB: usize = 1024 * KIB;

/// Where the proxy has what the upstream has at `/v2/{rest}`.
pub fn at(rest: &str) -> String {
    format!("/v2/registry.example/{rest}")
}

/// Waits until it is so.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
