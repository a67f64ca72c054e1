//! What a kubelet does to pull an image: `PullImage` of the container runtime interface, gRPC over
//! containerd's socket.

use std::path::Path;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper::{HeaderMap, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;

use super::PATIENCE;

/// A gRPC status that is not OK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub code: u32,
    pub message: String,
}

/// Asks the runtime behind `socket` to pull an image.
pub fn pull(socket: &Path, image: &str) -> Result<(), Status> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let call = async { tokio::time::timeout(2 * PATIENCE, call(socket, image)).await };
    runtime.block_on(call).expect("the runtime does not answer")
}

async fn call(socket: &Path, image: &str) -> Result<(), Status> {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://localhost/runtime.v1.ImageService/PullImage")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(message(image)))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    // An error comes as a head without a body, anything else with trailers.
    let head = response.headers().clone();
    let body = response.into_body().collect().await.unwrap();
    let end = if head.contains_key("grpc-status") {
        Some(&head)
    } else {
        body.trailers()
    };
    status(end.expect("an answer without a status"))
}

/// `PullImageRequest { image: ImageSpec { image } }` behind its length.
fn message(image: &str) -> Bytes {
    let field = |value: &[u8]| {
        let length = u8::try_from(value.len()).unwrap();
        assert!(length < 128, "a longer length takes two bytes");
        [&[0x0a, length], value].concat()
    };
    let request = field(&field(image.as_bytes()));
    let length = u32::try_from(request.len()).unwrap();
    [&[0][..], &length.to_be_bytes(), &request].concat().into()
}

fn status(end: &HeaderMap) -> Result<(), Status> {
    let text = |name: &str| {
        end.get(name)
            .map(|value| value.to_str().unwrap())
            .unwrap_or_default()
    };
    match text("grpc-status").parse().unwrap() {
        0 => Ok(()),
        code => Err(Status {
            code,
            message: percent_decoded(text("grpc-message")),
        }),
    }
}

fn percent_decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).unwrap()
}

impl Status {
    /// As the kubelet writes it.
    pub fn text(&self) -> String {
        let code = match self.code {
            2 => "Unknown".to_owned(),
            5 => "NotFound".to_owned(),
            14 => "Unavailable".to_owned(),
            code => code.to_string(),
        };
        format!("rpc error: code = {code} desc = {}", self.message)
    }
}
