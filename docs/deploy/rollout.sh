#!/bin/sh
# Restarts the gateways behind nginx one by one: rollout.sh /etc/nginx/devices/servers.conf
# Each line of that file is `server ADDRESS; # NAME`. RELOAD, RESTART and READY are the commands for another setting than systemd:
# RESTART gets the NAME and returns when the old process has ended, READY gets the ADDRESS and fails until the gateway is ready.
set -eu
file=$1
: "${RELOAD:=systemctl reload nginx}" "${RESTART:=systemctl_restart}" "${READY:=is_ready}" "${TIMEOUT:=60}"

systemctl_restart () { systemctl restart "fastify-devices@$1"; }
is_ready () { curl --fail --silent --output /dev/null --max-time 2 "http://$1/readyz"; }
# The file is overwritten, not replaced: a container may have mounted it.
edit () { edited=$(sed "$1" "$file") && printf '%s\n' "$edited" > "$file" && $RELOAD; }

servers=$(sed -n 's/^ *server \([^ ;]*\)\( down\)\{0,1\}; # \(.*\)$/\1 \3/p' "$file")
[ "$(printf '%s\n' "$servers" | wc -l)" -gt 1 ] || { echo 'A rollout without downtime needs two gateways or more' >&2; exit 1; }

printf '%s\n' "$servers" | while read -r address name; do
  echo "$name: no new requests"
  edit "s/server $address;/server $address down;/"
  echo "$name: restarts"
  $RESTART "$name" < /dev/null
  left=$TIMEOUT
  until $READY "$address"; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || { echo "$name is not ready after $TIMEOUT s; it gets no requests, and the others are left as they are" >&2; exit 1; }
    sleep 1
  done
  edit "s/server $address down;/server $address;/"
  echo "$name: ready"
done
