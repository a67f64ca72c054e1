//! How an upstream's 401 becomes a token (distribution-spec's Bearer flow, and Basic).
//!
//! A challenge is remembered per endpoint and repository, so that only the first request for a
//! repository meets a 401. Tokens are kept by who asked for them and for what (realm, service,
//! scope), and live in here, one `Auth` per upstream, so that they never cross from one credential to
//! another. Many requests that need the same token wait for one fetch of it.
//!
//! A login that is refused is looked up again where it comes from, once: it may have been replaced.
//!
//! The realm comes from the network, so it is judged before it hears of us: it must be on the
//! upstream's list of auth hosts, on https, and its answer may not redirect.

use std::fmt;
use std::sync::Arc;
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
use super::credentials::{Azure, Claims, Credential, Logins, Principal, post};
use super::egress::{Purpose, authority, is_private_channel};
use super::request::{Transport, is_outage};
use super::retry::retry_after;
use crate::oci::RepositoryName;
use crate::telemetry::Secret;
use crate::telemetry::metrics::{UpstreamOutcome, UpstreamRequest};

/// Limits of one token request.
const TOKEN_BODY: u64 = 128 << 10;
const TOKEN_TIME: Duration = Duration::from_secs(10);
/// Lifetime of a token of which neither the answer's `expires_in` nor the token itself tells it
/// (distribution's token specification).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// A token is not used in its last seconds: it must still be good when it arrives.
const MARGIN: Duration = Duration::from_secs(10);
const LONGEST_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// How a token service that was given a refresh token knows us.
const CLIENT_ID: &str = "portcullis";
/// Remembered challenges and tokens per upstream.
const REMEMBERED: u64 = 10_000;
/// The longest line of `WWW-Authenticate` that is read: what it says is remembered.
const LONGEST_CHALLENGE: usize = 4 << 10;

/// One upstream's challenges, tokens and logins.
pub(super) struct Auth {
    logins: Arc<Logins>,
    challenges: moka::sync::Cache<(usize, RepositoryName), Challenge>,
    tokens: moka::future::Cache<TokenKey, Token>,
}

/// Whose token it is, None where nobody is logged in, and what for.
type TokenKey = (Option<Principal>, TokenRequest);

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
    pub(super) fn new(logins: Arc<Logins>) -> Self {
        Auth {
            logins,
            challenges: moka::sync::Cache::new(REMEMBERED),
            tokens: moka::future::Cache::builder()
                .max_capacity(REMEMBERED)
                .expire_after(Lifetime)
                .build(),
        }
    }

    /// Hosts that are dialled to learn who we are.
    pub(super) fn identity_hosts(&self) -> Vec<String> {
        self.logins.identity_hosts()
    }

    /// What to send to an endpoint at once, by what it said before: None where it never asked.
    pub(super) async fn authorization(
        &self,
        transport: &Transport,
        endpoint: usize,
        name: &RepositoryName,
    ) -> Result<Option<HeaderValue>, UpstreamErrorKind> {
        let key = (endpoint, name.clone());
        let Some(challenge) = self.challenges.get(&key) else {
            return Ok(None);
        };
        let credential = self.logins.current(name).await?;
        let header = self.header(transport, name, &challenge, credential).await;
        if header.is_err() {
            // The upstream may have moved its realm: let it say so again.
            self.challenges.invalidate(&key);
        }
        header
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
        let mut credential = self.logins.current(name).await?;
        if let Some(known) = &credential
            && sent.is_some()
            && challenge.direct(known).as_ref() == sent
        {
            credential = self.logins.instead_of(known.principal(), name).await?;
            if credential.is_none() {
                return Ok(None);
            }
        }
        if let (Challenge::Bearer(request), Some(refused)) = (&challenge, sent) {
            let principal = credential.as_ref().map(Credential::principal);
            self.forget((principal, request.clone()), refused).await;
        }
        let better = self.header(transport, name, &challenge, credential).await?;
        self.challenges.insert((endpoint, name.clone()), challenge);
        Ok(better)
    }

    /// The answer to a challenge with this login; with what took its place where it is refused.
    async fn header(
        &self,
        transport: &Transport,
        name: &RepositoryName,
        challenge: &Challenge,
        credential: Option<Credential>,
    ) -> Result<Option<HeaderValue>, UpstreamErrorKind> {
        if let Some(header) = credential
            .as_ref()
            .and_then(|known| challenge.direct(known))
        {
            return Ok(Some(header));
        }
        let Challenge::Bearer(request) = challenge else {
            return Ok(None);
        };
        let principal = credential.as_ref().map(Credential::principal);
        let token = self.token(transport, request, credential).await;
        let (Err(UpstreamErrorKind::Refused), Some(principal)) = (&token, principal) else {
            return token.map(Some);
        };
        match self.logins.instead_of(principal, name).await? {
            None => token.map(Some),
            instead => self.token(transport, request, instead).await.map(Some),
        }
    }

    /// Drops a token that was refused, unless somebody has replaced it in the meantime.
    async fn forget(&self, key: TokenKey, refused: &HeaderValue) {
        let drop_if_same = |entry: Option<moka::Entry<TokenKey, Token>>| {
            std::future::ready(match entry {
                Some(entry) if entry.value().header == *refused => Op::Remove,
                _ => Op::Nop,
            })
        };
        self.tokens.entry(key).and_compute_with(drop_if_same).await;
    }

    /// A kept token or a new one; all who wait for the same one share one fetch and its failure.
    async fn token(
        &self,
        transport: &Transport,
        request: &TokenRequest,
        credential: Option<Credential>,
    ) -> Result<HeaderValue, UpstreamErrorKind> {
        let key = (
            credential.as_ref().map(Credential::principal),
            request.clone(),
        );
        let fetch = async {
            let host = authority(&request.realm);
            let fetch = request.fetch(transport, credential.as_ref());
            let result = match timeout(TOKEN_TIME, fetch).await {
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
        match self.tokens.try_get_with(key, fetch).await {
            Ok(token) => Ok(token.header),
            Err(kind) => Err(UpstreamErrorKind::clone(&kind)),
        }
    }
}

/// Tokens never show, not even how many there are.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth")
            .field("logins", &self.logins)
            .finish_non_exhaustive()
    }
}

// === impl Challenge ===

impl Challenge {
    /// What answers it without asking anybody for a token.
    fn direct(&self, credential: &Credential) -> Option<HeaderValue> {
        match self {
            Challenge::Basic => credential.basic().or_else(|| credential.bearer()),
            Challenge::Bearer(_) => credential.bearer(),
        }
    }

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
    async fn fetch(
        &self,
        transport: &Transport,
        credential: Option<&Credential>,
    ) -> Result<Token, UpstreamErrorKind> {
        transport.check(&self.realm, Purpose::Token)?;
        if credential.is_some() && !is_private_channel(&self.realm) {
            return Err(UpstreamErrorKind::HostRefused(format!(
                "credentials are not sent to {} without https",
                authority(&self.realm)
            )));
        }
        match credential {
            Some(Credential::Azure(azure)) => self.fetch_from_azure(transport, azure).await,
            Some(Credential::Refresh(token)) => {
                let client = [("client_id", CLIENT_ID)];
                self.send(transport, self.refresh(token, &client)).await
            }
            // With a token of its own nobody asks for one.
            None | Some(Credential::Password { .. } | Credential::Bearer(_)) => {
                let mut get = reqwest::Request::new(Method::GET, self.url());
                if let Some(basic) = credential.and_then(Credential::basic) {
                    get.headers_mut().insert(AUTHORIZATION, basic);
                }
                self.send(transport, get).await
            }
        }
    }

    /// An identity becomes a refresh token, and that a token. A refresh token may have been revoked
    /// before its end: then there is one more.
    async fn fetch_from_azure(
        &self,
        transport: &Transport,
        azure: &Azure,
    ) -> Result<Token, UpstreamErrorKind> {
        let own = self.realm.host_str().unwrap_or_default();
        let service = self.service.as_deref().unwrap_or(own);
        let mut refresh = azure.refresh_token(transport, &self.realm, service).await?;
        let mut result = self.send(transport, self.refresh(&refresh, &[])).await;
        if let Err(UpstreamErrorKind::Refused) = result
            && azure.refused(&self.realm, service, &refresh)
        {
            refresh = azure.refresh_token(transport, &self.realm, service).await?;
            result = self.send(transport, self.refresh(&refresh, &[])).await;
        }
        result.map_err(|failure| match failure {
            UpstreamErrorKind::Refused => UpstreamErrorKind::LoginRefused(format!(
                "token: {} gives our identity no token for {}: it needs the role AcrPull there",
                authority(&self.realm),
                self.scope
            )),
            failure => failure.at("token"),
        })
    }

    async fn send(
        &self,
        transport: &Transport,
        request: reqwest::Request,
    ) -> Result<Token, UpstreamErrorKind> {
        let answer = transport.send(UpstreamRequest::Token, request).await?;
        let (host, status) = (answer.host().to_owned(), answer.status());
        if status.is_success() {
            let body = answer.success().await?.read(TOKEN_BODY, "a token").await?;
            return Token::parse(&body).ok_or_else(|| {
                UpstreamErrorKind::Invalid(format!(
                    "{host} answers a request for a token without one"
                ))
            });
        }
        let retry_after = retry_after(answer.headers());
        // Its words are not shown: it has seen our login and may repeat it.
        answer.drain().await;
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => UpstreamErrorKind::Refused,
            StatusCode::TOO_MANY_REQUESTS => UpstreamErrorKind::RateLimited { retry_after },
            status if is_outage(status) => UpstreamErrorKind::Unavailable(format!(
                "{host} answered {status} to a request for a token"
            )),
            status if status.is_redirection() => UpstreamErrorKind::Invalid(format!(
                "{host} redirects a request for a token, which is not followed"
            )),
            // 404 among them, which is not the repository's absence: that is not for a token service
            // to say.
            status => UpstreamErrorKind::Invalid(format!(
                "{host} has no tokens where it was said to have them ({status})"
            )),
        })
    }

    /// Asks with a refresh token, which goes into a form.
    fn refresh(&self, token: &Secret<String>, more: &[(&str, &str)]) -> reqwest::Request {
        let mut fields = vec![("grant_type", "refresh_token")];
        let service = self.service.iter();
        fields.extend(service.map(|service| ("service", service.as_str())));
        fields.extend(more);
        fields.push(("scope", &self.scope));
        fields.push(("refresh_token", token.expose()));
        post(self.realm.clone(), &fields)
    }

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
        let seconds = body.expires_in.and_then(|seconds| seconds.as_u64());
        // Azure's registries say it nowhere else.
        let lifetime = seconds
            .map(Duration::from_secs)
            .or_else(|| Claims::of(&value).lifetime())
            .unwrap_or(DEFAULT_LIFETIME)
            .min(LONGEST_LIFETIME);
        Some(Token {
            header,
            lifetime: lifetime.saturating_sub(MARGIN),
        })
    }
}

impl Expiry<TokenKey, Token> for Lifetime {
    fn expire_after_create(&self, _: &TokenKey, token: &Token, _: Instant) -> Option<Duration> {
        Some(token.lifetime)
    }
}
