#!/usr/bin/env bash
# cryptography 50.0.2: load_pem_private_key refuses a key that `openssl rsa -traditional -aes192` encrypted, with
# "ValueError: Key encrypted with unknown cipher.". It opens the same key encrypted with AES-128, AES-256 and even
# triple DES, and 44.0.3 opens all of them.
#
# Surprising, because the cipher that is missing lies between two that are supported, and OpenSSL still offers it. An
# update of the library makes a key file unusable.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
openssl genrsa -out plain.pem 2048 2> log
for cipher in aes128 aes192 aes256 des3; do
    openssl rsa -in plain.pem -traditional "-$cipher" -passout pass:secret -out "$cipher.pem" 2> log
done
grep DEK-Info aes192.pem
cat > load.py <<'END'
import sys

import cryptography
from cryptography.hazmat.primitives.serialization import load_pem_private_key

for cipher in sys.argv[1:]:
    with open(cipher + ".pem", "rb") as file:
        data = file.read()
    try:
        load_pem_private_key(data, b"secret")
        print(cryptography.__version__, cipher, "opened")
    except ValueError as error:
        print(cryptography.__version__, cipher, repr(error))
END
python3 -m venv venv
for version in 44.0.3 50.0.2; do
    venv/bin/pip install --quiet --disable-pip-version-check --no-compile --target "$version" "cryptography==$version"
    PYTHONPATH=$version venv/bin/python load.py aes128 aes192 aes256 des3 | tee -a seen
done
[ "$(grep -v opened seen)" = "50.0.2 aes192 ValueError('Key encrypted with unknown cipher.')" ]
