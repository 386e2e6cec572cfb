#!/usr/bin/env bash
# cryptography 50.0.2: load_pkcs12 with a password whose bytes are not UTF-8 raises "TypeError: function takes exactly 5
# arguments (0 given)".
#
# Surprising, because the function takes the password as bytes, and the error names neither the password nor its
# encoding: it is the error of `UnicodeDecodeError()` without its five arguments. For the same bytes
# serialize_key_and_certificates raises "ValueError: password must be valid UTF-8". A program that catches ValueError,
# which load_pkcs12 raises for a wrong password, ends with a traceback when a user enters "café" at a Latin-1 terminal.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check cryptography==50.0.2
"$home/venv/bin/python" - <<'PY'
import cryptography
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

print("cryptography", cryptography.__version__)


def serialize(password):
    key = ec.generate_private_key(ec.SECP256R1())
    return pkcs12.serialize_key_and_certificates(None, key, None, None, BestAvailableEncryption(password))


def outcome(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return repr(error)
    return "no error"


data = serialize("café".encode())
seen = {
    "load, right": outcome(pkcs12.load_pkcs12, data, "café".encode()),
    "load, wrong": outcome(pkcs12.load_pkcs12, data, b"coffee"),
    "load, Latin-1": outcome(pkcs12.load_pkcs12, data, "café".encode("latin-1")),
    "serialize, Latin-1": outcome(serialize, "café".encode("latin-1")),
}
for what, result in seen.items():
    print(f"{what}: {result}")
assert seen == {
    "load, right": "no error",
    "load, wrong": "ValueError('Invalid password or PKCS12 data')",
    "load, Latin-1": "TypeError('function takes exactly 5 arguments (0 given)')",
    "serialize, Latin-1": "ValueError('password must be valid UTF-8')",
}
PY
