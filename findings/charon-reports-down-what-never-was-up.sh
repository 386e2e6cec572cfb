#!/usr/bin/env bash
# strongSwan 5.9.8 (Debian 12): a negotiation that fails raises ike-updown without "up", as the end of a
# tunnel does. Needs root.
#
# The documentation of VICI has ike-updown for an IKE_SA that is established or terminated. charon raises it,
# without "up", also for one that never was established: here the peer has no configuration for us and answers
# NO_PROPOSAL_CHOSEN. A monitor that counts a message without "up" as "tunnel down" reports each failed
# attempt. Only the state, CONNECTING, tells them apart.
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
ip addr add 192.0.2.1/32 dev lo
ip addr add 192.0.2.2/32 dev lo
"$1/venv/bin/python" - "$1" <<'PY'
import socket, sys

import vici

def connect():
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(sys.argv[1] + "/vici")
    return vici.Session(sock)

session = connect()
events = connect().listen(["ike-updown"], timeout=0.5)
next(events)
session.load_conn({"gw": {
    "local_addrs": ["192.0.2.1"], "remote_addrs": ["192.0.2.2"],
    "local": {"auth": "psk"}, "remote": {"auth": "psk"}, "children": {"net": {}},
}})
try:
    list(session.initiate({"child": "net", "timeout": 5000}))
except vici.exception.CommandException as error:
    print("initiate:", error)
name, message = next(events)
print(name.decode(), {"up": message.get("up"), "gw": {"state": message["gw"]["state"]}})
assert "up" not in message and message["gw"]["state"] == b"CONNECTING"
PY
EOF
