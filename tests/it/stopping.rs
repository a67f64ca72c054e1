//! SIGTERM: no new work, the work at hand is finished, then it ends well.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::client::{Client, End};
use crate::support::image::random;
use crate::support::proxy::Proxy;
use crate::support::upstream::Upstream;
use crate::support::{MIB, PATIENCE, at};

#[test]
fn an_idle_server_ends_at_once_and_well() {
    let upstream = Upstream::start();
    let mut proxy = Proxy::start(&upstream);
    let started = Instant::now();
    assert!(proxy.terminate().success());
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn a_pull_in_flight_is_finished() {
    let upstream = Upstream::start();
    let mut proxy = Proxy::start(&upstream);
    let bytes = random(24 * MIB);
    let digest = upstream.blob("demo/app", bytes.clone());
    let gate = upstream.hold(digest, 8 * MIB as u64);
    let mut client = proxy.open(&at(&format!("demo/app/blobs/{digest}")));
    client.take(MIB);
    proxy.signal(Signal::TERM);

    // It says that it is going, as long as it can be asked.
    let admin = Client::new(proxy.admin);
    let deadline = Instant::now() + PATIENCE;
    while admin.get("/readyz").status != 503 {
        assert!(Instant::now() < deadline, "still ready");
        std::thread::sleep(Duration::from_millis(10));
    }
    gate.open();
    let rest = client.finish();
    assert!(
        rest.end == End::Complete && rest.body == bytes[MIB..],
        "{rest:?}"
    );
    assert!(proxy.wait().success());

    proxy.start_again();
    proxy
        .get(&at(&format!("demo/app/blobs/{digest}")))
        .assert_whole(&bytes);
    assert_eq!(upstream.sent(digest), bytes.len() as u64);
}

/// What nobody waits for is journalled, not finished.
#[test]
fn a_fill_without_readers_does_not_hold_it_up() {
    let upstream = Upstream::start();
    let mut proxy = Proxy::start(&upstream);
    let bytes = random(24 * MIB);
    let digest = upstream.blob("demo/app", bytes.clone());
    let _gate = upstream.hold(digest, 16 * MIB as u64);
    let path = at(&format!("demo/app/blobs/{digest}"));
    let mut client = proxy.open(&path);
    client.take(16 * MIB);
    drop(client);
    let started = Instant::now();
    assert!(proxy.terminate().success());
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );

    upstream.behave();
    proxy.start_again();
    proxy.get(&path).assert_whole(&bytes);
    assert_eq!(upstream.sent(digest), bytes.len() as u64);
}
