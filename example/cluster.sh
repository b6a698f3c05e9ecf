#!/bin/sh
# Runs NATS and three nodes of the gateway on this machine until Ctrl-C. PORT is the port of the first node.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin
: "${PORT:=3001}" "${NATS_PORT:=4222}"
folder=$(mktemp -d)

[ -e dist/lib/cli/index.js ] || npm run -s build
nats-server -a 127.0.0.1 -p "$NATS_PORT" -js -sd "$folder" & all=$!
for node in 0 1 2; do
  node dist/lib/cli/index.js serve --port $((PORT + node)) --nats "127.0.0.1:$NATS_PORT" --config dist/example/gateway.js & all="$all $!"
done

# shellcheck disable=SC2086 -- $all is split into process ids on purpose
trap 'trap - INT TERM; kill $all; wait; rm -rf "$folder"' INT TERM
wait
