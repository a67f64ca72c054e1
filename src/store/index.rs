//! What is known about the blobs on disk without looking at them: size, whether they are trusted,
//! last use, what a manifest holds. Pure: no I/O, the clock is an argument.
//!
//! The files are the truth; the index adds three things that files cannot tell or not cheaply.
//! *Trust*: the stamp that a file had when its bytes were known to hash. *Order*: a counter that
//! every use advances, so that a clock that jumps changes nothing. *Children*: what a manifest
//! refers to, for `order.rs`, which says who goes first.
//!
//! On disk it is text, least recently used first, one blob a line:
//!
//! ```text
//! portcullis index 1 dirty
//! sha256:<hex> <last use> <last hashed> <inode> <size> <mtime> <ctime> holds <child> <child>
//! sha256:<hex> <last use> <last hashed> -
//! ```
//!
//! `holds` alone says that the blob was looked at and refers to nothing; without it nobody has
//! looked yet, as in files of the versions that knew no children.
//!
//! The word `clean` in the first line says that nothing changed after the index was written.
//! It is overwritten in place, which is why both words have five letters.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::files::{Stamp, unix_now};
use super::gone::{Gone, Reason};
use crate::oci::Digest;

/// A blob opened so recently is not evicted: its next reader is likely on the way.
const IN_USE: Duration = Duration::from_secs(60);

/// The largest blob that may turn out to be a manifest, in bytes; a larger one is never looked at.
pub(super) const LARGEST_MANIFEST: u64 = 4 << 20;

const MAGIC: &str = "portcullis index 1 ";
const CLEAN: &str = "clean";
pub(super) const DIRTY: &str = "dirty";
const HOLDS: &str = "holds";
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
    /// Blobs that may be manifests; some may have gone since.
    unread: Vec<Digest>,
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
    /// What it refers to; None: nobody has looked.
    children: Option<Arc<[Digest]>>,
}

/// What eviction and people are told of a blob.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) turn: u64,
    /// Unix seconds.
    pub(super) used: i64,
    pub(super) trusted: bool,
    /// Held, open, or open a moment ago.
    pub(super) busy: bool,
    pub(super) children: Arc<[Digest]>,
}

/// What came of the wish to evict a blob.
#[derive(Debug)]
pub(super) enum Taken {
    /// It is out of the index; when it was last used, in unix seconds.
    Out {
        used: i64,
    },
    /// It was used, held or replaced in the meantime, or somebody has it open.
    Busy,
    Absent,
}

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) digest: Digest,
    pub(super) used: i64,
    pub(super) hashed: i64,
    pub(super) stamp: Option<Stamp>,
    pub(super) children: Option<Arc<[Digest]>>,
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
            children: line.children,
        };
        self.insert_entry(line.digest, entry);
    }

    /// A blob whose bytes were hashed on their way to the disk. What it refers to is known again
    /// after [`Index::refers`].
    pub(super) fn insert(&mut self, digest: Digest, stamp: Stamp, file: &Arc<File>, now: i64) {
        let entry = Entry {
            size: stamp.size,
            stamp: Some(stamp),
            file: Arc::downgrade(file),
            used: now,
            hashed: now,
            turn: 0,
            opened: None,
            children: None,
        };
        self.insert_entry(digest, entry);
    }

    fn insert_entry(&mut self, digest: Digest, mut entry: Entry) {
        self.turn += 1;
        entry.turn = self.turn;
        self.size += entry.size;
        if entry.children.is_none() {
            if entry.size <= LARGEST_MANIFEST {
                self.unread.push(digest);
            } else {
                entry.children = Some(Arc::default());
            }
        }
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

    /// Takes a blob out, if it still is as it was at `turn` and nobody needs it.
    pub(super) fn take_idle(&mut self, digest: &Digest, turn: u64, now: Instant) -> Taken {
        let Some(entry) = self.entries.get(digest) else {
            return Taken::Absent;
        };
        if entry.turn != turn || entry.in_use(now) || self.held.contains_key(digest) {
            return Taken::Busy;
        }
        let used = entry.used;
        self.remove(digest);
        Taken::Out { used }
    }

    /// All blobs, in no order.
    pub(super) fn known(&self, now: Instant) -> Vec<Known> {
        let known = self.entries.iter().map(|(digest, entry)| Known {
            digest: *digest,
            size: entry.size,
            turn: entry.turn,
            used: entry.used,
            trusted: entry.stamp.is_some(),
            busy: entry.in_use(now) || self.held.contains_key(digest),
            children: entry.children.clone().unwrap_or_default(),
        });
        known.collect()
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

    /// Why it is held, once for each who does.
    pub(super) fn holds(&self, digest: &Digest) -> &[&'static str] {
        self.held.get(digest).map_or(&[], Vec::as_slice)
    }

    /// The blob refers to `children`. A manifest that has just come uses all of them: who thought
    /// that one of them may go has to think again.
    pub(super) fn refers(&mut self, digest: &Digest, children: Arc<[Digest]>) {
        for child in children.iter() {
            if let Some(entry) = self.entries.get_mut(child) {
                self.turn += 1;
                entry.turn = self.turn;
            }
        }
        self.learn(digest, children);
    }

    /// The same of a blob that has been here for a while: nobody has used anything.
    pub(super) fn learn(&mut self, digest: &Digest, children: Arc<[Digest]>) {
        if let Some(entry) = self.entries.get_mut(digest) {
            entry.children = Some(children);
            self.changed = true;
        }
    }

    /// Some blob that may be a manifest and that nobody has looked into.
    pub(super) fn next_unread(&mut self) -> Option<Digest> {
        loop {
            let Some(digest) = self.unread.pop() else {
                // After a start it was as long as the store is large.
                self.unread = Vec::new();
                return None;
            };
            let unread = self
                .entries
                .get(&digest)
                .map(|entry| entry.children.is_none());
            if unread == Some(true) {
                return Some(digest);
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
                let line = Line {
                    digest,
                    used: entry.used,
                    hashed: entry.hashed,
                    stamp: entry.stamp,
                    children: entry.children.clone(),
                };
                (entry.turn, line)
            })
            .collect();
        lines.sort_unstable_by_key(|(turn, _)| *turn);
        lines.into_iter().map(|(_, line)| line).collect()
    }
}

// === impl Entry ===

impl Entry {
    /// What is said of it when it leaves now.
    pub(super) fn gone(&self, digest: Digest, reason: Reason) -> Gone {
        Gone {
            digest,
            at: unix_now(),
            size: self.size,
            used: self.used,
            reason,
        }
    }

    /// Somebody has it open, or had a moment ago.
    pub(super) fn in_use(&self, now: Instant) -> bool {
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
    for line in lines {
        let _ = write!(text, "{} {} {} ", line.digest, line.used, line.hashed);
        let _ = match line.stamp {
            Some(stamp) => write!(text, "{stamp}"),
            None => write!(text, "-"),
        };
        if let Some(children) = &line.children {
            let _ = write!(text, " {HOLDS}");
            for child in children.iter() {
                let _ = write!(text, " {child}");
            }
        }
        text.push('\n');
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
        let (line, children) = match line.split_once(HOLDS) {
            None => (line, None),
            Some((line, children)) => {
                let children = children.split_ascii_whitespace().map(str::parse);
                (
                    line.trim_end(),
                    Some(children.collect::<Result<_, _>>().ok()?),
                )
            }
        };
        let mut words = line.splitn(4, ' ');
        Some(Line {
            digest: words.next()?.parse().ok()?,
            used: words.next()?.parse().ok()?,
            hashed: words.next()?.parse().ok()?,
            stamp: match words.next()? {
                "-" => None,
                stamp => Some(stamp.parse().ok()?),
            },
            children,
        })
    }
}

#[cfg(test)]
mod tests;
