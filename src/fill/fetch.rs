//! The fetchers.
//!
//! A fetcher claims a window, asks a source for just that range, writes what comes and claims
//! the next. Cut or stalled, it goes on at its offset. One fetcher starts; when the first answer
//! tells how much there is, others join it as far as configuration and source allow. A source
//! without ranges gets one plain stream.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::body::{Body, trim};
use super::life::{local, slide};
use super::map::Origin;
use super::near::Compass;
use super::state::{FlightId, Next};
use super::verify::blocking;
use super::{Fill, FillError, FillState, Opened, Source, SourceError, SourceErrorKind};
use crate::store::{Spool, write_all_at};

/// Tries that may end without a new byte, after the first.
const FRUITLESS: u32 = 2;
/// How long the second of these waits; the first goes at once.
const PAUSE: Duration = Duration::from_millis(500);

/// What is asked of the store when the disk is full, in bytes.
const ROOM: u64 = 64 * 1024 * 1024;

/// How a fetcher ended.
#[derive(Debug)]
enum End {
    /// Nothing is left to claim, a waiting fill was given its permit, or the bytes are to be
    /// fetched elsewhere.
    Idle,
    /// The source answered one stream too many with the whole blob.
    Superfluous,
    Source {
        at: usize,
        error: SourceError,
    },
    /// The bytes cannot be kept.
    Full(io::Error),
}

/// Starts fetchers until the blob is complete, or no source is left that could complete it.
pub(super) async fn fetch_all(fill: &Arc<Fill>, compass: &mut Compass) -> Result<(), FillError> {
    let mut fetchers = JoinSet::new();
    let mut last_error = None;
    loop {
        let (next, turned) = {
            let state = fill.state();
            if state.is_complete() {
                return Ok(());
            }
            (state.next_source(), state.turned.clone())
        };
        match next {
            Next::From(at, source) if fetchers.is_empty() => {
                fetchers.spawn(fetch(Arc::clone(fill), at, source, None, turned));
            }
            Next::From(at, source) => {
                while fill.wants_more_than(fetchers.len())
                    && let Some(permit) = source.try_permit()
                {
                    let (source, turned) = (Arc::clone(&source), turned.clone());
                    fetchers.spawn(fetch(Arc::clone(fill), at, source, Some(permit), turned));
                }
            }
            Next::Nothing if fetchers.is_empty() => {
                return Err(last_error.unwrap_or_else(|| fill.wrong_bytes()));
            }
            Next::Nothing | Next::Wait => {}
        }
        let end = tokio::select! {
            Some(ended) = fetchers.join_next() => ended,
            () = fill.answered.notified() => continue,
            () = compass.turn(fill) => continue,
        };
        match end {
            Ok(End::Idle) => {}
            Ok(End::Superfluous) => fill.state().most_fetchers = fetchers.len().max(1),
            Ok(End::Full(error)) => {
                fetchers.shutdown().await;
                slide(fill, error).await?;
            }
            Ok(End::Source { at, error }) => {
                if !fill.source_failed(at, &error, fetchers.len()) {
                    last_error = Some(error.into());
                }
            }
            Err(error) => return Err(local(io::Error::other(error))),
        }
    }
}

/// One fetcher: window after window from one source, until the fill turns to another.
async fn fetch(
    fill: Arc<Fill>,
    at: usize,
    source: Arc<dyn Source>,
    permit: Option<OwnedSemaphorePermit>,
    turned: CancellationToken,
) -> End {
    let extra = permit.is_some();
    let mut permit = permit;
    loop {
        // Taken anew for each window: a fill that waits for its first connection goes before
        // other fills' extra ones, and many fills take turns.
        let held = match permit.take() {
            Some(permit) => permit,
            None if extra => match source.try_permit() {
                Some(permit) => permit,
                None => return End::Idle,
            },
            None => match turned.run_until_cancelled(source.permit()).await {
                Some(permit) => permit,
                None => return End::Idle,
            },
        };
        if turned.is_cancelled() || !fill.state().keeps_to(at) {
            return End::Idle;
        }
        let Some((id, _)) = fill.claim() else {
            return End::Idle;
        };
        let flight = Flight {
            fill: &fill,
            id,
            turned: &turned,
        };
        if let Err(end) = flight.land(at, source.as_ref()).await {
            return end;
        }
        drop(held);
    }
}

/// A claimed range. Whatever of it has not landed is free again when this is dropped.
struct Flight<'a> {
    fill: &'a Arc<Fill>,
    id: FlightId,
    turned: &'a CancellationToken,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.fill.state().end_flight(self.id);
    }
}

impl Flight<'_> {
    /// Fetches the whole range, going on where a connection broke.
    async fn land(&self, at: usize, source: &dyn Source) -> Result<(), End> {
        let mut fruitless = 0;
        loop {
            let before = self.fill.state().flight(self.id).start;
            let error = match self.attempt(at, source).await {
                Ok(()) => return Ok(()),
                Err(End::Source { error, .. }) if error.kind == SourceErrorKind::Broken => error,
                Err(end) => return Err(end),
            };
            let (progress, connecting) = {
                let state = self.fill.state();
                let connecting = matches!(state.phase, FillState::Connecting);
                (state.flight(self.id).start > before, connecting)
            };
            if progress {
                fruitless = 0;
            }
            // Before any answer the source has done its own retries.
            if connecting || fruitless == FRUITLESS {
                return Err(End::Source { at, error });
            }
            tracing::info!(digest = %self.fill.digest, source = source.name(), %error, "resuming");
            self.fill.shared.metrics.fill_resumes.inc();
            if fruitless > 0 {
                self.unless_turned(tokio::time::sleep(PAUSE)).await?;
            }
            fruitless += 1;
        }
    }

    /// Does `work` unless the fill turns to another source: then the fetcher ends at once, but
    /// never in the middle of a write, which could come after that of its successor.
    async fn unless_turned<T>(&self, work: impl Future<Output = T>) -> Result<T, End> {
        let done = self.turned.run_until_cancelled(work).await;
        done.ok_or(End::Idle)
    }

    /// One request and its body.
    async fn attempt(&self, at: usize, source: &dyn Source) -> Result<(), End> {
        let failed = |error| End::Source { at, error };
        let range = {
            let state = self.fill.state();
            (!state.plain).then(|| state.flight(self.id))
        };
        let opened = self.unless_turned(source.open(range)).await?;
        let opened = opened.map_err(failed)?;
        let mut offset = self.fill.accept(self.id, at, &opened)?;
        let mut body = Body::new(opened.body);
        loop {
            let flight = self.fill.state().flight(self.id);
            if flight.is_empty() {
                return Ok(());
            }
            let gathered = self.unless_turned(body.gather()).await?;
            let Some(mut chunks) = gathered.map_err(failed)? else {
                return self.fill.body_ended(self.id, offset).map_err(failed);
            };
            // A plain stream starts at 0, whatever is held; a range may be longer than agreed.
            let length = trim(&mut chunks, offset, flight.start, flight.end);
            let start = offset.max(flight.start);
            offset += length;
            if !chunks.is_empty() {
                self.write(at, start, chunks).await?;
            }
        }
    }

    /// Writes to the spool, or into the window of a sliding fill, and shows the bytes to readers.
    async fn write(&self, at: usize, start: u64, chunks: Vec<Bytes>) -> Result<(), End> {
        let fill = self.fill;
        let end = start + chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        let (spool, window, again) = {
            let state = fill.state();
            let window = state.slide.as_ref().map(|slide| Arc::clone(slide.file()));
            (
                state.spool.clone(),
                window,
                state.held_before(&(start..end)),
            )
        };
        // Readers may have been given what is about to become something else.
        let mut changed = Vec::new();
        if let Some(spool) = spool.clone().filter(|_| !again.is_empty()) {
            let chunks = chunks.clone();
            let compare = move || Ok(changed_by(&spool, start, &chunks, again));
            changed = blocking(compare).await.map_err(End::Full)?;
        }
        match (window, spool) {
            (Some(window), _) => {
                fill.wait_for_room(end - start).await.map_err(End::Full)?;
                let write = move || write_all_at(&window, start, &chunks);
                blocking(write).await.map_err(End::Full)?;
            }
            (None, Some(spool)) => {
                keep(fill, spool, start, chunks).await.map_err(End::Full)?;
            }
            (None, None) => return Err(End::Full(io::ErrorKind::NotFound.into())),
        }
        {
            let mut state = fill.state();
            state.landed(self.id, start..end, Origin::Source(at));
            for range in &changed {
                state.note_changed(range);
            }
        }
        fill.changed();
        let outgrown = {
            let state = fill.state();
            let unknown = state.total.is_none() && state.slide.is_none();
            unknown && !fill.shared.disk.would_fit(state.map.held())
        };
        if outgrown {
            return Err(End::Full(io::ErrorKind::FileTooLarge.into()));
        }
        Ok(())
    }
}

/// Writes to the spool; when the disk is full the store is asked once to make room.
async fn keep(
    fill: &Arc<Fill>,
    spool: Arc<Spool>,
    start: u64,
    chunks: Vec<Bytes>,
) -> io::Result<()> {
    let again = (Arc::clone(&spool), chunks.clone());
    match blocking(move || spool.write(start, &chunks)).await {
        Err(error)
            if error.kind() == io::ErrorKind::StorageFull
                && fill.shared.disk.make_room(ROOM).await =>
        {
            let (spool, chunks) = again;
            blocking(move || spool.write(start, &chunks)).await
        }
        written => written,
    }
}

/// Those of `parts`, which lie within `chunks` at `offset`, that are other bytes in the spool.
fn changed_by(
    spool: &Spool,
    offset: u64,
    chunks: &[Bytes],
    mut parts: Vec<Range<u64>>,
) -> Vec<Range<u64>> {
    parts.retain(|part| {
        let mut at = offset;
        chunks.iter().any(|chunk| {
            let here = at..at + chunk.len() as u64;
            at = here.end;
            let (from, to) = (part.start.max(here.start), part.end.min(here.end));
            if from >= to {
                return false;
            }
            // Both lie within the chunk.
            let within = |at: u64| usize::try_from(at - here.start).unwrap_or(chunk.len());
            let new = &chunk[within(from)..within(to)];
            let mut old = vec![0; new.len()];
            spool.file().read_exact_at(&mut old, from).is_err() || old != *new
        })
    });
    parts
}

// === impl Fill: steps of fetchers ===

impl Fill {
    fn claim(&self) -> Option<(FlightId, std::ops::Range<u64>)> {
        self.state().claim(self.shared.config.window)
    }

    /// Whether one fetcher more than `running` would have something to do.
    fn wants_more_than(&self, running: usize) -> bool {
        let state = self.state();
        let most = self.shared.config.connections.min(state.most_fetchers);
        running < most
            && !matches!(state.phase, FillState::Connecting)
            && !state.plain
            && state.slide.is_none()
            && state.has_unclaimed()
    }

    /// Takes note of an answer. Gives the offset of its first byte.
    fn accept(&self, id: FlightId, at: usize, opened: &Opened) -> Result<u64, End> {
        let mut state = self.state();
        let near = state.is_near(at);
        // Who is near must not decide what the blob is like.
        if near && (opened.range.is_none() || opened.total.is_none()) {
            let error = SourceError::no_ranges("the answer is no range".into());
            return Err(End::Source { at, error });
        }
        let known = state.total.or(state.told.filter(|_| near));
        let first = matches!(state.phase, FillState::Connecting) && !near;
        if let (Some(known), Some(told)) = (known, opened.total)
            && known != told
        {
            if !first {
                let error =
                    SourceError::no_ranges(format!("the size changed from {known} to {told}"));
                return Err(End::Source { at, error });
            }
            // What an earlier process left is of another size: it is worth nothing.
            state.forget_restored(told);
        }
        let newly_told = state.total.is_none() && opened.total.is_some();
        state.total = state.total.or(opened.total);
        let offset = match &opened.range {
            Some(range) => {
                let end = state.flight(id).end.min(range.end);
                state.redirect_flight(id, range.start..end);
                range.start
            }
            None if state.flights() > 1 => return Err(End::Superfluous),
            None => {
                state.plain = true;
                state.end_flight(id);
                let missing = state.map.prefix()..state.total.unwrap_or(u64::MAX);
                state.redirect_flight(id, missing);
                0
            }
        };
        if !near {
            state.prove_source(at);
        }
        state.phase = FillState::Filling;
        if newly_told && let (Some(spool), Some(total)) = (&state.spool, state.total) {
            spool.note_total(total);
        }
        let too_large = state.slide.is_none()
            && state
                .total
                .is_some_and(|total| !self.shared.disk.would_fit(total));
        drop(state);
        self.changed();
        self.answered.notify_one();
        if too_large {
            return Err(End::Full(io::ErrorKind::FileTooLarge.into()));
        }
        Ok(offset)
    }

    /// A body ended cleanly at `offset`. Without a size told before, that is the size.
    fn body_ended(&self, id: FlightId, offset: u64) -> Result<(), SourceError> {
        let mut state = self.state();
        let flight = state.flight(id);
        if flight.is_empty() {
            return Ok(());
        }
        if state.total.is_some() || offset < flight.start {
            return Err(SourceError::broken(format!(
                "the body ended at {offset}, before its end"
            )));
        }
        state.total = Some(offset);
        state.redirect_flight(id, offset..offset);
        drop(state);
        self.changed();
        Ok(())
    }

    /// A fetcher gave up; `others` are still at work. True: that ends nothing, the source was near.
    fn source_failed(&self, at: usize, error: &SourceError, others: usize) -> bool {
        let mut state = self.state();
        let near = state.is_near(at);
        match error.kind {
            // Fewer connections may be what it wants.
            SourceErrorKind::Throttled | SourceErrorKind::NoRanges if others > 0 => {
                state.most_fetchers = others;
            }
            _ if near => {
                let source = state.source_name(at);
                tracing::info!(digest = %self.digest, source, %error, "gone from near");
                state.near_failed(at);
            }
            SourceErrorKind::Gone | SourceErrorKind::Throttled => {
                state.source_gone(at, error.clone());
            }
            SourceErrorKind::NoRanges if !state.plain => state.plain = true,
            SourceErrorKind::Broken if others > 0 => {}
            SourceErrorKind::NoRanges | SourceErrorKind::Broken => state.source_broken(at),
        }
        drop(state);
        self.changed();
        near
    }

    /// Waits until a sliding fill may write `more` bytes.
    async fn wait_for_room(&self, more: u64) -> io::Result<()> {
        loop {
            {
                let mut state = self.state();
                let low = state.slowest_reader().min(state.hashed);
                let unwaited = state.slowest_unwaited();
                let Some(slide) = &mut state.slide else {
                    return Ok(());
                };
                // Who is not waited for has what room there is.
                slide.free_below(low.min(unwaited))?;
                if !slide.has_room(more) {
                    slide.free_below(low)?;
                }
                if slide.has_room(more) {
                    return Ok(());
                }
            }
            self.consumed.notified().await;
        }
    }
}
