//! Every metric in one struct with typed labels: what can be counted is what is written here.
//!
//! Labels come from closed sets or from the configuration, never from a request, so that no
//! client can make the table grow.

use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::Ledger;

/// The counters themselves; `Default` makes them all zero. One per running server.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Requests that clients made, by route and status.
    pub requests: Family<RequestLabels, Counter>,
    /// Client connections that are open.
    pub connections: Gauge,
    /// Body bytes sent to clients.
    pub sent: Counter,
    /// Times that new TLS files were found, by whether they could be used.
    pub tls_reloads: Family<ReloadLabels, Counter>,
    /// Answers of the cache by kind and by how they came about.
    pub answers: Family<AnswerLabels, Counter>,
    /// Requests that policy refused, by rule.
    pub denials: Family<RuleLabels, Counter>,
    /// Manifests served although a rule objects to them, by rule.
    pub audits: Family<RuleLabels, Counter>,
    /// Requests that policy sent to another place, by rule.
    pub rewrites: Family<RuleLabels, Counter>,
    /// When the policy was last loaded, in unix seconds.
    pub policy_loaded: Gauge,
    /// 1 while the configuration file cannot be used, and the policy is older than it.
    pub policy_reload_failed: Gauge,
    /// Tags that an upstream moved from one digest to another.
    pub tag_moves: Counter,
    /// Targets of pulls on record.
    pub pulls: Gauge,
    /// Targets that went from the record to make room.
    pub pulls_forgotten: Counter,
    /// Images that `warm` made whole and pinned, and those that it could not.
    pub warmed: Counter,
    pub warm_failures: Counter,
    /// Admission reviews, by what was answered.
    pub admissions: Family<AdmissionLabels, Counter>,
    /// Requests sent to upstreams.
    pub upstream_requests: Family<UpstreamLabels, Counter>,
    /// Body bytes received from upstreams.
    pub upstream_received: Family<RegistryLabels, Counter>,
    /// Requests that failed and were to be sent again, by whether they were.
    pub upstream_retries: Family<RetryLabels, Counter>,
    /// Requests sent to another endpoint than the first.
    pub upstream_failovers: Family<RegistryLabels, Counter>,
    /// Times that an endpoint failed and was passed over from then on.
    pub upstream_endpoint_breaks: Family<RegistryLabels, Counter>,
    /// Endpoints that are passed over.
    pub upstream_endpoints_open: Family<RegistryLabels, Gauge>,
    /// Requests that did not go out, by why not.
    pub upstream_held: Family<HeldLabels, Counter>,
    /// How many requests an upstream allows, where it says so (`ratelimit-limit`).
    pub upstream_ratelimit_limit: Family<RegistryLabels, Gauge>,
    /// How many of them are left.
    pub upstream_ratelimit_remaining: Family<RegistryLabels, Gauge>,
    /// Tags and lists served stale, by why.
    pub stale: Family<StaleLabels, Counter>,
    /// Fills that ended, by how.
    pub fills: Family<FillLabels, Counter>,
    /// Fills that are running.
    pub fills_running: Gauge,
    /// Fetchers that went on where a connection was cut or stalled.
    pub fill_resumes: Counter,
    /// Fills that could not keep their bytes (disk full or failing) and slid past their readers.
    pub fill_slides: Counter,
    /// Body bytes received from nearer than the upstream.
    pub near_received: Family<NearLabels, Counter>,
    /// What became of claims of this replica.
    pub claims: Family<ClaimLabels, Counter>,
    /// Requests of other replicas, by what they were answered.
    pub peer_requests: Family<PeerLabels, Counter>,
    /// Bytes of blobs on the local disk.
    pub store_size: Gauge,
    /// Blobs on the local disk.
    pub store_blobs: Gauge,
    /// Blobs evicted to keep below the size limit.
    pub store_evictions: Counter,
    /// Blobs found not to hash and set aside.
    pub store_quarantined: Counter,
    /// Operations on the local disk that failed.
    pub store_errors: Counter,
    /// Things brought to the shared store, by how that went.
    pub shared_published: Family<PublishLabels, Counter>,
    /// Things that wait to be brought there.
    pub shared_waiting: Gauge,
    /// Look-ups in the shared store of what is not here.
    pub shared_lookups: Family<LookupLabels, Counter>,
    /// Hosts that were dialled: they come from the network, so no label may have them.
    pub ledger: Arc<Ledger>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    pub route: RouteLabel,
    pub status: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum RouteLabel {
    Ping,
    Manifest,
    Blob,
    Tags,
    Referrers,
    Health,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AnswerLabels {
    pub kind: RouteLabel,
    pub outcome: OutcomeLabel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum OutcomeLabel {
    Hit,
    Stale,
    Miss,
    Collapsed,
    Passed,
    Redirected,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RuleLabels {
    pub rule: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AdmissionLabels {
    pub result: AdmissionResult,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum AdmissionResult {
    Allowed,
    Warned,
    Denied,
    /// Not a review.
    Invalid,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReloadLabels {
    pub result: ReloadResult,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum ReloadResult {
    Ok,
    Failed,
}

/// `registry` is the key of the configuration or of the known table, never a name from a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UpstreamLabels {
    pub registry: String,
    pub kind: UpstreamRequest,
    pub outcome: UpstreamOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RegistryLabels {
    pub registry: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum UpstreamRequest {
    Manifest,
    Blob,
    Tags,
    Referrers,
    Token,
    /// Who we are, asked of a cloud.
    Identity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum UpstreamOutcome {
    Ok,
    NotFound,
    Refused,
    RateLimited,
    Unavailable,
    TimedOut,
    Invalid,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RetryLabels {
    pub registry: String,
    pub result: RetryResult,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum RetryResult {
    Sent,
    /// Too many of the last requests had been sent again already.
    OverBudget,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HeldLabels {
    pub registry: String,
    pub reason: Held,
}

/// Why a request did not go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Held {
    /// The upstream wants to be left alone for a while.
    RateLimited,
    /// Every endpoint is passed over.
    Down,
    /// Too many are under way.
    Busy,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StaleLabels {
    pub reason: Stale,
}

/// Why something too old was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Stale {
    /// The upstream limits our rate.
    RateLimited,
    /// Little is left of its rate limit.
    Spared,
    /// It failed a moment ago, and was not asked.
    Down,
    /// It was asked, and failed.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FillLabels {
    pub result: FillResult,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum FillResult {
    Done,
    Abandoned,
    Corrupt,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NearLabels {
    pub source: NearSource,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum NearSource {
    /// The store that replicas share.
    Shared,
    /// Another replica.
    Peer,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ClaimLabels {
    pub event: ClaimEvent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum ClaimEvent {
    Made,
    /// From a replica that went silent.
    TakenOver,
    /// To a replica that thought this one dead.
    Lost,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PeerLabels {
    pub result: PeerResult,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum PeerResult {
    Served,
    NotFound,
    /// From outside the peers' networks, or not signed with their secret.
    Refused,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PublishLabels {
    pub kind: SharedKind,
    pub result: PublishResult,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LookupLabels {
    pub kind: SharedKind,
    pub result: LookupResult,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum SharedKind {
    Blob,
    Link,
    Led,
    Tag,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum PublishResult {
    Done,
    /// It was there already.
    Present,
    /// It is here no longer.
    Gone,
    /// It will be tried again.
    Failed,
    /// Too much was waiting.
    Dropped,
    /// It went by, was kept nowhere here, and did not get there.
    Missed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum LookupResult {
    Hit,
    Miss,
    Failed,
    /// Not what its name says, and set aside.
    Wrong,
}

// === impl Metrics ===

impl Metrics {
    /// The `OpenMetrics` text of all metrics; its content type is
    /// `application/openmetrics-text; version=1.0.0; charset=utf-8`.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut text, &self.registry());
        text
    }

    /// Families and counters are handles, so a registry made for one scrape sees live values.
    fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("portcullis");
        let r = &mut registry;
        r.register("requests", "Client requests", self.requests.clone());
        r.register(
            "connections",
            "Open client connections",
            self.connections.clone(),
        );
        r.register_with_unit(
            "sent",
            "Body bytes sent to clients",
            Unit::Bytes,
            self.sent.clone(),
        );
        r.register(
            "tls_reloads",
            "New TLS files found",
            self.tls_reloads.clone(),
        );
        r.register("answers", "Cache answers", self.answers.clone());
        r.register(
            "denials",
            "Requests refused by policy",
            self.denials.clone(),
        );
        r.register("admissions", "Admission reviews", self.admissions.clone());
        r.register(
            "audits",
            "Manifests served although a rule objects",
            self.audits.clone(),
        );
        r.register(
            "rewrites",
            "Requests sent to another place by policy",
            self.rewrites.clone(),
        );
        r.register_with_unit(
            "policy_loaded_at",
            "When the policy was last loaded",
            Unit::Seconds,
            self.policy_loaded.clone(),
        );
        r.register(
            "policy_reload_failed",
            "Whether the configuration file is unusable",
            self.policy_reload_failed.clone(),
        );
        r.register(
            "tag_moves",
            "Tags that an upstream moved",
            self.tag_moves.clone(),
        );
        r.register(
            "upstream_requests",
            "Upstream requests",
            self.upstream_requests.clone(),
        );
        r.register_with_unit(
            "upstream_received",
            "Body bytes received from upstreams",
            Unit::Bytes,
            self.upstream_received.clone(),
        );
        self.register_manners(r);
        r.register("fills", "Fills that ended", self.fills.clone());
        r.register("fills_running", "Running fills", self.fills_running.clone());
        r.register(
            "fill_resumes",
            "Fetchers resumed",
            self.fill_resumes.clone(),
        );
        r.register("fill_slides", "Fills that slid", self.fill_slides.clone());
        self.register_pulls(r);
        self.register_replicas(r);
        r.register_with_unit(
            "store_size",
            "Bytes on disk",
            Unit::Bytes,
            self.store_size.clone(),
        );
        r.register("store_blobs", "Blobs on disk", self.store_blobs.clone());
        r.register(
            "store_evictions",
            "Blobs evicted",
            self.store_evictions.clone(),
        );
        r.register(
            "store_quarantined",
            "Blobs set aside",
            self.store_quarantined.clone(),
        );
        r.register(
            "store_errors",
            "Disk operations that failed",
            self.store_errors.clone(),
        );
        registry
    }

    /// The record of pulls, and images that came before them.
    fn register_pulls(&self, r: &mut Registry) {
        r.register(
            "warmed",
            "Images made whole and pinned by warm",
            self.warmed.clone(),
        );
        r.register(
            "warm_failures",
            "Images that warm could not make whole",
            self.warm_failures.clone(),
        );
        r.register("pulls", "Targets of pulls on record", self.pulls.clone());
        r.register(
            "pulls_forgotten",
            "Targets of pulls no longer on record",
            self.pulls_forgotten.clone(),
        );
    }

    /// How upstreams fare and how they are treated.
    fn register_manners(&self, r: &mut Registry) {
        r.register(
            "upstream_retries",
            "Failed upstream requests to be sent again",
            self.upstream_retries.clone(),
        );
        r.register(
            "upstream_failovers",
            "Requests sent to another endpoint than the first",
            self.upstream_failovers.clone(),
        );
        r.register(
            "upstream_endpoint_breaks",
            "Endpoints that failed and were passed over from then on",
            self.upstream_endpoint_breaks.clone(),
        );
        r.register(
            "upstream_endpoints_open",
            "Endpoints that are passed over",
            self.upstream_endpoints_open.clone(),
        );
        r.register(
            "upstream_held",
            "Upstream requests that did not go out",
            self.upstream_held.clone(),
        );
        r.register(
            "upstream_ratelimit_limit",
            "Requests that an upstream allows",
            self.upstream_ratelimit_limit.clone(),
        );
        r.register(
            "upstream_ratelimit_remaining",
            "Requests that are left of what an upstream allows",
            self.upstream_ratelimit_remaining.clone(),
        );
        r.register("stale", "Tags and lists served stale", self.stale.clone());
    }

    /// What replicas do for each other.
    fn register_replicas(&self, r: &mut Registry) {
        r.register(
            "shared_published",
            "Things brought to the shared store",
            self.shared_published.clone(),
        );
        r.register(
            "shared_waiting",
            "Things waiting to be brought to the shared store",
            self.shared_waiting.clone(),
        );
        r.register(
            "shared_lookups",
            "Look-ups in the shared store",
            self.shared_lookups.clone(),
        );
        r.register_with_unit(
            "near_received",
            "Body bytes received from the shared store and from peers",
            Unit::Bytes,
            self.near_received.clone(),
        );
        r.register("claims", "Claims of this replica", self.claims.clone());
        r.register(
            "peer_requests",
            "Requests of other replicas",
            self.peer_requests.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_show_in_the_text() {
        let metrics = Metrics::default();
        let labels = RequestLabels {
            route: RouteLabel::Blob,
            status: 206,
        };
        metrics.requests.get_or_create(&labels).inc();
        let text = metrics.encode();
        let line = r#"portcullis_requests_total{route="Blob",status="206"} 1"#;
        assert!(text.contains(line), "{text}");
    }
}
