#!/bin/sh
# The unit as systemd reads it: no unknown or misspelt setting, and an exposure that stays low.
#
# usage: check.sh
# Needs systemd-analyze; systemd itself need not run.
set -eu

unit=$(cd "$(dirname "$0")" && pwd)/portcullis.service
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The program is not where it will be installed; any that exists will do for the check.
sed 's|^ExecStart=[^ ]*|ExecStart=/bin/true|' "$unit" > "$work/portcullis.service"
# Complaints of `verify` do not change its exit code, so silence is what counts; it also looks at
# the machine's other units, which are none of our business.
systemd-analyze verify --man=no "$work/portcullis.service" > "$work/said" 2>&1 || true
if grep portcullis "$work/said" >&2; then
    echo "systemd: FAILED: systemd-analyze verify complains" >&2
    exit 1
fi
echo "systemd: the unit is well formed"

# 0 is a sealed box, 100 an ordinary service.
systemd-analyze security --offline=true --threshold=20 "$work/portcullis.service" \
    > "$work/security" 2>&1 || { tail -5 "$work/security" >&2; exit 1; }
echo "systemd: $(grep -o 'exposure level.*[0-9.]* [A-Z]*' "$work/security")"
