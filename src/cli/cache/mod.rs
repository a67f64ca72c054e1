//! `portcullis cache ...`: look after the cache.
//!
//! One code path: a command is a request to `/api/v1`, answered by the server that has the store
//! or, without one, by the same code in this process ([`super::ask`]).

mod prune;
pub(super) mod show;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use bytesize::ByteSize;
use serde_json::{Value, json};

use super::Report;
use super::ask::{Asked, Progress, ask};
use crate::config::Source;
use crate::server::control::{NameRequest, PinRequest, VerifyRequest};
use crate::store::control::is_store;
use crate::units;

/// What commands end with when they found something wrong.
const FINDINGS: u8 = 2;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Cache {
    /// List images: how much of each is here, when it was last used, whether it is pinned
    Ls {
        /// List blobs instead
        #[arg(long)]
        blobs: bool,
    },
    /// Hash every blob and set aside what is wrong; the next pull fetches it again. Exits with 2
    /// when something was wrong
    Verify {
        /// Read at most so much in a second
        #[arg(long, value_name = "SIZE", default_value = "200MB")]
        rate: ByteSize,
    },
    /// Make an image whole and keep it, or keep what matches a pattern such as 'quay.io/corp/**'
    Pin {
        #[arg(value_name = "IMAGE|PATTERN")]
        image: String,
        /// Keep only these of an index, such as linux/amd64
        #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
        platform: Vec<String>,
    },
    /// Let an image or a pattern be evicted again
    Unpin {
        #[arg(value_name = "IMAGE|PATTERN")]
        name: String,
    },
    /// Take an image or a blob away, but for what other images need. In a shared store its names go;
    /// what they led to goes with a later prune. Other replicas that have it keep it
    Purge {
        #[arg(value_name = "IMAGE|DIGEST")]
        name: String,
    },
    /// Take away from the shared store what no replica has used for long; what is pinned, or what a
    /// tag still points to, stays with everything it refers to
    Prune {
        /// At least 1d; without it what `store.shared.prune_older_than` says
        #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
        older_than: Option<Duration>,
        /// Only list what would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Say why a blob or manifest is kept, or why it is gone
    Why {
        #[arg(value_name = "DIGEST")]
        digest: String,
    },
    /// Show what a tag has pointed to
    History {
        #[arg(value_name = "IMAGE")]
        image: String,
    },
}

// === impl Cache ===

impl Cache {
    pub(super) fn run(&self, source: &Source) -> anyhow::Result<Report> {
        let config = source.parse()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build();
        let runtime = runtime.context("cannot start the runtime")?;
        if let Cache::Prune {
            older_than,
            dry_run,
        } = self
        {
            return runtime.block_on(prune::run(&config, *older_than, *dry_run));
        }
        let path = &config.store.path;
        // Only what fetches something may make a store.
        if !is_store(path) && !matches!(self, Cache::Pin { .. }) {
            let path = path.display();
            anyhow::bail!("there is no cache at {path}: --config names the server's configuration");
        }
        let answer = runtime.block_on(ask(&config, source, self.request()?, self.progress()))?;
        Ok(self.report(answer))
    }

    fn request(&self) -> anyhow::Result<Asked> {
        Ok(match self {
            Cache::Ls { blobs: false } => Asked::get("images", None),
            Cache::Ls { blobs: true } => Asked::get("blobs", None),
            Cache::Why { digest } => Asked::get("why", Some(digest)),
            Cache::History { image } => Asked::get("history", Some(image)),
            Cache::Verify { rate } => Asked::post(
                "verify",
                &VerifyRequest {
                    rate: rate.as_u64(),
                },
            )?,
            Cache::Pin { image, platform } => {
                let (image, platforms) = (image.clone(), platform.clone());
                Asked::post("pins", &PinRequest { image, platforms })?
            }
            Cache::Unpin { name } => Asked::post("unpin", &NameRequest { name: name.clone() })?,
            Cache::Purge { name } => Asked::post("purge", &NameRequest { name: name.clone() })?,
            Cache::Prune { .. } => anyhow::bail!("a prune asks no server"),
        })
    }

    fn progress(&self) -> Progress {
        match self {
            Cache::Verify { .. } => Progress::new("hashing"),
            Cache::Pin { .. } => Progress::new("fetching"),
            _ => Progress::silent(),
        }
    }

    fn report(&self, answer: Value) -> Report {
        let text = match self {
            Cache::Ls { blobs: false } => show::images(&answer),
            Cache::Ls { blobs: true } => show::blobs(&answer),
            Cache::Verify { .. } => show::verified(&answer),
            Cache::Pin { .. } => show::pinned(&answer),
            Cache::Unpin { name } => format!("{name} is no longer pinned\n"),
            Cache::Purge { .. } => show::purged(&answer),
            Cache::Why { .. } => show::why(&answer),
            Cache::History { .. } => show::history(&answer),
            Cache::Prune { .. } => String::new(),
        };
        let found = matches!(self, Cache::Verify { .. }) && answer["wrong"] != json!([]);
        Report {
            code: if found {
                ExitCode::from(FINDINGS)
            } else {
                ExitCode::SUCCESS
            },
            ..Report::new(text, answer)
        }
    }
}
