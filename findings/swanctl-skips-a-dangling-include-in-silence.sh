#!/usr/bin/env bash
# strongSwan 5.9.8 (Debian 12): swanctl skips a file that matches an `include` but cannot be opened, such as a dangling
# link, without any message. `swanctl --load-conns` then unloads what the file contained, with exit status 0.
#
# Surprising, because swanctl reports an `include` that matches no file at all. A snippet in conf.d that links into a
# volume that is not mounted yet, or whose target was renamed, silently unloads its connections.
. "$(dirname "$0")/lib-strongswan.bash"

echo 'include conf.d/*.conf' > "$SWANCTL_DIR/swanctl.conf"
printf '%s\n' 'connections {' 'office {' 'remote_addrs = 192.0.2.1' '}' '}' > "$work/office.conf"
ln -s "$work/office.conf" "$SWANCTL_DIR/conf.d/"
see swanctl --load-conns
expect "the connection is loaded" grep -q "loaded connection 'office'" <<< "$output"

mv "$work/office.conf" "$work/renamed.conf"
see swanctl --load-conns
expect "the connection is unloaded, and nothing is reported" [ "$output" = "no connections found, 1 unloaded" ]
expect "the status is 0" [ "$status" = 0 ]

rm "$SWANCTL_DIR"/conf.d/*
see swanctl --load-conns
expect "a pattern without any match is reported" grep -q "no files found matching" <<< "$output"
