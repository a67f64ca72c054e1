//! Squid: lines for `squid.conf` of the proxy in front of us.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use ipnet::IpNet;

use super::plan::Plan;

pub(super) fn write(plan: &Plan, source: Option<IpNet>) -> String {
    let place = "these lines go in front of `http_access deny all`";
    let ports = "SSL_ports and Safe_ports must have the ports below; the stock file has 443";
    let dots = ".x is x and every name below it";
    let mut text = plan.head("#", "squid", &[place, ports, dots]);
    if plan.groups.is_empty() {
        return text;
    }
    // Writing to a String cannot fail.
    let _ = match source {
        Some(source) => writeln!(text, "acl portcullis src {source}"),
        None => writeln!(
            text,
            "# The address of this proxy, and nothing else, is the source (--source):\n\
             acl portcullis src 127.0.0.1/32"
        ),
    };
    for (port, groups) in plan.ports() {
        let hosts = groups.iter().flat_map(|group| &group.hosts);
        let all: BTreeSet<String> = hosts.map(|host| domain(host)).collect();
        // A name that another one covers is an error there.
        let covered = |host: &String| {
            all.iter().any(|other| {
                other != host && other.starts_with('.') && format!(".{host}").ends_with(other)
            })
        };
        let _ = writeln!(text, "acl portcullis_{port} port {port}");
        for host in all.iter().filter(|host| !covered(host)) {
            let _ = writeln!(text, "acl portcullis_hosts_{port} dstdomain {host}");
        }
        let _ = writeln!(
            text,
            "http_access allow portcullis portcullis_{port} portcullis_hosts_{port}"
        );
    }
    text
}

fn domain(host: &str) -> String {
    host.strip_prefix('*').unwrap_or(host).to_owned()
}
