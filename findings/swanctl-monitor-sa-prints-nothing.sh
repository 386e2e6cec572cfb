#!/usr/bin/env bash
# strongSwan 5.9.8 (Debian 12): `swanctl --monitor-sa` ("monitor for IKE_SA and CHILD_SA changes") prints no change of
# an IKE_SA. With --raw or --pretty it prints each.
#
# Surprising, because --raw and --pretty choose another format of the same output in all other commands. An empty
# terminal looks like a gateway where nothing happens.
. "$(dirname "$0")/lib-strongswan.bash"

start_peer right
swanctl --load-all > "$work/load.log"
swanctl --monitor-sa &> "$work/plain" &
plain=$!
swanctl --monitor-sa --raw &> "$work/raw" &
raw=$!
sleep 1
see swanctl --initiate --ike office --timeout 10
expect "an IKE_SA is established" [ "$status" = 0 ]
see swanctl --terminate --ike office --timeout 10
expect "and terminated" [ "$status" = 0 ]
sleep 1
kill -INT "$plain" "$raw"
wait "$plain" "$raw" || true

see cut -c 1-80 "$work/raw"
expect "--raw prints two events" [ "$(grep -c 'ike-updown event' "$work/raw")" = 2 ]
see cat "$work/plain"
expect "without it only the end of the program is printed" [ "$output" = "disconnecting..." ]
