#!/usr/bin/env bash
# swanctl 5.9.8 (Debian 12): --load-creds exits with 0 when a certificate or a secret could not be loaded.
#
# --load-conns, --load-pools and --load-authorities exit with 22 (EINVAL) when something that they load fails.
# --load-creds prints the failure and exits with 0, whether the file cannot be parsed or charon refuses the
# secret, and so does --load-all. A systemd unit that checks the status considers a gateway without its secret
# configured.
. "$(dirname "$0")/lib-strongswan.bash"

codes=
status() {
    echo "$1" > "$SWANCTL_DIR/swanctl.conf"
    swanctl "$2" && code=0 || code=$?
    echo "swanctl $2: exit status $code"
    codes="$codes $code"
}
status 'pools { p { addrs = nowhere } }' --load-pools
status 'secrets { ike-gw { secret = "" } }' --load-creds
echo 'no certificate' > "$SWANCTL_DIR/x509ca/ca.pem"
status '' --load-creds
status '' --load-all
[ "$codes" = ' 22 0 0 0' ]
