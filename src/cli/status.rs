//! `portcullis status`: what is in the cache, and what was missing in it.

use anyhow::Context as _;
use serde_json::Value;

use super::Report;
use super::ask::{self, Asked, Progress};
use super::cache::show;
use crate::config::Source;
use crate::store::control::is_store;

#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// List what was asked for while offline and is not here, or not whole: an image a line, as
    /// `warm --from` takes it on the connected side
    #[arg(long)]
    missing: bool,
}

// === impl Status ===

impl Status {
    pub(super) fn run(&self, source: &Source) -> anyhow::Result<Report> {
        let config = source.parse()?;
        let path = &config.store.path;
        if !is_store(path) {
            let path = path.display();
            anyhow::bail!("there is no cache at {path}: --config names the server's configuration");
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build();
        let runtime = runtime.context("cannot start the runtime")?;
        let what = if self.missing { "missing" } else { "status" };
        let asked = Asked::get(what, None);
        let answer = runtime.block_on(ask::ask(&config, source, asked, Progress::silent()))?;
        let text = if self.missing {
            names(&answer)
        } else {
            show::status(&answer)
        };
        Ok(Report::new(text, answer))
    }
}

fn names(answer: &Value) -> String {
    let images = answer["missing"].as_array().into_iter().flatten();
    let mut names = String::new();
    for name in images.filter_map(|pull| pull["image"].as_str()) {
        names.push_str(name);
        names.push('\n');
    }
    names
}
