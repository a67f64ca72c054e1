//! Lists of tags and the links between their pages.

use super::*;

async fn tags(server: &Server) -> Result<Vec<String>, UpstreamErrorKind> {
    match upstream(server, "").tags(&repository("a")).await {
        Ok(list) => Ok(list.tags.iter().map(ToString::to_string).collect()),
        Err(error) => Err(kind(Err::<(), _>(error))),
    }
}

#[tokio::test]
async fn pages_are_followed_sorted_and_deduplicated() {
    let server = Server::start(|request| {
        let link = |query: &str| format!("</v2/a/tags/list?{query}>; rel=\"next\"");
        match &*request.target {
            "/v2/a/tags/list?n=1000" => Reply::new(200, r#"{"name":"a","tags":["c","b"]}"#)
                .header("link", link("n=1000&last=c")),
            "/v2/a/tags/list?n=1000&last=c" => {
                Reply::new(200, r#"{"tags":["b","a","not a tag","../x"]}"#)
                    .header("link", link("next_page=opaque"))
            }
            "/v2/a/tags/list?next_page=opaque" => Reply::new(200, r#"{"tags":null}"#),
            other => panic!("{other}"),
        }
    })
    .await;
    assert_eq!(tags(&server).await.unwrap(), ["a", "b", "c"]);
}

/// Security row T17: a link chooses the page, never the host.
#[tokio::test]
async fn a_link_leads_nowhere_else() {
    let foreign = Server::bystander().await;
    let target = foreign.url();
    let server = Server::start(move |request| {
        if request.target.ends_with("?last=x") {
            return Reply::new(200, r#"{"tags":["b"]}"#);
        }
        let link = format!("<{target}/v2/secret/tags/list?last=x>; rel=next");
        Reply::new(200, r#"{"tags":["a"]}"#).header("link", link)
    })
    .await;
    assert_eq!(tags(&server).await.unwrap(), ["a", "b"]);
    assert_eq!(server.seen()[1].target, "/v2/a/tags/list?last=x");
    assert_eq!(foreign.connections(), 0);
}

#[tokio::test]
async fn circles_end_and_so_does_an_endless_list() {
    let circle = Server::start(|_| {
        Reply::new(200, r#"{"tags":["a"]}"#).header("link", "<?n=1000>; rel=\"next\"")
    })
    .await;
    assert_eq!(tags(&circle).await.unwrap(), ["a"]);
    assert_eq!(circle.seen().len(), 1);

    let endless = Server::start(|request| {
        let page: usize = request.target.rsplit('=').next().unwrap().parse().unwrap();
        Reply::new(200, format!("{{\"tags\":[\"{page}\"]}}"))
            .header("link", format!("<?page={}>; rel=\"next\"", page + 1))
    })
    .await;
    assert_eq!(tags(&endless).await.unwrap().len(), 100);
    assert_eq!(endless.seen().len(), 100);
}

#[tokio::test]
async fn what_is_no_list_is_refused() {
    for (reply, expected) in [
        ((200, "<html>".to_owned()), "Invalid"),
        (
            (200, format!("{{\"tags\":[\"{}\"]}}", "x".repeat(4 << 20))),
            "Invalid",
        ),
        ((404, "{}".to_owned()), "NotFound"),
    ] {
        let server = Server::start(move |_| Reply::new(reply.0, reply.1.clone())).await;
        let error = tags(&server).await.unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{error:?}");
    }
}
