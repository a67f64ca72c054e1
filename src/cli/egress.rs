//! `portcullis egress`: the hosts that a firewall must allow, what of them was used, and how the two
//! differ.
//!
//! What is needed comes from the configuration alone, without its secrets and without any network.
//! What was used is in the ledger, which the running server tells; without one it is read from the
//! store.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytesize::ByteSize;
use comfy_table::{ContentArrangement, Table, presets};
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::ask;
use super::{Output, Report, compile};
use crate::cluster::egress::{Diff, Format, Needs, Plan};
use crate::cluster::inputs::LARGEST_INPUT;
use crate::config::{Config, Source};
use crate::oci::Image;
use crate::store;
use crate::store::control::is_store;
use crate::store::object::Host;
use crate::telemetry::ledger::{Entry, Snapshot};
use crate::units;
use crate::upstream::{HostBook, Listed};

/// A host was used that is not needed, or wanted and refused.
const FINDINGS: u8 = 2;

#[derive(Debug, clap::Args)]
pub(super) struct Egress {
    /// Print what was really used instead
    #[arg(long, conflicts_with_all = ["diff", "images"])]
    observed: bool,

    /// Print how what was used differs from what is needed; exit 2 if a host was used that is not
    /// needed, or was wanted by an upstream and refused
    #[arg(long, conflicts_with = "images")]
    diff: bool,

    /// Look only at what was used or refused so lately, such as 30d
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    since: Option<Duration>,

    /// Print what pulls of exactly these images need: one image a line; - is stdin
    #[arg(long, value_name = "FILE")]
    images: Option<String>,

    /// The address of this proxy: the only source in what a firewall reads
    #[arg(long, value_name = "CIDR", value_parser = network)]
    source: Option<IpNet>,
}

/// A network, or an address alone.
fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>()
        .or_else(|_| address())
        .map_err(|_| format!("{text:?} is no network: write 10.42.3.4/32"))
}

// === impl Egress ===

impl Egress {
    pub(super) fn run(&self, source: &Source, output: Output) -> anyhow::Result<Report> {
        let config = source.parse()?;
        if self.diff && output.firewall().is_some() {
            bail!("a difference is no list of hosts: use -o text or -o json");
        }
        if self.since.is_some() && !self.observed && !self.diff {
            bail!("--since goes with --observed and --diff: needs have no time");
        }
        if self.observed {
            let snapshot = self.ledger(&config)?;
            return Ok(self.observed(&snapshot, output));
        }
        let needs = self.needs(&config, source)?;
        if self.diff {
            return Ok(difference(&needs, &self.ledger(&config)?));
        }
        Ok(self.needed(needs, output))
    }

    fn needs(&self, config: &Config, source: &Source) -> anyhow::Result<Needs> {
        let policy = compile(config, source)?;
        let book = HostBook::new(&config.upstreams);
        if let Some(file) = &self.images {
            let images = images(file, config)?;
            return Ok(Needs::of_images(&images, &policy, &book));
        }
        let mut needs = Needs::of_policy(&policy, &book);
        needs.notes.extend(way_out(config));
        if let Some(shared) = &config.store.shared {
            let hosts = shared.hosts();
            if !shared.redirect.is_empty()
                && let Some(store) = hosts.first()
            {
                needs.notes.push(format!(
                    "clients in the networks of store.shared.redirect dial {} themselves",
                    store.host
                ));
            }
            if let Some(peers) = &shared.peers {
                let networks: Vec<_> = peers.networks.iter().map(ToString::to_string).collect();
                needs.notes.push(format!(
                    "replicas dial each other inside {}: no rule by name is for that",
                    networks.join(", ")
                ));
            }
            needs.extend("store.shared", hosts.into_iter().map(listed));
        }
        Ok(needs)
    }

    fn needed(&self, mut needs: Needs, output: Output) -> Report {
        let by_source = [Format::Az, Format::Bicep, Format::Terraform, Format::Squid];
        let format = output.firewall();
        if self.source.is_some() && !format.is_some_and(|format| by_source.contains(&format)) {
            let note = "--source counts for az, bicep, terraform and squid only";
            needs.notes.push(note.to_owned());
        }
        if let Some(format) = format {
            return Report {
                notes: needs.notes.clone(),
                ..Report::new(needs.write(format, self.source), Value::Null)
            };
        }
        needs.notes.extend(Plan::new(&needs).remarks);
        Report {
            notes: needs.notes.clone(),
            ..Report::new(needs.text(), needs.json())
        }
    }

    fn observed(&self, snapshot: &Snapshot, output: Output) -> Report {
        if let Some(format) = output.firewall() {
            let text = Needs::of_ledger(snapshot).write(format, self.source);
            return Report::new(text, Value::Null);
        }
        let mut report = Report::new(table(&snapshot.hosts), json!(snapshot));
        if snapshot.forgotten > 0 {
            let forgotten = snapshot.forgotten;
            report
                .notes
                .push(format!("{forgotten} more had to make room in the ledger"));
        }
        report
    }

    /// What the store's process has dialled, as far as it is asked for.
    fn ledger(&self, config: &Config) -> anyhow::Result<Snapshot> {
        let path = &config.store.path;
        if !is_store(path) {
            let path = path.display();
            bail!("there is no cache at {path}: --config names the server's configuration");
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.context("cannot start the runtime")?;
        let mut snapshot = match runtime.block_on(ask::ask_server(path, "egress"))? {
            Some(answer) => serde_json::from_value(answer).context("the server's answer")?,
            None => store::ledger::read(path)?.unwrap_or_default(),
        };
        if let Some(since) = self.since {
            let oldest = Timestamp::now()
                .checked_sub(since)
                .context("--since is before all times")?;
            snapshot.hosts.retain(|row: &Entry| row.last >= oldest);
        }
        Ok(snapshot)
    }
}

/// Who has to let these hosts through, where that is not the firewall in front of us.
fn way_out(config: &Config) -> Vec<String> {
    let Some(proxy) = &config.egress.proxy else {
        return Vec::new();
    };
    let mut notes = vec![format!(
        "the egress proxy {proxy} must let these hosts through; this machine dials nothing else but \
         that proxy"
    )];
    let past = config.upstreams.iter();
    let past = past.filter(|(_, upstream)| upstream.proxy.is_some());
    let mut past: Vec<String> = past
        .map(|(key, _)| format!("[upstreams.\"{key}\"]"))
        .collect();
    let shared = config.store.shared.as_ref();
    past.extend(
        shared
            .filter(|shared| !shared.by_proxy())
            .map(|_| "[store.shared]".to_owned()),
    );
    if !past.is_empty() {
        notes.push(format!("except for {}, which go past it", past.join(", ")));
    }
    notes
}

fn difference(needs: &Needs, snapshot: &Snapshot) -> Report {
    let diff = Diff::new(needs, snapshot);
    let code = if diff.is_finding() {
        FINDINGS.into()
    } else {
        ExitCode::SUCCESS
    };
    Report {
        code,
        ..Report::new(diff.text(), diff.json())
    }
}

/// The images of a list: one a line, `#` begins a remark.
fn images(file: &str, config: &Config) -> anyhow::Result<Vec<Image>> {
    let mut text = String::new();
    // One byte more than there may be, so that it shows.
    let most = LARGEST_INPUT as u64 + 1;
    let read = match file {
        "-" => io::stdin().take(most).read_to_string(&mut text),
        file => File::open(file).and_then(|open| open.take(most).read_to_string(&mut text)),
    };
    read.with_context(|| file.to_owned())?;
    if text.len() > LARGEST_INPUT {
        bail!("{file}: is larger than {}", ByteSize(LARGEST_INPUT as u64));
    }
    let names = config.server.own_names();
    let lines = text.lines().enumerate();
    let lines = lines.map(|(number, line)| (number, line.split('#').next().unwrap_or(line).trim()));
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(number, line)| {
            let at = || format!("{file}, line {}: {line:?} is no image", number + 1);
            names.image(line).with_context(at)
        })
        .collect()
}

fn listed(host: Host) -> Listed {
    let Host {
        host,
        port,
        tls,
        purpose,
    } = host;
    Listed {
        host,
        port,
        tls,
        purpose,
    }
}

fn table(rows: &[Entry]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header([
            "HOST", "FOR", "PURPOSE", "REQUESTS", "RECEIVED", "FAILURES", "FIRST", "LAST",
            "REFUSED",
        ])
        .add_rows(rows.iter().map(|row| {
            [
                format!("{}:{}", row.host, row.port),
                row.owner.clone(),
                row.purpose.to_string(),
                row.requests.to_string(),
                ByteSize(row.received).to_string(),
                row.failures.to_string(),
                row.first.to_string(),
                row.last.to_string(),
                row.refused.map(|why| why.to_string()).unwrap_or_default(),
            ]
        }));
    table.trim_fmt() + "\n"
}

#[cfg(test)]
mod tests;
