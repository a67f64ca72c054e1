//! What refers to a digest: page after page, as tags are listed.

use std::collections::HashSet;

use ::http::Method;
use ::http::header::ACCEPT;
use bytes::Bytes;

use super::request::Call;
use super::tags::next_query;
use super::{Upstream, UpstreamError, UpstreamErrorKind, header};
use crate::oci::{Digest, RepositoryName};
use crate::telemetry::metrics::UpstreamRequest;

const PAGES: usize = 100;

impl Upstream {
    /// The referrers of a digest as the upstream's indexes, one a page, at most
    /// `limits.manifest_size` bytes together; None where the upstream does not have that part of
    /// the API.
    ///
    /// Source: OCI distribution-spec, "Listing Referrers".
    pub async fn referrers(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<Vec<Bytes>>, UpstreamError> {
        self.in_turn(UpstreamRequest::Referrers, self.all_referrers(name, digest))
            .await
    }

    async fn all_referrers(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<Vec<Bytes>>, UpstreamErrorKind> {
        let mut pages: Vec<Bytes> = Vec::new();
        let mut left = self.transport.limits.manifest_size;
        let (mut asked, mut query) = (HashSet::new(), String::new());
        // A second request for the same page means that the upstream's links lead in a circle.
        while pages.len() < PAGES && asked.insert(query.clone()) {
            let call = Call {
                kind: UpstreamRequest::Referrers,
                method: Method::GET,
                path: format!("/v2/{name}/referrers/{digest}{query}"),
                headers: header(ACCEPT, "application/vnd.oci.image.index.v1+json"),
                resumes: false,
            };
            let page = self
                .retries
                .run(|| self.try_referrers(name, &call, left))
                .await?;
            let Some((next, body)) = page else {
                if pages.is_empty() {
                    return Ok(None);
                }
                // In the middle of a list it is no answer to leave a part of it out.
                let lost = "has lost a page of referrers";
                return Err(UpstreamErrorKind::Invalid(lost.into()));
            };
            left = left.saturating_sub(body.len() as u64);
            pages.push(body);
            match next {
                Some(next) => query = format!("?{next}"),
                None => break,
            }
        }
        Ok(Some(pages))
    }

    async fn try_referrers(
        &self,
        name: &RepositoryName,
        call: &Call,
        limit: u64,
    ) -> Result<Option<(Option<String>, Bytes)>, UpstreamErrorKind> {
        let answer = self.ask(name, call).await?;
        // 404 by the specification; the others are how older registries say the same.
        if matches!(answer.status().as_u16(), 400 | 404 | 405 | 501) {
            answer.drain().await;
            return Ok(None);
        }
        let answer = answer.success().await?;
        let next = next_query(&answer);
        Ok(Some((
            next,
            answer.read(limit, "a list of referrers").await?,
        )))
    }
}
