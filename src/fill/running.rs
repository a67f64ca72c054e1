//! What runs at the moment, for operators.

use serde::Serialize;

use super::state::Course;
use super::{Fill, Fills};
use crate::oci::Digest;

/// A download under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Running {
    pub digest: Digest,
    /// Bytes that are here.
    pub bytes: u64,
    /// Of the whole blob in bytes, when a source has told it.
    pub size: Option<u64>,
    pub readers: usize,
    /// Where the bytes come from: a repository of an upstream, the shared store or a replica.
    pub source: Option<String>,
}

impl Fills {
    /// Every download that runs at this moment, by digest.
    #[must_use]
    pub fn running(&self) -> Vec<Running> {
        let fills: Vec<_> = self.shared.table().running.values().cloned().collect();
        let mut running: Vec<_> = fills.iter().map(|fill| Running::of(fill)).collect();
        running.sort_unstable_by_key(|running| running.digest);
        running
    }
}

impl Running {
    fn of(fill: &Fill) -> Self {
        let readers = *fill.readers.borrow();
        let state = fill.state();
        let source = match state.course {
            Course::Undecided => None,
            Course::Sources => state.best_source(),
            Course::Near(at) => Some(at),
        };
        Running {
            digest: fill.digest,
            bytes: state.map.held(),
            size: state.total.or(state.told),
            readers,
            source: source.map(|at| state.source_name(at)),
        }
    }
}
