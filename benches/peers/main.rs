//! Portcullis beside its peers, in one run on one machine: `cargo bench --bench peers`.
//!
//! Everything is on loopback: a registry that is slow on purpose ([`upstream`]), the proxies as
//! processes of their own ([`peers`]), and clients ([`load`]). A scenario does all targets in each
//! repetition, in a rotating order, and the report shows medians and paired ratios.
//!
//! Read ratios and processor seconds; wall-clock figures depend on who else uses the machine.

#![allow(
    clippy::disallowed_methods,
    reason = "those rules are about the product"
)]

mod cached;
mod cold;
mod content;
mod herd;
mod load;
mod peers;
mod process;
mod report;
mod tls;
mod upstream;

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use tempfile::TempDir;

use crate::content::Content;
use crate::peers::{Peer, Target};
use crate::report::Report;
use crate::tls::Identity;
use crate::upstream::{Behaviour, Upstream};

/// The upstream answers after this.
const LATENCY: Duration = Duration::from_millis(30);
/// Bytes per second of each connection to a slow upstream.
const RATE: u32 = 50_000_000;

/// Compares Portcullis with nginx `proxy_cache` and docker-registry.
#[derive(Parser)]
struct Arguments {
    /// Only these proxies.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Target>,
    /// Only these scenarios.
    #[arg(long, value_delimiter = ',')]
    scenario: Vec<Scenario>,
    /// One repetition instead of three.
    #[arg(long)]
    quick: bool,
    /// Every sample, median and ratio, to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The binary to measure, instead of the one built with this benchmark.
    #[arg(long)]
    portcullis: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    Cached,
    CachedTls,
    Image,
    Tags,
    Herd,
    PlainHerd,
    Kill,
}

/// What all scenarios share.
struct Bench {
    content: Arc<Content>,
    upstream: Upstream,
    report: Report,
    repetitions: usize,
    /// Holds the content.
    directory: TempDir,
    programs: Vec<(Target, PathBuf)>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let begin = Instant::now();
    let mut bench = Bench::new(&arguments)?;
    for &scenario in Scenario::value_variants() {
        if arguments.scenario.is_empty() || arguments.scenario.contains(&scenario) {
            scenario.run(&mut bench)?;
        }
    }
    if let Some(path) = &arguments.json {
        fs::write(path, format!("{:#}\n", bench.report.json()))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut out = std::io::stdout().lock();
    out.write_all(bench.report.text().as_bytes())?;
    writeln!(out, "\n{} s in all", begin.elapsed().as_secs())?;
    Ok(ExitCode::from(u8::from(bench.report.has_failures())))
}

// === impl Scenario ===

impl Scenario {
    fn run(self, bench: &mut Bench) -> Result<()> {
        match self {
            Scenario::Cached => cached::run(bench),
            Scenario::CachedTls => cached::run_tls(bench)?,
            Scenario::Image => cold::image(bench)?,
            Scenario::Tags => cold::tags(bench)?,
            Scenario::Herd => herd::with_ranges(bench)?,
            Scenario::PlainHerd => herd::without_ranges(bench)?,
            Scenario::Kill => herd::kill(bench),
        }
        Ok(())
    }
}

// === impl Bench ===

impl Bench {
    fn new(arguments: &Arguments) -> Result<Self> {
        let ours = arguments
            .portcullis
            .clone()
            .unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_portcullis")));
        let mut programs = Vec::new();
        for &target in Target::value_variants() {
            let wanted = arguments.only.is_empty() || arguments.only.contains(&target);
            if wanted && target != Target::Direct {
                programs.push((target, target.program(&ours)?));
            }
        }
        let directory = tempfile::Builder::new()
            .prefix("portcullis-bench-")
            .tempdir()?;
        let content = Arc::new(Content::generate(directory.path())?);
        let behaviour = Behaviour {
            latency: LATENCY,
            rate: None,
            ranges: true,
        };
        Ok(Bench {
            upstream: Upstream::start(Arc::clone(&content), behaviour)?,
            content,
            report: Report::default(),
            repetitions: if arguments.quick { 1 } else { 3 },
            directory,
            programs,
        })
    }

    /// Those of `targets` that take part.
    fn chosen(&self, targets: &[Target]) -> Vec<Target> {
        let takes_part = |target: &Target| self.programs.iter().any(|(known, _)| known == target);
        targets.iter().copied().filter(takes_part).collect()
    }

    /// The same, beginning with another one in each repetition.
    fn rotated(&self, targets: &[Target], repetition: usize) -> Vec<Target> {
        let mut targets = self.chosen(targets);
        if !targets.is_empty() {
            let by = repetition % targets.len();
            targets.rotate_left(by);
        }
        targets
    }

    fn start(&self, target: Target, tls: Option<&Identity>) -> Result<Peer> {
        let (_, program) = self
            .programs
            .iter()
            .find(|(known, _)| *known == target)
            .context("not chosen")?;
        Peer::start(target, program, self.upstream.address, tls)
    }

    /// Runs one measurement; a failure is reported at the end and does not stop the others.
    fn attempt(
        &mut self,
        scenario: &str,
        target: Target,
        measurement: impl FnOnce(&mut Self) -> Result<()>,
    ) {
        if let Err(error) = measurement(self) {
            self.fail(scenario, target, &error);
        }
    }

    fn fail(&mut self, scenario: &str, target: Target, error: &(impl std::fmt::Display + ?Sized)) {
        self.report
            .fail(format!("{scenario}: {}: {error:#}", target.name()));
    }

    fn announce(&self, scenario: &str, repetition: usize, target: Target) {
        let (name, of) = (target.name(), self.repetitions);
        // To see that it goes on; nobody is harmed when nobody reads it.
        let _ = writeln!(
            std::io::stderr(),
            "{scenario}, {} of {of}: {name}",
            repetition + 1
        );
    }
}
