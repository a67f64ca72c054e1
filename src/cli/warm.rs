//! `portcullis warm`: make images whole and keep them, before anybody asks for them.

use std::process::ExitCode;

use anyhow::Context as _;

use super::ask::{self, Asked, Progress};
use super::cache::show;
use super::{Report, audit, pulls};
use crate::cluster::mention::{Mention, Written};
use crate::config::{Config, Source};
use crate::server::control::WarmRequest;

#[derive(Debug, clap::Args)]
pub(super) struct Warm {
    #[arg(required_unless_present_any = ["from", "pulls"], value_name = "IMAGE")]
    images: Vec<String>,

    /// A list of images, Kubernetes YAML or JSON (`kubectl get pods -A -o json`, `helm template`),
    /// a compose file or a Dockerfile; - is stdin
    #[arg(long, value_name = "FILE")]
    from: Vec<String>,

    /// What clients have pulled here, and were not refused
    #[arg(long)]
    pulls: bool,

    /// Of images for several platforms only these, such as linux/amd64
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<String>,
}

// === impl Warm ===

impl Warm {
    /// Exit code 0: each of them is whole, pinned, and would survive a power loss; 1: one is not.
    pub(super) fn run(&self, source: &Source) -> anyhow::Result<Report> {
        let config = source.parse()?;
        let images = self.images(&config)?;
        if images.is_empty() {
            anyhow::bail!("there is no image in what was given");
        }
        let platforms = self.platform.clone();
        let asked = Asked::post("warm", &WarmRequest { images, platforms })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build();
        let runtime = runtime.context("cannot start the runtime")?;
        let progress = Progress::new("fetching");
        let answer = runtime.block_on(ask::ask(&config, source, asked, progress))?;
        let code = if answer["failed"] == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
        Ok(Report {
            code,
            ..Report::new(show::warmed(&answer), answer)
        })
    }

    /// In canonical form, each once, in the order in which they came.
    fn images(&self, config: &Config) -> anyhow::Result<Vec<String>> {
        let names = config.server.own_names();
        let mut images = Vec::new();
        let mut add = |text: &str, place: &str| {
            let image = names.image(text);
            let image = image.with_context(|| format!("{place}{text:?} is no image"))?;
            let image = image.to_string();
            if !images.contains(&image) {
                images.push(image);
            }
            anyhow::Ok(())
        };
        for text in &self.images {
            add(text, "")?;
        }
        for file in &self.from {
            let inputs = audit::read(file);
            if let Some(error) = inputs.errors.first() {
                anyhow::bail!("{error}");
            }
            for Mention { written, place } in &inputs.mentions {
                let line = place.line.unwrap_or_default();
                match written {
                    Written::Image(text) => add(text, &format!("{file}, line {line}: "))?,
                    Written::Odd { found, wanted } => {
                        anyhow::bail!("{file}, line {line}: {found} stands where {wanted} belongs")
                    }
                    Written::Open { variable, .. } => {
                        anyhow::bail!("{file}, line {line}: the variable {variable} has no value")
                    }
                }
            }
        }
        if self.pulls {
            let recorded = pulls::read(config, None)?;
            for image in recorded.served() {
                add(&image.to_string(), "")?;
            }
        }
        Ok(images)
    }
}
