//! `portcullis policy suggest`: an allow list from recorded pulls.

use std::path::PathBuf;

use crate::cli::{Report, compile, pulls};
use crate::cluster::suggest::Suggested;
use crate::config::Source;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Suggest {
    /// Where the server keeps its cache; without it, what the configuration says
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,

    /// Name every repository, also where many lie below one path
    #[arg(long)]
    exact: bool,
}

// === impl Suggest ===

impl Suggest {
    pub(super) fn run(&self, source: &Source) -> anyhow::Result<Report> {
        let config = source.parse()?;
        let policy = compile(&config, source)?;
        let recorded = pulls::read(&config, self.store.as_deref())?;
        let suggested = Suggested::new(&recorded, &config.policy, &policy, !self.exact);
        Ok(Report {
            notes: suggested.notes.clone(),
            ..Report::new(suggested.toml(), suggested.json())
        })
    }
}
