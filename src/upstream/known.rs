//! The well-known public registries and the hosts that stand behind each.
//!
//! Hosts change: quay.io went from four to seven CDN names, Docker Hub added a second CDN. So the
//! table carries a date, and a redirect to a host that it lacks is refused with the configuration
//! line that would allow it. k8s.gcr.io is left out on purpose: it is frozen since 2023-04-03 and
//! registry.k8s.io took its place.

/// When the table was last compared with what the registries document.
pub const AS_OF: &str = "2026-11-22";

/// How one registry is reached. Beside the lists, its endpoint may always issue its tokens and
/// be redirected to.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// As image names write it. A row with a leading `*.` is only data for entries of
    /// `[upstreams]`: nothing below it is served unasked.
    pub registry: &'static str,
    /// The host of the API where it is not the registry's own name.
    pub endpoint: Option<&'static str>,
    pub auth_hosts: &'static [&'static str],
    pub redirect_hosts: &'static [&'static str],
}

const NOWHERE: &[&str] = &[];

const fn own(registry: &'static str, redirect_hosts: &'static [&'static str]) -> Known {
    Known {
        registry,
        endpoint: None,
        auth_hosts: NOWHERE,
        redirect_hosts,
    }
}

const QUAY_CDN: &[&str] = &[
    "cdn.quay.io",
    "cdn01.quay.io",
    "cdn02.quay.io",
    "cdn03.quay.io",
    "cdn04.quay.io",
    "cdn05.quay.io",
    "cdn06.quay.io",
    "quay-registry.s3.amazonaws.com",
    "quayio-production-s3.s3.amazonaws.com",
];

/// Which of these networks answers is chosen per request. To clients inside AWS the Hub has
/// given a bucket in their region, `docker-images-prod.s3.dualstack.<region>.amazonaws.com`: there
/// the refusal names the line to add.
const DOCKER_CDN: &[&str] = &[
    "production.cloudflare.docker.com",
    "production.cloudfront.docker.com",
    "docker-images-prod.6aa30f8b08e16409b46e0173d6de2f56.r2.cloudflarestorage.com",
];

/// Artifact Registry answers with relative redirects; Cloud Storage is for what is left of the
/// old Container Registry.
const GOOGLE_STORAGE: &[&str] = &["storage.googleapis.com"];

/// The buckets of registry.k8s.io are named after their regions. Each is listed because
/// `*.amazonaws.com` would be all of S3.
macro_rules! kubernetes_hosts {
    ($($region:literal)*) => {
        &[
            "*.pkg.dev",
            $(concat!(
                "prod-registry-k8s-io-", $region, ".s3.dualstack.", $region, ".amazonaws.com"
            ),)*
            "767373bbdcb8270361b96548387bf2a9ad0d48758c35-eu-west-2.s3.dualstack.eu-west-2.amazonaws.com",
        ]
    };
}

const KUBERNETES: &[&str] = kubernetes_hosts! {
    "af-south-1" "ap-east-1" "ap-northeast-1" "ap-northeast-2" "ap-northeast-3" "ap-south-1"
    "ap-south-2" "ap-southeast-1" "ap-southeast-2" "ap-southeast-3" "ap-southeast-4"
    "ap-southeast-5" "ap-southeast-6" "ap-southeast-7" "ca-central-1" "ca-west-1" "eu-central-1"
    "eu-central-2" "eu-north-1" "eu-south-1" "eu-south-2" "eu-west-1" "eu-west-3" "il-central-1"
    "me-central-1" "mx-central-1" "sa-east-1" "us-east-1" "us-east-2" "us-west-1" "us-west-2"
};

/// The table itself.
pub const REGISTRIES: &[Known] = &[
    Known {
        registry: "docker.io",
        endpoint: Some("registry-1.docker.io"),
        auth_hosts: &["auth.docker.io"],
        redirect_hosts: DOCKER_CDN,
    },
    // Docker's hardened images, for those who log in. Where it sends them for a token is documented
    // nowhere: if that is another host, the refusal names it.
    own("dhi.io", DOCKER_CDN),
    own("quay.io", QUAY_CDN),
    own("ghcr.io", &["pkg-containers.githubusercontent.com"]),
    own("mcr.microsoft.com", &["*.data.mcr.microsoft.com"]),
    own("registry.k8s.io", KUBERNETES),
    own("gcr.io", GOOGLE_STORAGE),
    own("us.gcr.io", GOOGLE_STORAGE),
    own("eu.gcr.io", GOOGLE_STORAGE),
    own("asia.gcr.io", GOOGLE_STORAGE),
    own("mirror.gcr.io", GOOGLE_STORAGE),
    own(
        "public.ecr.aws",
        &[
            "d2glxqk2uabbnd.cloudfront.net",
            "d5l0dvt14r5h8.cloudfront.net",
        ],
    ),
    Known {
        registry: "nvcr.io",
        endpoint: None,
        auth_hosts: &["authn.nvidia.com"],
        redirect_hosts: &["layers.nvcr.io"],
    },
    Known {
        registry: "registry.gitlab.com",
        endpoint: None,
        auth_hosts: &["gitlab.com"],
        redirect_hosts: &["cdn.registry.gitlab-static.net", "storage.googleapis.com"],
    },
    Known {
        registry: "registry.redhat.io",
        endpoint: None,
        auth_hosts: &["sso.redhat.com"],
        redirect_hosts: QUAY_CDN,
    },
    own("registry.access.redhat.com", QUAY_CDN),
    own(
        "*.azurecr.io",
        &["*.data.azurecr.io", "*.blob.core.windows.net"],
    ),
    own(
        "*.azurecr.cn",
        &["*.data.azurecr.cn", "*.blob.core.chinacloudapi.cn"],
    ),
    own(
        "*.azurecr.us",
        &["*.data.azurecr.us", "*.blob.core.usgovcloudapi.net"],
    ),
    own("*.pkg.dev", NOWHERE),
];

// === impl Known ===

impl Known {
    /// Whether the row is one registry, served without being configured.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        !self.registry.starts_with('*')
    }

    /// The row that says most about `key`, an entry of `[upstreams]` or a registry's name.
    pub(super) fn for_key(key: &str) -> Option<&'static Known> {
        REGISTRIES
            .iter()
            .filter(|row| match row.registry.strip_prefix('*') {
                // `*.azurecr.io` is about corp.azurecr.io and *.azurecr.io alike.
                Some(suffix) => key.len() > suffix.len() && key.ends_with(suffix),
                None => key == row.registry,
            })
            .max_by_key(|row| row.registry.len())
    }
}
