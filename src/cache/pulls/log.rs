//! The entries by target, which of them have to go, and their lines.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::record::{Asker, MOST_CLIENTS, Pull, Recorded, Verdict};
use crate::oci::{Digest, Reference, Repository};
use crate::policy::{Client, Target};

/// Targets on record; those that were asked for longest ago go first.
const MOST_TARGETS: usize = 10_000;
/// Of which so many may be refused ones: any client can make up names that are.
const MOST_REFUSED: usize = MOST_TARGETS / 4;
/// Targets that go at once, so that the record is not searched for each.
const GO_AT_ONCE: usize = MOST_TARGETS / 64;
/// Targets that wait for their lines; where the disk does not take them for long, all are written.
const MOST_CHANGED: usize = 2 * MOST_TARGETS;
/// Lines that are made under one lock.
const AT_ONCE: usize = 32;
/// Lines that are out of date for which it is not worth writing the file anew.
const SOME: usize = 1000;

#[derive(Debug, Default)]
pub(super) struct Log {
    repositories: HashMap<Repository, HashMap<Reference, Row>>,
    pub(super) targets: usize,
    pub(super) forgotten: u64,
    /// As the file has it.
    forgotten_written: u64,
    /// Those whose lines have to be written.
    changed: Vec<Target>,
    /// Lines of the file.
    lines: usize,
    /// The file is not what it should be: write all of it.
    pub(super) anew: bool,
}

#[derive(Debug)]
struct Row {
    pull: Pull,
    changed: bool,
}

/// A line of the file that is no [`Pull`].
#[derive(Debug, Serialize, Deserialize)]
struct Forgotten {
    forgotten: u64,
}

// === impl Log ===

impl Log {
    pub(super) fn read(text: &str, now: i64) -> Self {
        let mut log = Log::default();
        for line in text.lines() {
            log.lines += 1;
            // What is neither was torn by a crash, or is of another version.
            if let Ok(pull) = serde_json::from_str(line) {
                log.restore(pull, now);
            } else if let Ok(Forgotten { forgotten }) = serde_json::from_str(line) {
                log.forgotten = forgotten;
            }
        }
        let forgotten = log.forgotten;
        log.make_room(MOST_TARGETS);
        // What goes now went before, and its lines are still there.
        log.forgotten = forgotten;
        log.forgotten_written = forgotten;
        log
    }

    fn restore(&mut self, mut pull: Pull, now: i64) {
        let Some(reference) = pull.image.reference.clone() else {
            return;
        };
        // A clock that was wrong must not keep a target for ever.
        pull.last = pull.last.min(now);
        pull.clients.truncate(MOST_CLIENTS);
        let rows = self.repositories.entry(pull.image.repository.clone());
        let row = Row {
            pull,
            changed: false,
        };
        let before = rows.or_default().insert(reference, row);
        self.targets += usize::from(before.is_none());
    }

    pub(super) fn note(
        &mut self,
        client: &Client,
        repository: &Repository,
        reference: &Reference,
        verdict: Verdict,
        digest: Option<Digest>,
        now: i64,
    ) {
        let rows = self.repositories.get_mut(repository);
        if let Some(row) = rows.and_then(|rows| rows.get_mut(reference)) {
            if row.pull.note(client, verdict, digest, now) && !row.changed {
                row.changed = true;
                let image = row.pull.image.clone();
                self.has_changed(image);
            }
            return;
        }
        if self.targets >= MOST_TARGETS {
            self.make_room(MOST_TARGETS - GO_AT_ONCE);
        }
        let image = Target {
            repository: repository.clone(),
            reference: Some(reference.clone()),
        };
        let mut pull = Pull {
            image: image.clone(),
            digest: None,
            count: 0,
            first: now,
            last: now,
            clients: Vec::new(),
        };
        pull.note(client, verdict, digest, now);
        let row = Row {
            pull,
            changed: true,
        };
        let rows = self.repositories.entry(repository.clone()).or_default();
        rows.insert(reference.clone(), row);
        self.targets += 1;
        self.has_changed(image);
    }

    fn has_changed(&mut self, image: Target) {
        if self.changed.len() < MOST_CHANGED {
            self.changed.push(image);
        } else {
            self.anew = true;
        }
    }

    pub(super) fn asked_lately(
        &self,
        client: &Client,
        repository: &Repository,
        reference: &Reference,
        now: i64,
    ) -> bool {
        let rows = self.repositories.get(repository);
        let row = rows.and_then(|rows| rows.get(reference));
        row.is_some_and(|row| row.pull.was_asked_lately_by(client, now))
    }

    /// Lets those go that were asked for longest ago, until `most` are left: refused ones first,
    /// while there are too many of them.
    fn make_room(&mut self, most: usize) {
        let Some(mut surplus) = self.targets.checked_sub(most).filter(|n| *n > 0) else {
            return;
        };
        let rows = self.repositories.values().flat_map(HashMap::values);
        let (mut refused, mut served): (Vec<&Pull>, Vec<&Pull>) = rows
            .map(|row| &row.pull)
            .partition(|pull| !pull.clients.iter().any(Asker::was_served));
        let mut gone: Vec<Target> = Vec::with_capacity(surplus);
        for (pulls, spared) in [(&mut refused, MOST_REFUSED), (&mut served, 0)] {
            let count = surplus.min(pulls.len().saturating_sub(spared));
            pulls.sort_unstable_by_key(|pull| pull.last);
            gone.extend(pulls.iter().take(count).map(|pull| pull.image.clone()));
            surplus -= count;
        }
        for Target {
            repository,
            reference,
        } in gone
        {
            if let Some(rows) = self.repositories.get_mut(&repository)
                && let Some(reference) = reference
                && rows.remove(&reference).is_some()
            {
                self.targets -= 1;
                self.forgotten += 1;
                if rows.is_empty() {
                    self.repositories.remove(&repository);
                }
            }
        }
    }

    pub(super) fn list(&self) -> Recorded {
        let rows = self.repositories.values().flat_map(HashMap::values);
        let mut pulls: Vec<Pull> = rows.map(|row| row.pull.clone()).collect();
        pulls.sort_by_cached_key(|pull| pull.image.to_string());
        Recorded {
            pulls,
            forgotten: self.forgotten,
        }
    }

    /// Whether all lines are to be written, in place of those in the file. They have all changed
    /// then.
    pub(super) fn starts_anew(&mut self) -> bool {
        let anew = self.anew || self.lines > 2 * self.targets + SOME;
        if anew {
            self.changed.clear();
            for row in self.repositories.values_mut().flat_map(HashMap::values_mut) {
                row.changed = true;
                self.changed.push(row.pull.image.clone());
            }
            self.lines = 0;
            self.forgotten_written = 0;
            self.anew = false;
        }
        anew
    }

    /// The lines of some that have changed. None of them are left when there are no lines.
    pub(super) fn take_changed(&mut self) -> String {
        let mut lines = String::new();
        if self.forgotten != self.forgotten_written {
            let forgotten = self.forgotten;
            write_line(&mut lines, &Forgotten { forgotten });
            self.lines += 1;
            self.forgotten_written = forgotten;
        }
        let from = self.changed.len().saturating_sub(AT_ONCE);
        for image in self.changed.split_off(from) {
            let rows = self.repositories.get_mut(&image.repository);
            let row = rows.zip(image.reference.as_ref());
            // One that had to go meanwhile has no line.
            if let Some(row) = row.and_then(|(rows, reference)| rows.get_mut(reference))
                && std::mem::take(&mut row.changed)
            {
                write_line(&mut lines, &row.pull);
                self.lines += 1;
            }
        }
        lines
    }
}

fn write_line(lines: &mut String, line: &impl Serialize) {
    // Plain data always has a JSON form, and writing to a String cannot fail.
    if let Ok(json) = serde_json::to_string(line) {
        let _ = writeln!(lines, "{json}");
    }
}

#[cfg(test)]
mod tests;
