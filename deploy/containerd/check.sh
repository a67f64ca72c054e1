#!/bin/bash
# The example files with the machine's own containerd: whatever is pulled, it turns to the proxy and
# to nobody else.
#
# usage: check.sh [BINARY]
# With BINARY the examples must also be what Portcullis writes. Needs root and Debian's containerd.
set -euo pipefail

# A network without a way out: every attempt ends at once and says where it wanted to go.
if [ -z "${PORTCULLIS_CHECK_ISOLATED:-}" ]; then
    exec unshare --net env PORTCULLIS_CHECK_ISOLATED=1 "$0" "$@"
fi

here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
daemon=
url=https://images.corp.example:5000

say() { echo "containerd: $*"; }
die() { echo "containerd: FAILED: $*" >&2; exit 1; }
cleanup() {
    [ -z "$daemon" ] || { kill "$daemon"; wait "$daemon" || true; } 2> /dev/null
    rm -rf "$work"
}
trap cleanup EXIT

examples() { (cd "$here/certs.d" && find . -name hosts.toml | sed 's|^\./||; s|/hosts.toml||' | sort); }

start_containerd() {
    cat > "$work/config.toml" << TOML
version = 2
root = "$work/root"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$work/sock"
[ttrpc]
  address = "$work/ttrpc"
TOML
    containerd --config "$work/config.toml" > "$work/log" 2>&1 &
    daemon=$!
    for _ in $(seq 100); do
        if ctr --address "$work/sock" version > /dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    tail -5 "$work/log" >&2
    die "containerd does not start"
}

check_examples() {
    cp -r "$here/certs.d" "$work/certs.d"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=example \
        -keyout "$work/key" -out "$work/certs.d/portcullis-ca.crt" 2> /dev/null
    local registry said
    for registry in $(examples); do
        said=$(ctr --address "$work/sock" images pull --hosts-dir "$work/certs.d" \
            "$registry/library/example:1" 2>&1 | tail -1) || true
        case $said in
            *"Head \"$url/v2/library/example/manifests/1?ns=$registry\""*) ;;
            *) die "$registry: containerd said: $said" ;;
        esac
        say "$registry is asked for at $url"
    done
    # The same without our files, or the above would prove little.
    said=$(ctr --address "$work/sock" images pull --hosts-dir "$work/state" \
        registry.k8s.io/library/example:1 2>&1 | tail -1) || true
    case $said in
        *https://registry.k8s.io/*) say "without the files it turns to the registry itself" ;;
        *) die "without the files containerd said: $said" ;;
    esac
}

check_against() {
    cat > "$work/portcullis.toml" << TOML
[server]
url = "$url"
TOML
    "$1" nodes hosts --config "$work/portcullis.toml" --ca "$work/certs.d/portcullis-ca.crt" \
        --out "$work/written" > /dev/null
    local registry
    for registry in $(examples); do
        diff -u "$here/certs.d/$registry/hosts.toml" "$work/written/$registry/hosts.toml" ||
            die "$registry: this is not what 'nodes hosts' writes"
    done
    say "the examples are what 'nodes hosts' writes"
}

[ "$(id -u)" = 0 ] || die "needs root"
for program in containerd ctr openssl; do
    command -v "$program" > /dev/null || die "$program is missing: apt-get install containerd openssl"
done
start_containerd
check_examples
if [ $# -gt 0 ]; then check_against "$1"; fi
