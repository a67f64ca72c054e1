//! What this replica answers with, written down in the shared store once an hour, so that no
//! replica prunes what another uses.
//!
//! A note is a JSON array of the digests of manifests, `v1/used/<day>-<replica>`; days are UTC's.
//! Manifests are enough: they lead to the rest.

use std::collections::HashSet;
use std::sync::Mutex;

use aws_lc_rs::rand;
use bytes::Bytes;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::files::lock;
use super::object::{Name, Shared, SharedError};
use crate::oci::Digest;

/// Digests in one note, and in memory before they are written; 2 MiB.
const MOST: usize = 50_000;

/// See the module.
#[derive(Debug)]
pub struct Used {
    notes: Mutex<Notes>,
    /// No two processes have the same, so that nobody overwrites another's note.
    replica: String,
}

#[derive(Debug, Default)]
struct Notes {
    day: Date,
    /// Notes of this day that are full.
    full: usize,
    /// In the note that is not full.
    written: HashSet<Digest>,
    new: HashSet<Digest>,
}

impl Default for Used {
    fn default() -> Self {
        let mut id = [0; 8];
        // Without randomness no TLS would work either; then the process's number has to do.
        let replica = match rand::fill(&mut id) {
            Ok(()) => format!("{:016x}", u64::from_be_bytes(id)),
            Err(_) => std::process::id().to_string(),
        };
        Used {
            notes: Mutex::default(),
            replica,
        }
    }
}

impl Used {
    /// The manifest was in an answer just now.
    pub fn note(&self, manifest: &Digest) {
        let mut notes = lock(&self.notes);
        // More than that in an hour is nobody's use of images.
        if notes.new.len() < MOST && !notes.written.contains(manifest) {
            notes.new.insert(*manifest);
        }
    }

    /// Writes down what was noted since the last time. What cannot be written waits for the next.
    pub async fn write(&self, shared: &Shared) -> Result<(), SharedError> {
        let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
        let Some((name, bytes, new)) = self.due(today) else {
            return Ok(());
        };
        shared.overwrite(Name::Used(&name), bytes).await?;
        self.wrote(today, new);
        Ok(())
    }

    /// The note to write, and what is new in it.
    fn due(&self, today: Date) -> Option<(String, Bytes, HashSet<Digest>)> {
        let mut notes = lock(&self.notes);
        if notes.new.is_empty() {
            return None;
        }
        if notes.day != today {
            *notes = Notes {
                day: today,
                new: std::mem::take(&mut notes.new),
                ..Notes::default()
            };
        } else if notes.written.len() + notes.new.len() > MOST {
            notes.full += 1;
            notes.written.clear();
        }
        let all: Vec<&Digest> = notes.written.iter().chain(&notes.new).collect();
        let bytes = serde_json::to_vec(&all).unwrap_or_default().into();
        let name = match notes.full {
            0 => format!("{today}-{}", self.replica),
            full => format!("{today}-{}-{full}", self.replica),
        };
        Some((name, bytes, notes.new.clone()))
    }

    fn wrote(&self, day: Date, new: HashSet<Digest>) {
        let mut notes = lock(&self.notes);
        notes.new.retain(|digest| !new.contains(digest));
        if notes.day == day {
            notes.written.extend(new);
        }
    }
}

/// Whether a note of this name may say what was used since then (unix seconds).
pub(super) fn is_since(name: &str, then: i64) -> bool {
    let day = name.get(..10).and_then(|day| day.parse::<Date>().ok());
    let then = Timestamp::from_second(then).ok();
    match (day, then) {
        (Some(day), Some(then)) => day >= then.to_zoned(TimeZone::UTC).date(),
        // What is not understood counts.
        _ => true,
    }
}

/// The digests of a note.
pub(super) fn read(bytes: &[u8]) -> Option<Vec<Digest>> {
    serde_json::from_slice(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(note: &Bytes) -> HashSet<Digest> {
        read(note).unwrap().into_iter().collect()
    }

    #[test]
    fn a_day_has_one_note_and_the_next_day_another() {
        let used = Used::default();
        let (a, b) = (Digest::sha256(b"a"), Digest::sha256(b"b"));
        let day = |n| Date::constant(2026, 11, n);
        assert!(used.due(day(1)).is_none());
        used.note(&a);
        let (first, bytes, new) = used.due(day(1)).unwrap();
        assert!(first.starts_with("2026-11-01-"), "{first}");
        assert_eq!(digests(&bytes), HashSet::from([a]));
        // Not written: it is due again.
        used.note(&b);
        assert_eq!(used.due(day(1)).unwrap().0, first);
        used.wrote(day(1), new);
        let (_, bytes, new) = used.due(day(1)).unwrap();
        assert_eq!(digests(&bytes), HashSet::from([a, b]));
        used.wrote(day(1), new);
        used.note(&a);
        assert!(used.due(day(1)).is_none(), "it is written already");

        // What was noted before midnight and not written counts for the day after.
        used.note(&Digest::sha256(b"c"));
        let (second, bytes, new) = used.due(day(2)).unwrap();
        assert!(second.starts_with("2026-11-02-"), "{second}");
        assert_eq!(digests(&bytes), HashSet::from([Digest::sha256(b"c")]));
        used.wrote(day(2), new);
        used.note(&a);
        assert!(digests(&used.due(day(2)).unwrap().1).contains(&a));
    }

    #[test]
    fn a_full_note_is_followed_by_another() {
        let used = Used::default();
        let day = Date::constant(2026, 11, 1);
        for n in 0..MOST {
            used.note(&Digest::sha256(&n.to_be_bytes()));
        }
        let (first, _, new) = used.due(day).unwrap();
        used.wrote(day, new);
        let more = Digest::sha256(b"more");
        used.note(&more);
        let (second, bytes, _) = used.due(day).unwrap();
        assert_ne!(first, second);
        assert_eq!(digests(&bytes), HashSet::from([more]));
    }

    #[test]
    fn a_note_counts_for_its_whole_day() {
        let noon: Timestamp = "2026-11-02T12:00:00Z".parse().unwrap();
        for (name, counts) in [
            ("2026-11-01-ab", false),
            ("2026-11-02-ab", true),
            ("2026-11-03-ab-1", true),
            ("strange", true),
        ] {
            assert_eq!(is_since(name, noon.as_second()), counts, "{name}");
        }
    }
}
