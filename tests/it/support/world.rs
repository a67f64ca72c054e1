//! A test's own network with one cable to another one, and what stands at its other end: a proxy,
//! and behind it a registry and its CDN under names that only the proxy can look up.
//!
//! Inside, every address is reachable by that cable alone and names are looked up at its other end,
//! so that whatever somebody tries to send is a packet on it, and counted ([`Traffic`]).

use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::certificates::Certificates;
use super::eventually;
use super::image::Image;
use super::network::Island;
use super::programs::{program, run};

/// The proxy's address, and so its only neighbour's.
pub const PROXY: &str = "192.0.2.1:3128";
pub const REGISTRY: &str = "registry.public.example";
pub const CDN: &str = "cdn.public.example";
const REGISTRY_AT: &str = "198.51.100.10";
const CDN_AT: &str = "198.51.100.11";
pub const USER: &str = "canary-proxy-user";
pub const PASSWORD: &str = "canary%40proxy:7c1e";

/// Everything at the other end of the cable.
#[derive(Debug)]
pub struct World {
    other: Island,
    directory: TempDir,
    pub certificates: Certificates,
    registry: Child,
    cdn: Child,
    proxy: Option<Child>,
}

/// Packets that went into the cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Connections to the proxy, or tries of one.
    pub calls: u64,
    /// To port 53 of anybody.
    pub names: u64,
    /// To anybody but the proxy, names included.
    pub elsewhere: u64,
}

// === impl World ===

impl World {
    /// Must be called in a network of its own (`network::in_own_network`).
    pub fn start() -> Self {
        let other = Island::start();
        let pid = other.pid();
        let inside = format!(
            "set -e; ip link add cable type veth peer name cable netns {pid}
             ip link set dev cable addrgenmode none; ip addr add 192.0.2.2/24 dev cable
             ip link set cable up; ip route add default via 192.0.2.1"
        );
        run(program("sh").args(["-c", &inside])).assert_success();
        let outside = format!(
            "set -e; ip link set dev cable addrgenmode none; ip addr add 192.0.2.1/24 dev cable
             ip link set cable up; ip addr add {REGISTRY_AT}/32 dev lo; ip addr add {CDN_AT}/32 dev lo"
        );
        run(other.program("sh").args(["-c", &outside])).assert_success();

        let directory = TempDir::new().unwrap();
        // squid gives up being root.
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
        let certificates = Certificates::of(&directory.path().join("tls"), &[REGISTRY, CDN]);
        let registry = start_registry(&other, directory.path(), &certificates);
        let cdn = start_cdn(&other, directory.path(), &certificates);
        let world = World {
            other,
            directory,
            certificates,
            registry,
            cdn,
            proxy: None,
        };
        Traffic::count();
        world
    }

    /// An image in the registry.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) {
        let layout = self.directory.path().join(image.manifest.digest().hex());
        image.write_layout(&layout, tag);
        let to = format!("docker://{REGISTRY_AT}/{repository}:{tag}");
        let push = || {
            let mut skopeo = self.other.program("skopeo");
            skopeo
                .args(["--insecure-policy", "copy", "-q", "--preserve-digests"])
                .args(["--dest-tls-verify=false"])
                .arg(format!("oci:{}:{tag}", layout.display()))
                .arg(&to);
            run(&mut skopeo)
        };
        // It may still be starting.
        eventually("the registry", || push().status.success());
    }

    // --- proxies ---

    /// squid as the documentation shows it, which lets these hosts through on port 443; with a login,
    /// for whoever has it.
    pub fn squid(&mut self, hosts: &[String], login: bool) {
        let at = |name: &str| self.directory.path().join(name).display().to_string();
        std::fs::write(at("hosts"), names()).unwrap();
        // In squid's language a leading dot is a wildcard.
        let allowed: String = hosts
            .iter()
            .map(|host| host.replace("*.", ".") + "\n")
            .collect();
        std::fs::write(at("allowed"), allowed).unwrap();
        let page = include_str!("../../../docs/egress-proxy.md");
        let documented = page.split("```squid\n").nth(1).unwrap();
        let documented = documented.split("```").next().unwrap();
        let documented = documented
            .replace("http_port 3128", &format!("http_port {PROXY}"))
            .replace("/etc/squid/registries", &at("allowed"));
        // Where this squid keeps its things, and who knows the names.
        let mut config = format!(
            "hosts_file {}\ndns_nameservers 127.0.0.1\ndns_timeout 1 second\npid_filename none\n\
             netdb_filename none\ncache_log {}\naccess_log stdio:{}\nlogfile_rotate 0\n\
             coredump_dir none\nshutdown_lifetime 0 seconds\n",
            at("hosts"),
            at("squid.log"),
            at("access.log"),
        );
        if login {
            let hash = run(program("openssl").args(["passwd", "-apr1", PASSWORD])).assert_success();
            std::fs::write(at("passwd"), format!("{USER}:{}", hash.stdout)).unwrap();
            write!(
                config,
                "auth_param basic program /usr/lib/squid/basic_ncsa_auth {}\n\
                 acl known proxy_auth REQUIRED\nhttp_access deny !known\n",
                at("passwd")
            )
            .unwrap();
        }
        config += &documented;
        std::fs::write(at("squid.conf"), config).unwrap();
        let mut squid = self.other.program("squid");
        // Of each there may be one by a name.
        let name = format!("test{}", self.other.pid());
        squid.args(["-N", "-n", &name, "-f", &at("squid.conf")]);
        self.proxy_is(&mut squid);
    }

    /// tinyproxy, which lets these hosts through on port 443.
    pub fn tinyproxy(&mut self, hosts: &[String]) {
        let at = |name: &str| self.directory.path().join(name).display().to_string();
        std::fs::write(at("hosts"), names()).unwrap();
        let pattern =
            |host: &String| format!("^{}$\n", host.replace('.', "\\.").replace('*', ".*"));
        std::fs::write(at("filter"), hosts.iter().map(pattern).collect::<String>()).unwrap();
        let (address, port) = PROXY.split_once(':').unwrap();
        let config = format!(
            "Listen {address}\nPort {port}\nConnectPort 443\nFilter \"{}\"\nFilterType ere\n\
             FilterDefaultDeny Yes\nTimeout 60\nLogLevel Warning\n",
            at("filter")
        );
        std::fs::write(at("tinyproxy.conf"), config).unwrap();
        let mut tinyproxy = self.other.program("unshare");
        tinyproxy
            .args(["--mount", "sh", "-c"])
            .arg("mount --bind \"$0\" /etc/hosts; exec tinyproxy -d -c \"$1\"")
            .args([at("hosts"), at("tinyproxy.conf")])
            .stdout(Stdio::null());
        self.proxy_is(&mut tinyproxy);
    }

    fn proxy_is(&mut self, command: &mut Command) {
        self.stop_proxy();
        self.proxy = Some(command.stdin(Stdio::null()).spawn().unwrap());
        eventually("the proxy", || TcpStream::connect(PROXY).is_ok());
        Traffic::forget();
    }

    /// A SOCKS5 proxy that takes names only. It lives as long as the process.
    pub fn socks(&mut self) {
        // Threads are where the one is that starts them.
        self.other.inside(|| {
            let listener = TcpListener::bind(PROXY).unwrap();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    thread::spawn(move || socks(stream));
                }
            });
        });
        Traffic::forget();
    }

    pub fn stop_proxy(&mut self) {
        if let Some(mut proxy) = self.proxy.take() {
            end(&mut proxy);
        }
    }

    /// What squid answered to CONNECT, as it writes it down when a tunnel ends:
    /// `TCP_TUNNEL/200 registry.example:443`.
    pub fn asked_of_squid(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.directory.path().join("access.log")).unwrap();
        let lines = log
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let connects = lines.filter(|words| words[5] == "CONNECT");
        connects
            .map(|words| format!("{} {}", words[3], words[6]))
            .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop_proxy();
        end(&mut self.registry);
        end(&mut self.cdn);
    }
}

// === impl Traffic ===

impl Traffic {
    fn count() {
        let (proxy, port) = PROXY.split_once(':').unwrap();
        let rules = format!(
            "set -e; iptables -A OUTPUT -o lo -j ACCEPT
             iptables -A OUTPUT -p tcp --syn -d {proxy} --dport {port}
             iptables -A OUTPUT -p udp --dport 53; iptables -A OUTPUT -p tcp --dport 53
             iptables -A OUTPUT -p tcp -d {proxy} --dport {port} -j ACCEPT
             iptables -A OUTPUT -j ACCEPT"
        );
        run(program("sh").args(["-c", &rules])).assert_success();
    }

    fn forget() {
        run(program("iptables").args(["-Z"])).assert_success();
    }

    /// Since the proxy was started.
    pub fn so_far() -> Self {
        let list = run(program("iptables").args(["-nvxL", "OUTPUT"])).assert_success();
        let rows = list.stdout.lines().skip(2);
        let packets: Vec<u64> = rows
            .map(|row| row.split_whitespace().next().unwrap().parse().unwrap())
            .collect();
        let [_, calls, udp, tcp, _, elsewhere] = packets[..] else {
            panic!("{}", list.stdout)
        };
        Traffic {
            calls,
            names: udp + tcp,
            elsewhere,
        }
    }
}

/// From now on nothing comes back by the cable: who calls the proxy waits.
pub fn cut_the_cable() {
    run(program("iptables").args(["-A", "INPUT", "-i", "cable", "-j", "DROP"])).assert_success();
}

/// SIGTERM, so that it takes away what it has left in /dev/shm.
fn end(child: &mut Child) {
    let _ = kill_process(Pid::from_child(child), Signal::TERM);
    let _ = child.wait();
}

fn names() -> String {
    format!("127.0.0.1 localhost\n{REGISTRY_AT} {REGISTRY}\n{CDN_AT} {CDN}\n")
}

/// Debian's docker-registry, which sends everybody to the CDN for blobs.
fn start_registry(other: &Island, directory: &Path, files: &Certificates) -> Child {
    let config = format!(
        "version: 0.1\nlog: {{accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {}}}}}\n\
         middleware: {{storage: [{{name: redirect, options: {{baseurl: 'https://{CDN}'}}}}]}}\n\
         http:\n  addr: '{REGISTRY_AT}:443'\n  tls: {{certificate: {}, key: {}}}\n",
        directory.join("storage").display(),
        files.certificate.display(),
        files.key.display()
    );
    let file = directory.join("registry.yml");
    std::fs::write(&file, config).unwrap();
    let mut registry = other.program("docker-registry");
    let registry = registry.arg("serve").arg(file);
    registry
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    registry.spawn().unwrap()
}

/// nginx over the registry's own files.
fn start_cdn(other: &Island, directory: &Path, files: &Certificates) -> Child {
    let at = |name: &str| -> PathBuf { directory.join(name) };
    let config = format!(
        "daemon off; user root; pid {pid}; error_log {log};\nevents {{}}\n\
         http {{ access_log off; client_body_temp_path {body};\n\
         server {{ listen {CDN_AT}:443 ssl; ssl_certificate {certificate};\n\
         ssl_certificate_key {key}; root {root}; }} }}\n",
        pid = at("nginx.pid").display(),
        log = at("nginx.log").display(),
        body = at("nginx.body").display(),
        certificate = files.certificate.display(),
        key = files.key.display(),
        root = at("storage").display(),
    );
    std::fs::write(at("nginx.conf"), config).unwrap();
    let mut nginx = other.program("nginx");
    let nginx = nginx
        .arg("-e")
        .arg(at("nginx.log"))
        .arg("-c")
        .arg(at("nginx.conf"));
    nginx.stdin(Stdio::null()).spawn().unwrap()
}

/// One client of the SOCKS5 proxy (RFC 1928): no login, CONNECT to a name on port 443.
fn socks(mut client: TcpStream) -> Option<()> {
    let mut head = [0; 2];
    client.read_exact(&mut head).ok()?;
    client.read_exact(&mut vec![0; head[1].into()]).ok()?;
    client.write_all(&[5, 0]).ok()?;
    let mut request = [0; 5];
    client.read_exact(&mut request).ok()?;
    let mut rest = vec![0; usize::from(request[4]) + 2];
    client.read_exact(&mut rest).ok()?;
    let (name, port) = rest.split_at(request[4].into());
    let is_name = request[..4] == [5, 1, 0, 3] && port == 443_u16.to_be_bytes();
    let address = match std::str::from_utf8(name) {
        Ok(REGISTRY) if is_name => REGISTRY_AT,
        Ok(CDN) if is_name => CDN_AT,
        // Not allowed by the rules.
        _ => return client.write_all(&[5, 2, 0, 1, 0, 0, 0, 0, 0, 0]).ok(),
    };
    let mut server = TcpStream::connect((address, 443)).ok()?;
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).ok()?;
    let (mut from, mut to) = (server.try_clone().ok()?, client.try_clone().ok()?);
    let back = thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
    let _ = std::io::copy(&mut client, &mut server);
    let _ = server.shutdown(std::net::Shutdown::Both);
    back.join().ok()
}
