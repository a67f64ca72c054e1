//! What left the store and why, so that a miss can be explained: the last 10,000 blobs.
//!
//! `v1/gone` has a line for each; the file is added to, and written anew when half of it is out
//! of date. Losing its end in a crash loses explanations, nothing else.
//!
//! ```text
//! <when> <digest> <size> <last use> limit <bytes used> <limit>
//! <when> <digest> <size> <last use> full|wrong|lost|purged
//! ```

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::io;
use std::str::FromStr;
use std::sync::Mutex;

use super::StoreError;
use super::files::{Change, Faults, found, lock};
use super::layout::Layout;
use crate::oci::Digest;

/// How many are remembered; each takes about 150 bytes of memory.
const MOST: usize = 10_000;

/// A blob that was here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Gone {
    pub digest: Digest,
    /// When it went, in unix seconds.
    pub at: i64,
    /// In bytes.
    pub size: u64,
    /// When it was last used, in unix seconds.
    pub used: i64,
    pub reason: Reason,
}

/// Why a blob went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Reason {
    /// `used` bytes were kept, and `limit` is `store.max_size`.
    Limit { used: u64, limit: u64 },
    /// Something else needed room and the file system had none left.
    Full,
    /// Its bytes did not hash; they are in quarantine for a day.
    Wrong,
    /// The disk could not make it durable.
    Lost,
    /// Somebody asked for it.
    Purged,
}

/// The memory and its file.
#[derive(Debug)]
pub(super) struct Departures {
    layout: Layout,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Newest last.
    recent: VecDeque<Gone>,
    /// Lines in the file.
    lines: usize,
}

// === impl Departures ===

impl Departures {
    /// Reads the file; without it there are no explanations, and nothing else is wrong. Blocks.
    pub(super) fn load(layout: &Layout, faults: &Faults) -> Self {
        let path = layout.gone();
        let what = format!("read {}", path.display());
        let bytes = found(std::fs::read(&path)).map_err(StoreError::io(what));
        let bytes = faults.noted(bytes).ok().flatten().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let mut state = State::default();
        for line in text.lines() {
            state.lines += 1;
            // A line that makes no sense was torn by a crash.
            state.recent.extend(line.parse::<Gone>());
        }
        state.trim();
        Departures {
            layout: layout.clone(),
            state: Mutex::new(state),
        }
    }

    /// Remembers and writes. Blocks.
    pub(super) fn note(&self, gone: Vec<Gone>) -> Result<(), StoreError> {
        if gone.is_empty() {
            return Ok(());
        }
        let mut state = lock(&self.state);
        state.lines += gone.len();
        let lines = text(&gone);
        state.recent.extend(gone);
        state.trim();
        // Under the lock, so that an older state never replaces a newer one.
        let path = self.layout.gone();
        let change = if state.lines > 2 * MOST {
            state.lines = state.recent.len();
            Change::Replace(path, text(&state.recent).into_bytes())
        } else {
            Change::Append(path, lines)
        };
        change.apply(&self.layout)
    }

    /// Every time that the blob went, as far as is remembered, newest first.
    pub(super) fn of(&self, digest: &Digest) -> Vec<Gone> {
        let state = lock(&self.state);
        let of_it = state
            .recent
            .iter()
            .rev()
            .filter(|gone| gone.digest == *digest);
        of_it.copied().collect()
    }
}

fn text<'a>(gone: impl IntoIterator<Item = &'a Gone>) -> String {
    let mut text = String::new();
    for gone in gone {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{gone}");
    }
    text
}

impl State {
    fn trim(&mut self) {
        let surplus = self.recent.len().saturating_sub(MOST);
        self.recent.drain(..surplus);
    }
}

// === impl Gone ===

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gone {
            digest,
            at,
            size,
            used,
            reason,
        } = self;
        write!(f, "{at} {digest} {size} {used} ")?;
        match reason {
            Reason::Limit { used, limit } => write!(f, "limit {used} {limit}"),
            Reason::Full => f.write_str("full"),
            Reason::Wrong => f.write_str("wrong"),
            Reason::Lost => f.write_str("lost"),
            Reason::Purged => f.write_str("purged"),
        }
    }
}

impl FromStr for Gone {
    type Err = io::Error;

    fn from_str(line: &str) -> io::Result<Self> {
        let mut words = line.split(' ');
        let mut parse = || {
            Some(Gone {
                at: words.next()?.parse().ok()?,
                digest: words.next()?.parse().ok()?,
                size: words.next()?.parse().ok()?,
                used: words.next()?.parse().ok()?,
                reason: match words.next()? {
                    "limit" => Reason::Limit {
                        used: words.next()?.parse().ok()?,
                        limit: words.next()?.parse().ok()?,
                    },
                    "full" => Reason::Full,
                    "wrong" => Reason::Wrong,
                    "lost" => Reason::Lost,
                    "purged" => Reason::Purged,
                    _ => return None,
                },
            })
        };
        parse().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Dir;
    use super::*;

    fn gone(number: u64, reason: Reason) -> Gone {
        Gone {
            digest: Digest::sha256(&number.to_le_bytes()),
            at: 7,
            size: number,
            used: -3,
            reason,
        }
    }

    #[test]
    fn lines_round_trip() {
        for reason in [
            Reason::Limit { used: 5, limit: 4 },
            Reason::Full,
            Reason::Wrong,
            Reason::Lost,
            Reason::Purged,
        ] {
            let gone = gone(1, reason);
            assert_eq!(gone.to_string().parse::<Gone>().unwrap(), gone);
        }
        for line in ["", "1 2 3 4 full", "torn"] {
            assert!(line.parse::<Gone>().is_err(), "{line:?}");
        }
    }

    #[test]
    fn the_latest_are_remembered_and_the_file_stays_bounded() {
        let dir = Dir::new();
        let layout = dir.layout();
        let departures = Departures::load(&layout, &dir.faults());
        let most = MOST as u64;
        for start in (0..4 * most).step_by(500) {
            let batch = (start..start + 500).map(|number| gone(number, Reason::Full));
            departures.note(batch.collect()).unwrap();
        }
        departures
            .note(vec![gone(4 * most - 1, Reason::Purged)])
            .unwrap();
        let lines = std::fs::read_to_string(layout.gone())
            .unwrap()
            .lines()
            .count();
        assert!((MOST..=2 * MOST).contains(&lines), "{lines} lines");

        let departures = Departures::load(&layout, &dir.faults());
        let newest = Digest::sha256(&(4 * most - 1).to_le_bytes());
        let reasons: Vec<_> = departures
            .of(&newest)
            .iter()
            .map(|gone| gone.reason)
            .collect();
        assert_eq!(reasons, [Reason::Purged, Reason::Full]);
        assert_eq!(departures.of(&gone(3 * most - 1, Reason::Full).digest), []);
        assert_eq!(lock(&departures.state).recent.len(), MOST);
    }
}
