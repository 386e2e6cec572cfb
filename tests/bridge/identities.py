"""Who we are to NATS, in every form: nkeys, credentials files with JWTs that end, and certificates."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nkeys
import trustme


class Key:
    """An nkey; `kind` is a PREFIX_BYTE_... of nkeys."""

    def __init__(self, kind: int) -> None:
        self.seed: bytes = nkeys.encode_seed(os.urandom(32), kind)
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public: str = self._pair.public_key.decode()

    def jwt(self, subject: str, name: str, claims: dict[str, Any], seconds: float | None = None) -> str:
        """Return a JSON web token about `subject` as the servers of NATS take it, signed by this key, for so long."""

        def encoded(data: bytes) -> str:
            return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

        body = {"iss": self.public, "sub": subject, "name": name, "iat": 1, "nats": {"version": 2, **claims}}
        if seconds is not None:
            body["exp"] = math.ceil(time.time() + seconds)
        body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).rstrip(b"=").decode()
        head = {"typ": "JWT", "alg": "ed25519-nkey"}
        text = ".".join(encoded(json.dumps(part).encode()) for part in (head, body))
        return f"{text}.{encoded(self._pair.sign(text.encode()))}"


class Operator:
    """An operator with one account, which may use JetStream, and a user of it."""

    def __init__(self) -> None:
        self._operator = Key(nkeys.PREFIX_BYTE_OPERATOR)
        self._account, self._system = (Key(nkeys.PREFIX_BYTE_ACCOUNT) for _ in range(2))
        self.user = Key(nkeys.PREFIX_BYTE_USER)
        self._revoked: dict[str, int] = {}  # until when, in seconds since the epoch

    def revoke(self) -> None:
        """Take another user; a server that is started with the options of then refuses the one before."""
        self._revoked[self.user.public] = int(time.time())
        self.replace_user()

    def replace_user(self) -> None:
        """Write credentials of another user from now on."""
        self.user = Key(nkeys.PREFIX_BYTE_USER)

    def server_options(self) -> str:
        """Return the configuration with which a nats-server accepts only its users."""
        limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
        stored = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
        preload = ""
        for key, more in ((self._account, stored), (self._system, {})):
            limited = {**limits, **more, "wildcards": True}
            claims = {"type": "account", "limits": limited, "revocations": self._revoked}
            preload += f"{key.public}: {self._operator.jwt(key.public, 'x', claims)}\n"
        name = {"type": "operator", "system_account": self._system.public}
        root = self._operator.jwt(self._operator.public, "op", name)
        return f"operator: {root}\nresolver: MEMORY\nresolver_preload: {{\n{preload}}}"

    def write_credentials(self, path: Path, seconds: float | None = None) -> None:
        """Write a credentials file of the user that is valid for so long; renewed, as programs do it, at one stroke."""
        claims = {"type": "user", "subs": -1, "data": -1, "payload": -1}
        jwt = self._account.jwt(self.user.public, "gw1", claims, seconds)
        new = path.with_suffix(".new")
        new.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{self.user.seed.decode()}\n------END USER NKEY SEED------\n"
        )
        new.replace(path)


class Pki:
    """A certificate authority, with files for the server and for us."""

    def __init__(self, directory: Path) -> None:
        authority, other = trustme.CA(), trustme.CA()
        self.ca, self.cert, self.key = directory / "ca.pem", directory / "cert.pem", directory / "key.pem"
        self.other_cert, self.other_key = directory / "other-cert.pem", directory / "other-key.pem"
        self.other_ca, self.server = directory / "other-ca.pem", directory / "server.pem"
        authority.cert_pem.write_to_path(self.ca)
        other.cert_pem.write_to_path(self.other_ca)
        authority.issue_cert("nats.example", "localhost").private_key_and_cert_chain_pem.write_to_path(self.server)
        self._authority = authority
        self.renew()
        _write(other.issue_cert("gw1@example"), self.other_cert, self.other_key)

    def renew(self, seconds: float = 3600) -> None:
        """Write a new certificate and key of ours, for so long."""
        ours = self._authority.issue_cert("gw1@example", not_after=datetime.now(UTC) + timedelta(seconds=seconds))
        _write(ours, self.cert, self.key)

    def server_options(self, more: str = "") -> str:
        return f'tls {{ cert_file: "{self.server}", key_file: "{self.server}"{more} }}'


def _write(certificate: trustme.LeafCert, cert: Path, key: Path) -> None:
    certificate.cert_chain_pems[0].write_to_path(cert)
    certificate.private_key_pem.write_to_path(key)
