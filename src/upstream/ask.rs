//! One question to one registry: its endpoints in order, its challenge answered once, all within
//! `limits.answer`.

use ::http::StatusCode;
use tokio::time::timeout;
use url::Url;

use super::request::{Answer, Call, is_outage};
use super::{Upstream, UpstreamError, UpstreamErrorKind};
use crate::oci::RepositoryName;
use crate::telemetry::metrics::{UpstreamOutcome, UpstreamRequest};

impl Upstream {
    /// One try: the endpoints in order until one of them answers, with any status but an outage.
    pub(super) async fn ask(
        &self,
        name: &RepositoryName,
        call: &Call,
    ) -> Result<Answer, UpstreamErrorKind> {
        let mut last = UpstreamErrorKind::Unavailable("has no endpoint".into());
        for (index, endpoint) in self.transport.hosts.endpoints.iter().enumerate() {
            // Boxed, because this is where the large futures of the HTTP library begin.
            let answer = Box::pin(self.ask_endpoint(index, endpoint, name, call)).await;
            self.count(call, &answer);
            match answer {
                Err(error) if error.is_transient() => last = error,
                answer => return answer,
            }
        }
        Err(last)
    }

    /// One endpoint, with one answer to its challenge if it has one.
    async fn ask_endpoint(
        &self,
        index: usize,
        endpoint: &Url,
        name: &RepositoryName,
        call: &Call,
    ) -> Result<Answer, UpstreamErrorKind> {
        let url = endpoint
            .join(&call.path)
            .map_err(|error| UpstreamErrorKind::Invalid(format!("{name} makes no URL: {error}")))?;
        let transport = &self.transport;
        let mut sent = self.auth.authorization(transport, index, name).await?;
        let mut answer = transport.follow(call, url.clone(), sent.clone()).await?;
        // A challenge from where a redirect led is not ours to answer.
        if answer.status() == StatusCode::UNAUTHORIZED && !answer.left_origin {
            let headers = answer.headers();
            let better = self
                .auth
                .answer(transport, index, name, headers, sent.as_ref())
                .await?;
            if better.is_some() {
                sent = better;
                answer.drain().await;
                answer = transport.follow(call, url, sent).await?;
            }
        }
        if is_outage(answer.status()) {
            Err(answer.into_failure().await)
        } else {
            Ok(answer)
        }
    }

    pub(super) fn count(&self, call: &Call, answer: &Result<Answer, UpstreamErrorKind>) {
        let outcome = match answer {
            Ok(answer) => answer.outcome(),
            Err(kind) => kind.outcome(),
        };
        self.transport.meter.count(call.kind, outcome);
    }

    /// Ends `work` at `limits.answer` and says whose error it is.
    pub(super) async fn bounded<T>(
        &self,
        kind: UpstreamRequest,
        work: impl Future<Output = Result<T, UpstreamErrorKind>>,
    ) -> Result<T, UpstreamError> {
        let limit = self.transport.limits.answer;
        let result = timeout(limit, work).await.unwrap_or_else(|_| {
            self.transport.meter.count(kind, UpstreamOutcome::TimedOut);
            Err(UpstreamErrorKind::TimedOut(format!(
                "no answer within {limit:?}"
            )))
        });
        result.map_err(|kind| UpstreamError {
            registry: self.registry.to_string(),
            kind,
        })
    }
}
