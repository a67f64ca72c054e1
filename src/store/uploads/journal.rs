//! `v1/uploads`: the names that wait, so that a restart or a kill forgets none.
//!
//! One name a line, as [`Item`] writes it; lines are only added. Those of what has been published
//! since stay until nothing waits, or until they are most of the file: publishing something twice
//! does no harm. A torn line, and one that makes no sense, is skipped.
//!
//! No fsync: a power loss may take names, which costs another fetch where they are missed.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader};

use super::{Item, MOST};
use crate::store::StoreError;
use crate::store::files::{Change, found};
use crate::store::layout::Layout;

/// Lines that are out of date for which it is not worth writing the file anew.
const SOME: usize = 1000;

#[derive(Debug)]
pub(super) struct Journal {
    /// In the file.
    lines: usize,
    /// Written, but not waiting yet: their blobs are being committed.
    ahead: Vec<Item>,
}

impl Journal {
    /// Blocks. Gives every name once, in the order of the file.
    pub(super) fn open(layout: &Layout) -> Result<(Self, Vec<Item>), StoreError> {
        let path = layout.uploads();
        let what = || format!("read {}", path.display());
        let (mut lines, mut items, mut seen) = (0, Vec::new(), HashSet::new());
        let file = found(File::open(&path)).map_err(StoreError::io(what()))?;
        if let Some(file) = file {
            let (mut file, mut line) = (BufReader::new(file), Vec::new());
            while file
                .read_until(b'\n', &mut line)
                .map_err(StoreError::io(what()))?
                > 0
            {
                lines += 1;
                // A last line without its end was torn by a crash.
                let text = line.strip_suffix(b"\n").unwrap_or_default();
                let item = str::from_utf8(text).ok().and_then(|text| text.parse().ok());
                if let Some(item) = item
                    && items.len() < MOST
                    && seen.insert(Item::clone(&item))
                {
                    items.push(item);
                }
                line.clear();
            }
        }
        let ahead = Vec::new();
        Ok((Journal { lines, ahead }, items))
    }

    /// Whether [`Journal::replace`] is worth it while so many names wait.
    pub(super) fn is_wasteful(&self, waiting: usize) -> bool {
        let waiting = waiting + self.ahead.len();
        self.lines > 0 && (waiting == 0 || self.lines > 2 * waiting + SOME)
    }

    pub(super) fn append(&mut self, layout: &Layout, items: &[Item]) -> Result<(), StoreError> {
        if items.is_empty() {
            return Ok(());
        }
        self.lines += items.len();
        Change::Append(layout.uploads(), text(items)).apply(layout)
    }

    pub(super) fn replace(
        &mut self,
        layout: &Layout,
        mut items: Vec<Item>,
    ) -> Result<(), StoreError> {
        items.extend_from_slice(&self.ahead);
        Change::Replace(layout.uploads(), text(&items).into_bytes()).apply(layout)?;
        self.lines = items.len();
        Ok(())
    }

    /// Writes a name that will wait in a moment. [`Journal::caught_up`] must follow.
    pub(super) fn write_ahead(&mut self, layout: &Layout, item: &Item) -> Result<(), StoreError> {
        self.ahead.push(item.clone());
        self.append(layout, std::slice::from_ref(item))
    }

    /// The name waits now, or never will.
    pub(super) fn caught_up(&mut self, item: &Item) {
        if let Some(position) = self.ahead.iter().position(|ahead| ahead == item) {
            self.ahead.swap_remove(position);
        }
    }
}

fn text(items: &[Item]) -> String {
    let mut text = String::new();
    for item in items {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{item}");
    }
    text
}
