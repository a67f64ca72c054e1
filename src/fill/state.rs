//! Who wants which bytes of a fill, and who fetches them. No I/O and nothing async: every method
//! is a step under the fill's lock.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::map::{Origin, RangeMap};
use super::slide::Slide;
use super::{FillState, Source, SourceError, TAIL, Vigil};
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
    /// And from this source alone.
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

// === impl State: sources ===

impl State {
    /// The source of this name is proved, or the first request will prove it.
    pub(super) fn knows(&self, name: &str) -> bool {
        self.sources
            .iter()
            .any(|entry| !entry.near && entry.gone.is_none() && entry.source.name() == name)
    }

    /// The place of a reader's `source` in the list.
    pub(super) fn add_source(&mut self, source: &Arc<dyn Source>, proved: bool) -> usize {
        let at = self.place(source, false);
        let entry = &mut self.sources[at];
        entry.proved |= proved;
        if proved {
            entry.gone = None;
        }
        at
    }

    /// The way to a near source; about one that has failed the answer came too late.
    pub(super) fn add_near(&mut self, source: &Arc<dyn Source>) -> Course {
        let at = self.place(source, true);
        if self.sources[at].broken {
            Course::Undecided
        } else {
            Course::Near(at)
        }
    }

    fn place(&mut self, source: &Arc<dyn Source>, near: bool) -> usize {
        let name = source.name();
        let same = |entry: &SourceEntry| entry.near == near && entry.source.name() == name;
        self.sources.iter().position(same).unwrap_or_else(|| {
            self.sources.push(SourceEntry {
                source: Arc::clone(source),
                near,
                proved: false,
                proving: 0,
                gone: None,
                broken: false,
            });
            self.sources.len() - 1
        })
    }

    /// Where to fetch from.
    pub(super) fn next_source(&self) -> Next {
        let from = |at: usize| Next::From(at, self.source(at));
        if let Some(at) = self.refetch_from {
            let entry = &self.sources[at];
            return if entry.is_usable() {
                from(at)
            } else {
                Next::Nothing
            };
        }
        match self.course {
            Course::Undecided => Next::Wait,
            Course::Near(at) if self.may_use_near() => from(at),
            Course::Near(_) if self.sources.iter().any(|entry| entry.proving > 0) => Next::Wait,
            Course::Near(_) | Course::Sources => self.best_source().map_or(Next::Nothing, from),
        }
    }

    /// Somebody who reads may have these bytes, wherever they come from.
    fn may_use_near(&self) -> bool {
        let may = |entry: &SourceEntry| !entry.near && entry.proved && entry.gone.is_none();
        self.sources.iter().any(may)
    }

    /// Whether a fetcher that is at work at `at` would start there again.
    pub(super) fn keeps_to(&self, at: usize) -> bool {
        match self.course {
            Course::Near(near) if self.refetch_from.is_none() => near == at || !self.may_use_near(),
            _ => true,
        }
    }

    /// Of the readers' sources one that is there, rather one that has not sent wrong bytes.
    pub(super) fn best_source(&self) -> Option<usize> {
        let avoided = |at: &usize| {
            let name = self.sources[*at].source.name();
            self.avoid.iter().any(|avoid| avoid == name)
        };
        (0..self.sources.len())
            .filter(|at| !self.sources[*at].near && self.sources[*at].is_usable())
            .min_by_key(|at| (avoided(at), !self.sources[*at].proved))
    }

    /// The one to fetch everything from once more: near costs less.
    pub(super) fn refetch_source(&self) -> Option<usize> {
        match self.course {
            Course::Near(at) if self.may_use_near() => Some(at),
            _ => self.best_source(),
        }
        .filter(|at| self.refetch_from != Some(*at))
    }

    pub(super) fn source(&self, at: usize) -> Arc<dyn Source> {
        Arc::clone(&self.sources[at].source)
    }

    pub(super) fn is_near(&self, at: usize) -> bool {
        self.sources[at].near
    }

    /// The names of near sources that are of no use.
    pub(super) fn failed_near(&self) -> Vec<String> {
        let failed = self
            .sources
            .iter()
            .filter(|entry| entry.near && entry.broken);
        let mut names: Vec<_> = failed.map(|entry| entry.source.name().to_owned()).collect();
        names.extend(self.avoid.iter().cloned());
        names
    }

    /// The source whose wrong bytes a failure is put down to.
    pub(super) fn culprit(&self) -> String {
        let at = self.best_source();
        at.map(|at| self.source_name(at)).unwrap_or_default()
    }

    /// A reader asks the source itself, beside the fill.
    pub(super) fn begin_proof(&mut self, id: ReaderId) -> Option<usize> {
        let at = self.readers.get(&id)?.source?;
        self.sources[at].proving += 1;
        Some(at)
    }

    pub(super) fn end_proof(&mut self, at: usize) {
        self.sources[at].proving -= 1;
    }

    pub(super) fn source_name(&self, at: usize) -> String {
        self.sources[at].source.name().to_owned()
    }

    pub(super) fn prove_source(&mut self, at: usize) {
        self.sources[at].proved = true;
    }

    pub(super) fn source_broken(&mut self, at: usize) {
        self.sources[at].broken = true;
    }

    pub(super) fn source_gone(&mut self, at: usize, error: SourceError) {
        self.sources[at].gone = Some(error);
    }
}

impl SourceEntry {
    fn is_usable(&self) -> bool {
        self.gone.is_none() && !self.broken
    }
}

// === impl State: flights ===

impl State {
    pub(super) fn flights(&self) -> usize {
        self.flights.len()
    }

    /// Gives the next missing range to a fetcher: for the reader that has waited longest, or
    /// else the lowest. It ends at the next line of the grid, or where bytes are held or on
    /// their way already.
    pub(super) fn claim(&mut self, window: u64) -> Option<(FlightId, Range<u64>)> {
        // Before the first answer nobody knows what there is to share.
        if self.total.is_none() && !self.flights.is_empty() {
            return None;
        }
        let start = self.wanted()?;
        let range = if self.plain {
            start..u64::MAX
        } else {
            let grid = (start / window + 1).saturating_mul(window);
            let held = self.map.next_start(start).unwrap_or(u64::MAX);
            let flying = self.flights.values().map(|flight| flight.start);
            let flying = flying
                .filter(|other| *other > start)
                .min()
                .unwrap_or(u64::MAX);
            start
                ..grid
                    .min(held)
                    .min(flying)
                    .min(self.total.unwrap_or(u64::MAX))
        };
        let id = FlightId(self.id());
        self.flights.insert(id, range.clone());
        Some((id, range))
    }

    /// Whether a [`State::claim`] would find something.
    pub(super) fn has_unclaimed(&self) -> bool {
        (self.total.is_some() || self.flights.is_empty()) && self.wanted().is_some()
    }

    fn wanted(&self) -> Option<u64> {
        let total = self.total.unwrap_or(u64::MAX);
        // The slide keeps nothing, so it must go in order; and where the blob ends, only its
        // beginning can tell.
        if self.plain || self.slide.is_some() || self.total.is_none() {
            return Some(self.missing_from(0)).filter(|start| *start < total);
        }
        let mut readers: Vec<&ReaderEntry> = self.readers.values().collect();
        readers.sort_by_key(|reader| {
            (
                reader.waiting_since.is_none(),
                reader.waiting_since,
                reader.position,
            )
        });
        readers
            .into_iter()
            .map(|reader| (self.missing_from(reader.position), reader.end.min(total)))
            .find_map(|(start, end)| (start < end).then_some(start))
            .or_else(|| Some(self.missing_from(0)).filter(|start| *start < total))
    }

    /// The first byte at or after `offset` that is neither held nor on its way.
    fn missing_from(&self, mut offset: u64) -> u64 {
        loop {
            let mut next = self.map.held_until(offset);
            for flight in self.flights.values() {
                if flight.contains(&next) {
                    next = flight.end;
                }
            }
            if next == offset {
                return offset;
            }
            offset = next;
        }
    }

    pub(super) fn flight(&self, id: FlightId) -> Range<u64> {
        self.flights.get(&id).cloned().unwrap_or(0..0)
    }

    /// The source answered otherwise than it was asked.
    pub(super) fn redirect_flight(&mut self, id: FlightId, range: Range<u64>) {
        self.flights.insert(id, range);
    }

    /// Bytes were written.
    pub(super) fn landed(&mut self, id: FlightId, range: Range<u64>, origin: Origin) {
        if let Some(flight) = self.flights.get_mut(&id) {
            flight.start = range.end;
        }
        if let Some(slide) = &mut self.slide {
            slide.wrote(range.clone());
        }
        self.map.insert(range, origin);
    }

    /// The parts of `range` that have been readable before: a plain stream starts at 0 whatever is
    /// held, and a second fetch writes everything again.
    pub(super) fn held_before(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut parts = self.map.held_within(range);
        parts.extend(self.former.held_within(range));
        parts
    }

    /// What was written there a second time differs from what it was.
    pub(super) fn note_changed(&mut self, range: &Range<u64>) {
        for reader in self.readers.values_mut() {
            reader.misled |= range.start < reader.position && reader.start < range.end;
        }
    }

    pub(super) fn end_flight(&mut self, id: FlightId) {
        self.flights.remove(&id);
    }
}

// === impl State: readers ===

impl State {
    pub(super) fn add_reader(&mut self, source: Option<usize>, from: Option<u64>) -> ReaderId {
        let id = ReaderId(self.id());
        let start = from.unwrap_or(0);
        let waiting_since = Some(Instant::now());
        let reader = ReaderEntry {
            source,
            start,
            position: start,
            end: u64::MAX,
            waiting_since,
            misled: false,
        };
        self.readers.insert(id, reader);
        id
    }

    pub(super) fn aim_reader(&mut self, id: ReaderId, range: Range<u64>) {
        if let Some(reader) = self.readers.get_mut(&id) {
            reader.start = range.start;
            reader.position = range.start;
            reader.end = range.end;
        }
    }

    pub(super) fn remove_reader(&mut self, id: ReaderId) {
        self.readers.remove(&id);
    }

    /// The first byte that some reader has yet to be given.
    pub(super) fn slowest_reader(&self) -> u64 {
        self.readers
            .values()
            .map(|reader| reader.position)
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Whether a reader that starts at `from` finds everything it needs.
    pub(super) fn serves(&self, from: Option<u64>) -> bool {
        self.slide
            .as_ref()
            .is_none_or(|slide| from.unwrap_or(0) >= slide.freed())
    }

    /// Whether the reader may start: its source has said yes, and there is something to say.
    pub(super) fn opening(&self, id: ReaderId) -> Opening {
        let Some(reader) = self.readers.get(&id) else {
            return Opening::NotYet;
        };
        let source = reader.source.map(|at| &self.sources[at]);
        if let Some(error) = source.and_then(|source| source.gone.as_ref()) {
            return Opening::SourceGone(error.clone());
        }
        let proved = source.is_none_or(|source| source.proved);
        if !proved || matches!(self.phase, FillState::Connecting) {
            return Opening::NotYet;
        }
        // A blob that is all tail is answered only when it is verified.
        let some_may_go = self
            .total
            .map_or(self.map.prefix() > TAIL, |total| total > TAIL);
        if self.verified || some_may_go {
            Opening::Open(self.total)
        } else {
            Opening::NotYet
        }
    }

    /// The next bytes for a reader, at most `most` of them. They are its from then on.
    pub(super) fn read(&mut self, id: ReaderId, most: u64) -> Found {
        let Some(reader) = self.readers.get(&id) else {
            return Found::End;
        };
        if reader.misled {
            return Found::Changed;
        }
        let position = reader.position;
        if position >= reader.end.min(self.total.unwrap_or(u64::MAX)) {
            return Found::End;
        }
        let source = reader.source.map(|at| &self.sources[at]);
        if let Some(error) = source.and_then(|source| source.gone.as_ref()) {
            return Found::SourceGone(error.clone());
        }
        let last = if self.verified {
            self.total.unwrap_or(0)
        } else {
            self.total
                .unwrap_or_else(|| self.map.prefix())
                .saturating_sub(TAIL)
        };
        let end = reader.end.min(last).min(position.saturating_add(most));
        let found = if position < end {
            self.locate(position, end)
        } else {
            None
        };
        let Some(reader) = self.readers.get_mut(&id) else {
            return Found::End;
        };
        if let Some(found) = found {
            reader.position = found.range().end;
            reader.waiting_since = None;
            Found::Bytes(found)
        } else {
            reader.waiting_since.get_or_insert_with(Instant::now);
            Found::Nothing
        }
    }

    /// Held bytes from `start` on, no further than `end`, that lie in one file.
    pub(super) fn locate(&mut self, start: u64, end: u64) -> Option<FileRange> {
        let until = self.map.held_until(start).min(end);
        if until <= start {
            return None;
        }
        if let Some(slide) = &mut self.slide
            && let Some(found) = slide.locate(start, until)
        {
            return Some(found);
        }
        let until = self
            .slide
            .as_ref()
            .map_or(until, |slide| slide.next_start(start).min(until));
        let spool = self.spool.as_ref()?;
        Some(FileRange::new(Arc::clone(spool.file()), start..until))
    }
}
