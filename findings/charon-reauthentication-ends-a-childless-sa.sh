#!/usr/bin/env bash
# strongSwan 5.9.8 (Debian 12): reauthenticating an IKE_SA that has no CHILD_SA (`childless = force`) closes it permanently.
# `swanctl --rekey --reauth` reports success, and the event ike-updown reports the end of the SA twice.
#
# Surprising, because a reauthentication replaces the IKE_SA with a new one, RFC 6023 allows IKE_SAs without CHILD_SAs,
# and --initiate establishes them. A counter of tunnels that each event without "up" decreases is wrong afterwards.
. "$(dirname "$0")/lib-strongswan.bash"

start_peer right
swanctl --load-all > "$work/load.log"
swanctl --initiate --ike office --timeout 10 > "$work/initiate.log"
see swanctl --list-sas
expect "the IKE_SA is established" grep -q "office: #1, ESTABLISHED" <<< "$output"

swanctl --monitor-sa --raw &> "$work/events" &
sleep 1
see swanctl --rekey --ike office --reauth
expect "success is reported" [ "$output" = "rekey completed successfully" ]
sleep 5
see swanctl --list-sas
expect "five seconds later there is no IKE_SA" [ -z "$output" ]
kill -INT $!
wait $! || true
see grep -o 'ike-updown event {office {uniqueid=1 version=2 state=[A-Z]*' "$work/events"
expect "IKE_SA 1 went down twice" [ "$(wc -l <<< "$output")" = 2 ]
