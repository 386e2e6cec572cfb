#!/usr/bin/env bash
# cryptography 50.0.2: load_pkcs12 of a container with two private keys returns the first, without
# reporting the second. The certificate of the second key is among `additional_certs`, as that of a CA would be.
#
# Surprising, because containers of several keys are valid (Java's key stores have this format since Java 9), and
# `openssl pkcs12` prints all of their keys. A program that imports one silently loses a key, and mistakes the owner's
# second certificate for an intermediate one.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check cryptography==50.0.2 asn1crypto==1.5.1
"$home/venv/bin/python" - "$home/two.p12" <<'PY'
import datetime, sys

import cryptography
from asn1crypto import core, pkcs12 as asn1
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import NoEncryption, pkcs12


def bags(name):
    """Return the contents of a container with a private key and its certificate."""
    key, subject = ec.generate_private_key(ec.SECP256R1()), x509.Name.from_rfc4514_string("CN=" + name)
    start = datetime.datetime(2026, 1, 1)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1, start, start + datetime.timedelta(days=9))
    ).sign(key, hashes.SHA256())
    data = pkcs12.serialize_key_and_certificates(name.encode(), key, certificate, None, NoEncryption())
    return asn1.Pfx.load(data).authenticated_safe


content = asn1.AuthenticatedSafe([*bags("signing"), *bags("encryption")]).dump()
pfx = asn1.Pfx({"version": "v3", "auth_safe": {"content_type": "data", "content": core.OctetString(content)}})
with open(sys.argv[1], "wb") as file:
    file.write(pfx.dump())

loaded = pkcs12.load_pkcs12(pfx.dump(), None)
print("cryptography", cryptography.__version__)
print("key:", loaded.key, "\ncert:", loaded.cert, "\nadditional_certs:", loaded.additional_certs)
assert loaded.cert.friendly_name == b"signing"
assert loaded.key.public_key() == loaded.cert.certificate.public_key()
assert [certificate.friendly_name for certificate in loaded.additional_certs] == [b"encryption"]
PY
openssl pkcs12 -in "$home/two.p12" -nomacver -passin pass: -noenc | grep -e friendlyName -e BEGIN | tee "$home/seen"
[ "$(grep -c 'BEGIN PRIVATE KEY' "$home/seen")" = 2 ]
