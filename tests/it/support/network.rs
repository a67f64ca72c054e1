//! A network of a test's own, in which any address can stand on loopback.

use std::io::Write as _;
use std::process::Command;

/// Says to a test that it runs in its own network already.
const INSIDE: &str = "PORTCULLIS_TEST_NETWORK";

/// Where names are looked up in such a network: nobody is there unless a test puts somebody there.
pub const NAMESERVER: &str = "192.0.2.1";

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
