//! The connections of one listener: how many, from whom, and which of them have gone dead.
//!
//! A connection notes what happens to it in its [`Pulse`]; one task looks at all pulses once a
//! second, so that a connection needs no timer of its own. hyper's header timer cannot do this:
//! it also runs between requests, and so would close idle connections far too early.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;

use super::pulse::{Pulse, Verdict};

/// All connections of one listener.
#[derive(Debug)]
pub(super) struct Connections {
    per_client: usize,
    open: Gauge,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    draining: bool,
    next: u64,
    pulses: HashMap<u64, Arc<Pulse>>,
    clients: HashMap<IpAddr, usize>,
}

/// A connection's place in the table, given up on drop.
#[derive(Debug)]
pub(super) struct Lease {
    connections: Arc<Connections>,
    key: u64,
    client: IpAddr,
    pub(super) pulse: Arc<Pulse>,
}

// === impl Connections ===

impl Connections {
    pub(super) fn new(per_client: usize, open: Gauge) -> Arc<Self> {
        Arc::new(Connections {
            per_client,
            open,
            table: Mutex::default(),
        })
    }

    /// None when this client has too many already. Loopback is never one client: it is whatever
    /// runs in front of us here.
    pub(super) fn enter(self: &Arc<Self>, client: IpAddr) -> Option<Lease> {
        let mut table = self.lock();
        let count = table.clients.entry(client).or_default();
        if *count >= self.per_client && !client.is_loopback() {
            return None;
        }
        *count += 1;
        let verdict = if table.draining {
            Verdict::Finish
        } else {
            Verdict::Live
        };
        let key = table.next;
        table.next += 1;
        let pulse = Arc::new(Pulse::new(verdict));
        table.pulses.insert(key, Arc::clone(&pulse));
        self.open.inc();
        Some(Lease {
            connections: Arc::clone(self),
            key,
            client,
            pulse,
        })
    }

    /// Ends what is idle, and everything else after its request in hand.
    pub(super) fn drain(&self) {
        let mut table = self.lock();
        table.draining = true;
        table
            .pulses
            .values()
            .for_each(|pulse| pulse.judge(Verdict::Finish));
    }

    /// Ends everything now.
    pub(super) fn cut(&self) {
        self.lock()
            .pulses
            .values()
            .for_each(|pulse| pulse.judge(Verdict::Cut));
    }

    /// Connections that had a request and are still open.
    pub(super) fn in_use(&self) -> usize {
        self.lock()
            .pulses
            .values()
            .filter(|pulse| pulse.is_used())
            .count()
    }

    /// Cuts what has made no progress for too long. Runs until it is dropped.
    pub(super) async fn reap(&self) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            let now = tick.tick().await;
            let pulses: Vec<_> = self.lock().pulses.values().cloned().collect();
            for pulse in pulses.iter().filter(|pulse| pulse.is_overdue(now)) {
                pulse.judge(Verdict::Cut);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut table = self.connections.lock();
        table.pulses.remove(&self.key);
        if let Some(count) = table.clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                table.clients.remove(&self.client);
            }
        }
        self.connections.open.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_has_its_share_of_connections() {
        let open = Gauge::default();
        let connections = Connections::new(2, open.clone());
        let (one, other) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let first = connections.enter(one).unwrap();
        let _second = connections.enter(one).unwrap();
        assert!(connections.enter(one).is_none());
        let _others = connections.enter(other).unwrap();
        assert_eq!(open.get(), 3);
        drop(first);
        assert!(connections.enter(one).is_some());
        // What runs in front of us on this machine speaks for many.
        let local = [127, 0, 0, 1].into();
        let locals: Vec<_> = (0..5).map(|_| connections.enter(local)).collect();
        assert!(locals.iter().all(Option::is_some));
        drop(locals);
        assert!(connections.lock().clients.len() <= 2);
    }
}
