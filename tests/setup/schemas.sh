#!/usr/bin/env bash
# Kubernetes' own schemas, with the program that checks files by them: kubernetes-validate from
# PyPI, below target/tools. Needs Debian's python3-venv.
set -euo pipefail
cd "$(dirname "$0")/../.."

version=1.37.0
home=$PWD/target/tools/kubernetes-validate

# The stamp is written last, so that what was cut off in the middle is made anew.
if [ "$(cat "$home/installed" 2>/dev/null)" != "$version" ]; then
    echo "Installing kubernetes-validate $version from PyPI into target/tools ..."
    rm -rf "$home"
    python3 -m venv "$home"
    "$home/bin/pip" install --quiet --disable-pip-version-check "kubernetes-validate==$version"
    echo "$version" >"$home/installed"
fi
