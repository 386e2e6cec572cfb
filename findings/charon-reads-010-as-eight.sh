#!/usr/bin/env bash
# strongSwan 5.9.8 (Debian 12): charon reads a number with a leading zero as octal, also in times. Needs root.
#
# "dpd_delay = 030" is 24 seconds and "0100m" is 64 minutes, while "08" is refused. swanctl.conf(5) describes
# a time as a number with an optional unit, and mentions no other base.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check vici==6.0.3
cd "$home"
for package in libstrongswan strongswan-libcharon strongswan-charon libcharon-extra-plugins strongswan-swanctl; do
    apt-get -qq -o APT::Sandbox::User=root download "$package=5.9.8-5+deb12u6"
    dpkg-deb -x "$package"_*.deb root
done
cat > charon.conf <<EOF
charon {
    load = random nonce openssl sha1 sha2 hmac kdf pem pkcs1 x509 pubkey kernel-netlink socket-default vici
    plugins { vici { socket = unix://$home/vici } }
}
EOF
unshare --net --mount bash -s "$home" <<'EOF'
mount -t overlay strongswan -o "lowerdir=$1/root/usr:/usr" /usr && mount -t tmpfs run /run && ip link set lo up
STRONGSWAN_CONF=$1/charon.conf /usr/lib/ipsec/charon > "$1/log" 2>&1 &
trap 'kill %1; wait' EXIT
for _ in $(seq 100); do swanctl --stats --uri "unix://$1/vici" > "$1/ready" 2>&1 && break || sleep 0.1; done
"$1/venv/bin/python" - "$1" <<'PY'
import socket, sys

import vici

def connect():
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(sys.argv[1] + "/vici")
    return vici.Session(sock)

session = connect()
found = {}
for written in ("30", "030", "0x30", "0100m", "08"):
    try:
        session.load_conn({"gw": {"remote_addrs": ["192.0.2.1"], "dpd_delay": written}})
        found[written] = next(session.list_conns())["gw"]["dpd_delay"].decode()
    except vici.exception.CommandException as error:
        found[written] = str(error)
    print("dpd_delay =", written, "is", found[written])
assert [found[written] for written in ("30", "030", "0x30", "0100m")] == ["30", "24", "48", "3840"]
PY
EOF
