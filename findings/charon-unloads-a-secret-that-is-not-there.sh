#!/usr/bin/env bash
# strongSwan 5.9.8 (Debian 12): unload-shared succeeds for a secret that is not loaded. Needs root.
#
# unload-conn, unload-key, unload-pool and unload-authority answer success=no with "not found" for an unknown
# name. unload-shared answers success=yes, so a misspelt id looks like a secret that was removed. get-shared
# does not help to find it: a secret that was loaded without an id is not in its list.
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
session.load_shared({"type": "IKE", "data": "without an id", "owners": ["gw"]})
print("get-shared:", session.get_shared()["keys"])
outcomes = {}
for command, key in (("conn", "name"), ("key", "id"), ("pool", "name"), ("authority", "name"), ("shared", "id")):
    try:
        session.request(f"unload-{command}", {key: "00"})
        outcomes[command] = "success"
    except vici.exception.CommandException as error:
        outcomes[command] = str(error)
    print(f"unload-{command}:", outcomes[command])
assert [command for command in outcomes if outcomes[command] == "success"] == ["shared"]
assert session.get_shared()["keys"] == []
PY
EOF
