#!/usr/bin/env bash
# strongSwan 5.9.8 (Debian 12): `swanctl --load-all` with a swanctl.conf that cannot be parsed unloads all connections
# of the running daemon, and exits with status 0.
#
# Surprising, because a missing brace takes a gateway out of service at the next reload. The error is printed, but the
# command continues as if the configuration were empty, and a script that checks the exit status sees success. A value that
# charon refuses, in contrast, leaves the loaded connection alone, and the exit status is 22.
. "$(dirname "$0")/lib-strongswan.bash"

cat > "$SWANCTL_DIR/swanctl.conf" <<'END'
connections {
    office {
        remote_addrs = 192.0.2.1
    }
}
secrets {
    ike-office {
        secret = "correct horse battery staple"
    }
}
END
see swanctl --load-all
see swanctl --list-conns
expect "the connection is loaded" grep -q office <<< "$output"

sed -i 's/192.0.2.1/192.0.2.1\n        mobike = maybe/' "$SWANCTL_DIR/swanctl.conf"
see swanctl --load-all
expect "a value that charon refuses is an error: status 22" [ "$status" = 22 ]
see swanctl --list-conns
expect "and the connection stays" grep -q office <<< "$output"

sed -i '$d' "$SWANCTL_DIR/swanctl.conf" # the last closing brace
see swanctl --load-all
expect "the configuration is reported as invalid" grep -q "invalid config file" <<< "$output"
expect "the status is 0 nevertheless" [ "$status" = 0 ]
expect "the connection is unloaded" grep -q "no connections found, 1 unloaded" <<< "$output"
see swanctl --list-conns
expect "the daemon has no connection left" [ -z "$output" ]
