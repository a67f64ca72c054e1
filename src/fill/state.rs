//! Who wants which bytes of a fill, and who fetches them. No I/O and nothing async: every method
//! is a step under the fill's lock. [`sources`]: who may be asked. [`flights`]: what is fetched next.
//! [`readers`]: who waits for what.

mod flights;
mod readers;
mod sources;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::map::{Origin, RangeMap};
use super::slide::Slide;
use super::{FillState, Source, SourceError, Vigil};
use crate::store::{FileRange, Restored, Spool};

#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: FillState,
    /// What is held, on disk or in the slide's memory.
    pub(super) map: RangeMap,
    pub(super) total: Option<u64>,
    /// The whole blob hashes: the tail may go out.
    pub(super) verified: bool,
    /// Bytes from the start that are hashed.
    pub(super) hashed: u64,
    pub(super) spool: Option<Arc<Spool>>,
    pub(super) slide: Option<Slide>,
    /// The sources cannot do ranges: one stream, one fetcher.
    pub(super) plain: bool,
    /// Fetchers that the sources put up with.
    pub(super) most_fetchers: usize,
    /// What was held before all bytes were forgotten: readers may have been given it.
    former: RangeMap,
    /// They are fetched again from this source alone.
    pub(super) refetch_from: Option<usize>,
    pub(super) course: Course,
    /// Cancelled when the course changes: fetchers stop where they are.
    pub(super) turned: CancellationToken,
    /// What keeps the course right.
    pub(super) vigil: Option<Arc<dyn Vigil>>,
    /// The size that a HEAD told: a hint, because some answer 0 to that.
    pub(super) told: Option<u64>,
    sources: Vec<SourceEntry>,
    /// Names of sources to use only when there are no others.
    avoid: Vec<String>,
    flights: BTreeMap<FlightId, Range<u64>>,
    readers: BTreeMap<ReaderId, ReaderEntry>,
    next_id: u64,
}

/// Where the bytes are fetched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// It has been asked who has them near.
    Undecided,
    /// The readers' own.
    Sources,
    Near(usize),
}

/// What there is for a fetcher.
#[derive(Debug)]
pub(super) enum Next {
    From(usize, Arc<dyn Source>),
    /// Nothing before the course is known, or a source proved.
    Wait,
    Nothing,
}

/// A fetcher's claim on a range: what of it is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FlightId(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ReaderId(u64);

#[derive(Debug)]
struct SourceEntry {
    source: Arc<dyn Source>,
    /// No reader came by it, and it proves nothing.
    near: bool,
    proved: bool,
    /// Readers that are proving it now, beside the fill.
    proving: usize,
    /// It has no such blob, or not for us: its readers end.
    gone: Option<SourceError>,
    /// It does not get on: others are used, but its readers stay.
    broken: bool,
}

#[derive(Debug)]
struct ReaderEntry {
    /// None: a reader whose right does not depend on this fill's sources.
    source: Option<usize>,
    /// Where it started, where it is, and where it wants to get.
    start: u64,
    position: u64,
    end: u64,
    waiting_since: Option<Instant>,
    /// Some of what it was given has turned out to be wrong.
    misled: bool,
    /// It reads along: a slide frees what it needs without waiting for it.
    unwaited: bool,
}

/// What a reader finds at its position.
#[derive(Debug)]
pub(super) enum Found {
    Bytes(FileRange),
    Nothing,
    End,
    /// What it has been given has turned out to be other than what is there now.
    Changed,
    SourceGone(SourceError),
    /// A slide has freed what it was to be given next.
    TooLate,
}

/// Whether a source's readers may start.
#[derive(Debug)]
pub(super) enum Opening {
    NotYet,
    Open(Option<u64>),
    SourceGone(SourceError),
}

// === impl State: life ===

impl State {
    pub(super) fn new(avoid: Vec<String>, course: Course) -> Self {
        State {
            phase: FillState::Connecting,
            map: RangeMap::default(),
            total: None,
            verified: false,
            hashed: 0,
            spool: None,
            slide: None,
            plain: false,
            most_fetchers: usize::MAX,
            former: RangeMap::default(),
            refetch_from: None,
            course,
            turned: CancellationToken::new(),
            vigil: None,
            told: None,
            sources: Vec::new(),
            avoid,
            flights: BTreeMap::new(),
            readers: BTreeMap::new(),
            next_id: 0,
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Takes over what an earlier process left behind.
    pub(super) fn restore(&mut self, spool: Arc<Spool>, restored: Restored) {
        self.total = restored.total;
        for range in restored.held {
            self.map.insert(range, Origin::Restored);
        }
        self.spool = Some(spool);
        // A reader whose source is not proved waits for that source's answer: something must be
        // left to ask it for.
        if self.is_complete() && !self.sources.iter().any(|entry| entry.proved) {
            match self.total.and_then(|total| total.checked_sub(1)) {
                Some(last) => self.map.remove(last..last + 1),
                None => self.total = None,
            }
        }
    }

    /// What an earlier process left is not of this blob's size.
    pub(super) fn forget_restored(&mut self, total: u64) {
        self.map = RangeMap::default();
        self.total = Some(total);
    }

    /// Forgets all bytes, to fetch them again, from `source` alone if there is one.
    pub(super) fn refetch(&mut self, source: Option<usize>) {
        self.former = std::mem::take(&mut self.map);
        self.hashed = 0;
        self.refetch_from = source;
    }

    /// All bytes are here; whether they are right, the hash will say.
    pub(super) fn is_complete(&self) -> bool {
        self.total.is_some_and(|total| self.map.prefix() >= total)
    }

    pub(super) fn is_past_half(&self) -> bool {
        self.total
            .is_some_and(|total| self.map.held() >= total.div_ceil(2))
    }
}
