#!/usr/bin/env bash
# Installs, from Debian's packages, the programs that the tests and the benchmark drive, and what
# tests/setup/stores.sh needs to install the object stores.
# Says what it does; does nothing when all of them are there.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

# program:package
needed=(
    cc:gcc
    make:make
    buildah:buildah
    containerd:containerd
    crun:crun
    curl:curl
    ctr:containerd
    docker-registry:docker-registry
    ip:iproute2
    iptables:iptables
    nginx:nginx-light
    node:nodejs
    npm:npm
    nsenter:util-linux
    openssl:openssl
    podman:podman
    python3:python3
    setpriv:util-linux
    skopeo:skopeo
    squid:squid
    systemd-analyze:systemd
    tinyproxy:tinyproxy-bin
    unshare:util-linux
)

missing=()
for entry in "${needed[@]}"; do
    command -v "${entry%%:*}" >/dev/null || missing+=("${entry##*:}")
done
# gcc without the C library's headers cannot compile anything.
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
# Debian keeps a part of Python's library that makes virtual environments to itself.
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
[ "${#missing[@]}" -eq 0 ] && exit 0

echo "The tests need these packages, which are missing here: ${missing[*]}"
command -v apt-get >/dev/null || {
    echo "This is no Debian: please install them by hand." >&2
    exit 1
}
sudo=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
        echo "Installing them needs root: run 'make test' as root, or install sudo." >&2
        exit 1
    }
    sudo=(sudo)
fi

# The programs are wanted, their services are not: docker-registry's would take port 5000.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
    "${sudo[@]}" chmod 755 "$policy"
    trap '"${sudo[@]}" rm -f "$policy"' EXIT
fi

export DEBIAN_FRONTEND=noninteractive
echo "Installing them with apt-get ..."
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
