//! Which bytes of a blob are held, and where each came from. Pure.
//!
//! Half-open ranges, sorted, disjoint, each with the source that delivered it; neighbours from
//! one source are one entry, so the map stays as small as the download was orderly.

use std::collections::BTreeMap;
use std::ops::Range;

/// Which of a fill's sources delivered a range: an index into the fill's list, or a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    Source(usize),
    /// Written by an earlier process; nobody knows any more where it came from.
    Restored,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeMap {
    /// By start.
    ranges: BTreeMap<u64, (u64, Origin)>,
}

impl RangeMap {
    /// Adds `range`. Where it overlaps what is held, the newer bytes are the ones that count.
    pub fn insert(&mut self, range: Range<u64>, origin: Origin) {
        if range.is_empty() {
            return;
        }
        self.remove(range.clone());
        let Range { mut start, mut end } = range;
        if let Some((&before, &(before_end, other))) = self.ranges.range(..start).next_back()
            && before_end == start
            && other == origin
        {
            self.ranges.remove(&before);
            start = before;
        }
        if let Some(&(after_end, other)) = self.ranges.get(&end)
            && other == origin
        {
            self.ranges.remove(&end);
            end = after_end;
        }
        self.ranges.insert(start, (end, origin));
    }

    /// Takes `range` out, whoever delivered it.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        if let Some((&start, &(end, origin))) = self.ranges.range(..range.start).next_back()
            && end > range.start
        {
            self.ranges.insert(start, (range.start, origin));
            if end > range.end {
                self.ranges.insert(range.end, (end, origin));
            }
        }
        while let Some((&start, &(end, origin))) = self.ranges.range(range.clone()).next() {
            self.ranges.remove(&start);
            if end > range.end {
                self.ranges.insert(range.end, (end, origin));
            }
        }
    }

    /// Where the run of held bytes that `offset` lies in ends; `offset` itself if it is not held.
    #[must_use]
    pub fn held_until(&self, offset: u64) -> u64 {
        let mut until = offset;
        if let Some((_, &(end, _))) = self.ranges.range(..=offset).next_back() {
            until = until.max(end);
        }
        while let Some(&(end, _)) = self.ranges.get(&until) {
            until = end;
        }
        until
    }

    /// The parts of `range` that are held.
    #[must_use]
    pub fn held_within(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let first = self.ranges.range(..=range.start).next_back();
        let from = first.map_or(range.start, |(&start, _)| start);
        self.ranges
            .range(from..range.end.max(from))
            .map(|(&start, &(end, _))| start.max(range.start)..end.min(range.end))
            .filter(|part| !part.is_empty())
            .collect()
    }

    /// The length of the run that starts at byte 0: what can be hashed.
    #[must_use]
    pub fn prefix(&self) -> u64 {
        self.held_until(0)
    }

    /// The start of the first held range after `offset`.
    #[must_use]
    pub fn next_start(&self, offset: u64) -> Option<u64> {
        let after = offset.checked_add(1)?;
        self.ranges.range(after..).next().map(|(&start, _)| start)
    }

    /// How many bytes are held.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.ranges
            .iter()
            .map(|(start, (end, _))| end - start)
            .sum()
    }

    /// The one origin of all that is held, if there is but one.
    #[must_use]
    pub fn only_origin(&self) -> Option<Origin> {
        let mut origins = self.ranges.values().map(|&(_, origin)| origin);
        let first = origins.next()?;
        origins.all(|origin| origin == first).then_some(first)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against the simplest model there is: one cell for each byte.
        #[test]
        fn behaves_like_an_array(
            operations in prop::collection::vec((0_u64..64, 0_u64..24, 0_usize..3, any::<bool>()), 0..40)
        ) {
            let mut map = RangeMap::default();
            let mut model = vec![None; 96];
            for (start, length, source, insert) in operations {
                let range = start..start + length;
                let cells = usize::try_from(start).unwrap()..usize::try_from(start + length).unwrap();
                if insert {
                    map.insert(range, Origin::Source(source));
                    model[cells].fill(Some(source));
                } else {
                    map.remove(range);
                    model[cells].fill(None);
                }
                prop_assert_eq!(map.held(), model.iter().flatten().count() as u64);
                let within = |range: Range<usize>| model[range].iter().flatten().count() as u64;
                for (start, end) in [(0, 96), (7, 30), (31, 32), (50, 50)] {
                    let parts = map.held_within(&(start as u64..end as u64));
                    prop_assert!(parts.iter().all(|part| map.held_until(part.start) >= part.end));
                    let length: u64 = parts.iter().map(|part| part.end - part.start).sum();
                    prop_assert_eq!(length, within(start..end));
                }
                for offset in 0..90_usize {
                    let run = model[offset..].iter().take_while(|cell| cell.is_some()).count();
                    prop_assert_eq!(map.held_until(offset as u64), (offset + run) as u64);
                    let starts = |at: usize| model[at].is_some() && (at == 0 || model[at - 1] != model[at]);
                    let next = (offset + 1..96).find(|&at| starts(at)).map(|at| at as u64);
                    prop_assert_eq!(map.next_start(offset as u64), next);
                }
                let mut origins: Vec<usize> = model.iter().flatten().copied().collect();
                origins.dedup();
                origins.sort_unstable();
                origins.dedup();
                let only = (origins.len() == 1).then(|| Origin::Source(origins[0]));
                prop_assert_eq!(map.only_origin(), only);
                for (&start, &(end, origin)) in &map.ranges {
                    prop_assert!(start < end);
                    let after = map.ranges.get(&end);
                    prop_assert!(after.is_none_or(|&(_, other)| other != origin), "not merged");
                }
            }
        }
    }
}
