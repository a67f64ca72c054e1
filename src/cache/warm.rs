//! Many images made whole and pinned, a few at a time: by command, and on a schedule.
//!
//! Each is acknowledged by itself, when its pin would survive a power loss. What was fetched of an
//! image that failed stays in the cache, so that doing it again goes on from there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::rand;
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::Cache;
use super::closure::Progress;
use super::keep::{By, KeepError, Pinned};
use crate::oci::{Image, Platform};

/// Images that are made whole at once; each fetches a few blobs at once.
const AT_ONCE: usize = 3;
/// Images of one command, more than any cluster runs.
pub const MOST_IMAGES: usize = 10_000;
/// Tries of one image whose upstream fails.
const TRIES: u32 = 3;
/// How long to wait before the second try; the third waits twice as long.
const PAUSE: Duration = Duration::from_secs(1);
/// The first round starts soon, but replicas that start together do not.
const FIRST: Duration = Duration::from_secs(5);
const SHORTEST: Duration = Duration::from_mins(1);

/// `[warm]`: images that are made whole again and again.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub images: Vec<String>,
    /// From one round to the next, give or take a tenth.
    #[serde(deserialize_with = "crate::units::duration")]
    pub every: Duration,
    /// Of images with several; empty: all of them.
    pub platforms: Vec<String>,
}

/// What is to be made whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub images: Vec<Image>,
    /// Of images with several; empty: all of them.
    pub platforms: Vec<Platform>,
}

/// What became of one image.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Warmed {
    Done(Pinned),
    Failed { image: String, error: String },
}

/// What became of all of them, in the order in which they were named.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    pub images: Vec<Warmed>,
    pub failed: usize,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Config {
            images: Vec::new(),
            every: Duration::from_hours(6),
            platforms: Vec::new(),
        }
    }
}

impl Config {
    /// # Errors
    /// The key and what is wrong with it.
    pub fn wanted(&self) -> Result<Wanted, (&'static str, String)> {
        if self.every < SHORTEST {
            return Err(("every", "must be at least 1m".to_owned()));
        }
        let images = self.images.iter().map(|text| {
            let image = text.parse::<Image>();
            image.map_err(|error| ("images", format!("{text:?}: {error}")))
        });
        let platforms = self.platforms.iter().map(|text| {
            let platform = text.parse::<Platform>();
            platform.map_err(|error| ("platforms", format!("{text:?}: {error}")))
        });
        Ok(Wanted {
            images: images.collect::<Result<_, _>>()?,
            platforms: platforms.collect::<Result<_, _>>()?,
        })
    }
}

// === impl Cache ===

impl Cache {
    /// Makes images whole and pins them. One that fails does not keep the others from it.
    ///
    /// Cancel-safe: what is pinned stays pinned, what was fetched stays in the cache.
    pub async fn warm(
        self: &Arc<Self>,
        wanted: &Wanted,
        by: By,
        report: &(dyn Fn(Progress) + Send + Sync),
    ) -> Summary {
        let all = Mutex::new(vec![Progress::default(); wanted.images.len()]);
        let warmed = stream::iter(wanted.images.iter().cloned().enumerate()).map(|(at, image)| {
            let all = &all;
            async move {
                let tell = |progress: Progress| {
                    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                    all[at] = progress;
                    let sum = all
                        .iter()
                        .copied()
                        .fold(Progress::default(), Progress::with);
                    drop(all);
                    report(sum);
                };
                self.warm_one(&image, &wanted.platforms, by, &tell).await
            }
        });
        let images: Vec<Warmed> = warmed.buffered(AT_ONCE).collect().await;
        let failed = |warmed: &&Warmed| matches!(warmed, Warmed::Failed { .. });
        let failed = images.iter().filter(failed).count();
        Summary { images, failed }
    }

    async fn warm_one(
        self: &Arc<Self>,
        image: &Image,
        platforms: &[Platform],
        by: By,
        tell: &(dyn Fn(Progress) + Send + Sync),
    ) -> Warmed {
        let mut attempt = 1;
        loop {
            let error = match self.pin(image, platforms, by, tell).await {
                Ok(pinned) => {
                    self.metrics.warmed.inc();
                    return Warmed::Done(pinned);
                }
                Err(error) => error,
            };
            let may_pass = matches!(&error, KeepError::Incomplete(error) if error.may_pass());
            if attempt < TRIES && may_pass {
                tracing::info!(%image, %error, attempt, "an image is tried again");
                tokio::time::sleep(PAUSE * attempt).await;
                attempt += 1;
                continue;
            }
            self.metrics.warm_failures.inc();
            return Warmed::Failed {
                image: image.to_string(),
                error: error.to_string(),
            };
        }
    }

    /// Warms what the configuration names, round after round, until `stop`.
    pub async fn keep_warm(
        self: Arc<Self>,
        wanted: Wanted,
        every: Duration,
        stop: CancellationToken,
    ) {
        let mut wait = FIRST.min(every).mul_f64(chance());
        while stop
            .run_until_cancelled(tokio::time::sleep(wait))
            .await
            .is_some()
        {
            let round = self.warm(&wanted, By::Schedule, &|_| ());
            let Some(summary) = stop.run_until_cancelled(round).await else {
                return;
            };
            for warmed in &summary.images {
                if let Warmed::Failed { image, error } = warmed {
                    tracing::warn!(image, error, "not warm");
                }
            }
            let (images, failed) = (summary.images.len(), summary.failed);
            tracing::info!(images, failed, "warmed what the configuration names");
            wait = every.mul_f64(0.9 + 0.2 * chance());
        }
    }
}

/// From 0 to 1.
fn chance() -> f64 {
    let mut bytes = [0; 4];
    // Without chance everything happens a little later than it might.
    if rand::fill(&mut bytes).is_err() {
        return 1.0;
    }
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}
