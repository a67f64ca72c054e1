//! What has to stay.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::Value;

use super::PruneError;
use crate::oci::Digest;
use crate::store::TagRecord;
use crate::store::object::{Document, Listed, Shared, SharedError, Tree, Version};
use crate::store::used;

/// Requests on their way at once.
pub(super) const AT_ONCE: usize = 16;
/// Larger than any manifest, in bytes: what is larger leads nowhere.
const MANIFEST: u64 = 4 << 20;
/// From here on, in bytes, it is worth to look at the beginning first: most of it are layers.
const PEEK: u64 = 64 << 10;
/// What replicas' clocks may differ from the store's, in seconds.
const SKEW: i64 = 3600;

/// A blob in the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blob {
    pub(super) size: u64,
    pub(super) modified: i64,
}

#[derive(Debug)]
pub(super) struct Marks {
    pub(super) before: i64,
    pub(super) blobs: HashMap<Digest, Blob>,
    marked: HashSet<Digest>,
    /// Those whose references are marked too.
    followed: HashSet<Digest>,
    /// Roots that were read, as they were.
    read: HashMap<String, Version>,
}

/// What a manifest or an index refers to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct References {
    /// Every digest in it, wherever.
    pub(super) all: Vec<Digest>,
    /// Those that are manifests themselves.
    pub(super) manifests: Vec<Digest>,
    /// It is a manifest: it says what its blobs are.
    pub(super) has_blobs: bool,
}

impl Marks {
    pub(super) fn new(before: i64) -> Self {
        Marks {
            before,
            blobs: HashMap::new(),
            marked: HashSet::new(),
            followed: HashSet::new(),
            read: HashMap::new(),
        }
    }

    pub(super) fn kept(&self) -> u64 {
        let stays = |digest: &&Digest| !self.is_doomed(digest);
        self.blobs.keys().filter(stays).count() as u64
    }

    pub(super) fn is_doomed(&self, digest: &Digest) -> bool {
        let old = self
            .blobs
            .get(digest)
            .is_some_and(|blob| self.is_old(blob.modified));
        old && !self.marked.contains(digest)
    }

    pub(super) fn is_old(&self, modified: i64) -> bool {
        modified < self.before
    }

    /// Lists the blobs and marks those that have to stay. What came since the last call is added.
    pub(super) async fn mark(&mut self, shared: &Arc<Shared>) -> Result<(), PruneError> {
        let mut listed = shared.list(Tree::Blobs);
        while let Some(listed) = listed.try_next().await? {
            // What is named otherwise is not ours.
            if let Some(digest) = listed.digest() {
                let (size, modified) = (listed.size, listed.modified);
                self.blobs.insert(digest, Blob { size, modified });
            }
        }
        let mut roots = Vec::new();
        for tree in [Tree::Pins, Tree::Used, Tree::Claims, Tree::Repositories] {
            roots.extend(self.roots(shared, tree).await?);
        }
        // Half an image may have been uploaded lately, over layers that have long been there.
        let young = |(digest, blob): (&Digest, &Blob)| {
            (!self.is_old(blob.modified) && blob.size <= MANIFEST).then_some(*digest)
        };
        roots.extend(self.blobs.iter().filter_map(young));
        self.follow(shared, roots).await
    }

    /// The same for pins alone, which may keep what is old.
    pub(super) async fn mark_pins(&mut self, shared: &Arc<Shared>) -> Result<(), PruneError> {
        let roots = self.roots(shared, Tree::Pins).await?;
        self.follow(shared, roots).await
    }

    /// The roots that the objects of one tree name, as far as they were not read before.
    async fn roots(&mut self, shared: &Arc<Shared>, tree: Tree) -> Result<Vec<Digest>, PruneError> {
        let listed: Vec<Listed> = {
            let (before, read) = (self.before, &self.read);
            let counts = move |listed: &Listed| match tree {
                Tree::Used => used::is_since(listed.name(), before),
                Tree::Repositories => {
                    listed.directory() == "_tags" && listed.modified >= before - SKEW
                }
                _ => true,
            };
            let new = |listed: &Listed| read.get(listed.path()) != Some(&listed.version);
            let keep = |listed: &Listed| std::future::ready(counts(listed) && new(listed));
            shared.list(tree).try_filter(keep).try_collect().await?
        };
        let mut roots = Vec::new();
        if tree == Tree::Claims {
            roots.extend(listed.iter().filter_map(Listed::digest));
            return Ok(roots);
        }
        let read = listed.into_iter().map(|listed| async {
            let document = shared.get_listed(&listed).await;
            document.map(|document| (listed, document))
        });
        let mut read = stream::iter(read).buffer_unordered(AT_ONCE);
        while let Some((listed, document)) = read.try_next().await? {
            // It may have gone since.
            let Some(Document { bytes, version }) = document else {
                continue;
            };
            let named = match tree {
                Tree::Pins => pinned(&bytes),
                Tree::Used => used::read(&bytes),
                _ => tagged(&bytes, self.before),
            };
            let name = listed.path().to_owned();
            let Some(named) = named else {
                return Err(PruneError::Unreadable(name));
            };
            roots.extend(named);
            self.read.insert(name, version);
        }
        Ok(roots)
    }

    /// Marks `roots`, which may be manifests, and whatever they lead to.
    async fn follow(&mut self, shared: &Shared, mut roots: Vec<Digest>) -> Result<(), PruneError> {
        while !roots.is_empty() {
            self.marked.extend(&roots);
            // What is not there leads nowhere; what came after the list was made is young, and so
            // is what came with it.
            roots.retain(|digest| self.blobs.contains_key(digest) && self.followed.insert(*digest));
            let next: Vec<(Digest, Blob)> = roots
                .drain(..)
                .filter_map(|digest| Some((digest, *self.blobs.get(&digest)?)))
                .collect();
            let next = next
                .into_iter()
                .map(|(digest, blob)| read(shared, digest, blob.size));
            let mut next = stream::iter(next).buffer_unordered(AT_ONCE);
            while let Some(references) = next.try_next().await? {
                self.marked.extend(&references.all);
                roots.extend(&references.manifests);
            }
        }
        Ok(())
    }
}

/// What a blob of that size refers to: nothing unless it is a manifest, and nothing when it has gone
/// since it was listed.
pub(super) async fn read(
    shared: &Shared,
    digest: Digest,
    size: u64,
) -> Result<References, PruneError> {
    if size > MANIFEST || (size > PEEK && !may_be_json(shared, &digest).await?) {
        return Ok(References::default());
    }
    let Some(bytes) = shared.read(&digest).await? else {
        return Ok(References::default());
    };
    if Digest::of(digest.algorithm(), &bytes) != digest {
        return Err(PruneError::Unreadable(digest.to_string()));
    }
    Ok(References::of(&bytes))
}

async fn may_be_json(shared: &Shared, digest: &Digest) -> Result<bool, SharedError> {
    let Some(mut body) = shared.open(digest, Some(0..16)).await? else {
        return Ok(false);
    };
    let beginning = body.chunk().await?.unwrap_or_default();
    let first = beginning.trim_ascii_start().first();
    Ok(first.is_none_or(|first| *first == b'{'))
}

impl References {
    /// Reads generously: a digest that is none keeps too much at worst. What is no JSON leads
    /// nowhere.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut references = References::default();
        if bytes.trim_ascii_start().first() == Some(&b'{')
            && let Ok(document) = serde_json::from_slice(bytes)
        {
            references.collect(&document);
            let described = |key| document.get(key).into_iter().flat_map(entries);
            let mut described = ["config", "layers", "blobs"]
                .into_iter()
                .flat_map(described);
            references.has_blobs = described.any(|entry| entry.get("digest").is_some());
        }
        references
    }

    // serde_json reads nothing deeper than 128.
    fn collect(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.all.extend(text.parse::<Digest>()),
            Value::Array(values) => values.iter().for_each(|value| self.collect(value)),
            Value::Object(object) => {
                for list in ["manifests", "subject"] {
                    for entry in object.get(list).into_iter().flat_map(entries) {
                        let digest = entry.get("digest").and_then(Value::as_str);
                        let digest = digest.and_then(|text| text.parse::<Digest>().ok());
                        self.manifests.extend(digest);
                    }
                }
                object.values().for_each(|value| self.collect(value));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

fn entries(value: &Value) -> &[Value] {
    match value {
        Value::Array(values) => values,
        value => std::slice::from_ref(value),
    }
}

/// The digests of a pin: its closure, where that is a list of digests or of descriptors.
fn pinned(bytes: &Bytes) -> Option<Vec<Digest>> {
    let pin: Value = serde_json::from_slice(bytes).ok()?;
    let closure = pin.get("closure")?.as_array()?;
    let digest = |entry: &Value| {
        let text = entry.as_str().or_else(|| entry.get("digest")?.as_str())?;
        text.parse().ok()
    };
    closure.iter().map(digest).collect()
}

/// What a tag pointed to since `before`, and what it points to now if anybody asked since.
fn tagged(bytes: &Bytes, before: i64) -> Option<Vec<Digest>> {
    let record: TagRecord = serde_json::from_slice(bytes).ok()?;
    Some(record.since(before).map(|entry| entry.digest).collect())
}
