"""Private keys and PKCS#12 containers under a passphrase, opened by the command `openssl`.

The standard library cannot open them. Keys and passphrases reach `openssl` through pipes, and come back through one:
nothing is written to a file, and nothing shows in a list of processes. No error shows either.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
from collections.abc import Sequence

from .errors import ConfigError

_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s(.+?)-----END \1-----", re.DOTALL)
_TIMEOUT = 30.0
_LONGEST_PASSPHRASE = 1023  # openssl takes no more of a line

# What follows the version in the DER of a key: an INTEGER, an OCTET STRING, or the algorithm of PKCS#8.
_ALGORITHMS = (
    (re.compile(rb"\x02\x01\x00\x02"), "RSA"),
    (re.compile(rb"\x02\x01\x01\x04"), "ECDSA"),
    (re.compile(rb"\x02\x01.\x30\x05\x06\x03\x2b\x65\x70", re.DOTALL), "ED25519"),
    (re.compile(rb"\x02\x01.\x30\x05\x06\x03\x2b\x65\x71", re.DOTALL), "ED448"),
)


def is_encrypted(data: bytes) -> bool:
    """Whether a private key in PEM says of itself that it needs a passphrase."""
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in data or b"Proc-Type: 4,ENCRYPTED" in data


def open_key(data: bytes, passphrases: Sequence[str]) -> tuple[str, bytes]:
    """The type that charon knows a private key by, and its DER (PKCS#1, SEC 1, or PKCS#8 for the Edwards curves).

    The passphrases are tried in turn; a key that needs none opens with any. `ConfigError` when it does not open.
    """
    form = "PEM" if b"-----BEGIN" in data else "DER"
    for passphrase in passphrases:
        der = _openssl(["pkey", "-inform", form, "-outform", "DER", "-traditional"], data, passphrase)
        if der is not None:
            return _algorithm(der), der
    raise ConfigError("its passphrase does not open it")


def open_container(data: bytes, passphrases: Sequence[str]) -> tuple[list[bytes], list[tuple[str, bytes]]]:
    """The certificates of a PKCS#12 container as DER, and its private keys as `open_key` gives them."""
    for passphrase in passphrases:
        for legacy in ([], ["-legacy"]):  # RC2, which older software used: openssl 3 wants to be told
            pem = _openssl(["pkcs12", "-nodes", *legacy], data, passphrase)
            if pem is not None:
                return _contents(pem)
    raise ConfigError("its passphrase does not open it")


def _contents(pem: bytes) -> tuple[list[bytes], list[tuple[str, bytes]]]:
    blocks = list(_PEM.finditer(pem))
    certificates = [base64.b64decode(block[2]) for block in blocks if block[1] == b"CERTIFICATE"]
    keys = [open_key(block[0] + b"\n", [""]) for block in blocks if block[1].endswith(b"PRIVATE KEY")]
    return certificates, keys


def _algorithm(der: bytes) -> str:
    begin = 2 + (der[1] & 0x7F if der[1] & 0x80 else 0)
    for pattern, name in _ALGORITHMS:
        if pattern.match(der, begin):
            return name
    raise ConfigError("it is of a kind that charon does not take")


def _openssl(arguments: list[str], data: bytes, passphrase: str) -> bytes | None:
    """What the command makes of `data`, None when the passphrase is not the right one."""
    line = passphrase.encode("utf-8", "surrogateescape")
    if b"\n" in line or b"\0" in line or len(line) > _LONGEST_PASSPHRASE:
        raise ConfigError(f"openssl takes no passphrase with a line break, a NUL or over {_LONGEST_PASSPHRASE} bytes")
    source, sink = os.pipe()
    try:
        with open(sink, "wb") as pipe:
            pipe.write(line + b"\n")
        done = subprocess.run(
            ["openssl", *arguments, "-passin", f"fd:{source}"],
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(source,),
            timeout=_TIMEOUT,
        )
    except FileNotFoundError:
        raise ConfigError("opening it takes the command openssl, which is not on PATH") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"openssl did not open it within {_TIMEOUT:g} s") from None  # its arguments hold the input
    finally:
        os.close(source)
    return done.stdout if done.returncode == 0 and done.stdout else None
