//! Tags that answer only with what they have been seen with for a while (`min_age`).
//!
//! What the upstream names is asked for and noted as ever, so that its time begins to run; only the
//! answer is an older digest, or a refusal that says when there will be one. Times are our own:
//! those inside an image are whatever its maker wrote there. What an operator warms by hand counts
//! as old enough, for everybody and from then on.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::accept::Accept;
use super::access::Access;
use super::clock::now;
use super::manifest::ManifestAnswer;
use super::{Cache, CacheError};
use crate::oci::{Reference, Repository, Tag};
use crate::policy::Client;
use crate::store::{TagEntry, Variant};

impl Cache {
    /// What the tag points to, or did long enough.
    pub(super) async fn settled(
        self: &Arc<Self>,
        access: &Access,
        tag: &Tag,
        accept: &Accept<'_>,
        variant: Variant,
    ) -> Result<ManifestAnswer, CacheError> {
        let answer = self.current(access, tag, accept, variant).await?;
        let Some(obligation) = access.obligation() else {
            return Ok(answer);
        };
        let record = self.store.tags.get(access.repository(), tag).await;
        let entries = record
            .as_deref()
            .map_or(&[][..], |record| record.entries(variant));
        match old_enough(entries, obligation.min_age, now()) {
            Ok(entry) if entry.digest == *answer.manifest.digest() => Ok(answer),
            Ok(entry) => self.manifest_by_digest(access, &entry.digest, &[]).await,
            Err(from) => {
                let from = Timestamp::from_second(from).unwrap_or(Timestamp::MAX);
                Err(CacheError::Denied(Arc::new(obligation.refusal(from))))
            }
        }
    }
}

impl Cache {
    /// An operator wants what a tag points to now, however young it is.
    pub(super) async fn vouch_for(
        self: &Arc<Self>,
        client: &Client,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<(), CacheError> {
        let access = self.enter(client, repository, Some(reference)).await?;
        if access.obligation().is_none() {
            return Ok(());
        }
        if let Some(Reference::Tag(tag)) = access.reference() {
            let variant = Variant::Any;
            let answer = self
                .current(&access, tag, &Accept::everything(), variant)
                .await?;
            let digest = answer.manifest.digest();
            self.store.vouch_for(access.repository(), tag, digest).await;
        }
        Ok(())
    }
}

/// The newest entry that was first seen longer ago than `age` or that an operator vouched for, or
/// the time from which there will be one. Times are unix seconds, entries are newest last.
fn old_enough(entries: &[TagEntry], age: Duration, now: i64) -> Result<&TagEntry, i64> {
    let age = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
    let from = |entry: &TagEntry| entry.first_seen.saturating_add(age);
    let enough = |entry: &&TagEntry| entry.vouched || from(entry) <= now;
    let old = entries.iter().rev().find(enough);
    old.ok_or_else(|| entries.iter().map(from).min().unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Digest, MediaType};

    fn entry(name: &str, first_seen: i64) -> TagEntry {
        let media_type = MediaType::parse("application/json").unwrap();
        TagEntry::new(Digest::sha256(name.as_bytes()), media_type, 1, first_seen)
    }

    #[test]
    fn the_newest_that_is_old_enough() {
        let day = 24 * 60 * 60;
        let age = Duration::from_hours(72);
        let entries = [
            entry("moved back and forth", 9 * day),
            entry("old", day),
            entry("less old", 2 * day),
            entry("new", 4 * day),
        ];
        let at = |now: i64| old_enough(&entries, age, now).map(|entry| entry.first_seen / day);
        assert_eq!(at(4 * day - 1), Err(4 * day));
        assert_eq!(at(4 * day), Ok(1));
        assert_eq!(at(5 * day), Ok(2));
        assert_eq!(at(7 * day - 1), Ok(2));
        assert_eq!(at(7 * day), Ok(4));
        assert_eq!(at(99 * day), Ok(4));
        let mut vouched = entries.clone();
        vouched[2].vouched = true;
        let at = |now: i64| old_enough(&vouched, age, now).map(|entry| entry.first_seen / day);
        assert_eq!(at(4 * day - 1), Ok(2));
        assert_eq!(at(7 * day), Ok(4), "newer, and old enough by itself");
        assert_eq!(old_enough(&entries, Duration::MAX, day), Err(i64::MAX));
        assert_eq!(old_enough(&[], age, day), Err(i64::MAX));
    }
}
