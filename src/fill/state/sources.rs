//! Where a fill's bytes may come from, and which of these is next.

use std::sync::Arc;

use super::{Course, Next, ReaderId, SourceEntry, State};
use crate::fill::{Source, SourceError};

impl State {
    /// The source of this name is proved, or the first request will prove it.
    pub(in crate::fill) fn knows(&self, name: &str) -> bool {
        self.sources
            .iter()
            .any(|entry| !entry.near && entry.gone.is_none() && entry.source.name() == name)
    }

    /// The place of a reader's `source` in the list.
    pub(in crate::fill) fn add_source(&mut self, source: &Arc<dyn Source>, proved: bool) -> usize {
        let at = self.place(source, false);
        let entry = &mut self.sources[at];
        entry.proved |= proved;
        if proved {
            entry.gone = None;
        }
        at
    }

    /// The way to a near source; about one that has failed the answer came too late.
    pub(in crate::fill) fn add_near(&mut self, source: &Arc<dyn Source>) -> Course {
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
    pub(in crate::fill) fn next_source(&self) -> Next {
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
    pub(in crate::fill) fn keeps_to(&self, at: usize) -> bool {
        match self.course {
            Course::Near(near) if self.refetch_from.is_none() => near == at || !self.may_use_near(),
            _ => true,
        }
    }

    /// Of the readers' sources one that is there, rather one that has not sent wrong bytes.
    pub(in crate::fill) fn best_source(&self) -> Option<usize> {
        let avoided = |at: &usize| {
            let name = self.sources[*at].source.name();
            self.avoid.iter().any(|avoid| avoid == name)
        };
        (0..self.sources.len())
            .filter(|at| !self.sources[*at].near && self.sources[*at].is_usable())
            .min_by_key(|at| (avoided(at), !self.sources[*at].proved))
    }

    /// The one to fetch everything from once more: near costs less.
    pub(in crate::fill) fn refetch_source(&self) -> Option<usize> {
        match self.course {
            Course::Near(at) if self.may_use_near() => Some(at),
            _ => self.best_source(),
        }
        .filter(|at| self.refetch_from != Some(*at))
    }

    pub(in crate::fill) fn source(&self, at: usize) -> Arc<dyn Source> {
        Arc::clone(&self.sources[at].source)
    }

    pub(in crate::fill) fn is_near(&self, at: usize) -> bool {
        self.sources[at].near
    }

    /// The names of near sources that are of no use.
    pub(in crate::fill) fn failed_near(&self) -> Vec<String> {
        let failed = self
            .sources
            .iter()
            .filter(|entry| entry.near && entry.broken);
        let mut names: Vec<_> = failed.map(|entry| entry.source.name().to_owned()).collect();
        names.extend(self.avoid.iter().cloned());
        names
    }

    /// The source whose wrong bytes a failure is put down to.
    pub(in crate::fill) fn culprit(&self) -> String {
        let at = self.best_source();
        at.map(|at| self.source_name(at)).unwrap_or_default()
    }

    /// A reader asks the source itself, beside the fill.
    pub(in crate::fill) fn begin_proof(&mut self, id: ReaderId) -> Option<usize> {
        let at = self.readers.get(&id)?.source?;
        self.sources[at].proving += 1;
        Some(at)
    }

    pub(in crate::fill) fn end_proof(&mut self, at: usize) {
        self.sources[at].proving -= 1;
    }

    pub(in crate::fill) fn source_name(&self, at: usize) -> String {
        self.sources[at].source.name().to_owned()
    }

    pub(in crate::fill) fn prove_source(&mut self, at: usize) {
        self.sources[at].proved = true;
    }

    pub(in crate::fill) fn source_broken(&mut self, at: usize) {
        self.sources[at].broken = true;
    }

    pub(in crate::fill) fn source_gone(&mut self, at: usize, error: SourceError) {
        self.sources[at].gone = Some(error);
    }
}

impl SourceEntry {
    fn is_usable(&self) -> bool {
        self.gone.is_none() && !self.broken
    }
}
