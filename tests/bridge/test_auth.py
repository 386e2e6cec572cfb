"""Every way to prove who we are to NATS, each against a real server that asks for it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nkeys
import pytest
import trustme
from harness import NatsServer, run, running, settings, until
from vicibridge.config import Config

Make = Callable[..., NatsServer]


class Key:
    """An nkey; `kind` is a PREFIX_BYTE_... of nkeys."""

    def __init__(self, kind: int) -> None:
        self.seed: bytes = nkeys.encode_seed(os.urandom(32), kind)
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public: str = self._pair.public_key.decode()

    def jwt(self, subject: str, name: str, claims: dict[str, Any]) -> str:
        """Return a JSON web token about `subject` as the servers of NATS take it, signed by this key."""

        def encoded(data: bytes) -> str:
            return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

        body = {"iss": self.public, "sub": subject, "name": name, "iat": 1, "nats": {"version": 2, **claims}}
        body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).rstrip(b"=").decode()
        head = {"typ": "JWT", "alg": "ed25519-nkey"}
        text = ".".join(encoded(json.dumps(part).encode()) for part in (head, body))
        return f"{text}.{encoded(self._pair.sign(text.encode()))}"


def told(url: str, options: dict[str, Any]) -> Config:
    return settings(url, nats={**options, "servers": [url]})


async def welcome(config: Config) -> None:
    """The server takes us, and what we send."""
    async with running(config) as bus:
        link = await bus.link()
        await link.publish("vici.x", b"hello")
        await link.fence(5)
        assert bus.errors == 0


async def refused(config: Config, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """The server does not take us; that is told once, without secrets."""
    caplog.clear()
    async with running(config) as bus:
        await until(lambda: reason in caplog.text)
        assert not bus.connected
        assert reason in bus.reason
    assert caplog.text.count(reason) == 1


async def unwelcome(config: Config) -> None:
    """The server does not take us; what it or TLS says of that depends on who is first."""
    async with running(config) as bus:
        await until(lambda: bus.reason != "not connected yet")
        assert not bus.connected


@pytest.mark.parametrize(
    ("options", "server_options"),
    [
        ({"user": "u", "password": "s3cret"}, 'authorization { user: "u", password: "s3cret" }'),
        ({"token": "s3cret"}, 'authorization { token: "s3cret" }'),
    ],
)
def test_password_and_token(
    make_nats_server: Make, caplog: pytest.LogCaptureFixture, options: dict[str, Any], server_options: str
) -> None:
    server = make_nats_server(server_options)

    async def test() -> None:
        await server.up()
        await welcome(told(server.url, options))
        wrong = {**options, list(options)[-1]: "wr0ng"}
        await refused(told(server.url, wrong), "Authorization Violation", caplog)
        assert "s3cret" not in caplog.text and "wr0ng" not in caplog.text

    run(test())


def test_nkey(make_nats_server: Make, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    ours, other = Key(nkeys.PREFIX_BYTE_USER), Key(nkeys.PREFIX_BYTE_USER)
    server = make_nats_server(f"authorization {{ users: [ {{ nkey: {ours.public} }} ] }}")

    async def test() -> None:
        await server.up()
        for key, name in ((ours, "ours.nk"), (other, "other.nk")):
            (tmp_path / name).write_bytes(key.seed)
        await welcome(told(server.url, {"nkey": tmp_path / "ours.nk"}))
        await refused(told(server.url, {"nkey": tmp_path / "other.nk"}), "Authorization Violation", caplog)
        assert ours.seed.decode() not in caplog.text

    run(test())


def test_credentials_file(make_nats_server: Make, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """JWTs with an operator, an account and users, as nsc makes them."""
    operator, account, user = (
        Key(kind) for kind in (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER)
    )
    stranger, system = Key(nkeys.PREFIX_BYTE_ACCOUNT), Key(nkeys.PREFIX_BYTE_ACCOUNT)
    limits = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True, "conn": -1}
    claims = {"type": "account", "limits": {**limits, "leaf": -1}}
    preload = "\n".join(f"{key.public}: {operator.jwt(key.public, 'x', claims)}" for key in (account, system))
    root = operator.jwt(operator.public, "op", {"type": "operator", "system_account": system.public})
    server = make_nats_server(f"operator: {root}\nresolver: MEMORY\nresolver_preload: {{\n{preload}\n}}")

    def credentials(name: str, issuer: Key) -> Path:
        jwt = issuer.jwt(user.public, "gw1", {"type": "user", "subs": -1, "data": -1, "payload": -1})
        path = tmp_path / name
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )
        return path

    async def test() -> None:
        await server.up()
        await welcome(told(server.url, {"creds": credentials("good.creds", account)}))
        await refused(
            told(server.url, {"creds": credentials("bad.creds", stranger)}), "Authorization Violation", caplog
        )
        assert user.seed.decode() not in caplog.text

    run(test())


class Pki:
    """A certificate authority, with files for the server and for us."""

    def __init__(self, directory: Path) -> None:
        authority, other = trustme.CA(), trustme.CA()
        self.ca, self.cert, self.key = directory / "ca.pem", directory / "cert.pem", directory / "key.pem"
        self.other_cert, self.other_key = directory / "other-cert.pem", directory / "other-key.pem"
        self.other_ca, self.server = directory / "other-ca.pem", directory / "server.pem"
        authority.cert_pem.write_to_path(self.ca)
        other.cert_pem.write_to_path(self.other_ca)
        authority.issue_cert("nats.example").private_key_and_cert_chain_pem.write_to_path(self.server)
        for issuer, cert, key in ((authority, self.cert, self.key), (other, self.other_cert, self.other_key)):
            mine = issuer.issue_cert("gw1@example")
            mine.cert_chain_pems[0].write_to_path(cert)
            mine.private_key_pem.write_to_path(key)

    def server_options(self, more: str = "") -> str:
        return f'tls {{ cert_file: "{self.server}", key_file: "{self.server}"{more} }}'


def test_tls(make_nats_server: Make, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    server = make_nats_server(pki.server_options())
    url = server.url.replace("nats://", "tls://")
    good = {"tls_ca": pki.ca, "tls_hostname": "nats.example"}

    async def test() -> None:
        await server.up()
        await welcome(told(url, good))
        await welcome(told(server.url, good))  # the server asks for it
        await refused(told(url, {**good, "tls_ca": pki.other_ca}), "certificate verify failed", caplog)
        await refused(told(url, {**good, "tls_hostname": "other.example"}), "certificate verify failed", caplog)
        await refused(told(url, {"tls_ca": pki.ca}), "certificate verify failed", caplog)

    run(test())


def test_a_hung_server_is_noticed_behind_tls_too(make_nats_server: Make, tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    server = make_nats_server(pki.server_options())

    async def test() -> None:
        await server.up()
        config = told(server.url, {"tls_ca": pki.ca, "tls_hostname": "nats.example"})
        async with running(config) as bus:
            link = await bus.link()
            server.pause()
            assert "not answer" in await link.lost()
            server.resume()
            await (await bus.link()).fence(5)

    try:
        run(test())
    finally:
        server.resume()


def test_client_certificate(make_nats_server: Make, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """The server maps our certificate to a user, as fleets do it."""
    pki = Pki(tmp_path)
    server = make_nats_server(
        pki.server_options(f', ca_file: "{pki.ca}", verify_and_map: true')
        + '\nauthorization { users: [ { user: "gw1@example" } ] }'
    )
    good = {"tls_ca": pki.ca, "tls_hostname": "nats.example", "tls_cert": pki.cert, "tls_key": pki.key}

    async def test() -> None:
        await server.up()
        await welcome(told(server.url, good))
        for wrong in ({"tls_cert": pki.other_cert, "tls_key": pki.other_key}, {"tls_cert": None, "tls_key": None}):
            await unwelcome(told(server.url, {**good, **wrong}))

    run(test())
