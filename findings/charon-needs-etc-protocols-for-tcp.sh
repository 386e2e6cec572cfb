#!/usr/bin/env bash
# strongSwan 5.9.8 (Debian 12): without the file /etc/protocols charon refuses the traffic selector
# "10.1.0.0/24[tcp/443]", with "invalid value for: local_ts". It accepts "[6/443]".
#
# Surprising, because the message does not mention the file, strongSwan's packages do not depend on netbase, which
# contains it, and images of containers often lack it: the same configuration loads on one machine and not on the next.
# Conversely, charon lists [6/443] as [tcp/https] if the files exist, so a program that compares the configuration with
# the list finds a difference on some machines only.
. "$(dirname "$0")/lib-strongswan.bash"

load() {
    printf '%s\n' 'connections {' 'web {' 'children {' 'web {' "local_ts = 10.1.0.0/24[$1]" '}' '}' '}' '}' \
        > "$SWANCTL_DIR/swanctl.conf"
    see swanctl --load-conns
}
listed() {
    see swanctl --list-conns
    expect "$1 is listed" grep -qF "local:  10.1.0.0/24[$1]" <<< "$output"
}
mkdir "$work/etc"
mount --bind "$work/etc" /etc # an empty /etc, in this script's mount namespace

load tcp/443
expect "without /etc/protocols [tcp/443] is refused" grep -q "invalid value for: local_ts" <<< "$output"
load 6/443
expect "[6/443] is loaded" [ "$status" = 0 ]
listed 6/443

echo 'tcp 6 TCP' > /etc/protocols
echo 'https 443/tcp' > /etc/services
load tcp/443
expect "with it [tcp/443] is loaded" [ "$status" = 0 ]
load 6/443
listed tcp/https
