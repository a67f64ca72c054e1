#!/bin/bash
# Builds the image from the Dockerfile and proves what it promises, on a machine that reaches no
# registry: the base images are made here (base.sh).
#
# usage: check.sh [BINARY]
#
# With BINARY the Dockerfile's first stage is replaced by that file, which takes seconds. Without,
# that stage runs too: the local Rust toolchain, mounted, compiles the tree offline.
#
# Needs root, and buildah, podman, crun, curl and iproute2 from Debian. The container runs in a
# network namespace with nothing but loopback. Exits 0 when everything below was seen.
set -euo pipefail

# A network without a way out and mounts of our own, for everything that follows.
if [ -z "${PORTCULLIS_CHECK_ISOLATED:-}" ]; then
    exec unshare --mount --net env PORTCULLIS_CHECK_ISOLATED=1 "$0" "$@"
fi
ip link set lo up

here=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
image=localhost/portcullis
container=
export BUILDAH="--root $work/storage --runroot $work/run --storage-driver vfs"

say() { echo "image: $*"; }
die() { echo "image: FAILED: $*" >&2; [ ! -s "$work/log" ] || tail -20 "$work/log" >&2; exit 1; }

# podman as it works without systemd, without cgroup delegation and with foreign rlimits.
podman() {
    command podman --log-level error $BUILDAH --cgroup-manager cgroupfs --events-backend file \
        --runtime crun "$@"
}

build() {
    local bases=(--build-arg BASE_IMAGE=localhost/portcullis-base
                 --build-arg RUST_IMAGE=localhost/portcullis-rust)
    buildah $BUILDAH build --isolation chroot --network host --pull-never \
        "${bases[@]}" "$@" -t "$image" "$here" > "$work/log" 2>&1 || die "buildah build"
}

build_with_binary() {
    mkdir -p "$work/out/state"
    cp "$1" "$work/out/portcullis"
    "$here/deploy/image/base.sh" "$1"
    build --build-context "build=$work/out"
    say "built from the Dockerfile around $1"
}

build_from_source() {
    local cargo=${CARGO_HOME:-$HOME/.cargo} toolchain
    toolchain=$(cd "$here" && rustc --print sysroot)
    # Any program of the toolchain's needs what our binary needs: glibc and libgcc.
    "$here/deploy/image/base.sh" "$toolchain/bin/cargo"
    mkdir -p "$here/target/image"
    build --volume /usr:/usr:ro --volume /etc/alternatives:/etc/alternatives:ro \
          --volume "$toolchain:/toolchain:ro" --volume "$cargo:/cargo:rw" \
          --volume "$here/target/image:/src/target:rw" --env CARGO_NET_OFFLINE=true
    say "built from the Dockerfile, both stages"
}

expect() {
    local what=$1 wanted=$2 found
    found=$(podman image inspect --format "$what" "$image")
    [ "$found" = "$wanted" ] || die "$what is '$found', not '$wanted'"
}

check_contents() {
    expect '{{.Config.User}}' 65532:65532
    expect '{{.Config.Entrypoint}} {{.Config.Cmd}}' '[portcullis] [serve]'
    expect '{{.Config.StopSignal}}' SIGTERM
    local container root strangers
    container=$(buildah $BUILDAH from --pull-never "$image")
    root=$(buildah $BUILDAH mount "$container")
    strangers=$(cd "$root" && find . -type f ! -path './usr/bin/portcullis' \
        ! -path './usr/lib*' ! -path './lib*' ! -path './etc/*' )
    [ -z "$strangers" ] || die "files that nobody needs: $strangers"
    strangers=$(find "$root" -perm /6000)
    [ -z "$strangers" ] || die "set-user-id: $strangers"
    [ "$(stat -c %u:%g "$root/var/lib/portcullis")" = 65532:65532 ] || die "owner of the store"
    say "holds $(du -sm "$root" | cut -f1) MB in $(find "$root" -type f | wc -l) files:" \
        "the binary, libraries, the CA bundle; no shell, nothing set-user-id"
    buildah $BUILDAH rm "$container" > /dev/null
}

status() { curl --silent --output /dev/null --max-time 30 --write-out '%{http_code}' "$1" || true; }

# Everything a cautious administrator would set at once.
start() {
    podman run --detach --network host --cgroups disabled \
        --ulimit nofile=4096:4096 --ulimit nproc=1024:1024 \
        --read-only --read-only-tmpfs=false --cap-drop all --security-opt no-new-privileges \
        "$image" > "$work/container" || die "podman run"
    container=$(cat "$work/container")
    for _ in $(seq 100); do
        [ "$(status http://127.0.0.1:5000/healthz)" != 200 ] || return 0
        sleep 0.1
    done
    podman logs "$container" > "$work/log" 2>&1 || true
    die "no answer from /healthz"
}

proc() { awk -v key="$1:" '$1 == key { print $2 }' "/proc/$pid/status"; }

check_running() {
    start
    pid=$(podman inspect --format '{{.State.Pid}}' "$container")
    [ "$(proc Uid)" = 65532 ] || die "runs as user $(proc Uid)"
    [ "$(proc CapBnd)" = 0000000000000000 ] || die "has capabilities $(proc CapBnd)"
    [ "$(proc NoNewPrivs)" = 1 ] || die "may gain privileges"
    awk '$5 == "/" { exit $6 !~ /(^|,)ro(,|$)/ }' "/proc/$pid/mountinfo" || die "writable root"
    say "serves as user 65532 on a read-only root without capabilities"
    [ "$(status http://127.0.0.1:5000/v2/)" = 200 ] || die "/v2/ is not answered"
    # Nothing can be reached from here: that this is told as the upstream's absence shows that the
    # client of the upstream, and with it the CA bundle, is in order.
    local cold
    cold=$(status http://127.0.0.1:5000/v2/library/busybox/manifests/latest)
    case $cold in 502 | 504) ;; *) die "an unreachable upstream gives $cold" ;; esac
    say "answers /healthz, /v2/ (200) and a pull that cannot work here ($cold)"
    podman stop --time 60 "$container" > /dev/null || die "podman stop"
    local code
    code=$(podman inspect --format '{{.State.ExitCode}}' "$container")
    [ "$code" = 0 ] || die "exit code $code after SIGTERM"
    say "ends by itself on SIGTERM, exit code 0"
}

cleanup() {
    [ -z "$container" ] || podman rm --force "$container" > /dev/null 2>&1 || true
    buildah $BUILDAH umount --all > /dev/null 2>&1 || true
    rm -rf "$work"
}
trap cleanup EXIT
[ "$(id -u)" = 0 ] || die "needs root"
for program in buildah podman crun curl; do
    command -v "$program" > /dev/null || die "$program is missing: apt-get install $program"
done
# crun takes part in one cgroup tree or in none, never in a hybrid; this one is ours alone.
mount -t cgroup2 none /sys/fs/cgroup 2> /dev/null || true
# Debian's default asks for more open files than a sandbox may give.
printf '[containers]\ndefault_ulimits = []\n' > "$work/containers.conf"
export CONTAINERS_CONF=$work/containers.conf

if [ $# -gt 0 ]; then build_with_binary "$1"; else build_from_source; fi
check_contents
check_running
