//! Object stores that are real: Azurite is Azure Blob Storage, moto is S3.
//!
//! `make test` starts both. Where nobody did, the first test that needs one starts it, once for the
//! whole run. A test that stops and starts its store has one of its own ([`Azurite::own`]).

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use portcullis::oci::Digest;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::image::random;
use super::programs::program;
use super::proxy::Setup;

/// The account that every Azurite has, and its key, which is no secret.
pub const ACCOUNT: &str = "devstoreaccount1";
pub const ACCOUNT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Node and Python take their time on a busy machine.
const START: Duration = Duration::from_secs(90);

/// Azure Blob Storage.
#[derive(Debug)]
pub struct Azurite {
    port: u16,
    own: Option<Own>,
}

/// One that a test may stop: it keeps its data.
#[derive(Debug)]
struct Own {
    child: Option<Child>,
    data: TempDir,
}

/// S3.
#[derive(Debug)]
pub struct Moto {
    port: u16,
}

/// What lies in a container, past everything that the product has in between.
#[derive(Clone, Debug)]
pub struct Container(Arc<dyn ObjectStore>);

/// The Azurite of the whole run.
pub fn azurite() -> &'static Azurite {
    static SHARED: OnceLock<Azurite> = OnceLock::new();
    SHARED.get_or_init(|| Azurite {
        port: started("PORTCULLIS_TEST_AZURITE", |port| {
            let mut command = azurite_on(port);
            command.arg("--inMemoryPersistence");
            command
        }),
        own: None,
    })
}

/// The moto of the whole run.
pub fn moto() -> &'static Moto {
    static SHARED: OnceLock<Moto> = OnceLock::new();
    SHARED.get_or_init(|| Moto {
        port: started("PORTCULLIS_TEST_MOTO", |port| {
            let mut command = tool("moto/bin/moto_server");
            command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
            command
        }),
    })
}

/// Runs what is asynchronous to its end.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| tokio::runtime::Runtime::new().unwrap());
    runtime.block_on(future)
}

/// A name that no other test uses.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", &Digest::sha256(&random(8)).hex()[..12])
}

// === impl Azurite ===

impl Azurite {
    /// A process of the test's own, which keeps its data when it is stopped.
    pub fn own() -> Self {
        let data = TempDir::new().unwrap();
        let mut azurite = Azurite {
            port: free_port(),
            own: Some(Own { child: None, data }),
        };
        azurite.start();
        azurite
    }

    /// As the configuration has it.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}/{ACCOUNT}", self.port)
    }

    /// The name of a container that no other test uses; who opens it first makes it.
    #[expect(clippy::unused_self, reason = "the container is one of this Azurite")]
    pub fn fresh_container(&self) -> String {
        unique("test")
    }

    /// Lines for `[store.shared]`.
    pub fn lines(&self, container: &str) -> String {
        format!(
            "url = \"az://{ACCOUNT}/{container}/fleet\"\ncredential = \"emulator\"\n\
             endpoint = \"{}\"",
            self.endpoint()
        )
    }

    pub fn container(&self, name: &str) -> Container {
        let objects = MicrosoftAzureBuilder::new()
            .with_account(ACCOUNT)
            .with_access_key(ACCOUNT_KEY)
            .with_endpoint(self.endpoint())
            .with_container_name(name)
            .with_allow_http(true)
            .build();
        Container(Arc::new(objects.unwrap()))
    }

    // --- its life; only where it is the test's own ---

    pub fn start(&mut self) {
        let port = self.port;
        let own = self.owned();
        assert!(own.child.is_none(), "it runs");
        let mut child = azurite_on(port)
            .arg("--location")
            .arg(own.data.path())
            .spawn()
            .unwrap();
        wait_for(&mut child, port);
        own.child = Some(child);
    }

    /// Lets it write down what it acknowledged, which a kill would not.
    pub fn stop(&mut self) {
        let mut child = self.owned().child.take().expect("it runs");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        child.wait().unwrap();
    }

    /// Connections are accepted by the kernel, and nothing answers.
    pub fn suspend(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let own = self.own.as_ref().expect("everybody uses this one");
        let child = own.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    fn owned(&mut self) -> &mut Own {
        self.own.as_mut().expect("everybody uses this one")
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

// === impl Moto ===

impl Moto {
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Lines for `[store.shared]`.
    pub fn lines(&self, bucket: &str) -> String {
        format!(
            "url = \"s3://{bucket}/fleet\"\ncredential = \"emulator\"\nendpoint = \"{}\"",
            self.endpoint()
        )
    }
}

// === impl Container ===

impl Container {
    /// The names of everything whose name contains `fragment`, in order.
    pub fn names(&self, fragment: &str) -> Vec<String> {
        let listed: Vec<_> = block_on(self.0.list(None).try_collect()).unwrap();
        let mut names: Vec<String> = listed
            .into_iter()
            .map(|meta| meta.location.to_string())
            .filter(|name| name.contains(fragment))
            .collect();
        names.sort();
        names
    }

    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        let read = async { self.0.get(&Key::from(name)).await?.bytes().await };
        match block_on(read) {
            Ok(bytes) => Some(bytes.into()),
            Err(object_store::Error::NotFound { .. }) => None,
            Err(error) => panic!("{name}: {error}"),
        }
    }

    pub fn write(&self, name: &str, bytes: Vec<u8>) {
        let payload = PutPayload::from(bytes);
        block_on(self.0.put(&Key::from(name), payload)).unwrap();
    }

    pub fn delete(&self, name: &str) {
        block_on(self.0.delete(&Key::from(name))).unwrap();
    }

    /// The digests that lie there, in order.
    pub fn stored(&self) -> Vec<Digest> {
        let names = self.names("/v1/blobs/");
        let mut stored: Vec<_> = names.iter().map(|name| digest_of(name)).collect();
        stored.sort();
        stored
    }

    /// Every blob has the digest that it is named by.
    pub fn check(&self) {
        for name in self.names("/v1/blobs/") {
            let digest = digest_of(&name);
            // It may be taken away between listing and reading.
            if let Some(bytes) = self.read(&name) {
                let found = Digest::of(digest.algorithm(), &bytes);
                assert!(found == digest, "{name} has the bytes of {found}");
            }
        }
    }
}

fn digest_of(name: &str) -> Digest {
    let parts: Vec<_> = name.rsplit('/').collect();
    format!("{}:{}", parts[2], parts[0]).parse().unwrap()
}

// === processes ===

impl Setup {
    /// This proxy keeps what it has in a container of `azurite` too.
    pub fn shared(self, azurite: &Azurite, container: &str) -> Self {
        self.section("store.shared", &azurite.lines(container))
    }
}

/// Where `variable` says that a server is, or else one that runs as long as this process.
fn started(variable: &str, command: impl FnOnce(u16) -> Command) -> u16 {
    if let Ok(url) = std::env::var(variable) {
        let port = url.rsplit(':').next().and_then(|port| port.parse().ok());
        return port.unwrap_or_else(|| panic!("{variable}={url} has no port"));
    }
    let port = free_port();
    let mut command = command(port);
    let (sender, receiver) = mpsc::channel();
    // The server ends with the thread that started it, so this one must not end.
    thread::spawn(move || {
        let mut child = command.spawn().unwrap();
        wait_for(&mut child, port);
        sender.send(()).unwrap();
        child.wait()
    });
    receiver.recv().expect("it did not start");
    port
}

fn azurite_on(port: u16) -> Command {
    let mut command = tool("azurite/node");
    command
        .env("NODE_COMPILE_CACHE", tools().join("azurite/cache"))
        .arg(tools().join("azurite/node_modules/azurite/dist/src/blob/main.js"))
        .args(["--blobPort", &port.to_string()])
        .args(["--silent", "--disableTelemetry"]);
    command
}

/// A program that tests/setup/stores.sh installs. It is killed when the thread that starts it ends,
/// so that nothing is left behind by a run that is cut off.
fn tool(name: &str) -> Command {
    let path = tools().join(name);
    assert!(
        path.exists(),
        "{} is not there: run tests/setup/stores.sh, or `make test`, which does",
        path.display()
    );
    let mut command = program("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn wait_for(child: &mut Child, port: u16) {
    let deadline = Instant::now() + START;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "the store ended at once: {ended:?}");
        assert!(Instant::now() < deadline, "the store does not start");
        thread::sleep(Duration::from_millis(50));
    }
}
