//! Requests of other replicas: a blob that is here or on its way here, and nothing else.
//!
//! Whoever says `Authorization: Portcullis` is judged here and never answered as a client: the
//! socket must be inside the peers' networks and the signature theirs, see `upstream::peer`. The
//! asker has decided policy and link. A request starts no download and asks nobody.

use http::{Method, Request, Response};

use super::body::Body;
use super::error::ApiError;
use super::listen::Peer;
use super::respond::{self, Shape};
use super::v2::Api;
use crate::cache::CacheError;
use crate::oci::Digest;
use crate::telemetry::RequestId;
use crate::telemetry::metrics::{PeerLabels, PeerResult};
use crate::upstream::{PEER_BLOBS, PeerKey};

/// Whether a request says that it is one of another replica.
pub(super) fn is_claimed<B>(request: &Request<B>) -> bool {
    PeerKey::is_claimed(request.headers())
}

/// The answer to such a request.
pub(super) async fn answer<B>(
    api: &Api,
    request: &Request<B>,
    peer: &Peer,
    id: RequestId,
) -> Response<Body> {
    let (result, answer) = match judge(api, request, peer) {
        None => (PeerResult::Refused, Err(ApiError::peer_refused())),
        Some(digest) => find(api, request, peer, digest.as_ref(), id).await,
    };
    api.metrics
        .peer_requests
        .get_or_create(&PeerLabels { result })
        .inc();
    answer.unwrap_or_else(|error| respond::error(request.method() == Method::HEAD, &error))
}

/// What a genuine request names: a digest, or nothing that there could be. None: not genuine.
#[allow(
    clippy::option_option,
    reason = "no right, and no such thing, are two answers"
)]
fn judge<B>(api: &Api, request: &Request<B>, peer: &Peer) -> Option<Option<Digest>> {
    let path = request.uri().path();
    let genuine = api.peers.as_ref().is_some_and(|key| {
        key.is_inside(peer.address) && key.is_genuine(request.method(), path, request.headers())
    });
    if !genuine {
        tracing::warn!(client = %peer.address, "refused a request in the name of a replica");
        return None;
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let digest = path.strip_prefix(PEER_BLOBS).filter(|_| reads);
    Some(digest.and_then(|digest| digest.parse().ok()))
}

async fn find<B>(
    api: &Api,
    request: &Request<B>,
    peer: &Peer,
    digest: Option<&Digest>,
    id: RequestId,
) -> (PeerResult, Result<Response<Body>, ApiError>) {
    let mut shape = Shape::of(request);
    let found = match digest {
        Some(digest) => {
            let wanted = shape.wanted(request.headers(), digest);
            let found = api.cache.blob_for_peer(digest, wanted);
            tokio::time::timeout(api.answer_within, found)
                .await
                .ok()
                .flatten()
        }
        None => None,
    };
    let Some(found) = found else {
        let error = ApiError::cache(&CacheError::BlobUnknown, id);
        return (PeerResult::NotFound, Err(error));
    };
    let answer = respond::blob(&shape, found, peer.queue.clone());
    (PeerResult::Served, answer)
}
