//! What is known about the blobs on disk without looking at them: size, whether they are trusted,
//! last use. Pure: no I/O, the clock is an argument.
//!
//! The files are the truth; the index adds two things that files cannot hold. *Trust*: the stamp
//! that a file had when its bytes were known to hash. *Order*: blobs are evicted by turn, a
//! counter that every use advances, so that a clock that jumps changes nothing.
//!
//! On disk it is text, least recently used first, one blob a line:
//!
//! ```text
//! portcullis index 1 dirty
//! sha256:<hex> <last use> <last hashed> <inode> <size> <mtime> <ctime>
//! sha256:<hex> <last use> <last hashed> -
//! ```
//!
//! The word `clean` in the first line says that nothing changed after the index was written.
//! It is overwritten in place, which is why both words have five letters.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::files::Stamp;
use crate::oci::Digest;

/// A blob opened so recently is not evicted: its next reader is likely on the way.
const IN_USE: Duration = Duration::from_secs(60);

const MAGIC: &str = "portcullis index 1 ";
const CLEAN: &str = "clean";
pub(super) const DIRTY: &str = "dirty";
/// Where [`DIRTY`] is written over [`CLEAN`].
pub(super) const MARK_OFFSET: u64 = MAGIC.len() as u64;

#[derive(Debug, Default)]
pub(super) struct Index {
    entries: HashMap<Digest, Entry>,
    /// Sum of all sizes, in bytes.
    size: u64,
    turn: u64,
    changed: bool,
    /// What must not go for the time being, and why, once for each who wants it.
    held: HashMap<Digest, Vec<&'static str>>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) size: u64,
    /// Of the file whose bytes are known to hash; None: they must be hashed before they are served.
    pub(super) stamp: Option<Stamp>,
    /// The file, while somebody has it open.
    pub(super) file: Weak<File>,
    /// Unix seconds; for people and for the next start.
    used: i64,
    /// Unix seconds; when the bytes were last known to hash.
    hashed: i64,
    turn: u64,
    opened: Option<Instant>,
}

/// One line of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) digest: Digest,
    pub(super) used: i64,
    pub(super) hashed: i64,
    pub(super) stamp: Option<Stamp>,
}

/// What the file said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Saved {
    /// The last run ended in good order: the stamps may be trusted.
    pub(super) clean: bool,
    pub(super) lines: Vec<Line>,
}

// === impl Index ===

impl Index {
    pub(super) fn get(&self, digest: &Digest) -> Option<&Entry> {
        self.entries.get(digest)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of all blobs.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// A blob found by a start. Later calls are used more recently.
    pub(super) fn restore(&mut self, line: Line, size: u64) {
        let entry = Entry {
            size,
            stamp: line.stamp,
            file: Weak::new(),
            used: line.used,
            hashed: line.hashed,
            turn: 0,
            opened: None,
        };
        self.insert_entry(line.digest, entry);
    }

    /// A blob whose bytes were hashed on their way to the disk.
    pub(super) fn insert(&mut self, digest: Digest, stamp: Stamp, file: &Arc<File>, now: i64) {
        let entry = Entry {
            size: stamp.size,
            stamp: Some(stamp),
            file: Arc::downgrade(file),
            used: now,
            hashed: now,
            turn: 0,
            opened: None,
        };
        self.insert_entry(digest, entry);
    }

    fn insert_entry(&mut self, digest: Digest, mut entry: Entry) {
        self.turn += 1;
        entry.turn = self.turn;
        self.size += entry.size;
        if let Some(replaced) = self.entries.insert(digest, entry) {
            self.size -= replaced.size;
        }
        self.changed = true;
    }

    pub(super) fn remove(&mut self, digest: &Digest) -> Option<Entry> {
        let entry = self.entries.remove(digest)?;
        self.size -= entry.size;
        self.changed = true;
        Some(entry)
    }

    pub(super) fn touch(&mut self, digest: &Digest, now: i64) {
        if let Some(entry) = self.entries.get_mut(digest) {
            self.turn += 1;
            entry.turn = self.turn;
            entry.used = now;
            self.changed = true;
        }
    }

    /// Somebody reads the blob from `file`.
    pub(super) fn opened(&mut self, digest: &Digest, file: &Arc<File>, at: Instant, now: i64) {
        self.touch(digest, now);
        if let Some(entry) = self.entries.get_mut(digest) {
            entry.opened = Some(at);
            entry.file = Arc::downgrade(file);
        }
    }

    /// The file with this stamp was hashed and is right.
    pub(super) fn confirm(&mut self, digest: &Digest, stamp: Stamp, now: i64) {
        if let Some(entry) = self.entries.get_mut(digest) {
            self.size = self.size - entry.size + stamp.size;
            entry.size = stamp.size;
            entry.stamp = Some(stamp);
            entry.hashed = now;
            self.changed = true;
        }
    }

    /// The blob could not be scrubbed now; it is due again as if it had been.
    pub(super) fn put_off(&mut self, digest: &Digest, now: i64) {
        if let Some(entry) = self.entries.get_mut(digest) {
            entry.hashed = now;
        }
    }

    /// Takes out least recently used blobs until `bytes` are gone or nothing idle is left.
    pub(super) fn evict(&mut self, bytes: u64, now: Instant) -> Vec<(Digest, u64)> {
        let mut idle: Vec<(u64, Digest, u64)> = self
            .entries
            .iter()
            .filter(|(digest, entry)| !entry.in_use(now) && !self.held.contains_key(*digest))
            .map(|(digest, entry)| (entry.turn, *digest, entry.size))
            .collect();
        idle.sort_unstable_by_key(|(turn, ..)| *turn);
        let mut freed = 0;
        let mut evicted = Vec::new();
        for (_, digest, size) in idle {
            if freed >= bytes {
                break;
            }
            freed += size;
            self.remove(&digest);
            evicted.push((digest, size));
        }
        evicted
    }

    /// The blob is kept until as many calls of [`Index::release`] have said the same.
    pub(super) fn hold(&mut self, digest: Digest, why: &'static str) {
        self.held.entry(digest).or_default().push(why);
    }

    pub(super) fn release(&mut self, digest: &Digest, why: &'static str) {
        if let Some(reasons) = self.held.get_mut(digest) {
            if let Some(position) = reasons.iter().position(|reason| *reason == why) {
                reasons.swap_remove(position);
            }
            if reasons.is_empty() {
                self.held.remove(digest);
            }
        }
    }

    /// At most `limit` blobs that were last hashed at or before `before`, longest ago first.
    pub(super) fn due(&self, before: i64, limit: usize) -> Vec<Digest> {
        let mut due: Vec<(i64, Digest)> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.hashed <= before)
            .map(|(digest, entry)| (entry.hashed, *digest))
            .collect();
        due.sort_unstable();
        due.truncate(limit);
        due.into_iter().map(|(_, digest)| digest).collect()
    }

    /// What [`encode`] writes, if it differs from what was taken last.
    pub(super) fn take_changes(&mut self) -> Option<Vec<Line>> {
        std::mem::take(&mut self.changed).then(|| self.lines())
    }

    pub(super) fn lines(&self) -> Vec<Line> {
        let mut lines: Vec<(u64, Line)> = self
            .entries
            .iter()
            .map(|(&digest, entry)| {
                let Entry {
                    used,
                    hashed,
                    stamp,
                    ..
                } = *entry;
                (
                    entry.turn,
                    Line {
                        digest,
                        used,
                        hashed,
                        stamp,
                    },
                )
            })
            .collect();
        lines.sort_unstable_by_key(|(turn, _)| *turn);
        lines.into_iter().map(|(_, line)| line).collect()
    }
}

// === impl Entry ===

impl Entry {
    fn in_use(&self, now: Instant) -> bool {
        self.file.strong_count() > 0
            || self
                .opened
                .is_some_and(|opened| now.duration_since(opened) < IN_USE)
    }
}

// === impl Saved ===

/// The text of the file.
pub(super) fn encode(clean: bool, lines: &[Line]) -> String {
    let mut text = String::with_capacity(64 + lines.len() * 160);
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{MAGIC}{}", if clean { CLEAN } else { DIRTY });
    for Line {
        digest,
        used,
        hashed,
        stamp,
    } in lines
    {
        let _ = match stamp {
            Some(stamp) => writeln!(text, "{digest} {used} {hashed} {stamp}"),
            None => writeln!(text, "{digest} {used} {hashed} -"),
        };
    }
    text
}

impl Saved {
    /// Reads the file; None: this is no index. A line that makes no sense is skipped, which costs
    /// no more than hashing that blob again.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let clean = match lines.next()?.strip_prefix(MAGIC)? {
            CLEAN => true,
            DIRTY => false,
            _ => return None,
        };
        Some(Saved {
            clean,
            lines: lines.filter_map(Line::parse).collect(),
        })
    }
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(4, ' ');
        Some(Line {
            digest: words.next()?.parse().ok()?,
            used: words.next()?.parse().ok()?,
            hashed: words.next()?.parse().ok()?,
            stamp: match words.next()? {
                "-" => None,
                stamp => Some(stamp.parse().ok()?),
            },
        })
    }
}

#[cfg(test)]
mod tests;
