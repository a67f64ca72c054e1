//! The list of tags: page after page until the upstream has no more, or we have had enough.

use std::collections::{BTreeSet, HashSet};

use ::http::header::LINK;
use ::http::{HeaderMap, Method};
use bytes::Bytes;
use serde::Deserialize;
use url::Url;

use super::request::{Answer, Call};
use super::{Upstream, UpstreamError, UpstreamErrorKind};
use crate::oci::{RepositoryName, Tag};
use crate::telemetry::metrics::UpstreamRequest;

const PAGE_BYTES: u64 = 4 << 20;
const PAGE_TAGS: usize = 1000;
const PAGES: usize = 100;

/// All tags of a repository, sorted, each once.
#[derive(Clone, Debug)]
pub struct TagList {
    pub tags: Vec<Tag>,
}

#[derive(Deserialize)]
struct Page {
    /// Some registries write null for an empty list.
    tags: Option<Vec<String>>,
}

impl Upstream {
    /// The tags of a repository: at most 100 pages of 4 MiB, and 100,000 tags. What is no tag by
    /// the specification's grammar is left out.
    pub async fn tags(&self, name: &RepositoryName) -> Result<TagList, UpstreamError> {
        self.in_turn(UpstreamRequest::Tags, self.all_tags(name))
            .await
    }

    async fn all_tags(&self, name: &RepositoryName) -> Result<TagList, UpstreamErrorKind> {
        let mut tags = BTreeSet::new();
        let mut asked = HashSet::new();
        let mut query = format!("n={PAGE_TAGS}");
        // A second request for the same page means that the upstream's links lead in a circle.
        while asked.len() < PAGES && asked.insert(query.clone()) {
            let call = Call {
                kind: UpstreamRequest::Tags,
                method: Method::GET,
                path: format!("/v2/{name}/tags/list?{query}"),
                headers: HeaderMap::new(),
                resumes: false,
            };
            let (next, body) = self.retries.run(|| self.try_page(name, &call)).await?;
            let page: Page = serde_json::from_slice(&body)
                .map_err(|_| UpstreamErrorKind::Invalid("sends no list of tags".into()))?;
            tags.extend(
                page.tags
                    .unwrap_or_default()
                    .iter()
                    .filter_map(|tag| tag.parse().ok()),
            );
            match next {
                Some(next) if tags.len() < PAGES * PAGE_TAGS => query = next,
                _ => break,
            }
        }
        Ok(TagList {
            tags: tags.into_iter().collect(),
        })
    }

    async fn try_page(
        &self,
        name: &RepositoryName,
        call: &Call,
    ) -> Result<(Option<String>, Bytes), UpstreamErrorKind> {
        let answer = self.ask(name, call).await?.success().await?;
        let next = next_query(&answer);
        Ok((next, answer.read(PAGE_BYTES, "a page of tags").await?))
    }
}

/// The query of the link to the next page (RFC 8288). Only the query: path and host are ours to
/// choose, so that no link can send us anywhere else.
pub(super) fn next_query(answer: &Answer) -> Option<String> {
    let (target, parameters) = answer.header(LINK)?.strip_prefix('<')?.split_once('>')?;
    let is_next = parameters.split(';').any(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or_default();
        name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"') == "next"
    });
    let url: Url = answer.url().join(target).ok()?;
    url.query()
        .filter(|query| is_next && !query.is_empty())
        .map(str::to_owned)
}
