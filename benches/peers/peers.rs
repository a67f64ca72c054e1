//! What is compared, and how each is set up: in front of the same upstream, with an empty cache
//! in a directory of its own, on a port of its own.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::load::{Request, ask_once};
use crate::process::Group;
use crate::tls::Identity;

/// A row's column: who served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Target {
    /// Our own binary.
    Portcullis,
    /// nginx `proxy_cache` with a lock, as docker-registry-proxy sets it up.
    Nginx,
    /// The same, which caches blobs in slices of 8 MiB.
    NginxSlice,
    /// Debian's docker-registry (distribution 2.8) as a pull-through cache.
    DockerRegistry,
    /// Nobody: the client asks the upstream.
    Direct,
}

/// A running peer.
pub(crate) struct Peer {
    pub(crate) target: Target,
    pub(crate) address: SocketAddr,
    pub(crate) group: Group,
    program: PathBuf,
    directory: TempDir,
}

const START_LIMIT: Duration = Duration::from_secs(20);
const CONFIG: &str = "config";

// === impl Target ===

impl Target {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Target::Portcullis => "portcullis",
            Target::Nginx => "nginx",
            Target::NginxSlice => "nginx-slice",
            Target::DockerRegistry => "docker-registry",
            Target::Direct => "direct",
        }
    }

    /// Its program; `portcullis` is where ours lies.
    pub(crate) fn program(self, portcullis: &Path) -> Result<PathBuf> {
        let (name, package) = match self {
            Target::Portcullis => return Ok(portcullis.to_owned()),
            Target::Nginx | Target::NginxSlice => ("nginx", "nginx-light"),
            Target::DockerRegistry => ("docker-registry", "docker-registry"),
            Target::Direct => bail!("the upstream is no program"),
        };
        // Root's and a user's PATH differ in the sbin directories, where nginx is.
        ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]
            .iter()
            .map(|directory| Path::new(directory).join(name))
            .find(|program| program.is_file())
            .with_context(|| {
                format!("{name} is missing: apt-get install {package}, or leave it out with --only")
            })
    }

    fn arguments(self, config: &str) -> Vec<&str> {
        match self {
            Target::Portcullis => vec!["serve", "--config", config],
            Target::Nginx | Target::NginxSlice => vec!["-e", "stderr", "-c", config],
            Target::DockerRegistry => vec!["serve", config],
            Target::Direct => vec![],
        }
    }

    fn config(
        self,
        listen: SocketAddr,
        upstream: SocketAddr,
        directory: &Path,
        tls: Option<&Identity>,
    ) -> Result<String> {
        match self {
            Target::Portcullis => portcullis(listen, upstream, directory, tls),
            Target::Nginx => Ok(nginx(listen, upstream, directory, tls, "")),
            Target::NginxSlice => Ok(nginx(listen, upstream, directory, tls, SLICES)),
            Target::DockerRegistry => docker_registry(listen, upstream, directory, tls),
            Target::Direct => Ok(String::new()),
        }
    }
}

// === impl Peer ===

impl Peer {
    /// Starts it with an empty cache and waits until it answers.
    pub(crate) fn start(
        target: Target,
        program: &Path,
        upstream: SocketAddr,
        tls: Option<&Identity>,
    ) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("portcullis-bench-")
            .tempdir()?;
        // Freed again at once; nothing else on a machine that measures takes it meanwhile.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let config = target.config(address, upstream, directory.path(), tls)?;
        fs::write(directory.path().join(CONFIG), config)?;
        let mut peer = Peer {
            target,
            address,
            group: launch(target, program, directory.path())?,
            program: program.to_owned(),
            directory,
        };
        peer.wait_until_ready(tls.is_some())?;
        Ok(peer)
    }

    /// Kills it in mid-sentence and starts it again on what it left behind.
    pub(crate) fn kill_and_restart(&mut self) -> Result<()> {
        self.group.kill();
        self.group = launch(self.target, &self.program, self.directory.path())?;
        self.wait_until_ready(false)
    }

    fn wait_until_ready(&mut self, tls: bool) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        let ping = Request::get("/v2/");
        loop {
            let answers = if tls {
                std::net::TcpStream::connect(self.address).is_ok()
            } else {
                ask_once(self.address, &ping).is_ok()
            };
            if answers {
                return Ok(());
            }
            if !self.group.is_alive() || Instant::now() > deadline {
                let log = fs::read_to_string(self.directory.path().join("log"));
                bail!(
                    "{} did not start; it said:\n{}",
                    self.target.name(),
                    log.unwrap_or_default()
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn launch(target: Target, program: &Path, directory: &Path) -> Result<Group> {
    let config = directory.join(CONFIG);
    let config = config.to_str().context("a directory name is not UTF-8")?;
    Group::spawn(program, &target.arguments(config), &directory.join("log"))
}

fn portcullis(
    listen: SocketAddr,
    upstream: SocketAddr,
    directory: &Path,
    tls: Option<&Identity>,
) -> Result<String> {
    let store = directory.join("store");
    let mut config = format!(
        r#"
[server]
listen = "{listen}"
admin = "127.0.0.1:0"
default_registry = "registry.bench"
[store]
path = "{}"
[upstreams."registry.bench"]
endpoints = ["http://{upstream}"]
allow_addresses = ["127.0.0.0/8"]
insecure = true
[policy]
default = "allow"
"#,
        store.display()
    );
    if let Some(tls) = tls {
        write!(
            config,
            "[server.tls]\ncertificate = \"{}\"\nkey = \"{}\"\n",
            tls.certificate.display(),
            tls.key.display()
        )?;
    }
    Ok(config)
}

/// Blobs in slices, each cached by itself.
const SLICES: &str = "
            slice 8m;
            proxy_cache_key $uri$slice_range;
            proxy_set_header Range $slice_range;";

fn nginx(
    listen: SocketAddr,
    upstream: SocketAddr,
    directory: &Path,
    tls: Option<&Identity>,
    blobs: &str,
) -> String {
    let at = directory.display();
    let certificate = tls.map_or_else(String::new, |tls| {
        format!(
            "ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.3;",
            tls.certificate.display(),
            tls.key.display()
        )
    });
    let ssl = if tls.is_some() { " ssl" } else { "" };
    // Started as root, its workers would change to a user who cannot enter our directory.
    let user = if rustix::process::getuid().is_root() {
        "user root;"
    } else {
        ""
    };
    format!(
        "daemon off;
{user}
worker_processes 2;
pid {at}/pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    gzip off;
    keepalive_timeout 300;
    keepalive_requests 1000000;
    client_body_temp_path {at}/body;
    proxy_temp_path {at}/temp;
    fastcgi_temp_path {at}/fastcgi;
    uwsgi_temp_path {at}/uwsgi;
    scgi_temp_path {at}/scgi;
    proxy_cache_path {at}/cache levels=1:2 keys_zone=cache:10m inactive=60d max_size=32g
                     use_temp_path=off;
    upstream registry {{ server {upstream}; keepalive 64; }}
    server {{
        listen {listen}{ssl} backlog=1024;
        {certificate}
        proxy_http_version 1.1;
        proxy_set_header Connection \"\";
        proxy_read_timeout 900;
        proxy_cache cache;
        proxy_cache_key $uri;
        proxy_cache_lock on;
        proxy_cache_lock_timeout 880s;
        proxy_cache_revalidate on;
        proxy_cache_valid 200 206 60d;
        proxy_ignore_client_abort on;
        proxy_ignore_headers X-Accel-Expires Expires Cache-Control;
        location / {{ proxy_pass http://registry; }}
        location ~ /blobs/ {{{blobs}
            proxy_pass http://registry;
        }}
    }}
}}
"
    )
}

fn docker_registry(
    listen: SocketAddr,
    upstream: SocketAddr,
    directory: &Path,
    tls: Option<&Identity>,
) -> Result<String> {
    let mut config = format!(
        "version: 0.1
log: {{ level: error, accesslog: {{ disabled: true }} }}
storage:
  filesystem: {{ rootdirectory: {} }}
  cache: {{ blobdescriptor: inmemory }}
proxy: {{ remoteurl: \"http://{upstream}\" }}
http:
  addr: {listen}
",
        directory.join("store").display()
    );
    if let Some(tls) = tls {
        writeln!(
            config,
            "  tls: {{ certificate: {}, key: {} }}",
            tls.certificate.display(),
            tls.key.display()
        )?;
    }
    Ok(config)
}
