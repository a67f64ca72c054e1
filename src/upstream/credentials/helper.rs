//! A program that prints a login: the protocol of docker's credential helpers.
//!
//! It gets the registry's name on its standard input and prints `{"Username": .., "Secret": ..}`;
//! the user name `<token>` says that the secret is an identity token. It is started without a shell,
//! in an environment of `PATH`, `HOME` and what the configuration names. What it says is never shown:
//! it may be the secret itself.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use super::kept::Kept;
use super::{Credential, Principal};
use crate::telemetry::Secret;
use crate::upstream::UpstreamErrorKind;

/// How long a program may take.
const TIME: Duration = Duration::from_secs(10);
/// Bytes that it may print.
const OUTPUT: usize = 64 << 10;
/// What every program may see of our environment.
const ENVIRONMENT: [&str; 2] = ["PATH", "HOME"];
/// How long a program that knows no login is not asked again.
const NOTHING_FOR: Duration = Duration::from_secs(60);
/// How helpers say that they have no such login.
const NOTHING: &str = "credentials not found";
/// The user name that stands for an identity token.
const TOKEN: &str = "<token>";

#[derive(Debug)]
pub(super) struct Helper {
    program: Arc<Program>,
    lifetime: Option<Duration>,
    kept: Kept<Option<Credential>>,
    /// Goes on when whoever started it goes away, and is then the next one's.
    running: Mutex<Option<JoinHandle<Printed>>>,
}

type Printed = Result<Option<Credential>, String>;

#[derive(Debug)]
struct Program {
    command: Vec<String>,
    environment: Vec<String>,
    /// What it is asked about, on its standard input.
    server: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Output {
    username: String,
    secret: String,
}

/// A program that is killed, with all that it has started, unless it ends.
struct Running {
    child: Child,
    ended: bool,
}

// === impl Helper ===

impl Helper {
    /// `environment` names variables that the program may see. Nothing is started yet.
    ///
    /// # Errors
    /// There is no such program.
    pub(super) fn new(
        command: &[String],
        environment: &[String],
        server: &str,
        lifetime: Option<Duration>,
    ) -> Result<Self, String> {
        let Some(name) = command.first() else {
            return Err("exec names no program".into());
        };
        find(name)?;
        let allowed = ENVIRONMENT.iter().map(|name| (*name).to_owned());
        Ok(Helper {
            program: Arc::new(Program {
                command: command.to_vec(),
                environment: allowed.chain(environment.iter().cloned()).collect(),
                server: server.to_owned(),
            }),
            lifetime,
            kept: Kept::default(),
            running: Mutex::default(),
        })
    }

    /// What the program printed, now or before; None when it knows of no login.
    ///
    /// # Errors
    /// Names the program and how it ended.
    pub(super) async fn current(&self) -> Result<Option<Credential>, UpstreamErrorKind> {
        let run = || async {
            let mut running = self.running.lock().await;
            let work = running.get_or_insert_with(|| {
                let program = Arc::clone(&self.program);
                tokio::task::spawn_blocking(move || program.run(TIME))
            });
            let printed = work.await.unwrap_or_else(|_| Err("panicked".into()));
            *running = None;
            let credential = printed.map_err(|how| {
                let name = &self.program.command[0];
                UpstreamErrorKind::LoginUnavailable(format!("the credential helper {name} {how}"))
            })?;
            let lifetime = match credential {
                None => Some(NOTHING_FOR),
                Some(_) => self.lifetime,
            };
            Ok((credential, lifetime))
        };
        self.kept.get(run).await
    }

    /// The same where no login is a failure.
    pub(super) async fn some(&self) -> Result<Option<Credential>, UpstreamErrorKind> {
        match self.current().await? {
            None => {
                let Program {
                    command, server, ..
                } = &*self.program;
                let text = format!("the credential helper {} knows no {server}", command[0]);
                Err(UpstreamErrorKind::LoginUnavailable(text))
            }
            credential => Ok(credential),
        }
    }

    /// The next use runs the program again, if it was this credential that was refused.
    pub(super) fn refused(&self, refused: Principal) {
        let is_refused = |held: &Option<Credential>| {
            let held = held.as_ref().map(Credential::principal);
            held == Some(refused)
        };
        self.kept.refuse(is_refused);
    }
}

// === impl Program ===

impl Program {
    /// Runs it to its end, which has to come in `time`; blocking. Says how it failed, and never what
    /// it said.
    fn run(&self, time: Duration) -> Printed {
        let deadline = Instant::now() + time;
        let path = find(&self.command[0])?;
        let variables = self.environment.iter();
        let variables = variables.filter_map(|name| Some((name, std::env::var_os(name)?)));
        let child = Command::new(path)
            .args(&self.command[1..])
            .env_clear()
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        let mut running = Running {
            child: child.map_err(|error| format!("does not start: {error}"))?,
            ended: false,
        };
        if let Some(mut stdin) = running.child.stdin.take() {
            // A name fits the pipe, so this does not wait; who does not read it may have no need to.
            let _ = stdin.write_all(self.server.as_bytes());
        }
        let output = running.read(deadline)?;
        let status = running.end(deadline)?;
        if status.success() {
            return Credential::printed(&output).map(Some);
        }
        if String::from_utf8_lossy(&output).contains(NOTHING) {
            return Ok(None);
        }
        Err(match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with exit code {code}"),
            (None, signal) => format!("was ended by signal {}", signal.unwrap_or_default()),
        })
    }
}

/// The file of a program, by its path or on `PATH`.
fn find(name: &str) -> Result<PathBuf, String> {
    let runs = |path: &Path| {
        std::fs::metadata(path)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        let path = PathBuf::from(name);
        if path.is_absolute() && runs(&path) {
            return Ok(path);
        }
        return Err(format!("{name} is no program by its whole path"));
    }
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let mut paths = std::env::split_paths(&directories).map(|directory| directory.join(name));
    let found = paths.find(|path| path.is_absolute() && runs(path));
    found.ok_or_else(|| format!("there is no program {name} on PATH"))
}

// === impl Running ===

impl Running {
    /// What it prints, to the end.
    fn read(&mut self, deadline: Instant) -> Result<Zeroizing<Vec<u8>>, String> {
        let mut output = Zeroizing::new(Vec::with_capacity(OUTPUT));
        let Some(mut stdout) = self.child.stdout.take() else {
            return Ok(output);
        };
        let mut buffer = Zeroizing::new([0; 4096]);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).ok();
            let mut fds = [PollFd::new(&stdout, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return Err("took too long".into()),
                Err(rustix::io::Errno::INTR) => continue,
                Ok(_) | Err(_) => {}
            }
            match stdout.read(&mut buffer[..]) {
                Ok(0) => return Ok(output),
                Ok(n) if output.len() + n > OUTPUT => {
                    return Err(format!("printed more than {OUTPUT} bytes"));
                }
                Ok(n) => output.extend_from_slice(&buffer[..n]),
                Err(error) => return Err(format!("cannot be read from: {error}")),
            }
        }
    }

    /// How it ended; it has closed its output already.
    fn end(&mut self, deadline: Instant) -> Result<ExitStatus, String> {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    self.ended = true;
                    return Ok(status);
                }
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok(None) => return Err("took too long".into()),
                Err(error) => return Err(format!("cannot be waited for: {error}")),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

// === impl Credential ===

impl Credential {
    fn printed(output: &[u8]) -> Result<Self, String> {
        let Output { username, secret } = serde_json::from_slice(output)
            .map_err(|_| "printed no JSON with Username and Secret".to_owned())?;
        let secret = Secret::new(secret);
        if secret.expose().is_empty() || username.contains(':') {
            return Err("printed a login that cannot be used".into());
        }
        if username == TOKEN {
            return Ok(Credential::Refresh(secret));
        }
        Ok(Credential::Password {
            username,
            password: secret,
        })
    }
}

#[cfg(test)]
mod tests;
