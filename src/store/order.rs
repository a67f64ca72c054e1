//! Who goes first when room is needed. Pure.
//!
//! A blob is as recent as the most recently used image that holds it, and an image goes before
//! what it holds: a manifest that is here never promises what was evicted. So blobs that a more
//! recent image shares stay with that one, and what is left of an image when there is room enough
//! has no manifest and goes next.

use std::collections::HashMap;
use std::sync::Arc;

use super::index::Known;
use crate::oci::Digest;

/// Blobs by digest, and the order in which they are to go.
#[derive(Debug, Default)]
pub(super) struct Order {
    pub(super) blobs: HashMap<Digest, Known>,
    /// Every blob once; whoever holds a blob stands before it.
    pub(super) first_to_go: Vec<Digest>,
}

/// A manifest whose children are being visited, and how many have been.
struct Visit {
    digest: Digest,
    children: Arc<[Digest]>,
    next: usize,
}

impl Order {
    /// Visits the most recently used blob and everything below it, children first, then the next
    /// one that has not been visited: read backwards, that is the order.
    pub(super) fn of(mut known: Vec<Known>) -> Self {
        known.sort_unstable_by_key(|blob| std::cmp::Reverse(blob.turn));
        let by_use: Vec<Digest> = known.iter().map(|blob| blob.digest).collect();
        let blobs: HashMap<Digest, Known> =
            known.into_iter().map(|blob| (blob.digest, blob)).collect();
        let mut last_to_go = Vec::with_capacity(by_use.len());
        // Those whose visit has begun. Also ends cycles, which only a damaged index can have.
        let mut visited = std::collections::HashSet::with_capacity(by_use.len());
        // No recursion: how deep indexes nest is not ours to say.
        let mut path: Vec<Visit> = Vec::new();
        for root in by_use {
            let mut next = Some(root);
            loop {
                if let Some(digest) = next.take()
                    && let Some(blob) = blobs.get(&digest)
                    && visited.insert(digest)
                {
                    path.push(Visit {
                        digest,
                        children: Arc::clone(&blob.children),
                        next: 0,
                    });
                }
                let Some(visit) = path.last_mut() else { break };
                next = visit.children.get(visit.next).copied();
                visit.next += 1;
                if next.is_none() {
                    last_to_go.push(visit.digest);
                    path.pop();
                }
            }
        }
        last_to_go.reverse();
        Order {
            blobs,
            first_to_go: last_to_go,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn digest(name: u8) -> Digest {
        Digest::sha256(&[name])
    }

    fn known(name: u8, turn: u64, children: &[u8]) -> Known {
        Known {
            digest: digest(name),
            size: 1,
            turn,
            used: 0,
            trusted: true,
            busy: false,
            children: children.iter().copied().map(digest).collect(),
        }
    }

    /// When anything that holds `name`, or it itself, was last used: by asking everybody.
    fn recency(name: u8, blobs: &[(u64, Vec<u8>)]) -> u64 {
        let holders = (0_u8..)
            .zip(blobs)
            .filter(|(_, (_, children))| children.contains(&name));
        let holders = holders.map(|(holder, _)| recency(holder, blobs));
        blobs[usize::from(name)].0.max(holders.max().unwrap_or(0))
    }

    /// Blobs whose children have higher numbers: what hashes refer to has no cycles.
    fn blobs() -> impl Strategy<Value = Vec<(u64, Vec<u8>)>> {
        let turns = Just((1..=9_u64).collect::<Vec<_>>()).prop_shuffle();
        let children = prop::collection::vec(prop::collection::vec(0..9_u8, 0..4), 9);
        (turns, children).prop_map(|(turns, children)| {
            let below = |(name, children): (usize, Vec<u8>)| {
                let deeper = children
                    .into_iter()
                    .filter(|child| usize::from(*child) > name);
                deeper.collect()
            };
            let children = children.into_iter().enumerate().map(below);
            turns.into_iter().zip(children).collect()
        })
    }

    proptest! {
        #[test]
        fn least_recent_images_go_first_and_before_what_they_hold(blobs in blobs()) {
            let known: Vec<Known> = (0_u8..).zip(&blobs)
                .map(|(name, (turn, children))| known(name, *turn, children)).collect();
            let order = Order::of(known);
            let names: Vec<u8> = order.first_to_go.iter()
                .map(|found| (0..9).find(|name| digest(*name) == *found).unwrap()).collect();
            prop_assert_eq!(names.iter().collect::<HashSet<_>>().len(), blobs.len());
            let position = |name: u8| names.iter().position(|found| *found == name).unwrap();
            for (name, (_, children)) in (0_u8..).zip(&blobs) {
                for child in children {
                    prop_assert!(position(name) < position(*child), "{} holds {}", name, child);
                }
            }
            let recencies: Vec<u64> = names.iter().map(|name| recency(*name, &blobs)).collect();
            prop_assert!(recencies.is_sorted(), "{:?}: {:?}", names, recencies);
        }
    }

    #[test]
    fn a_shared_layer_stays_with_the_more_recent_image() {
        // 1 and 2 share 5.
        let blobs = [
            known(1, 10, &[3, 5]),
            known(2, 20, &[4, 5]),
            known(3, 1, &[]),
            known(4, 2, &[]),
            known(5, 3, &[]),
            known(6, 15, &[]),
        ];
        let order = Order::of(blobs.to_vec()).first_to_go;
        assert_eq!(order[..4], [1, 3, 6, 2].map(digest));
    }

    #[test]
    fn neither_cycles_nor_what_is_not_here_confuse_it() {
        let order = Order::of(vec![known(1, 2, &[2, 9]), known(2, 1, &[1])]);
        assert_eq!(order.first_to_go.len(), 2);
    }
}
