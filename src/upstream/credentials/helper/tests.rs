//! Programs that behave badly, and what is told of them.

use std::path::Path;
use std::time::{Duration, Instant};

use super::*;

fn program(script: &str, environment: &[&str]) -> Program {
    let command = ["/bin/sh", "-c", script].map(str::to_owned);
    Program {
        command: command.to_vec(),
        environment: environment.iter().map(|name| (*name).to_owned()).collect(),
        server: "registry.example".into(),
    }
}

fn run(script: &str) -> Result<Option<Credential>, String> {
    program(script, &[]).run(TIME)
}

fn password(credential: Option<Credential>) -> (String, String) {
    match credential {
        Some(Credential::Password { username, password }) => (username, password.expose().clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_is_asked_about_the_registry_and_prints_a_login() {
    let script = r#"printf '{"ServerURL":"x","Username":"u","Secret":"%s"}' "$(cat)""#;
    assert_eq!(
        password(run(script).unwrap()),
        ("u".into(), "registry.example".into())
    );
    let token = r#"echo '{"Username":"<token>","Secret":"t"}'"#;
    assert!(matches!(
        run(token),
        Ok(Some(Credential::Refresh(token))) if token.expose() == "t"
    ));
    let nothing = "echo 'credentials not found in native keychain'; exit 1";
    assert!(matches!(run(nothing), Ok(None)));
}

#[test]
fn it_sees_nothing_of_our_environment_but_what_is_named() {
    // Cargo sets these two for every test; a shell adds PWD and others of its own.
    let script =
        r#"printf '{"Username":"u","Secret":"%s|%s"}' "$CARGO_PKG_NAME" "$CARGO_PKG_VERSION""#;
    let named = program(script, &["CARGO_PKG_NAME"]).run(TIME);
    assert_eq!(password(named.unwrap()).1, "portcullis|");
}

#[test]
fn how_it_failed_is_told_and_not_what_it_said() {
    for (script, expected) in [
        (
            "echo hunter2; echo hunter2 >&2; exit 3",
            "ended with exit code 3",
        ),
        ("echo hunter2; kill -9 $$", "was ended by signal 9"),
        ("echo hunter2", "printed no JSON"),
        (
            r#"echo '{"Username":"hunter2","Secret":""}'"#,
            "cannot be used",
        ),
        (
            r#"echo '{"Username":"a:b","Secret":"hunter2"}'"#,
            "cannot be used",
        ),
        (
            "while :; do echo hunter2hunter2hunter2; done",
            "printed more than 65536 bytes",
        ),
    ] {
        let error = run(script).unwrap_err();
        assert!(error.contains(expected), "{script}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let missing = ["portcullis-no-such-helper".to_owned()];
    let error = Helper::new(&missing, &[], "x", None).unwrap_err();
    assert!(
        error.contains("no program portcullis-no-such-helper on PATH"),
        "{error}"
    );
    let relative = ["bin/sh".to_owned()];
    assert!(Helper::new(&relative, &[], "x", None).is_err());
}

/// It, and what it has left behind with its output in hand.
#[test]
fn what_takes_too_long_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    for script in ["sleep 60", "sleep 60 & echo $! > pid; exit 0"] {
        let script = format!("cd {}; echo $$ > pid; {script}", directory.path().display());
        let began = Instant::now();
        let error = program(&script, &["PATH"]).run(Duration::from_millis(300));
        assert_eq!(error.unwrap_err(), "took too long");
        assert!(began.elapsed() < Duration::from_secs(30));
        let pid = std::fs::read_to_string(directory.path().join("pid")).unwrap();
        let stat = || std::fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat"));
        // Whoever has nobody left to wait for it is a zombie at most.
        let gone = || stat().map_or(true, |stat| stat.contains(") Z "));
        while !gone() {
            assert!(began.elapsed() < Duration::from_secs(30), "it still runs");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A client that goes away in the middle does not make it run twice.
#[tokio::test]
async fn what_is_running_is_the_next_ones() {
    let directory = tempfile::tempdir().unwrap();
    let (gate, count) = (
        directory.path().join("gate"),
        directory.path().join("count"),
    );
    let script = format!(
        r#"echo x >> {}; while [ ! -e {} ]; do sleep 0.01; done; echo '{{"Username":"u","Secret":"s"}}'"#,
        count.display(),
        gate.display()
    );
    let command = ["/bin/sh", "-c", &script].map(str::to_owned);
    let helper = Helper::new(&command, &[], "x", None).unwrap();
    for _ in 0..3 {
        let gone = tokio::time::timeout(Duration::from_millis(100), helper.current());
        assert!(gone.await.is_err());
    }
    std::fs::write(&gate, "").unwrap();
    assert_eq!(password(helper.current().await.unwrap()).1, "s");
    assert_eq!(
        std::fs::read_to_string(&count).unwrap(),
        "x
"
    );
}

#[tokio::test(start_paused = true)]
async fn it_runs_once_until_it_is_refused_or_its_lifetime_ends() {
    let directory = tempfile::tempdir().unwrap();
    let count = directory.path().join("count");
    let script = format!(
        r#"echo x >> {0}; printf '{{"Username":"u","Secret":"%s"}}' $(wc -l < {0})"#,
        count.display()
    );
    let command = ["/bin/sh", "-c", &script].map(str::to_owned);
    let helper = Helper::new(&command, &[], "x", Some(Duration::from_secs(3600))).unwrap();
    let secret = || async { password(helper.current().await.unwrap()).1 };
    for _ in 0..3 {
        assert_eq!(secret().await, "1");
    }
    // What has just come is not worth asking for again.
    let first = helper.current().await.unwrap().unwrap().principal();
    helper.refused(first);
    assert_eq!(secret().await, "1");
    tokio::time::advance(Duration::from_secs(11)).await;
    helper.refused(first);
    assert_eq!(secret().await, "2");
    // Somebody else's news are old by now.
    helper.refused(first);
    assert_eq!(secret().await, "2");
    tokio::time::advance(Duration::from_secs(3599)).await;
    assert_eq!(secret().await, "3");
}
