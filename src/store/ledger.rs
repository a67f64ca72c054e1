//! `v1/ledger.json`: the ledger of hosts across restarts.
//!
//! Written behind the answers, every 5 s at most and at the end: what a kill costs is what has
//! happened since. A file that cannot be read is a warning and an empty ledger.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::files::{Change, blocking, found};
use super::layout::Layout;
use super::{Store, StoreError};
use crate::telemetry::Ledger;
use crate::telemetry::ledger::Snapshot;

/// How long something may be in memory only.
const INTERVAL: Duration = Duration::from_secs(5);
/// No ledger is larger, in bytes: 4,096 rows with names of 255.
const LARGEST: u64 = 8 << 20;

/// What the process that has, or last had, the store at `path` has written down. None: nothing
/// yet. Blocking.
///
/// # Errors
/// When the file cannot be read or is damaged.
pub fn read(path: &Path) -> Result<Option<Snapshot>, StoreError> {
    let file = Layout::new(path).ledger();
    load(&file).map_err(StoreError::io(format!("read {}", file.display())))
}

fn load(file: &Path) -> io::Result<Option<Snapshot>> {
    let Some(file) = found(File::open(file))? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(Some(serde_json::from_slice(&bytes)?))
}

/// Goes on where the last process ended. Blocks.
pub(super) fn restore(layout: &Layout, ledger: &Ledger) {
    let file = layout.ledger();
    match load(&file) {
        Ok(Some(snapshot)) => ledger.restore(snapshot),
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(path = %file.display(), %error, "unreadable ledger of hosts: it starts anew");
        }
    }
}

// === impl Store ===

impl Store {
    /// Every host that was dialled.
    #[must_use]
    pub fn ledger(&self) -> Snapshot {
        self.disk.faults.metrics().ledger.snapshot()
    }

    /// Writes it again and again, until `token` is cancelled.
    pub(super) async fn write_ledger(&self, token: &CancellationToken) {
        let mut clock = tokio::time::interval(INTERVAL);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while token.run_until_cancelled(clock.tick()).await.is_some() {
            self.write_ledger_now().await;
        }
    }

    /// Writes it if anything is new.
    pub(super) async fn write_ledger_now(&self) {
        let ledger = &self.disk.faults.metrics().ledger;
        if !ledger.take_changed() {
            return;
        }
        let (snapshot, layout) = (ledger.snapshot(), self.disk.layout.clone());
        let written = blocking(move || {
            // Plain data: it always has a JSON form.
            let text = serde_json::to_vec(&snapshot).unwrap_or_default();
            Change::Replace(layout.ledger(), text).apply(&layout)
        });
        if self.disk.faults.noted(written.await).is_err() {
            ledger.mark_changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::Dir;
    use crate::telemetry::ledger::{Dial, Purpose};

    #[test]
    fn what_cannot_be_read_is_an_empty_ledger() {
        let dir = Dir::new();
        let layout = dir.layout();
        let ledger = Ledger::default();
        for text in ["", "{", "[]", r#"{"hosts":[{"host":3}]}"#, "\0\0\0\0"] {
            std::fs::write(layout.ledger(), text).unwrap();
            restore(&layout, &ledger);
            assert_eq!(ledger.snapshot(), Snapshot::default(), "{text:?}");
            assert!(load(&layout.ledger()).is_err(), "{text:?}");
        }
        std::fs::remove_file(layout.ledger()).unwrap();
        assert_eq!(load(&layout.ledger()).unwrap(), None);
    }

    #[tokio::test]
    async fn a_closed_store_has_all_of_it() {
        let dir = Dir::new();
        let store = dir.open();
        let dial = Dial {
            host: "quay.io",
            port: 443,
            owner: "quay.io",
            purpose: Purpose::Endpoint,
        };
        dir.metrics().ledger.row(&dial).asked();
        let known = store.ledger();
        assert_eq!(known.hosts.len(), 1);
        store.close().await.unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(known.clone()));
        let next = Ledger::default();
        restore(&dir.layout(), &next);
        assert_eq!(next.snapshot(), known);
    }
}
