//! Services beside registries: token services, identity services, storage. Each answers requests one
//! by one as its script says, and remembers them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use url::form_urlencoded;

#[derive(Debug)]
pub struct Service {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Lines, names in lower case.
    pub headers: String,
    pub body: String,
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    /// Lines.
    pub headers: String,
    pub body: Vec<u8>,
}

// === impl Service ===

impl Service {
    pub fn start(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Service::on("127.0.0.1:0", script)
    }

    pub fn on(address: &str, script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::default());
        let (seen, script) = (Arc::clone(&requests), Arc::new(script));
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let seen: Arc<Mutex<Vec<Request>>> = Arc::clone(&seen);
                let script = Arc::clone(&script);
                thread::spawn(move || {
                    while let Some(request) = Request::read(&stream) {
                        seen.lock().unwrap().push(request.clone());
                        let reply = script(&request);
                        if (&stream).write_all(&reply.bytes(&request)).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Service { address, requests }
    }

    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests whose target contains `fragment`, in order of arrival.
    pub fn seen(&self, fragment: &str) -> Vec<Request> {
        let requests = self.requests.lock().unwrap();
        let found = requests.iter().filter(|r| r.target.contains(fragment));
        found.cloned().collect()
    }

    /// The one request whose target contains `fragment`.
    pub fn request(&self, fragment: &str) -> Request {
        let mut found = self.seen(fragment);
        assert_eq!(found.len(), 1, "{fragment}: {:#?}", self.seen(""));
        found.remove(0)
    }
}

// === impl Request ===

impl Request {
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let mut words = line.split_whitespace();
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = String::new();
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            let name = name.to_ascii_lowercase();
            if name == "content-length" {
                length = value.parse().unwrap();
            }
            headers += &format!("{name}: {value}\n");
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        Some(Request {
            method,
            target,
            headers,
            body: String::from_utf8(body).unwrap(),
        })
    }

    /// By its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.headers.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    pub fn query(&self) -> Vec<(String, String)> {
        Request::parameters(self.target.split_once('?').map_or("", |(_, query)| query))
    }

    /// The parameters of a form or a query, sorted.
    pub fn parameters(text: &str) -> Vec<(String, String)> {
        let mut all: Vec<_> = form_urlencoded::parse(text.as_bytes())
            .into_owned()
            .collect();
        all.sort();
        all
    }
}

// === impl Reply ===

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Reply {
            status,
            headers: String::new(),
            body: body.into(),
        }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers += &format!("{name}: {value}\r\n");
        self
    }

    fn bytes(&self, request: &Request) -> Vec<u8> {
        let head = format!(
            "HTTP/1.1 {} X\r\n{}Content-Length: {}\r\n\r\n",
            self.status,
            self.headers,
            self.body.len()
        );
        let mut bytes = head.into_bytes();
        if request.method != "HEAD" {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}
