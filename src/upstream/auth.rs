//! How an upstream's 401 becomes a token (distribution-spec's Bearer flow, and Basic).
//!
//! A challenge is remembered per endpoint and repository, so that only the first request for a
//! repository meets a 401. Tokens are kept by what they were asked for (realm, service, scope);
//! they live in here, one `Auth` per upstream, and so never cross from one credential to another.
//! Many requests that need the same token wait for one fetch of it.
//!
//! The realm comes from the network, so it is judged before it hears of us: it must be on the
//! upstream's list of auth hosts, on https, and its answer may not redirect.

use std::fmt;
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use http_auth::ChallengeParser;
use moka::Expiry;
use moka::ops::compute::Op;
use serde::Deserialize;
use tokio::time::timeout;
use url::Url;

use super::UpstreamErrorKind;
use super::credentials::Credential;
use super::egress::{Purpose, authority, is_private_channel};
use super::request::Transport;
use crate::oci::RepositoryName;
use crate::telemetry::metrics::{UpstreamOutcome, UpstreamRequest};

/// Limits of one token request.
const TOKEN_BODY: u64 = 128 << 10;
const TOKEN_TIME: Duration = Duration::from_secs(10);
/// Lifetime of a token whose answer has no `expires_in` (distribution's token specification).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// A token is not used in its last seconds: it must still be good when it arrives.
const MARGIN: Duration = Duration::from_secs(10);
const LONGEST_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Remembered challenges and tokens per upstream.
const REMEMBERED: u64 = 10_000;
/// The longest line of `WWW-Authenticate` that is read: what it says is remembered.
const LONGEST_CHALLENGE: usize = 4 << 10;

/// One upstream's challenges, tokens and credential.
pub(super) struct Auth {
    credential: Option<Credential>,
    challenges: moka::sync::Cache<(usize, RepositoryName), Challenge>,
    tokens: moka::future::Cache<TokenRequest, Token>,
}

/// What an endpoint wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer(TokenRequest),
}

/// A token is good for exactly what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct TokenRequest {
    realm: Url,
    service: Option<String>,
    scope: String,
}

#[derive(Clone, Debug)]
struct Token {
    /// `Bearer ...`, marked sensitive.
    header: HeaderValue,
    lifetime: Duration,
}

#[derive(Deserialize)]
struct TokenBody {
    token: Option<String>,
    access_token: Option<String>,
    /// Some registries write a number in quotes; that is as good as nothing.
    expires_in: Option<serde_json::Value>,
}

struct Lifetime;

// === impl Auth ===

impl Auth {
    pub(super) fn new(credential: Option<Credential>) -> Self {
        Auth {
            credential,
            challenges: moka::sync::Cache::new(REMEMBERED),
            tokens: moka::future::Cache::builder()
                .max_capacity(REMEMBERED)
                .expire_after(Lifetime)
                .build(),
        }
    }

    /// What to send to an endpoint at once, by what it said before: None where it never asked.
    pub(super) async fn authorization(
        &self,
        transport: &Transport,
        endpoint: usize,
        name: &RepositoryName,
    ) -> Result<Option<HeaderValue>, UpstreamErrorKind> {
        let key = (endpoint, name.clone());
        match self.challenges.get(&key) {
            None => Ok(None),
            Some(Challenge::Basic) => Ok(self.credential.as_ref().map(Credential::basic)),
            Some(Challenge::Bearer(request)) => {
                let token = self.token(transport, &request).await;
                if token.is_err() {
                    // The upstream may have moved its realm: let it say so again.
                    self.challenges.invalidate(&key);
                }
                token.map(Some)
            }
        }
    }

    /// What to send after a 401 with these headers, or None when there is nothing better than
    /// what was `sent`. Must not be called for a 401 from where a redirect led.
    pub(super) async fn answer(
        &self,
        transport: &Transport,
        endpoint: usize,
        name: &RepositoryName,
        headers: &HeaderMap,
        sent: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, UpstreamErrorKind> {
        let Some(challenge) = Challenge::parse(headers, name)? else {
            return Ok(None);
        };
        let better = match (&challenge, &self.credential) {
            (Challenge::Basic, None) => None,
            (Challenge::Basic, Some(credential)) => {
                Some(credential.basic()).filter(|basic| sent != Some(basic))
            }
            (Challenge::Bearer(request), _) => {
                if let Some(refused) = sent {
                    self.forget(request, refused).await;
                }
                Some(self.token(transport, request).await?)
            }
        };
        self.challenges.insert((endpoint, name.clone()), challenge);
        Ok(better)
    }

    /// Drops a token that was refused, unless somebody has replaced it in the meantime.
    async fn forget(&self, request: &TokenRequest, refused: &HeaderValue) {
        let drop_if_same = |entry: Option<moka::Entry<TokenRequest, Token>>| {
            std::future::ready(match entry {
                Some(entry) if entry.value().header == *refused => Op::Remove,
                _ => Op::Nop,
            })
        };
        self.tokens
            .entry_by_ref(request)
            .and_compute_with(drop_if_same)
            .await;
    }

    /// A kept token or a new one; all who wait for the same one share one fetch and its failure.
    async fn token(
        &self,
        transport: &Transport,
        request: &TokenRequest,
    ) -> Result<HeaderValue, UpstreamErrorKind> {
        let fetch = async {
            let host = authority(&request.realm);
            let result = match timeout(TOKEN_TIME, self.fetch(transport, request)).await {
                Ok(result) => result,
                Err(_) => Err(UpstreamErrorKind::TimedOut(format!(
                    "{host} did not give a token within {TOKEN_TIME:?}"
                ))),
            };
            let outcome = match &result {
                Ok(_) => UpstreamOutcome::Ok,
                Err(kind) => kind.outcome(),
            };
            transport.meter.count(UpstreamRequest::Token, outcome);
            result
        };
        match self.tokens.try_get_with(request.clone(), fetch).await {
            Ok(token) => Ok(token.header),
            Err(kind) => Err(UpstreamErrorKind::clone(&kind)),
        }
    }

    async fn fetch(
        &self,
        transport: &Transport,
        request: &TokenRequest,
    ) -> Result<Token, UpstreamErrorKind> {
        transport.check(&request.realm, Purpose::Token)?;
        if self.credential.is_some() && !is_private_channel(&request.realm) {
            return Err(UpstreamErrorKind::HostRefused(format!(
                "credentials are not sent to {} without https",
                authority(&request.realm)
            )));
        }
        let mut get = reqwest::Request::new(Method::GET, request.url());
        if let Some(credential) = &self.credential {
            get.headers_mut().insert(AUTHORIZATION, credential.basic());
        }
        let answer = transport.send(UpstreamRequest::Token, get).await?;
        if answer.status().is_redirection() {
            return Err(answer.invalid("redirects a request for a token, which is not followed"));
        }
        if answer.status() == StatusCode::NOT_FOUND {
            // Not the repository's absence: that is not for a token service to say.
            return Err(answer.invalid("has no tokens where it was said to have them"));
        }
        let answer = answer.success().await?;
        let host = answer.host().to_owned();
        let body = answer.read(TOKEN_BODY, "a token").await?;
        Token::parse(&body).ok_or_else(|| {
            UpstreamErrorKind::Invalid(format!("{host} answers a request for a token without one"))
        })
    }
}

/// Tokens never show, not even how many there are.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth")
            .field("credential", &self.credential)
            .finish_non_exhaustive()
    }
}

// === impl Challenge ===

impl Challenge {
    /// The challenge to answer: Bearer before Basic, other schemes and broken lines are skipped.
    fn parse(
        headers: &HeaderMap,
        name: &RepositoryName,
    ) -> Result<Option<Self>, UpstreamErrorKind> {
        let lines = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|line| line.to_str().ok());
        let short = lines.filter(|line| line.len() <= LONGEST_CHALLENGE);
        let mut basic = None;
        for challenge in short.flat_map(ChallengeParser::new).map_while(Result::ok) {
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                let parameter = |wanted: &str| {
                    challenge
                        .params
                        .iter()
                        .find(|(key, _)| key.eq_ignore_ascii_case(wanted))
                        .map(|(_, value)| value.to_unescaped())
                };
                let realm = parameter("realm").and_then(|realm| Url::parse(&realm).ok());
                let scope = parameter("scope").unwrap_or_else(|| format!("repository:{name}:pull"));
                return match realm {
                    Some(realm) if realm.has_host() => {
                        let service = parameter("service");
                        Ok(Some(Challenge::Bearer(TokenRequest {
                            realm,
                            service,
                            scope,
                        })))
                    }
                    _ => Err(UpstreamErrorKind::Invalid(
                        "asks for a token but does not say where to get it".into(),
                    )),
                };
            }
        }
        Ok(basic)
    }
}

// === impl TokenRequest ===

impl TokenRequest {
    fn url(&self) -> Url {
        let mut url = self.realm.clone();
        let mut query = url.query_pairs_mut();
        if let Some(service) = &self.service {
            query.append_pair("service", service);
        }
        for scope in self.scope.split_ascii_whitespace() {
            query.append_pair("scope", scope);
        }
        drop(query);
        url
    }
}

// === impl Token ===

impl Token {
    fn parse(body: &[u8]) -> Option<Self> {
        let body: TokenBody = serde_json::from_slice(body).ok()?;
        let value = [body.token, body.access_token]
            .into_iter()
            .flatten()
            .find(|token| !token.is_empty())?;
        let mut header = HeaderValue::try_from(format!("Bearer {value}")).ok()?;
        header.set_sensitive(true);
        let lifetime = match body.expires_in.and_then(|seconds| seconds.as_u64()) {
            Some(seconds) => Duration::from_secs(seconds).min(LONGEST_LIFETIME),
            None => DEFAULT_LIFETIME,
        };
        Some(Token {
            header,
            lifetime: lifetime.saturating_sub(MARGIN),
        })
    }
}

impl Expiry<TokenRequest, Token> for Lifetime {
    fn expire_after_create(&self, _: &TokenRequest, token: &Token, _: Instant) -> Option<Duration> {
        Some(token.lifetime)
    }
}
