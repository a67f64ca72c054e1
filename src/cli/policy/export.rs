//! `portcullis policy export`: the rules as a policy of the cluster, on stdout.

use clap::ValueEnum;
use serde_json::Value;

use crate::cli::{Output, Report, compile};
use crate::cluster::export::{self, Action, Options};
use crate::config::Source;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Export {
    /// What becomes of a workload with a refused image
    #[arg(long, value_name = "ACTION", default_value = "deny")]
    action: Word,

    /// Leave a namespace out; may be given more than once
    #[arg(long = "exclude-namespace", value_name = "NAMESPACE", value_parser = namespace)]
    excluded_namespaces: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Word {
    /// Keep it out
    Deny,
    /// Let it in, and tell whoever applies it and whoever looks
    Audit,
}

// === impl Export ===

impl Export {
    pub(super) fn run(self, source: &Source, output: Output) -> anyhow::Result<Report> {
        let Some(format) = output.policy() else {
            anyhow::bail!("say for whom: -o vap, -o gatekeeper, -o azure-policy or -o kyverno");
        };
        let config = source.parse()?;
        let policy = compile(&config, source)?;
        let names = config.server.own_names();
        let action = match self.action {
            Word::Deny => Action::Deny,
            Word::Audit => Action::Audit,
        };
        let options = Options {
            action,
            excluded_namespaces: self.excluded_namespaces,
        };
        let export = export::export(&policy, &names, format, &options)?;
        Ok(Report {
            notes: export.notes,
            ..Report::new(export.text, Value::Null)
        })
    }
}

/// Names of namespaces are DNS labels.
fn namespace(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_label = (1..=63).contains(&text.len())
        && text.chars().all(allowed)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if is_label {
        Ok(text.to_owned())
    } else {
        Err("a namespace has 1 to 63 lower-case letters, digits and inner dashes".to_owned())
    }
}
