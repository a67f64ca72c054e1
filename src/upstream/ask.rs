//! One question to one registry: an endpoint that is not known to be down, its challenge answered
//! once, all within `limits.answer`.

use std::time::Duration;

use ::http::StatusCode;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::pace::Lane;
use super::request::{Answer, Call, is_outage};
use super::{Upstream, UpstreamError, UpstreamErrorKind};
use crate::oci::RepositoryName;
use crate::telemetry::metrics::{Held, UpstreamOutcome, UpstreamRequest};

/// How long a download that has begun waits for an endpoint that may be asked.
const PATIENCE: Duration = Duration::from_secs(6);

impl Upstream {
    /// One try: the endpoints in order until one of them answers, with any status but an outage.
    ///
    /// Fails at once while the upstream limits our rate, or when no endpoint may be asked. A
    /// download that has begun is not stopped by a limit that others ran into, and waits a little
    /// for an endpoint to come back.
    pub(super) async fn ask(
        &self,
        name: &RepositoryName,
        call: &Call,
    ) -> Result<Answer, UpstreamErrorKind> {
        let lane = Lane::from(call);
        let _scout = if call.resumes {
            None
        } else {
            self.pace.admit(lane).await?
        };
        let deadline = Instant::now() + PATIENCE;
        let (mut from, mut last) = (0, None);
        loop {
            let Some(pass) = self.health.admit(from) else {
                if last.is_none() && call.resumes && self.health.recovers(deadline).await {
                    continue;
                }
                break;
            };
            let at = pass.at;
            from = at + 1;
            if at > 0 {
                self.transport.meter.failed_over();
            }
            let mut elsewhere = false;
            // Boxed, because this is where the large futures of the HTTP library begin.
            let answer = Box::pin(self.ask_endpoint(at, name, call, &mut elsewhere)).await;
            self.count(call, &answer);
            match answer {
                Ok(answer) => {
                    pass.answered();
                    self.pace.heard(lane, &answer);
                    return Ok(answer);
                }
                Err(error) if error.is_transient() => {
                    if elsewhere {
                        pass.answered();
                    } else {
                        pass.failed(&error.to_string(), error.rest());
                    }
                    last = Some(error);
                }
                Err(error) => {
                    pass.answered();
                    // The token service's; the upstream's own is an answer.
                    if let UpstreamErrorKind::RateLimited { retry_after } = error {
                        self.pace.limited(retry_after);
                    }
                    return Err(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| {
            self.transport.meter.held(Held::Down);
            self.health.down()
        }))
    }

    /// One endpoint, with one answer to its challenge if it has one. `elsewhere` tells whether the
    /// answer, or its failure, came from where a redirect led.
    async fn ask_endpoint(
        &self,
        index: usize,
        name: &RepositoryName,
        call: &Call,
        elsewhere: &mut bool,
    ) -> Result<Answer, UpstreamErrorKind> {
        let transport = &self.transport;
        let endpoint: &Url = &transport.hosts.endpoints[index];
        let url = endpoint
            .join(&call.path)
            .map_err(|error| UpstreamErrorKind::Invalid(format!("{name} makes no URL: {error}")))?;
        let mut sent = self.auth.authorization(transport, index, name).await?;
        let mut answer = transport
            .follow(call, url.clone(), sent.clone(), elsewhere)
            .await?;
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
                answer = transport.follow(call, url, sent, elsewhere).await?;
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

    /// Does `work`, whose answer is small, when its turn has come. Ends at `limits.answer` and
    /// says whose error it is.
    pub(super) async fn in_turn<T>(
        &self,
        kind: UpstreamRequest,
        work: impl Future<Output = Result<T, UpstreamErrorKind>>,
    ) -> Result<T, UpstreamError> {
        let deadline = Instant::now() + self.transport.limits.answer;
        match self.pace.turn(deadline).await {
            Ok(_turn) => self.bounded(kind, deadline, work).await,
            Err(kind) => Err(self.error(kind)),
        }
    }

    /// Ends `work` at `deadline` and says whose error it is.
    pub(super) async fn bounded<T>(
        &self,
        kind: UpstreamRequest,
        deadline: Instant,
        work: impl Future<Output = Result<T, UpstreamErrorKind>>,
    ) -> Result<T, UpstreamError> {
        let result = timeout_at(deadline, work).await.unwrap_or_else(|_| {
            self.transport.meter.count(kind, UpstreamOutcome::TimedOut);
            let limit = self.transport.limits.answer;
            Err(UpstreamErrorKind::TimedOut(format!(
                "no answer within {limit:?}"
            )))
        });
        result.map_err(|kind| self.error(kind))
    }

    pub(super) fn error(&self, kind: UpstreamErrorKind) -> UpstreamError {
        UpstreamError {
            registry: self.registry.to_string(),
            kind,
        }
    }
}
