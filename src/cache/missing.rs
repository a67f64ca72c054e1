//! What was asked for while offline and is not here: the list by which the connected side learns what
//! to send next.
//!
//! It is a part of the record of pulls, and grows shorter by itself: what has come meanwhile, by an
//! import above all, is missing no more.

use std::sync::Arc;

use super::Cache;
use super::access::Access;
use super::clock::now;
use super::pulls::{Pull, Verdict, Was};
use crate::oci::{Digest, Reference};
use crate::policy::{Client, Target};

impl Cache {
    /// Pulls that ended because an image, or a part of it, is not here; each by the name by which it
    /// has to be fetched, in order.
    pub async fn missing(self: &Arc<Self>) -> Vec<Pull> {
        let mut missing: Vec<Pull> = Vec::new();
        for mut pull in self.pulls().pulls {
            let verdicts = pull.clients.iter().map(|asker| &asker.verdict);
            let missed = verdicts.rev().find(|verdict| verdict.was == Was::Missing);
            let Some(verdict) = missed else { continue };
            if let Some(there) = &verdict.rewritten_to {
                pull.image = Target::clone(there);
            }
            let known = missing.iter().any(|other| other.image == pull.image);
            if !known && !self.is_whole(&pull.image).await {
                missing.push(pull);
            }
        }
        missing
    }

    /// Whether a manifest is here with the blobs that it names. Manifests below it are asked for by
    /// names of their own.
    async fn is_whole(self: &Arc<Self>, target: &Target) -> bool {
        let repository = &target.repository;
        let digest = match &target.reference {
            Some(Reference::Digest(digest)) => *digest,
            Some(Reference::Tag(tag)) => {
                let record = self.store.tags.get(repository, tag).await;
                match record.and_then(|record| record.newest().map(|entry| entry.digest)) {
                    Some(digest) => digest,
                    None => return false,
                }
            }
            None => return true,
        };
        let link = self.store.link(repository, &digest).await;
        let Some(media_type) = link.and_then(|link| link.media_type) else {
            return false;
        };
        let Ok(Some(manifest)) = self.load(&digest, &media_type).await else {
            return false;
        };
        let children = manifest.children().unwrap_or_default();
        let mut blobs = children.iter().filter(|child| !child.is_manifest);
        blobs.all(|blob| self.store.disk.stat(&blob.digest).is_some())
    }

    /// A blob that is not here makes the manifests that name it images that are not whole.
    pub(super) async fn note_missing_blob(
        &self,
        client: &Client,
        access: &Access,
        digest: &Digest,
    ) {
        let repository = access.repository();
        for parent in self.store.links.parents(repository, digest).await {
            let verdict = Verdict::new(Was::Missing, access.rule().cloned());
            self.pulls
                .note(client, (repository, &parent), verdict, None, now());
        }
    }
}
