//! The command line: one file per command.
//!
//! A command other than `serve` makes a [`Report`]: text for people and JSON beside it. Reports go
//! to stdout, everything else to stderr.

mod ask;
mod audit;
mod cache;
mod check;
mod egress;
mod explain;
mod export;
mod import;
mod nodes;
mod parts;
mod policy;
mod pulls;
mod serve;
mod status;
mod warm;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use serde_json::Value;

use crate::cluster::{egress as firewall, export as rules};
use crate::config::{Config, Fault, LoadError, Source};
use crate::policy::{Engine, Problem};

/// One gate for container images: a pull-through caching proxy for OCI registries.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version)]
pub struct Arguments {
    /// Configuration file; without it portcullis.toml, then /etc/portcullis/portcullis.toml, then
    /// the built-in defaults
    #[arg(long, global = true, value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    config: Option<PathBuf>,

    /// How to print the result
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "text"
    )]
    output: Output,

    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
    /// SARIF 2.1.0; `audit` only
    Sarif,
    /// wgpolicyk8s.io/v1alpha2; `audit` only
    Policyreport,
    /// openreports.io/v1alpha1; `audit` only
    Openreports,
    /// `ValidatingAdmissionPolicy`; `policy export` only
    Vap,
    /// `ConstraintTemplate` and constraints; `policy export` only
    Gatekeeper,
    /// A definition for AKS and Arc; `policy export` only
    AzurePolicy,
    /// `ClusterPolicy`; `policy export` only
    Kyverno,
    /// Azure Firewall rules as commands of the Azure CLI; `egress` only
    Az,
    /// Azure Firewall rules; `egress` only
    Bicep,
    /// Azure Firewall rules; `egress` only
    Terraform,
    /// A network policy of Cilium; `egress` only
    Cilium,
    /// A network policy of Calico Enterprise; `egress` only
    Calico,
    /// Lines for squid.conf; `egress` only
    Squid,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy
    Serve(serve::Serve),
    /// Read the configuration and say everything that is wrong with it
    Check,
    /// Say which rule decides about an image, and which hosts a pull would dial
    Explain(explain::Explain),
    /// Judge every image in manifests, compose files and Dockerfiles; exit 2 if one is not allowed
    Audit(audit::Audit),
    /// Print the hosts that a firewall must allow, or what of them was really used
    Egress(egress::Egress),
    /// The policy for somebody else, and another policy for us
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Make images whole and keep them, before anybody asks for them
    Warm(warm::Warm),
    /// Say what is in the cache, what is being downloaded, and what was missing
    Status(status::Status),
    /// Look after the cache
    #[command(subcommand)]
    Cache(cache::Cache),
    /// Write images, with everything they are made of, into a file for a site without a network
    Export(export::Export),
    /// Take in what `export`, skopeo or ctr has written, all of it or nothing
    Import(import::Import),
    /// Prepare the nodes
    #[command(subcommand)]
    Nodes(nodes::Nodes),
}

/// What a command found out.
#[derive(Debug)]
struct Report {
    text: String,
    json: Value,
    /// For stderr, whatever the format.
    notes: Vec<String>,
    code: ExitCode,
}

// === impl Arguments ===

impl Arguments {
    /// Runs the command to its end.
    ///
    /// # Errors
    /// Whatever kept it from doing what it is for, with the way out in the message.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        self.output.check(&self.command)?;
        let source = Source::find(self.config.as_deref())?;
        let report = match self.command {
            Command::Serve(serve) => return serve.run(&source),
            Command::Check => check::run(&source)?,
            Command::Explain(explain) => explain.run(&source)?,
            Command::Audit(audit) => audit.run(&source, self.output)?,
            Command::Egress(egress) => egress.run(&source, self.output)?,
            Command::Policy(policy) => policy.run(&source, self.output)?,
            Command::Warm(warm) => warm.run(&source)?,
            Command::Status(status) => match status.run(&source, self.output)? {
                Some(report) => report,
                None => return Ok(ExitCode::SUCCESS),
            },
            Command::Cache(cache) => cache.run(&source)?,
            Command::Export(export) => export.run(&source)?,
            Command::Import(import) => import.run(&source)?,
            Command::Nodes(nodes) => nodes.run(&source)?,
        };
        report.print(self.output)?;
        Ok(report.code)
    }
}

// === impl Output ===

impl Output {
    /// Most formats are for one command.
    fn check(self, command: &Command) -> anyhow::Result<()> {
        let (is_known, who) = match self {
            Output::Text | Output::Json => (true, ""),
            Output::Sarif | Output::Policyreport | Output::Openreports => {
                (matches!(command, Command::Audit(_)), "audit")
            }
            Output::Vap | Output::Gatekeeper | Output::AzurePolicy | Output::Kyverno => (
                matches!(command, Command::Policy(policy::Policy::Export(_))),
                "policy export",
            ),
            Output::Az
            | Output::Bicep
            | Output::Terraform
            | Output::Cilium
            | Output::Calico
            | Output::Squid => (matches!(command, Command::Egress(_)), "egress"),
        };
        anyhow::ensure!(
            is_known,
            "only {who} knows this output: use -o text or -o json"
        );
        Ok(())
    }

    /// The format of a policy, if it is one.
    fn policy(self) -> Option<rules::Format> {
        use rules::Format;
        match self {
            Output::Vap => Some(Format::Vap),
            Output::Gatekeeper => Some(Format::Gatekeeper),
            Output::AzurePolicy => Some(Format::AzurePolicy),
            Output::Kyverno => Some(Format::Kyverno),
            _ => None,
        }
    }

    /// The firewall that reads it.
    fn firewall(self) -> Option<firewall::Format> {
        use firewall::Format;
        match self {
            Output::Az => Some(Format::Az),
            Output::Bicep => Some(Format::Bicep),
            Output::Terraform => Some(Format::Terraform),
            Output::Cilium => Some(Format::Cilium),
            Output::Calico => Some(Format::Calico),
            Output::Squid => Some(Format::Squid),
            _ => None,
        }
    }
}

/// The policy, or its faults with their places.
fn compile(config: &Config, source: &Source) -> Result<Engine, LoadError> {
    Engine::compile(&config.policy).map_err(|problems| located(source, problems))
}

fn located(source: &Source, problems: Vec<Problem>) -> LoadError {
    let faults = problems.into_iter().map(|problem| source.locate(problem));
    invalid(source, faults.collect())
}

fn invalid(source: &Source, faults: Vec<Fault>) -> LoadError {
    LoadError::Invalid {
        path: source.path().map(ToOwned::to_owned),
        faults,
    }
}

// === impl Report ===

impl Report {
    fn new(text: String, json: Value) -> Self {
        Report {
            text,
            json,
            notes: Vec::new(),
            code: ExitCode::SUCCESS,
        }
    }

    fn print(&self, output: Output) -> io::Result<()> {
        for note in &self.notes {
            // A closed stderr is nobody's loss.
            let _ = writeln!(io::stderr(), "note: {note}");
        }
        let text = match output {
            Output::Text => self.text.clone(),
            // Written for other programs.
            _ if output.policy().is_some() || output.firewall().is_some() => self.text.clone(),
            _ => format!("{:#}\n", self.json),
        };
        match io::stdout().write_all(text.as_bytes()) {
            // `portcullis explain ... | head -1` is not a failure.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            done => done,
        }
    }
}

#[cfg(test)]
mod tests;
