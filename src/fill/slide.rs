//! What a fill does when there is no room to keep its bytes: it slides.
//!
//! A full or failing disk, or a layer larger than the store may be, must not fail a pull. Such a
//! fill goes on with one connection through a window of memory, at most [`WINDOW`] ahead of its
//! slowest reader, and what all readers have been sent is freed behind them. Nothing of it is
//! kept here; whoever keeps it elsewhere may read along ([`Vigil::passing`](super::Vigil::passing)), and is not waited for.
//! The memory is an anonymous file (`memfd`), so that readers and sockets see what they
//! always see: a file and a range. That works where a hole punched into the spool would not: on
//! a disk that is read-only or broken.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Weak};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use tokio::sync::OwnedSemaphorePermit;

use super::map::{Origin, RangeMap};
use super::{Fill, Reader};
use crate::store::{FileRange, Lease};

/// Memory of one sliding fill, in bytes.
pub(super) const WINDOW: u64 = 64 * 1024 * 1024;
/// Sliding fills at once: half a gibibyte in all.
pub(super) const MOST_SLIDES: usize = 8;

#[derive(Debug)]
pub(super) struct Slide {
    file: Arc<File>,
    /// What of the blob the memory holds; offsets are the blob's own.
    window: RangeMap,
    /// Everything below is given up: in the memory and in the spool that it continues.
    freed: u64,
    /// Ranges on their way to a socket: not to be freed before they are dropped.
    leases: Vec<(u64, Weak<Lease>)>,
    _permit: OwnedSemaphorePermit,
}

impl Slide {
    pub(super) fn new(permit: OwnedSemaphorePermit) -> io::Result<Self> {
        let memory = memfd_create("portcullis-slide", MemfdFlags::CLOEXEC)?;
        Ok(Slide {
            file: Arc::new(File::from(memory)),
            window: RangeMap::default(),
            freed: 0,
            leases: Vec::new(),
            _permit: permit,
        })
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Everything below this offset is gone.
    pub(super) fn freed(&self) -> u64 {
        self.freed
    }

    pub(super) fn wrote(&mut self, range: Range<u64>) {
        self.window.insert(range, Origin::Restored);
    }

    /// Whether `more` bytes fit into the window.
    pub(super) fn has_room(&self, more: u64) -> bool {
        self.window.held() + more <= WINDOW
    }

    /// Where the next range in memory starts.
    pub(super) fn next_start(&self, offset: u64) -> u64 {
        self.window.next_start(offset).unwrap_or(u64::MAX)
    }

    /// Where the bytes in memory that `offset` is among end, if it is among any.
    pub(super) fn held_until(&self, offset: u64) -> Option<u64> {
        Some(self.window.held_until(offset)).filter(|until| *until > offset)
    }

    /// Bytes that lie in memory, with a lease that keeps them there until they are dropped.
    pub(super) fn locate(&mut self, start: u64, end: u64) -> Option<FileRange> {
        let until = self.held_until(start)?.min(end);
        let lease = Arc::new(Lease);
        self.leases.push((start, Arc::downgrade(&lease)));
        Some(FileRange::leased(
            Arc::clone(&self.file),
            start..until,
            lease,
        ))
    }

    /// Gives memory back below `low`, except what is on its way to a socket.
    pub(super) fn free_below(&mut self, low: u64) -> io::Result<()> {
        self.leases.retain(|(_, lease)| lease.strong_count() > 0);
        let low = self
            .leases
            .iter()
            .map(|(start, _)| *start)
            .fold(low, u64::min);
        if low <= self.freed {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, flags, self.freed, low - self.freed)?;
        self.window.remove(self.freed..low);
        self.freed = low;
        Ok(())
    }
}

impl Fill {
    /// Shows a slide to whoever watches over the fill, if all of it is still to come by.
    pub(super) fn pass_on(self: &Arc<Self>) {
        let (vigil, id) = {
            let mut state = self.state();
            let Some(vigil) = state.vigil.clone() else {
                return;
            };
            let Some(id) = state.add_passing() else {
                return;
            };
            (vigil, id)
        };
        vigil.passing(Reader::unwaited(self, id));
    }
}
