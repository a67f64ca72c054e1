//! `portcullis nodes`: the nodes' side.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::json;

use super::{Report, compile};
use crate::cluster::hosts::{Options, Outcome, Tree};
use crate::config::Source;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Nodes {
    /// Write a containerd certs.d tree that sends every pull to this proxy
    Hosts(Hosts),
}

#[derive(Debug, clap::Args)]
pub(super) struct Hosts {
    /// Directory to write into, such as /etc/containerd/certs.d
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// PEM certificates that nodes are to trust for this proxy; copied into the tree
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// Let nodes go to the real registry after any error, a refusal too
    #[arg(long)]
    fallback: bool,

    /// Send registries without a directory here as well
    #[arg(long)]
    default: bool,
}

// === impl Nodes ===

impl Nodes {
    pub(super) fn run(&self, source: &Source) -> anyhow::Result<Report> {
        match self {
            Nodes::Hosts(hosts) => hosts.run(source),
        }
    }
}

// === impl Hosts ===

impl Hosts {
    fn run(&self, source: &Source) -> anyhow::Result<Report> {
        let config = source.parse()?;
        let policy = compile(&config, source)?;
        let read = |path: &PathBuf| {
            fs::read_to_string(path).with_context(|| format!("{}", path.display()))
        };
        let options = Options {
            ca: self.ca.as_ref().map(read).transpose()?,
            fallback: self.fallback,
            default: self.default,
        };
        let upstreams = config.upstreams.keys().map(String::as_str);
        let tree = Tree::new(config.server.url.as_ref(), upstreams, &policy, options)?;
        let outcomes = tree.write(&self.out)?;

        let files: Vec<_> = outcomes
            .iter()
            .map(|(path, outcome)| json!({ "path": self.out.join(path), "outcome": outcome }))
            .collect();
        let wildcards: Vec<_> = tree.wildcards().collect();
        let lines = outcomes.iter().map(|(path, outcome)| {
            let outcome = match outcome {
                Outcome::Written => "written",
                Outcome::Unchanged => "unchanged",
                Outcome::Foreign => "left alone",
            };
            format!("{outcome:<10} {}\n", self.out.join(path).display())
        });
        let mut report = Report::new(
            lines.collect(),
            json!({ "files": files, "wildcards": wildcards }),
        );
        for (path, outcome) in &outcomes {
            if *outcome == Outcome::Foreign {
                let path = self.out.join(path);
                report.notes.push(format!(
                    "{} is somebody else's: nodes do what it says",
                    path.display()
                ));
            }
        }
        if !self.default {
            report.notes.extend(wildcards.iter().map(|wildcard| {
                format!("no directory can stand for {wildcard}: nodes go there themselves without --default")
            }));
        }
        if self.fallback {
            report
                .notes
                .push("with --fallback a refusal does not bind the nodes".to_owned());
        }
        Ok(report)
    }
}
