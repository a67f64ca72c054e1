//! The programs that users have, from Debian's packages: docker-registry as an upstream;
//! containerd, skopeo and podman as clients. Each run has directories of its own, because all of
//! them keep what they have once seen.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use portcullis::oci::Digest;
use tempfile::TempDir;

use super::PATIENCE;
use super::canary::assert_silent;
use super::client::Client;
use super::image::{Image, Manifest};

const OCTETS: &str = "application/octet-stream";

/// A Debian docker-registry on loopback with an empty store.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    directory: TempDir,
    pub address: SocketAddr,
}

/// A containerd of our own.
#[derive(Debug)]
pub struct Containerd {
    child: Child,
    directory: TempDir,
}

/// What a program did.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    /// Everything it said, on both channels.
    pub text: String,
}

/// A command that fails with the reason when the program is not there.
pub fn program(name: &str) -> Command {
    let found = [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ]
    .iter()
    .map(|directory| Path::new(directory).join(name))
    .find(|path| path.exists());
    let path = found.unwrap_or_else(|| {
        panic!("{name} is not installed; `make test` installs it from Debian's packages")
    });
    Command::new(path)
}

/// Runs to the end; one that does not come is a failure.
pub fn run(command: &mut Command) -> Outcome {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = read_all(child.stdout.take().unwrap());
    let stderr = read_all(child.stderr.take().unwrap());
    let deadline = Instant::now() + 2 * PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        thread::sleep(Duration::from_millis(10));
    };
    let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
    let text = format!("{stdout}{stderr}");
    assert_silent("what a command prints", text.as_bytes());
    let Some(status) = status else {
        panic!("{command:?} does not end; it said: {text}")
    };
    Outcome {
        status,
        stdout,
        text,
    }
}

fn read_all(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

// === impl Outcome ===

impl Outcome {
    #[track_caller]
    pub fn assert_success(self) -> Self {
        assert!(self.status.success(), "{}: {}", self.status, self.text);
        self
    }

    #[track_caller]
    pub fn assert_failure(self) -> Self {
        assert!(
            !self.status.success(),
            "it should have failed: {}",
            self.text
        );
        self
    }
}

// === impl Registry ===

impl Registry {
    pub fn start() -> Self {
        Registry::asking("")
    }

    /// One that asks for logins: `auth` are its lines about that.
    pub fn asking(auth: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let config = directory.path().join("registry.yml");
        let storage = directory.path().join("storage");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n{auth}",
                storage.display()
            ),
        )
        .unwrap();
        let mut child = program("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, receiver) = mpsc::channel();
        // Read to the end, so that the pipe never fills.
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let rest = line.split("listening on ").nth(1);
                let address = rest.and_then(|rest| rest.split(['"', ' ']).next());
                if let Some(Ok(address)) = address.map(str::parse::<SocketAddr>) {
                    let _ = sender.send(address);
                }
            }
        });
        let address = receiver
            .recv_timeout(PATIENCE)
            .expect("docker-registry did not start");
        Registry {
            child,
            directory,
            address,
        }
    }

    pub fn push(&self, repository: &str, tag: &str, image: &Image) {
        self.push_as(&[], repository, tag, image);
    }

    /// `login` are further arguments of skopeo.
    pub fn push_as(&self, login: &[&str], repository: &str, tag: &str, image: &Image) {
        let layout = self
            .directory
            .path()
            .join("layout")
            .join(image.manifest.digest().hex());
        image.write_layout(&layout, tag);
        let from = format!("oci:{}:{tag}", layout.display());
        let to = format!("docker://{}/{repository}:{tag}", self.address);
        let options = [
            "copy",
            "-q",
            "--preserve-digests",
            "--dest-tls-verify=false",
        ];
        run(skopeo().args(options).args(login).args([from, to])).assert_success();
    }

    /// As a client pushes it (distribution specification, "Pushing a blob monolithically").
    pub fn put_blob(&self, repository: &str, bytes: &[u8]) {
        let client = Client::new(self.address);
        let start = client.upload(
            "POST",
            &format!("/v2/{repository}/blobs/uploads/"),
            OCTETS,
            b"",
        );
        let start = start.assert(202);
        let location = start.header("location").unwrap();
        let path = location.split(&self.address.to_string()).nth(1).unwrap();
        let digest = Digest::sha256(bytes);
        let put = client.upload("PUT", &format!("{path}&digest={digest}"), OCTETS, bytes);
        put.assert(201);
    }

    /// `reference` is a tag or its digest. What it refers to has to be there.
    pub fn put_manifest(&self, repository: &str, reference: &str, manifest: &Manifest) {
        let client = Client::new(self.address);
        let path = format!("/v2/{repository}/manifests/{reference}");
        let put = client.upload("PUT", &path, &manifest.media_type, &manifest.bytes);
        put.assert(201);
    }

    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

// === impl Containerd ===

impl Containerd {
    /// For `ctr`.
    pub fn start() -> Self {
        Self::configured(
            "disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]",
            "",
        )
    }

    /// With the socket that a kubelet asks, and a certs.d tree.
    pub fn with_cri(certs_d: &Path) -> Self {
        let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
        let sections = format!(
            "[{cri}]\nstream_server_address = \"127.0.0.1\"\nstream_server_port = \"0\"\n\
             disable_apparmor = true\n[{cri}.containerd]\nsnapshotter = \"native\"\n\
             [{cri}.cni]\nbin_dir = \"/nonexistent\"\nconf_dir = \"/nonexistent\"\n\
             [{cri}.registry]\nconfig_path = \"{}\"\n",
            certs_d.display()
        );
        Self::configured(
            "disabled_plugins = [\"io.containerd.internal.v1.opt\"]",
            &sections,
        )
    }

    fn configured(keys: &str, sections: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "containerd runs only as root"
        );
        let directory = TempDir::new().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\n{keys}\n\
             [grpc]\naddress = \"{}\"\n[ttrpc]\naddress = \"{}\"\n{sections}",
            at("root"),
            at("state"),
            at("sock"),
            at("ttrpc")
        );
        std::fs::write(directory.path().join("config.toml"), config).unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let mut child = program("containerd")
            .args(["-c", &at("config.toml")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = run(program("ctr").args(["-a", &at("sock"), "version"]));
            if answer.status.success() {
                break;
            }
            let log = std::fs::read_to_string(directory.path().join("log")).unwrap();
            assert!(
                child.try_wait().unwrap().is_none(),
                "containerd ended:\n{log}"
            );
            assert!(
                Instant::now() < deadline,
                "containerd does not answer:\n{log}"
            );
            thread::sleep(Duration::from_millis(50));
        }
        Containerd { child, directory }
    }

    /// `ctr images pull` as a node would: only what the certs.d tree says.
    pub fn pull(&self, certs_d: &Path, image: &str) -> Outcome {
        run(self
            .ctr()
            .args(["images", "pull", "--snapshotter", "native", "--hosts-dir"])
            .arg(certs_d)
            .arg(image))
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("sock")
    }

    /// What it says it is: `1.6.20`.
    pub fn version() -> String {
        let text = run(program("containerd").arg("--version"))
            .assert_success()
            .text;
        let version = text.split(' ').nth(2).unwrap();
        version.split('~').next().unwrap().to_owned()
    }

    /// `ctr images` with these arguments.
    pub fn images(&self, arguments: &[&str]) -> Outcome {
        run(self.ctr().arg("images").args(arguments))
    }

    /// The digest that the daemon has for an image, as `ctr images list` prints it.
    pub fn digest_of(&self, image: &str) -> Option<String> {
        let list = run(self
            .ctr()
            .args(["images", "list", &format!("name=={image}")]));
        let list = list.assert_success().text;
        list.split_whitespace()
            .find(|word| word.starts_with("sha256:"))
            .map(str::to_owned)
    }

    fn ctr(&self) -> Command {
        let mut ctr = program("ctr");
        ctr.arg("-a")
            .arg(self.directory.path().join("sock"))
            .args(["-n", "test"]);
        ctr
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // SIGTERM, so that it unmounts what it mounted.
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::TERM,
        );
        let _ = self.child.wait();
    }
}

// === skopeo and podman ===

/// skopeo without the machine's signature policy and registries.
pub fn skopeo() -> Command {
    let mut skopeo = program("skopeo");
    skopeo
        .arg("--insecure-policy")
        .env_remove("REGISTRY_AUTH_FILE");
    skopeo
}

/// podman with storage of its own under `directory`.
pub fn podman(directory: &Path) -> Command {
    let mut podman = program("podman");
    let at = |name: &str| -> PathBuf { directory.join(name) };
    podman
        .arg("--root")
        .arg(at("podman"))
        .arg("--runroot")
        .arg(at("podman-run"));
    podman.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
    podman
        .args(["--events-backend", "file"])
        .env_remove("REGISTRY_AUTH_FILE");
    podman
}
