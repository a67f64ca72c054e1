//! What `deploy/` ships, by its own checks, with the program that was just built.

use std::process::Command;

/// Runs `deploy/<item>/check.sh`, which says itself what it proved and what it missed.
fn check(item: &str) {
    let script = format!("{}/deploy/{item}/check.sh", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(&script)
        .arg(env!("CARGO_BIN_EXE_portcullis"))
        .output()
        .unwrap_or_else(|error| panic!("{script}: {error}"));
    assert!(
        output.status.success(),
        "{script} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_containerd_files_close_the_bypass() {
    check("containerd");
}

#[test]
fn the_systemd_unit_is_valid_and_hardened() {
    check("systemd");
}

#[test]
fn the_image_runs_without_root_on_a_read_only_disk() {
    check("image");
}
