//! Tag lists and referrers: what a repository says about itself.
//!
//! Both are believed for `fresh_for`, served stale when the upstream fails, and kept in memory
//! only. Offline, tags are those whose records we hold, and referrers the manifests that we hold.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::access::Access;
use super::error::Kind;
use super::flight::landed;
use super::{Cache, CacheError, Outcome};
use crate::oci::{Digest, Reference, Repository, Tag};
use crate::telemetry::metrics::Stale;
use crate::upstream::Upstream;

/// Tags in one answer, whatever `n` says.
const MOST_TAGS: usize = 1000;
/// Referrers of one manifest that are followed.
const MOST_REFERRERS: usize = 1000;
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

#[derive(Clone, Debug)]
pub struct TagsAnswer {
    pub tags: Vec<Tag>,
    /// There are more: the last tag of this answer, for the `Link` header.
    pub more: Option<Tag>,
    pub outcome: Outcome,
}

#[derive(Clone, Debug)]
pub struct ReferrersAnswer {
    /// An image index.
    pub body: Bytes,
    /// Only one artifact type is in it, as was asked: becomes `OCI-Filters-Applied`.
    pub filtered: bool,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Tags(Repository),
    Referrers(Repository, Digest),
}

/// A list in memory: tags, one a line, or the index of referrers.
#[derive(Clone, Debug)]
pub(super) struct Listing {
    body: Bytes,
    fetched: Instant,
}

/// An index whose descriptors stay as the upstream spelled them.
#[derive(Deserialize)]
struct Index<'a> {
    #[serde(borrow, default)]
    manifests: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Named {
    digest: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referrer<'a> {
    #[serde(borrow)]
    artifact_type: Option<std::borrow::Cow<'a, str>>,
}

// === impl ReferrersAnswer ===

impl ReferrersAnswer {
    /// Of the manifests in the index, at most 1000; what makes no sense is left out.
    #[must_use]
    pub fn digests(&self) -> Vec<Digest> {
        let index = serde_json::from_slice::<Index<'_>>(&self.body);
        let manifests = index.map(|index| index.manifests).unwrap_or_default();
        let digest = |raw: &RawValue| Some(serde_json::from_str::<Named>(raw.get()).ok()?.digest);
        manifests
            .into_iter()
            .filter_map(digest)
            .take(MOST_REFERRERS)
            .collect()
    }
}

// === impl Listing ===

impl Listing {
    pub(super) fn weight(&self) -> usize {
        self.body.len() + 256
    }
}

// === impl Cache ===

impl Cache {
    pub(super) async fn list_tags(
        self: &Arc<Self>,
        access: &Access,
        n: Option<usize>,
        last: Option<&Tag>,
    ) -> Result<TagsAnswer, CacheError> {
        let repository = access.repository();
        let n = n.unwrap_or(MOST_TAGS).min(MOST_TAGS);
        let (body, outcome) = if self.offline {
            let tags = self.store.tags.tags(repository).await?;
            if tags.is_empty() {
                return Err(CacheError::Offline { listing: true });
            }
            (lines(tags), Outcome::Hit)
        } else {
            self.listing(access, Key::Tags(repository.clone())).await?
        };
        let text = std::str::from_utf8(&body).unwrap_or_default();
        let after = |line: &&str| last.is_none_or(|last| *line > last.as_str());
        let mut tags = text
            .lines()
            .filter(after)
            .filter_map(|line| line.parse::<Tag>().ok());
        let page: Vec<Tag> = tags.by_ref().take(n).collect();
        let more = if tags.next().is_some() {
            page.last().cloned()
        } else {
            None
        };
        Ok(TagsAnswer {
            tags: page,
            more,
            outcome,
        })
    }

    pub(super) async fn list_referrers(
        self: &Arc<Self>,
        access: &Access,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<ReferrersAnswer, CacheError> {
        let (body, outcome) = if self.offline {
            (self.held_referrers(access, digest).await?, Outcome::Hit)
        } else {
            let key = Key::Referrers(access.repository().clone(), *digest);
            self.listing(access, key).await?
        };
        let Some(artifact_type) = artifact_type else {
            return Ok(ReferrersAnswer {
                body,
                filtered: false,
                outcome,
            });
        };
        let index: Index<'_> = serde_json::from_slice(&body).map_err(not_an_index)?;
        let matches = |descriptor: &&RawValue| {
            serde_json::from_str::<Referrer<'_>>(descriptor.get())
                .is_ok_and(|referrer| referrer.artifact_type.as_deref() == Some(artifact_type))
        };
        let chosen = index.manifests.into_iter().filter(matches);
        let chosen: Vec<&str> = chosen.map(RawValue::get).collect();
        Ok(ReferrersAnswer {
            body: index_of(&chosen),
            filtered: true,
            outcome,
        })
    }

    /// A list from memory while it is fresh, else from the upstream, else stale.
    async fn listing(
        self: &Arc<Self>,
        access: &Access,
        key: Key,
    ) -> Result<(Bytes, Outcome), CacheError> {
        let known = self.listings.get(&key);
        if let Some(known) = &known
            && known.fetched.elapsed() < self.config.fresh_for
        {
            return Ok((known.body.clone(), Outcome::Hit));
        }
        let upstream = match access.ask(CacheError::Offline { listing: true }) {
            Ok(upstream) => upstream,
            Err(error) => return self.stale_listing(known, error),
        };
        if let Some(known) = known.as_ref().filter(|known| self.may_be_stale(known))
            && upstream.must_spare()
        {
            self.count_stale(Stale::Spared);
            return Ok((known.body.clone(), Outcome::Stale));
        }
        let flight = self.listing_flights.join(&key, || {
            let (cache, upstream, key) = (Arc::clone(self), Arc::clone(upstream), key.clone());
            let access = access.clone();
            async move {
                let body = match &key {
                    Key::Tags(repository) => fetch_tags(&upstream, repository).await,
                    Key::Referrers(_, digest) => {
                        cache.fetch_referrers(&upstream, &access, digest).await
                    }
                }?;
                let fetched = Instant::now();
                cache.listings.insert(
                    key,
                    Listing {
                        body: body.clone(),
                        fetched,
                    },
                );
                Ok(body)
            }
        });
        let (fetched, joined) = flight.await;
        match landed(fetched) {
            Ok(body) if joined => Ok((body, Outcome::Collapsed)),
            Ok(body) => Ok((body, Outcome::Miss)),
            Err(error) => {
                self.recent
                    .note_registry(&access.repository().registry, &error);
                if !error.leaves_stale() {
                    self.listings.invalidate(&key);
                }
                self.stale_listing(known, error)
            }
        }
    }

    /// What we have, if it is not too old and `error` leaves the question open.
    fn stale_listing(
        &self,
        known: Option<Listing>,
        error: CacheError,
    ) -> Result<(Bytes, Outcome), CacheError> {
        match known {
            Some(known) if error.leaves_stale() && self.may_be_stale(&known) => {
                self.count_stale(error.as_stale());
                Ok((known.body, Outcome::Stale))
            }
            _ => Err(error),
        }
    }

    fn may_be_stale(&self, known: &Listing) -> bool {
        known.fetched.elapsed() < self.config.stale_for
    }

    /// An upstream without the API may still keep the list under the tag that older clients
    /// write; one that has neither has no referrers.
    ///
    /// Source: OCI distribution-spec, "Referrers tag schema".
    async fn fetch_referrers(
        self: &Arc<Self>,
        upstream: &Upstream,
        access: &Access,
        digest: &Digest,
    ) -> Result<Bytes, CacheError> {
        let name = &access.repository().name;
        let found = upstream.referrers(name, digest).await;
        let found = found.map_err(|error| CacheError::from_upstream(error, Kind::List))?;
        if let Some(pages) = found {
            return joined(&pages);
        }
        let Some(tag) = fallback_tag(digest, "") else {
            return Ok(no_referrers());
        };
        match self.manifest_by_tag(access, &tag, &[INDEX_TYPE]).await {
            Ok(answer) if serde_json::from_slice::<Index<'_>>(answer.manifest.bytes()).is_ok() => {
                Ok(answer.manifest.bytes().clone())
            }
            Ok(_) | Err(CacheError::ManifestUnknown) => Ok(no_referrers()),
            Err(error) => Err(error),
        }
    }
}

// === offline ===

impl Cache {
    /// The referrers that are here, and those that the tag of older clients lists.
    async fn held_referrers(
        self: &Arc<Self>,
        access: &Access,
        digest: &Digest,
    ) -> Result<Bytes, CacheError> {
        let repository = access.repository();
        let subject = Reference::Digest(*digest);
        let mut known = self.store.links.children(repository, &subject).await;
        known.sort_unstable();
        let mut entries = Vec::new();
        // An index leads to its images, which are about nothing.
        for referrer in known {
            let answer = self.manifest_by_digest(access, &referrer, &[]).await;
            let Ok(manifest) = answer.map(|answer| answer.manifest) else {
                continue;
            };
            if manifest.subject() == Some(*digest) {
                entries.extend(manifest.as_referrer());
            }
            if entries.len() >= MOST_REFERRERS {
                break;
            }
        }
        let mut index = index_of(&entries);
        if let Some(tag) = fallback_tag(digest, "")
            && let Ok(answer) = self.manifest_by_tag(access, &tag, &[INDEX_TYPE]).await
            && let Ok(both) = joined(&[index.clone(), answer.manifest.bytes().clone()])
        {
            index = both;
        } else if entries.is_empty() {
            return Err(CacheError::Offline { listing: true });
        }
        Ok(index)
    }
}

/// The tag under which clients without the API keep what refers to `digest`: the list itself
/// without a suffix, and with `.sig`, `.att` or `.sbom` what cosign signs and attests.
///
/// Source: OCI distribution-spec, "Referrers tag schema"; cosign's signature specification.
#[must_use]
pub fn fallback_tag(digest: &Digest, suffix: &str) -> Option<Tag> {
    let tag = format!("{}-{}{suffix}", digest.algorithm(), &digest.hex()[..64]);
    tag.parse().ok()
}

async fn fetch_tags(upstream: &Upstream, repository: &Repository) -> Result<Bytes, CacheError> {
    let list = upstream.tags(&repository.name).await;
    let list = list.map_err(|error| CacheError::from_upstream(error, Kind::List))?;
    Ok(lines(list.tags))
}

/// The specification wants tags in lexical order.
fn lines(mut tags: Vec<Tag>) -> Bytes {
    tags.sort_unstable();
    tags.dedup();
    let mut text = String::new();
    for tag in tags {
        text.push_str(tag.as_str());
        text.push('\n');
    }
    text.into()
}

/// One index for all pages, with each manifest once; a single one stays as it came.
fn joined(pages: &[Bytes]) -> Result<Bytes, CacheError> {
    let (mut manifests, mut seen) = (Vec::new(), HashSet::new());
    for page in pages {
        let index: Index<'_> = serde_json::from_slice(page).map_err(not_an_index)?;
        let new = index.manifests.into_iter().map(RawValue::get);
        manifests.extend(
            new.filter(|text| match serde_json::from_str::<Named>(text) {
                Ok(named) => seen.insert(named.digest),
                Err(_) => true,
            }),
        );
    }
    match pages {
        [page] => Ok(page.clone()),
        _ => Ok(index_of(&manifests)),
    }
}

fn no_referrers() -> Bytes {
    index_of::<&str>(&[])
}

/// `manifests` are descriptors, as JSON.
fn index_of<S: AsRef<str>>(manifests: &[S]) -> Bytes {
    let manifests: Vec<&str> = manifests.iter().map(AsRef::as_ref).collect();
    let manifests = manifests.join(",");
    format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX_TYPE}","manifests":[{manifests}]}}"#).into()
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err wants"
)]
fn not_an_index(error: serde_json::Error) -> CacheError {
    CacheError::WrongBytes(format!("the list of referrers is no image index: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_become_one_index_and_a_single_one_stays_as_it_came() {
        let page = |manifests: &str| Bytes::from(format!(r#"{{ "manifests": [{manifests}] }}"#));
        let (one, two) = (page(r#"{"a": 1}"#), page(r#"{"b":2},{"c":3}"#));
        assert_eq!(joined(std::slice::from_ref(&one)).unwrap(), one);
        let both = joined(&[one, two]).unwrap();
        assert!(both.ends_with(br#""manifests":[{"a": 1},{"b":2},{"c":3}]}"#));
        let named = format!(r#"{{"digest":"{}"}}"#, Digest::sha256(b""));
        let twice = joined(&[page(&named), page(&named)]).unwrap();
        assert_eq!(twice, index_of(&[named]));
        joined(&[Bytes::from_static(b"<html>")]).unwrap_err();
    }
}
