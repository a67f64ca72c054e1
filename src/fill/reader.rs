//! How bytes get out of a fill: a reader joins, waits until there is an answer to give, then
//! follows the map from its own offset at its own pace.

use std::ops::Range;
use std::sync::Arc;

use tokio::sync::watch;

use super::state::{Found, Opening, ReaderId};
use super::{Fill, FillError, FillState, Source};
use crate::store::FileRange;

/// The most that is handed out at once, in bytes: keeps one body from filling a socket's queue.
const PIECE: u64 = 1024 * 1024;

/// A place among a fill's readers. While it lives, the fill runs.
#[derive(Debug)]
pub struct Joined {
    fill: Arc<Fill>,
    id: ReaderId,
    changes: watch::Receiver<u64>,
    /// Whether the fill runs for it.
    counts: bool,
}

/// A proof under way.
#[derive(Debug)]
pub struct Proving {
    fill: Arc<Fill>,
    at: Option<usize>,
}

/// Follows a fill through one range.
#[derive(Debug)]
pub struct Reader {
    joined: Joined,
}

// === impl Fill: joining ===

impl Fill {
    /// Adds a reader, unless what it needs is gone already. It comes by a source, which may be
    /// proved, or by a right that is not this fill's concern.
    pub(super) fn join(
        self: &Arc<Self>,
        source: Option<(&Arc<dyn Source>, bool)>,
        from: Option<u64>,
    ) -> Option<Joined> {
        let id = {
            let mut state = self.state();
            if matches!(state.phase, FillState::Failed(_)) || !state.serves(from) {
                return None;
            }
            let source = source.map(|(source, proved)| state.add_source(source, proved));
            state.add_reader(source, from)
        };
        // A proof may be what a near source waits for.
        self.answered.notify_one();
        self.readers.send_modify(|count| *count += 1);
        Some(Joined {
            fill: Arc::clone(self),
            id,
            changes: self.changes.subscribe(),
            counts: true,
        })
    }
}

// === impl Joined ===

impl Joined {
    /// Waits until the blob can be answered: the reader's source has said yes, and either a part
    /// of it may go out or all of it is verified. Gives the size, if it is known.
    ///
    /// Cancel-safe. Ends when the fill does; how long to wait is for the caller to say.
    pub async fn opened(&mut self) -> Result<Option<u64>, FillError> {
        loop {
            self.changes.mark_unchanged();
            {
                let state = self.fill.state();
                if let FillState::Failed(error) = &state.phase {
                    return Err(FillError::clone(error));
                }
                match state.opening(self.id) {
                    Opening::Open(total) => return Ok(total),
                    Opening::SourceGone(error) => return Err(error.into()),
                    Opening::NotYet => {}
                }
            }
            self.wait().await?;
        }
    }

    /// Waits until the size is known, which for a source that does not tell it is the end.
    pub async fn size(&mut self) -> Result<u64, FillError> {
        loop {
            if let Some(size) = self.opened().await? {
                return Ok(size);
            }
            self.wait().await?;
        }
    }

    /// Says that this reader's source is being asked whether it has the digest, beside the fill.
    /// Until the answer or the drop of what this gives, near sources wait for it.
    #[must_use]
    pub fn proving(&self) -> Proving {
        let at = self.fill.state().begin_proof(self.id);
        Proving {
            fill: Arc::clone(&self.fill),
            at,
        }
    }

    /// Starts to read. A range that ends past the blob ends with it.
    #[must_use]
    pub fn read(self, range: Range<u64>) -> Reader {
        self.fill.state().aim_reader(self.id, range);
        Reader { joined: self }
    }

    async fn wait(&mut self) -> Result<(), FillError> {
        // The sender lives in the fill that we hold.
        self.changes
            .changed()
            .await
            .map_err(|_| FillError::Stopping)
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.fill.state().remove_reader(self.id);
        if self.counts {
            self.fill.readers.send_modify(|count| *count -= 1);
        }
        // A sliding fill may have waited for just this reader.
        self.fill.consumed.notify_one();
    }
}

// === impl Proving ===

impl Proving {
    /// The source has said yes, and perhaps how many bytes there are.
    pub fn proved(self, size: Option<u64>) {
        let mut state = self.fill.state();
        if let Some(at) = self.at {
            state.prove_source(at);
        }
        state.told = state.told.or(size);
    }
}

impl Drop for Proving {
    fn drop(&mut self) {
        if let Some(at) = self.at {
            self.fill.state().end_proof(at);
        }
        self.fill.changed();
        self.fill.answered.notify_one();
    }
}

// === impl Reader ===

impl Reader {
    /// One of a sliding fill, which neither runs for it nor waits for it.
    pub(super) fn unwaited(fill: &Arc<Fill>, id: ReaderId) -> Self {
        let joined = Joined {
            fill: Arc::clone(fill),
            id,
            changes: fill.changes.subscribe(),
            counts: false,
        };
        Reader { joined }
    }

    /// The next bytes, at most 1 MiB and all of them readable now; `None` at the end of the
    /// range. Cancel-safe: bytes count as given when they are returned.
    ///
    /// # Errors
    /// The body must then end short of its length, so that nobody takes it for whole.
    pub async fn next(&mut self) -> Option<Result<FileRange, FillError>> {
        let joined = &mut self.joined;
        loop {
            joined.changes.mark_unchanged();
            if let Some(found) = joined.look() {
                return found;
            }
            if let Err(error) = joined.wait().await {
                return Some(Err(error));
            }
        }
    }
}

impl Joined {
    #[allow(
        clippy::option_option,
        reason = "nothing yet, the end, and an item are three things"
    )]
    fn look(&self) -> Option<Option<Result<FileRange, FillError>>> {
        let mut state = self.fill.state();
        let found = state.read(self.id, PIECE);
        let sliding = state.slide.is_some();
        let failed = match &state.phase {
            FillState::Failed(error) => Some(FillError::clone(error)),
            _ => None,
        };
        drop(state);
        if sliding {
            // Reading on is what lets a sliding fill go on.
            self.fill.consumed.notify_one();
        }
        match found {
            Found::Bytes(bytes) => Some(Some(Ok(bytes))),
            Found::End => Some(None),
            Found::Changed => Some(Some(Err(self.fill.wrong_bytes()))),
            Found::SourceGone(error) => Some(Some(Err(error.into()))),
            Found::TooLate => Some(Some(Err(FillError::TooSlow))),
            Found::Nothing => failed.map(|error| Some(Err(error))),
        }
    }
}
