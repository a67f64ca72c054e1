#!/bin/sh
# Everything below deploy/, checked here and now: no cluster, no registry, no systemd needed.
#
# usage: check.sh [BINARY]
#
# BINARY is a built Portcullis; without it the image is built from source (minutes), and what a
# binary alone can show is left out of the others. Each item has a check.sh of its own.
set -eu

cd "$(dirname "$0")"
if [ $# -gt 0 ]; then
    binary=$(realpath "$1")
    set -- "$binary"
fi
systemd/check.sh
containerd/check.sh "$@"
kubernetes/check.sh "$@"
image/check.sh "$@"
