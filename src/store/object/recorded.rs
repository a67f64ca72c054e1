//! What the object store's library asks for, in the ledger of hosts: the store itself, and whoever
//! gives our credential for it.

use std::sync::Arc;

use async_trait::async_trait;
use http_body::Frame;
use http_body_util::BodyExt as _;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};

use super::hosts::Host;
use crate::telemetry::Ledger;
use crate::telemetry::ledger::{Dial, Purpose, Row};

/// The key of the configuration that all of it is dialled for.
const OWNER: &str = "store.shared";

/// The HTTP client that the rest of the process made, so that there is one way out, with a note of
/// each request.
#[derive(Clone, Debug)]
pub(super) struct Recorded {
    pub(super) client: reqwest::Client,
    pub(super) ledger: Arc<Ledger>,
    /// Any other host is asked for a credential.
    pub(super) store: Host,
}

impl Recorded {
    /// The row of a request that goes out now.
    pub(super) fn asked(&self, host: &str, port: Option<u16>, tls: bool) -> Arc<Row> {
        let port = port.unwrap_or(if tls { 443 } else { 80 });
        let is_store = host == self.store.host && port == self.store.port;
        let row = self.ledger.row(&Dial {
            host,
            port,
            owner: OWNER,
            purpose: if is_store {
                Purpose::Store
            } else {
                Purpose::Identity
            },
        });
        row.asked();
        row
    }
}

impl HttpConnector for Recorded {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Recorded {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let uri = request.uri();
        let tls = uri.scheme_str() != Some("http");
        let row = self.asked(uri.host().unwrap_or_default(), uri.port_u16(), tls);
        let answer = self.client.call(request).await;
        let (head, body) = answer.inspect_err(|_| row.failed())?.into_parts();
        let failing = Arc::clone(&row);
        let body = body
            .map_frame(move |frame: Frame<bytes::Bytes>| {
                row.received(frame.data_ref().map_or(0, |data| data.len() as u64));
                frame
            })
            .map_err(move |error| {
                failing.failed();
                error
            });
        Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body)))
    }
}
