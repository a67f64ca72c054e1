#!/usr/bin/env bash
# The object stores that the tests drive: Azurite (Azure Blob Storage) and moto (S3).
# Installs them below target/tools when they are missing. With a command behind it, starts both,
# runs the command and stops them: `tests/setup/stores.sh cargo test`.
set -euo pipefail
cd "$(dirname "$0")/../.."

azurite=3.37.0
# What Azurite asks for; Debian's is older.
node=22.23.3
moto=5.1.22

tools=$PWD/target/tools
case $(uname -m) in
x86_64) arch=x64 ;;
aarch64) arch=arm64 ;;
*)
    echo "There is no Node.js for $(uname -m) to run Azurite with." >&2
    exit 1
    ;;
esac

# A stamp is written last, so that what was cut off in the middle is made anew.
missing() { [ "$(cat "$tools/$1/installed" 2>/dev/null)" != "$2" ]; }
installed() { echo "$2" >"$tools/$1/installed"; }

if missing azurite "$azurite $node"; then
    echo "Installing Azurite $azurite from npm into target/tools ..."
    rm -rf "$tools/azurite"
    mkdir -p "$tools/azurite"
    npm install --prefix "$tools/azurite" --no-save --no-package-lock --no-audit --no-fund \
        --ignore-scripts --loglevel error "azurite@$azurite" "node-linux-$arch@$node"
    ln -s "node_modules/node-linux-$arch/bin/node" "$tools/azurite/node"
    installed azurite "$azurite $node"
fi

if missing moto "$moto"; then
    echo "Installing moto $moto from PyPI into target/tools ..."
    rm -rf "$tools/moto"
    python3 -m venv "$tools/moto"
    "$tools/moto/bin/pip" install --quiet --disable-pip-version-check "moto[server]==$moto"
    installed moto "$moto"
fi

[ $# -eq 0 ] && exit 0

# The ports that their users know. Where one is taken, the tests start a store of their own on
# another.
logs=$(mktemp -d "$tools/logs.XXXXXX")
started=()
stop() {
    [ "${#started[@]}" -eq 0 ] || kill "${started[@]}" 2>/dev/null || true
    wait
    rm -rf "$logs"
}
trap stop EXIT

start() {
    local name=$1 variable=$2 port=$3
    shift 3
    if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
        echo "Port $port is taken: the tests start $name somewhere else."
        return
    fi
    "$@" >"$logs/$name.log" 2>&1 &
    started+=($!)
    for _ in $(seq 300); do
        if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            export "$variable=http://127.0.0.1:$port"
            return
        fi
        kill -0 "${started[-1]}" 2>/dev/null || break
        sleep 0.2
    done
    echo "$name does not start:" >&2
    cat "$logs/$name.log" >&2
    exit 1
}

start azurite PORTCULLIS_TEST_AZURITE 10000 env NODE_COMPILE_CACHE="$tools/azurite/cache" \
    "$tools/azurite/node" "$tools/azurite/node_modules/azurite/dist/src/blob/main.js" \
    --blobPort 10000 --inMemoryPersistence --silent --disableTelemetry
start moto PORTCULLIS_TEST_MOTO 10001 "$tools/moto/bin/moto_server" -H 127.0.0.1 -p 10001

"$@"
