//! The record of pulls, from the server that has the store, or from the store itself.

use std::path::Path;

use anyhow::Context as _;

use super::ask::ask_server;
use crate::cache::pulls::Recorded;
use crate::config::Config;
use crate::store::control::is_store;
use crate::store::pulls;

/// Reads the record of the store at `store`, or where the configuration has it. The store is opened
/// no further than that: it may be another configuration's.
pub(super) fn read(config: &Config, store: Option<&Path>) -> anyhow::Result<Recorded> {
    let store = store.unwrap_or(&config.store.path);
    if !is_store(store) {
        let store = store.display();
        anyhow::bail!("there is no cache at {store}: --store names the server's store.path");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.context("cannot start the runtime")?;
    if let Some(answer) = runtime.block_on(ask_server(store, "pulls"))? {
        return serde_json::from_value(answer).context("the server is of another version");
    }
    Ok(Recorded::read(&pulls::read(store)?))
}
