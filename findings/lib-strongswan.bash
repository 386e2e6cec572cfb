# Sourced by the findings about strongSwan. Downloads Debian 12's packages into a temporary folder and runs the script
# again in its own mount, network and process namespaces, where they are mounted over /usr and /run is empty: nothing is
# installed, and no daemon of the machine is touched. Then starts charon. Needs root, and Debian 12 with current package
# lists (apt-get update).
#
# The script finds swanctl on PATH and its configuration directory in $SWANCTL_DIR; it may write to $work. When it sets
# `requirement`, $work/venv/bin/python has that Python package.
set -euo pipefail
VERSION=5.9.8-5+deb12u6

if [ -z "${work:-}" ]; then
    work=$(mktemp -d)
    export work
    trap 'rm -rf "$work"' EXIT
    packages=(libstrongswan libstrongswan-standard-plugins strongswan-libcharon strongswan-charon strongswan-swanctl)
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "${packages[@]/%/=$VERSION}")
    for package in "$work"/*.deb; do dpkg -x "$package" "$work/root"; done
    if [ -n "${requirement:-}" ]; then
        python3 -m venv "$work/venv"
        "$work/venv/bin/pip" install --quiet --disable-pip-version-check "$requirement"
    fi
    status=0
    timeout 60 unshare --mount --net --pid --fork --kill-child --mount-proc bash "$0" < /dev/null || status=$?
    exit "$status"
fi

mount -t overlay overlay -o "lowerdir=$work/root/usr:/usr" /usr
mount -t tmpfs tmpfs /run
# SIOCSIFFLAGS with IFF_UP, because iproute2 may be missing.
perl -MSocket -e 'socket(my $s, AF_INET, SOCK_DGRAM, 0); my $up = pack("a16s", "lo", 0x49); ioctl($s, 0x8914, $up)'
export STRONGSWAN_CONF=$work/strongswan.conf SWANCTL_DIR=$work/swanctl
mkdir -p "$SWANCTL_DIR"/{conf.d,x509,x509ca,x509ocsp,x509aa,x509ac,x509crl,pubkey,private,rsa,ecdsa,bliss,pkcs8,pkcs12}
cat > "$STRONGSWAN_CONF" <<END
charon {
    load = random nonce openssl kdf pem pkcs1 pkcs8 x509 pubkey kernel-netlink socket-default vici
}
swanctl {
    load = random openssl pem pkcs1 pkcs8 x509 pubkey
}
END

# wait_for LOG [OPTION...]: until swanctl, called with the options, reaches the charon that was started last.
wait_for() {
    until swanctl --stats "${@:2}" &> "$work/wait.log"; do
        kill -0 $! || { cat "$1"; exit 99; }
        sleep 0.1
    done
}

/usr/lib/ipsec/charon &> "$work/charon.log" &
wait_for "$work/charon.log"

# start_peer SECRET: starts a second charon, process $peer, on 127.0.0.2 with the secret SECRET. Writes a swanctl.conf
# for 127.0.0.1 with the secret "right" and the connection "office" to it: an IKE_SA without CHILD_SAs, because not
# every kernel has ESP.
start_peer() {
    cat > "$work/peer.conf" <<END
include $STRONGSWAN_CONF
charon {
    port = 15500
    port_nat_t = 14500
    plugins {
        vici {
            socket = unix://$work/vici
        }
    }
}
END
    STRONGSWAN_CONF=$work/peer.conf unshare --mount \
        bash -c 'mount -t tmpfs tmpfs /run; exec /usr/lib/ipsec/charon' &> "$work/peer.log" &
    peer=$!
    disown
    cat > "$SWANCTL_DIR/swanctl.conf" <<END
connections {
    office {
        version = 2
        childless = force
        mobike = no
        local_addrs = 127.0.0.1
        local_port = 4500
        remote_addrs = 127.0.0.2
        remote_port = 14500
        local {
            auth = psk
        }
        remote {
            auth = psk
        }
    }
}
secrets {
    ike-office {
        secret = right
    }
}
END
    cp -r "$SWANCTL_DIR" "$work/peer"
    sed -i "/_addrs\|_port/d; s/right/$1/" "$work/peer/swanctl.conf"
    wait_for "$work/peer.log" --uri "unix://$work/vici"
    SWANCTL_DIR=$work/peer swanctl --load-all --uri "unix://$work/vici" > "$work/load.log"
}

# see COMMAND...: prints the command, its output and its exit status; stores the latter two in $output and $status.
see() {
    status=0
    output=$("$@" 2>&1) || status=$?
    printf '$ %s\n%s\n[exit status %s]\n\n' "$*" "$output" "$status"
}

# expect SENTENCE COMMAND...: ends the script with status 1 if the command, which checks the sentence, fails.
expect() {
    if "${@:2}"; then echo "as before: $1"; else echo "CHANGED, no longer true: $1"; exit 1; fi
}
