"""Credentials for NATS, read again for each connection because files may be renewed at run time."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote, urlsplit

from ..contract.nats_settings import NatsSettings

if TYPE_CHECKING:
    from nats.aio.client import RawCredentials

# In a credentials file, JWT and seed are each one line between a header line and a line of dashes.
_PART = r"-----BEGIN {}-----\s+([\w\-.=]+)\s"
_JWT = re.compile(_PART.format("NATS USER JWT"))
_SEED = re.compile(_PART.format("USER NKEY SEED"))


class CredentialsError(Exception):
    """A credential cannot be used; the text names its key in `[nats]`, the file and the problem, without secrets."""


@dataclass(frozen=True)
class Credentials:
    """The credentials of one connection: `options` for nats-py's `connect`, and when they expire.

    `digest` changes with any byte of any file, password or option. `expires` maps keys in `[nats]` to seconds since
    the epoch: `creds` (its JWT), `tls_cert`, and `tls_ca` (its CA certificate that expires last).
    """

    options: Mapping[str, Any]
    digest: bytes
    expires: Mapping[str, float]


def read_credentials(nats: NatsSettings, url: str) -> Credentials:
    """Read the credentials that `nats` names, for the server at `url`; raise CredentialsError.

    A user or token in `url` overrides those in `nats`.
    """
    return _Reading(nats, url).credentials()


def without_userinfo(url: str) -> str:
    """Return `url` without the user, password or token in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class _Reading:
    """Reads all credentials; each file is read once, so that digest, expiry and options come from the same bytes."""

    def __init__(self, nats: NatsSettings, url: str) -> None:
        self._nats = nats
        self._url = url
        self._digest = hashlib.sha256()
        self._expires: dict[str, float] = {}

    def credentials(self) -> Credentials:
        options: dict[str, Any] = {
            **self._identity(),
            "tls": self._tls(),
            "tls_hostname": self._nats.tls_hostname,
            "tls_handshake_first": self._nats.tls_first,
        }
        for value in (self._url, self._nats.tls_hostname, self._nats.tls_first, *self._login().values()):
            self._note(repr(value).encode())
        return Credentials(options, self._digest.digest(), self._expires)

    def _identity(self) -> dict[str, Any]:
        if self._nats.creds:
            return {"user_credentials": self._creds(self._nats.creds)}
        if self._nats.nkey:
            seed = self._read("nkey", self._nats.nkey).strip()
            self._user_of("nkey", self._nats.nkey, seed)
            return {"nkeys_seed_str": seed}
        return self._login()

    def _login(self) -> dict[str, str | None]:
        parts, nats = urlsplit(self._url), self._nats
        if parts.username is not None and parts.password is not None:
            return {"user": unquote(parts.username), "password": unquote(parts.password)}
        if parts.username is not None:
            return {"token": unquote(parts.username)}
        return {
            "user": nats.user,
            "password": nats.password,
            "token": nats.token,
        }

    def _creds(self, path: Path) -> RawCredentials:
        from nats.aio.client import RawCredentials  # `vicibridge check` needs nothing else of nats-py

        # nats-py loops indefinitely on a file without a JWT.
        text = self._read("creds", path)
        jwt, seed = _JWT.search(text), _SEED.search(text)
        if jwt is None or seed is None:
            missing = "user JWT" if jwt is None else "NKey seed"
            raise CredentialsError(f"creds: {path}: not a NATS credentials file: it contains no {missing}")
        user = self._user_of("creds", path, seed[1])
        try:
            claims = json.loads(base64.urlsafe_b64decode(jwt[1].split(".")[1] + "=="))
            subject, end = claims["sub"], float(claims.get("exp", 0))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise CredentialsError(f"creds: {path}: invalid JWT") from None
        if subject != user:
            raise CredentialsError(f"creds: {path}: seed and JWT belong to different users")
        if end:
            self._expires["creds"] = end
        return RawCredentials(
            f"-----BEGIN NATS USER JWT-----\n{jwt[1]}\n------END NATS USER JWT------\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed[1]}\n------END USER NKEY SEED------\n"
        )

    def _user_of(self, key: str, path: Path, seed: str) -> str:
        """Return the public key of the user with that seed."""
        import nkeys  # slow to import, and rarely needed

        try:
            pair = nkeys.from_seed(bytearray(seed.encode()))
            user: str = pair.public_key.decode()
        except Exception:  # nkeys raises errors of several libraries, and of base64
            raise CredentialsError(f"{key}: {path}: it contains no valid NKey seed") from None
        pair.wipe()
        return user

    def _tls(self) -> ssl.SSLContext | None:
        """Return the TLS context, or None if neither the address nor a key requires TLS."""
        nats = self._nats
        required = nats.tls_ca or nats.tls_cert or nats.tls_hostname or nats.tls_first
        if urlsplit(self._url).scheme != "tls" and not required:
            return None
        try:
            context = ssl.create_default_context(cafile=nats.tls_ca)
        except OSError:
            assert nats.tls_ca
            self._read("tls_ca", nats.tls_ca)  # raises if the file cannot be read
            raise CredentialsError(f"tls_ca: {nats.tls_ca}: it contains no PEM certificate") from None
        if nats.tls_ca:
            self._read("tls_ca", nats.tls_ca)
            ends = [ssl.cert_time_to_seconds(str(each["notAfter"])) for each in context.get_ca_certs()]
            self._expires.update({"tls_ca": float(max(ends))} if ends else {})
        if nats.tls_cert and nats.tls_key:
            self._load_certificate(context, nats.tls_cert, nats.tls_key)
        return context

    def _load_certificate(self, context: ssl.SSLContext, certificate: Path, key: Path) -> None:
        from cryptography import x509  # slow to import, and rarely needed

        text = self._read("tls_cert", certificate)
        self._read("tls_key", key)

        def no_password() -> NoReturn:  # OpenSSL would prompt at the terminal
            raise CredentialsError(f"tls_key: {key}: it is encrypted; store it without a passphrase")

        try:
            self._expires["tls_cert"] = x509.load_pem_x509_certificate(text.encode()).not_valid_after_utc.timestamp()
            context.load_cert_chain(certificate, key, no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise CredentialsError(f"tls_key: {key}: it does not match the certificate in {certificate}") from None
            raise CredentialsError(f"tls_key: {key}: it contains no PEM private key") from None
        except ValueError:
            raise CredentialsError(f"tls_cert: {certificate}: it contains no PEM certificate") from None

    def _read(self, key: str, path: Path) -> str:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CredentialsError(f"{key}: {path}: {error.strerror}") from None
        self._note(data)
        return data.decode("utf-8", "replace")

    def _note(self, data: bytes) -> None:
        self._digest.update(b"%d:%b" % (len(data), data))
