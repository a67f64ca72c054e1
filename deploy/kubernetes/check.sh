#!/bin/sh
# The manifests by Kubernetes' own schemas and by check.py, without a cluster.
#
# usage: check.sh [BINARY]
# Needs Debian's python3-venv; the schemas come once from PyPI into target/.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
venv=$here/../../target/deploy-check
schemas=kubernetes-validate==1.37.0

if ! "$venv/bin/pip" show kubernetes-validate > /dev/null 2>&1; then
    echo "kubernetes: installing $schemas into target/deploy-check"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "$schemas"
fi
exec "$venv/bin/python" "$here/check.py" "$@"
