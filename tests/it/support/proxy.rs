//! The real program: a process of its own, on ports of the kernel's choice, with a real store in a
//! temporary directory. Killing it is `kill -9`, stopping it is SIGTERM.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use portcullis::oci::Digest;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::PATIENCE;
use super::canary::assert_silent;
use super::client::{Answer, Client, Response};
use super::programs::{self, Outcome};
use super::upstream::Upstream;

/// A configuration file in the making: lines by section.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    sections: BTreeMap<String, String>,
    rules: String,
    store: Option<PathBuf>,
    authority: Option<String>,
    environment: Vec<(String, String)>,
}

#[derive(Debug)]
pub struct Proxy {
    child: Child,
    logs: Arc<Logs>,
    setup: Setup,
    directory: TempDir,
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

/// Every line that the process wrote to stderr.
#[derive(Debug, Default)]
pub struct Logs {
    state: Mutex<(Vec<String>, /* closed */ bool)>,
    changed: Condvar,
}

// === impl Setup ===

impl Setup {
    /// `registry.example` is `upstream`, and everything in it is allowed.
    pub fn new(upstream: &Upstream) -> Self {
        Setup::registry_at(&upstream.origin())
    }

    /// `registry.example` is at `endpoint`, and everything in it is allowed.
    pub fn registry_at(endpoint: &str) -> Self {
        Setup::listening()
            .registry("registry.example", endpoint)
            .rules(
                r#"
                [[policy.rules]]
                id = "examples"
                images = ["registry.example/**"]
                effect = "allow"
                "#,
            )
    }

    /// Only addresses: nothing is configured yet.
    pub fn listening() -> Self {
        Setup::default().section(
            "server",
            "listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"",
        )
    }

    /// One more registry.
    pub fn registry(self, name: &str, endpoint: &str) -> Self {
        self.section(
            &format!("upstreams.\"{name}\""),
            &format!(
                "endpoints = [\"{endpoint}\"]\nallow_addresses = [\"127.0.0.0/8\"]\ninsecure = true"
            ),
        )
    }

    /// More lines for a section: `section("limits", "idle = \"1s\"")`.
    pub fn section(mut self, name: &str, lines: &str) -> Self {
        let section = self.sections.entry(name.to_owned()).or_default();
        section.push_str(lines);
        section.push('\n');
        self
    }

    /// Listens on a port that others know before it starts.
    pub fn listen_on(mut self, port: u16) -> Self {
        self.sections.remove("server");
        let lines = format!("listen = \"127.0.0.1:{port}\"\nadmin = \"127.0.0.1:0\"");
        self.section("server", &lines)
    }

    /// An admin address that other machines reach, and what it asks for.
    pub fn open_admin(mut self, token: &str) -> Self {
        self.sections.remove("server");
        let lines =
            format!("listen = \"127.0.0.1:0\"\nadmin = \"0.0.0.0:0\"\nadmin_token = \"{token}\"");
        self.section("server", &lines)
    }

    /// More lines for `registry.example`.
    pub fn upstream(self, lines: &str) -> Self {
        self.section("upstreams.\"registry.example\"", lines)
    }

    /// These `[[policy.rules]]` in place of those that are there.
    pub fn rules(mut self, rules: &str) -> Self {
        rules.clone_into(&mut self.rules);
        self
    }

    /// A variable that the process finds in its environment, which is empty otherwise.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A store of the test's own instead of one in the temporary directory.
    pub fn store_at(mut self, path: &Path) -> Self {
        self.store = Some(path.to_owned());
        self
    }

    /// TLS; clients of the proxy trust `authority` (PEM).
    pub fn tls(mut self, certificate: &Path, key: &Path, authority: &str) -> Self {
        self.authority = Some(authority.to_owned());
        let lines = format!(
            "certificate = \"{}\"\nkey = \"{}\"",
            certificate.display(),
            key.display()
        );
        self.section("server.tls", &lines)
    }

    fn text(&self, store: &Path) -> String {
        let mut text = String::new();
        for (name, lines) in &self.sections {
            text.push_str(&format!("[{name}]\n{lines}"));
            if name == "store" {
                text.push_str(&format!("path = \"{}\"\n", store.display()));
            }
        }
        if !self.sections.contains_key("store") {
            text.push_str(&format!("[store]\npath = \"{}\"\n", store.display()));
        }
        text + &self.rules
    }

    /// `check` of it, in its environment, without starting anything.
    pub fn check(&self) -> Outcome {
        let directory = TempDir::new().unwrap();
        let config = directory.path().join("portcullis.toml");
        std::fs::write(&config, self.text(&directory.path().join("store"))).unwrap();
        let mut command = command(&config, &["check"]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        programs::run(&mut command)
    }

    pub fn start(self) -> Proxy {
        let directory = TempDir::new().unwrap();
        let (child, logs) = spawn(&self, directory.path());
        let (address, admin) = logs.listening();
        Proxy {
            child,
            logs,
            setup: self,
            directory,
            address,
            admin,
        }
    }
}

fn spawn(setup: &Setup, directory: &Path) -> (Child, Arc<Logs>) {
    let store = setup
        .store
        .clone()
        .unwrap_or_else(|| directory.join("store"));
    let config = directory.join("portcullis.toml");
    std::fs::write(&config, setup.text(&store)).unwrap();
    let mut child = command(&config, &["serve"])
        .envs(setup.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let logs = Arc::new(Logs::default());
    let stderr = BufReader::new(child.stderr.take().unwrap());
    thread::spawn({
        let logs = Arc::clone(&logs);
        move || {
            for line in stderr.lines().map_while(Result::ok) {
                logs.push(line);
            }
            logs.close();
        }
    });
    (child, logs)
}

/// `portcullis ARGUMENTS --config FILE` in a clean environment.
pub fn command(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command
        .args(arguments)
        .arg("--config")
        .arg(config)
        .env_clear();
    command
        .env("PATH", "/usr/bin:/bin")
        .env("PORTCULLIS_LOG", "info,portcullis=debug");
    command
}

// === impl Proxy ===

impl Proxy {
    /// In front of `upstream`, with nothing special.
    pub fn start(upstream: &Upstream) -> Self {
        Setup::new(upstream).start()
    }

    pub fn client(&self) -> Client {
        match &self.setup.authority {
            Some(authority) => Client::trusting(self.address, authority),
            None => Client::new(self.address),
        }
    }

    /// A temporary directory that lives as long as the proxy.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn store(&self) -> PathBuf {
        self.setup
            .store
            .clone()
            .unwrap_or_else(|| self.directory().join("store"))
    }

    // --- asking ---

    pub fn get(&self, path: &str) -> Response {
        self.client().get(path)
    }

    pub fn head(&self, path: &str) -> Response {
        self.client().head(path)
    }

    pub fn range(&self, path: &str, range: &str) -> Response {
        self.client().range(path, range)
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        self.client().send(method, path, headers)
    }

    pub fn open(&self, path: &str) -> Answer {
        self.client().open("GET", path, &[])
    }

    /// Another command of the program with this proxy's configuration and further lines of it.
    pub fn run(&self, setup: impl FnOnce(Setup) -> Setup, arguments: &[&str]) -> Outcome {
        let config = self.directory().join("command.toml");
        std::fs::write(&config, setup(self.setup.clone()).text(&self.store())).unwrap();
        programs::run(command(&config, arguments).current_dir(self.directory()))
    }

    /// A sample of `/metrics` by name and labels; 0 while it is not there.
    pub fn metric(&self, sample: &str) -> i64 {
        let text = Client::new(self.admin).get("/metrics").assert(200).body;
        let text = String::from_utf8(text).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    // --- its life ---

    pub fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(50);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "did not stop; its log:\n{}",
                self.logs.text()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts it again on the same store, on other ports, with an unchanged configuration.
    pub fn start_again(&mut self) {
        self.start_again_with(|setup| setup);
    }

    pub fn start_again_with(&mut self, change: impl FnOnce(Setup) -> Setup) {
        assert_silent("the log", self.logs.whole().as_bytes());
        self.setup = change(self.setup.clone());
        (self.child, self.logs) = spawn(&self.setup, self.directory.path());
        (self.address, self.admin) = self.logs.listening();
    }

    /// Changes the configuration file under the running program.
    pub fn configure(&mut self, change: impl FnOnce(Setup) -> Setup) {
        self.setup = change(self.setup.clone());
        let text = self.setup.text(&self.store());
        std::fs::write(self.directory().join("portcullis.toml"), text).unwrap();
    }

    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    // --- what it keeps ---

    /// The digests under `v1/blobs`.
    pub fn stored(&self) -> Vec<Digest> {
        let mut stored = Vec::new();
        for algorithm in ["sha256", "sha512"] {
            let root = self.store().join("v1/blobs").join(algorithm);
            for file in files_under(&root) {
                let hex = file.file_name().unwrap().to_str().unwrap();
                stored.push(format!("{algorithm}:{hex}").parse().unwrap());
            }
        }
        stored
    }

    /// Bytes that the spools of running or abandoned fills take.
    pub fn spooled(&self) -> Vec<PathBuf> {
        files_under(&self.store().join("v1/spool"))
    }

    /// Waits until the blob has been committed (answers do not wait for that).
    pub fn wait_until_stored(&self, digest: &Digest) {
        let deadline = Instant::now() + PATIENCE;
        while !self.stored().contains(digest) {
            assert!(Instant::now() < deadline, "{digest} was never stored");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until a file of the test registry's repositories has `text` in it: what is known of them
    /// is written a moment behind the answers.
    pub fn wait_until_written(&self, file: &str, text: &str) {
        let path = self.store().join("v1/repos/registry.example").join(file);
        let deadline = Instant::now() + PATIENCE;
        while !std::fs::read_to_string(&path).is_ok_and(|written| written.contains(text)) {
            assert!(Instant::now() < deadline, "{file} never said {text}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the store knows of blobs has nothing of how they were got.
    fn check_secrets(&self) {
        let store = self.store().join("v1");
        for file in files_under(&store) {
            let is_content = ["blobs", "spool", "quarantine"]
                .iter()
                .any(|directory| file.starts_with(store.join(directory)));
            if !is_content && let Ok(bytes) = std::fs::read(&file) {
                assert_silent(&file.display().to_string(), &bytes);
            }
        }
    }

    /// `/metrics`, if the process runs and answers at once.
    fn last_metrics(&mut self) -> Option<Vec<u8>> {
        if thread::panicking() || !matches!(self.child.try_wait(), Ok(None)) {
            return None;
        }
        let mut stream = TcpStream::connect_timeout(&self.admin, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        Some(answer)
    }

    /// Every file that is visible as a blob has the digest that it is named by.
    pub fn check_store(&self) {
        for digest in self.stored() {
            let hex = digest.hex();
            let path = self
                .store()
                .join(format!("v1/blobs/{}/{}", digest.algorithm(), &hex[..2]));
            // Eviction may take one between listing and reading.
            if let Ok(bytes) = std::fs::read(path.join(&hex)) {
                let found = Digest::of(digest.algorithm(), &bytes);
                assert!(
                    found == digest,
                    "{digest} is stored with the bytes of {found}"
                );
            }
        }
    }
}

/// Every test ends by checking the store that it leaves, and that no secret shows.
impl Drop for Proxy {
    fn drop(&mut self) {
        let metrics = self.last_metrics().unwrap_or_default();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the proxy's log ---\n{}", self.logs.text());
        } else {
            self.check_store();
            assert_silent("/metrics", &metrics);
            assert_silent("the log", self.logs.whole().as_bytes());
            self.check_secrets();
        }
    }
}

fn files_under(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(files_under(&path));
        } else {
            files.push(path);
        }
    }
    files
}

// === impl Logs ===

impl Logs {
    fn push(&self, line: String) {
        self.state.lock().unwrap().0.push(line);
        self.changed.notify_all();
    }

    fn close(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    pub fn text(&self) -> String {
        self.state.lock().unwrap().0.join("\n")
    }

    /// The same once the process has ended.
    fn whole(&self) -> String {
        let state = self.state.lock().unwrap();
        let waited = self
            .changed
            .wait_timeout_while(state, PATIENCE, |(_, closed)| !*closed);
        let lines = &waited.unwrap().0.0;
        lines.join("\n")
    }

    /// The fields of the first line with this message; waits for it.
    pub fn wait_for(&self, message: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state.lock().unwrap();
        loop {
            let fields = state.0.iter().find_map(|line| fields(line, message));
            if let Some(fields) = fields {
                return fields;
            }
            assert!(
                !state.1,
                "it ended before it said {message:?}:\n{}",
                state.0.join("\n")
            );
            assert!(
                Instant::now() < deadline,
                "never said {message:?}:\n{}",
                state.0.join("\n")
            );
            state = self
                .changed
                .wait_timeout(state, Duration::from_millis(100))
                .unwrap()
                .0;
        }
    }

    /// Waits for a line with this text in it.
    pub fn wait_for_text(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state.lock().unwrap();
        while !state.0.iter().any(|line| line.contains(text)) {
            assert!(Instant::now() < deadline, "no {text:?} in the log");
            state = self
                .changed
                .wait_timeout(state, Duration::from_millis(100))
                .unwrap()
                .0;
        }
    }

    fn listening(&self) -> (SocketAddr, SocketAddr) {
        let fields = self.wait_for("listening");
        let address = |name: &str| fields[name].as_str().unwrap().parse().unwrap();
        (address("address"), address("admin"))
    }
}

/// The fields of a JSON line if it has this message.
fn fields(line: &str, message: &str) -> Option<Value> {
    let mut line: Value = serde_json::from_str(line).ok()?;
    let fields = if line["fields"].is_object() {
        line["fields"].take()
    } else {
        line
    };
    (fields["message"] == message).then_some(fields)
}
