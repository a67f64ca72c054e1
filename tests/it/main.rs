//! The whole product, driven over real sockets: one file for each behaviour.
//!
//! Every test starts the program itself ([`support::proxy`]) in front of a registry that does what
//! the test tells it to ([`support::upstream`]), asks it like a client would
//! ([`support::client`]), and judges by what came back, by what the upstream saw and by what is on
//! disk. [`e2e`] does the same with the programs that users have.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "those rules are about the product"
)]
#![expect(
    clippy::format_push_string,
    reason = "that a text cannot be written to is no worry here"
)]
#![expect(unreachable_pub, reason = "the support is one toolbox")]

mod support;

mod admission;
mod airgap;
mod audit;
mod azure;
mod bundle;
mod cold_blob;
mod commands;
mod contract;
mod credentials;
mod deploy;
mod e2e;
mod egress;
mod exports;
mod faults;
mod fleet;
mod fleet_life;
mod grants;
mod identity;
mod integrity;
mod keeping;
mod ledger;
mod links;
mod logins;
mod manifests;
mod manners;
mod min_age;
mod passing;
mod policy;
mod proofs;
mod pulls;
mod ranges;
mod refusals;
mod reload;
mod replicas;
mod replicas_tags;
mod restart;
mod routing;
mod stopping;
mod store;
mod support_works;
mod tags;
mod targets;
mod tls;
mod vectors;
mod warm;
