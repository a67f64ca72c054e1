//! `portcullis status`: what is in the cache, what is being downloaded, and what was missing.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::ask::{self, Asked, Progress};
use super::cache::show;
use super::{Output, Report};
use crate::config::Source;
use crate::store::control::is_store;

/// How often a watched server is asked.
const LOOK: Duration = Duration::from_secs(1);
/// To the upper left of a terminal, and nothing below.
const CLEAR: &str = "\x1b[H\x1b[J";

#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// List what was asked for while offline and is not here, or not whole: an image a line, as
    /// `warm --from` takes it on the connected side
    #[arg(long)]
    missing: bool,
    /// Say it again every second, until the server ends or the command is interrupted
    #[arg(long, conflicts_with = "missing")]
    watch: bool,
}

// === impl Status ===

impl Status {
    /// None: all has been printed.
    pub(super) fn run(&self, source: &Source, output: Output) -> anyhow::Result<Option<Report>> {
        let config = source.parse()?;
        let path = &config.store.path;
        if !is_store(path) {
            let path = path.display();
            bail!("there is no cache at {path}: --config names the server's configuration");
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build();
        let runtime = runtime.context("cannot start the runtime")?;
        if self.watch {
            runtime.block_on(watch(path, output))?;
            return Ok(None);
        }
        let what = if self.missing { "missing" } else { "status" };
        let asked = Asked::get(what, None);
        let answer = runtime.block_on(ask::ask(&config, source, asked, Progress::silent()))?;
        let text = if self.missing {
            names(&answer)
        } else {
            show::status(&answer)
        };
        Ok(Some(Report::new(text, answer)))
    }
}

/// Prints what the server says until there is none to ask, or nobody reads it. JSON is a line a look.
async fn watch(store: &Path, output: Output) -> anyhow::Result<()> {
    let mut stdout = io::stdout();
    let clear = if stdout.is_terminal() { CLEAR } else { "" };
    while let Some(answer) = ask::ask_server(store, "status").await? {
        let text = match output {
            Output::Text => format!("{clear}{}\n", show::status(&answer)),
            _ => format!("{answer}\n"),
        };
        match stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
        {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
        tokio::time::sleep(LOOK).await;
    }
    bail!("no server runs on the cache at {}", store.display())
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
