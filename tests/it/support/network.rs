//! Networks of a test's own: one in which any address can stand on loopback, and others that nothing
//! leads to but what a test lays.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::panic::resume_unwind;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::programs::program;

/// Says to a test that it runs in its own network already.
const INSIDE: &str = "PORTCULLIS_TEST_NETWORK";

/// Where names are looked up in such a network: nobody is there unless a test puts somebody there.
pub const NAMESERVER: &str = "192.0.2.1";

/// A network with nothing but its loopback. It lives as long as this.
#[derive(Debug)]
pub struct Island {
    /// Its namespace lives as long as this process.
    pause: Child,
}

/// Runs `test` in a new network namespace with the given addresses on `lo`: this test binary runs
/// the one test called `name` again, inside. Nothing leaves such a namespace and nothing enters.
pub fn in_own_network(name: &str, addresses: &[&str], test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        test();
        return;
    }
    let mut script = "set -e; ip link set lo up; ".to_owned();
    for address in addresses {
        script += &format!("ip addr add {address} dev lo; ");
    }
    script += "mount --bind \"$2\" /etc/resolv.conf; exec \"$0\" --exact \"$1\" --nocapture";
    let mut resolver = tempfile::NamedTempFile::new().unwrap();
    writeln!(
        resolver,
        "nameserver {NAMESERVER}\noptions attempts:1 timeout:2"
    )
    .unwrap();
    let output = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .arg(resolver.path())
        .env(INSIDE, "1")
        .output()
        .unwrap_or_else(|error| panic!("unshare (util-linux) does not start: {error}"));
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        output.status.success(),
        "in its own network (needs root): {said}"
    );
    // A wrong name runs no test, and that is a success to the test harness.
    assert!(
        said.contains("1 passed"),
        "the test {name} did not run: {said}"
    );
}

// === impl Island ===

impl Island {
    pub fn start() -> Self {
        let mut pause = program("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up; echo up; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(pause.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "up\n", "a network of its own needs root");
        Island { pause }
    }

    /// Of a process there.
    pub fn pid(&self) -> u32 {
        self.pause.id()
    }

    /// A program there.
    pub fn program(&self, name: &str) -> Command {
        let mut command = program("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.pid()))
            .arg(program(name).get_program());
        command
    }

    /// Does `work` there: what it listens on and connects to, and the programs and threads that it
    /// starts, are there too.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                self.enter();
                work()
            });
            there.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Moves this thread there, for good.
    pub fn enter(&self) {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.pause), Signal::TERM);
        let _ = self.pause.wait();
    }
}
