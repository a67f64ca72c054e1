//! What is kept of an identity, and for how long. `tests/it/azure.rs` has the whole flow.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::{advance, pause, resume};

use super::*;
use crate::upstream::Limits;
use crate::upstream::tests::install_crypto;
use crate::upstream::tests::server::{Reply, Server};

/// A machine's identity service and a registry in one: every token has a number.
async fn machine() -> (Server, Azure) {
    let number = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        let number = number.fetch_add(1, Ordering::SeqCst);
        if request.target.starts_with(IMDS_PATH) {
            let body = format!("{{\"access_token\":\"i{number}\",\"expires_in\":\"3600\"}}");
            return Reply::new(200, body);
        }
        // {"iat":0,"exp":10800}
        let token = format!("e30.eyJpYXQiOjAsImV4cCI6MTA4MDB9.{number}");
        Reply::new(200, format!("{{\"refresh_token\":\"{token}\"}}"))
    })
    .await;
    let azure = azure_at(&server);
    (server, azure)
}

fn azure_at(server: &Server) -> Azure {
    install_crypto();
    let limits = Limits::default();
    let transport = Transport {
        clients: identity_clients(&limits).unwrap(),
        hosts: Hosts {
            key: "corp.azurecr.io".into(),
            endpoints: vec![server.url().parse().unwrap()],
            auth: Vec::new(),
            redirect: Vec::new(),
            insecure: true,
        },
        limits,
        meter: Meter::new(Arc::default(), "corp.azurecr.io".into()),
    };
    let identity = Identity::Managed { client_id: None };
    Azure::with(identity, transport, "https://management.azure.com")
}

/// While nothing is on its way.
async fn pass(time: Duration) {
    pause();
    advance(time).await;
    resume();
}

#[tokio::test]
async fn each_token_is_kept_until_just_before_its_end() {
    let (server, azure) = machine().await;
    let realm: Url = format!("{}/oauth2/token", server.url()).parse().unwrap();
    let refresh = || azure.refresh_token(&azure.transport, &realm, "corp");
    let first = refresh().await.unwrap();
    assert_eq!(refresh().await.unwrap().expose(), first.expose());
    assert_eq!((server.count(IMDS_PATH), server.count("/oauth2")), (1, 1));

    // Three hours without five minutes; by then the identity's hour is over too.
    pass(Duration::from_secs(3 * 3600 - 301)).await;
    assert_eq!(refresh().await.unwrap().expose(), first.expose());
    pass(Duration::from_secs(2)).await;
    let second = refresh().await.unwrap();
    assert_ne!(second.expose(), first.expose());
    assert_eq!((server.count(IMDS_PATH), server.count("/oauth2")), (2, 2));

    // Other registries are given tokens of their own.
    let other = azure.refresh_token(&azure.transport, &realm, "other").await;
    assert_ne!(other.unwrap().expose(), second.expose());
    assert_eq!((server.count(IMDS_PATH), server.count("/oauth2")), (2, 3));
}

#[tokio::test]
async fn a_refresh_token_that_was_revoked_is_replaced_but_not_at_once() {
    let (server, azure) = machine().await;
    let realm: Url = format!("{}/oauth2/token", server.url()).parse().unwrap();
    let refresh = || azure.refresh_token(&azure.transport, &realm, "corp");
    let first = refresh().await.unwrap();
    assert!(!azure.refused(&realm, "corp", &first));
    pass(Duration::from_secs(11)).await;
    assert!(azure.refused(&realm, "corp", &first));
    assert_ne!(refresh().await.unwrap().expose(), first.expose());
    // The identity was not at fault.
    assert_eq!((server.count(IMDS_PATH), server.count("/oauth2")), (1, 2));
}

/// Whoever could send us elsewhere would be told who we are, or tell us.
#[tokio::test]
async fn an_identity_service_that_redirects_is_not_followed() {
    let elsewhere = Server::bystander().await;
    let target = elsewhere.url();
    let server = Server::start(move |_| Reply::redirect(target.clone())).await;
    let azure = azure_at(&server);
    let realm: Url = format!("{}/oauth2/token", server.url()).parse().unwrap();
    let answer = azure.refresh_token(&azure.transport, &realm, "corp").await;
    let Err(UpstreamErrorKind::LoginUnavailable(text)) = answer else {
        panic!("{answer:?}")
    };
    assert!(
        text.starts_with("identity: ") && text.contains("307"),
        "{text}"
    );
    assert_eq!(elsewhere.connections(), 0);
}
