"""Certificates for a charon of the lab, made with openssl; one subject is not ASCII."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vicifast.aio import AsyncSession

from .daemons import Charon, LabError

SUBJECT = "/C=CH/O=Beispiel/CN=Zürich gateway"

_CONFIG = """\
[req]
distinguished_name = subject
prompt = no
[subject]
"""


async def load(charon: Charon, directory: Path) -> None:
    """Make a CA and a gateway's certificate in `directory` and load them into `charon`, with the gateway's key.

    The connection `zurich` has a bare public key for the same subject, because charon shows the subjects only of these.
    """
    (directory / "openssl.cnf").write_text(_CONFIG)
    ca, gateway = directory / "ca", directory / "gateway"
    _certificate(ca, "/C=CH/O=Beispiel/CN=Beispiel CA", ["-addext", "basicConstraints=critical,CA:TRUE"])
    _certificate(gateway, SUBJECT, ["-CA", f"{ca}.pem", "-CAkey", f"{ca}.key"])
    public_key = _openssl("pkey", "-in", f"{gateway}.key", "-pubout")
    async with AsyncSession(charon.address) as session:
        for flag, base in (("CA", ca), ("NONE", gateway)):
            data = base.with_suffix(".pem").read_bytes()
            await session.call("load-cert", {"type": "X509", "flag": flag, "data": data})
        await session.call("load-key", {"type": "any", "data": gateway.with_suffix(".key").read_bytes()})
        remote = {"auth": "pubkey", "id": _identity(), "pubkeys": [public_key]}
        await session.call("load-conn", {"zurich": {"local": {"auth": "pubkey"}, "remote": remote}})


def _identity() -> str:
    """Write SUBJECT as charon takes names that are not ASCII: the DER of the X.501 name in hexadecimal."""
    parts = [part.split("=") for part in SUBJECT.split("/")[1:]]
    types = {"C": b"\x55\x04\x06", "O": b"\x55\x04\x0a", "CN": b"\x55\x04\x03"}
    pairs = [_der(0x30, _der(0x06, types[key]) + _der(0x0C, value.encode())) for key, value in parts]
    return "asn1dn:#" + _der(0x30, b"".join(_der(0x31, pair) for pair in pairs)).hex()


def _der(tag: int, content: bytes) -> bytes:
    return bytes([tag, len(content)]) + content


def _certificate(base: Path, subject: str, more: list[str]) -> None:
    """Make `base`.pem and its key `base`.key."""
    config = str(base.parent / "openssl.cnf")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-keyout", f"{base}.key"]
    certificate = ["-days", "3650", "-utf8", "-subj", subject, "-out", f"{base}.pem"]
    _openssl("req", "-x509", "-config", config, *key, *certificate, *more)


def _openssl(*arguments: str) -> bytes:
    done = subprocess.run(["openssl", *arguments], capture_output=True, timeout=30)
    if done.returncode:
        raise LabError(f"openssl {arguments[0]}: {done.stderr.decode().strip()}")
    return done.stdout
