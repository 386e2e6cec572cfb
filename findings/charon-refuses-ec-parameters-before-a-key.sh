#!/usr/bin/env bash
# strongSwan 5.9.8 (Debian 12): swanctl and charon refuse the file that `openssl ecparam -genkey` writes, because the
# key is its second PEM block, after "EC PARAMETERS".
#
# Surprising, because this is the usual command to generate an ECDSA key, OpenSSL reads its own file, and charon uses
# OpenSSL for ECDSA. The message "parsing ECDSA private key failed" does not mention the preceding block.
. "$(dirname "$0")/lib-strongswan.bash"

touch "$SWANCTL_DIR/swanctl.conf"
openssl ecparam -name prime256v1 -genkey -out "$work/ec.pem"
see grep BEGIN "$work/ec.pem"
expect "OpenSSL reads it" openssl pkey -in "$work/ec.pem" -noout

cp "$work/ec.pem" "$SWANCTL_DIR/ecdsa/"
see swanctl --load-creds
expect "swanctl, which may ask for a passphrase, does not" grep -q "parsing ECDSA private key failed" <<< "$output"
see swanctl --load-creds --noprompt
expect "charon, to which --noprompt sends the file, neither" grep -q "parsing ECDSA private key failed" <<< "$output"
expect "the status is 0" [ "$status" = 0 ]

sed -i '1,/END EC PARAMETERS/d' "$SWANCTL_DIR/ecdsa/ec.pem"
see swanctl --load-creds --noprompt
expect "without the first block it is loaded" grep -q "loaded ecdsa key from" <<< "$output"
