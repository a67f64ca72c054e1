//! `portcullis serve`

use std::process::ExitCode;

use anyhow::Context as _;

use super::invalid;
use crate::app;
use crate::config::{Source, check};
use crate::telemetry::log;

#[derive(Debug, clap::Args)]
pub(super) struct Serve {
    /// Make no outbound connection at all
    #[arg(long)]
    offline: bool,
}

// === impl Serve ===

impl Serve {
    pub(super) fn run(&self, source: &Source) -> anyhow::Result<ExitCode> {
        let mut config = source.parse()?;
        config.server.offline |= self.offline;
        let faults = check::check(&config, source);
        if !faults.is_empty() {
            return Err(invalid(source, faults).into());
        }
        log::init().map_err(anyhow::Error::from_boxed)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build();
        let runtime = runtime.context("cannot start the runtime")?;
        runtime.block_on(app::serve(config, source.clone()))?;
        Ok(ExitCode::SUCCESS)
    }
}
