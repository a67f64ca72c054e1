//! `portcullis audit FILE...`: every image in manifests, compose files and Dockerfiles against the
//! policy. `portcullis audit --pulls`: what clients have pulled.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use super::{Output, Report, compile, pulls};
use crate::cluster::audit::{self, ReportKind};
use crate::cluster::inputs::{self, Inputs, LARGEST_INPUT};
use crate::cluster::judge::Judge;
use crate::config::Source;
use crate::upstream::Served;

/// Something is not allowed.
const VIOLATIONS: u8 = 2;

#[derive(Debug, clap::Args)]
pub(super) struct Audit {
    /// Kubernetes YAML or JSON, compose files or Dockerfiles; - is stdin
    #[arg(required_unless_present = "pulls", value_name = "FILE")]
    files: Vec<String>,

    /// What clients have pulled, instead of files: say what this policy would break, and for whom
    #[arg(long, conflicts_with = "files")]
    pulls: bool,

    /// Where the server keeps its cache; without it, what the configuration says
    #[arg(long, value_name = "DIR", requires = "pulls")]
    store: Option<PathBuf>,
}

// === impl Audit ===

impl Audit {
    /// Exit code 0: nothing is wrong; 2: something is not allowed; 1: something could not be read,
    /// and everything else is reported all the same.
    pub(super) fn run(&self, source: &Source, output: Output) -> anyhow::Result<Report> {
        let config = source.parse()?;
        let policy = compile(&config, source)?;
        let names = config.server.own_names();
        let served = Served::by_name(config.upstreams.keys().map(String::as_str));
        let judge = Judge {
            policy: &policy,
            names: &names,
            served: &served,
        };
        let audit = if self.pulls {
            let recorded = pulls::read(&config, self.store.as_deref())?;
            audit::Audit::rehearse(&recorded, &judge)
        } else {
            audit::Audit::new(self.files.iter().map(|file| read(file)), &judge)
        };

        let mut report = match output {
            Output::Text => Report::new(audit.text(), serde_json::Value::Null),
            Output::Sarif => Report::new(String::new(), audit.sarif()),
            Output::Policyreport => {
                Report::new(String::new(), audit.report(ReportKind::PolicyReport))
            }
            Output::Openreports => {
                Report::new(String::new(), audit.report(ReportKind::OpenReports))
            }
            // What others print is refused before.
            _ => Report::new(String::new(), audit.json()),
        };
        report.code = match (audit.errors.is_empty(), audit.violations().next()) {
            (false, _) => ExitCode::FAILURE,
            (true, Some(_)) => VIOLATIONS.into(),
            (true, None) => ExitCode::SUCCESS,
        };
        let errors = audit
            .errors
            .iter()
            .map(|error| format!("not read: {error}"));
        report.notes = errors.chain(audit.notes.iter().cloned()).collect();
        Ok(report)
    }
}

pub(super) fn read(file: &str) -> Inputs {
    let mut bytes = Vec::new();
    // One byte more than there may be, so that it shows.
    let most = LARGEST_INPUT as u64 + 1;
    let result = match file {
        "-" => io::stdin().take(most).read_to_end(&mut bytes),
        file => File::open(file).and_then(|open| open.take(most).read_to_end(&mut bytes)),
    };
    match result {
        Ok(_) => inputs::read(file, &bytes),
        Err(error) => Inputs {
            errors: vec![format!("{file}: {error}")],
            ..Inputs::default()
        },
    }
}
