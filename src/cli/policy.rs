//! `portcullis policy ...`: the policy for somebody else, and another policy for us.

mod export;
mod suggest;

use super::{Output, Report};
use crate::config::Source;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Policy {
    /// Write the rules for the cluster's own admission, ready to be applied
    Export(export::Export),
    /// Propose a policy that allows what clients have pulled, and nothing else
    Suggest(suggest::Suggest),
}

// === impl Policy ===

impl Policy {
    pub(super) fn run(self, source: &Source, output: Output) -> anyhow::Result<Report> {
        match self {
            Policy::Export(export) => export.run(source, output),
            Policy::Suggest(suggest) => suggest.run(source),
        }
    }
}
