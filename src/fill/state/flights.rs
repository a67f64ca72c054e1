//! Which ranges are being fetched, and which one is next.

use std::ops::Range;

use super::{FlightId, ReaderEntry, State};
use crate::fill::map::Origin;

impl State {
    pub(in crate::fill) fn flights(&self) -> usize {
        self.flights.len()
    }

    /// Gives the next missing range to a fetcher: for the reader that has waited longest, or
    /// else the lowest. It ends at the next line of the grid, or where bytes are held or on
    /// their way already.
    pub(in crate::fill) fn claim(&mut self, window: u64) -> Option<(FlightId, Range<u64>)> {
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
    pub(in crate::fill) fn has_unclaimed(&self) -> bool {
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

    pub(in crate::fill) fn flight(&self, id: FlightId) -> Range<u64> {
        self.flights.get(&id).cloned().unwrap_or(0..0)
    }

    /// The source answered otherwise than it was asked.
    pub(in crate::fill) fn redirect_flight(&mut self, id: FlightId, range: Range<u64>) {
        self.flights.insert(id, range);
    }

    /// Bytes were written.
    pub(in crate::fill) fn landed(&mut self, id: FlightId, range: Range<u64>, origin: Origin) {
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
    pub(in crate::fill) fn held_before(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut parts = self.map.held_within(range);
        parts.extend(self.former.held_within(range));
        parts
    }

    /// What was written there a second time differs from what it was.
    pub(in crate::fill) fn note_changed(&mut self, range: &Range<u64>) {
        for reader in self.readers.values_mut() {
            reader.misled |= range.start < reader.position && reader.start < range.end;
        }
    }

    pub(in crate::fill) fn end_flight(&mut self, id: FlightId) {
        self.flights.remove(&id);
    }
}
