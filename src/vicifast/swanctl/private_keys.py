"""Opens encrypted private keys and PKCS#12 containers with the package cryptography (the extra `cli`).

The package is imported only when needed. Keys and passphrases stay in this process, and no error contains any part of
them.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from ..errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

T = TypeVar("T")

_PEM_MARKS = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")
# DER of EncryptedPrivateKeyInfo: two SEQUENCEs and an OBJECT IDENTIFIER; other keys have a version after the first.
_ENCRYPTED_DER = re.compile(rb"\x30(?:[\x00-\x7f]|\x81.|\x82..)\x30.\x06", re.DOTALL)
_AES_192 = re.compile(rb"DEK-Info: AES-192-CBC,([0-9A-Fa-f]{32})\s+([0-9A-Za-z+/=\s]+)-----END")
# A SafeBag of PKCS#12 with a private key (keyBag, pkcs8ShroudedKeyBag): the type and the start of its explicit tag.
_KEY_BAG = re.compile(rb"\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01[\x01\x02]\xa0")


def is_encrypted(data: bytes) -> bool:
    """Whether a private key in PEM or DER needs a passphrase."""
    return any(mark in data for mark in _PEM_MARKS) or _ENCRYPTED_DER.match(data) is not None


def open_key(data: bytes, passphrases: Iterable[str]) -> tuple[str, bytes]:
    """Return charon's type of a private key, and its DER (PKCS#1, SEC 1, or PKCS#8 for the Edwards curves).

    The passphrases are tried in turn; an unencrypted key opens with any. Raises `ConfigError` if none opens it, if its
    type or encryption is not supported, or if the package cryptography is not installed.
    """
    return _first(passphrases, lambda passphrase: _typed(_load(data, passphrase)))


def open_container(data: bytes, passphrases: Iterable[str]) -> tuple[list[bytes], list[tuple[str, bytes]]]:
    """Return the certificates of a PKCS#12 container as DER, and its private keys like `open_key`.

    Raises the errors of `open_key`.
    """
    return _first(passphrases, lambda passphrase: _contents(data, passphrase))


def _first(passphrases: Iterable[str], opened: Callable[[bytes], T]) -> T:
    """Return the result for the first passphrase that fits."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
    except ImportError:
        raise ConfigError(
            "opening it requires the package cryptography: pip install 'strongswan-vicifast[cli]'"
        ) from None
    problem = "encrypted, and no passphrase was given"
    for passphrase in passphrases:
        try:
            return opened(passphrase.encode("utf-8", "surrogateescape"))
        except ConfigError:
            raise
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            if isinstance(error, UnsupportedAlgorithm) or "unknown" in str(error).lower():
                problem = "unsupported encryption: convert it with `openssl pkcs8 -topk8` or `openssl pkcs12 -export`"
            else:
                problem = "wrong passphrase"
    raise ConfigError(problem)


def _load(data: bytes, passphrase: bytes | None) -> PrivateKeyTypes:
    from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key

    if match := _AES_192.search(data):
        return load_der_private_key(_decrypt_aes_192(match, passphrase or b""), None)
    load = load_pem_private_key if b"-----BEGIN" in data else load_der_private_key
    try:
        return load(data, passphrase)
    except TypeError:  # a passphrase for an unencrypted key
        return load(data, None)


def _decrypt_aes_192(match: re.Match[bytes], passphrase: bytes) -> bytes:
    """Decrypt a traditional PEM key: `load_pem_private_key` supports AES-128 and AES-256 there, but not AES-192."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.padding import PKCS7

    iv = bytes.fromhex(match[1].decode())
    salted = passphrase + iv[:8]
    digest = hashlib.md5(salted, usedforsecurity=False).digest()
    key = (digest + hashlib.md5(digest + salted, usedforsecurity=False).digest())[:24]
    decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
    padded = decryptor.update(base64.b64decode(match[2])) + decryptor.finalize()
    unpadder = PKCS7(128).unpadder()
    return unpadder.update(padded) + unpadder.finalize()


def _typed(key: PrivateKeyTypes) -> tuple[str, bytes]:
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    types = (
        (rsa.RSAPrivateKey, "RSA", PrivateFormat.TraditionalOpenSSL),
        (ec.EllipticCurvePrivateKey, "ECDSA", PrivateFormat.TraditionalOpenSSL),
        (ed25519.Ed25519PrivateKey, "ED25519", PrivateFormat.PKCS8),
        (ed448.Ed448PrivateKey, "ED448", PrivateFormat.PKCS8),
    )
    for kind, name, form in types:
        if isinstance(key, kind):
            return name, key.private_bytes(Encoding.DER, form, NoEncryption())
    raise ConfigError("unsupported private key type; charon supports RSA, ECDSA, Ed25519 and Ed448")


def _contents(data: bytes, passphrase: bytes) -> tuple[list[bytes], list[tuple[str, bytes]]]:
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.hazmat.primitives.serialization.pkcs12 import load_pkcs12

    container = load_pkcs12(data, passphrase)
    certificates = [container.cert] if container.cert else []
    certificates += container.additional_certs
    bags = list(_key_bags(data))
    if len(bags) > 1:  # load_pkcs12 returns only the first key
        keys = [_load(bag, passphrase) for bag in bags]
    else:
        keys = [container.key] if container.key else []
    return [each.certificate.public_bytes(Encoding.DER) for each in certificates], [_typed(key) for key in keys]


def _key_bags(data: bytes) -> Iterator[bytes]:
    """Yield the DER of each private key in a PKCS#12 container, whose key bags are not encrypted as a whole."""
    for match in _KEY_BAG.finditer(data):
        begin = match.end() + 1
        size = int.from_bytes(data[begin - 1 : begin])
        if size & 0x80:  # the long form: the low bits are the number of length bytes
            begin, size = begin + (size & 0x7F), int.from_bytes(data[begin : begin + (size & 0x7F)])
        yield data[begin : begin + size]
