//! Who reads from where, and what of that is there.

use std::ops::Range;
use std::sync::Arc;

use tokio::time::Instant;

use super::{Found, Opening, ReaderEntry, ReaderId, State};
use crate::fill::slide::Slide;
use crate::fill::{FillState, TAIL};
use crate::store::FileRange;

impl State {
    pub(in crate::fill) fn add_reader(
        &mut self,
        source: Option<usize>,
        from: Option<u64>,
    ) -> ReaderId {
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
            unwaited: false,
        };
        self.readers.insert(id, reader);
        id
    }

    /// A reader of all that slides by, which is not waited for. None: it does not slide, or it is too
    /// late for all of it.
    pub(in crate::fill) fn add_passing(&mut self) -> Option<ReaderId> {
        self.slide.as_ref().filter(|slide| slide.freed() == 0)?;
        let id = self.add_reader(None, Some(0));
        self.readers.get_mut(&id)?.unwaited = true;
        Some(id)
    }

    pub(in crate::fill) fn aim_reader(&mut self, id: ReaderId, range: Range<u64>) {
        if let Some(reader) = self.readers.get_mut(&id) {
            reader.start = range.start;
            reader.position = range.start;
            reader.end = range.end;
        }
    }

    pub(in crate::fill) fn remove_reader(&mut self, id: ReaderId) {
        self.readers.remove(&id);
    }

    /// The first byte that some reader has yet to be given who is waited for.
    pub(in crate::fill) fn slowest_reader(&self) -> u64 {
        self.slowest(false)
    }

    /// The same of those who are not.
    pub(in crate::fill) fn slowest_unwaited(&self) -> u64 {
        self.slowest(true)
    }

    fn slowest(&self, unwaited: bool) -> u64 {
        let readers = self.readers.values();
        let readers = readers.filter(|reader| reader.unwaited == unwaited);
        let positions = readers.map(|reader| reader.position);
        positions.min().unwrap_or(u64::MAX)
    }

    /// Whether a reader that starts at `from` finds everything it needs.
    pub(in crate::fill) fn serves(&self, from: Option<u64>) -> bool {
        self.slide
            .as_ref()
            .is_none_or(|slide| from.unwrap_or(0) >= slide.freed())
    }

    /// Whether the reader may start: its source has said yes, and there is something to say.
    pub(in crate::fill) fn opening(&self, id: ReaderId) -> Opening {
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
    pub(in crate::fill) fn read(&mut self, id: ReaderId, most: u64) -> Found {
        let Some(reader) = self.readers.get(&id) else {
            return Found::End;
        };
        if reader.misled {
            return Found::Changed;
        }
        let position = reader.position;
        let freed = self.slide.as_ref().map_or(0, Slide::freed);
        if reader.unwaited && position < freed {
            return Found::TooLate;
        }
        if position >= reader.end.min(self.total.unwrap_or(u64::MAX)) {
            // Others are answered when something is verified; who reads along hears nothing but this.
            let may_end = self.verified || !reader.unwaited;
            return if may_end { Found::End } else { Found::Nothing };
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
    pub(in crate::fill) fn locate(&mut self, start: u64, end: u64) -> Option<FileRange> {
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
