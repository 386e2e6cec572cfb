#!/usr/bin/env bash
# strongSwan 5.9.8 (Debian 12): when `swanctl --load-creds --noprompt` cannot decrypt a private key, it unloads the
# working key that it loaded from this file before, and exits with status 0.
#
# Surprising, because the key is still configured and its file is intact: only the passphrase in swanctl.conf is wrong.
# From then on the daemon has the certificate without its key, so the next authentication fails, and a script that
# checks the exit status of the reload sees success.
. "$(dirname "$0")/lib-strongswan.bash"

cd "$work"
openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out "$SWANCTL_DIR/x509/gw.pem" -subj /CN=gw 2> openssl.log
openssl rsa -in key.pem -traditional -aes128 -passout pass:right -out "$SWANCTL_DIR/private/gw.pem" 2> openssl.log
cat > "$SWANCTL_DIR/swanctl.conf" <<'END'
secrets {
    private-gw {
        file = gw.pem
        secret = right
    }
}
END
see swanctl --load-creds --noprompt
see swanctl --list-certs --type x509
expect "charon has the private key of the certificate" grep -q "has private key" <<< "$output"

sed -i 's/right/wrong/' "$SWANCTL_DIR/swanctl.conf"
see swanctl --load-creds --noprompt
expect "the key is reported as not loaded" grep -q "private/gw.pem' failed" <<< "$output"
expect "the status is 0 nevertheless" [ "$status" = 0 ]
see swanctl --list-certs --type x509
expect "charon has the certificate" grep -q "CN=gw" <<< "$output"
expect "charon has lost its private key" [ "${output/has private key/}" = "$output" ]
