//! The life of a fill: from its spool through fetching and hashing to a blob, and the other ways
//! in which it can end.

use std::io;
use std::sync::Arc;

use futures_util::{FutureExt as _, future};

use super::fetch::fetch_all;
use super::map::Origin;
use super::near::Compass;
use super::slide::Slide;
use super::verify::{self, blocking};
use super::{Fill, FillError, FillResult, FillState, LINGER};
use crate::store::{Spool, Verifier};

/// How a fill ended.
#[derive(Debug)]
enum Outcome {
    Done,
    Abandoned,
    Stopped,
}

/// Runs a fill from its start to its end.
pub(super) async fn supervise(fill: Arc<Fill>) {
    let stop = fill.shared.stop.clone();
    let ended = tokio::select! {
        biased;
        ended = download(&fill) => ended.map(|()| Outcome::Done),
        () = rest(&fill) => Ok(Outcome::Abandoned),
        () = stop.cancelled() => Ok(Outcome::Stopped),
    };
    // A slide has given its spool up already.
    let (spool, holds_some, sliding) = {
        let state = fill.state();
        let sliding = state.slide.is_some();
        let spool = state.spool.clone().filter(|_| !sliding);
        (spool, !state.map.is_empty(), sliding)
    };
    match ended {
        Ok(Outcome::Done) => {
            fill.count(FillResult::Done);
            fill.leave_table();
        }
        Ok(outcome) => {
            // What is here is kept for whoever comes next, who may be at work in it already.
            let keep = holds_some || matches!(outcome, Outcome::Abandoned);
            tidy(&fill, spool, keep).await;
            fill.count(FillResult::Abandoned);
            // Nobody reads an abandoned fill, but for those whom it does not run for.
            if sliding || matches!(outcome, Outcome::Stopped) {
                fill.fail(FillError::Stopping);
            }
        }
        Err(error) => {
            let corrupt = matches!(error, FillError::WrongBytes { .. });
            tracing::warn!(digest = %fill.digest, %error, "download failed");
            // Digests that nobody has must not leave a file each.
            tidy(&fill, spool, holds_some && !corrupt).await;
            fill.count(if corrupt {
                FillResult::Corrupt
            } else {
                FillResult::Failed
            });
            fill.fail(error);
        }
    }
    // Readers may stay, but what this fill was for others ends here.
    let vigil = fill.state().vigil.take();
    drop(vigil);
    fill.shared.metrics.fills_running.dec();
}

/// Brings the journal up to date, or takes the spool away.
async fn tidy(fill: &Fill, spool: Option<Arc<Spool>>, keep: bool) {
    if let Some(spool) = spool {
        let work = move || if keep { spool.flush() } else { spool.remove() };
        log_error(fill, "cannot tidy a spool", blocking(work).await);
    }
}

/// Fetches, verifies and commits.
async fn download(fill: &Arc<Fill>) -> Result<(), FillError> {
    open_spool(fill).await?;
    let mut compass = Compass::new(fill);
    loop {
        let verifier = {
            let (fetched, verified) = (
                fetch_all(fill, &mut compass),
                verify::follow(fill).map(|hash| hash.map_err(local)),
            );
            future::try_join(fetched, verified).await?.1
        };
        if finish(fill, &verifier).await? {
            return Ok(());
        }
    }
}

/// Resolves when the fill should stop because nobody reads it and it is not far enough.
async fn rest(fill: &Arc<Fill>) {
    let mut readers = fill.readers.subscribe();
    loop {
        // The sender lives in the fill.
        let _ = readers.wait_for(|count| *count == 0).await;
        let back = readers.wait_for(|count| *count > 0).map(drop);
        if tokio::time::timeout(LINGER, back).await.is_ok() {
            continue;
        }
        let (kept, past_half) = {
            let state = fill.state();
            (state.slide.is_none(), state.is_past_half())
        };
        if kept && past_half {
            return future::pending().await;
        }
        if fill.leave_table_unread() {
            return;
        }
    }
}

async fn open_spool(fill: &Arc<Fill>) -> Result<(), FillError> {
    match fill.shared.disk.spool(&fill.digest).await {
        Ok((spool, restored)) => {
            fill.state().restore(Arc::new(spool), restored);
            Ok(())
        }
        Err(error) => slide(fill, io::Error::other(error)).await,
    }
}

/// The bytes are all here and hashed. `false`: they have to be fetched once more.
async fn finish(fill: &Arc<Fill>, verifier: &Verifier) -> Result<bool, FillError> {
    let (spool, sliding) = {
        let state = fill.state();
        (state.spool.clone(), state.slide.is_some())
    };
    let blob = spool.as_ref().and_then(|spool| spool.verify(verifier));
    if blob.is_some() || (sliding && verifier.is(&fill.digest)) {
        if sliding {
            fill.leave_table();
        }
        {
            let mut state = fill.state();
            state.verified = true;
            state.phase = FillState::Done;
        }
        fill.changed();
        // Nobody waits for this but those who come later and find the fill until it is through.
        if let Some(blob) = blob {
            let kept = fill.shared.disk.commit(blob).await;
            let vigil = fill.state().vigil.take().filter(|_| kept.is_ok());
            if let Some(vigil) = vigil {
                vigil.committed();
            }
            log_error(fill, "cannot keep a blob", kept);
        }
        return Ok(true);
    }
    let origin = fill.state().map.only_origin();
    if let Some(Origin::Source(at)) = origin {
        let source_name = fill.state().source_name(at);
        let near = fill.state().is_near(at);
        if !(near && fill.condemn(at)) {
            return Err(FillError::WrongBytes {
                source_name,
                digest: fill.digest,
            });
        }
    } else {
        let mut state = fill.state();
        let source = state.refetch_source().filter(|_| !sliding);
        if source.is_none() {
            drop(state);
            return Err(fill.wrong_bytes());
        }
        tracing::warn!(digest = %fill.digest, "bytes of mixed or restored origin are wrong; fetching them again");
        state.refetch(source);
    }
    let Some(spool) = spool else {
        return Err(fill.wrong_bytes());
    };
    blocking(move || spool.forget()).await.map_err(local)?;
    Ok(false)
}

/// Goes on without keeping anything: `cause` is why.
pub(super) async fn slide(fill: &Arc<Fill>, cause: io::Error) -> Result<(), FillError> {
    let already = fill.state().slide.is_some();
    let permit = Arc::clone(&fill.shared.slides).try_acquire_owned();
    let (Ok(permit), false) = (permit, already) else {
        return Err(local(cause));
    };
    tracing::warn!(digest = %fill.digest, error = %cause, "no room to keep a download; passing it through");
    fill.shared.metrics.fill_slides.inc();
    let slide = Slide::new(permit).map_err(local)?;
    let spool = {
        let mut state = fill.state();
        state.slide = Some(slide);
        state.spool.clone()
    };
    // Its names go now: another fill of the digest may start, and nothing half is to be kept.
    if let Some(spool) = spool {
        log_error(
            fill,
            "cannot remove a spool",
            blocking(move || spool.remove()).await,
        );
    }
    fill.pass_on();
    Ok(())
}

pub(super) fn local(error: io::Error) -> FillError {
    FillError::Local(Arc::new(error))
}

fn log_error<E: std::fmt::Display>(fill: &Fill, what: &str, result: Result<(), E>) {
    if let Err(error) = result {
        tracing::warn!(digest = %fill.digest, %error, "{what}");
    }
}

impl Fill {
    pub(super) fn wrong_bytes(&self) -> FillError {
        FillError::WrongBytes {
            source_name: self.state().culprit(),
            digest: self.digest,
        }
    }
}
