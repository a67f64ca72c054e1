//! How logins are spelled, whose repositories they are for, and files that change.

use std::time::Duration;

use super::config::AzureKind;
use super::*;

fn spelled(credential: &str) -> Result<CredentialSource, String> {
    let config: Result<Config, _> = toml::from_str(&format!("credential = {credential}"));
    let config = config.map_err(|error| error.to_string())?;
    Ok(config.credential.unwrap())
}

#[test]
fn a_credential_has_few_spellings() {
    let CredentialSource::Azure(azure) = spelled("\"azure\"").unwrap() else {
        panic!()
    };
    assert_eq!(azure.kind, None);
    let managed = "{ azure = \"managed-identity\", client_id = \"c\" }";
    let CredentialSource::Azure(azure) = spelled(managed).unwrap() else {
        panic!()
    };
    assert_eq!(azure.kind, Some(AzureKind::ManagedIdentity));
    assert_eq!(
        spelled("\"docker-config\"").unwrap(),
        CredentialSource::DockerConfig {
            file: None,
            env: Vec::new()
        }
    );
    assert_eq!(
        spelled("{ docker_config = \"/x\", env = [\"AWS_PROFILE\"] }").unwrap(),
        CredentialSource::DockerConfig {
            file: Some("/x".into()),
            env: vec!["AWS_PROFILE".into()]
        }
    );
    assert_eq!(
        spelled("{ exec = [\"a\", \"b\"], lifetime = \"1h\" }").unwrap(),
        CredentialSource::Exec {
            command: vec!["a".into(), "b".into()],
            env: Vec::new(),
            lifetime: Some(Duration::from_secs(3600))
        }
    );
    for wrong in [
        "\"entra\"",
        "{ exec = \"a\" }",
        "{ exec = [\"a\"], docker_config = \"x\" }",
        "{ exec = [\"a\"], lifetime = 5 }",
        "{ azure = \"cli\" }",
        "{}",
    ] {
        let error = spelled(wrong).unwrap_err();
        assert!(error.contains("a credential is"), "{wrong}: {error}");
    }
}

#[test]
fn a_prefix_ends_with_a_segment() {
    for (name, prefix, expected) in [
        ("corp/app", "", true),
        ("corp/app", "corp", true),
        ("corp", "corp", true),
        ("corporate/app", "corp", false),
        ("app", "corp", false),
    ] {
        let name: RepositoryName = name.parse().unwrap();
        assert_eq!(is_under(&name, prefix), expected, "{name} {prefix}");
    }
}

#[test]
fn principals_tell_credentials_apart_and_show_nothing() {
    let password = |username: &str, password: &str| Credential::Password {
        username: username.into(),
        password: Secret::new(password.into()),
    };
    let all = [
        password("a", "hunter2"),
        password("b", "hunter2"),
        password("ah", "unter2"),
        Credential::Refresh(Secret::new("hunter2".into())),
        Credential::Bearer(Secret::new("hunter2".into())),
    ];
    for (i, one) in all.iter().enumerate() {
        assert!(!format!("{one:?} {:?}", one.principal()).contains("hunter2"));
        for (j, other) in all.iter().enumerate() {
            assert_eq!(one.principal() == other.principal(), i == j, "{i} {j}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_is_read_again_when_it_changes_or_was_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    // As Kubernetes does it: a link that is swapped.
    let swap = |text: &str| {
        let data = directory.path().join(text);
        std::fs::write(&data, format!("{text}\n")).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&data, &link).unwrap();
        std::fs::rename(&link, &file).unwrap();
    };
    swap("first");
    let watched = Watched::open(&file, |text| Ok(text.trim().to_owned())).unwrap();
    let seen = || async { String::clone(&*watched.current().await) };
    swap("second");
    assert_eq!(seen().await, "first", "looked at a moment ago");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(seen().await, "second");
    swap("third");
    watched.read_again().await;
    assert_eq!(seen().await, "third");
    // In the middle of a rotation there may be nothing.
    std::fs::remove_file(&file).unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(seen().await, "third");
}
