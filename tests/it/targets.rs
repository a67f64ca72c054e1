//! What nobody can make us dial: internal targets under every name and spelling, in a network in
//! which a call would arrive.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::at;
use crate::support::listeners::Bystander;
use crate::support::network::{NAMESERVER, in_own_network};
use crate::support::proxy::Setup;
use crate::support::upstream::{Fault, Upstream};

/// Addresses on which a call would be heard.
const INSIDE: [&str; 8] = [
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.168.0.1",
    "198.18.0.1",
];

/// A public address, at which somebody answers 404.
const OUTSIDE: &str = "198.51.100.7";

/// A name server that answers by a script, and remembers what it was asked.
struct NameServer {
    asked: Arc<Mutex<Vec<String>>>,
}

impl NameServer {
    /// `script` gives the addresses of the n-th question for a name, counted from 0.
    fn start(script: impl Fn(&str, usize) -> Vec<Ipv4Addr> + Send + 'static) -> Self {
        let socket = UdpSocket::bind((NAMESERVER, 53)).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log: Arc<Mutex<Vec<String>>> = Arc::clone(&asked);
        thread::spawn(move || {
            let mut packet = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut packet) {
                let question = &packet[12..length];
                let mut name = Vec::new();
                let mut rest = question;
                while let [size @ (1..), tail @ ..] = rest {
                    let (label, tail) = tail.split_at((*size).into());
                    name.push(String::from_utf8_lossy(label).into_owned());
                    rest = tail;
                }
                let (name, is_v4) = (name.join("."), rest[1..3] == [0, 1]);
                let addresses = if is_v4 {
                    let mut log = log.lock().unwrap();
                    let number = log.iter().filter(|known| **known == name).count();
                    log.push(name.clone());
                    script(&name, number)
                } else {
                    Vec::new()
                };
                // The question again, without what may stand behind it.
                let end = question.len() - rest.len() + 5;
                let mut answer = packet[..2].to_vec();
                answer.extend([0x81, 0x80, 0, 1, 0, u8::try_from(addresses.len()).unwrap()]);
                answer.extend([0, 0, 0, 0]);
                answer.extend(&question[..end]);
                for address in addresses {
                    // The name above, type A, class IN, no time to live, four bytes.
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                    answer.extend(address.octets());
                }
                socket.send_to(&answer, from).unwrap();
            }
        });
        NameServer { asked }
    }

    fn asked(&self) -> Vec<String> {
        let mut asked = self.asked.lock().unwrap().clone();
        asked.sort();
        asked.dedup();
        asked
    }
}

fn networks(addresses: &[&str]) -> Vec<String> {
    let all = addresses.iter().filter(|address| **address != "127.0.0.1");
    all.chain([&NAMESERVER])
        .map(|address| format!("{address}/32"))
        .collect()
}

fn in_a_network_with(name: &str, addresses: &[&str], test: impl FnOnce()) {
    let networks = networks(addresses);
    let networks: Vec<_> = networks.iter().map(String::as_str).collect();
    in_own_network(name, &networks, test);
}

/// Whoever listens inside, on ports that somebody may want to reach.
fn bystanders() -> Vec<Bystander> {
    let ports = [80, 443, 8080];
    let on = |address: &&str| ports.map(|port| Bystander::on(&format!("{address}:{port}")));
    INSIDE.iter().flat_map(on).collect()
}

/// Security row T18: a proxy that serves every public host is no way to the inside.
#[test]
fn a_name_leads_to_nothing_internal() {
    in_a_network_with("targets::a_name_leads_to_nothing_internal", &INSIDE, || {
        let bystanders = bystanders();
        // Whatever the name: it is inside. Half of the names lead to where identities are given out.
        let names = NameServer::start(|name, _| {
            let inside = if name.len() % 2 == 0 {
                [10, 0, 0, 1]
            } else {
                [169, 254, 169, 254]
            };
            vec![inside.into()]
        });
        let proxy = Setup::listening()
            .section("upstreams.\"*\"", "")
            .rules("[policy]\ndefault = \"allow\"\n")
            .start();
        let spellings = INSIDE.iter().flat_map(|address| {
            [
                (*address).to_owned(),
                format!("{address}:80"),
                format!("{address}:8080"),
            ]
        });
        let others = [
            "localhost",
            "localhost:8080",
            "LOCALHOST",
            "kubernetes",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "metadata.google.internal",
            "metadata.internal",
            "registry.localhost",
            "printer.lan",
            "intranet.corp",
            "1.0.0.10.in-addr.arpa",
            "2852039166",
            "0xa9fea9fe",
            "0251.0376.0251.0376",
            "127.1",
            "0x7f.1",
            "0",
            "0.0.0.0",
            "[::1]",
            "[::ffff:169.254.169.254]",
            "[fd00:ec2::254]",
            "public.example:8080",
            "user@public.example",
            "public.example%2f..",
        ];
        for target in spellings.chain(others.map(str::to_owned)) {
            for path in [
                format!("/v2/a/manifests/1?ns={target}"),
                format!("/v2/{target}/a/manifests/1"),
            ] {
                let status = proxy.get(&path).status;
                // What is no registry's name in the path is a repository of Docker Hub.
                let by_path = path.starts_with("/v2/a/") || target.contains(['.', ':']);
                let by_path = by_path || target == "localhost" || target == "LOCALHOST";
                if by_path {
                    assert!(matches!(status, 400 | 403 | 404), "{path}: {status}");
                }
            }
        }
        let asked = names.asked();
        assert!(
            asked.iter().all(|name| name == "registry-1.docker.io"),
            "{asked:?}"
        );
        // Names that are public, as far as anybody can tell, at addresses that are not.
        for target in ["internal.public.example", "identity.public.example"] {
            let answer = proxy.get(&format!("/v2/a/manifests/1?ns={target}"));
            let answer = answer.assert_error(502, "UNAVAILABLE");
            assert!(answer.reason.contains("an internal address"), "{answer:?}");
        }
        bystanders.iter().for_each(Bystander::assert_never_called);
        assert!(proxy.stored().is_empty());
    });
}

/// Security row T24: in a redirect, in a realm, or in what a token service answers.
#[test]
fn no_spelling_of_an_internal_address_is_dialled() {
    let name = "targets::no_spelling_of_an_internal_address_is_dialled";
    in_a_network_with(name, &INSIDE, || {
        let bystanders = bystanders();
        let names = NameServer::start(|_, _| vec![Ipv4Addr::new(169, 254, 169, 254)]);
        let upstream = Upstream::start();
        let own = upstream.origin();
        let proxy = Setup::new(&upstream).start();
        let spellings = [
            "169.254.169.254",
            "169.254.169.254.",
            "169.254.169.254:80",
            "2852039166",
            "0xa9fea9fe",
            "0xA9.0xFE.0xA9.0xFE",
            "0251.0376.0251.0376",
            "169.16689662",
            "169.254.43518",
            "[::ffff:169.254.169.254]",
            "[::ffff:a9fe:a9fe]",
            "[64:ff9b::169.254.169.254]",
            "[2002:a9fe:a9fe::]",
            "[fd00:ec2::254]",
            "[fe80::a9fe:a9fe]",
            "168.63.129.16",
            "[::ffff:168.63.129.16]",
            "0.0.0.0",
            "0",
            "127.1",
            "0x7f.1",
            "2130706433",
            "[::1]",
            "[::]",
            "10.0.0.1",
            "10.1",
            "192.168.0.1:8080",
            "172.16.0.1",
            "100.64.0.1",
            "198.18.0.1",
            "metadata.internal",
            "metadata.google.internal",
            "localhost:8080",
            "kubernetes.default.svc",
        ];
        for (number, host) in spellings.iter().enumerate() {
            for scheme in ["http", "https"] {
                let place = format!("demo/{scheme}{number}/manifests/1");
                let refused = || {
                    let answer = proxy.get(&at(&place)).assert_error(502, "UNAVAILABLE");
                    assert!(
                        !answer.reason.contains("would allow it")
                            || host.contains("local")
                            || host.contains("internal")
                            || host.contains("svc"),
                        "{host}: {answer:?}"
                    );
                };
                upstream.always(&place, Fault::Redirect(format!("{scheme}://{host}")));
                refused();
                upstream.behave();
                let challenge = |realm: &str| {
                    let challenge = format!("Bearer realm=\"{realm}\"");
                    Fault::Answer(401, vec![("WWW-Authenticate", challenge)], Vec::new())
                };
                upstream.always(&place, challenge(&format!("{scheme}://{host}/token")));
                refused();
                upstream.behave();
                upstream.always(&place, challenge(&format!("{own}/token")));
                upstream.always("/token", Fault::Redirect(format!("{scheme}://{host}")));
                proxy.get(&at(&place)).assert_error(502, "UNAVAILABLE");
                upstream.behave();
            }
        }
        assert_eq!(
            names.asked(),
            [""; 0],
            "nothing that is refused is looked up"
        );
        bystanders.iter().for_each(Bystander::assert_never_called);
    });
}

/// Security row T17: whoever runs the proxy reads which line would allow it.
#[test]
fn a_refused_host_is_named_in_answer_and_log() {
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream).start();
    upstream.always(
        "/manifests/",
        Fault::Redirect("https://cdn.public.example".to_owned()),
    );
    let answer = proxy
        .get(&at("demo/app/manifests/1"))
        .assert_error(502, "UNAVAILABLE");
    let line = "redirect_hosts = [\"cdn.public.example\"] under [upstreams.\"registry.example\"] \
                would allow it";
    assert!(answer.reason.contains(line), "{answer:?}");
    let logged = proxy.logs().wait_for("the upstream failed")["error"].to_string();
    assert!(logged.contains(&line.replace('"', "\\\"")), "{logged}");
}

/// Security row T25: what was checked is what is dialled, however often the name server changes its
/// mind, and of a mixed answer only the good part counts.
#[test]
fn a_name_that_changes_its_address_does_not_get_inside() {
    const NAME: &str = "rebind.public.example";
    let name = "targets::a_name_that_changes_its_address_does_not_get_inside";
    in_a_network_with(name, &["10.0.0.1", OUTSIDE], || {
        let inside = Bystander::on("10.0.0.1:8080");
        let answered = answers_not_found(SocketAddr::new(OUTSIDE.parse::<IpAddr>().unwrap(), 8080));
        let (good, bad) = (OUTSIDE.parse().unwrap(), Ipv4Addr::new(10, 0, 0, 1));
        let names = NameServer::start(move |_, number| match number % 4 {
            0 => vec![good],
            1 => vec![bad],
            2 => vec![bad, good],
            _ => vec![good, bad],
        });
        let proxy = Setup::listening()
            .section(
                &format!("upstreams.\"{NAME}\""),
                &format!("endpoints = [\"http://{NAME}:8080\"]\ninsecure = true"),
            )
            .rules("[policy]\ndefault = \"allow\"\n")
            .start();
        let statuses = Mutex::new(Vec::new());
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while let number @ 0..1000 = next.fetch_add(1, Ordering::SeqCst) {
                        let path = format!("/v2/{NAME}/a/manifests/t{number}");
                        statuses.lock().unwrap().push(proxy.get(&path).status);
                    }
                });
            }
        });
        let statuses = statuses.into_inner().unwrap();
        let count = |wanted| statuses.iter().filter(|status| **status == wanted).count();
        assert_eq!(count(404) + count(502), 1000);
        assert!(
            count(404) > 500 && count(502) > 100,
            "{} of 404",
            count(404)
        );
        assert!(answered.load(Ordering::SeqCst) > 500);
        assert_eq!(names.asked(), [NAME]);
        inside.assert_never_called();
    });
}

/// Closes every connection after it, so that each request looks the name up again.
fn answers_not_found(address: SocketAddr) -> Arc<AtomicUsize> {
    let listener = TcpListener::bind(address).unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let answered = Arc::clone(&count);
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            answered.fetch_add(1, Ordering::SeqCst);
            thread::spawn(move || {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let answer = b"HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                let _ = stream.write_all(answer);
            });
        }
    });
    count
}
