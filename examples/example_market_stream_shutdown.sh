#!/usr/bin/env bash
# /// script
# [tool.e2e-run]
# ports = [8765]
# tags = ["shell"]
# timeout = "30s"
# ///
#
# The market stream as its operator sees it: it comes up, says that it is well, and ends in order when it
# is told to. It takes bash, and a Python that has `websockets`.
set -euo pipefail
cd "$(dirname "$0")"

HOST=127.0.0.1 PORT=8765

# PYTHON, else that of the active virtual environment, else that of this project, else the system's.
for python in "${PYTHON-}" "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" ../.venv/bin/python python3; do
    command -v "$python" >/dev/null && break
done

ask() { # PATH: print the status of the HTTP answer; fail when there is none
    local status
    {
        printf 'GET %s HTTP/1.1\r\nHost: %s\r\n\r\n' "$1" "$HOST" >&3 && read -r -t 2 _ status _ <&3
    } 3<>"/dev/tcp/$HOST/$PORT" && echo "$status"
} 2>/dev/null

fail() {
    echo "$1" >&2
    exit 1
}

expect() { # WHAT EXPECTED ACTUAL
    [[ $2 == "$3" ]] || fail "$1: expected $2, got ${3:-nothing}"
}

echo '── Start'
if ask / >/dev/null; then
    fail "port $PORT is taken: \`e2e-run ports $PORT\` says by whom"
fi
"$python" example_market_stream_server.py &
server=$!
trap 'kill "$server" 2>/dev/null && wait "$server"' EXIT
until status=$(ask /health); do
    kill -0 "$server" 2>/dev/null || fail 'the server has ended'
    ((SECONDS < 10)) || fail 'the server does not answer'
    sleep 0.1
done
expect 'the server is well' 200 "$status"
expect 'a path that does not exist' 404 "$(ask /no-such-path)"

echo '── Stop'
kill -TERM "$server"
code=0
wait "$server" || code=$?
trap - EXIT
expect 'the exit code after SIGTERM' 0 "$code"
expect 'who listens now' nobody "$(ask /health || echo nobody)"
echo '✓ The server comes up, and ends in order'
