#!/usr/bin/env bash
# strongSwan 5.9.8 (Debian 12): `swanctl --initiate --ike` for an IKE_SA that is already established reports that it was
# not established in time, with exit status 1. Without --timeout it would wait indefinitely.
#
# Surprising, because the documentation calls this "initiate a connection", and the connection is already up. A script
# that initiates a tunnel to ensure that it is up fails, or never returns, exactly when it is up.
. "$(dirname "$0")/lib-strongswan.bash"

start_peer right
swanctl --load-all > "$work/load.log"
see swanctl --initiate --ike office --timeout 10
expect "the first one succeeds" [ "$status" = 0 ]
see swanctl --list-sas
expect "the IKE_SA is established" grep -q "office: #1, ESTABLISHED" <<< "$output"

see swanctl --initiate --ike office --timeout 3
expect "the second one fails" [ "$status" = 1 ]
expect "its reason is not true" grep -q "IKE_SA 'office' not established after 3000ms" <<< "$output"
see swanctl --list-sas
expect "the IKE_SA is the same as before" grep -q "office: #1, ESTABLISHED" <<< "$output"
