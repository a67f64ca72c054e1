//! Why a request got no answer behind a proxy.
//!
//! The HTTP library says that a tunnel failed and not why. So the proxy is asked once more and its
//! answer is read, because "allow the host there" and "it is down" need different people.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use hyper_util::client::proxy::matcher::Intercept;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::Url;
use zeroize::Zeroizing;

use super::{ProxyUrl, Way, address};
use crate::upstream::UpstreamErrorKind;
use crate::upstream::error::find;

/// For each of the two steps of asking a proxy why; it is near.
const ASK: Duration = Duration::from_secs(2);
/// Bytes of a proxy's answer that are read: the status stands at its beginning.
const HEADER: usize = 8 << 10;

/// One proxy, on the way to one host.
#[derive(Debug)]
pub(in crate::upstream) struct Proxy {
    pub(super) url: ProxyUrl,
    /// Knows the login as a header.
    pub(super) way: Intercept,
}

impl Way {
    /// What a request to `url` that got no answer failed by, if that was between us and the
    /// proxy or between the proxy and the host. Takes four seconds at most.
    pub(in crate::upstream) async fn explain(
        &self,
        error: &reqwest::Error,
        url: &Url,
    ) -> Option<UpstreamErrorKind> {
        let proxy = self.of(url)?;
        if !error.is_connect() && !error.is_timeout() {
            return None;
        }
        let said = tunnel_error(error);
        if let Some(tls) = find::<rustls::Error>(error) {
            // Inside a tunnel it is the host's, which is told like any other.
            let ours = said.is_some() || url.scheme() == "http";
            return ours
                .then(|| UpstreamErrorKind::NoWayOut(format!("TLS with {proxy} failed ({tls})")));
        }
        Some(proxy.explain(error, &address(url), said.as_deref()).await)
    }

    /// What a 407 in the absolute form means: no registry sends one.
    pub(in crate::upstream) fn wants_login(&self, url: &Url) -> Option<UpstreamErrorKind> {
        Some(self.of(url)?.wants_login())
    }
}

/// The library's words for what went wrong in making a tunnel: its types are not public.
fn tunnel_error(error: &reqwest::Error) -> Option<String> {
    let mut next = error.source();
    while let Some(error) = next {
        let text = error.to_string();
        for kind in ["tunnel error: ", "SOCKS error: "] {
            if let Some(said) = text.strip_prefix(kind) {
                return Some(said.to_owned());
            }
        }
        next = error.source();
    }
    None
}

// === impl Proxy ===

impl Proxy {
    async fn explain(
        &self,
        error: &reqwest::Error,
        host: &str,
        said: Option<&str>,
    ) -> UpstreamErrorKind {
        use UpstreamErrorKind::{NoWayOut, TimedOut, Unavailable};
        let mut stream = match self.dial().await {
            Ok(stream) => stream,
            Err(why) => return NoWayOut(format!("cannot connect to {self} ({why})")),
        };
        if error.is_timeout() {
            return TimedOut(format!(
                "{self} did not open a connection to {host} in time"
            ));
        }
        let tunnel = said.is_some();
        let said = said.unwrap_or("closed the connection");
        if tunnel && self.url.0.scheme() == "http" {
            return match self.connect(&mut stream, host).await {
                Some(407) => self.wants_login(),
                Some(status @ 400..500) => NoWayOut(format!(
                    "{self} refused CONNECT to {host} ({status}): allow the host there"
                )),
                Some(status @ 500..) => {
                    Unavailable(format!("{self} cannot reach {host} ({status})"))
                }
                _ => Unavailable(format!("{self} opened no connection to {host} ({said})")),
            };
        }
        match said {
            "proxy authorization required"
            | "credentials not accepted"
            | "server does not support user/pass authentication"
            | "server implements authentication incorrectly" => self.wants_login(),
            "connection not allowed" => NoWayOut(format!(
                "{self} refused a connection to {host}: allow the host there"
            )),
            "unsuccessful" => Unavailable(format!("{self} refused {host} or cannot reach it")),
            said => Unavailable(format!("{self} cannot reach {host} ({said})")),
        }
    }

    fn wants_login(&self) -> UpstreamErrorKind {
        UpstreamErrorKind::NoWayOut(if self.url.has_login() {
            format!("{self} refused the login that it was given")
        } else {
            format!("{self} wants a login: proxy_username and proxy_password under [egress]")
        })
    }

    /// Just a connection. Fails with the system's word for why not.
    async fn dial(&self) -> Result<TcpStream, String> {
        let host = self.url.0.host_str().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = self.url.0.port_or_known_default().unwrap_or_default();
        match timeout(ASK, TcpStream::connect((host, port))).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(error.kind().to_string()),
            Err(_) => Err("timed out".to_owned()),
        }
    }

    /// The status that it answers to CONNECT, which is all that is read.
    async fn connect(&self, stream: &mut TcpStream, host: &str) -> Option<u16> {
        let login = self.way.basic_auth().and_then(|login| login.to_str().ok());
        let login = login.map(|login| format!("Proxy-Authorization: {login}\r\n"));
        let login = Zeroizing::new(login.unwrap_or_default());
        let request = Zeroizing::new(format!(
            "CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{}\r\n",
            *login
        ));
        let mut answer = Vec::new();
        let exchange = async {
            stream.write_all(request.as_bytes()).await.ok()?;
            while !answer.contains(&b'\n') && answer.len() < HEADER {
                if stream.read_buf(&mut answer).await.ok()? == 0 {
                    break;
                }
            }
            let line = String::from_utf8_lossy(&answer);
            let status = line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
            status.trim_end().parse().ok()
        };
        timeout(ASK, exchange).await.ok().flatten()
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the egress proxy {}", address(&self.url.0))
    }
}
