#!/usr/bin/env bash
# strongSwan 5.9.8 (Debian 12): `swanctl --rekey` prints "rekey completed successfully" and exits with status 0 at once,
# even if the peer is dead and no rekeying will ever happen.
#
# Surprising, because `swanctl --initiate` and `--terminate` wait for the result and print "completed successfully" only
# then. The success of --rekey means that a task is queued; only the events ike-rekey and child-rekey report new keys.
. "$(dirname "$0")/lib-strongswan.bash"

start_peer right
swanctl --load-all > "$work/load.log"
swanctl --initiate --ike office --timeout 10 > "$work/initiate.log"
see swanctl --list-sas
spis=$(grep -o '[0-9a-f]*_i[*] [0-9a-f]*_r' <<< "$output")

kill -9 "$peer"
see swanctl --rekey --ike office
expect "the rekeying is reported as completed" [ "$output" = "rekey completed successfully" ]
expect "the status is 0" [ "$status" = 0 ]
sleep 3
see swanctl --list-sas
expect "three seconds later the IKE_SA has its old SPIs" grep -qF "$spis" <<< "$output"
expect "and is still trying" grep -q "active: .*IKE_REKEY" <<< "$output"
