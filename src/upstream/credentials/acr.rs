//! What an Azure container registry gives for an identity of Azure.
//!
//! `/oauth2/exchange` gives a refresh token for our access token, and `/oauth2/token`, the realm that
//! the registry names, gives a token for one repository for that. Both are the registry's own hosts:
//! the realm has been judged, and the exchange is beside it.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde::Deserialize;
use url::Url;

use super::azure::{Azure, post};
use super::kept::Kept;
use crate::telemetry::Secret;
use crate::telemetry::metrics::UpstreamRequest;
use crate::upstream::UpstreamErrorKind;
use crate::upstream::egress::authority;
use crate::upstream::request::Transport;
use crate::upstream::retry::retry_after;

const BODY: u64 = 64 << 10;
/// Of a token that does not say how long it is good.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Exchanged {
    refresh_token: String,
}

/// What a token says about itself. Nothing is decided by it but when to ask for another.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(in crate::upstream) struct Claims {
    exp: Option<u64>,
    iat: Option<u64>,
    tid: Option<String>,
}

impl Azure {
    /// A refresh token for the registry whose `realm` and `service` these are.
    ///
    /// # Errors
    /// Say which step failed, `identity` or `exchange`.
    pub(in crate::upstream) async fn refresh_token(
        &self,
        transport: &Transport,
        realm: &Url,
        service: &str,
    ) -> Result<Secret<String>, UpstreamErrorKind> {
        let kept = self.kept(realm, service);
        kept.get(|| self.exchange(transport, realm, service)).await
    }

    /// Forgets a refresh token that was refused. Whether another may do better.
    pub(in crate::upstream) fn refused(
        &self,
        realm: &Url,
        service: &str,
        refused: &Secret<String>,
    ) -> bool {
        let is_refused = |held: &Secret<String>| held.expose() == refused.expose();
        self.kept(realm, service).refuse(is_refused)
    }

    fn kept(&self, realm: &Url, service: &str) -> Arc<Kept<Secret<String>>> {
        let key = (realm.origin().ascii_serialization(), service.to_owned());
        self.exchanged.get_with(key, Arc::default)
    }

    /// With each of our access tokens until the registry takes one. The first refusal is the one that
    /// is told: the later ones are for registries that are set up otherwise.
    async fn exchange(
        &self,
        transport: &Transport,
        realm: &Url,
        service: &str,
    ) -> Result<(Secret<String>, Option<Duration>), UpstreamErrorKind> {
        let mut first = None;
        for access in self.access() {
            let result = match access.await {
                Ok(access) => self.exchange_one(transport, realm, service, &access).await,
                Err(failure) => Err(failure),
            };
            match result {
                Err(failure @ UpstreamErrorKind::LoginRefused(_)) => {
                    first.get_or_insert(failure);
                }
                result => return result,
            }
        }
        Err(first.unwrap_or(UpstreamErrorKind::Refused))
    }

    async fn exchange_one(
        &self,
        transport: &Transport,
        realm: &Url,
        service: &str,
        access: &Secret<String>,
    ) -> Result<(Secret<String>, Option<Duration>), UpstreamErrorKind> {
        let mut url = realm.clone();
        url.set_path("/oauth2/exchange");
        url.set_query(None);
        url.set_fragment(None);
        let claims = Claims::of(access.expose());
        let tenant = claims.tid.as_deref().or(self.tenant_id());
        let mut fields = vec![("grant_type", "access_token"), ("service", service)];
        fields.extend(tenant.map(|tenant| ("tenant", tenant)));
        fields.push(("access_token", access.expose()));
        let host = authority(&url);
        let sent = transport.send(UpstreamRequest::Token, post(url, &fields));
        let answer = Box::pin(sent).await.map_err(at_exchange)?;
        let status = answer.status();
        if !status.is_success() {
            let retry_after = retry_after(answer.headers());
            // It has seen our token and may repeat it: its words are not shown.
            answer.drain().await;
            return Err(match status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    UpstreamErrorKind::LoginRefused(format!(
                        "exchange: {host} answered {} to our identity, which needs the role AcrPull \
                         on that registry",
                        status.as_u16()
                    ))
                }
                StatusCode::TOO_MANY_REQUESTS => UpstreamErrorKind::RateLimited { retry_after },
                status if status.is_server_error() => UpstreamErrorKind::Unavailable(format!(
                    "exchange: {host} answered {}",
                    status.as_u16()
                )),
                status => UpstreamErrorKind::Invalid(format!(
                    "exchange: {host} answered {}; is it a registry of Azure?",
                    status.as_u16()
                )),
            });
        }
        let body = answer.read(BODY, "a token").await.map_err(at_exchange)?;
        let token = serde_json::from_slice::<Exchanged>(&body).ok();
        let token = token.filter(|token| !token.refresh_token.is_empty());
        let Some(token) = token.map(|token| Secret::new(token.refresh_token)) else {
            let text = format!("exchange: {host} answered without a token");
            return Err(UpstreamErrorKind::Invalid(text));
        };
        let lifetime = Claims::of(token.expose()).lifetime();
        Ok((token, Some(lifetime.unwrap_or(DEFAULT_LIFETIME))))
    }
}

fn at_exchange(failure: UpstreamErrorKind) -> UpstreamErrorKind {
    failure.at("exchange")
}

// === impl Claims ===

impl Claims {
    /// Nothing where `token` is no JWT.
    pub(in crate::upstream) fn of(token: &str) -> Self {
        let claims = token.split('.').nth(1).and_then(|part| {
            let bytes = URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok()?;
            serde_json::from_slice(&bytes).ok()
        });
        claims.unwrap_or_default()
    }

    /// From its issue to its end, so that no clock has to agree with ours.
    pub(in crate::upstream) fn lifetime(&self) -> Option<Duration> {
        Some(Duration::from_secs(self.exp?.checked_sub(self.iat?)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_how_long_it_is_good() {
        let token = |claims: &str| format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims));
        let claims = Claims::of(&token(r#"{"iat":1000,"exp":4600,"tid":"t"}"#));
        assert_eq!(claims.lifetime(), Some(Duration::from_secs(3600)));
        assert_eq!(claims.tid.as_deref(), Some("t"));
        for token in [
            "opaque",
            "a.b.c",
            &token("{\"exp\":4600}"),
            &token("{\"iat\":4600,\"exp\":1000}"),
            &token("[]"),
        ] {
            assert_eq!(Claims::of(token).lifetime(), None, "{token}");
        }
    }
}
