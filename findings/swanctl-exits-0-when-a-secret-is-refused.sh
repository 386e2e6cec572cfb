#!/usr/bin/env bash
# swanctl 5.9.8 (Debian 12): --load-creds exits with 0 when a certificate or a secret could not be loaded.
# Needs root.
#
# --load-conns, --load-pools and --load-authorities exit with 22 (EINVAL) when something that they load fails.
# --load-creds prints the failure and exits with 0, whether the file cannot be parsed or charon refuses the
# secret, and so does --load-all. A systemd unit that checks the status takes a gateway without its secret for
# configured.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
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
export SWANCTL_DIR=$1/swanctl
mkdir -p "$SWANCTL_DIR"/{x509,x509ca,x509ocsp,x509aa,x509ac,x509crl,pubkey,private,rsa,ecdsa,bliss,pkcs8,pkcs12}
home=$1 codes=
status() {
    echo "$1" > "$SWANCTL_DIR/swanctl.conf"
    swanctl "$2" --uri "unix://$home/vici" && code=0 || code=$?
    echo "swanctl $2: exit status $code"
    codes="$codes $code"
}
status 'pools { p { addrs = nowhere } }' --load-pools
status 'secrets { ike-gw { secret = "" } }' --load-creds
echo 'no certificate' > "$SWANCTL_DIR/x509ca/ca.pem"
status '' --load-creds
status '' --load-all
[ "$codes" = ' 22 0 0 0' ]
EOF
