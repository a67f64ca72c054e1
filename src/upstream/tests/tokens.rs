//! Token services that would keep us busy.

use std::time::Duration;

use super::*;

/// A registry whose token service gives this reply.
async fn with_tokens(reply: impl Fn() -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |request| {
        if request.target.starts_with("/token") {
            return reply();
        }
        let host = request.header("host").unwrap();
        Reply::challenge(format!("Bearer realm=\"http://{host}/token\""))
    })
    .await
}

/// Security row T32: read to the limit and not further, whatever length was announced.
#[tokio::test]
async fn a_token_without_an_end_is_cut_off() {
    for announced in [true, false] {
        let server = with_tokens(move || {
            let reply = Reply::new(200, vec![b' '; 16 << 20]);
            if announced { reply } else { reply.length(None) }
        })
        .await;
        let error = kind(get(&upstream(&server, ""), "a").await);
        let UpstreamErrorKind::Invalid(text) = &error else {
            panic!("{error:?}")
        };
        assert!(text.contains("sends a token of more than"), "{text}");
        assert_eq!(server.count("/token"), 1);
    }
}

/// Security row T32: a body of brackets is no reason to run out of stack.
#[tokio::test]
async fn a_deep_token_is_refused() {
    for bracket in ["[", "{\"token\":"] {
        let body = bracket.repeat((100 << 10) / bracket.len());
        let server = with_tokens(move || Reply::new(200, body.clone())).await;
        let error = kind(get(&upstream(&server, ""), "a").await);
        assert!(matches!(error, UpstreamErrorKind::Invalid(_)), "{error}");
    }
}

/// Security row T32: the whole of a token takes 10 s at most, and its tries the time of an answer.
#[tokio::test]
async fn a_slow_token_is_not_waited_for() {
    let server = with_tokens(|| Reply::new(200, "{").length(Some(2)).then(Then::Stall)).await;
    let limits = Limits {
        answer: Duration::from_secs(12),
        ..Limits::default()
    };
    let upstream = upstream_with(&server, "", &limits);
    let asked = async {
        while server.count("/token") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Everybody waits for the clock from here on.
        tokio::time::pause();
    };
    let began = tokio::time::Instant::now();
    let (result, ()) = futures_util::join!(get(&upstream, "a"), asked);
    let error = kind(result);
    assert!(matches!(error, UpstreamErrorKind::TimedOut(_)), "{error}");
    let took = began.elapsed();
    assert!(
        took >= Duration::from_secs(10) && took < Duration::from_secs(14),
        "{took:?}"
    );
}
