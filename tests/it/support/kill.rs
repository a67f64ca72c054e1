//! kill -9 of a command at a moment that a test chooses, by what can be seen of its work.

use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::image::random;
use super::proxy::{Proxy, command};

/// Starts a command with a proxy's configuration.
pub fn start(proxy: &Proxy, arguments: &[&str]) -> Child {
    let config = proxy.directory().join("portcullis.toml");
    let mut command = command(&config, arguments);
    let command = command.current_dir(proxy.directory()).stdin(Stdio::null());
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits until it is so, or the command has ended before it was.
pub fn wait(child: &mut Child, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "nothing happens");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether it had done its work before.
pub fn kill(mut child: Child) -> bool {
    let _ = child.kill();
    child.wait().unwrap().success()
}

/// Another number in each run; a test that fails because of one names it.
pub fn any_below(bound: usize) -> usize {
    let bytes = random(8).try_into().unwrap();
    usize::from_le_bytes(bytes) % bound
}
