//! `v1/pulls`: who asked for which image, as lines that the cache writes and understands.
//!
//! Lines are only added; the last about an image counts. Now and then the file is written anew
//! without those that are out of date. No fsync: a power loss may take the last of them.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::files::{Change, blocking, found};
use super::layout::Layout;
use super::open::take_lock;
use super::{Store, StoreError};

/// More than a full record takes with as many lines that are out of date. Bytes.
const LARGEST: u64 = 128 << 20;

/// The lines of a store that no process has. Blocks, and has the store meanwhile; nothing else of it
/// is looked at or changed.
///
/// # Errors
/// [`StoreError::Locked`] when another process has it; `Io` when it cannot be read.
pub fn read(path: &Path) -> Result<String, StoreError> {
    let layout = Layout::new(path);
    let _lock = take_lock(&layout)?;
    lines(&layout)
}

impl Store {
    /// What the file says; nothing, when there is none.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn read_pulls(&self) -> Result<String, StoreError> {
        let layout = self.disk.layout.clone();
        let read = blocking(move || lines(&layout)).await;
        self.disk.faults.noted(read)
    }

    /// Adds whole lines.
    ///
    /// # Errors
    /// They are not written, or not all of them.
    pub async fn append_pulls(&self, lines: String) -> Result<(), StoreError> {
        let layout = self.disk.layout.clone();
        self.change(Change::Append(layout.pulls(), lines)).await
    }

    /// Has these lines in place of all.
    ///
    /// # Errors
    /// The file is what it was.
    pub async fn replace_pulls(&self, lines: String) -> Result<(), StoreError> {
        let layout = self.disk.layout.clone();
        let change = Change::Replace(layout.pulls(), lines.into_bytes());
        self.change(change).await
    }

    async fn change(&self, change: Change) -> Result<(), StoreError> {
        let layout = self.disk.layout.clone();
        let changed = blocking(move || change.apply(&layout)).await;
        self.disk.faults.noted(changed)
    }
}

fn lines(layout: &Layout) -> Result<String, StoreError> {
    let path = layout.pulls();
    let read = || {
        let mut bytes = Vec::new();
        if let Some(file) = found(File::open(&path))? {
            file.take(LARGEST).read_to_end(&mut bytes)?;
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().map_err(StoreError::io(format!("read {}", path.display())))
}
