//! Listeners that are not registries: one that must never be called, and one that passes bytes on
//! and counts them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// Somebody whom nobody should call. Counts connections and answers none.
#[derive(Debug)]
pub struct Bystander {
    pub address: SocketAddr,
    calls: Arc<AtomicUsize>,
}

/// Stands in front of a real server; the bytes towards it are requests.
#[derive(Debug)]
pub struct Relay {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    bytes: AtomicU64,
    stopped: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

// === impl Bystander ===

impl Bystander {
    pub fn start() -> Self {
        Bystander::on("127.0.0.1:0")
    }

    pub fn on(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        thread::spawn(move || {
            while let Ok((_, _)) = listener.accept() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        Bystander { address, calls }
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    #[track_caller]
    pub fn assert_never_called(&self) {
        assert_eq!(
            self.calls.load(Ordering::SeqCst),
            0,
            "{} was called",
            self.address
        );
    }
}

// === impl Relay ===

impl Relay {
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let accepting = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                while let Ok((near, _)) = listener.accept() {
                    if shared.stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    let Ok(far) = TcpStream::connect(target) else {
                        continue;
                    };
                    let mut connections = shared.connections.lock().unwrap();
                    connections.push(near.try_clone().unwrap());
                    drop(connections);
                    let (near2, far2) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                    let counter = Arc::clone(&shared);
                    thread::spawn(move || copy(near, far, Some(&counter.bytes)));
                    thread::spawn(move || copy(far2, near2, None));
                }
            }
        });
        Relay {
            address,
            shared,
            accepting: Some(accepting),
        }
    }

    /// Bytes of requests so far.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::SeqCst)
    }

    /// Cuts every connection and takes no more: the server is gone.
    pub fn stop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // accept() has no other way to hear of it.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            accepting.join().unwrap();
        }
        for connection in self.shared.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, counter: Option<&AtomicU64>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(got) = from.read(&mut buffer) {
        if got == 0 {
            break;
        }
        if let Some(counter) = counter {
            counter.fetch_add(got as u64, Ordering::SeqCst);
        }
        if to.write_all(&buffer[..got]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
