//! `portcullis cache prune`: what the shared store is rid of. It asks no server: the work is safe
//! beside all replicas, so whoever may write to the store may do it from anywhere.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytesize::ByteSize;
use jiff::Timestamp;
use serde_json::json;

use crate::app;
use crate::cli::Report;
use crate::config::Config;
use crate::store::object::SHORTEST_PRUNE;
use crate::store::prune::{Doomed, Pruned, prune};
use crate::units;

pub(super) async fn run(
    config: &Config,
    older_than: Option<Duration>,
    dry_run: bool,
) -> anyhow::Result<Report> {
    let Some(shared) = &config.store.shared else {
        bail!("there is no [store.shared] to prune; the local disk keeps its limit by itself");
    };
    let Some(older_than) = older_than.or(shared.prune_older_than) else {
        bail!("say --older-than, or set store.shared.prune_older_than");
    };
    if older_than < SHORTEST_PRUNE {
        bail!("--older-than must be at least 1d: replicas write down once an hour what they use");
    }
    let store = app::connect(shared, config, &Arc::default()).await?;
    let before = Timestamp::now()
        .checked_sub(older_than)
        .context("--older-than is before all times")?;
    let mut gone = Vec::new();
    let tell = |doomed: &Doomed| gone.push(doomed.clone());
    let pruned = prune(&store, before.as_second(), dry_run, tell).await?;
    let json = json!({
        "dry_run": dry_run,
        "older_than": units::show(older_than),
        "gone": gone,
        "objects": pruned.objects,
        "bytes": pruned.bytes,
        "kept": pruned.kept,
    });
    Ok(Report::new(text(&gone, pruned, dry_run), json))
}

fn text(gone: &[Doomed], pruned: Pruned, dry_run: bool) -> String {
    let mut lines = String::new();
    for doomed in gone {
        let size = ByteSize(doomed.size).display().iec().to_string();
        let time = Timestamp::from_second(doomed.modified).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "{size:>10}  {time}  {}", doomed.name);
    }
    let (objects, kept) = (pruned.objects, pruned.kept);
    let bytes = ByteSize(pruned.bytes).display().iec();
    let would = if dry_run { "would go" } else { "went" };
    let _ = writeln!(
        lines,
        "{objects} objects of {bytes} {would}; {kept} blobs stay"
    );
    lines
}
