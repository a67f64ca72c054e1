//! Bytes from near by: other places than the upstream that may have a blob, such as the store that
//! replicas share, or the replica that is filling it for all of them.
//!
//! A fill asks before its first request, again when what it was told is no longer true, and again
//! when a near source has failed. A near source saves bytes, it proves nothing: it is used only
//! for readers whose own source has said yes, and what comes from it is hashed like anything else.
//! None of its failures ends a reader.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::{self, BoxFuture};
use tokio_util::sync::CancellationToken;

use super::state::{Course, State};
use super::{Fill, Reader, Source};
use crate::oci::Digest;

/// Near sources that one fill tries before it keeps to the upstream.
const MOST_NEAR: usize = 8;

/// Knows who has a blob near.
#[async_trait]
pub trait Near: fmt::Debug + Send + Sync + 'static {
    /// Where `digest` can be had without its upstream, `size` bytes long if that is known. Never a
    /// source whose name is in `failed`.
    ///
    /// A pull waits for the answer: a fraction of a second when nothing has failed yet.
    async fn locate(&self, digest: &Digest, size: Option<u64>, failed: &[String]) -> Nearest;
}

/// Where to go.
#[derive(Debug)]
pub struct Nearest {
    /// None: to the upstream.
    pub source: Option<Arc<dyn Source>>,
    /// None: there will be no better answer.
    pub vigil: Option<Arc<dyn Vigil>>,
}

/// Watches over an answer while a fill goes by it; dropped when it does no longer.
#[async_trait]
pub trait Vigil: fmt::Debug + Send + Sync + 'static {
    /// Resolves when the fill had better go another way, which may be never: that way, or None when
    /// it is to ask. Called once.
    async fn outdated(self: Arc<Self>) -> Option<Nearest>;

    /// The blob is kept on the local disk, and this is dropped next: whoever keeps it for others
    /// too may hold on to what it has.
    fn committed(self: Arc<Self>) {}

    /// The local disk keeps nothing of it: whoever may keep it elsewhere can read it here, while it
    /// passes. Nobody waits for `reader`, which fails when it is too slow, but a piece that it gave
    /// is kept until it is dropped: read it at once. The reader ends without an error only when the
    /// whole blob is verified.
    fn passing(self: Arc<Self>, _reader: Reader) {}
}

/// Which way a fill goes, and when it had better ask.
pub(super) struct Compass {
    near: Option<Arc<dyn Near>>,
    step: Step,
}

enum Step {
    Looking(BoxFuture<'static, Nearest>),
    Watching(BoxFuture<'static, Option<Nearest>>),
}

// === impl Compass ===

impl Compass {
    pub(super) fn new(fill: &Fill) -> Self {
        Compass {
            near: fill.shared.near.clone(),
            step: Step::Watching(Box::pin(future::pending())),
        }
    }

    /// Resolves when the way may be another one. Cancel-safe.
    pub(super) async fn turn(&mut self, fill: &Arc<Fill>) {
        let Some(near) = &self.near else {
            return future::pending().await;
        };
        let looking = matches!(self.step, Step::Looking(_));
        if !looking && fill.state().course == Course::Undecided {
            self.step = look(near, fill);
        }
        self.step = match &mut self.step {
            Step::Looking(found) => follow(fill, found.await),
            Step::Watching(outdated) => match outdated.await {
                // It may have failed since it was found.
                Some(nearest) if !fill.state().has_failed(&nearest) => follow(fill, nearest),
                Some(_) | None => look(near, fill),
            },
        };
    }
}

fn follow(fill: &Arc<Fill>, nearest: Nearest) -> Step {
    let outdated: BoxFuture<'static, _> = match &nearest.vigil {
        Some(vigil) => Arc::clone(vigil).outdated(),
        None => Box::pin(future::pending()),
    };
    fill.steer(nearest);
    Step::Watching(outdated)
}

fn look(near: &Arc<dyn Near>, fill: &Fill) -> Step {
    let (size, failed) = {
        let state = fill.state();
        (state.total.or(state.told), state.failed_near())
    };
    let (near, digest) = (Arc::clone(near), fill.digest);
    Step::Looking(Box::pin(async move {
        near.locate(&digest, size, &failed).await
    }))
}

impl Fill {
    /// Goes where `nearest` says.
    fn steer(self: &Arc<Self>, nearest: Nearest) {
        let source = nearest.source.as_ref();
        let name = source
            .map_or("the upstream", |source| source.name())
            .to_owned();
        let (before, first, turned) = {
            let mut state = self.state();
            let before = std::mem::replace(&mut state.vigil, nearest.vigil);
            let course = source.map_or(Course::Sources, |source| state.add_near(source));
            let first = state.map.is_empty();
            (before, first, state.set_course(course))
        };
        if turned && first {
            tracing::debug!(digest = %self.digest, source = name, "fetching from");
        } else if turned {
            tracing::info!(digest = %self.digest, source = name, "fetching the rest from");
        }
        // What was held until now ends only after what replaces it has begun.
        drop(before);
        self.changed();
        self.pass_on();
    }

    /// All the bytes that do not hash came from the near source `at`: it is told, and the blob is
    /// fetched again from elsewhere. False when there is no such way on.
    pub(super) fn condemn(&self, at: usize) -> bool {
        let (source, again) = {
            let mut state = self.state();
            let source = state.source(at);
            state.near_failed(at);
            let again = state.slide.is_none();
            if again {
                state.refetch(None);
            }
            (source, again)
        };
        tracing::warn!(digest = %self.digest, source = source.name(), "wrong bytes");
        source.condemned();
        again
    }
}

// === impl State ===

impl State {
    /// Goes another way: fetchers that are under way the old one stop. False when it is the same.
    pub(super) fn set_course(&mut self, course: Course) -> bool {
        if self.course == course {
            return false;
        }
        self.course = course;
        std::mem::replace(&mut self.turned, CancellationToken::new()).cancel();
        true
    }

    /// Whether that is a source which was of no use before.
    fn has_failed(&self, nearest: &Nearest) -> bool {
        let source = nearest.source.as_ref();
        source.is_some_and(|source| self.failed_near().iter().any(|name| name == source.name()))
    }

    /// The near source is of no use any more; the fill asks for another, unless it has had enough.
    pub(super) fn near_failed(&mut self, at: usize) {
        self.source_broken(at);
        if self.refetch_from == Some(at) {
            self.refetch_from = None;
        }
        if self.course == Course::Near(at) {
            let enough = self.failed_near().len() >= MOST_NEAR;
            self.set_course(if enough {
                Course::Sources
            } else {
                Course::Undecided
            });
        }
    }
}
